"""The teacher of a store as questions need it: loaded when first asked, and no more of it than the question takes."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m3di.query.text_tower import TextTower, read_files, read_text_tower
from stores import Store
from stores.errors import DamagedError

if TYPE_CHECKING:
    from m3di.teachers.clip import Teacher

Floats = npt.NDArray[np.float32]


class AskedTeacher:
    """A teacher that a store keeps.

    Its files are held against the digests that the store keeps of them, which takes a tenth of the time of the
    fingerprint of all tensors. So rows that an older version of m3di made with the same weights can still be asked,
    although it embedded with slightly other rounding.

    Args:
        store: An open store.
        fingerprint: The teacher.
        device: Where the whole model runs, when it is needed.
    """

    def __init__(self, store: Store, fingerprint: str, *, device: str) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._device = device
        self.facts: Mapping[str, Any] = store.facts("teacher", fingerprint) or {}

    def encode_text(self, text: str) -> Floats:
        """Unit vector of a text, (e,).

        Raises:
            DamagedError: E_WEIGHTS, when the teacher's folder is not what was written.
        """
        if self._text_tower is not None:
            return self._text_tower.encode(text)
        return self._teacher.encode_text([text])[0].float().cpu().numpy()

    def encode_images(self, images: npt.NDArray[np.uint8]) -> Floats:
        """Unit vectors (s, e) of grey images (s, y, x).

        Raises:
            DamagedError: E_WEIGHTS, when the teacher's folder is not what was written.
        """
        import torch  # noqa: PLC0415

        return self._teacher.encode_image(torch.from_numpy(images)).float().cpu().numpy()

    @cached_property
    def _text_tower(self) -> TextTower | None:
        digests = self.facts.get("files")
        if not digests:
            return None
        files = read_files(self._store.teacher_folder(self._fingerprint))
        self._require_same({name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, digests)
        return read_text_tower(files)

    @cached_property
    def _teacher(self) -> "Teacher":
        from m3di.teachers.clip import load_teacher  # noqa: PLC0415
        from m3di.teachers.folder import digests_of  # noqa: PLC0415
        from m3di.teachers.stage import kept_teacher  # noqa: PLC0415
        from m3di.training.runtime import pick_device, prepare_process  # noqa: PLC0415

        digests = self.facts.get("files")
        if not digests:
            return kept_teacher(self._store, self._fingerprint, device=self._device)
        prepare_process()
        folder = self._store.teacher_folder(self._fingerprint)
        found = digests_of(folder)
        self._require_same({name: found.get(name, "") for name in digests}, digests)
        return load_teacher(f"local-dir:{folder}", device=str(pick_device(self._device)))

    def _require_same(self, found: Mapping[str, str], kept: Mapping[str, str]) -> None:
        wrong = sorted(name for name, digest in found.items() if kept.get(name) != digest)
        if wrong:
            folder = self._store.teacher_folder(self._fingerprint)
            message = f"{folder / wrong[0]} is not the file that was kept"
            raise DamagedError("E_WEIGHTS", message, hint="run m3di verify, and restore it from a copy")
