"""What a build costs over the bare forward of its teacher on the same slices, and where its time goes.

    python benchmarks/embedding.py SOURCE [LIMIT] [STRIDE] [SPEC]

Builds a store of the first LIMIT scans (8) with every STRIDE-th slice (2) by a teacher (embedded), stage by stage in
this process and its workers. Then the same teacher takes the same slices, as pixels prepared beforehand in its own
precision and memory order, and its distinct captions, as tokens: the bare forward. Both have the same cores and
threads: all cores of the machine, or with OMP_NUM_THREADS=1 and `taskset -c 0` one. Fitting the teacher is left out,
as it does not grow with the number of volumes. The cosines compare image and text rows with those of the same teacher
in float32; the text trunk's precision is that of its linear layers.

Two ratios: of wall time, which counts idle cores and needs an otherwise idle machine, and of CPU time (this process
and its workers, their start included), which holds on a busy one too.

To time: OMP_NUM_THREADS unset, three runs each of the embedded teacher (`SOURCE 6 1`) and of a ViT
(`SOURCE 6 1 SPEC`); report the medians of build / bare forward and of ms a text.
"""

# ruff: noqa: PLC0415 - the workers import this file: without torch, as when a build is started as `m3di build-store`

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m3di.build import cases_of, commit_volumes, open_store
from m3di.captions.identity import captioner_fingerprint
from m3di.captions.registry import captioner_of
from m3di.captions.stage import CaptionsAhead, caption_volumes, slice_images
from m3di.config import load_config
from m3di.volumes.layouts import survey
from stores import Store

if TYPE_CHECKING:
    import torch

    from m3di.teachers.clip import Teacher


@dataclass(frozen=True)
class Cost:
    """Seconds of wall time, and of CPU time of this process and of the workers that have ended."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.cpu - other.cpu)

    def over(self, other: "Cost") -> str:
        """Both ratios in words."""
        return f"{self.wall / other.wall:.2f} in wall time, {self.cpu / other.cpu:.2f} in CPU time"


def now() -> Cost:
    """What has been spent so far."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.perf_counter(), time.process_time() + ended.ru_utime + ended.ru_stime)


def main(source: Path, limit: int, stride: int, spec: str) -> None:
    """Print seconds and shares."""
    import torch

    from m3di.teachers.stage import embed_volumes, ensure_teacher, kept_teacher
    from m3di.training.runtime import prepare_process

    config = load_config(settings=[f"volumes.slice_stride={stride}"], overrides=[("teacher.spec", spec)])
    cases = cases_of(survey([source]), config)[:limit]
    costs: dict[str, Cost] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = now()
        result = work()
        costs[name] = now() - began
        return result

    quiet = {"report": lambda *_, **__: None, "check": lambda: None}
    prepare_process()
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "store", config) as store:
        captioner = captioner_of(config, store)
        captions = captioner_fingerprint(captioner, config)
        ahead = CaptionsAhead.of(store, captioner, cases, config)
        timed("read, render, describe", lambda: commit_volumes(
            store, cases, workers=None, strict=True, ahead=ahead, **quiet
        ))  # fmt: skip
        timed("other captions", lambda: caption_volumes(store, captioner, cases, config, **quiet))
        teacher = ensure_teacher(store, captions, config, device="cpu", report=quiet["report"])
        timed("embeddings", lambda: embed_volumes(store, teacher, captions, device="cpu", **quiet))
        loaded = kept_teacher(store, teacher, device="cpu")
        bare_image, bare_text, slices, texts = _bare(store, loaded, captions)
        cosines = _cosines(store, loaded, captions)
    build, bare = sum(costs.values(), Cost()), bare_image + bare_text
    costs |= {"bare forward, images": bare_image, "bare forward, texts": bare_text}
    print(f"{len(cases)} scans, {slices} slices, {spec} in {loaded.dtype}, {torch.get_num_threads()} threads")
    for name, cost in costs.items():
        print(f"{name:24s} {cost.wall:7.2f} s  CPU {cost.cpu:7.2f} s  {cost.over(bare)} of the bare forward")
    print(
        f"{1000 * bare_image.wall / slices:.1f} ms an image; {1000 * bare_text.wall / texts:.1f} ms a text "
        f"of {texts}, text trunk in {_text_dtype(loaded)}"
    )
    print(f"build / bare forward: {build.over(bare)}")
    for part, cosine in cosines.items():
        print(f"cosine of {len(cosine)} {part} rows to float32: mean {cosine.mean():.5f}, lowest {cosine.min():.5f}")


def _bare(store: Store, teacher: "Teacher", captions: str) -> tuple[Cost, Cost, int, int]:
    """Cost of the towers alone on everything that the store holds, and how many slices and texts that is.

    The texts of a plane are encoded as one batch or few, as wide as the longest, as a caller without m3di would.
    """
    import torch

    from m3di.teachers.clip import DTYPES
    from m3di.teachers.lowering import input_dtype
    from m3di.teachers.towers import image_head, image_trunk, text_head, text_trunk

    model, dtype = teacher.towers.model, DTYPES[teacher.dtype]
    trunk, head = image_trunk(model, image_head(model), dtype), image_head(model) or torch.nn.Identity()
    texts_trunk, texts_head = text_trunk(model, text_head(model), dtype), text_head(model) or torch.nn.Identity()
    images = texts = Cost()
    slices = distinct = 0
    for record in store.records():
        written = store.captions(captions, record.volume)
        assert written is not None
        for plane in range(3):
            pictures = torch.from_numpy(slice_images(store, record, plane))
            if not len(pictures):
                continue
            slices += len(pictures)
            low = input_dtype(trunk)
            batches = [teacher.pixels(part).to(low) for part in pictures.split(teacher.batch_size)]
            tokens = teacher.tokens(sorted(set(written.texts[plane])))
            distinct += len(tokens)
            with torch.inference_mode():
                began = now()
                for batch in batches:
                    head(trunk(batch).float())
                images += now() - began
                began = now()
                for part in tokens.split(64):
                    texts_head(texts_trunk.encode_text(part).float())
                texts += now() - began
    return images, texts, slices, distinct


def _text_dtype(teacher: "Teacher") -> str:
    """Precision of the linear layers of the text transformer; float32 for open_clip's own."""
    import torch

    from m3di.teachers.clip import DTYPES
    from m3di.teachers.towers import text_head, text_trunk

    trunk = text_trunk(teacher.towers.model, text_head(teacher.towers.model), DTYPES[teacher.dtype])
    linears = [module for module in trunk.modules() if isinstance(module, torch.nn.Linear)]
    low = any(linear.weight.dtype == torch.bfloat16 for linear in linears)
    return "bfloat16" if low else "float32"


def _cosines(store: Store, teacher: "Teacher", captions: str) -> dict[str, "torch.Tensor"]:
    """Of the axial slices' image rows, and of all distinct captions' text rows, to the teacher in float32."""
    import torch

    from m3di.teachers.clip import Teacher

    full = Teacher(teacher.towers, dtype="float32")
    written = [store.captions(captions, record.volume) for record in store.records()]
    texts = sorted({text for one in written if one is not None for plane in one.texts for text in plane})
    pictures = torch.cat([torch.from_numpy(slice_images(store, record, 0)) for record in store.records()])
    return {
        "image": (full.encode_image(pictures) * teacher.encode_image(pictures)).sum(dim=1),
        "text": (full.encode_text(texts) * teacher.encode_text(texts)).sum(dim=1),
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    numbers = [int(value) for value in given[1:3]] + [8, 2][len(given[1:3]) :]
    main(Path(given[0]), numbers[0], numbers[1], given[3] if len(given) > 3 else "embedded")
