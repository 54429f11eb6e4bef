"""The captioner that shows every Nth slice to a vision-language model behind a chat-completions server.

Imports neither torch nor `openai` before the first request. A caption is the slice's own place, as the describer says
it, and then the model's words about the nearest slice that was sent; so every caption has the same form, and the
place comes first, where no text encoder cuts it off.
"""

from collections.abc import Sequence
from typing import Any

from m3di.captions.captioner import (
    DESCRIBED,
    MODEL,
    NEIGHBOUR,
    Captioner,
    ShownPlane,
    ShownVolume,
    Written,
    opening_of,
)
from m3di.captions.endpoint import images, prompts, replies
from m3di.captions.endpoint.asking import Asker
from m3di.captions.endpoint.client import require_openai
from m3di.captions.endpoint.locality import api_key, check_place, warnings_of
from m3di.captions.endpoint.questions import Wordings, anchors, questions, wanted
from m3di.captions.endpoint.replies import MemoryReplies, Replies, Reply, caption_of
from m3di.config import EndpointConfig
from m3di.events import Check, Report, go_on
from stores.errors import RefusedError
from stores.recipe import digest_of
from stores.records import VolumeRecord

VERSION = 1  # raise whenever the same answers would be made into other captions


class EndpointCaptioner:
    """Captions by a server.

    Args:
        endpoint: The server and how it is asked.
        replies: Where its answers are kept; None keeps them in memory.
        describer: Says where each slice lies, in its first sentence, and all about slices that the model refused.
        backoff_s: First wait after a failure of the server; it doubles.

    Raises:
        RefusedError: E_CONFIG, when no model is named, or money is capped without a price.
    """

    def __init__(
        self, endpoint: EndpointConfig, replies: Replies | None, *, describer: Captioner, backoff_s: float = 0.5
    ) -> None:
        if not endpoint.model:
            hint = "name the server's model: --set captions.endpoint.model=NAME"
            raise RefusedError("E_CONFIG", "captions.endpoint.model is empty", hint=hint)
        self._endpoint = endpoint
        self._describer = describer
        self._asker = Asker(endpoint, MemoryReplies() if replies is None else replies, backoff_s=backoff_s)
        self._check: Check = go_on

    @property
    def name(self) -> str:
        """As in `--captioner`."""
        return "endpoint"

    @property
    def fingerprint(self) -> str:
        """Hex digest of model, parameters, stride, versions and describer; not of address, threads or caps."""
        versions = (VERSION, images.VERSION, prompts.VERSION, replies.VERSION)
        endpoint = self._endpoint
        return digest_of({
            "captioner": "endpoint", "versions": versions, "model": endpoint.model, "parameters": wanted(endpoint),
            "every": endpoint.every, "image_px": endpoint.image_px, "max_words": endpoint.max_words,
            "describer": self._describer.fingerprint,
        })  # fmt: skip

    def of_volume(self, volume: str) -> str:
        """Nothing beside what is shown."""
        return ""

    def require_permission(self) -> None:
        """Refuse a server that may not be asked; a build does so before its long part.

        Raises:
            RefusedError: E_NETWORK or E_CONFIG, when the server may not be asked; E_MISSING without `openai`.
        """
        api_key(self._endpoint, check_place(self._endpoint))
        require_openai()

    def begin(self, records: Sequence[VolumeRecord], *, report: Report, check: Check) -> None:
        """Refuse a server that may not be asked, and warn of what leaves the machine.

        Args:
            records: The volumes that will be captioned.
            report: Gets the warnings.
            check: Called while requests are under way; may raise to stop.

        Raises:
            RefusedError: As `require_permission`.
        """
        self._check = check
        if not records:
            return
        self.require_permission()
        for code, message in warnings_of(self._endpoint, records):
            report("warning", code=code, message=message)

    def ask(self, asked: Sequence[Wordings]) -> dict[str, Reply | None]:
        """Answers to questions, kept ones included; see `Asker.ask`."""
        return self._asker.ask(asked, check=self._check)

    def caption(self, shown: ShownVolume) -> Written:
        """One caption a slice.

        Raises:
            ResourceError: E_NETWORK, when a cap is reached or the server cannot go on; what was answered is kept.
            RefusedError: E_NETWORK or E_CONFIG, when the server does not take requests as they are.
        """
        described = self._describer.caption(shown)
        asked = [questions(plane, self._endpoint) for plane in shown.planes]
        answers = self.ask([wordings for plane in asked for wordings in plane])
        texts, sources = zip(
            *(
                self._plane(plane, own, [answers[wordings[0].key] for wordings in sent])
                for plane, own, sent in zip(shown.planes, described.texts, asked, strict=True)
            ),
            strict=True,
        )
        return Written((texts[0], texts[1], texts[2]), (sources[0], sources[1], sources[2]), described.facts)

    def summary(self) -> dict[str, Any]:
        """What was asked and answered in this run, JSON-ready."""
        return self._asker.summary()

    def _plane(
        self, plane: ShownPlane, described: Sequence[str], answers: Sequence[Reply | None]
    ) -> tuple[tuple[str, ...], str]:
        """Texts and source letters of a plane, from the answers about its anchors."""
        sent = anchors(len(plane.slices), self._endpoint.every)
        texts, letters = [], []
        for index, own in enumerate(described):
            nearest = min(range(len(sent)), key=lambda anchor: abs(sent[anchor] - index))
            reply = answers[nearest]
            if reply is None:
                texts.append(own)
                letters.append(DESCRIBED)
                continue
            texts.append(f"{opening_of(own)} {caption_of(reply, max_words=self._endpoint.max_words)}")
            letters.append(MODEL if sent[nearest] == index else NEIGHBOUR)
        return tuple(texts), "".join(letters)
