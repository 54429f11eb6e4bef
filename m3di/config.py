"""Every setting of every command, in one tree of frozen dataclasses: preset, then TOML file, then `--set a.b=c`."""

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError

from stores.errors import RefusedError
from stores.recipe import Recipe

PRESETS = ("default", "paper", "author", "smoke")

Positive = Annotated[int, Gt(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFloat = Annotated[float, Gt(0)]


@dataclasses.dataclass(frozen=True)
class SourcesConfig:
    """Where scans may come from, and what is true of those that do not say it themselves.

    `follow_links` also looks for scans behind symbolic links that lead out of a source. `modality` and `body_part`
    speak for scans that do not say theirs.
    """

    follow_links: bool = False
    modality: Literal["CT", "MR", "unknown"] = "unknown"
    body_part: str = ""


@dataclasses.dataclass(frozen=True)
class StorageConfig:
    """How the store is kept, whatever is in it.

    `layout` is for a new store: compressed, or not, which is read faster. `change_recipe` redoes the volumes of a
    store that was built by other settings of `volumes`. `wait_s` is how long to wait for another builder.
    `allow_network` is the user's word that no other machine writes to a store on a network file system.
    `local_copy` is a folder on a disk of this machine, to which pretraining copies what it reads of the store first;
    empty for none.
    """

    layout: Literal["compact", "uncompressed"] = "compact"
    change_recipe: bool = False
    wait_s: Annotated[float, Ge(0)] = 0.0
    allow_network: bool = False
    local_copy: str = ""


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """The server of `captions.captioner = "endpoint"`: any that speaks OpenAI's chat completions with images.

    `url` is its address, `model` the name of the model as the server knows it, `temperature` how freely it words.

    Every `every`-th slice of a plane is sent, as pixels (scaled to `image_px` on the longer side; 0: as stored) and
    fixed words; a caption has at most `max_words` of the model's.

    `concurrency` requests run at once. A request gets `timeout_s`; when the server cannot be reached or asks to wait
    it is sent up to `attempts` times; when the server fails on it, `image_attempts` times, after which the slice goes
    without the model, at most `max_poison` times a run.

    Caps are per run, and what is answered already counts for nothing: `max_requests`, `max_tokens_total`, and
    `max_cost` at `price_input` and `price_output` per million tokens. `pilot` is how many slices `captions plan`
    really asks about.

    A host that is not this machine must be named by `allow_host`, and over plain http be allowed by
    `allow_plain_http`; the key is read from the environment variable `key_variable`.
    """

    url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    every: Positive = 8
    image_px: Annotated[int, Ge(0), Le(4096)] = 0
    max_words: Annotated[int, Ge(5), Le(400)] = 35  # with the place before them about CLIP's 77 tokens
    temperature: Annotated[float, Ge(0)] = 0.0
    concurrency: Annotated[int, Gt(0), Le(256)] = 4
    timeout_s: PositiveFloat = 120.0
    attempts: Annotated[int, Gt(0), Le(10)] = 6
    image_attempts: Annotated[int, Gt(0), Le(10)] = 3
    max_poison: Annotated[int, Ge(0)] = 20
    max_requests: Positive | None = None
    max_tokens_total: Positive | None = None
    max_cost: PositiveFloat | None = None
    price_input: Annotated[float, Ge(0)] = 0.0
    price_output: Annotated[float, Ge(0)] = 0.0
    pilot: Annotated[int, Ge(0)] = 0
    allow_host: str = ""
    allow_plain_http: bool = False
    key_variable: str = "OPENAI_API_KEY"


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """Who writes the captions, and whether label maps may be used for them.

    `captioner` says who writes: a describer without a model, a server, or a table. `structures` names the anatomy
    of a label map in the captions: never for a set whose labels will be test data. `file` is the table of
    `captioner = "table"`, which must speak of every slice if `complete`. `max_tokens` is how long a text of
    `captioner = "describe"` may be: the teacher's context less its special tokens.
    """

    captioner: Literal["describe", "endpoint", "table"] = "describe"
    structures: bool = False
    file: str = ""
    complete: bool = False
    max_tokens: Annotated[int, Ge(20)] = 75
    endpoint: EndpointConfig = dataclasses.field(default_factory=EndpointConfig)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The frozen 2D model, and how it is fitted to the store's slice-caption pairs first (paper, section 2).

    `spec` names the model. `precision` is that of its forward passes; `auto` is what its folder asks for, else the
    fastest of the device. `fit` chooses the projection heads alone, at `fit_learning_rate`, or both towers whole,
    at `fit_tower_learning_rate`, `fit_micro_batch` slices of a batch at a time; a batch has `fit_batch_size`
    slices. It takes `fit_steps` steps, and no more than `fit_passes` passes over the pairs, as few pairs are soon
    learnt by heart; 0 steps leave the model as it is. `fit_slices` slices of all volumes take part, those of the
    training subjects in the fit, the others in the card. `dense_dim`, when not 0, keeps the patch features of every
    slice too, reduced to that many principal components of the patches of `dense_slices` training slices.
    """

    spec: str = "embedded"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    fit: Literal["heads", "towers"] = "heads"
    fit_steps: Annotated[int, Ge(0)] = 1000
    fit_passes: Positive = 30
    fit_learning_rate: PositiveFloat = 1e-3
    fit_tower_learning_rate: PositiveFloat = 1e-5
    fit_batch_size: Positive = 256
    fit_micro_batch: Positive = 32
    fit_slices: Positive = 5120
    dense_dim: Annotated[int, Ge(0)] = 0
    dense_slices: Positive = 1024


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The 3D encoder to pretrain; `options` go to its constructor.

    `name` is one that `m3di.networks.registry` knows, that an installed package declares, or `module:factory`.
    `weights`, when not empty, is `FAMILY:PATH`: public weights to begin with (see `m3di.networks.weights`).
    """

    name: str = "vit"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class PSATConfig:
    """The plane-slice-aware transformer (paper, section 2).

    It has `num_layers` layers of `width` with `num_heads` heads, and `num_queries` queries (Q), of which `pooling`
    makes one vector. `mode` leaves parts out, as the paper's Table 3 does.

    `positions` says how a slice's place is counted: by its index in the cube, whose voxels differ from scan to scan,
    or in mm from the cube's centre, where the table of places covers `extent_mm`. The table starts at 0, or at random
    with the deviation `position_std`.

    The MLP has `mlp_dim` hidden channels (0: four times the width) and `activation`. `norm` says what a layer's steps
    normalise, their queries first or their sum. `dropout` is that of what a step adds.
    """

    width: Positive = 512
    num_queries: Positive = 300
    num_heads: Positive = 8
    num_layers: Positive = 1
    pooling: Literal["mean", "query0", "attention"] = "mean"
    mode: Literal["full", "no_position", "linear"] = "full"
    positions: Literal["index", "mm"] = "index"
    extent_mm: PositiveFloat = 400.0
    mlp_dim: Annotated[int, Ge(0)] = 0
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    position_std: Annotated[float, Ge(0)] = 0.0


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What pretraining minimises: the sum of its terms, each with a weight; a weight of 0 leaves the term out.

    `kind` is how the vectors of slices are aligned with the teacher's image and text rows, two terms, which weigh
    `image_weight` and `text_weight`. `soft` gives
    the share `soft_share` of each row's target to the rows that the teacher finds alike, at `soft_temperature`.
    `transport` moves the share `transport_mass` of a batch, smoothed by `transport_regularisation`, the plan found in
    `transport_iterations` steps. `further_teachers` are those whose rows the store keeps beside the current one's,
    each by its spec or the beginning of its fingerprint; the vectors are aligned with all of them. Without
    `pooled_trains_encoder` this alignment trains PSAT alone, and the encoder learns from the other terms.

    `dense_weight` is that of the teacher's patch features against the tokens at their places, which needs a store
    with `teacher.dense_dim`; `dense_kind` compares them by `cosine`, or against the other patches of the volume
    (`infonce`); `dense_hidden`, when not 0, is the hidden width of the map between. `reconstruction_weight` is that
    of the cube, rebuilt from its tokens.
    """

    kind: Literal["infonce", "sigmoid", "soft", "transport"] = "infonce"
    image_weight: Annotated[float, Ge(0)] = 1.0
    text_weight: Annotated[float, Ge(0)] = 1.0
    soft_share: Fraction = 0.5
    soft_temperature: PositiveFloat = 0.1
    transport_regularisation: PositiveFloat = 0.03
    transport_mass: Annotated[float, Gt(0), Le(1)] = 0.95
    transport_iterations: Positive = 100
    further_teachers: tuple[str, ...] = ()
    pooled_trains_encoder: bool = True
    dense_weight: Annotated[float, Ge(0)] = 0.0
    dense_kind: Literal["cosine", "infonce"] = "cosine"
    dense_hidden: Annotated[int, Ge(0)] = 0
    reconstruction_weight: Annotated[float, Ge(0)] = 0.0


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pretraining: sizes, optimiser, schedule, and how often to look, log and save (in steps).

    A step draws `slices_per_volume` slices (K) of every volume of its batch, those of axial, coronal and sagittal
    planes as often as `plane_weights` say; a volume that has fewer gives some of them more than once. A run lasts
    `max_steps`, or else `epochs` passes over the volumes.

    AdamW learns at `learning_rate` with `weight_decay`. The rate rises over the first `warmup_fraction` of the run,
    and then stays or falls to nothing by `schedule`. Gradients are cut to the norm `max_gradient_norm`.
    `intensity_augmentation` changes contrast and brightness of the volumes a little. `precision` is that of the
    forward pass. `compile` has torch compile the model. A run looks at held-out volumes every `evaluate_every` steps,
    saves every `checkpoint_every`, and logs every `log_every`.

    `batch_size` is that of all processes together. Each process cuts its share into `accumulation` parts, of which
    one at a time is held in memory with its gradient; the contrastive loss still sees the whole batch.
    `gradient_checkpointing` computes the encoder's layers again in the backward pass. `ema_decay`, when not 0, keeps
    a moving average of the weights, which is evaluated, and saved beside them as `ema`. `tensorboard` writes the
    metrics as TensorBoard events too. `random_teacher` allows a store whose teacher was never trained: a control
    experiment. `slice_weights` is a file of `m3di captions audit --out`, by which the chance of slices is multiplied;
    empty for none. `leave_out` keeps the people out whom tasks test, in `m3di build-store` of the teacher's fit, in
    `m3di pretrain` of the encoder's training: each entry is `TASK:DATA`, divided by these settings (`split`), or a
    fine-tuning run.
    """

    slices_per_volume: Positive = 8
    plane_weights: tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)], Annotated[float, Ge(0)]] = (1.0, 1.0, 1.0)
    slice_weights: str = ""
    leave_out: tuple[str, ...] = ()
    batch_size: Positive = 32
    accumulation: Positive = 1
    epochs: Positive = 300
    max_steps: Positive | None = None
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Ge(0)] = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: Fraction = 0.05
    max_gradient_norm: PositiveFloat = 1.0
    intensity_augmentation: bool = True
    random_teacher: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    gradient_checkpointing: bool = False
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    tensorboard: bool = False
    checkpoint_every: Positive = 500
    evaluate_every: Positive = 500
    log_every: Positive = 10


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of a network on a task with labels.

    `options` go to the network's constructor. A step sees `batch_size` volumes; a run lasts `max_steps`, or else
    `epochs` passes. `label_fraction` is the share of the training subjects whose labels are used.

    AdamW learns at `learning_rate` with `weight_decay`; `schedule`, `warmup_fraction`, `max_gradient_norm`,
    `precision`, `compile`, `evaluate_every`, `checkpoint_every` and `log_every` are as in pretraining. The encoder
    learns at `encoder_learning_rate`, by default `encoder_rate_factor` times `learning_rate`; for the first
    `freeze_fraction` of the steps it does not learn at all (1: a linear probe). `deep_supervision` adds the losses
    of coarser maps where the network has them.

    `intensity_augmentation` changes gamma, contrast and brightness; `affine_augmentation` turns, scales and shifts a
    little; `flip_axes` mirrors along axes of the cube (`x`: left and right).

    `ema_decay`, when not 0, keeps a moving average of the weights, which is judged and used in their place. The
    weights that did best in validation are kept (`keep`), and training ends after `patience` evaluations without a
    better one (0: never).

    `class_column` names the column of the classes in a table. `class_balance` makes classes count alike: in the loss,
    or by drawing them equally often.
    """

    batch_size: Positive = 4
    epochs: Positive = 300
    max_steps: Positive | None = None
    learning_rate: PositiveFloat = 1e-4
    encoder_learning_rate: PositiveFloat | None = None
    encoder_rate_factor: PositiveFloat = 1.0
    freeze_fraction: Fraction = 0.0
    weight_decay: Annotated[float, Ge(0)] = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_fraction: Fraction = 0.05
    max_gradient_norm: PositiveFloat = 1.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    deep_supervision: bool = True
    intensity_augmentation: bool = True
    affine_augmentation: bool = True
    flip_axes: tuple[Literal["x", "y", "z"], ...] = ()
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.99
    keep: Literal["best", "last"] = "best"
    patience: Annotated[int, Ge(0)] = 10
    class_column: str = ""
    class_balance: Literal["none", "loss", "sampling"] = "loss"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    label_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    checkpoint_every: Positive = 500
    evaluate_every: Positive = 500
    log_every: Positive = 10


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Subject-wise split of each dataset into training, validation and test (paper, section 3.1).

    `ratios` are the shares of the three; another `seed` is another split.

    For tasks alone (fine-tuning, and `pretrain.leave_out`): `own` honours the split that a set brings along; `folds`,
    when not 0, makes a cross-validation instead, in which `fold` is the test share.
    """

    ratios: tuple[Fraction, Fraction, Fraction] = (0.7, 0.1, 0.2)
    seed: int = 0
    own: bool = True
    folds: Annotated[int, Ge(0)] = 0
    fold: Annotated[int, Ge(0)] = 0


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Metrics. `tolerance_mm` is how far apart borders may lie for surface Dice.

    `pictures` is how many of the worst cases a report shows, each predicted once more.
    """

    tolerance_mm: Annotated[float, Ge(0)] = 2.0
    pictures: Annotated[int, Ge(0)] = 4


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predictions of scans.

    `format` is that of masks: NIfTI, or DICOM SEG for scans that are DICOM. `probabilities` keeps those of every
    class beside the mask. `overview` draws a picture of every scan.

    `uncertainty` says how far several predictions of one scan disagree: those of its mirror images along
    `finetune.flip_axes`, as the network was trained with (`flips`), or those of several runs or repeats (`runs`).

    A scan whose cube is over `windows_beyond` times as wide as the widest in training is predicted by windows of the
    training cubes' median width, which overlap by `overlap` of it.
    """

    format: Literal["nifti", "dicom-seg"] = "nifti"
    probabilities: bool = False
    overview: bool = True
    uncertainty: Literal["none", "flips", "runs"] = "none"
    windows_beyond: Annotated[float, Ge(1)] = 1.5
    overlap: Annotated[float, Ge(0), Le(0.9)] = 0.5


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What the files of `m3di export` say that no run knows.

    `license` is that of the weights, as hubs write it (`cc-by-4.0`); it depends on the data. `data` describes the
    data in words that may be published. `spacing_mm` is the edge of the voxels that nnU-Net shall resample to; by
    default the median of the run's training cubes.
    """

    license: str = ""
    data: str = ""
    spacing_mm: PositiveFloat | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings; `seed` is that of everything random."""

    seed: int = 0
    sources: SourcesConfig = dataclasses.field(default_factory=SourcesConfig)
    storage: StorageConfig = dataclasses.field(default_factory=StorageConfig)
    volumes: Recipe = dataclasses.field(default_factory=Recipe)
    captions: CaptionsConfig = dataclasses.field(default_factory=CaptionsConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    psat: PSATConfig = dataclasses.field(default_factory=PSATConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    predict: PredictConfig = dataclasses.field(default_factory=PredictConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values; `validate` reads them back."""
        return TypeAdapter(Config).dump_python(self, mode="json")


def load_config(
    *,
    preset: str = "default",
    defaults: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    settings: Sequence[str] = (),
    overrides: Iterable[tuple[str, object]] = (),
) -> Config:
    """Resolve the settings of a command.

    Args:
        preset: `default`, `paper`, `author` or `smoke`.
        defaults: Settings below the preset, such as those of a task.
        base: Settings over the preset, such as those of a working directory.
        files: TOML files over them, later ones win.
        settings: `a.b=value` texts, which win over the files; values are TOML, or plain text.
        overrides: (dotted name, value) pairs, which win over everything; values that are None are left out.

    Raises:
        RefusedError: E_CONFIG, naming every mistake with its dotted path.
    """
    if preset not in PRESETS:
        raise RefusedError("E_CONFIG", f"no preset {preset!r}", hint=f"use one of {', '.join(PRESETS)}")
    layers = [dict(defaults or {})]
    layers.append(_parse((resources.files("m3di.presets") / f"{preset}.toml").read_text(), f"preset {preset}"))
    layers.append(dict(base or {}))
    layers += [_parse(_read(file), str(file)) for file in files]
    layers += [_setting(setting) for setting in settings]
    layers += [_nested(name, value) for name, value in overrides if value is not None]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return validate(merged)


def validate(fields: Mapping[str, Any]) -> Config:
    """Build the settings from plain values.

    Raises:
        RefusedError: E_CONFIG, naming every mistake with its dotted path.
    """
    mistakes = list(_unknown(Config, fields, ""))
    try:
        config = TypeAdapter(Config).validate_python(dict(fields))
    except ValidationError as error:
        mistakes += [
            f"{'.'.join(str(part) for part in detail['loc'])}={detail['input']!r}: {detail['msg']}"
            for detail in error.errors()
        ]
    if mistakes:
        raise RefusedError("E_CONFIG", "; ".join(mistakes), hint="correct the --set options or the TOML file")
    if config.volumes.slice_stride > config.volumes.cube_size:
        message = f"volumes.slice_stride={config.volumes.slice_stride} is over volumes.cube_size"
        raise RefusedError("E_CONFIG", message, hint=f"at most {config.volumes.cube_size}: one slice a plane")
    weights = {
        term: getattr(config.objective, f"{term}_weight") for term in ("image", "text", "dense", "reconstruction")
    }
    if not any(weights.values()):
        message = "objective: every weight is 0, there is nothing to learn"
        raise RefusedError("E_CONFIG", message, hint="set objective.image_weight=1")
    if not (config.objective.pooled_trains_encoder or weights["dense"] or weights["reconstruction"]):
        message = "objective.pooled_trains_encoder=false leaves the encoder nothing to learn from"
        raise RefusedError("E_CONFIG", message, hint="set objective.dense_weight=1, or leave it true")
    return config


def _unknown(cls: Any, fields: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Name keys that no dataclass field answers to, with the nearest that does."""
    known = {field.name: field.type for field in dataclasses.fields(cls)}
    for name, value in fields.items():
        if name not in known:
            near = [f"{prefix}{one}" for one in get_close_matches(name, known, n=1)] or _elsewhere(name)
            yield f"{prefix}{name} is not a setting" + (f" (did you mean {' or '.join(near)}?)" if near else "")
        elif dataclasses.is_dataclass(known[name]) and isinstance(value, Mapping):
            yield from _unknown(known[name], value, f"{prefix}{name}.")


def _elsewhere(name: str) -> list[str]:
    """Settings of that name in other places: who writes `max_steps` means one of them."""
    inner = {field.name: field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)}
    return [f"{place}.{name}" for place, cls in inner.items() if name in {f.name for f in dataclasses.fields(cls)}]


def _setting(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RefusedError("E_CONFIG", f"--set {text!r} is not KEY=VALUE", hint="for example --set seed=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return _nested(name, parsed)


def _nested(name: str, value: object) -> dict[str, Any]:
    return reduce(lambda inner, part: {part: inner}, reversed(name.split(".")), value)  # type: ignore[arg-type]


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in layer.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError("E_CONFIG", f"cannot read {file}: {error}", hint="check --config") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RefusedError("E_CONFIG", f"{name} is not valid TOML: {error}", hint="correct the file") from error
