import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_exactly_the_three_packages(tmp_path):
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling, which is not installed")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"m3di", "stores", "cli"}
    for needed in (
        "m3di/presets/paper.toml",
        "m3di/demo/demo.toml",
        "m3di/report/templates/page.html",
        "m3di/query/page/static/explorer.html",
        "m3di/query/page/static/explorer.js",
        "m3di/report/templates/sort.js",
        "m3di/reproduce/published.toml",
        "m3di/reproduce/scales/small.toml",
        "stores/FORMAT.md",
    ):
        assert needed in names


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
