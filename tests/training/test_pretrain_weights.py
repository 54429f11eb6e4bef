"""Pretraining with weights of slices, and runs that name code of somebody's."""

import json
import re
import sys
from importlib.metadata import EntryPoint

import pytest

from m3di.captions.audit import audit_captions
from m3di.config import load_config
from m3di.events import ignore
from m3di.networks import registry
from m3di.training import checkpoint, steps
from m3di.training.pretrain import pretrain
from stores import Store
from stores.errors import RefusedError
from stores.records import Captions
from tests.stores.stores import CAPTIONER, build, captions_of

SETTINGS = [
    "encoder.options.hidden_size=24", "encoder.options.mlp_dim=24", "psat.width=16", "psat.num_queries=4",
    "pretrain.batch_size=4", "pretrain.max_steps=4", "pretrain.checkpoint_every=2", "pretrain.slices_per_volume=3",
    "split.ratios=[0.6,0.2,0.2]",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pretrain") / "store", 10)


def train(store, run, *settings, report=ignore, **options):
    config = load_config(preset="smoke", settings=[*SETTINGS, *settings])
    return pretrain(store, run, config, device="cpu", report=report, **options)


def audited(store, path, *, change=lambda row: row):
    """The weights that an audit of the captions writes, some of them changed."""
    audit_captions(store, out=path)
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def misread(path):
    """A store whose captions call every axial slice coronal, but for the last two."""
    build(path, 5)
    with Store(path, writable=True) as opened:
        for kept in opened.records():
            axial, *others = captions_of(kept).texts
            wrong = ("Coronal slice.",) * (len(axial) - 2) + axial[-2:]
            opened.commit_captions(CAPTIONER, kept.volume, Captions(kept.item_digest, (wrong, *others)))
        opened.commit_facts("captioner", CAPTIONER, {"name": "b2", "structures": False})
    return path


def test_slices_that_an_audit_bars_are_never_drawn(tmp_path, monkeypatch):
    seen = []
    cut_as_before = steps.cut

    def spied(batch, *arguments, **options):
        seen.extend(zip(batch.draw.planes.ravel().tolist(), batch.draw.slices.ravel().tolist(), strict=True))
        return cut_as_before(batch, *arguments, **options)

    monkeypatch.setattr(steps, "cut", spied)
    path, file = misread(tmp_path / "store"), tmp_path / "w.jsonl"
    checks = audit_captions(path, out=file)["checks"]
    assert next(check for check in checks if check["check"] == "wrong plane")["slices"] > 20
    train(path, tmp_path / "run", f"pretrain.slice_weights={file}")
    assert len(seen) == 4 * 4 * 3
    assert {index for plane, index in seen if plane == 0} <= {13, 15}
    assert {plane for plane, _ in seen} == {0, 1, 2}
    told = []
    train(
        path, tmp_path / "other", f"pretrain.slice_weights={file}", "pretrain.plane_weights=[1.0, 0.0, 0.0]",
        report=lambda event, **facts: told.append((event, facts)),
    )  # fmt: skip
    (warning,) = (facts for event, facts in told if event == "warning")
    assert warning["code"] == "W_FEW_SLICES"
    assert re.match(r"3 of 3 volumes have fewer than 3 slices to draw \(v\d has 2\)", warning["message"])
    none = audited(path, tmp_path / "none.jsonl", change=lambda row: row | {"weight": 0})
    with pytest.raises(RefusedError, match=r"E_CONFIG volume v\d has no slice to draw"):
        train(path, tmp_path / "refused", f"pretrain.slice_weights={none}")
    assert not (tmp_path / "refused").exists()


def test_an_audit_that_finds_nothing_leaves_the_run_as_it_was(store, tmp_path):
    file = audited(store, tmp_path / "w.jsonl", change=lambda row: row | {"weight": 1})
    train(store, tmp_path / "with", f"pretrain.slice_weights={file}")
    train(store, tmp_path / "without")
    weighted, plain = (checkpoint.load(tmp_path / name, kind="pretrain") for name in ("with", "without"))
    assert weighted.facts["files"] == plain.facts["files"]
    assert (len(weighted.facts["slice_weights"]), plain.facts["slice_weights"]) == (64, "")


def test_a_run_goes_on_with_its_own_slice_weights_alone(store, tmp_path):
    file = audited(store, tmp_path / "w.jsonl", change=lambda row: row | {"weight": 0.5})
    run = tmp_path / "run"
    train(store, run, f"pretrain.slice_weights={file}", "pretrain.max_steps=2")
    with pytest.raises(RefusedError, match=r"E_CONFIG pretrain.slice_weights='' .* is not what .* was trained with"):
        train(store, run, resume=True)
    moved = file.rename(tmp_path / "moved.jsonl")
    assert train(store, run, f"pretrain.slice_weights={moved}", resume=True).samples_seen == 16
    moved.write_text(moved.read_text().replace("0.5", "0.25", 1))
    with pytest.raises(RefusedError, match=r"E_CONFIG pretrain\.slice_weights=.*moved\.jsonl"):
        train(store, run, f"pretrain.slice_weights={moved}", "pretrain.max_steps=6", resume=True)


FOREIGN = """
from m3di.networks.vit import vit

def build(*, cube_size, **options):
    return vit(cube_size=cube_size, **options)
"""


def test_code_that_only_a_run_names_is_not_imported(store, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/of_somebody.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path / "code")
    named = "encoder.name=of_somebody:build"
    train(store, tmp_path / "run", named, "pretrain.max_steps=2")
    sys.modules.pop("of_somebody")
    with pytest.raises(RefusedError, match=r"E_NETWORK .* was trained with encoder 'of_somebody:build'") as told:
        train(store, tmp_path / "run", resume=True)
    assert "of_somebody" not in sys.modules
    assert told.value.hint == "if you trust it: --set encoder.name=of_somebody:build"
    assert train(store, tmp_path / "run", named, resume=True).samples_seen == 16
    found = checkpoint.load(tmp_path / "run", kind="pretrain")
    point = EntryPoint("somebody", "of_somebody:build", registry.ENTRY_POINTS)
    monkeypatch.setattr(checkpoint, "entry_points", lambda group: [point] if group == "m3di.encoders" else [])
    assert found.encoder(named="vit")["name"] == "of_somebody:build", "an installed package declares it"
