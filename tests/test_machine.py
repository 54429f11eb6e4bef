"""`m3di doctor`: what it looks at, and when it says that something is wrong."""

import json

from packaging.requirements import Requirement

from m3di import machine
from tests.cli.running import m3di
from tests.stores.stores import build


def test_every_thing_is_looked_at_and_a_sound_store_is_counted(tmp_path):
    store = build(tmp_path / "store", 2)
    checks = {check.name: check for check in machine.examine_machine(store)}
    assert {"python", "m3di", "packages", "device", "memory", "disk here", "disk of the store"} <= checks.keys()
    assert {"extra embedded", "extra endpoint", "extra dicomseg", "extra search"} <= checks.keys()
    assert "extra dev" not in checks
    assert "torch " in checks["packages"].finding
    assert "vit" in checks["encoders"].finding
    assert "nnformer" in checks["segmentation networks"].finding
    assert "m3t" in checks["classification networks"].finding
    assert "chaos" in checks["tasks"].finding
    assert checks["store"].finding.endswith("2 volumes")


def test_a_package_that_is_missing_or_too_old_is_wrong_and_its_remedy_is_named():
    missing = machine._package(Requirement("no-such-package>=2"))
    assert (missing.sound, missing.finding) == (False, 'not installed: pip install "no-such-package>=2"')
    old = machine._package(Requirement("numpy>=999"))
    assert not old.sound
    assert old.finding.endswith('is not >=999: pip install "numpy>=999"')
    assert machine._package(Requirement("numpy>=1")).sound


def test_a_damaged_store_is_exit_4_and_the_remedy_is_said(tmp_path):
    store = build(tmp_path / "store", 1)
    (store / "rows.lmdb" / "data.mdb").write_bytes(b"no database")
    done = m3di("doctor", "--store", store, "--json", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    shown = json.loads(done.stdout)
    assert shown["schema"] == "m3di.doctor/1"
    scarce = {"memory", "disk here", "disk of the store"}  # a machine may be short of them besides
    (wrong,) = [check for check in shown["checks"] if not check["sound"] and check["name"] not in scarce]
    assert wrong["name"] == "store"
    assert "E_STORE" in wrong["finding"]
    assert "build it again" in wrong["finding"]


def test_free_memory_is_what_the_system_or_a_container_leaves(tmp_path, monkeypatch):
    free = machine.free_memory()
    for name, value in (("CGROUP_LIMIT", 1000), ("CGROUP_USED", 400)):
        (tmp_path / name).write_text(f"{value}\n")
        monkeypatch.setattr(machine, name, tmp_path / name)
    assert machine.free_memory() == 600 < free
    (tmp_path / "CGROUP_LIMIT").write_text("max\n")
    assert machine.free_memory() > 600
