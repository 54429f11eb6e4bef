"""MM-WHS challenge (Zhuang & Shen 2016): `ct_train_1001_image.nii.gz` and `ct_train_1001_label.nii.gz`."""

import re
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, safe_id
from m3di.volumes.layouts.names import is_scan, stem_of

IMAGE: Final = re.compile(r"(?P<modality>ct|mr)_(?:train|test)_\d+(?=_image$)")
NAMES: Final = {
    1: "left ventricle", 2: "right ventricle", 3: "left atrium", 4: "right atrium",
    5: "myocardium of the left ventricle", 6: "ascending aorta", 7: "pulmonary artery",
}  # fmt: skip
# 421 stands for 420 in some of the distributed MR label maps.
CODES: Final = (
    (500, 500, 1), (600, 600, 2), (420, 421, 3), (550, 550, 4), (205, 205, 5), (820, 820, 6), (850, 850, 7)
)  # fmt: skip


def matches(root: Path) -> bool:
    """Whether there are files named as the challenge names them."""
    return root.is_dir() and any(IMAGE.match(stem_of(path)) for path in root.rglob("*_image.nii*"))


def cases(root: Path) -> list[Case]:
    """Every image, with its label map where the set has one."""
    found = []
    for path in sorted(root.rglob("*_image.nii*")):
        match = IMAGE.match(stem_of(path)) if is_scan(path) else None
        if match is None:
            continue
        label = path.with_name(path.name.replace("_image", "_label"))
        found.append(
            Case(
                id=safe_id(match[0]),
                subject=safe_id(match[0]),
                dataset="MM-WHS",
                modality=match["modality"].upper(),
                body_part="heart",
                image=path,
                label=LabelMap(label, NAMES, CODES) if label.is_file() else None,
                root=root,
            )
        )
    return found
