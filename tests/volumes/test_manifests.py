import json

import pytest

from m3di.volumes.manifests import MAX_BYTES, MAX_DEPTH, inside, read_json, read_table
from stores.errors import RefusedError


def refused(call, code):
    with pytest.raises(RefusedError) as error:
        call()
    assert error.value.code == code
    assert error.value.hint
    return error.value.message


def test_json_is_read_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": [1, {"b": "é"}]}).encode())
    assert read_json(tmp_path / "a.json") == {"a": [1, {"b": "é"}]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b'{"a": 1, "a": 2}',
        b'{"x": [{"a": 1, "b": 2, "a": 3}]}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": [1e999]}',
        b'{"a": 1} {"b": 2}',
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        b"{" + b",".join(b'"%d":0' % number for number in range(200_000)) + b',"199999":0}',
        b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b"[" * 200_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b"{}" + b" " * MAX_BYTES,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_json_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    refused(lambda: read_json(tmp_path / "a.json"), "E_MANIFEST")


def test_brackets_in_strings_are_no_depth(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": "[" * 1000, "b": '\\"[' * 100}))
    assert read_json(tmp_path / "a.json")["a"] == "[" * 1000


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "image,id\nx.nii, 1\n\n"),
        ("a.csv", "image;id\nx.nii;1"),
        ("a.csv", "image\tid\nx.nii\t1"),
        ("a.tsv", "image\tid\nx.nii\t1\r\n"),
        ("a.csv", "\ufeffimage,id\n\"x.nii\",'1'".replace("'", '"')),
    ],
)
def test_tables_are_read_whatever_divides_them(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_table(tmp_path / name) == [{"image": "x.nii", "id": "1"}]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "image,id\na\0.nii,1\n",
        "i\0d\0\n\0a\0",
        "image,id\ra.nii,1\r",
        "a,a\n1,2\n",
        "a,b\n1\n",
        "a,b\n1,2,3\n",
        'a,b\n"1,2\n',
        'a\n"x"y\n',
        "a\n" + "x" * 200_000 + "\n",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_table_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    refused(lambda: read_table(tmp_path / "a.csv"), "E_MANIFEST")


def test_a_manifest_that_is_missing_or_a_folder_is_refused(tmp_path):
    refused(lambda: read_json(tmp_path / "nowhere.json"), "E_MISSING")
    refused(lambda: read_table(tmp_path), "E_MISSING")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.nii", "a/../../b.nii", "~/a.nii", "~root/a.nii", "$HOME/a.nii", "a/${X}.nii", "a\\b.nii",
     "http://host/a.nii", "s3://bucket/a.nii", "file:/a.nii", "C:/a.nii", "a\nb.nii", "a\0.nii", "\ud800.nii",
     "x" * 300, "a/" * 600 + "b", "a\x7f.nii", "a\x9b1m.nii"],
)  # fmt: skip
def test_paths_that_may_lead_elsewhere_are_refused(tmp_path, name):
    refused(lambda: inside(tmp_path, name), "E_PATH")


@pytest.mark.parametrize("name", [None, 3, "", ["a.nii"], {"image": "a.nii"}])
def test_what_is_no_path_is_refused(tmp_path, name):
    refused(lambda: inside(tmp_path, name), "E_MANIFEST")


@pytest.mark.parametrize("name", ["a.nii", "./a/b.nii.gz", "a b/ç.nii"])
def test_relative_paths_are_taken(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


def test_links_may_stay_inside_and_leave_only_when_allowed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.nii"
    root.mkdir()
    outside.write_bytes(b"x")
    (root / "real.nii").write_bytes(b"x")
    (root / "in.nii").symlink_to("real.nii")
    (root / "out.nii").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    assert inside(root, "in.nii") == root / "in.nii"
    for name in ("out.nii", "folder/outside.nii"):
        message = refused(lambda name=name: inside(root, name), "E_PATH")
        assert str(tmp_path) not in message
        assert inside(root, name, links=True) == root / name


def test_a_link_to_itself_leads_nowhere(tmp_path):
    (tmp_path / "a.nii").symlink_to("a.nii")
    assert not inside(tmp_path, "a.nii").exists()


def test_a_wrong_line_is_named_by_its_number_in_the_file(tmp_path):
    (tmp_path / "a.csv").write_text('image,id\n\n"a\nb",1\nx\n')
    assert "line 5" in refused(lambda: read_table(tmp_path / "a.csv"), "E_MANIFEST")


def test_messages_stay_short_and_printable(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps({"k": 0})[:-1] + ', "' + "x" * 5000 + '": 0, "' + "x" * 5000 + '": 1}'
    )
    assert len(refused(lambda: read_json(tmp_path / "a.json"), "E_MANIFEST")) < 200
    message = refused(lambda: inside(tmp_path, "\x1b[31m" + "x" * 5000), "E_PATH")
    assert message.isprintable() and len(message) < 200
    (tmp_path / "a.csv").write_text('image\tid\n"a"b\t1\n')
    message = refused(lambda: read_table(tmp_path / "a.csv"), "E_MANIFEST")
    assert message.isprintable() and "line 2" in message
