"""Looking into a store: slices and volumes that are near to a text, a slice, an image, a volume or a scan.

`Searcher` is the engine: opened once on a store, it answers questions for as long as it stays open. It needs no torch
for questions by text with the embedded teacher, by slice and by volume, so that the first answer comes soon.
"""

from m3di.query.answers import Answer, Hit, Wanted
from m3di.query.searcher import Searcher

__all__ = ["Answer", "Hit", "Searcher", "Wanted"]
