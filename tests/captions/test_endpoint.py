"""The endpoint captioner against servers on loopback: `llmock` for faults, a recorder for what is sent."""

import base64
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from m3di.captions.captioner import ShownPlane, ShownVolume, SliceFacts, Structure
from m3di.captions.describe import Describer
from m3di.captions.endpoint import images, limits
from m3di.captions.endpoint.captioner import EndpointCaptioner
from m3di.captions.endpoint.client import wait_of
from m3di.captions.endpoint.locality import check_place, warnings_of
from m3di.captions.endpoint.prompts import prompt_of
from m3di.captions.endpoint.questions import anchors, questions
from m3di.captions.endpoint.replies import MemoryReplies, Reply, caption_of
from m3di.config import EndpointConfig
from stores.errors import RefusedError, ResourceError
from tests.captions.servers import failed, free_port, llmock_server, recorder, said, tiny_llava, transformers_serve
from tests.stores.stores import record

pytest.importorskip("openai", reason="the `openai` package (extra `endpoint`) is not installed")
pytest.importorskip("llmock", reason="`llmock` (a captioning server for tests) is not installed")

SIZE, SLICES = 12, 11  # 2 anchors a plane at every=4, at 2, 6 and 10: three
SECRET = "NAME-19700101"
KEY = "sk-test-secret-key"


def volume(name=SECRET, *, seed=0, slices=SLICES, **facts):
    random = np.random.default_rng(seed)
    known = {"modality": "CT", "body_part": "chest", **facts}
    planes = [
        ShownPlane(
            random.integers(0, 255, (slices, SIZE, SIZE), dtype=np.uint8),
            tuple(SliceFacts(plane, (i + 0.5) / slices, **known) for i in range(slices)),
            tuple(range(slices)),
        )
        for plane in range(3)
    ]
    return ShownVolume(name, (planes[0], planes[1], planes[2]))


def settings(url, **changes):
    return replace(
        EndpointConfig(url=url, model="m", every=4, max_words=40, concurrency=1, timeout_s=20.0), **changes
    )


def captioner(url, replies=None, **changes):
    return EndpointCaptioner(settings(url, **changes), replies, describer=Describer(), backoff_s=0.001)


def always(text="Lungs are dark."):
    return lambda number, body: said(text)


def prompt_in(body):
    return body["messages"][0]["content"][0]["text"]


def picture_in(body):
    return body["messages"][0]["content"][1]["image_url"]["url"]


@pytest.fixture(scope="session")
def llmock_process(tmp_path_factory):
    with llmock_server(tmp_path_factory.mktemp("llmock") / "log") as server:
        yield server


@pytest.fixture
def mock(llmock_process):
    llmock_process.reset()
    return llmock_process


# What is sent


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_picture_is_a_png_of_pixels_alone(image):
    encoded = images.png(image)
    with Image.open(io.BytesIO(encoded)) as opened:
        assert opened.mode == "L"
        assert np.array_equal(np.asarray(opened), image)
    assert chunks(encoded) == [b"IHDR", b"IDAT", b"IEND"]


def chunks(encoded):
    kinds, offset = [], 8
    while offset < len(encoded):
        length, kind = struct.unpack(">I4s", encoded[offset : offset + 8])
        kinds.append(kind)
        (checksum,) = struct.unpack(">I", encoded[offset + 8 + length : offset + 12 + length])
        assert checksum == zlib.crc32(encoded[offset + 4 : offset + 8 + length])
        offset += 12 + length
    assert offset == len(encoded)
    return kinds


def test_a_picture_can_be_sent_larger_or_smaller():
    image = np.tile(np.arange(0, 240, 20, dtype=np.uint8), (6, 1))
    assert images.scaled(image, 0) is image
    assert images.scaled(image, 12) is image
    larger = images.scaled(image, 24)
    assert larger.shape == (12, 24)
    assert np.abs(larger[::2, ::2].astype(int) - image).max() <= 10, "half a step"
    assert images.scaled(image, 6).shape == (3, 6)
    assert images.scaled(image[:1], 2).shape == (1, 2)


@pytest.mark.parametrize(
    ("count", "every", "expected"),
    [(0, 8, []), (1, 8, [0]), (4, 8, [2]), (5, 8, [4]), (20, 8, [4, 12]), (21, 8, [4, 12, 20]), (3, 1, [0, 1, 2])],
)
def test_every_nth_slice_is_sent_from_the_middle_of_its_stride(count, every, expected):
    assert list(anchors(count, every)) == expected


def test_a_prompt_holds_words_of_closed_lists_only():
    facts = SliceFacts(
        0, 0.42, "MR", "Jane Miller", (Structure("liver", 10.0),), offset_mm=-12.5, pixel_mm=0.7, sequence="T1w"
    )
    prompt = prompt_of(facts, wording=0, max_words=40)
    assert "axial T1w MR slice, " in prompt, "no body part: it is no word of anatomy"
    assert "40 percent of the way from the lower to the upper end" in prompt
    assert not any(word in prompt for word in ("Jane", "Miller", "12", "0.7", "liver"))
    assert "MR slice of the left knee, " in prompt_of(replace(facts, body_part="left_knee"), wording=1, max_words=40)
    assert "Zz9" not in prompt_of(replace(facts, sequence="Zz9"), wording=0, max_words=40)


def test_a_key_is_of_pixels_and_words_and_of_no_name():
    def keys(shown, **changes):
        return [
            q.key for wordings in questions(shown.planes[0], settings(**{"url": "", **changes})) for q in wordings
        ]

    base = keys(volume())
    assert len(set(base)) == len(base) == 6
    assert keys(volume("another")) == base
    assert keys(volume(), url="http://other:1/v1", concurrency=9, price_input=3.0, max_requests=4) == base
    for other in (
        keys(volume(seed=1)), keys(volume(body_part="liver")), keys(volume(), model="n"),
        keys(volume(), temperature=0.5), keys(volume(), max_words=20), keys(volume(), image_px=24),
    ):  # fmt: skip
        assert not set(other) & set(base)


def test_requests_hold_pixels_and_allowed_facts_only(monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "account-of-mine")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shown = volume(sequence="T1w", modality="MR", structures=(Structure("tumour", 3.0),))
    with recorder(always()) as server:
        captioner(server.url).caption(shown)
    assert len(server.seen) == 9
    sent = {}
    for path, headers, raw in server.seen:
        body = json.loads(raw)
        assert path == "/v1/chat/completions"
        assert set(body) == {"model", "messages", "response_format", "max_tokens", "temperature"}
        assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
        kind, data = picture_in(body).split(",")
        assert kind == "data:image/png;base64"
        assert chunks(base64.b64decode(data)) == [b"IHDR", b"IDAT", b"IEND"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            sent[np.asarray(opened).tobytes()] = prompt_in(body)
        assert headers["authorization"] == f"Bearer {KEY}"
        everything = str(headers) + raw.decode()
        for hidden in (SECRET, "account-of-mine", "tumour", socket.gethostname(), "/work", "/tmp", "/home"):
            assert hidden not in everything
    for plane in shown.planes:
        for index in (2, 6, 10):
            assert sent[plane.images[index].tobytes()] == prompt_of(plane.facts[index], wording=0, max_words=40)


# Captions


def test_anchors_carry_the_models_words_and_the_slices_between_the_nearest_ones_behind_their_own_place():
    shown = volume()
    described = Describer().caption(shown)
    with recorder(lambda number, body: said(json.dumps({"caption": f"answer {number}."}))) as server:
        written = captioner(server.url).caption(shown)
    assert written.sources == ("nnmnnnmnnnm",) * 3
    nearest = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    for plane in range(3):
        for index, text in enumerate(written.texts[plane]):
            opening = described.texts[plane][index].split(". ")[0]
            assert text == f"{opening}. answer {3 * plane + nearest[index]}."
    assert written.facts == described.facts


def test_the_fingerprint_is_of_what_is_asked_and_not_of_where():
    base = captioner("http://127.0.0.1:1/v1").fingerprint
    assert captioner("https://x/v1", concurrency=8, max_cost=1.0, price_input=1.0, attempts=2).fingerprint == base
    for changes in ({"model": "n"}, {"every": 2}, {"max_words": 9}, {"temperature": 1.0}, {"image_px": 9}):
        assert captioner("http://127.0.0.1:1/v1", **changes).fingerprint != base
    other = EndpointCaptioner(settings(""), None, describer=Describer(max_structures=2))
    assert other.fingerprint != base


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ('{"caption": "Dark lungs."}', "Dark lungs."),
        ('```json\n{"Caption": "Dark\\n\\tlungs"}\n```', "Dark lungs."),
        ('Here you are: {"text": "Dark lungs."} ', "Dark lungs."),
        ('{"caption": "Dark lungs. A bright he', "Dark lungs. A bright he."),
        ('{"caption": "Dark \\"air\\" and \\u00e9', 'Dark "air" and é.'),
        ("**Caption:** Dark lungs", "Dark lungs."),
        ("# Dark `lungs`\n* bright heart", "Dark lungs * bright heart."),
        ("<think>It is { a liver.</think>Dark lungs.", "Dark lungs."),
        ("Dark\x00 \x1b[31mlungs\u202e.", "Dark [31mlungs ."),
        ("Dark lungs. Bright heart. Then one two three four five six.", "Dark lungs. Bright heart."),
        ("One two three four five six seven, eight nine ten eleven.", "One two three four five six seven."),
    ],
)
def test_a_caption_is_one_plain_line(content, caption):
    assert caption_of(Reply(content), max_words=7) == caption


@given(st.text(), st.integers(1, 30))
def test_any_answer_makes_a_short_printable_line(content, max_words):
    caption = caption_of(Reply(content), max_words=max_words)
    assert len(caption.split()) <= max_words
    assert "\n" not in caption
    assert caption == " ".join(caption.split())


@pytest.mark.parametrize(
    ("reply", "signal"),
    [
        (Reply("Dark lungs."), ""),
        (Reply("No abnormality: I can see dark lungs."), ""),
        (Reply("", refusal="no"), "field"),
        (Reply("Dark", finish="content_filter"), "filter"),
        (Reply(" \n"), "empty"),
        (Reply("<think>hm"), "empty"),
        (Reply('{"caption": ""}'), "empty"),
        (Reply("I'm sorry, but I can't assist with that."), "sentence"),
        (Reply("I\N{RIGHT SINGLE QUOTATION MARK}m unable to view pictures."), "sentence"),
        (Reply('{"caption": "I cannot describe medical images."}'), "sentence"),
        (Reply("Sorry, no."), "sentence"),
        (Reply("As an AI language model, I do not look at scans."), "sentence"),
        (Reply("Unfortunately, I cannot."), "sentence"),
    ],
)
def test_refusals_are_known_by_every_signal(reply, signal):
    assert reply.refused == signal


# Refusals


@pytest.mark.parametrize(
    ("refusal", "signal"),
    [
        (said(None, refusal="No."), "field"),
        (said("x", finish="content_filter"), "filter"),
        (said(""), "empty"),
        (said("I'm sorry, but I can't help with that."), "sentence"),
        (failed(400, "Your request was rejected by our content policy.", code="content_policy_violation"), "field"),
    ],
)
def test_a_refused_slice_is_asked_about_once_more_in_other_words_and_then_described(refusal, signal):
    shown, replies = volume(), MemoryReplies()
    target = prompt_of(shown.planes[0].facts[2], wording=0, max_words=40)
    again = prompt_of(shown.planes[0].facts[2], wording=1, max_words=40)

    def answer(number, body):
        return refusal if prompt_in(body) in (target, again) else said("Dark lungs.")

    with recorder(answer) as server:
        first = captioner(server.url, replies)
        written = first.caption(shown)
        assert [prompt_in(body) for body in server.bodies][:2] == [target, again]
        assert len(server.seen) == 10
        rerun = captioner(server.url, replies)
        assert rerun.caption(shown) == written
        assert len(server.seen) == 10, "refusals are kept too"
    assert written.sources[0] == "dddddnmnnnm"
    assert written.texts[0][:5] == Describer().caption(shown).texts[0][:5]
    assert first.summary()["refused_by"] == rerun.summary()["refused_by"] == {signal: 1}
    assert first.summary()["answered"] == rerun.summary()["kept"] == 9


def test_other_words_can_succeed():
    shown = volume()
    with recorder(lambda n, b: said("Sorry, no." if "index of pictures" not in prompt_in(b) else "Dark.")) as server:
        asked = captioner(server.url)
        assert asked.caption(shown).sources == ("nnmnnnmnnnm",) * 3
    assert len(server.seen) == 18
    assert asked.summary()["refused"] == 0


# Parameters


def test_parameters_that_a_server_rejects_are_dropped_once_and_for_the_run():
    def answer(number, body):
        for name, words in (
            ("response_format", "json_schema is not supported, use json_object"), ("temperature", "Unknown field")
        ):  # fmt: skip
            if name in body and not (name == "response_format" and body[name]["type"] == "json_object"):
                return failed(400, words, param=name)
        if "max_tokens" in body:
            return failed(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return said("Dark lungs.")

    replies = MemoryReplies()
    with recorder(answer) as server:
        captioner(server.url, replies).caption(volume())
        assert len(server.seen) == 9 + 3
        last = server.bodies[-1]
        assert last["response_format"] == {"type": "json_object"}
        assert last["max_completion_tokens"] == 152
        assert set(last) == {"model", "messages", "response_format", "max_completion_tokens"}
        captioner(server.url, replies).caption(volume())
        assert len(server.seen) == 12, "keys are of what was wanted, not of what was sent"


def test_an_error_that_names_no_parameter_is_put_down_to_them_first():
    with recorder(lambda n, b: failed(422, "bad") if "temperature" in b else said("Dark.")) as server:
        captioner(server.url, concurrency=3).caption(volume())
    assert set(server.bodies[-1]) == {"model", "messages"}


def test_a_request_that_is_never_taken_is_refused_with_the_servers_words():
    with (
        recorder(lambda n, b: (400, {}, {"detail": "this model\nis blind"})) as server,
        pytest.raises(RefusedError, match=r"E_NETWORK .*400 this model is blind"),
    ):
        captioner(server.url).caption(volume())
    assert len(server.seen) == 2


def test_a_picture_that_is_not_taken_is_described():
    shown = volume()
    target = prompt_of(shown.planes[0].facts[6], wording=0, max_words=40)
    with recorder(lambda n, b: failed(400, "no") if prompt_in(b) == target else said("Dark.")) as server:
        asked = captioner(server.url)
        assert asked.caption(shown).sources[0] == "nnmnnddddnm"
    assert asked.summary()["poison"] == 1
    assert len(server.seen) == 10, "once more at the end"


# Faults


def test_a_rate_limit_is_waited_out(mock):
    mock.script({"type": "fail", "status": 429, "retry_after": 0.4, "times": 3})
    mock.script({"type": "reply", "text": '{"caption": "Dark lungs."}', "times": None})
    began = time.monotonic()
    assert captioner(mock.url, concurrency=3).caption(volume()).sources == ("nnmnnnmnnnm",) * 3
    assert time.monotonic() - began > 0.4
    verdict = mock.verdict()
    assert verdict["passed"], verdict
    assert [request["status"] for request in mock.requests()].count(200) == 9


def test_quotas_are_lived_with(tmp_path):
    with llmock_server(tmp_path / "log", "--rpm", "240") as server:
        server.script({"type": "reply", "text": "Dark lungs.", "times": None})
        for seed in range(3):
            captioner(server.url, concurrency=4).caption(volume(seed=seed))
        verdict = server.verdict()
        assert verdict["passed"], verdict
        assert [request["status"] for request in server.requests()].count(200) == 27


def test_an_error_that_passes_is_tried_again(mock):
    mock.script({"type": "fail", "status": 500, "times": 2}, {"type": "reply", "text": "Dark.", "times": None})
    asked = captioner(mock.url)
    assert asked.caption(volume()).sources == ("nnmnnnmnnnm",) * 3
    assert asked.summary()["requests"] == 11


def test_a_short_outage_costs_no_slice_its_model(mock):
    mock.script({"type": "fail", "status": 502, "times": 6}, {"type": "reply", "text": "Dark.", "times": None})
    asked = captioner(mock.url, concurrency=3)
    assert asked.caption(volume()).sources == ("nnmnnnmnnnm",) * 3
    assert asked.summary()["requests"] == 15
    assert asked.summary()["poison"] == 0


def test_an_outage_stops_the_run_and_what_was_answered_is_kept(mock):
    replies = MemoryReplies()
    mock.script({"type": "reply", "text": "Dark.", "times": None})
    captioner(mock.url, replies).caption(volume())
    mock.script({"type": "fail", "status": 503, "times": None})
    with pytest.raises(ResourceError, match=r"E_NETWORK the server failed .* times in a row: 503"):
        captioner(mock.url, replies, concurrency=2).caption(volume(seed=1))
    mock.reset()
    mock.script({"type": "reply", "text": "Dark.", "times": None})
    captioner(mock.url, replies).caption(volume())
    assert mock.requests() == []


def test_no_answer_in_time_is_a_failure(mock):
    mock.script({"type": "delay", "seconds": 1.0, "times": 1}, {"type": "reply", "text": "Dark.", "times": None})
    asked = captioner(mock.url, timeout_s=0.3)
    assert asked.caption(volume()).sources == ("nnmnnnmnnnm",) * 3
    assert asked.summary()["requests"] == 10


def test_one_poisoned_picture_is_described_and_counted_and_many_stop_the_run():
    shown = volume()
    bad = {prompt_of(shown.planes[p].facts[i], wording=0, max_words=40) for p, i in ((0, 2), (1, 6), (2, 10))}

    def answer(number, body):
        return failed(500, "cannot decode") if prompt_in(body) in bad else said("Dark.")

    with recorder(answer) as server:
        asked = captioner(server.url, image_attempts=2)
        written = asked.caption(shown)
        assert [line.count("d") for line in written.sources] == [5, 4, 2]
        assert len(server.seen) == 6 + 3 * 2
        assert asked.summary()["poison"] == 3
        with pytest.raises(ResourceError, match="max_poison=2"):
            captioner(server.url, image_attempts=1, max_poison=2).caption(shown)


def test_no_server_stops_the_run_at_once():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ResourceError, match=r"E_NETWORK .*cannot be reached"):
        captioner(url, attempts=2).caption(volume())


@pytest.mark.parametrize(("status", "words"), [(401, f"Incorrect API key {KEY}"), (404, "no model m"), (403, "no")])
def test_wrong_key_or_model_stops_at_once_and_the_key_is_not_repeated(status, words, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with (
        recorder(lambda n, b: failed(status, words)) as server,
        pytest.raises(RefusedError, match="refuses") as error,
    ):
        captioner(server.url, key_variable="MY_KEY").caption(volume())
    assert len(server.seen) == 1
    assert KEY not in str(error.value) + error.value.hint


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (failed(429, "wait", headers={"Retry-After": "3600"}), "asks to wait 3600 s"),
        (failed(429, "You exceeded your current quota", code="insufficient_quota"), "no quota left"),
        (failed(429, "slow down", headers={"Retry-After": "0"}), "asks to wait again and again"),
        (failed(402, "pay"), "no quota left"),
        ((200, {}, {"error": "out of memory"}), "failed .* times in a row: out of memory"),
    ],
)
def test_what_another_run_may_heal_stops_this_one(answer, message):
    with recorder(lambda n, b: answer) as server, pytest.raises(ResourceError, match=message):
        captioner(server.url).caption(volume())


def test_redirects_and_proxies_are_not_followed(monkeypatch):
    with recorder(always()) as other:
        moved = (307, {"Location": f"{other.url}/chat/completions"}, {})
        with recorder(lambda n, b: moved) as server, pytest.raises(RefusedError, match="redirects"):
            captioner(server.url).caption(volume())
        assert other.seen == []
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
        captioner(other.url).caption(volume())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, None), ({"retry-after": "2"}, 2.0), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "soon"}, None),
     ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0), ({"retry-after": "nan"}, None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(headers, seconds):
    assert wait_of(headers) == seconds


# Caps


def test_caps_stop_before_they_are_passed():
    with recorder(always()) as server:
        replies = MemoryReplies()
        with pytest.raises(ResourceError, match="max_requests=4"):
            captioner(server.url, replies, max_requests=4).caption(volume())
        assert len(server.seen) == 4
        captioner(server.url, replies, max_requests=5).caption(volume())
        assert len(server.seen) == 9, "caps are per run, and what is kept counts for nothing"
        with pytest.raises(ResourceError, match="max_tokens_total=1500"):
            captioner(server.url, max_tokens_total=1500).caption(volume())
        assert len(server.seen) == 9 + 4, "320 tokens each, as the server says, and room for one by rule"
        priced = {"price_input": 1000.0, "price_output": 10000.0}
        with pytest.raises(ResourceError, match="max_cost=3"):
            captioner(server.url, max_cost=3.0, **priced).caption(volume())
        asked = captioner(server.url, **priced)
        asked.caption(volume())
    assert asked.summary()["tokens"] == {"prompt": 2700, "completion": 180}
    assert asked.summary()["cost"] == pytest.approx(2700e-6 * 1000 + 180e-6 * 10000)
    with pytest.raises(RefusedError, match="needs prices"):
        captioner(server.url, max_cost=1.0)


def test_threads_that_stop_for_another_do_not_hide_why():
    with recorder(always()) as server:
        for cap in (1, 2, 3, 4, 5):
            with pytest.raises(ResourceError, match=f"max_requests={cap}"):
                captioner(server.url, max_requests=cap, concurrency=8).caption(volume())
        assert len(server.seen) == 15


def test_requests_under_way_count_for_the_caps():
    endpoint = settings("", max_tokens_total=1000)
    question = questions(volume().planes[0], endpoint)[0][0]
    meter, each = limits.Meter(endpoint), limits.estimated(question, endpoint)
    assert 333 < each.prompt + each.completion <= 1000
    begun = meter.begin(question)
    with pytest.raises(ResourceError, match="max_tokens_total"):
        meter.begin(question) and meter.begin(question)
    meter.end(begun, None)
    meter.begin(question)


# Stopping


def test_a_stop_keeps_what_is_under_way():
    replies, arrived = MemoryReplies(), threading.Event()

    def answer(number, body):
        arrived.set()
        time.sleep(0.3)
        return said("Dark.")

    class Stop(Exception):  # noqa: N818
        pass

    def check():
        if arrived.is_set():
            raise Stop

    with recorder(answer) as server:
        asked = captioner(server.url, replies, concurrency=2)
        asked.begin([], report=lambda event, /, **facts: None, check=check)
        with pytest.raises(Stop):
            asked.caption(volume())
        kept = len(server.seen)
        assert 1 <= kept <= 4
        server.answer = always()
        captioner(server.url, replies).caption(volume())
    assert len(server.seen) == 9, "no request is repeated"


# Privacy


@pytest.mark.parametrize(
    ("url", "changes", "code"),
    [
        ("http://127.0.0.1:8000/v1", {}, ""),
        ("http://127.8.9.1/v1", {}, ""),
        ("http://[::1]:8000/v1", {}, ""),
        ("https://localhost/v1", {}, ""),
        ("https://api.example.com/v1", {}, "E_NETWORK"),
        ("http://127.0.0.1.example.com/v1", {}, "E_NETWORK"),
        ("http://0.0.0.0:8000/v1", {}, "E_NETWORK"),
        ("http://10.0.0.2:8000/v1", {}, "E_NETWORK"),
        ("https://api.example.com/v1", {"allow_host": "example.com"}, "E_NETWORK"),
        ("https://API.example.com/v1", {"allow_host": "api.example.com"}, ""),
        ("http://10.0.0.2:8000/v1", {"allow_host": "10.0.0.2"}, "E_NETWORK"),
        ("http://10.0.0.2:8000/v1", {"allow_host": "10.0.0.2", "allow_plain_http": True}, ""),
        ("https://me:secret@127.0.0.1/v1", {}, "E_CONFIG"),
        ("http://127.0.0.1/v1?key=secret", {}, "E_CONFIG"),
        ("file:///etc/passwd", {}, "E_CONFIG"),
        ("127.0.0.1:8000", {}, "E_CONFIG"),
        ("http://[::1/v1", {}, "E_CONFIG"),
        ("http://127.0.0.1:port/v1", {}, "E_CONFIG"),
    ],
)
def test_pictures_go_to_this_machine_or_where_they_were_allowed(url, changes, code):
    endpoint = settings(url, **changes)
    if not code:
        check_place(endpoint)
        return
    with pytest.raises(RefusedError, match=code) as error:
        check_place(endpoint)
    assert "secret" not in str(error.value)


def test_another_machine_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = captioner("https://api.example.com/v1", allow_host="api.example.com")
    with pytest.raises(RefusedError, match="OPENAI_API_KEY"):
        asked.begin([record("v0")], report=lambda event, /, **facts: None, check=lambda: None)


@pytest.mark.parametrize(
    ("changes", "body_part", "words"),
    [
        ({}, "abdomen", []),
        ({}, "head", ["face"]),
        ({}, "forehead", []),
        ({"model": "qwen3-vl:235b-cloud"}, "liver", ["run in a cloud"]),
        ({"model": "x:cloud"}, "Brain_MR", ["run in a cloud", "face"]),
        ({"url": "https://api.example.com/v1"}, "liver", ["leave this machine for api.example.com"]),
    ],
)
def test_a_user_is_warned_of_clouds_and_faces(changes, body_part, words):
    endpoint = settings("http://127.0.0.1:1/v1")
    found = list(warnings_of(replace(endpoint, **changes), [record(SECRET, body_part=body_part)]))
    assert [code for code, _ in found] == ["W_PHI"] * len(words)
    assert all(word in message for word, (_, message) in zip(words, found, strict=True))
    assert SECRET not in str(found)


def test_no_model_is_refused_and_nothing_is_imported_before_the_first_request():
    with pytest.raises(RefusedError, match=r"E_CONFIG captions\.endpoint\.model"):
        captioner("http://127.0.0.1:1/v1", model="")
    code = "import sys, m3di.captions.registry; assert not {'torch', 'openai', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# A real model


@pytest.mark.slow
def test_a_real_model_is_shown_the_pictures(tmp_path):
    model = str(tiny_llava(tmp_path / "model"))
    with transformers_serve(tmp_path / "model", tmp_path / "log") as url:
        replies = MemoryReplies()
        asked = captioner(url, replies, model=model, concurrency=2)
        written = asked.caption(volume(slices=4))
        assert set("".join(written.sources)) <= set("mnd")
        summary = asked.summary()
        assert summary["answered"] == 3
        assert 3 <= summary["requests"] <= 6, "it ignores response_format, and rejects nothing"
        assert summary["tokens"]["prompt"] > 3 * 100
        assert captioner(url, replies, model=model).caption(volume(slices=4)) == written
        with pytest.raises(RefusedError, match="pinned to"):
            captioner(url, model="other").caption(volume())
