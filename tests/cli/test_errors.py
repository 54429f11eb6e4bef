import pytest

from tests.cli.running import m3di
from tests.phantoms import write_msd_dataset


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["build-store", "nowhere"], "E_MISSING"),
        (["build-store"], "E_MISSING"),
        (["build-store", ".", "--layout", "nonsense"], "E_CONFIG"),
        (["build-store", "."], "E_FORMAT"),
        (["info", "--store", "nowhere"], "E_STORE"),
        (["verify", "--store", "nowhere"], "E_STORE"),
        (["query", "liver", "--store", "nowhere"], "E_STORE"),
        (["query"], "E_CONFIG"),
        (["query", "a", "--volume", "b"], "E_CONFIG"),
        (["finetune", "--task", "msd"], "E_MISSING"),
        (["finetune", "--task", "nonsense", "--data", "."], "E_CONFIG"),
        (["evaluate", "--run", "nowhere"], "E_WEIGHTS"),
        (["pretrain", "--preset", "nonsense"], "E_CONFIG"),
        (["pretrain", "--set", "pretrain.batchsize=3"], "E_CONFIG"),
        (["pretrain", "--nonsense"], "E_CONFIG"),
        (["nonsense"], "E_CONFIG"),
    ],
)
def test_wrong_use_is_one_line_with_a_hint_and_exit_code_2(tmp_path, arguments, code):
    done = m3di(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith(f"error: {code} ")
    assert hint.startswith("hint: ")
    assert done.stdout == ""
    assert not any(tmp_path.iterdir()), "nothing was written"


def test_wrong_options_point_to_the_help_of_their_command(tmp_path):
    assert (
        m3di("query", "--text", "liver", cwd=tmp_path).stderr.splitlines()[-1].startswith("hint: m3di query --help")
    )
    assert m3di("qury", cwd=tmp_path).stderr.splitlines()[-1].startswith("hint: m3di --help")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["info", "a"], "a store is given by --store STORE; m3di info --help lists"),
        (["pretrain", "a"], "a store is given by --store STORE; m3di pretrain --help lists"),
        (["query", "axial", "slice"], "put several words into quotes; m3di query --help lists"),
        (["evaluate", "a"], "a run is given by --run RUN; m3di evaluate --help lists"),
        (["demo", "a"], "m3di demo --help lists"),
    ],
)
def test_an_argument_too_many_is_told_how_it_is_given(tmp_path, arguments, remedy):
    done = m3di(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"hint: {remedy}")


def test_all_mistakes_of_the_settings_are_named_at_once(tmp_path):
    done = m3di("pretrain", "--set", "pretrain.batchsize=3", "--set", "psat.width=-1", cwd=tmp_path)
    assert "did you mean pretrain.batch_size?" in done.stderr
    assert "psat.width" in done.stderr


def test_places_come_from_the_environment_and_from_m3di_toml(tmp_path):
    write_msd_dataset(tmp_path / "sets" / "msd", 1)
    done = m3di("build-store", "--dry-run", cwd=tmp_path, env={"M3DI_DATA": str(tmp_path / "sets")})
    assert "head_000" in done.stdout
    (tmp_path / "m3di.toml").write_text('store = "here"\nsources = ["sets/msd"]\n[volumes]\ncube_size = 24\n')
    done = m3di("build-store", "--dry-run", cwd=tmp_path)
    assert "head_000" in done.stdout
    assert "there is no store at here" in m3di("info", cwd=tmp_path).stderr
