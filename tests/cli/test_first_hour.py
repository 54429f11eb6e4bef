"""A newcomer's first hour: slips are one line with a remedy, and the shell's comforts work."""

import json
import re
import subprocess
from contextlib import contextmanager
from importlib.metadata import metadata

import pytest

from cli import commands
from cli.output import Output
from tests.cli.running import SIZES, m3di
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan
from tests.stores.stores import build

AFFINE = ras_affine((1.5, 1.25, 2.0))
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


@pytest.fixture
def scans(tmp_path):
    for number in range(3):
        write_scan(tmp_path / f"scans/{number}.nii.gz", head(seed=number)[0], affine=AFFINE)
    return tmp_path


@contextmanager
def small_disk(folder, *options):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(("size=400k", *options)), "tmpfs", folder],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def refused(done, code, *words):
    error, hint = done.stderr.strip().splitlines()[-2:]
    assert error.startswith(f"error: {code} ")
    assert hint.startswith("hint: ")
    for word in words:
        assert word in error + hint
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["finetune", "--task", "msd", "--data", "scans"], "E_FORMAT", ["nnunet or msd", "--task labelled"]),
        (["finetune", "--task", "labelled", "--data", "scans"], "E_MISSING", ["label map", "X_seg"]),
        (["finetune", "--task", "labeled", "--data", "scans"], "E_CONFIG", ["did you mean 'labelled'"]),
        (["pretrain", "--set", "max_steps=3"], "E_CONFIG", ["pretrain.max_steps or finetune.max_steps"]),
        (["pretrain", "--set", "seed"], "E_CONFIG", ["KEY=VALUE"]),
        (["build-store", "scans", "--teacher", "local-dir:nowhere"], "E_WEIGHTS", ["nowhere"]),
        (["pretrain"], "E_STORE", ["m3di build-store", "M3DI_STORE"]),
        (["pretrian"], "E_CONFIG", ["pretrain"]),
        (["predict", "scans", "--run", "scans", "--out", "masks"], "E_WEIGHTS", ["no checkpoint", "run"]),
    ],
)
def test_a_slip_is_one_line_with_a_remedy_and_writes_nothing(scans, arguments, code, words):
    done = m3di(*arguments, cwd=scans)
    assert done.returncode == 2, done.stderr
    refused(done, code, *words)
    assert [path.name for path in scans.iterdir()] == ["scans"]


def test_a_network_that_is_not_known_is_told_with_its_neighbour(tmp_path):
    build(tmp_path / "store", 5)
    sizes = ("--preset", "smoke", "--set", "pretrain.slices_per_volume=3")
    done = m3di("pretrain", "--encoder", "vitt", *sizes, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    refused(done, "E_NETWORK", "unknown encoder: 'vitt'", "did you mean 'vit'")
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_exit_5_and_a_read_only_one_exit_2(scans):
    with small_disk(scans / "full") as full:
        done = m3di("build-store", "scans", "--store", full / "store", "--workers", 1, cwd=scans)
        assert done.returncode == 5, done.stderr
        refused(done, "E_DISK", "No space left on device", "make room and run the command again")
    with small_disk(scans / "fixed", "ro") as fixed:
        done = m3di("build-store", "scans", "--store", fixed / "store", *SIZES, cwd=scans)
        assert done.returncode == 2, done.stderr
        refused(done, "E_PATH", "Read-only file system", "choose a place you may write to")


@pytest.mark.parametrize("shell, word", [("bash", "complete -o default -F"), ("zsh", "#compdef m3di")])
def test_the_shell_completes_commands(tmp_path, shell, word):
    script = m3di(cwd=tmp_path, env={"_M3DI_COMPLETE": f"source_{shell}"})
    assert word in script.stdout
    asked = {"_M3DI_COMPLETE": "complete_bash", "COMP_WORDS": "m3di pre", "COMP_CWORD": "1"}
    assert m3di(cwd=tmp_path, env=asked).stdout.split() == ["pretrain", "predict"]


@pytest.mark.parametrize("no_color, is_coloured", [(None, True), ("1", False)])
def test_no_color_takes_the_colour_out_of_progress_bars(monkeypatch, capfd, no_color, is_coloured):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": no_color}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    output = Output(json=False, quiet=False, verbose=False)
    output.event("begin", stage="volumes", cases=3)
    output.event("committed", volume="a")
    output.event("finished", cell="b")
    output.close()
    shown = capfd.readouterr().err
    assert "2/3" in shown
    assert "finished  cell b" in COLOUR.sub("", shown)
    assert bool(COLOUR.search(shown)) == is_coloured


@pytest.mark.slow
def test_every_command_speaks_json(tmp_path):
    """Those that need a fitted teacher, a run or a server have tests of their own, which read their JSON too."""
    data = write_msd_dataset(tmp_path / "data", 2)
    build(tmp_path / "store", 2)
    build(tmp_path / "other", 2)
    asked = {
        "build-store": [data, "--store", "new", "--dry-run"],
        "info": [],
        "verify": ["--quick"],
        "merge": ["other", "--store", "all"],
        "diff": ["other"],
        "gc": ["--dry-run"],
        "doctor": [],
        "reproduce": ["table1", "--scale", "small", "--data", tmp_path, "--out", "out", "--dry-run"],
    }
    (tmp_path / "msd_hippocampus").symlink_to(data)
    for name, arguments in asked.items():
        done = m3di(name, *arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, (name, done.stderr)
        assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines()), name
        assert json.loads(done.stdout.splitlines()[-1])["schema"].startswith("m3di."), name


def test_every_command_takes_json():
    tables = [commands.TABLE, *(members for _, members in commands.GROUPS.values())]
    for name, (command, example) in [member for table in tables for member in table.items()]:
        assert example.startswith("m3di "), name
        assert "common" in command.__annotations__, f"{name} has not the options of every command, --json among them"


def test_the_python_that_is_needed_is_stated_for_pip():
    assert metadata("m3di")["Requires-Python"] == ">=3.11"
