import json

import pytest

from stores import Store
from stores.records import Captions
from tests.cli.running import m3di
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, chunks, record, rows_of

HOSTILE = (
    "[bold red]markup[/bold red] [link=file:///etc/passwd]x[/link] :skull:",
    "\x1b[2J\x1b]0;owned\x07 escape \x9b31m",
    "right\u202eto left\u2066\u2069 \u200b\u200f end",
    "<script>alert('x')</script> \"quoted\" \\u001b",
    "line\nbreak\rreturn\ttab\x00null\u2028separator",
)
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u200b"


@pytest.fixture
def hostile(tmp_path):
    """A store whose captions, dataset and subject try to steer the terminal."""
    with Store.create_or_open(tmp_path / "store", RECIPE) as store:
        for seed, caption in enumerate(HOSTILE):
            name = f"v{seed}"
            kept = store.commit_volume(
                record(name, dataset="\x1b[31mred\u202e[bold]", subject="\x07bell", body_part="he\x1bart"),
                chunks(seed),
            )
            texts = tuple(tuple(caption for _ in kept.valid_slices(plane)) for plane in range(3))
            captions = Captions(kept.item_digest, texts)
            store.commit_captions(CAPTIONER, name, captions)
            store.commit_rows(TEACHER, kept, rows_of(kept, seed), captions_digest=captions.digest)
        store.commit_facts("teacher", TEACHER, {"fingerprint": TEACHER, "spec": "x"})
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        return int(kept.valid_slices(0)[0]), tmp_path


def question(index):
    return ("query", "--volume", "v0", "--plane", "axial", "--slice", index)


def harmless(text):
    return all(char.isprintable() or char == "\n" for char in text)


def test_hostile_captions_are_text_on_the_terminal(hostile):
    index, folder = hostile
    done = m3di(*question(index), cwd=folder, env={"COLUMNS": "300", "FORCE_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("\x1b[1m", "").replace("\x1b[0m", "")  # the table's own bold header
    assert harmless(shown)
    assert "[bold red]markup[/bold red] [link=file:///etc/passwd]x[/link] :skull:" in shown
    assert "<script>" in shown and "right\ufffdto left" in shown


def test_hostile_captions_are_whole_in_json_and_harmless_on_the_way(hostile):
    index, folder = hostile
    done = m3di(*question(index), "--json", cwd=folder)
    assert harmless(done.stdout) and not set(BIDI) & set(done.stdout)
    answer = json.loads(done.stdout)
    assert answer["schema"] == "m3di.query/1"
    assert {hit["caption"] for hit in answer["results"]} == set(HOSTILE)
    assert set(answer["results"][0]) == {"volume", "plane", "slice", "score", "caption"}
    assert {hit["volume"] for hit in answer["same_place"]} == set()


def test_hostile_names_are_harmless_in_errors_and_diagnostics(hostile):
    _, folder = hostile
    done = m3di("query", "--volume", "v0", "--where", "dataset=none", cwd=folder)
    assert done.returncode == 2
    assert harmless(done.stderr) and "[31mred" in done.stderr
    done = m3di("query", "--diagnose", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert harmless(done.stdout)
    done = m3di("query", "--diagnose", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert harmless(done.stdout)
    assert json.loads(done.stdout)["schema"] == "m3di.diagnose/1"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--plane", "axial", "--slice", "3"], "a slice needs --volume"),
        (["--volume", "v0", "--slice", "3"], "a slice needs --volume"),
        (["liver", "--diagnose"], "ask with one of"),
        (["--volume", "v0", "--top", "0"], "--top"),
        (["--volume", "v0", "--where", "colour=red"], "KEY=VALUE"),
        (["--image", "none.png"], "none.png is not a file"),
        (["--scan", "none.nii"], "no scan at none.nii"),
        (["--volume", "v0", "--teacher", "who"], "0 teachers"),
    ],
)
def test_wrong_questions_are_refused(hostile, arguments, words):
    done = m3di("query", *arguments, cwd=hostile[1])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith("error: E_") and words in error
    assert hint.startswith("hint: ")


def test_the_options_choose_among_the_answers(hostile):
    index, folder = hostile

    def hits(*options):
        return json.loads(m3di(*question(index), "--json", *options, cwd=folder).stdout)["results"]

    assert len({hit["volume"] for hit in hits()}) == len(hits()) == 5
    assert len(hits("--top", "2")) == 2
    every = hits("--all-slices", "--top", "30")
    assert len(every) == 30 and len({hit["volume"] for hit in every}) < 30
    assert {hit["plane"] for hit in hits("--where", "plane=coronal")} == {"coronal"}
    assert {hit["volume"] for hit in hits("--where", "volume=v2", "--where", "volume=v3")} == {"v2", "v3"}
    assert len(json.loads(m3di("query", "--volume", "v0", "--json", cwd=folder).stdout)["results"]) == 4
