import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from m3di.teachers.clip import load_teacher, save_teacher
from m3di.teachers.tuning import HeadFit, PairBatch, TowerFit, contrastive_loss, fit_heads, fit_towers, retrieval_card
from stores.errors import DivergedError, RefusedError
from tests.references import retrieval

COLOURS = ["black", "dark", "grey", "light", "bright", "white"]


@pytest.fixture(scope="module")
def pairs(embedded) -> tuple[torch.Tensor, torch.Tensor]:
    """Trunk features of 24 slices of six kinds; the four of a kind share a caption."""
    generator = torch.Generator().manual_seed(1)
    bars = torch.zeros(24, 64, 64)
    for number in range(24):
        bars[number, :, 10 * (number % 6) : 10 * (number % 6) + 8] = 200
    noise = torch.randint(0, 50, bars.shape, generator=generator)
    images = embedded.image_features((bars + noise).to(torch.uint8))
    return images, embedded.text_features([f"a {COLOURS[number % 6]} bar" for number in range(24)])


FIT = HeadFit(steps=30, batch_size=12)


def recall_at_1(teacher, images, texts) -> float:
    model = teacher.towers.model
    with torch.no_grad():
        rows = F.normalize(model.visual.head(images), dim=-1) @ F.normalize(model.text.proj(texts), dim=-1).T
    return float((rows.argmax(dim=1) % 6 == torch.arange(24) % 6).float().mean())


def test_fitting_teaches_the_pairs_and_leaves_the_given_teacher(embedded, pairs):
    before, fingerprint = recall_at_1(embedded, *pairs), embedded.fingerprint
    fitted = fit_heads(embedded, *pairs, FIT)
    assert recall_at_1(fitted, *pairs) == 1 > before
    assert recall_at_1(embedded, *pairs) == before
    del embedded.__dict__["fingerprint"]
    assert embedded.fingerprint == fingerprint != fitted.fingerprint


def test_only_heads_and_temperature_change(embedded, pairs):
    fitted = fit_heads(embedded, *pairs, FIT)
    old, new = embedded.towers.model.state_dict(), fitted.towers.model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {
        "visual.head.proj.weight",
        "visual.head.proj.bias",
        "text.proj.0.weight",
        "text.proj.2.weight",
        "logit_scale",
    }
    assert not any(parameter.requires_grad for parameter in fitted.towers.model.parameters())


def test_the_seed_decides_and_the_global_random_state_does_not(embedded, pairs):
    torch.manual_seed(1)
    first = fit_heads(embedded, *pairs, FIT)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert fit_heads(embedded, *pairs, FIT).fingerprint == first.fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    assert fit_heads(embedded, *pairs, HeadFit(steps=30, batch_size=12, seed=1)).fingerprint != first.fingerprint


class StoppedError(Exception):
    """What a check raises here."""


def stopping(*, after):
    """A check that raises when it is called once more than `after` times."""
    calls = iter(range(after + 1))

    def check() -> None:
        if next(calls) == after:
            raise StoppedError

    return check


def test_a_fit_stops_between_two_steps(embedded, tiny, pairs, pictures):
    assert fit_heads(embedded, *pairs, FIT, check=stopping(after=30)).fingerprint != embedded.fingerprint
    with pytest.raises(StoppedError):
        fit_heads(embedded, *pairs, FIT, check=stopping(after=29))
    with pytest.raises(StoppedError):
        fit_towers(tiny, pictures, ["one", "two"] * (len(pictures) // 2), TowerFit(steps=3), check=stopping(after=2))


def test_a_fitted_teacher_survives_saving(embedded, pairs, tmp_path, pictures):
    fitted = fit_heads(embedded, *pairs, HeadFit(steps=2))
    save_teacher(fitted, tmp_path / "fitted")
    again = load_teacher(f"local-dir:{tmp_path / 'fitted'}")
    assert again.fingerprint == fitted.fingerprint
    assert torch.equal(again.encode_image(pictures), fitted.encode_image(pictures))


def test_open_clips_own_heads_can_be_fitted(tiny, pictures):
    images, texts = tiny.image_features(pictures), tiny.text_features(COLOURS)
    fitted = fit_heads(tiny, images, texts, HeadFit(steps=100, learning_rate=1e-2))
    nearest = (fitted.encode_image(pictures) @ fitted.encode_text(COLOURS).T).argmax(dim=1)
    assert nearest.tolist() == list(range(6))
    old, new = tiny.towers.model.state_dict(), fitted.towers.model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"visual.proj", "text_projection", "logit_scale"}


def test_too_few_captions_are_refused(embedded, pairs):
    images, texts = pairs
    with pytest.raises(RefusedError, match="fewer than two") as error:
        fit_heads(embedded, images, texts[:1].repeat(24, 1), FIT)
    assert error.value.code == "E_CONFIG"


def test_a_loss_that_is_not_finite_stops_the_fit(embedded, pairs):
    images, texts = pairs
    with pytest.raises(DivergedError, match="step 0"):
        fit_heads(embedded, images * torch.nan, texts, FIT)


seeds = st.integers(0, 1000)


def random_rows(seed: int, count: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = F.normalize(torch.randn(2, count, 5, generator=generator, dtype=torch.float64), dim=-1).float()
    return images, texts, torch.randint(0, 4, (count,), generator=generator)


@given(seeds)
def test_loss_is_the_literal_one(seed):
    images, texts, ids = random_rows(seed)
    expected = retrieval.masked_info_nce((images @ texts.T).tolist(), ids.tolist(), 7.0)
    assert float(contrastive_loss(images, texts, ids, torch.tensor(7.0))) == pytest.approx(expected, abs=1e-5)


@given(seeds)
def test_card_is_the_literal_one(seed):
    images, texts, ids = random_rows(seed, 11)
    texts = texts[ids]  # equal captions have equal rows
    card = retrieval_card(images, texts, torch.zeros(11, dtype=torch.int64), torch.zeros(11), ids)
    similarity = (images @ texts.T).tolist()
    turned = [list(column) for column in zip(*similarity, strict=True)]
    for k in (1, 5, 10):
        assert card["image_to_text"][f"recall@{k}"] == pytest.approx(retrieval.recall(similarity, ids.tolist(), k))
        assert card["text_to_image"][f"recall@{k}"] == pytest.approx(retrieval.recall(turned, ids.tolist(), k))
        assert card["chance"][f"recall@{k}"] == pytest.approx(retrieval.chance(ids.tolist(), k))


def test_card_by_hand():
    """Slice 0 finds its caption; 1 finds that of 2, in another plane; 2 finds that of 0, a fifth of the scan away."""
    images = torch.eye(3)
    texts = torch.eye(3)[[0, 2, 1]] + torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    card = retrieval_card(
        images, texts, torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.5, 0.3]), torch.tensor([0, 1, 2])
    )
    assert (card["items"], card["texts"]) == (3, 3)
    assert card["image_to_text"] == pytest.approx({"recall@1": 1 / 3, "recall@5": 1, "recall@10": 1})
    assert card["chance"] == pytest.approx({"recall@1": 1 / 3, "recall@5": 1, "recall@10": 1})
    assert card["right_plane"] == pytest.approx(2 / 3)
    assert card["position_error"] == pytest.approx(0.0)


def test_collapsed_embeddings_score_nothing():
    same = torch.ones(20, 4) / 2
    numbers = torch.arange(20)
    card = retrieval_card(same, same, numbers % 3, numbers / 20, numbers)
    assert card["image_to_text"] == {"recall@1": 0, "recall@5": 0, "recall@10": 0}


def test_no_right_plane_has_no_position_error():
    rows = torch.eye(2)
    card = retrieval_card(rows, rows.flip(0), torch.tensor([0, 1]), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]))
    assert (card["right_plane"], card["position_error"]) == (0, None)


def test_the_gradient_of_a_batch_in_parts_is_that_of_the_whole(tiny, pictures):
    texts = [f"{colour} slice" for colour in COLOURS]
    ids = torch.tensor([0, 1, 2, 3, 4, 0])
    gradients = []
    for micro_batch in (6, 4, 1):
        model = copy.deepcopy(tiny.towers.model).requires_grad_(True)
        loss = PairBatch(tiny, pictures, texts, micro_batch).backward(model, ids)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    model = copy.deepcopy(tiny.towers.model).requires_grad_(True)
    images = F.normalize(model.encode_image(tiny.pixels(pictures)), dim=-1)
    rows = F.normalize(model.encode_text(tiny.tokens(texts)), dim=-1)
    plain = contrastive_loss(images, rows, ids, model.logit_scale.exp())
    plain.backward()
    torch.testing.assert_close(loss, plain.detach(), atol=1e-6, rtol=0)
    for name, parameter in model.named_parameters():
        for one in gradients:
            torch.testing.assert_close(one[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_fitting_the_towers_teaches_the_pairs_and_changes_the_trunks(tiny, pictures):
    texts = [f"{colour} slice" for colour in COLOURS]
    config = TowerFit(steps=40, learning_rate=1e-3, batch_size=6, micro_batch=2)
    before = {name: tensor.clone() for name, tensor in tiny.towers.model.state_dict().items()}
    fitted = fit_towers(tiny, pictures, texts, config)
    scores = fitted.encode_image(pictures) @ fitted.encode_text(texts).T
    assert scores.argmax(dim=1).tolist() == list(range(6))
    assert not fitted.shares_trunks(tiny)
    assert fit_heads(tiny, tiny.image_features(pictures), tiny.text_features(texts), FIT).shares_trunks(tiny)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.towers.model.state_dict().items())
    assert fitted.fingerprint == fit_towers(tiny, pictures, texts, config).fingerprint != tiny.fingerprint
    with pytest.raises(RefusedError, match="fewer than two different captions"):
        fit_towers(tiny, pictures, ["one"] * 6, config)
