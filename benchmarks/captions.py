"""What the describer costs and what its words are worth: its time, three ways of captioning, ten captions to look at.

python benchmarks/captions.py time STORE
python benchmarks/captions.py compare DATASET... [--limit 60] [--stride 16] [--slices 1600] [--seeds 3]
python benchmarks/captions.py picture STORE OUT.png [--seed 0]

`compare` fits the embedded teacher's heads to the captions of the training subjects, once for each way of captioning
and each volume split, and scores it on the slices of the others. Recall depends on how many different texts there
are, so chance stands beside it, and `bits`: how much likelier than by chance the right text is, as log2 (below 0
where the teacher is too sure of itself). Three measures ask for the place alone: whether the best caption is of the
right plane, how far off its place is there (median, share of the scan), and how many of the slices with that caption
are `near`: of the right plane and within a tenth of the scan.
"""

import argparse
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from m3di.captions.captioner import SliceFacts, opening_of
from m3di.captions.describe import count_tokens, describe, exact, render
from m3di.captions.measure import measure
from m3di.captions.stage import show
from m3di.report.pictures import montage
from m3di.tasks.split import nested_order, share_of
from m3di.teachers.clip import Teacher, load_teacher
from m3di.teachers.towers import require_heads
from m3di.teachers.tuning import HeadFit, fit_heads, retrieval_card
from m3di.training.runtime import prepare_process
from m3di.volumes.layouts.discovery import discover
from m3di.volumes.prepare import prepare
from stores import Store
from stores.recipe import Recipe

NEAR = 0.1
COLUMNS = ("i->t@1", "i->t@5", "i->t@10", "t->i@10", "bits", "right plane", "place off", "near")


@dataclass(frozen=True)
class Shown:
    """A slice, what is known of it, and whose it is."""

    image: np.ndarray
    facts: SliceFacts
    dataset: str
    subject: str


@dataclass(frozen=True)
class Features:
    """Trunk features of slices, of their captions, and of the captions' first sentences."""

    images: torch.Tensor
    texts: torch.Tensor
    openings: torch.Tensor


def described(shown: Shown) -> str:
    """The default captioner."""
    return describe(shown.image, shown.facts)


def opening(shown: Shown) -> str:
    """The describer's first sentence: what and where, nothing that was measured."""
    return described(shown).split(". ", maxsplit=1)[0]


def template(shown: Shown) -> str:
    """Plane and place alone, in the describer's words."""
    bare = SliceFacts(shown.facts.plane, shown.facts.position, "unknown", "")
    return describe(np.zeros((8, 8), np.uint8), bare).split(". ", maxsplit=1)[0]


def numbers(shown: Shown) -> str:
    """The same facts as numbers."""
    facts = exact(measure(shown.image, shown.facts), shown.facts)
    form, bright = facts["form"] or {}, facts["brightest"] or {}
    return (
        f"{facts['plane']} slice at {facts['position']} ({facts['offset_mm']:.1f} mm), {facts['modality']} "
        f"{facts['body_part']}, {form.get('width_mm')} x {form.get('height_mm')} mm, fill {facts['fill']:.3f}, "
        f"mean {facts['grey']:.3f}, deviation {facts['contrast']:.3f}, symmetry {facts['symmetry']}, brightest "
        f"{bright.get('row')}, {bright.get('column')}"
    )


WAYS: dict[str, Callable[[Shown], str]] = {
    "describer": described, "its opening": opening, "template": template, "numbers": numbers
}  # fmt: skip


def slices_of(store: Store) -> Iterator[Shown]:
    """Every slice of a store, without label maps."""
    for record in store.records():
        for plane in show(store, record, {}).planes:
            for image, facts in zip(plane.images, plane.facts, strict=True):
                yield Shown(image, facts, record.dataset, record.subject)


def time_slices(path: Path) -> None:
    """Print the time a slice takes, measuring and wording apart, and how long the texts are."""
    with Store(path) as store:
        shown = [one for one, _ in zip(slices_of(store), range(2000), strict=False)]
    start = time.process_time()
    measured = [measure(one.image, one.facts) for one in shown]
    middle = time.process_time()
    texts = [render(found, one.facts) for found, one in zip(measured, shown, strict=True)]
    end = time.process_time()
    tokens = [count_tokens(text) for text in texts]
    print(f"{len(shown)} slices of {shown[0].image.shape[0]} px, ms of one core a slice:")
    print(f"measure {(middle - start) / len(shown) * 1e3:.2f}, words {(end - middle) / len(shown) * 1e3:.2f}")
    print(
        f"tokens, as counted: median {np.median(tokens):.0f}, most {max(tokens)}; {len(set(texts))} different texts"
    )


def small_store(folder: Path, datasets: list[Path], *, limit: int, stride: int) -> Path:
    """A store of the first `limit` volumes of each dataset."""
    recipe = Recipe(slice_stride=stride)
    with Store.create_or_open(folder / "store", recipe) as store:
        for dataset in datasets:
            for case in discover(dataset)[:limit]:
                ready = prepare(case, recipe, "", store.volumes.layout)
                if ready is not None:
                    store.commit_volume(ready.record, ready.chunks)
    return folder / "store"


def compare(shown: list[Shown], *, seeds: int) -> None:
    """Print the card of every way of captioning, over several splits."""
    prepare_process()
    teacher = load_teacher("embedded", device="cpu")
    images = teacher.image_features(torch.from_numpy(np.stack([one.image for one in shown])))
    print(f"{len(shown)} slices; held out: mean (least to most) over {seeds} splits")
    print(f"{'':12} {'texts':>5} {'chance@10':>9}", *(f"{name:>22}" for name in COLUMNS))
    for name, way in WAYS.items():
        texts = [way(one) for one in shown]
        features = Features(
            images, teacher.text_features(texts), teacher.text_features([opening_of(t) for t in texts])
        )
        cards = [_card(teacher, shown, features, texts, seed) for seed in range(seeds)]
        chance = np.mean([card["chance@10"] for card in cards])
        cells = [[card[column] for card in cards] for column in COLUMNS]
        spread = (f"{np.mean(cell):.3f} ({min(cell):.2f} to {max(cell):.2f})" for cell in cells)
        print(f"{name:12} {len(set(texts)):5} {chance:9.3f}", *(f"{text:>22}" for text in spread), flush=True)


def _card(teacher: Teacher, shown: list[Shown], features: Features, texts: list[str], seed: int) -> dict[str, float]:
    """Fit to one split, as the build does, and score what it holds out."""
    owners = [(one.dataset, one.subject) for one in shown]
    train = np.array([share == "train" for share in share_of(owners, ratios=(0.7, 0.1, 0.2), seed=seed)])
    both = torch.cat([features.texts[train], features.openings[train]])
    fitted = fit_heads(teacher, features.images[train].repeat(2, 1), both, HeadFit(passes=20, seed=seed))
    held = np.flatnonzero(~train)
    heads = require_heads(fitted.towers.model)
    with torch.inference_mode():
        parts = (features.images, features.texts)
        rows = [F.normalize(head(part[held]), dim=-1) for head, part in zip(heads, parts, strict=True)]
    ids = np.unique([texts[index] for index in held], return_inverse=True)[1]
    planes = np.array([shown[index].facts.plane for index in held])
    places = np.array([shown[index].facts.position for index in held])
    card = retrieval_card(
        rows[0], rows[1], planes=torch.from_numpy(planes), positions=torch.from_numpy(places),
        text_ids=torch.from_numpy(ids),
    )  # fmt: skip
    same = (planes[:, None] == planes) & (np.abs(places[:, None] - places) <= NEAR)
    of_text = np.eye(ids.max() + 1)[ids]
    shares = same @ of_text / of_text.sum(axis=0)  # of the slices that have a text, those that are near
    best = (rows[0] @ rows[1].T).argmax(dim=1).numpy()
    near = shares[np.arange(len(held)), ids[best]]
    scores = {f"i->t@{k}": card["image_to_text"][f"recall@{k}"] for k in (1, 5, 10)}
    return {
        **scores,
        "t->i@10": card["text_to_image"]["recall@10"],
        "chance@10": card["chance"]["recall@10"],
        "bits": _bits(fitted.towers.model.logit_scale.exp() * rows[0] @ rows[1].T, ids),
        "right plane": card["right_plane"],
        "place off": card["position_error"],
        "near": float(near.mean()),
    }


def _bits(logits: torch.Tensor, ids: np.ndarray) -> float:
    """Mean of log2 of how much likelier than by chance a slice's text is, given its image."""
    equal = torch.from_numpy(ids[:, None] == ids)
    own = logits.masked_fill(~equal, -torch.inf).logsumexp(dim=1) - logits.logsumexp(dim=1)
    return float((own - equal.float().mean(dim=1).log()).mean()) / float(np.log(2))


def picture(path: Path, out: Path, *, seed: int, count: int = 10) -> None:
    """Ten slices of as many sets as there are, each beside its caption."""
    with Store(path) as store:
        records: dict[str, list[str]] = {}
        for record in store.records():
            records.setdefault(record.dataset, []).append(record.volume)
        names = [nested_order(volumes, seed=seed) for volumes in records.values()]
        chosen = [queue[rank] for rank in range(count) for queue in names if rank < len(queue)][:count]
        cells = []
        for number, volume in enumerate(chosen):
            planes = [plane for plane in show(store, store.record(volume), {}).planes if plane.facts]
            plane = planes[(number + seed) % len(planes)]
            rank = int(nested_order(map(str, range(len(plane.facts))), seed=seed + number)[0])
            cells.append(_beside(plane.images[rank], describe(plane.images[rank], plane.facts[rank])))
    Image.fromarray(montage(cells, columns=2, gap=6, background=128)).save(out)


def _beside(image: np.ndarray, text: str) -> np.ndarray:
    """A slice with its caption to its right."""
    sheet = Image.new("L", (image.shape[1] + 420, image.shape[0]), 255)
    sheet.paste(Image.fromarray(image), (0, 0))
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(sheet).multiline_text((image.shape[1] + 10, 8), textwrap.fill(text, 50), fill=0, font=font)
    return np.asarray(sheet)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("time").add_argument("store", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("datasets", type=Path, nargs="+")
    for name, default in (("limit", 60), ("stride", 16), ("slices", 1600), ("seeds", 3)):
        comparing.add_argument(f"--{name}", type=int, default=default)
    drawing = commands.add_parser("picture")
    drawing.add_argument("store", type=Path)
    drawing.add_argument("out", type=Path)
    drawing.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.command == "time":
        time_slices(chosen.store)
    elif chosen.command == "picture":
        picture(chosen.store, chosen.out, seed=chosen.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = small_store(Path(folder), chosen.datasets, limit=chosen.limit, stride=chosen.stride)
            with Store(path) as store:
                shown = list(slices_of(store))
        kept = sorted(map(int, nested_order(map(str, range(len(shown))), seed=0)[: chosen.slices]))
        compare([shown[index] for index in kept], seeds=chosen.seeds)


if __name__ == "__main__":
    main()
