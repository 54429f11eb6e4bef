from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from m3di.teachers.clip import DTYPES, Teacher, fastest_dtype, load_teacher
from m3di.teachers.libraries import import_open_clip
from m3di.teachers.towers import TwoTower
from stores.errors import RefusedError

TEXTS = ["a liver", "Axial CT slice of the lung, at the very top.", "a liver", "brain " * 40]


def stock_pixels(pictures: torch.Tensor, size: int, config: dict) -> torch.Tensor:
    """The pictures through open_clip's own PIL preprocessing."""
    open_clip = import_open_clip(offline=True)
    fields = {"size": size, "mean": tuple(config["mean"]), "std": tuple(config["std"]), "resize_mode": "squash"}
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**fields), is_train=False)
    return torch.stack([transform(Image.fromarray(picture.numpy()).convert("RGB")) for picture in pictures])


def test_images_are_embedded_as_stock_open_clip_does(embedded, pictures):
    pixels = stock_pixels(pictures, 224, embedded.towers.config["preprocess_cfg"])
    exact = Teacher(embedded.towers, dtype="float32")
    # PIL rounds to 8 bits after each of its two passes: 0.0014 of the range in the mean, and these smooth pictures
    # are the worst case for it, as their bands move.
    assert (pixels - exact.pixels(pictures)).abs().mean() < 0.004
    with torch.no_grad():
        expected = embedded.towers.model.encode_image(pixels, normalize=True)
        equal = embedded.towers.model.encode_image(exact.pixels(pictures), normalize=True)
    ours = exact.encode_image(pictures)
    torch.testing.assert_close(ours, equal, atol=1e-5, rtol=0)
    assert (ours * expected).sum(dim=1).min() > 0.99


def test_pictures_of_the_models_size_need_no_resize(tiny, pictures):
    crops = pictures[:, :32, :32]
    with torch.no_grad():
        pixels = stock_pixels(crops, 32, tiny.towers.config["preprocess_cfg"])
        expected = tiny.towers.model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(tiny.encode_image(crops), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["embedded", "tiny"])
def test_texts_are_embedded_as_stock_open_clip_does(name, request):
    teacher = request.getfixturevalue(name)
    with torch.no_grad():
        expected = teacher.towers.model.encode_text(teacher.towers.tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(teacher.encode_text(TEXTS), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_again_gives_the_same_bits(embedded, pictures, dtype):
    teacher = Teacher(embedded.towers, dtype=dtype, batch_size=4)
    first, again = teacher.encode_image(pictures), teacher.encode_image(pictures)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6))
    assert torch.equal(teacher.encode_text(TEXTS), teacher.encode_text(TEXTS))


def test_equal_texts_get_equal_rows_whatever_the_order(embedded):
    rows = embedded.encode_text(TEXTS)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows, embedded.encode_text(TEXTS[::-1]).flip(0))


def test_bfloat16_trunk_stays_close_to_float32(embedded, pictures):
    low = Teacher(embedded.towers, dtype="bfloat16").encode_image(pictures)
    assert (low * embedded.encode_image(pictures)).sum(dim=1).min() > 0.99
    assert embedded.towers.model.visual.trunk.conv_stem.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["embedded", "tiny"])
def test_features_come_before_the_heads_and_can_be_fitted_to(name, request, pictures):
    teacher = request.getfixturevalue(name)
    visual, text = teacher.towers.model.visual, getattr(teacher.towers.model, "text", teacher.towers.model)
    images, texts = teacher.image_features(pictures), teacher.text_features(TEXTS)
    assert not images.is_inference()
    with torch.no_grad():
        image_rows = visual.head(images) if name == "embedded" else images @ visual.proj
        text_rows = text.proj(texts) if name == "embedded" else texts @ text.text_projection
    torch.testing.assert_close(F.normalize(image_rows, dim=-1), teacher.encode_image(pictures))
    torch.testing.assert_close(F.normalize(text_rows, dim=-1), teacher.encode_text(TEXTS))


def test_widths(embedded, tiny, pictures):
    assert (embedded.embedding_dim, tiny.embedding_dim) == (512, 16)
    assert embedded.image_features(pictures).shape == (6, 1280)
    assert embedded.text_features(TEXTS).shape == (4, 384)


def test_nothing_gives_no_rows(embedded):
    assert embedded.encode_image(torch.zeros(0, 8, 8, dtype=torch.uint8)).shape == (0, 512)
    assert embedded.encode_text([]).shape == (0, 512)


def test_a_teacher_is_frozen(embedded):
    assert not any(parameter.requires_grad for parameter in embedded.towers.model.parameters())
    assert not embedded.towers.model.training


def test_fingerprint_follows_weights_configuration_and_precision(tiny):
    towers = tiny.towers
    assert Teacher(towers, dtype="float32", batch_size=1).fingerprint == tiny.fingerprint
    assert Teacher(towers, dtype="bfloat16").fingerprint != tiny.fingerprint
    config = {**towers.config, "preprocess_cfg": {**towers.config["preprocess_cfg"], "std": [1.0, 1.0, 1.0]}}
    assert Teacher(TwoTower(towers.model, towers.tokenizer, config), dtype="float32").fingerprint != tiny.fingerprint
    before = tiny.fingerprint
    bias = towers.model.visual.ln_post.bias
    with torch.no_grad():
        bias += 1
    changed = Teacher(towers, dtype="float32").fingerprint
    with torch.no_grad():
        bias.zero_()
    assert changed != before == Teacher(towers, dtype="float32").fingerprint


def test_automatic_precision_is_one_that_exists():
    assert fastest_dtype(torch.device("cpu")) in DTYPES


def test_automatic_precision_is_the_same_without_what_torch_2_10_lacks(monkeypatch):
    expected = fastest_dtype(torch.device("cpu"))
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(**{name: getattr(torch.cpu, name) for name in asked}))
    assert fastest_dtype(torch.device("cpu")) == expected


def test_unknown_precision_is_refused(tiny):
    with pytest.raises(RefusedError, match="int8") as error:
        Teacher(tiny.towers, dtype="int8")
    assert error.value.code == "E_CONFIG"


@pytest.mark.parametrize("spec", ["", "clip", "/some/folder", "ViT-B-32/openai"])
def test_unknown_spec_is_refused_with_the_known_forms(spec):
    with pytest.raises(RefusedError) as error:
        load_teacher(spec)
    assert error.value.code == "E_CONFIG"
    assert "ARCH@TAG" in error.value.hint


def test_numpy_slices_of_the_store_are_accepted(tiny):
    slices = np.zeros((2, 32, 32), np.uint8)
    assert tiny.encode_image(torch.from_numpy(slices)).shape == (2, 16)


@pytest.mark.parametrize(("dtype", "lowest"), [("float32", 1 - 1e-5), ("bfloat16", 0.99)])
def test_the_lowered_trunk_agrees_with_the_models_own(embedded, pictures, dtype, lowest):
    """Batch norms are folded, and bfloat16 begins behind the first block."""
    teacher = Teacher(embedded.towers, dtype=dtype)
    model = embedded.towers.model
    with torch.no_grad():
        plain = F.normalize(model.visual.trunk(teacher.pixels(pictures)), dim=-1)
    ours = F.normalize(teacher.image_features(pictures), dim=-1)
    assert float((plain * ours).sum(dim=1).min()) > lowest
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.visual.modules()), (
        "the model is as it was"
    )
