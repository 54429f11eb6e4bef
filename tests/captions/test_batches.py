"""Batch files for vendors, and their results in any order, in parts, twice and with errors."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from m3di.captions.endpoint.batches import export_batch, import_batch
from m3di.captions.stage import caption_store
from m3di.config import load_config
from m3di.events import ignore
from stores import Store
from stores.errors import RefusedError
from tests.captions.servers import recorder, said
from tests.stores.stores import RECIPE, chunks, record

pytest.importorskip("openai", reason="the `openai` package (extra `endpoint`) is not installed")


@pytest.fixture
def store(tmp_path):
    with Store.create_or_open(tmp_path / "store", RECIPE) as opened:
        for seed in range(2):
            opened.commit_volume(record(f"SECRET{seed}", body_part="abdomen"), chunks(seed))
        yield opened


def config(url="http://127.0.0.1:1/v1", **changes):
    settings = [f"captions.endpoint.{name}={value}" for name, value in {"model": "m", "every": 2, **changes}.items()]
    return load_config(settings=[*settings, f"captions.endpoint.url={url}", "captions.captioner=endpoint"])


def lines_of(summary):
    return [json.loads(line) for file in summary["files"] for line in Path(file).read_text().splitlines()]


def result(key, answer=None, *, status=200, error=None):
    body = said("Dark areas.")[2] if answer is None else answer
    response = None if error and status == 200 else {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": key, "response": response, "error": error}) + "\n"


def test_a_batch_holds_the_requests_and_nothing_that_names_a_volume(store, tmp_path):
    summary = export_batch(store, config(price_input=1.0), tmp_path / "out", max_lines=5)
    lines = lines_of(summary)
    assert summary["requests"] == len(lines) > 10
    assert len(summary["files"]) == -(-len(lines) // 5)
    assert summary["bytes"] == sum((tmp_path / "out" / f"batch-{i:03d}.jsonl").stat().st_size
                                   for i in range(len(summary["files"])))  # fmt: skip
    assert summary["cost"] > 0
    keys = [line["custom_id"] for line in lines]
    assert len(set(keys)) == len(keys)
    for line in lines:
        assert set(line) == {"custom_id", "method", "url", "body"}
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        assert len(line["custom_id"]) == 64
        assert set(line["body"]) == {"model", "messages", "response_format", "max_tokens", "temperature"}
    assert "SECRET" not in json.dumps(lines)
    with pytest.raises(RefusedError, match=r"E_PATH .*holds batch files already"):
        export_batch(store, config(), tmp_path / "out")
    small = export_batch(store, config(), tmp_path / "small", max_bytes=2500)
    assert lines_of(small) == lines
    assert all(Path(file).stat().st_size <= 2500 for file in small["files"])


def test_results_come_in_any_order_and_only_the_rest_is_asked(store, tmp_path):
    summary = export_batch(store, config(), tmp_path / "out")
    bodies = {line["custom_id"]: line["body"] for line in lines_of(summary)}
    keys = list(bodies)
    random.Random(1).shuffle(keys)
    policy = {"error": {"code": "content_policy_violation", "message": "no"}}
    files = [tmp_path / "results.jsonl", tmp_path / "errors.jsonl"]
    files[0].write_text(
        "".join(result(key) for key in keys[:6])
        + result(keys[0], said("Other words.")[2])
        + result("ab" * 32)
        + "{half a li\n\n"
        + '{"custom_id": 5}\n[]\n'
    )
    files[1].write_text(
        result(keys[6], error={"code": "batch_expired", "message": "too late"})
        + result(keys[7], {"error": {"message": "server\nerror"}}, status=500)
        + result(keys[8], policy, status=400)
        + result(keys[9], said("I'm sorry, I can't.")[2])
        + result(keys[10], {"choices": []})
    )
    counts = import_batch(store, config(), files)
    assert {name: counts[name] for name in counts if name not in ("errors", "missing")} == {
        "lines": 16, "stored": 8, "refused": 2, "duplicates": 1, "unknown": 2, "failed": 3, "unreadable": 2,
    }  # fmt: skip
    assert counts["errors"]["batch_expired too late"] == 1
    assert counts["errors"]["server error"] == 1
    assert counts["missing"] == len(keys) - 6, "the second wording of what was refused included"
    again = import_batch(store, config(), files)
    assert (again["stored"], again["duplicates"]) == (0, 9)
    second = lines_of(export_batch(store, config(), tmp_path / "second"))
    assert len(second) == counts["missing"]
    assert len({line["custom_id"] for line in second} - set(keys)) == 2
    path = store.path
    store.close()
    with recorder(lambda n, body: said("Bright areas.")) as server:
        done = caption_store(path, config(server.url), report=ignore)
        assert sorted(json.dumps(body["messages"]) for body in server.bodies) == sorted(
            json.dumps(line["body"]["messages"]) for line in second
        )
    assert done["described"] == 2


def test_a_whole_batch_needs_no_server(store, tmp_path):
    summary = export_batch(store, config(), tmp_path / "out")
    file = tmp_path / "results.jsonl"
    file.write_text("".join(result(line["custom_id"]) for line in reversed(lines_of(summary))))
    counts = import_batch(store, config(), [file])
    assert (counts["stored"], counts["missing"]) == (summary["requests"], 0)
    path = store.path
    store.close()
    done = caption_store(path, config(), report=ignore)  # nothing listens there
    assert done["described"] == 2
    with Store(path, writable=True) as opened:
        after = export_batch(opened, config(), tmp_path / "after")
    assert (after["files"], after["requests"]) == ([], 0)


def test_results_of_other_settings_are_unknown(store, tmp_path):
    summary = export_batch(store, config(), tmp_path / "out")
    file = tmp_path / "results.jsonl"
    file.write_text("".join(result(line["custom_id"]) for line in lines_of(summary)))
    counts = import_batch(store, config(model="n"), [file])
    assert (counts["stored"], counts["unknown"]) == (0, summary["requests"])
    with pytest.raises(RefusedError, match="E_MISSING"):
        import_batch(store, config(), [tmp_path / "none"])
    other = config()
    described = replace(other, captions=replace(other.captions, captioner="describe"))
    with pytest.raises(RefusedError, match=r"E_CONFIG .*describe has no batches"):
        export_batch(store, described, tmp_path / "x")
