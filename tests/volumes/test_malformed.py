import pytest

from m3di.volumes.readers import content_digest, read_volume
from stores.errors import CaseError
from tests.malformed.files import FILES


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_is_refused_by_code_with_a_hint(name, tmp_path):
    write, code = FILES[name]
    path = write(tmp_path / "set")
    with pytest.raises(CaseError) as refused:
        content_digest(path)
        read_volume(path, modality="MR")
    assert refused.value.code == code
    assert path.name in refused.value.message or path.parent.name in refused.value.message
    assert refused.value.hint
