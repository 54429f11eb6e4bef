"""The files of one scan's segmentation: mask, probabilities, uncertainty, picture, all on the scan's own grid."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m3di.config import PredictConfig
from m3di.evaluation.dicom_seg import write_segmentation
from m3di.evaluation.inference import Predictor
from m3di.evaluation.outputs import Outputs, write_picture
from m3di.evaluation.overview import draw_overview
from m3di.volumes import preprocess, readers
from m3di.volumes.cases import Case
from m3di.volumes.resample import Floats

SUFFIXES: Final = {"nifti": ".nii.gz", "dicom-seg": ".dcm"}


class MaskFiles:
    """Segments scans and writes what the settings want.

    Args:
        predictor: The networks.
        outputs: Where files go.
        settings: What is wanted.
    """

    def __init__(self, predictor: Predictor, outputs: Outputs, settings: PredictConfig) -> None:
        self._predictor, self._outputs, self._settings = predictor, outputs, settings
        self._names = {value: name for value, name in predictor.classes.items() if value}

    def write(self, case: Case, volume: readers.Volume) -> dict[str, Any]:
        """Segment a scan and write its files; returns what its note says of them.

        Raises:
            CaseError: When the scan cannot be used, or is no DICOM where that is wanted.
        """
        maps = _Maps(volume, self._predictor, keeps_probabilities=self._settings.probabilities)
        mask = self._predictor.mask_of(volume, maps.watch(self._predictor.slabs(volume)))
        files = {"mask": self._write_mask(case, volume, mask), **self._write_maps(case, volume, maps)}
        if self._settings.overview:
            files["overview"] = self._outputs.overview(case.id)
            picture = draw_overview(volume, mask, self._names, self._predictor.recipe, title=case.id)
            write_picture(files["overview"], picture)
        disagreement = maps.uncertainty()
        return {
            "labels": {str(value): name for value, name in self._predictor.classes.items()},
            "volumes_ml": self._volumes_ml(volume, mask),
            "windows": len(self._predictor.windows(volume)),
            "uncertainty": None if disagreement is None else _inside_mean(disagreement, mask),
            "files": {name: self._outputs.relative(file) for name, file in files.items()},
        }

    def _write_mask(self, case: Case, volume: readers.Volume, mask: npt.NDArray[np.uint8]) -> Path:
        path = self._outputs.mask(case.id, suffix=SUFFIXES[self._settings.format])
        if self._settings.format == "dicom-seg":
            write_segmentation(path, mask, self._names, case.image, member=case.member)
        else:
            readers.write_mask(path, mask, like=volume.geometry)
        return path

    def _write_maps(self, case: Case, volume: readers.Volume, maps: "_Maps") -> dict[str, Path]:
        files = {}
        for value, probabilities in maps.probabilities():
            path = files[f"probability {value}"] = self._outputs.probability(case.id, value)
            readers.write_map(path, probabilities, like=volume.geometry)
        if (disagreement := maps.uncertainty()) is not None:
            path = files["uncertainty"] = self._outputs.uncertainty(case.id)
            readers.write_map(path, disagreement, like=volume.geometry)
        return files

    def _volumes_ml(self, volume: readers.Volume, mask: npt.NDArray[np.uint8]) -> dict[str, float]:
        voxel_ml = float(abs(np.linalg.det(volume.geometry.affine[:3, :3]))) / 1000
        counts = np.bincount(mask.ravel(), minlength=256)
        return {str(value): round(int(counts[value]) * voxel_ml, 4) for value in self._names}


class _Maps:
    """Keeps what is wanted of the scores that pass by: probabilities in half precision, and uncertainty.

    Args:
        volume: The scan.
        predictor: What makes the scores.
        keeps_probabilities: Whether those of every class are wanted.
    """

    def __init__(self, volume: readers.Volume, predictor: Predictor, *, keeps_probabilities: bool) -> None:
        self._chain = preprocess.chain_of(volume, predictor.recipe)
        self._values = predictor.class_values
        shape = self._chain.canonical_shape
        self._kept = np.empty((len(self._values), *shape), np.float16) if keeps_probabilities else None
        self._disagreement = np.empty(shape, np.float32) if predictor.measures_uncertainty else None

    def watch(self, slabs: Iterator[tuple[slice, Floats]]) -> Iterator[tuple[slice, Floats]]:
        """Let slabs through."""
        for rows, scores in slabs:
            if self._kept is not None:
                self._kept[..., rows] = scores[: len(self._values)]
            if self._disagreement is not None:
                self._disagreement[:, :, rows] = scores[-1]
            yield rows, scores

    def probabilities(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Label value and probabilities of each class, along the scan's own axes."""
        if self._kept is not None:
            for value, kept in zip(self._values, self._kept, strict=True):
                yield value, self._chain.from_canonical(kept).astype(np.float32)

    def uncertainty(self) -> npt.NDArray[np.float32] | None:
        """The map of uncertainty along the scan's own axes; None when it is not measured."""
        return None if self._disagreement is None else self._chain.from_canonical(self._disagreement)


def _inside_mean(disagreement: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> float:
    """Mean uncertainty of the voxels that are no background; of all when there are none."""
    inside = disagreement[mask > 0]
    return float((inside if inside.size else disagreement).mean(dtype=np.float64))
