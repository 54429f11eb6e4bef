import json
import tomllib
from importlib import resources

import pytest

from m3di.config import Config, load_config, validate
from stores.errors import RefusedError


def test_later_layers_win(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("seed = 1\n[pretrain]\nbatch_size = 5\nlearning_rate = 0.1\n")
    config = load_config(
        preset="smoke",
        files=[file],
        settings=["pretrain.batch_size=6", "encoder.name=swin"],
        overrides=[("pretrain.batch_size", None), ("seed", 9)],
    )
    assert (config.seed, config.pretrain.batch_size, config.pretrain.learning_rate) == (9, 6, 0.1)
    assert config.encoder.name == "swin"
    assert config.volumes.cube_size == 32


def test_settings_survive_json():
    config = load_config(preset="paper")
    assert validate(json.loads(json.dumps(config.to_dict()))) == config


PAPER = {
    "pretrain.slices_per_volume": 1, "pretrain.batch_size": 32, "pretrain.epochs": 300,
    "pretrain.learning_rate": 1e-4, "pretrain.schedule": "constant", "pretrain.warmup_fraction": 0.0,
    "pretrain.weight_decay": 0.01, "pretrain.intensity_augmentation": False, "finetune.schedule": "constant",
    "finetune.warmup_fraction": 0.0, "finetune.intensity_augmentation": False,
    "finetune.affine_augmentation": False, "finetune.flip_axes": (), "finetune.encoder_rate_factor": 1.0,
    "finetune.freeze_fraction": 0.0, "finetune.deep_supervision": False, "finetune.ema_decay": 0.0,
    "finetune.patience": 0, "finetune.class_balance": "none", "finetune.learning_rate": 1e-4,
    "pretrain.max_steps": None, "psat.num_queries": 300, "psat.width": 512, "psat.num_layers": 1, "psat.mode": "full",
    "objective.kind": "infonce", "objective.image_weight": 1.0, "objective.text_weight": 1.0,
    "objective.dense_weight": 0.0, "objective.reconstruction_weight": 0.0,
    "volumes.cube_size": 128, "volumes.slice_stride": 1, "split.ratios": (0.7, 0.1, 0.2),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_preset_is_the_paper(name):
    section, field = name.split(".")
    assert getattr(getattr(load_config(preset="paper"), section), field) == PAPER[name]


def test_every_value_of_the_paper_preset_has_its_test():
    sections = tomllib.loads((resources.files("m3di.presets") / "paper.toml").read_text())
    assert {f"{section}.{field}" for section, fields in sections.items() for field in fields} <= set(PAPER)


AUTHOR = {
    "objective.kind": "transport", "objective.transport_regularisation": 0.03, "objective.transport_mass": 0.95,
    "objective.reconstruction_weight": 1.0, "objective.dense_weight": 0.0, "psat.width": 768, "psat.num_layers": 6,
    "psat.num_heads": 8, "psat.num_queries": 300, "psat.pooling": "query0", "pretrain.learning_rate": 1e-5,
    "pretrain.weight_decay": 1e-5, "pretrain.batch_size": 10, "pretrain.epochs": 100,
    "pretrain.slices_per_volume": 1, "encoder.name": "nnformer", "psat.norm": "post", "psat.activation": "relu",
    "psat.dropout": 0.1, "psat.mlp_dim": 8, "psat.position_std": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", AUTHOR)
def test_the_author_preset_is_what_is_known_of_the_code(name):
    section, field = name.split(".")
    assert getattr(getattr(load_config(preset="author"), section), field) == AUTHOR[name]


@pytest.mark.parametrize("preset", ["default", "paper", "author", "smoke"])
def test_every_preset_is_valid(preset):
    assert isinstance(load_config(preset=preset), Config)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("pretrain.batchsize=3", "did you mean pretrain.batch_size"),
        ("pretrain.batch_size=0", "pretrain.batch_size=0"),
        ("pretrain.schedule=linear", "pretrain.schedule='linear'"),
        ("psat=3", "psat=3"),
        ("nonsense", "is not KEY=VALUE"),
    ],
)
def test_mistakes_are_named_by_their_path(setting, message):
    with pytest.raises(RefusedError) as refused:
        load_config(settings=[setting])
    assert refused.value.code == "E_CONFIG"
    assert message in refused.value.message


def test_an_objective_without_terms_is_refused():
    with pytest.raises(RefusedError, match="every weight is 0"):
        load_config(preset="paper", settings=["objective.image_weight=0", "objective.text_weight=0"])
    load_config(settings=["objective.image_weight=0", "objective.text_weight=0", "objective.dense_weight=1"])


def test_an_objective_that_leaves_the_encoder_nothing_is_refused():
    with pytest.raises(RefusedError, match="leaves the encoder nothing"):
        load_config(preset="paper", settings=["objective.pooled_trains_encoder=false"])
    load_config(settings=["objective.pooled_trains_encoder=false", "objective.reconstruction_weight=1"])


def test_a_stride_that_takes_no_slice_is_refused():
    assert load_config(settings=["volumes.slice_stride=32", "volumes.cube_size=32"]).volumes.slice_stride == 32
    with pytest.raises(RefusedError, match=r"E_CONFIG volumes\.slice_stride=33 is over volumes\.cube_size"):
        load_config(settings=["volumes.slice_stride=33", "volumes.cube_size=32"])
