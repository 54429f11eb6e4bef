"""Errors carry a stable code of their class and cross process borders; ids and planes that are none are refused."""

import pickle

import pytest

from stores import errors, keys
from stores.errors import CaseError, M3diError, RefusedError
from stores.geometry import PLANES

# The exit codes of the command line, by class.
EXIT_CODES = {
    "CaseError": 2, "RefusedError": 2, "DamagedError": 4, "ResourceError": 5, "LockedError": 6, "DivergedError": 7,
}  # fmt: skip


def test_exit_codes_and_no_code_but_those_of_the_class():
    found = {cls.__name__: cls for cls in M3diError.__subclasses__() if cls.__module__ == errors.__name__}
    assert {name: cls.exit_code for name, cls in found.items()} == EXIT_CODES
    for name, cls in found.items():
        assert cls.codes, name
        for code in cls.codes:
            assert cls(code, "x").code == code
        with pytest.raises(ValueError, match=f"{name} has no code 'E_NONE'"):
            cls("E_NONE", "x")


@pytest.mark.parametrize("hint", ["", "do this"])
def test_an_error_comes_out_of_another_process_as_it_was(hint):
    error = CaseError("E_TRUNCATED", "scan.nii ends early", hint=hint)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is CaseError
    assert (copy.code, copy.message, copy.hint) == ("E_TRUNCATED", "scan.nii ends early", hint)
    assert str(copy) == "E_TRUNCATED scan.nii ends early"


@pytest.mark.parametrize("volume", ["", ".", ".hidden", "a/b", "a b", "..", "ä", "a\n", "x" * 129])
def test_ids_that_could_lead_elsewhere_are_refused(volume):
    with pytest.raises(RefusedError, match="E_PATH"):
        keys.check_volume_id(volume)
    with pytest.raises(RefusedError, match="E_PATH"):
        keys.block_key("a1" * 32, volume, 0)


@pytest.mark.parametrize("volume", ["a", "A-b_c.d", "x" * 128, "-", "0"])
def test_ids_of_letters_digits_and_marks_are_keys(volume):
    assert keys.check_volume_id(volume) == volume
    assert keys.block_key("0123456789abcdef0", volume, 2) == f"0123456789abcdef/{volume}/2".encode()


def test_planes_are_known_by_name():
    assert [keys.plane_number(name) for name in PLANES] == [0, 1, 2]
    with pytest.raises(RefusedError, match="E_CONFIG no plane is called 'Axial'") as caught:
        keys.plane_number("Axial")
    assert "axial, coronal, sagittal" in caught.value.hint
