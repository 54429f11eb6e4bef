"""Does a freely worded question find slices of the plane it names? Against image rows and against caption rows.

python benchmarks/text_queries.py STORE
"""

import sys
from pathlib import Path

import numpy as np

from m3di.teachers.stage import kept_teacher
from stores import Store
from stores.geometry import PLANES

QUESTIONS = (
    ("axial slice of the hippocampus", 0),
    ("coronal slice at the front of the hippocampus", 1),
    ("sagittal slice near the left side", 2),
    ("coronal MR slice of the hippocampus", 1),
    ("axial slice, lower third", 0),
    ("a sagittal view of the right side", 2),
)
TOP = 20


def main(path: Path) -> None:
    """Print, for each question, the share of the first 20 answers that lie in the plane it names."""
    with Store(path) as store:
        fingerprint = store.current()["teacher"]
        embeddings = store.embeddings(fingerprint)
        index = embeddings.index
        rows = embeddings.all_rows(index.volumes).astype(np.float32)
        planes = np.concatenate([index.slices_of(volume)[0] for volume in range(len(index))])
        teacher = kept_teacher(store, fingerprint, device="cpu")
    shares = []
    for question, plane in QUESTIONS:
        vector = teacher.encode_text([question])[0].numpy()
        first = [np.argsort(-(rows[:, part] @ vector))[:TOP] for part in (0, 1)]
        shares.append([float((planes[order] == plane).mean()) for order in first])
        print(f"{PLANES[plane]:9} images {shares[-1][0]:.2f}  captions {shares[-1][1]:.2f}  {question}")
    images, captions = np.mean(shares, axis=0)
    print(f"mean      images {images:.3f}  captions {captions:.3f}  chance {1 / len(PLANES):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
