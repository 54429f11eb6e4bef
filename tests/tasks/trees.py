"""Downstream datasets in the exact layouts of their distributions, made from phantoms of a few voxels."""

import json

import nibabel
import numpy as np
from PIL import Image

from tests.dicoms import write_series
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan

SHAPE = (12, 10, 6)
SPACING = (2.0, 2.5, 4.0)
MR_GREYS = np.array([0, 63, 126, 189, 252], np.uint8)  # as CHAOS draws liver, right kidney, left kidney, spleen
MMWHS_VALUES = np.array([0, 500, 600, 420, 550, 205, 820, 850], np.int16)
AFFINE = ras_affine(SPACING, (-10, 5, 30))


def phantom(seed, num_classes):
    """(image, label) of a head whose two blobs are cut into `num_classes` classes."""
    image, label = head(SHAPE, spacing=SPACING, seed=seed)
    half = np.arange(SHAPE[0])[:, None, None] // 2 % ((num_classes + 1) // 2)
    return image, np.where(label > 0, np.minimum(label + 2 * half, num_classes), 0).astype(np.uint8)


def write_chaos(root, *, ct=4, mr=4):
    """`Train_Sets/CT/<id>` and `Train_Sets/MR/<id>`: DICOM slices with PNG masks; and a CT of the test set."""
    names = [f"{k:05d}" for k in range(SHAPE[2])]
    for number in range(1, ct + 1):
        image, label = phantom(number, 1)
        _series(root / f"Train_Sets/CT/{number}/DICOM_anon", image / 2 - 150, [f"i{name},0000b" for name in names])
        _masks(root / f"Train_Sets/CT/{number}/Ground", 255 * label, [f"liver_GT_{name}" for name in names])
    for number in range(1, mr + 1):
        person = root / f"Train_Sets/MR/{number}"
        image, label = phantom(50 + number, 4)
        in_phase, out_phase = ([f"IMG-0004-{2 * k + n:05d}" for k in range(SHAPE[2])] for n in (2, 1))
        _series(person / "T1DUAL/DICOM_anon/InPhase", image, in_phase, modality="MR")
        _series(person / "T1DUAL/DICOM_anon/OutPhase", image.max() - image, out_phase, modality="MR")
        _masks(person / "T1DUAL/Ground", MR_GREYS[label], in_phase)
        _series(person / "T2SPIR/DICOM_anon", image**1.2, names, modality="MR")
        _masks(person / "T2SPIR/Ground", MR_GREYS[label], names)
    _series(root / "Test_Sets/CT/40/DICOM_anon", phantom(0, 1)[0] - 150, names)
    return root


def write_mmwhs(root, *, ct=4, mr=4):
    """`ct_train/ct_train_1001_image.nii.gz` with `_label`, and the same of MR; a test image without."""
    for modality, count in (("ct", ct), ("mr", mr)):
        for number in range(1, count + 1):
            image, label = phantom(number + 100 * (modality == "mr"), 7)
            stem = root / f"{modality}_train/{modality}_train_{1000 + number}"
            write_scan(stem.with_name(f"{stem.name}_image.nii.gz"), image.astype(np.int16), affine=AFFINE)
            write_scan(stem.with_name(f"{stem.name}_label.nii.gz"), MMWHS_VALUES[label], affine=AFFINE)
    write_scan(root / "ct_test/ct_test_2001_image.nii.gz", phantom(0, 1)[0].astype(np.int16), affine=AFFINE)
    return root


def write_oasis1(root, count=4):
    """`OASIS_OAS1_xxxx_MR1/aligned_norm.nii.gz` with `aligned_seg4.nii.gz`."""
    for number in range(1, count + 1):
        image, label = phantom(number, 4)
        folder = root / f"OASIS_OAS1_{number:04d}_MR1"
        for name, array in (("aligned_norm", image / image.max()), ("aligned_seg4", label), ("aligned_seg35", label)):
            write_scan(folder / f"{name}.nii.gz", array, affine=AFFINE)
    return root


# Subject, group and CDR at each visit. The last two became demented between visits, as two kinds of tables say it.
VISITS = (
    ("OAS2_0001", "Nondemented", (0, 0)), ("OAS2_0002", "Nondemented", (0, 0.5)), ("OAS2_0003", "Nondemented", (0,)),
    ("OAS2_0004", "Nondemented", (0,)), ("OAS2_0005", "Demented", (0.5, 0.5)), ("OAS2_0006", "Demented", (1, 2)),
    ("OAS2_0007", "Demented", (0.5,)), ("OAS2_0008", "Demented", (1,)), ("OAS2_0009", "Converted", (0, 0.5)),
    ("OAS2_0010", "Demented", (0, 0.5)),
)  # fmt: skip


def write_oasis2(root):
    """`OAS2_RAW_PART1/OAS2_xxxx_MRn/RAW/mpr-n.nifti.{hdr,img}`, and the clinical table."""
    lines = ["Subject ID,MRI ID,Group,Visit,MR Delay,M/F,Hand,Age,EDUC,SES,MMSE,CDR,eTIV,nWBV,ASF"]
    for number, (subject, group, ratings) in enumerate(VISITS):
        for visit, rating in enumerate(ratings, start=1):
            session = f"{subject}_MR{visit}"
            lines.append(f"{subject},{session},{group},{visit},0,M,R,87,14,2,27,{rating},1987,0.696,0.883")
            folder = root / f"OAS2_RAW_PART{1 + number % 2}/{session}/RAW"
            folder.mkdir(parents=True)
            for repeat in (1, 2):
                image = phantom(10 * number + visit, 1)[0] + repeat
                pair = nibabel.Nifti1Pair(image.astype(np.int16), AFFINE)
                nibabel.save(pair, folder / f"mpr-{repeat}.nifti.img")
    (root / "oasis_longitudinal.csv").write_text("\n".join(lines) + "\n")
    return root


def write_msd(root, count=5):
    """A decathlon set of two structures."""
    return write_msd_dataset(root, count, shape=SHAPE, spacing=SPACING)


def write_nnunet(root, count=4):
    """nnU-Net v2: two structures and voxels that nobody labelled, 3."""
    for number in range(count):
        image, label = phantom(number, 2)
        label[:2] = 3
        write_scan(root / f"imagesTr/head_{number:03d}_0000.nii.gz", image, affine=AFFINE)
        write_scan(root / f"labelsTr/head_{number:03d}.nii.gz", label, affine=AFFINE)
    labels = {"background": 0, "front": 1, "back": 2, "ignore": 3}
    manifest = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root


def write_labelled(root, count=4):
    """A folder of scans with label maps beside them, and nothing that says what their values are."""
    for number in range(count):
        image, label = phantom(number, 2)
        write_scan(root / f"case{number}.nii.gz", image, affine=AFFINE)
        write_scan(root / f"case{number}_seg.nii.gz", label * 3, affine=AFFINE)
    return root


def write_medmnist(root, *, test=True, edge=12):
    """`adrenalmnist3d.npz`: volumes and classes of three shares."""
    random = np.random.default_rng(0)
    arrays = {}
    for share, count in (("train", 12), ("val", 4), ("test", 4 if test else 0)):
        if count:
            classes = np.arange(count, dtype=np.uint8)[:, None] % 2
            noise = random.integers(0, 100, (count, edge, edge, edge))
            arrays |= {f"{share}_images": (noise + 150 * classes[..., None, None]).astype(np.uint8)}
            arrays |= {f"{share}_labels": classes}
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / "adrenalmnist3d.npz", **arrays)
    return root / "adrenalmnist3d.npz"


def write_table(root, header="image,subject,class", *, classes=("a", "b", "c"), count=15, line=None):
    """A folder of scans, two of every fifth subject, and a table with a class for each."""
    line = line or (lambda number: (f"scan{number}.nii.gz", f"p{number}", classes[number % len(classes)]))
    rows = [header]
    for number in range(count):
        image = phantom(number, 1)[0] + 100 * (number % len(classes))
        write_scan(root / f"scan{number}.nii.gz", image, affine=AFFINE)
        rows.append(",".join(line(number)))
    (root / "classes.csv").write_text("\n".join(rows) + "\n")
    return root


def _series(folder, image, names, *, modality="CT"):
    paths = write_series(folder, np.clip(image, -1024, 3000).astype(np.int16), affine=AFFINE, modality=modality)
    for path, name in zip(reversed(paths), names, strict=True):  # file names run against space
        path.rename(folder / f"{name}.dcm.new")
    for path in folder.glob("*.new"):
        path.rename(path.with_suffix(""))


def _masks(folder, greys, names):
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        Image.fromarray(np.ascontiguousarray(greys[:, :, SHAPE[2] - 1 - k].T)).save(folder / f"{name}.png")
