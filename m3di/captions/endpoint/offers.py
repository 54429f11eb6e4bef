"""Optional parameters of a request: begun with what is wanted, lowered when a server will not take one."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

_FORMAT: Final = re.compile(r"response_?format|json_?schema|json_?object|json mode|structured output|grammar|guided")
_LIMIT: Final = re.compile(r"max_(?:completion_)?tokens")
_TEMPERATURE: Final = re.compile(r"temperature")
_LOOKED_AT: Final = 400  # characters of an error: behind them some servers repeat the whole request


@dataclass(frozen=True)
class Offer:
    """Which of the wanted parameters are sent, and under which name.

    Attributes:
        format: `json_schema`, `json_object`, or empty for none.
        limit: `max_tokens`, `max_completion_tokens`, or empty for none.
        temperature: Whether one is sent.
    """

    format: str = "json_schema"
    limit: str = "max_tokens"
    temperature: bool = True

    def parameters(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What of the wanted parameters is sent."""
        sent: dict[str, Any] = {}
        if self.format:
            given = wanted["response_format"]
            sent["response_format"] = given if self.format == given["type"] else {"type": self.format}
        if self.limit:
            sent[self.limit] = wanted["max_tokens"]
        if self.temperature:
            sent["temperature"] = wanted["temperature"]
        return sent

    def without(self, parameter: str, words: str) -> "Offer | None":
        """The next lower offer after an error that names a parameter; None when it names none that was sent."""
        text = (parameter or words[:_LOOKED_AT]).lower()
        if self.limit and _LIMIT.search(text):
            return replace(self, limit="max_completion_tokens" if self.limit == "max_tokens" else "")
        if self.format and _FORMAT.search(text):
            return replace(self, format="json_object" if self.format == "json_schema" else "")
        if self.temperature and _TEMPERATURE.search(text):
            return replace(self, temperature=False)
        return None


BARE: Final = Offer("", "", temperature=False)


class Negotiation:
    """The offer of a run, shared by its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._proven = False
        self.offer = Offer()

    def accept(self, offer: Offer) -> None:
        """The server took an offer."""
        with self._lock:
            self._proven = self._proven or offer == self.offer

    def lower(self, offer: Offer, parameter: str, words: str) -> bool:
        """Act on a rejected offer; returns whether it is worth asking again.

        An error that names no parameter is put down to one only as long as the offer has never been taken.
        """
        with self._lock:
            if offer != self.offer:
                return True  # another thread has lowered it in the meantime
            lower = offer.without(parameter, words)
            if lower is None and not self._proven and offer != BARE:
                lower = BARE
            if lower is None:
                return False
            self.offer, self._proven = lower, False
            return True
