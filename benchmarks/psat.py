"""What K slices of a volume cost over one, and the shared form of PSAT against the literal one.

    python benchmarks/psat.py flops                     operations of a training step at K = 1 to 32, over K = 1
    python benchmarks/psat.py time [ENCODER] [REPEATS]  seconds of a training step at K = 1 to 32, over K = 1
    python benchmarks/psat.py forms [K]                 time and peak memory of PSAT's forms, each in its own process

Encoders `vit` and `nnformer` at 128^3 with their default sizes, PSAT with the paper's, one volume, forward and
backward pass, in float32, on CUDA or on the CPU. There the processor's seconds are counted: set OMP_NUM_THREADS=1,
as threads that wait for each other count too.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from m3di.networks.psat import PlaneSliceAwareTransformer, PSATLayer
from m3di.networks.registry import create_encoder

EDGE = 128
KS = (1, 2, 4, 8, 16, 32)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def networks(name: str, device: torch.device) -> tuple[nn.Module, PlaneSliceAwareTransformer]:
    """An encoder and the paper's PSAT."""
    torch.manual_seed(0)
    with device:
        encoder = create_encoder(name, cube_size=EDGE)
        return encoder, PlaneSliceAwareTransformer(encoder.token_dim, num_slices=EDGE)


def places(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Planes and positions of K slices of one volume."""
    with device:
        return torch.arange(k)[None] % 3, torch.arange(k)[None] * 3


def step(encoder: nn.Module, psat: nn.Module, volume: Tensor, k: int) -> None:
    """Forward and backward pass."""
    psat(encoder(volume).tokens, *places(k, volume.device)).square().mean().backward()
    encoder.zero_grad()
    psat.zero_grad()


def flops() -> None:
    """Count; nothing is computed."""
    meta = torch.device("meta")
    for name in ("vit", "nnformer"):
        encoder, psat = networks(name, meta)
        counts = []
        for k in KS:
            # The plain kernel, as the fused ones of the CPU are unknown to the counter.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                step(encoder, psat, torch.empty(1, 1, EDGE, EDGE, EDGE, device=meta), k)
            counts.append(counter.get_total_flops())
        show(f"{name}: {counts[0] / 1e9:.0f} GFLOP at K = 1", counts)


def times(name: str, repeats: int) -> None:
    """Measure, one K after another in turn; the fastest of the repeats counts."""
    encoder, psat = networks(name, DEVICE)
    volume = torch.rand(1, 1, EDGE, EDGE, EDGE, device=DEVICE)
    step(encoder, psat, volume, 1)
    taken = [[seconds(lambda k=k: step(encoder, psat, volume, k)) for k in KS] for _ in range(repeats)]
    fastest = [min(column) for column in zip(*taken, strict=True)]
    show(f"{name}: {fastest[0]:.3f} s at K = 1 on {DEVICE}, {torch.get_num_threads()} threads", fastest)


def seconds(work: Callable[[], None]) -> float:
    """How long some work takes: on the CPU the processor's time, as other work may run beside."""
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    synchronize()
    started = clock()
    work()
    synchronize()
    return clock() - started


def synchronize() -> None:
    """Wait for the accelerator."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def show(title: str, costs: list[float] | list[int]) -> None:
    """Print each K's cost over that of K = 1."""
    print(f"{title}; over it: " + ", ".join(f"K = {k} {c / costs[0]:.3f}" for k, c in zip(KS, costs, strict=True)))


def literal(psat: PlaneSliceAwareTransformer, tokens: Tensor, plane: Tensor, index: Tensor) -> Tensor:
    """PSAT as the paper has it: the position added to the tokens, keys and values made again for every slice."""
    position = psat.position[plane, index]
    memory = (psat.input_projection(tokens)[:, None] + position[:, :, None]).flatten(0, 1)
    queries = (psat.queries + position[:, :, None]).flatten(0, 1)
    for layer in psat.layers:
        queries = literal_layer(layer, queries, memory)
    return psat.projection(psat.norm(queries).mean(dim=1)).unflatten(0, plane.shape)


def literal_layer(layer: PSATLayer, queries: Tensor, memory: Tensor) -> Tensor:
    """One layer over the slices as a batch."""
    normed = layer.self_norm(queries)
    queries = queries + layer.self_attention(normed, normed)
    queries = queries + layer.cross_attention(layer.cross_norm(queries), memory)
    return queries + layer.mlp(layer.mlp_norm(queries))


FORMS = {
    "shared, fused attention": (lambda psat, *given: psat(*given), None),
    "literal, fused attention": (literal, None),
    "literal, stored attention": (literal, SDPBackend.MATH),
}


def form(name: str, num_tokens: int, k: int) -> None:
    """Time and peak memory of one form in this process: a line of three numbers and the output's sum."""
    torch.manual_seed(0)
    with DEVICE:
        psat = PlaneSliceAwareTransformer(768, num_slices=EDGE)
        nn.init.normal_(psat.position, std=0.02)
        tokens = torch.randn(1, num_tokens, 768).requires_grad_()
    forward, kernel = FORMS[name]

    def work() -> None:
        with sdpa_kernel(kernel or list(SDPBackend.__members__.values())):
            forward(psat, tokens, *places(k, DEVICE)).square().mean().backward()

    before = memory_mib()
    taken = [seconds(work) for _ in range(4)]
    with torch.no_grad():
        checked = float(forward(psat, tokens, *places(k, DEVICE)).double().abs().sum())
    print(min(taken[1:]), memory_mib() - before, checked)


def memory_mib() -> float:
    """Peak memory of this process, or of the accelerator."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forms(k: int) -> None:
    """Compare the forms at the tokens of a ViT and of a patch half as large."""
    for num_tokens in (64, 512, 4096):
        for name in FORMS:
            command = [sys.executable, __file__, "form", name, str(num_tokens), str(k)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            taken, peak, checked = (float(number) for number in output)
            print(
                f"K = {k}, {num_tokens} tokens, {name}: {taken:.3f} s, {peak:.0f} MiB, sum of outputs {checked:.5g}",
                flush=True,
            )


def main(arguments: list[str]) -> None:
    """Run one part."""
    match arguments:
        case ["flops"]:
            flops()
        case ["time", *rest]:
            times(rest[0] if rest else "vit", int(rest[1]) if len(rest) > 1 else 3)
        case ["forms", *rest]:
            forms(int(rest[0]) if rest else 8)
        case ["form", name, num_tokens, k]:
            form(name, int(num_tokens), int(k))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
