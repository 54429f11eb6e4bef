"""Patch features and their projection against plain principal components."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.teachers.clip import load_teacher, save_teacher
from m3di.teachers.dense import PatchProjection, PatchStatistics
from stores.errors import RefusedError


def statistics(patches: torch.Tensor, parts: int = 3) -> PatchStatistics:
    gathered = PatchStatistics()
    for part in patches.chunk(parts):
        gathered.add(part)
    return gathered


@pytest.mark.parametrize("name", ["embedded", "tiny"])
def test_the_pooled_part_is_bit_equal_to_the_plain_pass(request, name, pictures):
    teacher = request.getfixturevalue(name)
    embedded, patches = teacher.encode_image_and_patches(pictures)
    assert torch.equal(embedded, teacher.encode_image(pictures))
    assert patches.shape[:3] == ((6, 7, 7) if name == "embedded" else (6, 2, 2))


def test_a_patch_lies_where_it_is_in_the_picture(embedded):
    """A bright corner changes the patches of that corner most."""
    image = torch.full((2, 224, 224), 40, dtype=torch.uint8)
    image[1, :48, 176:] = 255
    _, patches = embedded.encode_image_and_patches(image)
    change = (patches[1] - patches[0]).norm(dim=-1)
    row, column = divmod(int(change.argmax()), 7)
    assert row <= 1 and column >= 5
    assert change[:3, 4:].mean() > 3 * change[3:, :4].mean()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), width=st.integers(3, 12))
def test_projection_is_that_of_the_singular_value_decomposition(seed, width):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(9, 2, 2, width, generator=generator) * torch.arange(1, width + 1)
    projection = statistics(patches).projection(2)
    flat = patches.flatten(0, 2).double()
    _, singular, right = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    overlap = (right[:2].float() @ projection.components).abs()
    torch.testing.assert_close(overlap, torch.eye(2), atol=2e-2, rtol=0)
    share = float((singular[:2] ** 2).sum() / (singular**2).sum())
    assert projection.explained_variance == pytest.approx(share, abs=1e-4)
    rows = projection(patches)
    assert rows.shape == (9, 4, 2)
    torch.testing.assert_close(rows.flatten(0, 1).mean(dim=0), torch.zeros(2), atol=1e-3, rtol=0)


def test_the_order_of_batches_changes_no_bit_that_matters():
    patches = torch.randn(12, 2, 2, 6, generator=torch.Generator().manual_seed(0))
    one, other = statistics(patches, 1).projection(3), statistics(patches, 4).projection(3)
    torch.testing.assert_close(one.components, other.components, atol=1e-4, rtol=0)


def test_too_many_components_are_refused():
    with pytest.raises(RefusedError, match="6 features") as error:
        statistics(torch.zeros(2, 1, 1, 6)).projection(7)
    assert error.value.code == "E_CONFIG"


def test_it_comes_back_from_the_teachers_folder(tiny, tmp_path, pictures):
    projection = statistics(tiny.encode_image_and_patches(pictures)[1]).projection(5)
    save_teacher(tiny, tmp_path / "tiny", projection)
    again = PatchProjection.load(tmp_path / "tiny")
    assert again.fingerprint("t") == projection.fingerprint("t") != projection.fingerprint("u")
    assert (again.grid, again.explained_variance) == (projection.grid, projection.explained_variance)
    assert again.parts == ("patch 0 0", "patch 0 1", "patch 1 0", "patch 1 1")
    assert load_teacher(f"local-dir:{tmp_path / 'tiny'}").fingerprint == tiny.fingerprint


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(RefusedError) as error:
        PatchProjection.load(tmp_path)
    assert error.value.code == "E_WEIGHTS"
    (tmp_path / "m3di_projection.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(RefusedError):
        PatchProjection.load(tmp_path)
