"""What captioning a store by a server would send, take and cost: `m3di captions plan`. Asks only as a pilot."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from m3di.captions.endpoint import images, prompts
from m3di.captions.endpoint.asking import kept_reply
from m3di.captions.endpoint.captioner import EndpointCaptioner
from m3di.captions.endpoint.limits import Tokens, estimated, used
from m3di.captions.endpoint.locality import place_of, warnings_of
from m3di.captions.endpoint.questions import Question, Wordings, anchors, questions
from m3di.captions.endpoint.replies import Reply
from m3di.captions.identity import captions_of
from m3di.captions.registry import captioner_of
from m3di.captions.stage import show
from m3di.config import Config, EndpointConfig
from m3di.events import ignore
from m3di.signals import stop_on_signals
from m3di.storage import open_for_writing
from stores import Store
from stores.errors import RefusedError
from stores.records import VolumeRecord

_RULE: Final = "by rule: a token for 4 characters, 85 + 170 a tile of 512 pixels, the longest reply"


def plan_captions(path: Path, config: Config) -> dict[str, Any]:
    """Say what `captions run` would send; with `captions.endpoint.pilot`, ask about so many slices first.

    The pilot's answers are kept, and are part of the run that follows.

    Args:
        path: The store.
        config: All settings, with `captions.captioner = "endpoint"`.

    Returns:
        A JSON-ready summary: counts, what leaves the machine, warnings, projected tokens and cost.

    Raises:
        RefusedError: E_CONFIG, when the captioner is another; with a pilot, as `EndpointCaptioner.begin`.
        ResourceError: E_NETWORK, when the pilot reaches a cap, or the server cannot go on.
    """
    pilot = config.captions.endpoint.pilot
    opened = open_for_writing(path, config.storage) if pilot else Store(path)
    with opened as store, stop_on_signals() as stop:
        captioner = captioner_of(config, store)
        if not isinstance(captioner, EndpointCaptioner):
            hint = "plan is for --captioner endpoint; the others send nothing"
            raise RefusedError("E_CONFIG", f"captions.captioner={captioner.name} asks no server", hint=hint)
        records = stale_volumes(store, captioner, config)
        warnings = [f"{code} {message}" for code, message in warnings_of(config.captions.endpoint, records)]
        if pilot:
            captioner.begin(records, report=ignore, check=stop.raise_if_set)
            _ask_some(store, captioner, records, config.captions.endpoint)
        summary = _Projection(store, records, config.captions.endpoint).summary()
        return {**summary, "warnings": warnings, "pilot": captioner.summary() if pilot else {}}


def stale_volumes(store: Store, captioner: EndpointCaptioner, config: Config) -> list[VolumeRecord]:
    """The volumes whose captions by the server are not up to date."""
    return [record for record in store.records() if captions_of(store, captioner, record, config, {}) is None]


def anchor_questions(store: Store, record: VolumeRecord, endpoint: EndpointConfig) -> Iterator[Wordings]:
    """What is asked about a volume, in the order of planes and slices."""
    for plane in show(store, record, {}).planes:
        yield from questions(plane, endpoint)


def next_question(store: Store, wordings: Wordings) -> Question | None:
    """The first wording without an answer, of those that are needed; None when nothing is to be asked."""
    if kept_reply(store, wordings) is not None:
        return None
    return next(question for question in wordings if store.reply(question.key) is None)


def _ask_some(
    store: Store, captioner: EndpointCaptioner, records: list[VolumeRecord], endpoint: EndpointConfig
) -> None:
    """Ask the pilot's questions: of volumes spread over the store, and slices spread over each."""
    left = endpoint.pilot
    for number, record in enumerate(_spread(records, left)):
        missing = [asked for asked in anchor_questions(store, record, endpoint) if next_question(store, asked)]
        share = -(-left // (min(len(records), endpoint.pilot) - number))
        chosen = _spread(missing, share)
        captioner.ask(chosen)
        left -= len(chosen)
        if not left:
            return


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` items, at even distances."""
    if len(items) <= count:
        return items
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


class _Projection:
    """Counts what is to be sent, and projects from the answers that are kept.

    Args:
        store: The store.
        records: Its volumes whose captions are not up to date.
        endpoint: The server, and the prices.
    """

    def __init__(self, store: Store, records: list[VolumeRecord], endpoint: EndpointConfig) -> None:
        self._store = store
        self._records = records
        self._endpoint = endpoint
        self._answered = self._repeated = self._slices = self._bytes = 0
        self._known = self._ruled = Tokens()
        self._num_known = 0
        self._sent: dict[str, str] = {}  # prompts by key: slices that are equal to the last pixel are one request
        stale = {record.volume for record in records}
        for record in store.records():
            counts = [len(record.valid_slices(plane)) for plane in range(3)]
            self._slices += sum(counts)
            if record.volume not in stale:
                self._answered += sum(len(anchors(count, endpoint.every)) for count in counts)
        for record in records:
            for wordings in anchor_questions(store, record, endpoint):
                self._add(wordings)

    def _add(self, wordings: Wordings) -> None:
        for question in wordings:
            kept = self._store.reply(question.key)
            if kept is not None:
                self._known += used(Reply.from_dict(kept), question, self._endpoint)
                self._num_known += 1
        following = next_question(self._store, wordings)
        if following is None:
            self._answered += 1
        elif following.key in self._sent:
            self._repeated += 1
        else:
            self._sent[following.key] = following.prompt
            self._bytes += len(images.png(following.image))
            self._ruled += estimated(following, self._endpoint)

    def summary(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        requests = len(self._sent)
        tokens = self._ruled
        if self._num_known:
            tokens = self._known.scaled(requests / self._num_known)
        return {
            "model": self._endpoint.model,
            "volumes": len(self._store.records()),
            "volumes_to_caption": len(self._records),
            "slices": self._slices,
            "anchors": self._answered + self._repeated + requests,
            "answered": self._answered,
            "requests": requests,
            "equal_to_another": self._repeated,
            "leaves": self._leaves(),
            "tokens": asdict(tokens),
            "tokens_from": f"the mean of {self._num_known} answers" if self._num_known else _RULE,
            "cost": round(tokens.cost(self._endpoint), 4),
        }

    def _leaves(self) -> dict[str, Any]:
        """What would be sent where."""
        place = place_of(self._endpoint.url)
        return {
            "host": place.host,
            "this_machine": place.local,
            "allowed": place.local or self._endpoint.allow_host.lower() == place.host,
            "pictures": len(self._sent),
            "picture_bytes": self._bytes,
            "facts": list(prompts.FACTS),
            "prompt": next(iter(self._sent.values()), ""),
        }
