"""`m3di query`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table
from stores.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from m3di.query import Answer, Hit, Searcher, Wanted
    from m3di.query.question import Question

COLUMNS = ("score", "volume", "plane", "slice", "caption")


def query(
    common: Common,
    text: Annotated[str | None, typer.Argument(help="what to look for")] = None,
    store: StoreOption = None,
    volume: Annotated[
        str | None, typer.Option(help="a volume as the question, or with --slice a slice of it")
    ] = None,
    plane: Annotated[str | None, typer.Option(help="axial, coronal or sagittal: the slice's, else answers'")] = None,
    slice_: Annotated[int | None, typer.Option("--slice", help="position of the slice in the cube")] = None,
    image: Annotated[Path | None, typer.Option(help="an image file as the question")] = None,
    scan: Annotated[Path | None, typer.Option(help="a scan file as the question: volumes like it")] = None,
    run: Annotated[Path | None, typer.Option(help="ask by the vectors of a pretrained encoder and PSAT")] = None,
    teacher: Annotated[str, typer.Option(help="one of the store's teachers [else the current one]")] = "",
    top: Annotated[int, typer.Option(min=1, help="how many answers to show")] = 10,
    one_per_volume: Annotated[
        bool, typer.Option("--one-per-volume/--all-slices", help="each volume by its best slice only")
    ] = True,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="modality, dataset, body_part, subject, sequence, volume, plane, place"
        ),
    ] = None,
    against: Annotated[str, typer.Option(help="hold a text against captions or images")] = "captions",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="by an index kept beside the store (m3di[search])")
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="instead of a question: what is odd, and how good --run")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the answer as a page too, which needs nothing else")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="a page to look into the store with, for this machine only")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of --serve [else a free one]")] = 0,
) -> None:
    """Find the slices or volumes of a store that are nearest to a text, a slice, an image, a volume or a scan."""
    from m3di.query import Searcher, Wanted
    from m3di.query.question import Question, ask

    is_slice = slice_ is not None
    conditions = [*(where or []), *([f"plane={plane}"] if plane and not is_slice else [])]
    asked = [text is not None, volume is not None or is_slice, image is not None, scan is not None, diagnose]
    if asked.count(True) != 1 and not (serve and not any(asked)):
        message = "ask with one of: a TEXT, --volume (and --plane and --slice), --image, --scan, --diagnose"
        raise RefusedError("E_CONFIG", message, hint='for example m3di query "liver"')
    if serve and (html or image or scan or diagnose or approximate):
        message = "--serve takes a TEXT or --volume to begin with, and no file, --approximate or --diagnose"
        raise RefusedError("E_CONFIG", message, hint="for example m3di query --serve")
    if is_slice and (volume is None or plane is None):
        raise RefusedError("E_CONFIG", "a slice needs --volume, --plane and --slice", hint="give all three")
    question = Question(text, volume, plane if is_slice else None, slice_, image, scan)
    wanted = Wanted(top, one_per_volume, tuple(conditions), against, approximate)
    encoder = common.load_config().encoder.name if run else ""
    with Searcher(store_path(store), teacher=teacher, run=run, encoder=encoder, device=common.device) as searcher:
        if serve:
            _serve(common, searcher, question, wanted, port)
        elif diagnose:
            _diagnose(common, searcher, html)
        elif html:
            from m3di.query.page.write import write_answer_page

            _show(common, write_answer_page(searcher, question, wanted, html))
        else:
            _show(common, ask(searcher, question, wanted))


def _show(common: Common, answer: "Answer") -> None:
    shown: list[object] = [_hits(answer.results)]
    if answer.same_place:
        shown += ["", "the same place in other subjects", _hits(answer.same_place)]
    common.output.result("query", asdict(answer), *shown, *answer.notes)


def _serve(common: Common, searcher: "Searcher", question: "Question", wanted: "Wanted", port: int) -> None:
    from m3di.query.page.contents import Contents
    from m3di.query.serve import address_of, serve

    def started(url: str) -> None:
        common.output.result("serve", {"url": url}, url)
        common.output.event("serving", stop="Ctrl-C")

    serve(Contents(searcher), port=port, asked=address_of(question, wanted), started=started)


def _hits(hits: "Sequence[Hit]") -> object:
    return table(COLUMNS, [(hit.score, hit.volume, hit.plane, hit.slice, hit.caption) for hit in hits])


def _diagnose(common: Common, searcher: "Searcher", html: Path | None) -> None:
    from m3di.diagnostics import diagnose, findings

    found = diagnose(searcher)
    if html:
        from m3di.query.page.write import write_diagnosis_page

        write_diagnosis_page(findings(found), searcher.store.path.resolve().name, html)
    common.output.result("diagnose", found.to_dict(), *(table(*rows, title=title) for title, rows in findings(found)))
