import lmdb
import pytest

from stores.verification import verify
from tests.stores.stores import TEACHER, build


def problems(path, **options):
    return [(problem.kind, problem.item) for problem in verify(path, **options)]


def test_a_complete_store_is_sound(tmp_path):
    path = build(tmp_path / "s")
    assert problems(path) == []
    assert problems(path, quick=True) == []


@pytest.mark.parametrize("name", ["image", "label", "axial"])
def test_chunk_damage_is_named(tmp_path, name):
    path = build(tmp_path / "s")
    chunk = path / f"volumes.zarr/{name}/c.1.0.0.0"
    content = chunk.read_bytes()
    item = f"volume v1, {name} (volumes.zarr/{name}/c.1.0.0.0)"
    chunk.write_bytes(content[:20] + bytes([content[20] ^ 8]) + content[21:])
    assert problems(path) == [("damaged", item)]
    assert problems(path, quick=True) == [], "sizes still fit"
    chunk.write_bytes(content[:-3])
    assert problems(path, quick=True) == [("damaged", item)]
    chunk.unlink()
    assert problems(path) == [("missing", item)]


def test_swapped_and_surplus_chunks_are_named(tmp_path):
    path = build(tmp_path / "s")
    one, two = (path / f"volumes.zarr/image/c.{slot}.0.0.0" for slot in (0, 1))
    swapped = one.read_bytes(), two.read_bytes()
    two.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    (path / "volumes.zarr/image/c.9.0.0.0").write_bytes(b"?")
    found = problems(path)
    assert [kind for kind, _ in found] == ["damaged", "damaged", "surplus"]
    assert found[2][1] == "volumes.zarr/image/c.9.0.0.0"


@pytest.mark.parametrize("table", ["volumes", "captions", "embedded", "rows"])
def test_a_flipped_bit_in_any_record_is_named(tmp_path, table):
    path = build(tmp_path / "s")
    environment = lmdb.open(str(path / "rows.lmdb"), max_dbs=7, map_size=1 << 30)
    with environment.begin(write=True) as transaction:
        database = environment.open_db(table.encode(), transaction)
        key = next(k for k, _ in transaction.cursor(database) if b"v1" in k)
        value = bytearray(transaction.get(key, db=database))
        value[-1] ^= 1
        transaction.put(key, bytes(value), db=database)
    environment.close()
    found = problems(path)
    assert found
    assert all("v1" in item or kind == "surplus" for kind, item in found)
    assert any(kind == "damaged" for kind, _ in found)


def test_missing_rows_are_named(tmp_path):
    path = build(tmp_path / "s")
    environment = lmdb.open(str(path / "rows.lmdb"), max_dbs=7, map_size=1 << 30)
    with environment.begin(write=True) as transaction:
        transaction.delete(f"{TEACHER[:16]}/v2/1".encode(), db=environment.open_db(b"rows", transaction))
        transaction.delete(f"{TEACHER[:16]}/v0".encode(), db=environment.open_db(b"embedded", transaction))
    environment.close()
    lost = ("missing", f"volume v2, rows of plane 1 of {TEACHER[:16]}")
    assert problems(path) == [("missing", "volume v0, rows"), lost]
