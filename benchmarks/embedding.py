"""What a build costs over the bare forward of its teacher on the same slices, and where its time goes.

    python benchmarks/embedding.py SOURCE [LIMIT] [STRIDE] [SPEC]

Builds a store of the first LIMIT scans (8) with every STRIDE-th slice (2) by a teacher (embedded), stage by stage in
this process, on all cores. Then the same teacher takes the same slices, as pixels prepared beforehand in its own
precision and memory order, and its distinct captions, as tokens: the bare forward. Fitting the teacher is left out,
as it does not grow with the number of volumes. The cosine compares rows with the same teacher in float32.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from m3di.build import cases_of, commit_volumes, open_store
from m3di.captions.identity import captioner_fingerprint
from m3di.captions.registry import captioner_of
from m3di.captions.stage import caption_volumes, slice_images
from m3di.config import load_config
from m3di.teachers.clip import DTYPES, Teacher
from m3di.teachers.lowering import input_dtype
from m3di.teachers.stage import embed_volumes, ensure_teacher, kept_teacher
from m3di.teachers.towers import image_head, image_trunk
from m3di.training.runtime import prepare_process
from m3di.volumes.layouts import survey
from stores import Store


def main(source: Path, limit: int, stride: int, spec: str) -> None:
    """Print seconds and shares."""
    config = load_config(settings=[f"volumes.slice_stride={stride}"], overrides=[("teacher.spec", spec)])
    cases = cases_of(survey([source]), config)[:limit]
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        return result

    quiet = {"report": lambda *_, **__: None, "check": lambda: None}
    prepare_process()
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "store", config) as store:
        captioner = captioner_of(config, store)
        captions = captioner_fingerprint(captioner, config)
        timed("read, resample, render", lambda: commit_volumes(store, cases, workers=None, strict=True, **quiet))
        timed("captions", lambda: caption_volumes(store, captioner, cases, config, **quiet))
        teacher = ensure_teacher(store, captions, config, device="cpu", report=quiet["report"])
        timed("embeddings", lambda: embed_volumes(store, teacher, captions, device="cpu", **quiet))
        loaded = kept_teacher(store, teacher, device="cpu")
        bare_image, bare_text, slices = _bare(store, loaded, captions)
        cosine = _cosine(store, loaded)
    build = sum(seconds.values())
    bare = bare_image + bare_text
    print(f"{len(cases)} scans, {slices} slices, {spec} in {loaded.dtype}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"{name:24s} {value:7.2f} s  {value / build:5.1%} of the build")
    print(f"{'bare forward, images':24s} {bare_image:7.2f} s, {1000 * bare_image / slices:.1f} ms a slice")
    print(f"{'bare forward, texts':24s} {bare_text:7.2f} s")
    print(f"build / bare forward: {build / bare:.2f}; embeddings / bare forward: {seconds['embeddings'] / bare:.2f}")
    print(f"cosine of a row to float32: mean {cosine.mean():.5f}, lowest {cosine.min():.5f}")


def _bare(store: Store, teacher: Teacher, captions: str) -> tuple[float, float, int]:
    """Seconds of the towers alone on everything that the store holds, and how many slices that is."""
    trunk = image_trunk(teacher.towers.model, image_head(teacher.towers.model), DTYPES[teacher.dtype])
    head = image_head(teacher.towers.model) or torch.nn.Identity()
    images = texts = 0.0
    slices = 0
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
            with torch.inference_mode():
                began = time.perf_counter()
                for batch in batches:
                    head(trunk(batch).float())
                images += time.perf_counter() - began
                began = time.perf_counter()
                for part in tokens.split(64):
                    teacher.towers.model.encode_text(part)
                texts += time.perf_counter() - began
    return images, texts, slices


def _cosine(store: Store, teacher: Teacher) -> torch.Tensor:
    full = Teacher(teacher.towers, dtype="float32")
    pictures = torch.cat([torch.from_numpy(slice_images(store, record, 0)) for record in store.records()])
    return (full.encode_image(pictures) * teacher.encode_image(pictures)).sum(dim=1)


if __name__ == "__main__":
    given = sys.argv[1:]
    numbers = [int(value) for value in given[1:3]] + [8, 2][len(given[1:3]) :]
    main(Path(given[0]), numbers[0], numbers[1], given[3] if len(given) > 3 else "embedded")
