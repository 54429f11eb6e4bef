"""What a build costs over the bare forward of its teacher on the same slices, and where its time goes.

    python benchmarks/embedding.py SOURCE [LIMIT] [STRIDE] [SPEC]

Builds a store of the first LIMIT scans (8) with every STRIDE-th slice (2) by a teacher (embedded), stage by stage in
this process, on all cores. Then the same teacher takes the same slices, as pixels prepared beforehand in its own
precision and memory order, and its distinct captions, as tokens: the bare forward. Fitting the teacher is left out,
as it does not grow with the number of volumes. The cosines compare image and text rows with those of the same teacher
in float32; the text trunk's precision is that of its linear layers.

To time: on an otherwise idle machine, OMP_NUM_THREADS unset, three runs each of the embedded teacher
(`SOURCE 6 1`) and of a ViT (`SOURCE 6 1 SPEC`); report the medians of build / bare forward and of ms a text.
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
from m3di.teachers.towers import image_head, image_trunk, text_head, text_trunk
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
        bare_image, bare_text, slices, texts = _bare(store, loaded, captions)
        cosines = _cosines(store, loaded, captions)
    build = sum(seconds.values())
    bare = bare_image + bare_text
    print(f"{len(cases)} scans, {slices} slices, {spec} in {loaded.dtype}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"{name:24s} {value:7.2f} s  {value / build:5.1%} of the build")
    print(f"{'bare forward, images':24s} {bare_image:7.2f} s, {1000 * bare_image / slices:.1f} ms a slice")
    print(
        f"{'bare forward, texts':24s} {bare_text:7.2f} s, {1000 * bare_text / texts:.1f} ms a text of {texts} "
        f"({bare_text / bare:.1%} of the bare forward), text trunk in {_text_dtype(loaded)}"
    )
    print(f"build / bare forward: {build / bare:.2f}; embeddings / bare forward: {seconds['embeddings'] / bare:.2f}")
    for part, cosine in cosines.items():
        print(f"cosine of {len(cosine)} {part} rows to float32: mean {cosine.mean():.5f}, lowest {cosine.min():.5f}")


def _bare(store: Store, teacher: Teacher, captions: str) -> tuple[float, float, int, int]:
    """Seconds of the towers alone on everything that the store holds, and how many slices and texts that is.

    The texts of a plane are encoded as one batch or few, as wide as the longest, as a caller without m3di would.
    """
    model, dtype = teacher.towers.model, DTYPES[teacher.dtype]
    trunk, head = image_trunk(model, image_head(model), dtype), image_head(model) or torch.nn.Identity()
    texts_trunk, texts_head = text_trunk(model, text_head(model), dtype), text_head(model) or torch.nn.Identity()
    images = texts = 0.0
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
                began = time.perf_counter()
                for batch in batches:
                    head(trunk(batch).float())
                images += time.perf_counter() - began
                began = time.perf_counter()
                for part in tokens.split(64):
                    texts_head(texts_trunk.encode_text(part).float())
                texts += time.perf_counter() - began
    return images, texts, slices, distinct


def _text_dtype(teacher: Teacher) -> str:
    """Precision of the linear layers of the text transformer; float32 for open_clip's own."""
    trunk = text_trunk(teacher.towers.model, text_head(teacher.towers.model), DTYPES[teacher.dtype])
    linears = [module for module in trunk.modules() if isinstance(module, torch.nn.Linear)]
    low = any(linear.weight.dtype == torch.bfloat16 for linear in linears)
    return "bfloat16" if low else "float32"


def _cosines(store: Store, teacher: Teacher, captions: str) -> dict[str, torch.Tensor]:
    """Of the axial slices' image rows, and of all distinct captions' text rows, to the teacher in float32."""
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
