"""The page over a store, live: a server on this machine's loopback address that answers whoever has its token.

Nothing but reading is offered: GET of a fixed list of addresses. A request must name this server as its host, which
a page elsewhere that had its own name resolve to this machine cannot, and carry the token, as a cookie or as
`Authorization: Bearer TOKEN`; the address that is printed carries it once, and its page comes with the cookie.
"""

import json
import secrets
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from m3di.query.answers import Wanted
from m3di.query.page.contents import Contents
from m3di.query.page.document import SCRIPTS, SERVED_POLICY, STYLES, served_document, static_file
from m3di.query.page.pixels import png
from m3di.query.question import Question
from m3di.query.searcher import AGAINST
from m3di.signals import stop_on_signals
from stores.errors import M3diError, RefusedError

ADDRESS: Final = "127.0.0.1"
MAX_TEXT: Final = 2000  # letters of a question
MAX_TOP: Final = 100
_PATIENCE_S: Final = 60  # for a connection that says nothing
_POLL_S: Final = 0.2

Parameters = Mapping[str, list[str]]


@dataclass(frozen=True)
class Reply:
    """What goes back: a body and its type."""

    body: bytes
    type: str
    status: HTTPStatus = HTTPStatus.OK


class Problem(Exception):  # noqa: N818
    """A request that is not answered: an error of the tree in stores.errors, as JSON.

    Args:
        status: HTTP's code for it.
        code: The error's.
        message: What is wrong.
        hint: What to do.
    """

    def __init__(self, status: HTTPStatus, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reply = _json({"error": {"code": code, "message": message, "hint": hint}}, status)


class PageServer(ThreadingHTTPServer):
    """The server, bound when it is made.

    Args:
        contents: What it shows; it is asked by one thread at a time.
        port: Where it listens; 0 for any that is free.

    Raises:
        RefusedError: E_CONFIG, when the port is taken or may not be used.
    """

    daemon_threads = True  # an open connection does not keep the process alive

    def __init__(self, contents: Contents, *, port: int = 0) -> None:
        self._contents: Contents | None = contents
        self._lock = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            message = f"cannot listen on port {port}: {error}"
            raise RefusedError("E_CONFIG", message, hint="leave --port out: a free one is found") from error
        self.token = secrets.token_urlsafe(32)
        self.cookie = f"m3di-{self.server_port}"  # browsers keep one set of cookies for all ports of an address
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    def server_bind(self) -> None:
        """Bind, without asking the network what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def server_close(self) -> None:
        """Stop listening, and let go of the store once nobody reads."""
        super().server_close()
        with self._lock:
            self._contents = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a connection broke; what goes wrong in an answer is told by the answer."""

    def url(self, asked: Mapping[str, Any]) -> str:
        """The address to open, with the token, and what is asked."""
        return f"http://{ADDRESS}:{self.server_port}/?token={self.token}#{urlencode(asked, doseq=True)}"

    def answer(self, path: str, parameters: Parameters) -> Reply:
        """Answer a request that may be answered.

        Raises:
            Problem: When there is nothing at the address, or the parameters are not what it takes.
            M3diError: What the engine says.
        """
        if path in _FILES:
            return _FILES[path]()
        if path not in _ASKED:
            raise Problem(HTTPStatus.NOT_FOUND, "E_MISSING", "there is nothing at this address")
        with self._lock:
            if self._contents is None:
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "E_STORE", "the server is stopping")
            return _ASKED[path](self._contents, parameters)


def serve(contents: Contents, *, port: int, asked: Mapping[str, Any], started: Callable[[str], None]) -> None:
    """Serve until a signal asks for a stop.

    Args:
        contents: What is shown.
        port: Where; 0 for any free one.
        asked: What the page begins with (`address_of`).
        started: Told the address, once connections are taken.

    Raises:
        RefusedError: E_CONFIG, when the port cannot be used.
        Interrupted: After INT or TERM.
    """
    with stop_on_signals() as stop, PageServer(contents, port=port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True)
        thread.start()
        started(server.url(asked))
        while stop.number is None:
            thread.join(_POLL_S)
        server.shutdown()
    stop.raise_if_set()


def address_of(question: Question, wanted: Wanted) -> dict[str, Any]:
    """A text or volume as a question, or none, and how it is answered, by the names that the page's address has."""
    asked = {"text": question.text, "volume": question.volume, "plane": question.plane, "slice": question.slice}
    every = {} if wanted.one_per_volume else {"all": 1}
    how = {"top": min(wanted.top, MAX_TOP), "against": wanted.against, "where": wanted.where}
    return {name: value for name, value in asked.items() if value is not None} | how | every


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_S
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client to acknowledge its headers

    def do_GET(self) -> None:
        try:
            reply = self._reply()
        except Problem as problem:
            reply = problem.reply
        except M3diError as error:
            reply = Problem(_status(error), error.code, error.message, error.hint).reply
        except Exception as error:  # the edge of the process: a bug is told, and the server goes on
            message = f"{type(error).__name__}: {error}"
            reply = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "E_BUG", message, "this is a bug in m3di").reply
        self._send(reply)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what http.server itself refuses: another method, or what is no request."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered"
        self._send(Problem(status, "E_CONFIG", message or status.phrase).reply)

    def version_string(self) -> str:
        return "m3di"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the first request's line holds the token."""

    def _reply(self) -> Reply:
        try:
            url = urlsplit(self.path)
            parameters = parse_qs(url.query, keep_blank_values=True, max_num_fields=100)
        except ValueError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, "E_CONFIG", f"not an address: {error}") from error
        named = self.headers.get_all("Host", [])
        if len(named) != 1 or named[0] not in self.server.hosts:
            raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "E_CONFIG", "this server is not called that")
        is_page = url.path == "/"
        if not is_page and self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Problem(HTTPStatus.FORBIDDEN, "E_CONFIG", "another page may not ask")
        if not self._has_token(parameters.get("token", []) if is_page else []):
            hint = "open the address that `m3di query --serve` printed"
            raise Problem(HTTPStatus.FORBIDDEN, "E_CONFIG", "the token is missing or wrong", hint)
        return self.server.answer(url.path, parameters)

    def _has_token(self, given: list[str]) -> bool:
        scheme, _, bearer = self.headers.get("Authorization", "").partition(" ")
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            cookie = None
        found = [*given, *([cookie.value] if cookie else []), *([bearer] if scheme == "Bearer" else [])]
        return any(secrets.compare_digest(one.encode(errors="replace"), self.server.token.encode()) for one in found)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = {
            "Content-Type": reply.type,
            "Content-Length": str(len(reply.body)),
            "Content-Security-Policy": SERVED_POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        if reply.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET"
        if reply.status is not HTTPStatus.OK:
            headers["Connection"] = "close"  # what else the request holds is not read
        elif reply.type.startswith("text/html"):
            headers["Set-Cookie"] = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)


def _status(error: M3diError) -> HTTPStatus:
    if not isinstance(error, RefusedError):
        return HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.NOT_FOUND if error.code == "E_MISSING" else HTTPStatus.BAD_REQUEST


# What there is


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(json.dumps(value, allow_nan=False).encode(), "application/json", status)


def _store(contents: Contents, parameters: Parameters) -> Reply:
    return _json(contents.store)


def _answer(contents: Contents, parameters: Parameters) -> Reply:
    return _json(contents.answer(_question(parameters), _wanted(parameters)))


def _volume(contents: Contents, parameters: Parameters) -> Reply:
    return _json(contents.volume(_one(parameters, "of")))


def _curves(contents: Contents, parameters: Parameters) -> Reply:
    return _json(contents.curves(_one(parameters, "of"), _question(parameters), _wanted(parameters)))


def _cube(contents: Contents, parameters: Parameters) -> Reply:
    return Reply(contents.cube(_one(parameters, "of")).tobytes(), "application/octet-stream")


def _picture(contents: Contents, parameters: Parameters) -> Reply:
    name, plane, index = _one(parameters, "of"), _one(parameters, "plane"), _whole(_one(parameters, "slice"))
    return Reply(png(contents.picture(name, plane, index)), "image/png")


def _file(name: str) -> Callable[[], Reply]:
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return lambda: Reply(static_file(name).encode(), f"{kind}; charset=utf-8")


_FILES: Final[Mapping[str, Callable[[], Reply]]] = {
    "/": lambda: Reply(served_document().encode(), "text/html; charset=utf-8"),
    **{f"/{name}": _file(name) for name in (*STYLES, *SCRIPTS)},
}
_ASKED: Final[Mapping[str, Callable[[Contents, Parameters], Reply]]] = {
    "/store": _store,
    "/answer": _answer,
    "/volume": _volume,
    "/curves": _curves,
    "/cube": _cube,
    "/picture": _picture,
}


def _question(parameters: Parameters) -> Question:
    if "text" in parameters:
        text = _one(parameters, "text")
        if len(text) > MAX_TEXT:
            raise Problem(HTTPStatus.BAD_REQUEST, "E_CONFIG", f"a question has at most {MAX_TEXT} letters")
        return Question(text=text)
    volume = _one(parameters, "volume")
    if "slice" not in parameters:
        return Question(volume=volume)
    return Question(volume=volume, plane=_one(parameters, "plane"), slice=_whole(_one(parameters, "slice")))


def _wanted(parameters: Parameters) -> Wanted:
    top = _whole(parameters.get("top", ["10"])[0])
    if not 1 <= top <= MAX_TOP:
        raise Problem(HTTPStatus.BAD_REQUEST, "E_CONFIG", f"1 to {MAX_TOP} answers can be shown, not {top}")
    against = parameters.get("against", ["captions"])[0]
    if against not in AGAINST:
        raise Problem(HTTPStatus.BAD_REQUEST, "E_CONFIG", f"a text is held against {' or '.join(AGAINST)}")
    conditions = tuple(parameters.get("where", []))
    return Wanted(top=top, one_per_volume="all" not in parameters, where=conditions, against=against)


def _one(parameters: Parameters, name: str) -> str:
    values = parameters.get(name, [])
    if len(values) != 1:
        raise Problem(HTTPStatus.BAD_REQUEST, "E_CONFIG", f"one {name!r} is needed, not {len(values)}")
    return values[0]


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise Problem(HTTPStatus.BAD_REQUEST, "E_CONFIG", "a whole number is needed")
    return int(text)
