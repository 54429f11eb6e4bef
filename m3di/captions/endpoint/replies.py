"""What a server answered: kept as it came, and read as a caption or as a refusal. Needs no network."""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, runtime_checkable

VERSION: Final = 1  # raise whenever the same answer would be read otherwise

_MAX_KEPT: Final = 8000  # characters of an answer: a caption has some hundred
_THINKING: Final = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE: Final = re.compile(r"```[a-zA-Z]*")
_CAPTION: Final = re.compile(r'"caption"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)  # also of an answer that was cut
_LABEL: Final = re.compile(r"^(?:caption|description|answer)\s*:\s*", re.IGNORECASE)
_MARKUP: Final = re.compile(r"\*\*|__|`|^#+\s*|(?<=\s)#+\s+")
_REFUSAL: Final = re.compile(
    r"^(?:(?:i'?m|i am) (?:very |so |really )?sorry|sorry\b|(?:my )?apologies|i apologi[sz]e"
    r"|(?:unfortunately|as an ai[^.]{0,60}),? i\b"
    r"|i(?: (?:cannot|can't|can not|won't|will not|must decline)|(?:'m| am) (?:unable|not able)|'m not able)\b)",
    re.IGNORECASE,
)
_POLICY: Final = re.compile(
    r"content[ _]?(?:policy|filter|management)|safety|moderation|responsible ?ai", re.IGNORECASE
)


@runtime_checkable
class Replies(Protocol):
    """Where answers are kept by the digest of what was asked; a `stores.Store` is one."""

    def reply(self, key: str) -> dict[str, Any] | None:
        """The answer to a question, None when there is none."""

    def commit_reply(self, key: str, reply: Mapping[str, Any]) -> None:
        """Make an answer durable; called from threads."""


class MemoryReplies:
    """Answers kept for as long as the process lives: for where there is no store yet."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Any]] = {}

    def reply(self, key: str) -> dict[str, Any] | None:
        """The answer to a question, None when there is none."""
        return self._kept.get(key)

    def commit_reply(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep an answer."""
        self._kept[key] = dict(reply)


@dataclass(frozen=True)
class Reply:
    """One answer of a server.

    Attributes:
        content: The text.
        refusal: The message's `refusal`, or the server's words when it would not answer by its policy.
        finish: `finish_reason`.
        prompt_tokens: As the server counted; None when it did not.
        completion_tokens: As the server counted; None when it did not.
    """

    content: str = ""
    refusal: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Reply":
        """Rebuild an answer from `to_dict`."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})

    @property
    def refused(self) -> str:
        """By which signal the model refused: `field`, `filter`, `empty` or `sentence`; empty when it answered."""
        if self.refusal:
            return "field"
        if self.finish == "content_filter":
            return "filter"
        text = _text_of(self.content)
        if not any(char.isalpha() for char in text):
            return "empty"
        return "sentence" if _REFUSAL.match(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) else ""


def reply_of(completion: Mapping[str, Any]) -> Reply | None:
    """Read a chat completion as it came over the wire or in a batch file; None when it is none."""
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return None
    message = choices[0].get("message")
    if not isinstance(message, Mapping):
        return None
    usage = completion.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return Reply(
        content=_kept(_joined(message.get("content"))),
        refusal=_kept(_joined(message.get("refusal"))),
        finish=str(choices[0].get("finish_reason") or ""),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def speaks_of_policy(words: str) -> bool:
    """Whether an error's words say that a policy is against answering: a refusal, and no fault."""
    return _POLICY.search(words) is not None


def caption_of(reply: Reply, *, max_words: int) -> str:
    """The caption in an answer: JSON or plain, one line, no control characters or markup, cut after a sentence."""
    return _shortened(_text_of(reply.content), max_words)


def _text_of(content: str) -> str:
    text = _FENCE.sub(" ", _THINKING.sub(" ", content)).strip()
    text = _in_json(text)
    printable = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text)
    plain = " ".join(_MARKUP.sub("", printable).split())
    return _LABEL.sub("", plain.strip("\"' ")).strip("\"' ")


def _in_json(text: str) -> str:
    """The caption of a JSON answer, also of one that was cut or has words around it; a plain text as it is."""
    if "{" not in text:
        return text
    try:
        return _field(json.loads(text[text.index("{") : text.rindex("}") + 1]))
    except ValueError:
        cut = _CAPTION.search(text)
    if cut is None:
        return text
    try:
        return str(json.loads(f'"{cut[1]}"', strict=False))
    except ValueError:
        return cut[1]


def _field(value: Any) -> str:
    """`caption`, or the only text, of a JSON object."""
    if not isinstance(value, dict):
        return ""
    texts = {str(name).lower(): text for name, text in value.items() if isinstance(text, str)}
    return texts.get("caption", next(iter(texts.values())) if len(texts) == 1 else "")


def _shortened(text: str, max_words: int) -> str:
    """The leading sentences that fit; the head of the first one when not even that does."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        words = sentence.split()
        if len(kept) + len(words) > max_words:
            kept = kept or words[:max_words]
            break
        kept += words
    line = " ".join(kept).rstrip(" ,;:-")
    return line if not line or line[-1] in ".!?" else f"{line}."


def _joined(content: object) -> str:
    """Text of a message, which some servers give as a list of parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _kept(text: str) -> str:
    return text[:_MAX_KEPT].encode("utf-8", "replace").decode()


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None
