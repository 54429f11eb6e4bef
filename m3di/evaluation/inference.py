"""Predictions on the scanner's own grid: scan -> cube -> network -> probabilities -> back through the chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from m3di.events import Report
from m3di.training import checkpoint, runtime
from m3di.training.finetune import load_network
from m3di.volumes import preprocess, readers
from m3di.volumes.cases import Case
from m3di.volumes.layouts import survey
from m3di.volumes.resample import restore
from stores.errors import CaseError
from stores.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Predictor:
    """A fine-tuned network, ready for scans.

    Attributes:
        network: In evaluation mode, on its device.
        recipe: How scans become cubes.
        class_values: Label value of each class index.
        modality: Of the scans that it was trained on.
        device: Where it runs.
    """

    network: torch.nn.Module
    recipe: Recipe
    class_values: tuple[int, ...]
    modality: str
    device: torch.device

    @torch.no_grad()
    def mask(self, volume: readers.Volume) -> npt.NDArray[np.uint8]:
        """Label map of a scan along the scan's own axes."""
        cube = preprocess.make_cube(volume, self.recipe)
        image = torch.from_numpy(cube.data.astype(np.float16).astype(np.float32))  # as the store rounds it
        scores = self.network(image[None, None].to(self.device)).float().softmax(dim=1)[0].cpu().numpy()
        values = np.asarray(self.class_values, np.uint8)
        mask = np.empty(cube.chain.canonical_shape, np.uint8)
        for z, restored in restore(scores, cube.chain):
            mask[:, :, z] = values[restored.argmax(axis=0)]
        return cube.chain.from_canonical(mask)


def load_predictor(found: checkpoint.Checkpoint, *, device: str) -> Predictor:
    """Rebuild the network of a fine-tuning checkpoint.

    Raises:
        DamagedError: E_WEIGHTS, when the weights are damaged.
    """
    runtime.prepare_process()
    place = runtime.pick_device(device)
    return Predictor(
        network=load_network(found).to(place),
        recipe=Recipe.from_dict(found.facts["recipe"]),
        class_values=tuple(found.facts["class_values"]),
        modality=found.facts["modality"],
        device=place,
    )


def predict_scans(
    scans: Sequence[Path], run: Path, out: Path, *, device: str = "auto", report: Report
) -> tuple[list[Path], list[dict[str, str]]]:
    """Write a mask of every scan, `OUT/<id>.nii.gz`, on the scan's own grid.

    Returns:
        The masks written, and why each other scan was refused.

    Raises:
        RefusedError: Before anything is written, when a path or the run is wrong, or two ids are equal.
    """
    cases = [case for found in survey(scans) for case in found.cases]
    predictor = load_predictor(checkpoint.load(run, kind="finetune"), device=device)
    out.mkdir(parents=True, exist_ok=True)
    report("begin", stage="predict", cases=len(cases))
    written, refused = [], []
    for case in cases:
        try:
            written.append(_predict(case, predictor, out))
            report("committed", volume=case.id, stage="predict")
        except CaseError as error:
            refused.append({"case": case.id, "code": error.code, "message": error.message})
            report("quarantined", volume=case.id, code=error.code, message=error.message)
    return written, refused


def _predict(case: Case, predictor: Predictor, out: Path) -> Path:
    modality = predictor.modality if case.modality == "unknown" else case.modality
    volume = readers.read_volume(case.image, modality=modality, member=case.member)
    path = out / f"{case.id}.nii.gz"
    readers.write_mask(path, predictor.mask(volume), like=volume.geometry)
    return path
