"""What stands beside an answer, so that nobody trusts a weak teacher too much."""

from collections.abc import Iterator, Mapping
from typing import Any


def card_notes(facts: Mapping[str, Any]) -> Iterator[str]:
    """How often a teacher was right on held-out volumes, by the card in its facts."""
    if facts.get("random"):
        yield "this teacher was never trained: its answers mean nothing"
    after = (facts.get("card") or {}).get("after")
    if not after:
        yield "how often this teacher is right was never measured"
        return
    found, chance, items = after["text_to_image"]["recall@10"], after["chance"]["recall@10"], after["items"]
    yield (
        f"this teacher has the right slice among its first 10 for {found:.0%} of {items} held-out captions "
        f"(chance {chance:.1%})"
    )
