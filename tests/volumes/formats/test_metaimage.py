import numpy as np
import pytest

from m3di.volumes.readers import read_volume
from stores.errors import CaseError
from tests.malformed.files import MHA

VALUES = np.arange(64)


def read(path, *changes):
    content = MHA
    for old, new in changes:
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    return read_volume(path, modality="MR")


@pytest.mark.parametrize(
    "old, new",
    [(b"LOCAL", b"Local"), (b"ElementSpacing", b"ElementSize"), (b"Offset", b"Position"), (b"Offset", b"Origin"),
     (b"TransformMatrix", b"Orientation"), (b"NDims", "Comment = Å\nNDims".encode()), (b" = ", b"=")],
)  # fmt: skip
def test_other_names_that_the_format_knows_are_read(tmp_path, old, new):
    volume = read(tmp_path / "a.mha", (old, new), (b"0 0 0\n", b"5 6 7\n"))
    np.testing.assert_array_equal(volume.data.ravel(order="F"), VALUES)
    np.testing.assert_array_equal(volume.geometry.affine[:3, 3], (-5, -6, 7))


@pytest.mark.parametrize("spacing", [b"0 1 1", b"1 -1 1", b"1 1 1e-300", b"1 1 101"])
def test_a_spacing_that_no_scanner_makes_is_refused(tmp_path, spacing):
    with pytest.raises(CaseError, match="E_SPACING"):
        read(tmp_path / "a.mha", (b"Spacing = 1 1 1", b"Spacing = " + spacing))


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../a.raw", "b/../../a.raw", "LIST", "a%02d.raw 1 4 1", "~/a.raw", "$HOME/a.raw",
             "file:/etc/hostname", "b\\a.raw", "a\0.raw", "x" * 300, "a\x1b.raw", ""]
)  # fmt: skip
def test_voxels_that_may_lie_elsewhere_are_not_looked_for(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "a.raw").write_bytes(MHA[-128:])
    with pytest.raises(CaseError, match="E_HEADER") as refused:
        read(tmp_path / "set" / "a.mhd", (b"LOCAL", name.encode()))
    assert refused.value.message.isprintable()
    assert refused.value.hint
