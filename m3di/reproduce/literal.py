"""The programme of scale `paper`: the paper's datasets, networks and sizes (section 3), by `--preset paper`."""

from dataclasses import replace
from typing import Final

from m3di.reproduce.arms import ABLATIONS, ARMS, TABLE3
from m3di.reproduce.programme import SCRATCH, Comparison, Network, Programme, Stock, Table, Target, named

ONCE: Final = (0,)  # the paper names neither seeds nor repetitions; --seeds gives more
SEGMENTED: Final = ("mmwhs", "chaos", "oasis-seg")
FRACTIONS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # read from figure 3; the text does not name them


def _pretrained(name: str, title: str, encoder: str) -> Network:
    return Network(name, title, encoder, (f"encoder.name={encoder}",))


def _rows(targets: tuple[str, ...], networks: tuple[Network, ...]) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(target, one.name, 1.0, ONCE, (SCRATCH, "main") if one.encoder else (SCRATCH,))
        for one in networks
        for target in targets
    )


def _ablation(name: str, title: str, arms: tuple[str, ...]) -> Table:
    arms = arms if SCRATCH in arms else (SCRATCH, *arms)
    return Table(name, title, "arms", (Comparison("oasis-seg", "nnformer", 1.0, ONCE, arms),))


_SEGMENTERS: Final = (
    Network("unet", "UNet"),
    Network("attention_unet", "AttUNet"),
    Network("med3d", "Med3D"),
    Network("transunet", "TransUNet"),
    Network("nnunet", "nnUNet"),
    _pretrained("setr_pup", "SETR", "setr"),
    _pretrained("unetr", "UNETR", "unetr"),
    _pretrained("nnformer", "nnFormer", "nnformer"),
)
_CLASSIFIERS: Final = (
    Network("resnet50", "3D ResNet50"),
    Network("densenet121", "3D DenseNet121"),
    Network("mrnet", "MRNet"),
    Network("medicalnet", "MedicalNet"),
    Network("m3t", "M3T"),
    _pretrained("vit", "ViT", "vit"),
    _pretrained("video_swin", "Swin-ViT", "video_swin"),
)
_LAST_THREE: Final = _SEGMENTERS[5:]

LITERAL: Final = Programme(
    name="paper",
    preset="paper",
    pretraining=(),
    probe=("finetune.freeze_fraction=1",),
    targets=named(
        Target(
            "mmwhs", "MM-WHS", "mmwhs", "mmwhs", "segmentation", "common", published="mmwhs",
            columns={
                "left ventricle": "LVC", "right ventricle": "RVC", "left atrium": "LAC", "right atrium": "RAC",
                "ascending aorta": "AA",
            },
        ),
        Target(
            "chaos", "CHAOS", "chaos", "chaos", "segmentation", "common", published="chaos",
            columns={"liver": "Liver"},
        ),
        Target(
            "oasis-seg", "OASIS", "oasis", "oasis-seg", "segmentation", "common", published="oasis",
            columns={
                "cortex": "Cortex", "subcortical grey matter": "GM", "white matter": "WM",
                "cerebrospinal fluid": "CSF",
            },
        ),
        Target("oasis-ad", "OASIS", "oasis2", "oasis-ad", "classification", "common", published="oasis-ad"),
    ),
    networks=named(*_SEGMENTERS, *_CLASSIFIERS),
    stocks=named(Stock("common", ("3dseg8",), ("teacher.fit=towers", "teacher.dense_dim=48"))),
    # The paper's recipe has no dense targets, from which the encoder could learn instead.
    arms=ARMS | named(replace(ARMS["apart"], settings=(*ARMS["apart"].settings, "objective.dense_weight=1"))),
    tables=named(
        Table("table1", "3D segmentation", "methods", _rows(SEGMENTED, _SEGMENTERS)),
        Table("table2", "OASIS 3D classification", "methods", _rows(("oasis-ad",), _CLASSIFIERS)),
        _ablation("table3", "Ablation of PSAT", TABLE3),
        Table("figure2", "Predictions beside the label", "pictures", _rows(SEGMENTED, _LAST_THREE)),
        Table("figure3", "Data efficiency with and without pretraining", "curves", tuple(
            Comparison(target, "nnformer", fraction, ONCE)
            for target in ("chaos", "oasis-seg") for fraction in FRACTIONS
        )),
        *(_ablation(name, f"Ablation: {title}", arms) for name, (title, arms) in ABLATIONS.items()),
    ),
)  # fmt: skip
