"""The programme of scale `small`: real sets, sizes that two CPU cores finish in a night (`scales/small.toml`)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from m3di.reproduce.arms import ABLATIONS, ARMS, TABLE3
from m3di.reproduce.programme import SCRATCH, Comparison, Network, Programme, Stock, Table, Target, named

FIVE: Final = (0, 1, 2, 3, 4)
THREE: Final = (0, 1, 2)
FEW: Final = 0.2
SEGMENTED: Final = ("hippocampus", "acdc")
DIAGNOSED: Final = ("acdc-diagnosis", "adrenal")
_VIT: Final = ("patch_size=8", "hidden_size=128", "mlp_dim=512", "num_layers=4", "num_heads=4")


def _network(
    name: str, title: str, encoder: str, options: Sequence[str] = (), decoder: Sequence[str] = ()
) -> Network:  # fmt: skip
    sizes = (f"encoder.name={encoder}", *_options("encoder", options))
    return Network(name, title, encoder, sizes, _options("finetune", decoder))


def _options(section: str, options: Sequence[str]) -> tuple[str, ...]:
    return (f"{section}.options={{{', '.join(options)}}}",) if options else ()


def _at(targets: Sequence[str], network: str, fraction: float, seeds: Sequence[int]) -> list[Comparison]:
    return [Comparison(target, network, fraction, tuple(seeds)) for target in targets]


def _ablation(name: str, title: str, arms: Sequence[str]) -> Table:
    arms = arms if SCRATCH in arms else (SCRATCH, *arms)
    return Table(name, title, "arms", tuple(Comparison(one, "vit", FEW, THREE, tuple(arms)) for one in SEGMENTED))


_AT_FEW: Final = _at(SEGMENTED, "vit", FEW, FIVE)
_CURVE: Final = [*_at(SEGMENTED, "vit", 0.05, FIVE), *_AT_FEW, *_at(SEGMENTED, "vit", 1.0, THREE)]
_OTHERS: Final = [*_at(SEGMENTED, "setr_mla", FEW, THREE), *_at(SEGMENTED, "unet", FEW, THREE)]
_CLASSES: Final = [
    *_at(DIAGNOSED, "vit", 1.0, FIVE),
    *(replace(one, probe=True) for one in _at(DIAGNOSED, "vit", 1.0, FIVE)),
    *_at(DIAGNOSED, "setr", 1.0, THREE),
    *_at(DIAGNOSED, "unet", 1.0, THREE),
]
_SEEN: Final = [Comparison(target, name, FEW, (0,)) for target in SEGMENTED for name in ("vit", "setr_mla", "unet")]

SMALL: Final = Programme(
    name="small",
    preset="default",
    pretraining=("pretrain.learning_rate=5e-4", "pretrain.warmup_fraction=0.1"),
    probe=("finetune.freeze_fraction=1", "finetune.learning_rate=1e-2"),
    targets=named(
        Target(
            "hippocampus", "MSD hippocampus", "hippocampus", "msd", "segmentation", "common",
            columns={"Anterior": "Anterior", "Posterior": "Posterior"},
        ),
        Target(
            "acdc", "ACDC", "acdc", "labelled", "segmentation", "common",
            columns={"label 1": "RV", "label 2": "Myocardium", "label 3": "LV"},
        ),
        Target("acdc-diagnosis", "ACDC diagnosis", "acdc", "table", "classification", "common"),
        Target(
            "adrenal", "AdrenalMNIST3D", "adrenal", "table", "classification", "adrenal",
            settings=("finetune.batch_size=8",),
        ),
    ),
    networks=named(
        _network("vit", "ViT", "vit", _VIT),
        # Not UNETR: its decoder takes a quarter of an hour a cell.
        _network("setr_mla", "SETR-MLA", "setr", _VIT, ("mla_size=64", "head_size=32")),
        _network("setr", "SETR's encoder", "setr", _VIT),
        _network("unet", "UNet", "unet"),
    ),
    stocks=named(
        Stock("common", ("hippocampus", "acdc")),
        Stock("adrenal", ("adrenal",), ("volumes.slice_stride=8",)),
    ),
    # The main recipe is not the paper's here: preset `default` has dense targets beside the pooled ones.
    arms=ARMS | named(replace(ARMS["ex3"], same_as="infonce")),
    tables=named(
        Table("table1", "Segmentation, from scratch and pretrained", "methods", (*_CURVE, *_OTHERS)),
        Table("table2", "Classification, from scratch and pretrained", "methods", tuple(_CLASSES)),
        _ablation("table3", "Ablation of PSAT", TABLE3),
        Table("figure2", "Predictions beside the label", "pictures", tuple(_SEEN)),
        Table("figure3", "Data efficiency with and without pretraining", "curves", tuple(_CURVE)),
        *(_ablation(name, f"Ablation: {title}", arms) for name, (title, arms) in ABLATIONS.items()),
    ),
)  # fmt: skip
