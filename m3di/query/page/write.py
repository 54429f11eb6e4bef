"""One answer, or what `--diagnose` found, as a file that needs nothing else."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from m3di.query.answers import Answer, Wanted
from m3di.query.page.contents import Contents, answer_view
from m3di.query.page.document import filed_document
from m3di.query.page.pixels import halved, packed
from m3di.query.question import Question, ask
from m3di.query.searcher import Searcher
from m3di.report import Page, Section, Table, write_page
from m3di.report.pictures import data_uri
from m3di.report.write import prepare_place
from stores import atomic

MAX_CUBES: Final = 24  # of the volumes of the best hits; of others the page has the hit's own slice only
MAX_BYTES: Final = 24 << 20  # of all cubes, before they are compressed; beyond, they are halved


def write_answer_page(searcher: Searcher, question: Question, wanted: Wanted, path: Path) -> Answer:
    """Ask, and write the answer with its slices and volumes as one HTML file; returns the answer.

    Raises:
        ResourceError: E_DISK, when there is no room.
        RefusedError: E_PATH, when the place may not be written; and as `m3di.query.question.ask`.
    """
    prepare_place(path)
    contents = Contents(searcher)
    answer = ask(searcher, question, wanted)
    hits = [*answer.results, *answer.same_place]
    asked = [question.volume] if question.volume else []
    names = list(dict.fromkeys([*asked, *(hit.volume for hit in hits)]))[:MAX_CUBES]
    data = {
        "store": contents.store,
        "answer": answer_view(answer, question, wanted),
        "asked": {"volume": question.volume, "plane": question.plane, "slice": question.slice},
        "volumes": {name: contents.volume(name) for name in names},
        "cubes": _cubes(contents, names),
        "curves": {name: contents.curves(name, question, wanted) for name in names},
        "pictures": {
            f"{hit.volume}/{hit.plane}/{hit.slice}": data_uri(contents.picture(hit.volume, hit.plane, hit.slice))
            for hit in hits
        },
    }
    atomic.write_bytes(path, filed_document(data).encode())
    return answer


def write_diagnosis_page(
    tables: Iterable[tuple[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]], store: str, path: Path
) -> None:
    """Write what was found (`m3di.diagnostics.findings`) as a page.

    Raises:
        ResourceError: E_DISK, when there is no room.
        RefusedError: E_PATH, when the place may not be written.
    """
    sections = [Section(title, [Table(columns, rows, title)]) for title, (columns, rows) in tables]
    lead = f"What is odd in {store}, and how far its vectors can be trusted."
    write_page(Page("Diagnosis of a store", lead, sections), path)


def _cubes(contents: Contents, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    edge = contents.searcher.store.recipe.cube_size
    is_halved = len(names) * edge**3 > MAX_BYTES
    cubes = {name: contents.cube(name) for name in names}
    shown = {name: halved(cube) if is_halved else cube for name, cube in cubes.items()}
    return {name: {"edge": len(cube), "bytes": packed(cube)} for name, cube in shown.items()}
