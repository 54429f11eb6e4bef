import csv
import json
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.captions.describe import Describer
from m3di.captions.registry import captioner_of
from m3di.captions.stage import caption_store, show
from m3di.captions.tables.captioner import TableCaptioner
from m3di.captions.tables.exporting import choose_captioner, export_captions
from m3di.captions.tables.importing import import_captions
from m3di.captions.tables.rows import MAX_TEXT, BadRow, Row, read_rows, write_rows
from m3di.captions.text import sanitise
from m3di.config import load_config
from m3di.events import ignore
from stores import Store
from stores.errors import RefusedError
from tests.stores.stores import CAPTIONER, build

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
HEADER = "volume,plane,slice,text\n"


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    path = build(tmp_path_factory.mktemp("table") / "store", 3)
    with Store(path, writable=True) as store:
        store.commit_facts("captioner", CAPTIONER, {"name": "b2", "structures": False})
    return path


def table(tmp_path, body, *, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode(encoding))
    return path


@contextmanager
def captioner(store_path, file, **settings):
    with Store(store_path) as store:
        yield TableCaptioner(file, store.records, describer=Describer(), **settings), store


def texts_of(store_path, file, volume="v0"):
    with captioner(store_path, file) as (found, store):
        record = store.record(volume)
        written = found.caption(show(store, record, {}))
        described = Describer().caption(show(store, record, {}))
        return record, written, described


def refusal(store_path, file, **settings):
    with captioner(store_path, file, **settings) as (found, _), pytest.raises(RefusedError) as error:
        assert found.coverage
    assert error.value.code == "E_CAPTION"
    return str(error.value)


def test_slice_rows_win_over_plane_rows_and_those_over_the_reports(store_path, tmp_path):
    file = table(tmp_path, HEADER + "v0,,,The report.\nv0,coronal,,The plane.\nv0,coronal,5,The slice.\n")
    record, written, described = texts_of(store_path, file)
    first = [[text.split(". ")[0] + "." for text in plane] for plane in described.texts]
    assert written.texts[0] == tuple(f"{place} The report." for place in first[0])
    assert [int(index) for index in record.valid_slices(1)][1:3] == [3, 5]
    assert written.texts[1][1:3] == (f"{first[1][1]} The plane.", "The slice.")
    assert written.sources == ("t" * 8, "t" * 8, "t" * 8)
    assert written.facts == described.facts


def test_slices_without_a_row_get_the_describers_text(store_path, tmp_path):
    file = table(tmp_path, HEADER + "v0,0,5,One.\n")
    _, written, described = texts_of(store_path, file)
    assert written.texts[0] == (*described.texts[0][:2], "One.", *described.texts[0][3:])
    assert written.texts[1:] == described.texts[1:]
    assert written.sources == ("ddtddddd", "d" * 8, "d" * 8)
    _, other, described = texts_of(store_path, file, "v1")
    assert (other.texts, other.sources) == (described.texts, ("d" * 8, "d" * 8, "d" * 8))


def test_a_volumes_identity_follows_its_own_rows_whatever_their_order(store_path, tmp_path):
    def of(body):
        with captioner(store_path, table(tmp_path, HEADER + body)) as (found, _):
            return [found.of_volume(f"v{number}") for number in range(3)], found.fingerprint

    before = of("v0,,,a\nv1,0,1,b\nv1,0,3,c\n")
    assert before[0][2] == ""
    assert of("v1,0,3,c\nv1,0,1,b\nv0,,,a\n") == before
    assert of("\nv0,,,a\n\nv1,axial,1.0, b \nv1,0,3,c\n") == before
    after = of("v0,,,a\nv1,0,1,b\nv1,0,3,d\n")
    assert after[1] == before[1]
    assert [one == other for one, other in zip(after[0], before[0], strict=True)] == [True, False, True]
    assert of("v0,0,,a\n")[0][0] != of("v0,,,a\n")[0][0]


BAD = {
    "v0,0,1,": "line 2 has an empty text",
    "v0,0,1,\u200b": "line 2 has an empty text",
    "v0,3,1,x": "line 2 has plane '3'",
    "v0,axail,1,x": "line 2 has plane 'axail'",
    "v0,0,-1,x": "line 2 has slice '-1'",
    "v0,0,1.5,x": "line 2 has slice '1.5'",
    "v0,0,nan,x": "line 2 has slice 'nan'",
    "v0,0,1e400,x": "line 2 has slice '1e400'",
    "v0,,1,x": "line 2 has slice 1 but no plane",
    "v0,0,2,x": "line 2 has axial slice 2 of v0, which has no row; the nearest is 1",
    "v0,0,99,x": "line 2 has axial slice 99 of v0, which has no row; the nearest is 15",
    ",0,1,x": "line 2 names no volume",
    "v0,0,1": "line 2 has 3 fields, the header 4",
    "v0,0,1,x,y": "line 2 has 5 fields, the header 4",
    f"v0,0,1,{'x' * (MAX_TEXT + 1)}": f"line 2 has a text of {MAX_TEXT + 1} characters",
    f"v0,0,1,{'x' * 200_000}": "line 2 cannot be divided into fields",
    'v0,0,1,"open\nv0,0,3,x': "line 2 cannot be divided into fields",
    "v0,0,1,x\nv0,axial,01,y": "line 3 has the volume, plane and slice of line 2",
    "v0,,,x\nv1,,,y\nv0,,,x": "line 4 has the volume, plane and slice of line 2",
    'v0,,,"one\ntwo\r\nthree"\nv0,9,,x': "line 5 has plane '9'",
    "v00,,,x": "names no volume of the store: 'v00' (did you mean 'v0'?)",
}


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_bad_rows_are_named_by_line(store_path, tmp_path, body):
    assert BAD[body] in refusal(store_path, table(tmp_path, HEADER + body + "\n"))


def test_all_bad_rows_are_counted_and_the_first_twenty_named(store_path, tmp_path):
    rows = "".join(f"v0,0,{index},\n" for index in range(30))
    said = refusal(store_path, table(tmp_path, HEADER + rows))
    assert said.count("line ") == 20
    assert "line 21 has an empty text; and 10 more" in said


def test_bytes_that_are_not_utf8_are_named_by_line_and_the_others_are_read(store_path, tmp_path):
    body = (HEADER + "v0,0,1,good\nv0,0,3,b\xe4d\nv0,0,5,\n").encode("latin-1")
    said = refusal(store_path, table(tmp_path, body))
    assert "line 3 is not UTF-8; line 4 has an empty text" in said
    assert "line 1 is not UTF-8" in refusal(store_path, table(tmp_path, HEADER + "v0,,,x\n", encoding="utf-16"))
    body = b'{"volume": "v0", "text": "b\xe4d"}\n'
    assert "line 1 is not UTF-8" in refusal(store_path, table(tmp_path, body, name="t.jsonl"))


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("t.csv", "", "t.csv is empty"),
        ("t.csv", HEADER, "t.csv has no rows"),
        ("t.csv", "id,caption\nv0,x\n", "no column volume and no column text; its columns are id, caption"),
        ("t.csv", "volume,text,text\nv0,x,y\n", "has the column text twice"),
        ("t.jsonl", '{"id": 1, "text": "x"}\n', "line 1 has no volume, but id, text"),
        ("t.jsonl", '["v0"]\n{"volume": "v0"\n', "line 1 is not a JSON object; line 2 is not JSON"),
        ("t.jsonl", '{"volume": "v0", "text": 3}\n', "line 1 has no text"),
        ("t.jsonl", '{"volume": true, "text": "x"}\n', "line 1 names no volume"),
        ("t.jsonl", '{"volume": "v0", "plane": true, "text": "x"}\n', "line 1 has plane 'True'"),
        ("t.jsonl", '{"volume": "v0", "plane": [0], "text": "x"}\n', "line 1 has plane '[0]'"),
        ("t.jsonl", '{"volume": "v\\u001b0", "text": "x"}\n', "line 1 names a volume by what cannot be an id"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("t.jsonl", "x" * (1 << 21), "line 1 has 1048576 characters or more"),
        ("t.parquet", "no parquet", "is not readable as Parquet"),
        ("t.xlsx", "x", "t.xlsx does not end in"),
    ],
)
def test_files_that_are_no_table_of_captions_say_so(store_path, tmp_path, name, body, said):
    assert said in refusal(store_path, table(tmp_path, body, name=name))


def test_a_missing_file_and_a_missing_setting(store_path, tmp_path):
    with captioner(store_path, tmp_path / "none.csv") as (found, _), pytest.raises(RefusedError) as error:
        found.of_volume("v0")
    assert error.value.code == "E_MISSING"
    with pytest.raises(RefusedError) as error:
        captioner_of(load_config(settings=["captions.captioner=table"]), None)
    assert error.value.code == "E_CONFIG"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("bom.csv", "\ufeffvolume,plane,slice,text\r\nv0,,,\"a \"\"b\"\"\r\n, c\"\r\n"),
        ("semicolon.csv", "Volume;Text\nv0;\"a \"\"b\"\" , c\"\n"),
        ("tabs.tsv", "text\tvolume\tother\n\"a \"\"b\"\" , c\"\tv0\tz\n"),
        ("old.csv", "volume,text\rv0,\"a \"\"b\"\" , c\"\r"),
        ("nulls.jsonl", '{"volume":"v0","plane":null,"slice":null,"text":"a \\"b\\"\\n, c"}\r\n\r\n'),
        ("whole.jsonl", '\ufeff{"volume":"v0","plane":"","text":"a \\"b\\"\\u2028, c","source":"m"}'),
    ],
)  # fmt: skip
def test_reports_of_every_make_are_read(tmp_path, name, body):
    (row,) = read_rows(table(tmp_path, body, name=name))
    assert isinstance(row, Row)
    assert (row.volume, row.plane, row.slice, row.text, row.sanitised) == ("v0", None, None, 'a "b" , c', False)


def test_without_pyarrow_parquet_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RefusedError) as error:
        list(read_rows(table(tmp_path, "x", name="t.parquet")))
    assert error.value.code == "E_CONFIG"
    assert "m3di[parquet]" in error.value.hint
    with pytest.raises(RefusedError, match="E_CONFIG"):
        write_rows(tmp_path / "out.parquet", [], kind=".parquet")


def test_parquet_columns_of_any_type_are_read(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "Volume": arrow.array([7, 8], arrow.int32()),
        "plane": arrow.array(["axial", None]).dictionary_encode(),
        "slice": arrow.array([3.0, float("nan")]),
        "text": arrow.array(["a", "b"], arrow.large_string()),
        "more": arrow.array([[1], []]),
    }
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.parquet")) == [Row(1, "7", 0, 3, "a"), Row(2, "8", None, None, "b")]


HOSTILE = '",;\t\r\n\x00\x1b[31m\u202e\u200b\ufeff=\\\u2028'
hostile = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(HOSTILE), st.just("x")), max_size=40)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(hostile, min_size=1, max_size=4))
@settings(max_examples=60)
def test_any_text_comes_back_sanitised(tmp_path_factory, kind, texts):
    path = tmp_path_factory.mktemp("any") / f"t{kind}"
    rows = [{"volume": f"v{n}", "plane": "axial", "slice": n, "text": t, "source": ""} for n, t in enumerate(texts)]
    write_rows(path, rows, kind=kind)
    found = list(read_rows(path))
    assert len(found) == len(texts)
    for row, text in zip(found, texts, strict=True):
        clean, changed = sanitise(text)
        if clean:
            assert isinstance(row, Row)
            assert (row.text, row.sanitised) == (clean, changed)
        else:
            assert isinstance(row, BadRow)


@given(st.binary(max_size=200))
@settings(max_examples=150)
def test_any_bytes_are_read_or_refused(tmp_path_factory, payload):
    folder = tmp_path_factory.mktemp("bytes")
    for kind in KINDS:
        for body in (payload, b"volume,text\nv0," + payload, b'{"volume": "v", "text": "' + payload + b'"}'):
            path = folder / f"t{kind}"
            path.write_bytes(body)
            try:
                assert all(isinstance(row, Row | BadRow) for row in read_rows(path))
            except RefusedError as error:
                assert error.code == "E_CAPTION"


def imported(path, file, **kinds):
    found = []
    config = load_config()
    done = import_captions(
        path,
        file,
        config,
        dry_run=kinds.get("dry_run", False),
        report=lambda event, **facts: found.append((event, facts)),
    )
    return done, found


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_import_give_the_same_texts(tmp_path, kind):
    path = build(tmp_path / "store", 2)
    with Store(path, writable=True) as store:
        store.commit_facts("captioner", CAPTIONER, {"name": "b2", "structures": False})
        before = [store.captions(CAPTIONER, record.volume).texts for record in store.records()]
    written = export_captions(path, tmp_path / f"out{kind}")
    assert (written["captioner"], written["volumes"], written["rows"]) == (
        "b2",
        2,
        sum(len(p) for v in before for p in v),
    )
    done, _ = imported(path, tmp_path / f"out{kind}")
    assert done["described"] == 2
    with Store(path) as store:
        table = choose_captioner(store, "table")
        after = [store.captions(table, record.volume).texts for record in store.records()]
    assert after == before
    export_captions(path, tmp_path / f"again{kind}", captioner="table")
    same = [list(read_rows(tmp_path / f"{name}{kind}")) for name in ("out", "again")]
    assert same[0] == same[1]


def test_changing_one_line_redoes_one_volume(tmp_path):
    path = build(tmp_path / "store", 3)
    file = table(tmp_path, HEADER + "v0,,,a\nv1,,,born in 1950\n")
    config = load_config(settings=["captions.captioner=table", f"captions.file={file}"])
    events = []
    done = caption_store(path, config, report=lambda event, **facts: events.append((event, facts)))
    assert done["described"] == 3
    assert ("captioned", {"rows": 2, "from_table": 48, "described": 21}) in events
    assert [facts["line"] for event, facts in events if event == "warning"] == [3]
    assert caption_store(path, config, report=ignore)["described"] == 0
    table(tmp_path, HEADER + "v0,,,a\nv1,,,c\n")
    assert caption_store(path, config, report=ignore)["described"] == 1
    table(tmp_path, HEADER + "v0,,,a\nv2,,,c\n")
    assert caption_store(path, config, report=ignore)["described"] == 2


def test_a_dry_run_writes_nothing_and_says_what_is_covered(tmp_path):
    path = build(tmp_path / "store", 2)
    body = "v0,0,,a\u202eb\nv0,1,1,MRN 00123456\nw9,,,c\n"
    with Store(path) as store:
        before = store.digest()
    done, events = imported(path, table(tmp_path, HEADER + body), dry_run=True)
    with Store(path) as store:
        assert store.digest() == before
    num = (done["slices"]["axial"]["covered"], done["slices"]["coronal"]["covered"])
    assert (done["rows"], done["volumes"], done["volumes_not_in_store"], done["volumes_not_covered"]) == (
        3,
        3 - 1,
        1,
        2,
    )
    assert num == (8, 1)
    assert [facts["message"] for event, facts in events if event == "note"] == [
        "1 volumes of the table are not in the store: 'w9'"
    ]
    warnings = [(facts["code"], facts["line"]) for event, facts in events if event == "warning"]
    assert warnings == [("W_TEXT_SANITIZED", 2), ("W_PHI", 3)]
    assert "123456" not in json.dumps([facts for _, facts in events])


def test_a_bad_line_changes_nothing_in_the_store(tmp_path):
    path = build(tmp_path / "store", 2)
    with Store(path) as store:
        before = store.digest()
    file = table(tmp_path, HEADER + "v0,,,a\nv1,0,2,b\n")
    with pytest.raises(RefusedError, match="line 3"):
        imported(path, file)
    with Store(path) as store:
        assert store.digest() == before
    config = load_config(settings=["captions.captioner=table", f"captions.file={file}"])
    with pytest.raises(RefusedError, match="line 3"):
        caption_store(path, config, report=ignore)
    with Store(path) as store:
        assert [store.captioners(volume) for volume in ("v0", "v1")] == [[CAPTIONER[:16]]] * 2


def test_complete_refuses_a_table_that_leaves_slices_out(store_path, tmp_path):
    rows = "v0,,,a\nv1,,,b\nv2,0,,c\n"
    assert "leaves slices without text in 1 volumes, the first v2" in refusal(
        store_path, table(tmp_path, HEADER + rows), complete=True
    )
    with captioner(store_path, table(tmp_path, HEADER + rows + "v2,,,c\n"), complete=True) as (found, _):
        assert found.coverage.complete


def test_a_captioner_is_chosen_by_name_or_fingerprint(store_path, tmp_path):
    with Store(store_path) as store:
        assert (
            choose_captioner(store) == choose_captioner(store, "b2") == choose_captioner(store, "b2b2b2") == CAPTIONER
        )
        with pytest.raises(RefusedError, match=r"0 captioners .* 'endpoint'; it has b2 b2b2"):
            choose_captioner(store, "endpoint")
    with pytest.raises(RefusedError, match="E_PATH"):
        export_captions(store_path, tmp_path / "no/such.csv")


def test_csv_is_what_other_programs_read(store_path, tmp_path):
    export_captions(store_path, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"volume": "v0", "plane": "axial", "slice": "1", "text": "v0 0 1", "source": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
