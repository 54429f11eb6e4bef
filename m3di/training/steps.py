"""The gradients of one batch, which may lie in parts and on several processes: the same as of one whole batch.

The contrastive loss compares every slice of a batch with every other, so its gradients cannot be added up part by
part as usual. Instead the vectors of all parts are computed without gradients first; the loss of all of them gives
its gradient by each vector; then every part is computed again, and that gradient sent back through it. Random
numbers, such as those of dropout, are keyed by a part's place in the run, so both passes see the same.

Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"
(arXiv 2101.06983).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from m3di.training.augment import jitter_intensity
from m3di.training.distributed import World
from m3di.training.loader import Batch
from m3di.types import Bool, Float, Int64, Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Some volumes of a batch, on the device, as the model sees them.

    Attributes:
        volumes: Cubes in [0, 1].
        planes: Plane number of each slice.
        slices: Position of each slice in the cube.
        targets: The teacher's image and text embedding of each slice.
        names: Position of each volume in the index.
        clock: Samples seen before its first volume: the key of its random numbers.
        patches: The teacher's patch features of each slice, None without.
        voxel_mm: Edge of each cube's voxels, None where nobody asks.
    """

    volumes: Float[Tensor, "b 1 d h w"]
    planes: Int64[Tensor, "b k"]
    slices: Int64[Tensor, "b k"]
    targets: Float[Tensor, "b k 2 e"]
    names: Int64[Tensor, " b"]
    clock: int
    patches: Float[Tensor, "b k p c"] | None = None
    voxel_mm: Float[Tensor, " b"] | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model makes of a part.

    Attributes:
        vectors: One for each slice.
        local: Losses within the part: means over it, weighted.
    """

    vectors: Float[Tensor, "s e"]
    local: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a batch came to, the gradients apart.

    Attributes:
        losses: All losses, weighted: their sum is the loss.
        names: Position in the index of each volume of the whole batch.
        finite: Which of those have vectors that are finite.
    """

    losses: dict[str, Tensor]
    names: Int64[Tensor, " b"]
    finite: Bool[Tensor, " b"]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """What was minimised."""
        return torch.stack(list(self.losses.values())).sum()


Predict = Callable[[Part], Prediction]


def cut(
    batch: Batch, num_parts: int, device: torch.device, *, clock: int, jitter_seed: int | None = None,
    voxel_mm: Float[Tensor, " n"] | None = None,
) -> list[Part]:  # fmt: skip
    """Cut a process's share of a batch into parts of equally many volumes.

    Args:
        batch: The share.
        num_parts: Must divide its volumes.
        device: Where the parts shall be.
        clock: Samples seen before its first volume.
        jitter_seed: Seed by which intensities are changed; None leaves them.
        voxel_mm: Edge of the voxels of every volume of the index.
    """

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)  # without a wait where the reader's memory is page-locked

    size = len(batch.volumes) // num_parts
    names, patches = torch.from_numpy(batch.draw.volumes), batch.patches
    parts = []
    for start in range(0, len(batch.volumes), size):
        some = slice(start, start + size)
        volumes = moved(batch.volumes[some]).float()
        if jitter_seed is not None:
            epochs = batch.draw.epochs[some]
            volumes = jitter_intensity(volumes, seed=jitter_seed, epochs=epochs, names=batch.draw.volumes[some])
        parts.append(
            Part(
                volumes=volumes,
                planes=moved(batch.planes[some]),
                slices=moved(batch.slices[some]),
                targets=moved(batch.targets[some]).float(),
                names=moved(names[some]),
                clock=clock + start,
                patches=None if patches is None else moved(patches[some]).float(),
                voxel_mm=None if voxel_mm is None else moved(voxel_mm[names[some]]),
            )
        )
    return parts


def compute_gradients(
    model: nn.Module, parts: Sequence[Part], predict: Predict, pooled: nn.Module, world: World
) -> Outcome:
    """Fill `grad` of the model's weights with the gradient of the loss of all processes' parts together.

    Args:
        model: The weights, those of `pooled` among them; their gradients are empty before.
        parts: This process's share of the batch.
        predict: The model's forward pass over a part.
        pooled: The losses of all slices of the batch, from vectors and targets and each slice's plane, place and
            volume. It must give every process the same.
        world: The processes.
    """
    whole = len(parts) == 1
    predictions = [predict(parts[0])] if whole else _without_gradients(model, parts, predict)
    vectors = torch.cat([prediction.vectors.detach() for prediction in predictions]).requires_grad_()
    outcome = _pooled_losses(vectors, parts, pooled, world)
    gradients = torch.zeros_like(vectors) if vectors.grad is None else vectors.grad
    local: dict[str, Tensor] = {}
    for number, (part, gradient) in enumerate(zip(parts, gradients.chunk(len(parts)), strict=True)):
        prediction = predictions[number] if whole else predict(part)
        shares = {name: loss / (len(parts) * world.size) for name, loss in prediction.local.items()}
        roots = [share for share in shares.values() if share.requires_grad]
        torch.autograd.backward([prediction.vectors, *roots], [gradient, *(None for _ in roots)])
        for name, share in shares.items():
            local[name] = local.get(name, 0) + share.detach()
    world.sum_gradients(model.parameters())
    world.share_statistics(model)
    sums = {name: world.gather(share.reshape(1)).sum() for name, share in local.items()}
    return replace(outcome, losses={**outcome.losses, **sums})


def _without_gradients(model: nn.Module, parts: Sequence[Part], predict: Predict) -> list[Prediction]:
    """Predict all parts and keep their vectors alone; running statistics are left to the second pass."""
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        predictions = [Prediction(predict(part).vectors, {}) for part in parts]
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return predictions


def _pooled_losses(vectors: Float[Tensor, "s e"], parts: Sequence[Part], pooled: nn.Module, world: World) -> Outcome:
    """The losses of the whole batch, their gradient sent to this process's vectors and the losses' own weights."""
    num_slices = parts[0].planes.shape[1]
    names = world.gather(torch.cat([part.names for part in parts]))
    every = world.gather(vectors)
    losses = pooled(
        every,
        world.gather(torch.cat([part.targets for part in parts])).flatten(0, 1),
        planes=world.gather(torch.cat([part.planes for part in parts])).flatten(),
        slices=world.gather(torch.cat([part.slices for part in parts])).flatten(),
        volumes=names.repeat_interleave(num_slices),
    )
    torch.autograd.backward([loss for loss in losses.values() if loss.requires_grad])
    for parameter in pooled.parameters():
        if parameter.grad is not None:
            parameter.grad /= world.size  # every process has the whole of it, and they are going to be added up
    finite = every.detach().isfinite().unflatten(0, (-1, num_slices)).flatten(1).all(dim=1)
    return Outcome({name: loss.detach() for name, loss in losses.items()}, names, finite)


@contextmanager
def keyed_randomness(seed: int, clock: int, device: torch.device) -> Iterator[None]:
    """Within the block, torch's random numbers depend on the seed and the clock alone; outside they are as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, clock]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
