"""A store decoded by the rules of `stores/FORMAT.md` alone: with zarr, lmdb, numpy and a crc32c, without our code."""

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import google_crc32c
import lmdb
import numpy as np
import pytest
import zarr

from tests.references.row_sums import row_sum
from tests.stores.stores import CAPTIONER, DIM, RECIPE, TEACHER, build, captions_of, parts, record, rows_of

PAGE = (Path(__file__).parent.parent / "stores" / "FORMAT.md").read_text()
HEX = 16  # digits of a fingerprint in a key


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("format") / "store", 3)


@pytest.fixture(scope="module")
def tables(store):
    """Every value by table and key, its envelope checked and taken off (section 4)."""
    found = {}
    with lmdb.open(str(store / "rows.lmdb"), readonly=True, lock=False, max_dbs=16) as environment:
        with environment.begin() as transaction:
            names = [bytes(key) for key, _ in transaction.cursor()]
        for name in names:
            table = environment.open_db(name, create=False)
            with environment.begin(db=table) as transaction:
                values = {key.decode(): value for key, value in transaction.cursor()}
            for key, value in values.items():
                assert struct.unpack("<I", value[:4])[0] == google_crc32c.value(key.encode() + value[4:]), key
            found[name.decode()] = {key: value[4:] for key, value in values.items()}
    return found


def decoded(payload):
    """A JSON payload: canonical, deflated."""
    text = zlib.decompress(payload)
    value = json.loads(text)
    assert text == canonical(value)
    return value


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(value):
    return hashlib.sha256(canonical(value)).hexdigest()


def section(number):
    return PAGE.split(f"\n## {number}. ")[1].split("\n## ")[0]


def first_cells(text):
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]


def test_the_page_names_every_file_of_a_store(store):
    named = {name.rstrip("/").split("/")[0] for (name,) in first_cells(section(1))}
    there = {path.name for path in store.iterdir()}
    assert there <= named
    assert {"m3di-store.json", "volumes.zarr", "rows.lmdb", "seal.json", "quarantine.tsv"} <= named


def test_the_marker_says_version_layout_group_and_recipe(store):
    marker = json.loads((store / "m3di-store.json").read_bytes())
    assert marker["format"] == "m3di-store"
    assert f"format version {marker['version']}" in PAGE.splitlines()[0]
    assert set(marker) == {"format", "version", "layout", "group", "recipe", "recipe_digest"}
    assert marker["recipe_digest"] == digest(marker["recipe"])
    assert all(f"`{name}`" in section(2) for name in marker["recipe"])


def test_any_zarr_reader_finds_every_volume_in_its_slot(store, tables):
    marker = json.loads((store / "m3di-store.json").read_bytes())
    group = zarr.open_group(store / marker["group"], mode="r")
    rows = [cells for line in section(3).splitlines() if line.startswith("| `") for cells in [line.split("|")]]
    named = {name: cells for cells in rows for name in re.findall(r"`([a-z]+)`", cells[1])}
    for number, volume in enumerate(("v0", "v1", "v2")):
        commit = decoded(tables["volumes"][volume])
        for name, part in parts(number).items():
            array = group[name]
            np.testing.assert_array_equal(array[commit["slot"]], part)
            assert array.dtype.name in named[name][3]
            axes = [axis.strip() for axis in named[name][5].split(",")]
            assert array.metadata.dimension_names == ("volume", *axes)
            chunk = store / marker["group"] / name / f"c.{commit['slot']}.0.0.0"
            stored = commit["objects"][name]
            payload = chunk.read_bytes()
            assert len(payload) == stored["num_bytes"]
            assert hashlib.sha256(payload).hexdigest() == stored["sha256"]
            assert int.from_bytes(payload[-4:], "little") == google_crc32c.value(payload[:-4]) == stored["crc32c"]


def test_the_page_names_every_table(tables):
    assert set(tables) == {name for cells in first_cells(section(4)) for name in cells}


def test_captions_are_json_texts_one_a_valid_slice(tables):
    for volume in ("v0", "v1", "v2"):
        commit = decoded(tables["volumes"][volume])
        kept = decoded(tables["captions"][f"{CAPTIONER[:HEX]}/{volume}"])
        bits = [np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8)) for packed in commit["valid"]]
        assert [len(texts) for texts in kept["texts"]] == [int(plane.sum()) for plane in bits]
        assert [tuple(texts) for texts in kept["texts"]] == list(
            captions_of(record(volume, blank=int(volume[1]))).texts
        )


def test_blocks_of_rows_are_a_header_then_a_checksum_and_float16_parts_a_row(tables):
    assert "`M3RB`" in PAGE
    for number, volume in enumerate(("v0", "v1", "v2")):
        kept = decoded(tables["embedded"][f"{TEACHER[:HEX]}/{volume}"])
        assert (kept["parts"], kept["dim"]) == (["image", "text"], DIM)
        for plane, expected in enumerate(rows_of(record(volume, blank=number), number)):
            key = f"{TEACHER[:HEX]}/{volume}/{plane}"
            payload = tables["rows"][key]
            magic, version, num_parts, num_rows, width = struct.unpack_from("<4sHHII", payload)
            assert (magic, version, num_parts, num_rows, width) == (b"M3RB", 2, 2, kept["num_rows"][plane], DIM)
            size = -(-2 * num_parts * width // 8) * 8
            body = payload[16:]
            assert len(body) == num_rows * (8 + size)
            assert hashlib.sha256(payload).hexdigest() == kept["blocks"][plane]
            for row in range(num_rows):
                stored = body[row * (8 + size) : (row + 1) * (8 + size)]
                words = stored[8:]
                assert int.from_bytes(stored[:8], "little") == row_sum(words, key.encode(), row)
                halves = np.frombuffer(words, "<f2")[: num_parts * width].reshape(num_parts, width)
                np.testing.assert_array_equal(halves, expected[row])


def test_a_volume_is_identified_by_the_digest_that_the_page_gives(tables):
    commit = decoded(tables["volumes"]["v1"])
    facts = {name: commit[name] for name in ("subject", "dataset", "modality", "body_part")}
    whole = {
        "source": commit["source_digest"], "label": commit["label_digest"], "recipe": digest(RECIPE.to_dict()),
        "facts": facts,
    }  # fmt: skip
    assert commit["item_digest"] == digest(whole)


def test_the_seal_is_of_a_transaction_that_the_database_has_come_to(store):
    seal = json.loads((store / "seal.json").read_bytes())
    assert set(seal) == {"transaction", "digest"}
    with lmdb.open(str(store / "rows.lmdb"), readonly=True, lock=False) as environment:
        assert environment.info()["last_txnid"] == seal["transaction"]
