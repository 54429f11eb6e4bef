"""Tiny committed stores for tests."""

from dataclasses import replace

import numpy as np

from stores import Store
from stores.chunks import LAYOUTS
from stores.geometry import PLANES, Geometry
from stores.recipe import Recipe
from stores.records import Captions, VolumeRecord, facts_of, item_digest, pack_bits
from stores.volumes import encode_parts

RECIPE = Recipe(cube_size=16, slice_size=8, slice_stride=2, labels=True)
TEACHER, CAPTIONER = "a1" * 32, "b2" * 32
DIM = 6


def record(volume, *, blank=3, **changes):
    valid = np.zeros((3, RECIPE.cube_size), bool)
    valid[:, 1 + 2 * (blank // 2) :: 2] = True
    base = VolumeRecord(
        volume=volume, subject=volume, dataset="set", modality="MR", body_part="head", source_digest="s" + volume,
        label_digest="", item_digest="i" + volume, slot=-1, source=Geometry((4, 5, 6), np.diag([1.0, 2, 3, 1])),
        valid=(pack_bits(valid[0]), pack_bits(valid[1]), pack_bits(valid[2])),
    )  # fmt: skip
    changed = replace(base, **changes)
    return replace(changed, item_digest=item_digest(changed.source_digest, "", RECIPE, facts_of(changed)))


def parts(seed):
    random = np.random.default_rng(seed)
    cube = (RECIPE.cube_size,) * 3
    pictures = {plane: random.integers(0, 255, (8, 8, 8), dtype=np.uint8) for plane in PLANES}
    return {"image": random.random(cube).astype(np.float16), "label": np.zeros(cube, np.uint8), **pictures}


def chunks(seed, *, labels=True, layout=LAYOUTS["compact"]):
    kept = {name: part for name, part in parts(seed).items() if labels or name != "label"}
    return encode_parts(kept, RECIPE, layout)


def rows_of(record, seed):
    random = np.random.default_rng(1000 + seed)
    return [random.normal(size=(len(record.valid_slices(p)), 2, DIM)).astype(np.float16) for p in range(3)]


def captions_of(record):
    texts = tuple(tuple(f"{record.volume} {p} {i}" for i in record.valid_slices(p)) for p in range(3))
    return Captions(record.item_digest, texts)


def fill(store, names, *, labels=True):
    for name in names:
        seed = int(name[1:])
        committed = store.commit_volume(
            record(name, blank=seed % 5), chunks(seed, labels=labels, layout=store.volumes.layout)
        )
        captions = captions_of(committed)
        store.commit_captions(CAPTIONER, name, captions)
        store.commit_rows(TEACHER, committed, rows_of(committed, seed), captions_digest=captions.digest)
    store.commit_current(teacher=TEACHER, captioner=CAPTIONER)


def build(path, count=3):
    """A closed, complete store of `count` volumes v0, v1, ..."""
    with Store.create_or_open(path, RECIPE) as store:
        fill(store, [f"v{i}" for i in range(count)])
    return path
