"""`m3di build-store`."""

import os
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Common, LeaveOutOption, StoreOption, source_paths, store_path
from cli.output import duration, facts_table, table
from stores.errors import RefusedError

if TYPE_CHECKING:
    from m3di.config import Config
    from m3di.plan import PlanItem

QUARANTINED = 3
PROBLEMS = 4
ONE = "use one or the other"
NEXT = "when all shards are there, run m3di merge and m3di teacher fit, then the shards again"


def build_store(
    common: Common,
    source: Annotated[
        list[Path] | None, typer.Argument(help="dataset roots, folders of scans, DICOM folders, CSV manifests, scans")
    ] = None,
    store: StoreOption = None,
    layout: Annotated[
        str, typer.Option(help="auto, msd, nnunet, bids, chaos, mmwhs, oasis, medmnist, csv or folder")
    ] = "auto",
    teacher: Annotated[
        str | None, typer.Option(help="embedded, an open_clip ARCH@TAG, hf-hub:ID, local-dir:PATH")
    ] = None,
    captioner: Annotated[str | None, typer.Option(help="who writes captions: describe, endpoint or table")] = None,
    captions: Annotated[Path | None, typer.Option(help="table of captions: CSV, JSONL or Parquet")] = None,
    leave_out: LeaveOutOption = None,
    slice_stride: Annotated[
        int | None, typer.Option(help="every how many positions of the cube a slice is taken")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes that read scans [one a core]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take the first N cases only")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="build a shard, of N, beside the store: for job arrays")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="try a few scans, say what time and disk the build needs; keep nothing")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="stop at the first bad scan instead of quarantining it")
    ] = False,
) -> None:
    """Turn scans into a feature store: cubes, slices, captions and embeddings. A rerun continues."""
    from m3di import build, plan
    from m3di.shards import Shard

    output = common.output
    config = common.load_config(
        teacher__spec=teacher,
        volumes__slice_stride=slice_stride,
        captions__captioner="table" if captions and captioner is None else captioner,
        captions__file=str(captions) if captions else None,
        pretrain__leave_out=leave_out or None,
    )
    sources, path = source_paths(source), store_path(store)
    own = None if shard is None else Shard.parse(shard)
    if dry_run:
        items = plan.plan(sources, path, config, layout=layout, limit=limit, shard=own)
        shown = table(("case", "stages", "action", "reason"), _rows_of(items))
        output.result("plan", {"items": [asdict(item) for item in items]}, shown)
        return
    if estimate:
        _estimate(common, sources, path, config, layout=layout, limit=limit, workers=workers)
        return
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    options: dict[str, Any] = {
        "layout": layout, "limit": limit, "workers": workers, "strict": strict, "device": common.device,
        "report": output.event,
    }  # fmt: skip
    if by_torchrun and own is not None:
        raise RefusedError("E_CONFIG", "--shard under torchrun, whose processes take shards of their own", hint=ONE)
    if by_torchrun:
        from m3di.build_ranks import build_on_ranks

        summary = build_on_ranks(sources, path, config, **options)
        if summary is None:
            return
    else:
        summary = build.build_store(sources, path, config, shard=own, **options)
    facts = {name.replace("_", " "): value for name, value in asdict(summary).items()}
    waits = [] if summary.teacher else [f"{summary.store} waits for the teacher of {path}: {NEXT}"]
    output.result("build-store", asdict(summary), facts_table(facts), *waits)
    if summary.quarantined and not by_torchrun:  # torchrun would take it for a failure, and start again
        raise typer.Exit(QUARANTINED)


def _rows_of(items: "list[PlanItem]") -> list[tuple[str, str, str, str]]:
    """One row for the stages of a case with which the same is done."""
    rows = []
    for (case, action), group in groupby(items, key=lambda item: (item.case, item.action)):
        alike = list(group)
        reasons = dict.fromkeys(item.reason for item in alike)
        rows.append((case, ", ".join(item.stage for item in alike), action, "; ".join(reasons)))
    return rows


def _estimate(common: Common, sources: list[Path], path: Path, config: "Config", **options: Any) -> None:
    from m3di.build_estimate import estimate_build

    found = estimate_build(sources, path, config, device=common.device, **options)
    facts: dict[str, object] = {
        "volumes": found.volumes, "slices, about": found.slices, "time": duration(found.total_s),
        "to read and describe": duration(found.reading_s), "to fit the teacher": duration(found.teacher_s),
        "to embed": duration(found.embedding_s), "memory, GiB": found.memory_gib, "disk, GiB": found.disk_gib,
        "free disk, GiB": found.free_gib,
    }  # fmt: skip
    lines = (
        [] if found.fits else ["the disk has no room: another --store, a smaller volumes.cube_size or more stride"]
    )
    if config.captions.captioner == "endpoint":
        lines.append("captions are not counted: m3di captions plan says what they cost")
    common.output.result("build-estimate", asdict(found), facts_table(facts), *lines)
    if not found.fits:
        raise typer.Exit(PROBLEMS)
