"""One request to a chat-completions server, through the `openai` client, and what its failures mean."""

import importlib
import importlib.util
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any, Final

from m3di.captions.endpoint.locality import api_key, check_place
from m3di.captions.endpoint.questions import Question
from m3di.captions.endpoint.replies import Reply, reply_of, speaks_of_policy
from m3di.config import EndpointConfig
from stores.errors import RefusedError

_WORDS: Final = 240  # characters of a server's error that are shown
_QUOTA: Final = re.compile(r"insufficient[_ ]quota|exceeded your current quota|billing|credit balance", re.IGNORECASE)
_REFUSING: Final = frozenset({400, 403, 422})  # statuses by which servers also say that their policy is against it
_SLOW: Final = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})


class Kind(Enum):
    """What a failed request means."""

    CONNECTION = auto()  # no server there
    SERVER = auto()  # it failed, or took too long: perhaps because of this picture
    RATE = auto()  # too many requests: later
    QUOTA = auto()  # nothing left to spend
    DENIED = auto()  # key, model or address are wrong
    REQUEST = auto()  # it will not take this request: its parameters, or its picture


class Failure(Exception):  # noqa: N818
    """A failed request.

    Args:
        kind: What it means.
        words: The server's, on one line, without the key.
        parameter: Which parameter it names.
        wait_s: How long it asks to wait; None when it does not.
    """

    def __init__(self, kind: Kind, words: str, *, parameter: str = "", wait_s: float | None = None) -> None:
        super().__init__(words)
        self.kind = kind
        self.words = words
        self.parameter = parameter
        self.wait_s = wait_s


class Client:
    """An open client; ask from many threads.

    Args:
        openai: The `openai` module.
        client: Its client.
        model: Which model to ask.
        key: What error messages must not repeat.
    """

    def __init__(self, openai: Any, client: Any, *, model: str, key: str) -> None:
        self._openai = openai
        self._client = client
        self._model = model
        self._key = key

    def ask(self, question: Question, parameters: Mapping[str, Any]) -> Reply:
        """Send one request, once.

        Raises:
            Failure: When there is no answer.
        """
        try:
            completion = self._client.chat.completions.create(
                model=self._model, messages=question.messages, **parameters
            )
        except self._openai.APIStatusError as error:
            return self._policy(error)
        except self._openai.APITimeoutError:
            raise Failure(Kind.SERVER, "no answer in time (captions.endpoint.timeout_s)") from None
        except self._openai.APIConnectionError as error:
            raise Failure(Kind.CONNECTION, self._line(str(error.__cause__ or error))) from None
        except (self._openai.OpenAIError, ValueError) as error:  # the latter: a body that is not JSON
            raise Failure(Kind.SERVER, self._line(f"unreadable answer: {error}")) from None
        reply = reply_of(completion.model_dump(mode="json", warnings=False)) if _is_model(completion) else None
        if reply is None:
            words = getattr(completion, "error", None) or "an answer that is no chat completion"
            raise Failure(Kind.SERVER, self._line(str(words)))
        return reply

    def _policy(self, error: Any) -> Reply:
        """The refusal in an error status, which is an answer; any other error is raised as what it means."""
        words = self._line(_message(error))
        said = f"{error.code or ''} {words}"
        if error.status_code in _REFUSING and speaks_of_policy(said):
            return Reply(refusal=words)
        kind = _kind(int(error.status_code), said)
        if 300 <= error.status_code < 400:
            words = f"redirects, which is not followed: {words}"
        wait = wait_of(error.response.headers)
        raise Failure(kind, f"{error.status_code} {words}", parameter=str(error.param or ""), wait_s=wait) from None

    def _line(self, text: str) -> str:
        return one_line(text.replace(self._key, "***") if self._key != "none" else text)


@contextmanager
def open_client(endpoint: EndpointConfig) -> Iterator[Client]:
    """A client for the server of some settings, closed in the end; sends nothing yet.

    Follows no redirects, retries nothing by itself, takes no proxy from the environment for this machine, and adds
    no account from the environment to the headers.

    Raises:
        RefusedError: E_NETWORK or E_CONFIG, when the server may not be asked; E_MISSING without the `openai` package.
    """
    place = check_place(endpoint)
    require_openai()
    openai = importlib.import_module("openai")
    key = api_key(endpoint, place)
    http = openai.DefaultHttpxClient(
        timeout=endpoint.timeout_s, follow_redirects=False, trust_env=not place.local,
    )  # fmt: skip
    unsent = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
    with openai.OpenAI(
        base_url=endpoint.url, api_key=key, max_retries=0, timeout=endpoint.timeout_s, http_client=http,
        default_headers=unsent,
    ) as client:  # fmt: skip
        yield Client(openai, client, model=endpoint.model, key=key)


def require_openai() -> None:
    """Refuse when the `openai` package is not installed.

    Raises:
        RefusedError: E_MISSING.
    """
    if importlib.util.find_spec("openai") is None:
        raise RefusedError("E_MISSING", "no `openai` package", hint="pip install 'm3di[endpoint]'")


def one_line(text: str) -> str:
    """A server's words, printable and short."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _WORDS else f"{line[:_WORDS]}..."


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date; None without one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            seconds = _until(text)
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return math.nan


def _kind(status: int, said: str) -> Kind:
    if status == 429:
        return Kind.QUOTA if _QUOTA.search(said) else Kind.RATE
    if status in (401, 403, 404) or 300 <= status < 400:
        return Kind.DENIED
    if status == 402:
        return Kind.QUOTA
    return Kind.SERVER if status in _SLOW or status >= 500 else Kind.REQUEST


def _message(error: Any) -> str:
    """What a server says in an error, whichever of the usual shapes it has."""
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("message") or body.get("error") or body.get("detail")
        inner = inner.get("message") if isinstance(inner, Mapping) else inner
        if isinstance(inner, str) and inner:
            return inner
    return str(error.message)


def _is_model(completion: object) -> bool:
    return hasattr(completion, "model_dump")
