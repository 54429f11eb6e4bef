"""How much of a text a teacher reads, from its tokenizer alone: the weights are not loaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3di.teachers.folder import read_tokenizer

_BATCH = 256


def over_context(folder: Path, texts: Sequence[str]) -> Iterator[str]:
    """The texts that have more tokens than a teacher's context.

    Args:
        folder: The teacher's.
        texts: Any number.

    Raises:
        RefusedError: E_UNSAFE_WEIGHTS, when the tokenizer asks to run code.
    """
    tokenizer = read_tokenizer(folder)
    context = int(tokenizer.context_length)
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        tokens = tokenizer(batch, context_length=context + 1)
        # A text that fits leaves at least one place of a context that is one longer to the padding.
        full = tokens[:, -1] != _padding(tokenizer)
        yield from (text for text, over in zip(batch, full.tolist(), strict=True) if over)


def _padding(tokenizer: Any) -> int:
    """The token that fills up: open_clip's own tokenizer uses 0, others say so."""
    inner = getattr(tokenizer, "tokenizer", None)
    return 0 if inner is None else int(inner.pad_token_id)
