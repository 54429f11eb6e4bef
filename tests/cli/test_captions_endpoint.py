"""`captions plan` and `captions run` with a captioning server, in processes of their own, and killed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stores import Store
from stores.records import Captions
from tests.captions.servers import failed, llmock_server, recorder, said
from tests.cli.running import SIZES, command, events, m3di
from tests.phantoms import write_msd_dataset
from tests.stores.stores import RECIPE, chunks, record

pytest.importorskip("openai", reason="the `openai` package (extra `endpoint`) is not installed")
pytest.importorskip("llmock", reason="`llmock` (a captioning server for tests) is not installed")

ANCHORS = 3 * 3 * 3  # volumes, planes, and three of a plane's slices


def build(path, count=3, **changes):
    with Store.create_or_open(path, RECIPE) as store:
        for seed in range(count):
            store.commit_volume(record(f"v{seed}", **changes), chunks(seed))
    return path


def options(url, *more, every=2):
    pairs = [f"url={url}", "model=m", f"every={every}", *more]
    return [part for pair in pairs for part in ("--set", f"captions.endpoint.{pair}")]


def run(folder, url, *more, env=None):
    arguments = ["captions", "run", "--store", "store", "--captioner", "endpoint", "--json", *options(url, *more)]
    return m3di(*arguments, cwd=folder, env=env)


def plan(folder, url, *more, pilot=()):
    done = m3di("captions", "plan", "--store", "store", "--json", *pilot, *options(url, *more), cwd=folder)
    assert done.returncode == 0, done.stderr
    (summary,) = events(done)
    assert summary["schema"] == "m3di.captions-plan/1"
    return summary


def captions_of(path):
    with Store(path) as store:
        (maker,) = {head for r in store.records() for head in store.captioners(r.volume)}
        return {r.volume: store.captions(maker, r.volume) for r in store.records()}


def test_a_plan_says_what_would_be_sent_and_sends_nothing(tmp_path):
    build(tmp_path / "store")
    with recorder(lambda number, body: said("Dark.")) as server:
        first = plan(tmp_path, server.url, "price_input=1.0", "price_output=2.0")
        assert server.seen == []
        anchors = first["anchors"]
        assert (first["volumes"], first["answered"], first["requests"]) == (3, 0, anchors)
        assert first["leaves"]["this_machine"] is True
        assert first["leaves"]["pictures"] == anchors
        assert first["leaves"]["picture_bytes"] > 60 * anchors
        assert "MR slice of the head" in first["leaves"]["prompt"]
        assert first["tokens_from"].startswith("by rule")
        assert any("face" in warning for warning in first["warnings"])
        second = plan(tmp_path, server.url, "price_input=1.0", "price_output=2.0", pilot=["--pilot", "4"])
        assert len(server.seen) == second["pilot"]["requests"] == 4
        assert (second["answered"], second["requests"]) == (4, anchors - 4)
        assert second["tokens"] == {"prompt": 300 * (anchors - 4), "completion": 20 * (anchors - 4)}
        assert second["cost"] == pytest.approx((300 + 20 * 2) * (anchors - 4) / 1e6, abs=1e-4)
        done = run(tmp_path, server.url)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == anchors, "the pilot's answers are part of the run"
    shown = m3di("captions", "plan", "--store", "store", *options(server.url), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "leaves: host" in shown.stdout


def test_slices_that_are_equal_to_the_last_pixel_are_planned_as_one_request(tmp_path):
    with Store.create_or_open(tmp_path / "store", RECIPE) as store:
        for name, seed in (("v0", 0), ("v1", 1), ("v2", 0)):
            store.commit_volume(record(name), chunks(seed))
    with recorder(lambda number, body: said("Dark.")) as server:
        before = plan(tmp_path, server.url)
        anchors = before["anchors"]
        counts = ("answered", "requests", "equal_to_another")
        assert [before[name] for name in counts] == [0, anchors * 2 // 3, anchors // 3]
        done = run(tmp_path, server.url)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == anchors * 2 // 3
        after = plan(tmp_path, server.url)
        assert [after[name] for name in ("anchors", *counts)] == [anchors, anchors, 0, 0]


@pytest.mark.parametrize("sets", [["allow_host="], ["allow_host=captions.example.com"]])
def test_a_build_is_refused_before_anything_is_written_when_the_server_may_not_be_asked(sets, tmp_path):
    """A host that is not this machine and is not allowed by name; one that is, without a key."""
    write_msd_dataset(tmp_path / "data", 1)
    asked = options("https://captions.example.com/v1", *sets)
    arguments = ["build-store", "data", "--store", "store", "--captioner", "endpoint", *SIZES, *asked]
    done = m3di(*arguments, cwd=tmp_path, env={"OPENAI_API_KEY": ""})
    assert done.returncode == 2, done.stderr
    assert "hint:" in done.stderr
    assert "captions.example.com" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_run_counts_what_it_asked_and_a_rerun_asks_nothing(tmp_path):
    build(tmp_path / "store", body_part="abdomen")
    with recorder(lambda n, body: said("Sorry, no." if n < 2 else "Dark.")) as server:
        done = run(tmp_path, server.url, "concurrency=1")
        assert done.returncode == 0, done.stderr
        sent = len(server.seen)
        (counts,) = (event for event in events(done) if event.get("event") == "captioned")
        assert (counts["requests"], counts["answered"], counts["refused"]) == (sent, sent - 1, 1)
        assert counts["refused_by"] == {"sentence": 1}
        assert events(done)[-1]["captioner"] == "endpoint"
        again = run(tmp_path, server.url, "concurrency=4", "attempts=2", "key_variable=OTHER")
        assert (again.returncode, len(server.seen)) == (0, sent)
    written = captions_of(tmp_path / "store")
    assert all(isinstance(captions, Captions) for captions in written.values())
    assert set("".join(written["v0"].sources)) == {"m", "n", "d"}
    assert set("".join(written["v1"].sources)) == {"m", "n"}


def durable(path):
    """How many answers a store keeps; another process may be writing to it."""
    with Store(path) as store:
        return len(store.replies())


def stopped(folder, url, number, *, after):
    """Run `captions run` until the store keeps so many answers, and send it a signal; the process that was."""
    arguments = ["captions", "run", "--store", "store", "--captioner", "endpoint", *options(url, "concurrency=3")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command(*arguments), cwd=folder, env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None and durable(folder / "store") < after:
            time.sleep(0.005)
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
    return process.returncode, words.decode()


@pytest.mark.slow
def test_no_request_is_repeated_after_a_kill(tmp_path):
    build(tmp_path / "store")
    with llmock_server(tmp_path / "log", "--latency-ms", "150") as server:
        server.script({"type": "reply", "text": '{"caption": "Dark areas."}', "times": None})
        for kills, after in enumerate((4, 13, 20), start=1):
            code, words = stopped(tmp_path, server.url, signal.SIGKILL, after=after)
            assert code == -signal.SIGKILL, words
            kept = durable(tmp_path / "store")
            assert after <= kept < ANCHORS
            assert len(server.requests()) - kept <= 3 * kills, "lost: at most those under way at each kill"
        total = plan(tmp_path, server.url)
        assert (total["anchors"], total["answered"], total["requests"]) == (ANCHORS, kept, ANCHORS - kept)
        before = [json.dumps(request["body"]) for request in server.requests()]
        done = run(tmp_path, server.url, "concurrency=3")
        assert done.returncode == 0, done.stderr
        after_all = [json.dumps(request["body"]) for request in server.requests()][len(before) :]
        assert len(after_all) == len(set(after_all)) == ANCHORS - kept, "exactly what had no durable answer"
        assert len(set(before) | set(after_all)) == ANCHORS
        assert len(set(after_all) & set(before)) == len(set(before)) - kept, "again: only what was lost"
    straight = build(tmp_path / "other" / "store")
    with recorder(lambda n, body: said('{"caption": "Dark areas."}')) as other:
        assert run(straight.parent, other.url).returncode == 0
    assert captions_of(straight) == captions_of(tmp_path / "store")


def test_a_stop_by_a_signal_keeps_what_was_answered(tmp_path):
    build(tmp_path / "store")
    with llmock_server(tmp_path / "log", "--latency-ms", "150") as server:
        server.script({"type": "reply", "text": "Dark areas.", "times": None})
        code, words = stopped(tmp_path, server.url, signal.SIGTERM, after=3)
        assert code == 143, words
        assert "run the same command again" in words
        assert durable(tmp_path / "store") == len(server.requests()) < ANCHORS


@pytest.mark.parametrize(
    ("answer", "more", "code", "words"),
    [
        (failed(401, "bad key"), [], 2, "E_NETWORK"),
        (failed(500, "broken"), ["image_attempts=1"], 5, "E_NETWORK the server failed 9 times in a row"),
        (said("Dark."), ["max_requests=2"], 5, "captions.endpoint.max_requests=2"),
        (said("Dark."), ["model="], 2, "E_CONFIG captions.endpoint.model is empty"),
        (said("Dark."), ["max_cost=1.0"], 2, "E_CONFIG captions.endpoint.max_cost needs prices"),
    ],
)
def test_what_cannot_go_on_says_so_with_its_exit_code(answer, more, code, words, tmp_path):
    build(tmp_path / "store", 1)
    with recorder(lambda n, body: answer) as server:
        done = run(tmp_path, server.url, *more)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_machine_is_refused_before_anything_is_sent(tmp_path):
    build(tmp_path / "store", 1)
    done = run(tmp_path, "https://captions.example.com/v1", env={"OPENAI_API_KEY": "k"})
    assert done.returncode == 2
    assert "E_NETWORK captions.example.com is not this machine" in done.stderr
    assert "captions.endpoint.allow_host=captions.example.com" in done.stderr
    shown = plan(tmp_path, "https://captions.example.com/v1")
    assert (shown["leaves"]["host"], shown["leaves"]["allowed"]) == ("captions.example.com", False)
    assert any("leave this machine" in warning for warning in shown["warnings"])
