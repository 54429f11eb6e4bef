"""Batches on their way to the device: on CUDA the next one is copied while the one before is worked on."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def staged(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Give batches on the device, in their order; on a CPU they are passed on as they are.

    On CUDA a batch is copied from page-locked memory by a stream of its own. Its copy begins before the batch ahead
    of it is given out, so both go on at once; work that is queued after a batch was given out waits for its copy.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copying, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(copying):
            moved = batch.pin_memory().to(device, non_blocking=True)
        if ahead is not None:
            yield ahead
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        moved.record_stream(working)  # so that its memory is not given away while the work on it is queued
        ahead = moved
    if ahead is not None:
        yield ahead
