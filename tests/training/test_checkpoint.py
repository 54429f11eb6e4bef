import json

import pytest
import torch
from torch import nn

from m3di.training import checkpoint
from m3di.training.optimiser import adamw, update
from stores.errors import DamagedError, DivergedError, RefusedError


def trained(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = adamw([(module, 0.1)], weight_decay=0.5)
    loss = module(torch.randn(5, 3)).square().mean() + module[0].weight.sum()
    update(optimizer, module, loss, {}, max_norm=1.0, where="here")
    return module, optimizer


def save(run, samples_seen, module, optimizer):
    return checkpoint.save(run, samples_seen, {"net": module}, optimizer, {"kind": "pretrain"})


def test_what_is_saved_loads_back(tmp_path):
    module, optimizer = trained()
    save(tmp_path, 8, module, optimizer)
    found = checkpoint.load(tmp_path, kind="pretrain")
    assert found.samples_seen == 8
    for name, weight in found.weights("net").items():
        assert torch.equal(weight, module.state_dict()[name])
    _, fresh = trained(seed=1)
    fresh.load_state_dict(found.optimizer_state())
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_the_last_two_are_kept_and_left_overs_are_ignored(tmp_path):
    module, optimizer = trained()
    for samples_seen in (2, 4, 10):
        save(tmp_path, samples_seen, module, optimizer)
    (tmp_path / "checkpoints/.partial-1-000000000099").mkdir()
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")) == ["000000000004", "000000000010"]
    assert checkpoint.load(tmp_path, kind="pretrain").samples_seen == 10


def test_damaged_weights_are_refused(tmp_path):
    folder = save(tmp_path, 2, *trained())
    content = bytearray((folder / "net.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "net.safetensors").write_bytes(content)
    with pytest.raises(DamagedError, match="E_WEIGHTS"):
        checkpoint.load(tmp_path, kind="pretrain").weights("net")


def test_newer_versions_and_other_kinds_are_refused(tmp_path):
    folder = save(tmp_path, 2, *trained())
    with pytest.raises(RefusedError, match="is a pretrain run, not a finetune run"):
        checkpoint.load(tmp_path, kind="finetune")
    facts = json.loads((folder / "facts.json").read_text())
    (folder / "facts.json").write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(DamagedError, match="E_VERSION"):
        checkpoint.latest(tmp_path)
    assert checkpoint.latest(tmp_path / "empty") is None


def test_only_matrices_are_decayed():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, kept = adamw([(module, 0.1)], weight_decay=0.5).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert (decayed["weight_decay"], kept["weight_decay"], len(kept["params"])) == (0.5, 0.0, 3)


def test_what_is_not_finite_never_reaches_the_weights():
    module, optimizer = trained()
    before = [p.clone() for p in module.parameters()]
    loss = module(torch.full((2, 3), float("inf"))).sum()
    with pytest.raises(DivergedError, match="step 7") as refused:
        update(optimizer, module, loss, {}, max_norm=1.0, where="step 7")
    assert refused.value.exit_code == 7
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
