"""`m3di query`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table
from stores.errors import RefusedError


def query(
    common: Common,
    text: Annotated[str | None, typer.Argument(help="what to look for")] = None,
    store: StoreOption = None,
    volume: Annotated[str | None, typer.Option(help="a slice as the question: its volume")] = None,
    plane: Annotated[str | None, typer.Option(help="axial, coronal or sagittal")] = None,
    slice_: Annotated[int | None, typer.Option("--slice", help="position of the slice in the cube")] = None,
    image: Annotated[Path | None, typer.Option(help="an image file as the question")] = None,
    top: Annotated[int, typer.Option(min=1, help="how many slices to show")] = 10,
) -> None:
    """Find the slices of a store that are nearest to a text, a slice or an image."""
    from m3di import query as search

    slice_given = [volume, plane, slice_].count(None) < 3
    if [text is not None, slice_given, image is not None].count(True) != 1:
        message = "ask with one of: a TEXT, a slice (--volume, --plane, --slice), or --image"
        raise RefusedError("E_CONFIG", message, hint='for example m3di query "liver"')
    path = store_path(store)
    if text is not None:
        answer = search.by_text(path, text, top=top, device=common.device)
    elif image is not None:
        answer = search.by_image(path, image, top=top, device=common.device)
    elif volume is None or plane is None or slice_ is None:
        raise RefusedError("E_CONFIG", "a slice needs --volume, --plane and --slice", hint="give all three")
    else:
        answer = search.by_slice(path, volume, plane, slice_, top=top)
    rows = [(hit.score, hit.volume, hit.plane, hit.slice, hit.caption) for hit in answer.results]
    common.output.result(
        "query", asdict(answer), table(("score", "volume", "plane", "slice", "caption"), rows), *answer.notes
    )
