"""How much of a store is described, and how much of its cubes shows nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from m3di.inspect import blank_shares
from stores import Store
from stores.geometry import PLANES
from stores.records import VolumeRecord


@dataclass(frozen=True)
class Coverage:
    """Shares over all volumes.

    Attributes:
        described: Slices with a caption that is not empty.
        distinct: Distinct captions for each caption.
        blank: Per plane, positions on the stride that have no slice: padding, air, or outside the scan.
    """

    described: float
    distinct: float
    blank: dict[str, float]


def coverage(store: Store, records: Sequence[VolumeRecord], captioner: str) -> Coverage:
    """Count captions and blank slices."""
    slices, described = 0, 0
    texts: set[str] = set()
    for record in records:
        captions = store.captions(captioner, record.volume)
        for plane in range(len(PLANES)):
            slices += len(record.valid_slices(plane))
            own = [text for text in captions.texts[plane] if text.strip()] if captions else []
            described += len(own)
            texts.update(own)
    return Coverage(
        described=described / max(slices, 1),
        distinct=len(texts) / max(described, 1),
        blank=blank_shares(records, store.recipe),
    )
