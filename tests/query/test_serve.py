import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image

from m3di.query import Searcher
from m3di.query.page.contents import Contents
from m3di.query.page.document import SCRIPTS, STYLES
from m3di.query.serve import PageServer
from stores.errors import RefusedError
from tests.cli.running import command
from tests.query.stores import HOSTILE, write_hostile_store, write_store
from tests.query.test_scan import places

ROOT = Path(__file__).parents[2]
ASKED = ("/store", "/answer", "/volume", "/curves", "/cube", "/picture")
EVERY = ("/", *(f"/{name}" for name in (*STYLES, *SCRIPTS)), *ASKED)


@contextmanager
def serving(contents):
    with PageServer(contents) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("serve") / "store")


@pytest.fixture(scope="module")
def contents(path):
    with Searcher(path) as searcher:
        yield Contents(searcher)


@pytest.fixture(scope="module")
def server(contents):
    with serving(contents) as running:
        yield running


def ask(server, target, *, method="GET", headers=None, token=True):
    """One request: (status, headers, body)."""
    given = {"Authorization": f"Bearer {server.token}"} if token else {}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, target, headers=given | (headers or {}))
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def raw(server, request):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def get(server, name, **parameters):
    status, _, body = ask(server, f"/{name}?{urlencode(parameters, doseq=True)}")
    assert status == 200, body
    return json.loads(body)


def refusal(server, target, **options):
    """Status and error of a request that is not answered, which says so in JSON alone."""
    status, headers, body = ask(server, target, **options)
    assert headers["Content-Type"] == "application/json"
    assert b"Traceback" not in body
    return status, json.loads(body)["error"]


# Who may ask


@pytest.mark.parametrize("target", EVERY)
def test_nothing_is_told_without_the_token(server, target):
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": f"{server.cookie}=x"}, {"Cookie": "\x01=;;=\xff"}):
        status, error = refusal(server, target, token=False, headers=headers)
        assert (status, error["code"]) == (403, "E_CONFIG")
    status, _ = refusal(server, f"{target}?token={server.token[:-1]}", token=False)
    assert status == 403
    assert refusal(server, f"{target}?token=%ff%d7%90", token=False)[0] == 403


def test_the_address_opens_the_page_and_its_cookie_opens_the_rest(server):
    url = urlsplit(server.url({"text": "a & b", "where": ["modality=MR"]}))
    assert url.hostname == "127.0.0.1" and url.port == server.server_port
    assert parse_qs(url.fragment) == {"text": ["a & b"], "where": ["modality=MR"]}
    status, headers, body = ask(server, f"/?{url.query}", token=False)
    assert status == 200 and b"<!DOCTYPE html>" in body and server.token.encode() not in body
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    status, _, _ = ask(server, "/store", token=False, headers={"Cookie": cookie.split(";")[0]})
    assert status == 200


def test_the_token_in_an_address_opens_only_the_page(server):
    assert refusal(server, f"/store?token={server.token}", token=False)[0] == 403


def test_each_server_has_a_token_of_its_own(contents):
    with serving(contents) as one, serving(contents) as other:
        assert one.token != other.token and len(one.token) >= 43
        assert one.cookie != other.cookie
        assert refusal(other, "/store", headers={"Authorization": f"Bearer {one.token}"}, token=False)[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_another_name_for_this_machine_is_refused(server, host):
    named = host.format(port=server.server_port)
    status, error = refusal(server, "/store", headers={"Host": named})
    assert (status, error["message"]) == (421, "this server is not called that")


def test_a_request_names_one_host(server):
    line = f"GET /store HTTP/1.1\r\nAuthorization: Bearer {server.token}\r\n"
    good = f"Host: 127.0.0.1:{server.server_port}\r\n"
    assert raw(server, f"{line}{good}\r\n".encode()).startswith(b"HTTP/1.1 200 ")
    assert raw(server, f"{line}{good}Host: evil.example\r\n\r\n".encode()).startswith(b"HTTP/1.1 421 ")
    assert raw(server, f"{line}\r\n".encode()).startswith(b"HTTP/1.1 421 ")
    assert ask(server, "/store", headers={"Host": f"localhost:{server.server_port}"})[0] == 200


@pytest.mark.parametrize(
    "site, status", [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
)
def test_other_pages_of_the_browser_may_not_ask(server, site, status):
    assert ask(server, "/store", headers={"Sec-Fetch-Site": site})[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "X"])
def test_only_reading_is_offered(server, method):
    status, headers, _ = ask(server, "/store", method=method)
    assert (status, headers["Allow"]) == (405, "GET")


def test_it_listens_on_loopback_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_refused(contents, server):
    with pytest.raises(RefusedError, match="cannot listen on port"):
        PageServer(contents, port=server.server_port)


# What is told


@pytest.mark.parametrize("target", ["/", "/explorer.css", "/explorer.js", "/store", "/nothing"])
def test_every_reply_binds_the_browser(server, target):
    _, headers, _ = ask(server, target)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Server"] == "m3di"


@pytest.mark.parametrize(
    "target",
    [
        "/nothing", "/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/explorer.js", "/explorer.html",
        "/explorer.js/", "/m3di-store.json", "/volumes.zarr/zarr.json", "/store/", "//evil.example/store",
        "/\\..\\x", "/store%00",
    ],
)  # fmt: skip
def test_there_is_nothing_else(server, target):
    status, error = refusal(server, target)
    assert (status, error["code"]) == (404, "E_MISSING")


@pytest.mark.parametrize(
    "target, status, words",
    [
        ("/volume?of=v9", 404, "no volume 'v9'"),
        ("/cube?of=v9", 404, "no volume 'v9'"),
        ("/cube?of=../../etc/passwd", 400, "not usable"),
        ("/cube?of=", 400, "not usable"),
        ("/cube?of=v0%00", 400, "not usable"),
        ("/cube", 400, "one 'of' is needed, not 0"),
        ("/cube?of=v0&of=v1", 400, "one 'of' is needed, not 2"),
        ("/picture?of=v0&plane=axial&slice=0", 404, "no axial slice 0"),
        ("/picture?of=v0&plane=axial&slice=99", 404, "no axial slice 99"),
        ("/picture?of=v0&plane=axial&slice=-1", 400, "whole number"),
        ("/picture?of=v0&plane=axial&slice=1e3", 400, "whole number"),
        ("/picture?of=v0&plane=axial&slice=%D9%A1", 400, "whole number"),
        ("/picture?of=v0&plane=oblique&slice=1", 400, "no plane is called 'oblique'"),
        ("/picture?of=v0&plane=../axial&slice=1", 400, "no plane is called"),
        ("/answer", 400, "one 'volume' is needed"),
        ("/answer?text=", 400, "is empty"),
        ("/answer?text=x&against=nothing", 400, "captions or images"),
        (f"/answer?text={'x' * 2001}", 400, "at most 2000 letters"),
        ("/answer?volume=v9", 404, "no volume 'v9'"),
        ("/answer?volume=v0&plane=axial&slice=0", 400, "has no row"),
        ("/answer?volume=v0&slice=1", 400, "one 'plane' is needed"),
        ("/answer?volume=v0&top=0", 400, "1 to 100 answers"),
        ("/answer?volume=v0&top=101", 400, "1 to 100 answers"),
        ("/answer?volume=v0&where=colour%3Dred", 400, "KEY=VALUE"),
        ("/answer?volume=v0&where=modality%3DPET", 400, "no volume has modality"),
        ("/curves?of=v9&volume=v0", 404, "no volume 'v9'"),
        (f"/answer?{'a=&' * 200}", 400, "not an address"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server, target, status, words):
    found, error = refusal(server, target)
    assert (found, words in error["message"]) == (status, True), error


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://[bad/ HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_no_traceback(server, request_):
    reply = raw(server, request_)
    assert b'{"error"' in reply and b"Traceback" not in reply and b"<" not in reply
    assert ask(server, "/store")[0] == 200


def test_a_bug_is_told_and_the_server_goes_on(server, monkeypatch):
    monkeypatch.setattr(Contents, "volume", lambda self, name: 1 / 0)
    status, error = refusal(server, "/volume?of=v0")
    assert (status, error["code"], error["message"]) == (500, "E_BUG", "ZeroDivisionError: division by zero")
    assert ask(server, "/store")[0] == 200


def test_answers_are_the_engines(server, contents):
    searcher = contents.searcher
    index = int(searcher.store.record("v1").valid_slices(2)[1])
    expected = searcher.by_slice("v1", "sagittal", index)
    answer = get(server, "answer", volume="v1", plane="sagittal", slice=index)
    assert answer["results"] == [asdict(hit) for hit in expected.results]
    assert answer["same_place"] == [asdict(hit) for hit in expected.same_place]
    assert answer["notes"] == list(expected.notes)
    similar = get(server, "answer", volume="v1", top=2, where=["modality=CT"])
    assert {hit["volume"] for hit in similar["results"]} == {"v2", "v3"}


def test_curves_are_cosines_of_all_slices(server, contents):
    searcher = contents.searcher
    index = int(searcher.store.record("v1").valid_slices(2)[1])
    curves = get(server, "curves", of="v2", volume="v1", plane="sagittal", slice=index)
    rows = places(searcher.store)
    expected = [[np.dot(rows["v1", 2, index], rows["v2", plane, position]) for position in slices]
                for plane, slices in enumerate(get(server, "volume", of="v2")["slices"])]  # fmt: skip
    for curve, cosines in zip(curves, expected, strict=True):
        assert curve == pytest.approx(cosines, abs=1e-3)
    whole = get(server, "curves", of="v2", volume="v1")
    best = get(server, "answer", volume="v1")["results"]
    (hit,) = [hit for hit in best if hit["volume"] == "v2"]
    plane = ("axial", "coronal", "sagittal").index(hit["plane"])
    slices = get(server, "volume", of="v2")["slices"][plane]
    assert max(map(max, whole)) == whole[plane][slices.index(hit["slice"])], "the hit is the peak of the curves"


def test_pixels_are_the_stores(server, contents):
    store = contents.searcher.store
    record = store.record("v2")
    cube, pictures = store.volumes.read("image", record.slot), store.volumes.read("coronal", record.slot)
    _, headers, body = ask(server, "/cube?of=v2")
    assert headers["Content-Type"] == "application/octet-stream"
    shown = np.frombuffer(body, np.uint8).reshape(cube.shape)
    assert np.abs(shown / 255 - cube.astype(float)).max() <= 0.5 / 255 + 1e-6
    index = store.recipe.positions[3]
    _, headers, body = ask(server, f"/picture?of=v2&plane=coronal&slice={index}")
    assert headers["Content-Type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), pictures[3])


def test_hostile_texts_travel_as_json_and_ascii(tmp_path):
    with Searcher(write_hostile_store(tmp_path / "store")) as searcher, serving(Contents(searcher)) as server:
        index = int(searcher.store.record("v0").valid_slices(0)[0])
        for target in ("/store", f"/answer?volume=v0&plane=axial&slice={index}", "/volume?of=v1"):
            _, headers, body = ask(server, target)
            assert headers["Content-Type"] == "application/json" and body.isascii()
            assert all(byte >= 0x20 for byte in body)
        answer = get(server, "answer", volume="v0", plane="axial", slice=index)
        assert {hit["caption"] for hit in answer["results"]} == set(HOSTILE)


def test_many_may_ask_at_once(server):
    index = get(server, "volume", of="v0")["slices"][0][0]
    targets = ["/store", "/cube?of=v1", f"/answer?volume=v0&plane=axial&slice={index}", "/volume?of=v3"] * 10
    found: list[int] = []
    threads = [threading.Thread(target=lambda t=target: found.append(ask(server, t)[0])) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * len(targets)


# The command


@pytest.fixture
def started(path):
    """The command, serving: its process and the address that it printed."""
    arguments = command("query", "--serve", "--store", path, "--volume", "v1", "--where", "modality=MR")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=path.parent
    ) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_serves_until_it_is_stopped(started, number, code):
    process, address = started
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}#\S+", address)
    url = urlsplit(address)
    assert parse_qs(url.fragment) == {
        "volume": ["v1"],
        "top": ["10"],
        "against": ["captions"],
        "where": ["modality=MR"],
    }
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
    connection.request("GET", f"/?{url.query}")
    assert connection.getresponse().status == 200  # and the connection stays open
    begun = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - begun < 5
    assert "Traceback" not in errors and "stopped by" in errors
    connection.close()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--serve", "--html", "x.html"], "--serve takes"),
        (["--serve", "--image", "x.png"], "--serve takes"),
        (["--serve", "--diagnose"], "--serve takes"),
        (["--serve", "liver", "--volume", "v0"], "ask with one of"),
        (["--serve", "--port", "70000"], "--port"),
    ],
)
def test_what_cannot_be_served_is_refused(path, arguments, words):
    done = subprocess.run(
        command("query", "--store", path, *arguments), capture_output=True, text=True, check=False, cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr
