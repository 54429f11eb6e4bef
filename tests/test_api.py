"""`import m3di`: what it offers, that checkers see the same, and that it costs next to nothing."""

import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import m3di

HEAVY = ("torch", "monai", "open_clip", "SimpleITK", "zarr", "lmdb", "numpy", "pydantic")
MAX_IMPORT_S = 0.05


def test_every_public_name_is_what_its_module_defines_and_what_type_checkers_see():
    source = ast.parse(Path(m3di.__file__).read_text())
    (checked,) = (node for node in source.body if isinstance(node, ast.If) and not isinstance(node.test, ast.UnaryOp))
    seen = {name.name: node.module for node in checked.body for name in node.names}
    assert seen == m3di._PLACES
    assert sorted(seen) == m3di.__all__
    for name in m3di.__all__:
        value = getattr(m3di, name)
        assert value.__name__ == name
        assert value.__doc__
    assert set(m3di.__all__) <= set(dir(m3di))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = m3di.nonsense


def test_import_is_quick_and_brings_nothing_heavy():
    code = (
        "import sys, time; import typing, importlib; begin = time.process_time(); import m3di; "
        f"print(time.process_time() - begin, [name for name in {HEAVY} if name in sys.modules])"
    )
    arguments = [sys.executable, "-c", code]
    runs = [subprocess.run(arguments, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    seconds, heavy = zip(*(done.split(maxsplit=1) for done in runs), strict=True)
    assert {found.strip() for found in heavy} == {"[]"}
    assert min(map(float, seconds)) < MAX_IMPORT_S


def test_types_are_shipped():
    for package in ("m3di", "stores"):
        assert files(package).joinpath("py.typed").is_file()
