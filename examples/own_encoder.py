"""Your own encoder: a small convolutional one, pretrained on a store by its place, `own_encoder:PatchEncoder`.

    python examples/own_encoder.py store runs/own

What an encoder owes is in `m3di.networks.encoders`: `token_dim`, `token_stride`, `cube_size`, a constructor that
takes the keyword `cube_size`, and an `EncoderOutput` for volumes (b, 1, d, h, w). From the command line the same is

    PYTHONPATH=examples m3di pretrain --store store --run runs/own --encoder own_encoder:PatchEncoder

and a package gives it a name of its own by an entry point in its pyproject.toml:

    [project.entry-points."m3di.encoders"]
    patches = "own_encoder:PatchEncoder"
"""

import argparse
from pathlib import Path

from torch import nn

import m3di

PLACE = "own_encoder:PatchEncoder"


class PatchEncoder(nn.Module):
    """Blocks of 8 voxels as tokens, mixed with their neighbours by two convolutions."""

    def __init__(self, *, cube_size, width=64):
        super().__init__()
        self.cube_size, self.token_dim, self.token_stride = cube_size, width, 8
        self.patches = nn.Conv3d(1, width, kernel_size=8, stride=8)
        self.mix = nn.Sequential(
            nn.GroupNorm(8, width), nn.GELU(), nn.Conv3d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.GELU(), nn.Conv3d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, volume):
        """Encode volumes with intensities in [0, 1]."""
        features = self.patches(volume)
        features = features + self.mix(features)
        tokens = features.flatten(2).transpose(1, 2)
        return m3di.EncoderOutput(tokens, grid=tuple(features.shape[2:]), pyramid=[features])


def show(event, /, **facts):
    """Print what happens."""
    print(event, *(f"{name} {value}" for name, value in facts.items()))


def main():
    """Check the encoder once, pretrain it, and load it again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="a store that m3di build-store made")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for m3di pretrain")
    given = parser.parse_args()

    with m3di.Store(given.store) as store:
        m3di.check_outputs(m3di.create_encoder(PLACE, cube_size=store.recipe.cube_size))
    config = m3di.load_config(settings=[f"encoder.name={PLACE}", *given.set])
    summary = m3di.pretrain(given.store, given.run, config, report=show)
    encoder = m3di.load_encoder(given.run, named=PLACE)
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    print(f"{summary.samples_seen} volumes seen; {type(encoder).__name__} with {weights:,} weights in {given.run}")


if __name__ == "__main__":
    main()
