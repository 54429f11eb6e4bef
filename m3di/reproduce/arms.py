"""Ways to pretrain that are compared: the paper's table 3, and ablations beyond the paper."""

from typing import Final

from m3di.reproduce.programme import MAIN, SCRATCH, Arm, named


def _weights(*, pooled: int, dense: int = 0, reconstruction: int = 0) -> tuple[str, ...]:
    """Settings of all weights, whatever the preset's are."""
    given = {"image": pooled, "text": pooled, "dense": dense, "reconstruction": reconstruction}
    return tuple(f"objective.{term}_weight={weight}" for term, weight in given.items())


_POOLED: Final = _weights(pooled=1)


def _plane(name: str, weights: str) -> Arm:
    return Arm(f"{name}-only", f"{name} slices alone", (f"pretrain.plane_weights={weights}",))


ARMS: Final = named(
    Arm(MAIN, "main recipe"),
    # PSAT serves the pooled targets alone, so its parts are compared by them alone, as in the paper.
    Arm("ex1", "Ex1: projection alone", ("psat.mode=linear", *_POOLED)),
    Arm("ex2", "Ex2: QTrans", ("psat.mode=no_position", *_POOLED)),
    Arm("ex3", "Ex3: QTrans and PSPE", same_as=MAIN),
    Arm("k1", "K = 1", ("pretrain.slices_per_volume=1",)),
    Arm("k4", "K = 4", ("pretrain.slices_per_volume=4",)),
    Arm("k8", "K = 8", ("pretrain.slices_per_volume=8",)),
    Arm("k16", "K = 16", ("pretrain.slices_per_volume=16",)),
    Arm("infonce", "InfoNCE, pooled", ("objective.kind=infonce", *_POOLED)),
    Arm("soft", "soft targets, pooled", ("objective.kind=soft", *_POOLED)),
    Arm("sigmoid", "sigmoid, pooled", ("objective.kind=sigmoid", *_POOLED)),
    Arm("transport", "partial transport, pooled", ("objective.kind=transport", *_POOLED)),
    Arm("infonce-dense", "InfoNCE and dense targets alike", ("objective.kind=infonce", *_weights(pooled=1, dense=1))),
    Arm("dense", "dense targets alone", _weights(pooled=0, dense=1)),
    Arm("apart", "dense targets; InfoNCE trains PSAT alone", ("objective.pooled_trains_encoder=false",)),
    Arm("reconstruction", "InfoNCE and reconstruction", (
        "objective.kind=infonce", *_weights(pooled=1, reconstruction=1),
    )),
    Arm("reconstruction-dense", "InfoNCE, dense targets and reconstruction", (
        "objective.kind=infonce", *_weights(pooled=1, dense=1, reconstruction=1),
    )),
    Arm("reconstruction-only", "reconstruction alone", _weights(pooled=0, reconstruction=1)),
    Arm("teacher-unfitted", "embedded teacher, heads not fitted", (), ("teacher.fit_steps=0",)),
    Arm("teacher-random", "a ViT-S/32 that was never trained", ("pretrain.random_teacher=true",), (
        "teacher.spec=random:ViT-S-32",
    )),
    Arm("captions-image", "no captions: image targets alone", ("objective.text_weight=0",)),
    Arm("captions-text", "captions alone", ("objective.image_weight=0",)),
    Arm("captions-place", "captions of 24 tokens: plane and place", (), ("captions.max_tokens=24",)),
    _plane("axial", "[1,0,0]"),
    _plane("coronal", "[0,1,0]"),
    _plane("sagittal", "[0,0,1]"),
    Arm("preset-default", "preset default", preset="default"),
    Arm("preset-paper", "preset paper", preset="paper"),
    Arm("preset-author", "preset author", preset="author"),
)  # fmt: skip

# Title and arms of each ablation beyond the paper.
ABLATIONS: Final = {
    "ablation-k": ("slices of a volume in a step", ("k1", "k4", "k8", "k16")),
    "ablation-objective": (
        "what pretraining minimises",
        (MAIN, "infonce", "soft", "sigmoid", "transport", "infonce-dense", "dense", "apart"),
    ),
    "ablation-teacher": ("the frozen 2D model", (MAIN, "teacher-unfitted", "teacher-random")),
    "ablation-captioner": ("the texts", (MAIN, "captions-image", "captions-text", "captions-place")),
    "ablation-planes": ("the planes of the slices", (MAIN, "axial-only", "coronal-only", "sagittal-only")),
    "ablation-reconstruction": (
        "reconstruction beside the other targets",
        ("infonce", "reconstruction", "infonce-dense", "reconstruction-dense", "reconstruction-only"),
    ),
    "ablation-presets": ("presets", ("preset-default", "preset-paper", "preset-author")),
}  # fmt: skip
TABLE3: Final = (SCRATCH, "ex1", "ex2", "ex3")
