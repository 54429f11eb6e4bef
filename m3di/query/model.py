"""A pretrained encoder and PSAT as a second way to get the vectors of slices: what `m3di query --run` asks with."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from m3di.config import Config, validate
from m3di.evaluation.retrieval import held_out_slices
from m3di.networks.encoders import as_module
from m3di.networks.psat import PlaneSliceAwareTransformer
from m3di.training import checkpoint, runtime
from m3di.training.held_out import SLICES_PER_PLANE
from m3di.training.pretrain import check_recipe
from m3di.training.pretrained import encoder_of
from m3di.types import Tensor
from stores import Store
from stores.blocks import Rows
from stores.embeddings import EmbeddingStore
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.index import Indices

Floats = npt.NDArray[np.float32]
_AVERAGE = "ema"
_CHUNK = 64  # slices a pass of PSAT


class SliceModel:
    """The encoder and PSAT of a pretraining run, in evaluation mode.

    Args:
        run: The run's folder.
        store: A store of the run's recipe.
        width: Of the embeddings that it learnt.
        device: Where it runs.
        encoder: The encoder that the user names, if it is code that neither m3di nor an installed package declares.

    Raises:
        RefusedError: E_WEIGHTS, when there is no pretrained checkpoint, or it has no PSAT, as what `m3di export --to
            hub` wrote of a run; E_STORE, when it is of another recipe.
        DamagedError: E_WEIGHTS, when a file is not what was written.
    """

    def __init__(self, run: Path, store: Store, *, width: int, device: str, encoder: str = "") -> None:
        found = checkpoint.load(run, kind="pretrain")
        if not (found.has("psat") or found.has(_AVERAGE)):
            message = f"{run} holds an encoder alone, without the PSAT that makes vectors of slices"
            raise RefusedError("E_WEIGHTS", message, hint="name the pretraining run that it was exported from")
        check_recipe(found, store)
        runtime.prepare_process()
        self.config: Config = validate(found.facts["config"])
        self.teacher: str = found.facts["teacher"]
        self.samples_seen = found.samples_seen
        self._facts = found.facts
        self._store = store
        self._device = runtime.pick_device(device)
        size = store.recipe.cube_size
        network = encoder_of(found, named=encoder)
        psat = PlaneSliceAwareTransformer(
            network.token_dim, embedding_dim=width, num_slices=size, **asdict(self.config.psat)
        )
        psat.load_state_dict(_psat_weights(found))
        self._encoder = as_module(network).to(self._device)
        self._psat = psat.eval().to(self._device)

    def held_out(self, embeddings: EmbeddingStore) -> EmbeddingStore:
        """The rows of the volumes that the run has never seen, by its own record.

        Those are of people none of whose volumes it was trained on, and none is the same scan under another name.
        """
        trained_on = self._facts["trained_on"]
        people = {tuple(person) for volume, person in self._facts["people"].items() if volume in trained_on}
        digests = set(trained_on.values())
        records = [self._store.record(volume) for volume in embeddings.index.volumes]
        return embeddings.select([
            number for number, record in enumerate(records)
            if record.volume not in trained_on and record.source_digest not in digests
            and (record.dataset, record.subject) not in people
        ])  # fmt: skip

    @torch.no_grad()
    def vectors(self, volume: str, planes: Indices, slices: Indices) -> Floats:
        """Unit vectors (s, e) of some slices of a volume of the store."""
        record = self._store.record(volume)
        cube = torch.from_numpy(self._store.volumes.read("image", record.slot))[None, None]
        tokens = self._encoder(cube.to(self._device, torch.float32)).tokens
        voxel_mm = None
        if self.config.psat.positions == "mm":
            voxel_mm = torch.tensor([record.chain(self._store.recipe).voxel_mm], device=self._device)
        places = torch.from_numpy(np.stack([planes, slices])).to(self._device)
        parts = [self._psat(tokens, *part[:, None], voxel_mm)[0] for part in places.split(_CHUNK, dim=1)]
        return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1).cpu().numpy()


class ModelRows:
    """What a model makes of slices of volumes that it was not trained on, as rows of one part (`scan.RowSource`).

    Args:
        model: The model.
        held_out: The teacher's rows of those volumes: which slices there are.
        per_plane: Slices of each plane and volume, evenly spread, since PSAT takes its time for each.
    """

    def __init__(self, model: SliceModel, held_out: EmbeddingStore, *, per_plane: int = SLICES_PER_PLANE) -> None:
        valid = np.zeros((len(held_out), len(PLANES), 8 * held_out.index.valid.shape[-1]), bool)
        self._blocks: list[npt.NDArray[np.float16]] = []
        for number, volume in enumerate(held_out.index.volumes):
            planes, slices = (part.numpy() for part in held_out_slices(held_out.index, number, per_plane=per_plane))
            valid[number, planes, slices] = True
            rows = model.vectors(volume, planes, slices).astype("<f2")
            self._blocks += [rows[planes == plane] for plane in range(len(PLANES))]
        self.index = replace(held_out.index, valid=np.packbits(valid, axis=-1))

    def halves(self, part: int) -> list[npt.NDArray[np.int16]]:
        """The bits of every block; there is but one part."""
        return [block.view("<i2") for block in self._blocks]

    def reading(self) -> AbstractContextManager[object]:
        """They are in memory: nothing to hold."""
        return nullcontext()

    def gather(self, volumes: Indices, planes: Indices, slices: Indices) -> Rows:
        """Some rows, (b, k, 1, e)."""
        ranks = self.index.ranks(volumes, planes, slices)
        blocks = len(PLANES) * volumes[:, None] + planes
        flat = [self._blocks[block][rank] for block, rank in zip(blocks.flat, ranks.flat, strict=True)]
        return np.stack(flat).reshape(*planes.shape, 1, -1)


def _psat_weights(found: checkpoint.Checkpoint) -> dict[str, Tensor]:
    if not found.has(_AVERAGE):
        return found.weights("psat")
    prefix = "psat."
    averaged = found.weights(_AVERAGE).items()
    return {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}
