"""Requests as files for a vendor's batch interface (OpenAI's JSONL), and its results back into the store.

A line is known by the digest of what it asks, so results may come in any order, in parts, twice, or not at all; a run
of the captioner then asks only about what is missing.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from m3di.captions.endpoint.captioner import EndpointCaptioner
from m3di.captions.endpoint.client import one_line
from m3di.captions.endpoint.limits import Tokens, estimated
from m3di.captions.endpoint.locality import warnings_of
from m3di.captions.endpoint.projection import anchor_questions, next_question, stale_volumes
from m3di.captions.endpoint.questions import Question, wanted
from m3di.captions.endpoint.replies import Reply, reply_of, speaks_of_policy
from m3di.captions.registry import captioner_of
from m3di.config import Config
from stores import Store, atomic
from stores.errors import RefusedError
from stores.records import VolumeRecord

MAX_LINES: Final = 50_000  # of a file, as OpenAI has it
MAX_BYTES: Final = 190_000_000  # a little below OpenAI's 200 MB
_PATTERN: Final = "batch-*.jsonl"


def export_batch(
    store: Store, config: Config, folder: Path, *, max_lines: int = MAX_LINES, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Write the requests that have no answer yet; the second wording where the first was refused.

    Args:
        store: The store.
        config: All settings, with `captions.captioner = "endpoint"`.
        folder: Gets `batch-000.jsonl` and so on.
        max_lines: Requests of a file.
        max_bytes: Size of a file.

    Returns:
        A JSON-ready summary: files, requests, bytes, estimated tokens and their cost, warnings.

    Raises:
        RefusedError: E_CONFIG, when the captioner is another or no model is named; E_PATH, when the folder holds
            batch files already: uploaded twice, they would be paid twice.
    """
    captioner = _captioner(store, config)
    endpoint = config.captions.endpoint
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(_PATTERN)):
        message = f"{folder} holds batch files already"
        raise RefusedError("E_PATH", message, hint="name an empty folder, or remove them")
    records = stale_volumes(store, captioner, config)
    tokens = Tokens()

    def lines() -> Iterator[bytes]:
        nonlocal tokens
        for question in _missing(store, config, records):
            tokens += estimated(question, endpoint)
            yield _line(question, config)

    files, num_lines, num_bytes = [], 0, 0
    for number, group in enumerate(_grouped(lines(), max_lines, max_bytes)):
        files.append(folder / f"batch-{number:03d}.jsonl")
        payload = b"".join(group)
        atomic.write_bytes(files[-1], payload)
        num_lines += len(group)
        num_bytes += len(payload)
    return {
        "files": [str(file) for file in files],
        "requests": num_lines,
        "bytes": num_bytes,
        "tokens": asdict(tokens),
        "cost": round(tokens.cost(endpoint), 4),
        "warnings": [f"{code} {message}" for code, message in warnings_of(endpoint, records)],
    }


def import_batch(store: Store, config: Config, files: Sequence[Path]) -> dict[str, Any]:
    """Keep the answers in result files; what is kept already is not changed.

    Args:
        store: The store, open for writing.
        config: The settings of the export.
        files: Result and error files, in any order.

    Returns:
        A JSON-ready count of the lines: `stored` (of them `refused`), `duplicates`, `unknown` (asked by other
        settings, or of another store), `failed` (with the vendor's `errors`), `unreadable`; and `missing` requests.

    Raises:
        RefusedError: E_CONFIG, when the captioner is another; E_MISSING, when a file cannot be read.
    """
    _captioner(store, config)
    records = store.records()
    keys = {
        question.key
        for record in records
        for wordings in anchor_questions(store, record, config.captions.endpoint)
        for question in wordings
    }
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for line in _read(files):
        counts["lines"] += 1
        counts.update(_keep(store, keys, line, errors))
    names = ("lines", "stored", "refused", "duplicates", "unknown", "failed", "unreadable")
    missing = sum(1 for _ in _missing(store, config, records))
    return {**{name: counts[name] for name in names}, "errors": dict(errors.most_common(5)), "missing": missing}


def _captioner(store: Store, config: Config) -> EndpointCaptioner:
    captioner = captioner_of(config, store)
    if not isinstance(captioner, EndpointCaptioner):
        message = f"captions.captioner={captioner.name} has no batches"
        raise RefusedError("E_CONFIG", message, hint="--set captions.captioner=endpoint")
    return captioner


def _missing(store: Store, config: Config, records: Sequence[VolumeRecord]) -> Iterator[Question]:
    """Questions to ask, each once."""
    seen: set[str] = set()
    for record in records:
        for wordings in anchor_questions(store, record, config.captions.endpoint):
            question = next_question(store, wordings)
            if question is not None and question.key not in seen:
                seen.add(question.key)
                yield question


def _line(question: Question, config: Config) -> bytes:
    endpoint = config.captions.endpoint
    body = {"model": endpoint.model, "messages": question.messages, **wanted(endpoint)}
    request = {"custom_id": question.key, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request).encode() + b"\n"


def _grouped(lines: Iterator[bytes], max_lines: int, max_bytes: int) -> Iterator[list[bytes]]:
    """Lines of one file after the other."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        if group and (len(group) == max_lines or size + len(line) > max_bytes):
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line)
    if group:
        yield group


def _read(files: Sequence[Path]) -> Iterator[bytes]:
    for file in files:
        try:
            with file.open("rb") as opened:
                yield from (line for line in opened if line.strip())
        except OSError as error:
            message = f"cannot read {file}: {error.strerror}"
            raise RefusedError("E_MISSING", message, hint="name the result files") from error


def _keep(store: Store, keys: set[str], line: bytes, errors: Counter[str]) -> Iterator[str]:
    """Keep the answer of a line; yields the names that it counts under."""
    try:
        result = json.loads(line)
        key = str(result["custom_id"])
    except (ValueError, KeyError, TypeError):
        yield "unreadable"
        return
    if key not in keys:
        yield "unknown"
    elif store.reply(key) is not None:
        yield "duplicates"
    elif isinstance(answer := _answer(result), Reply):
        store.commit_reply(key, answer.to_dict())
        yield "stored"
        if answer.refused:
            yield "refused"
    else:
        errors[answer] += 1
        yield "failed"


def _answer(result: Mapping[str, Any]) -> Reply | str:
    """The answer in a result line, a refusal by policy included; the vendor's words when there is none."""
    response = result.get("response")
    response = response if isinstance(response, Mapping) else {}
    body = response.get("body")
    reply = reply_of(body) if isinstance(body, Mapping) and response.get("status_code", 200) == 200 else None
    if reply is not None:
        return reply
    error = result.get("error") or (body.get("error") if isinstance(body, Mapping) else None)
    error = error if isinstance(error, Mapping) else {"message": error}
    words = one_line(f"{error.get('code') or ''} {error.get('message') or 'no answer'}")
    return Reply(refusal=words) if speaks_of_policy(words) else words
