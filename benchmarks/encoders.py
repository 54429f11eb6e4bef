"""What the encoders cost: parameters, tokens, FLOP, seconds of a forward pass; and a whole training step with PSAT.

    python benchmarks/encoders.py table [CUBE] [NAME ...]
    python benchmarks/encoders.py step NAME CUBE K [--checkpointing] [--batch B]

FLOP are 2 x MAC of the products and convolutions of a volume, as PyTorch counts them. Seconds are the best of two
forward passes without gradients, after that count. A step is forward, backward and AdamW; its memory is the process's
peak, weights and optimiser included. CPU seconds are those of all threads together, which other work on the machine
changes less.
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from m3di.networks.encoders import Encoder, EncoderOutput, as_module
from m3di.networks.psat import PlaneSliceAwareTransformer
from m3di.networks.registry import ENCODERS, create_encoder

EMBEDDING_DIM = 512


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    table.add_argument("cube", type=int, nargs="?", default=128)
    table.add_argument("names", nargs="*", default=list(ENCODERS), metavar="NAME")
    step = commands.add_parser("step")
    step.add_argument("name")
    step.add_argument("cube", type=int)
    step.add_argument("slices", type=int, metavar="K")
    step.add_argument("--batch", type=int, default=1)
    step.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print_table(arguments.cube, arguments.names)
    else:
        print_step(arguments)


def print_table(cube_size: int, names: list[str]) -> None:
    """One line for each encoder."""
    print(f"{torch.get_num_threads()} threads, one volume of {cube_size}^3")
    print("encoder       parameters       grid tokens width   GFLOP  seconds  CPU s")
    for name in names:
        encoder = create_encoder(name, cube_size=cube_size)
        module = as_module(encoder).eval()
        volume = torch.rand(1, 1, *(cube_size,) * 3)
        output, operations = counted(module, volume)
        with torch.no_grad():
            wall, cpu = min(timed(lambda: module(volume)) for _ in range(2))  # noqa: B023
        grid = "x".join(map(str, output.grid))
        print(
            f"{name:<12} {count(module):>11,} {grid:>10} {output.tokens.shape[1]:>6} {encoder.token_dim:>5} "
            f"{operations / 1e9:>7.1f} {wall:>8.2f} {cpu:>6.2f}",
            flush=True,
        )


def print_step(arguments: argparse.Namespace) -> None:
    """Seconds of three steps, and the peak memory of the process."""
    encoder = create_encoder(arguments.name, cube_size=arguments.cube)
    if arguments.checkpointing:
        as_module(encoder).checkpointing = True  # type: ignore[assignment]
    psat = PlaneSliceAwareTransformer(encoder.token_dim, embedding_dim=EMBEDDING_DIM, num_slices=arguments.cube)
    model = nn.ModuleList([as_module(encoder), psat])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = peak_gib()
    seconds = [timed(lambda: step(encoder, psat, optimizer, arguments)) for _ in range(3)]
    print(
        f"{arguments.name} + PSAT, {count(model):,} parameters, {arguments.cube}^3, batch {arguments.batch}, "
        f"K = {arguments.slices}, checkpointing {arguments.checkpointing}, {torch.get_num_threads()} threads"
    )
    print(f"seconds (CPU seconds): {', '.join(f'{wall:.2f} ({cpu:.2f})' for wall, cpu in seconds)}")
    print(f"peak {peak_gib():.2f} GiB, before {before:.2f} GiB")


def step(
    encoder: Encoder,
    psat: PlaneSliceAwareTransformer,
    optimizer: torch.optim.Optimizer,
    arguments: argparse.Namespace,
) -> None:
    """One update by a contrastive loss of the slices among each other."""
    shape = (arguments.batch, arguments.slices)
    volumes = torch.rand(arguments.batch, 1, *(arguments.cube,) * 3)
    targets = F.normalize(torch.randn(shape[0] * shape[1], EMBEDDING_DIM), dim=-1)
    tokens = encoder(volumes).tokens
    predictions = psat(tokens, torch.randint(3, shape), torch.randint(arguments.cube, shape)).flatten(0, 1)
    logits = F.normalize(predictions, dim=-1) @ targets.T / 0.07
    loss = F.cross_entropy(logits, torch.arange(len(targets)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def counted(module: nn.Module, volume: torch.Tensor) -> tuple[EncoderOutput, int]:
    """Output and FLOP of a pass; fused attention, which the counter does not know on CPU, is taken apart for it."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = module(volume)
    return output, counter.get_total_flops()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and CPU seconds of the process."""
    begun, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - busy


def peak_gib() -> float:
    """The most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
