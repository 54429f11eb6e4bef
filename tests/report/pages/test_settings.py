from m3di.config import load_config
from m3di.report.pages.settings import differences, settings_section


def test_only_what_differs_is_shown_with_its_default():
    config = load_config(settings=["finetune.batch_size=7", "finetune.flip_axes=['x']", "finetune.max_steps=3"])
    rows = differences(config.to_dict(), load_config().to_dict())
    assert rows == [
        ("finetune.batch_size", "7", "4"), ("finetune.max_steps", "3", "none"), ("finetune.flip_axes", '["x"]', "[]")
    ]  # fmt: skip


def test_settings_of_other_commands_are_left_out():
    config = load_config(settings=["pretrain.batch_size=7", "teacher.fit_steps=1", "encoder.options.depth=3"])
    assert differences(config.to_dict(), load_config().to_dict()) == [("encoder.options.depth", "3", "none")]


def test_a_tasks_own_settings_are_defaults():
    window = "volumes.ct_window_hu=[-160, 240]"
    (same,) = settings_section(load_config(settings=[window]).to_dict(), "chaos").blocks
    assert same.text == "All as preset default has them."
    (other,) = settings_section(load_config(settings=[window]).to_dict(), "msd").blocks
    assert other.rows == [("volumes.ct_window_hu", "[-160.0, 240.0]", "[-1000.0, 1000.0]")]


def test_settings_of_a_run_of_before_that_had_fewer_are_shown():
    old = load_config().to_dict()
    del old["finetune"]["patience"]
    assert differences(old, load_config().to_dict()) == [("finetune.patience", "none", "10")]
