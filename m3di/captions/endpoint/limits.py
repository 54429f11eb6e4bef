"""What a run may use: caps on requests, tokens and money, and the point at which a failing server is left alone.

Caps are per run. Answers that were kept by an earlier run cost nothing and count for nothing.
"""

import math
import threading
import time
from dataclasses import dataclass
from typing import Final

from m3di.captions.endpoint.questions import Question, reply_limit
from m3di.captions.endpoint.replies import Reply
from m3di.config import EndpointConfig
from stores.errors import RefusedError, ResourceError

MAX_FAILURES: Final = 8  # in a row, over at least MIN_IMAGES pictures: then it is the server, not a picture
MIN_IMAGES: Final = 3


@dataclass(frozen=True)
class Tokens:
    """Tokens of one or many requests."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def scaled(self, factor: float) -> "Tokens":
        """So many times as many, rounded up."""
        return Tokens(math.ceil(self.prompt * factor), math.ceil(self.completion * factor))

    def cost(self, endpoint: EndpointConfig) -> float:
        """At the user's prices."""
        return (self.prompt * endpoint.price_input + self.completion * endpoint.price_output) / 1e6


def estimated(question: Question, endpoint: EndpointConfig) -> Tokens:
    """Tokens of a request by rule: a token for 4 characters, 85 + 170 a tile of 512 pixels, the longest reply."""
    height, width = question.image.shape
    tiles = math.ceil(height / 512) * math.ceil(width / 512)
    return Tokens(math.ceil(len(question.prompt) / 4) + 85 + 170 * tiles, reply_limit(endpoint))


def used(reply: Reply, question: Question, endpoint: EndpointConfig) -> Tokens:
    """Tokens of an answered request, as the server counted; by rule where it did not."""
    rule = estimated(question, endpoint)
    written = math.ceil(len(reply.content) / 4)
    return Tokens(
        rule.prompt if reply.prompt_tokens is None else reply.prompt_tokens,
        written if reply.completion_tokens is None else reply.completion_tokens,
    )


class Meter:
    """Counts requests and tokens of a run, from many threads, and holds them below the caps.

    Args:
        endpoint: The caps and prices.

    Raises:
        RefusedError: E_CONFIG, when money is capped and no price is given.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        if endpoint.max_cost is not None and not (endpoint.price_input or endpoint.price_output):
            hint = "set captions.endpoint.price_input and price_output, per million tokens"
            raise RefusedError("E_CONFIG", "captions.endpoint.max_cost needs prices", hint=hint)
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._open = Tokens()  # of requests that are under way, by rule
        self.requests = 0
        self.tokens = Tokens()

    def begin(self, question: Question) -> Tokens:
        """Count a request that is about to be sent; returns what is set aside for it.

        Raises:
            ResourceError: E_NETWORK, when it could pass a cap.
        """
        reserve = estimated(question, self._endpoint)
        with self._lock:
            ahead = self.tokens + self._open + reserve
            self._check("max_requests", self.requests + 1, self._endpoint.max_requests)
            self._check("max_tokens_total", ahead.prompt + ahead.completion, self._endpoint.max_tokens_total)
            self._check("max_cost", ahead.cost(self._endpoint), self._endpoint.max_cost)
            self.requests += 1
            self._open += reserve
        return reserve

    def end(self, reserve: Tokens, spent: Tokens | None) -> None:
        """Count what a request took; None when it failed."""
        with self._lock:
            self._open += Tokens(-reserve.prompt, -reserve.completion)
            self.tokens += spent or Tokens()

    def _check(self, name: str, value: int | float, cap: int | float | None) -> None:
        if cap is None or value <= cap:
            return
        hint = f"everything answered is kept; run again for as much again, or --set captions.endpoint.{name}=N"
        raise ResourceError("E_NETWORK", f"the next request would pass captions.endpoint.{name}={cap:g}", hint=hint)


class Breaker:
    """Tells a picture that a server cannot take from a server that takes nothing.

    Args:
        max_poison: After how many pictures given up to stop.
        patience_s: How long a server may fail on everything, as one does that starts anew.
    """

    def __init__(self, max_poison: int, *, patience_s: float) -> None:
        self._max_poison = max_poison
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._failures = 0
        self._since = 0.0
        self._failed: set[str] = set()
        self.answers = 0
        self.poison = 0

    def succeed(self) -> None:
        """The server answered."""
        with self._lock:
            self.answers += 1
            self._failures = 0
            self._failed.clear()

    def fail(self, key: str, words: str) -> None:
        """The server failed on a picture.

        Raises:
            ResourceError: E_NETWORK, when it has failed on too many in a row for too long.
        """
        with self._lock:
            if self._failures == 0:
                self._since = time.monotonic()
            self._failures += 1
            self._failed.add(key)
            if time.monotonic() - self._since >= self._patience_s:
                self._stop_if_down(words)

    def give_up(self, words: str) -> None:
        """A picture goes without the model.

        Raises:
            ResourceError: E_NETWORK, when there are too many of them, or the server has failed on everything since.
        """
        with self._lock:
            self._stop_if_down(words)
            self.poison += 1
            if self.poison > self._max_poison:
                message = f"the server failed on more than captions.endpoint.max_poison={self._max_poison} pictures"
                hint = f"its last words: {words}; everything answered is kept, and a rerun continues"
                raise ResourceError("E_NETWORK", message, hint=hint)

    def _stop_if_down(self, words: str) -> None:
        if self._failures >= MAX_FAILURES and len(self._failed) >= MIN_IMAGES:
            message = f"the server failed {self._failures} times in a row: {words}"
            hint = "look at the server's log; everything answered is kept, and a rerun continues"
            raise ResourceError("E_NETWORK", message, hint=hint)
