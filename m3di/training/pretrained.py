"""What a pretraining run has made, for use elsewhere: its encoder, and the recipe of the cubes that it has seen."""

from pathlib import Path

from m3di.networks.encoders import Encoder, as_module
from m3di.networks.registry import create_encoder
from m3di.training import checkpoint
from stores.recipe import Recipe


def load_encoder(run: Path, *, named: str = "") -> Encoder:
    """The encoder of a pretraining run, on the CPU, in evaluation mode; its moving average where the run kept one.

    Args:
        run: The run's folder.
        named: The encoder that you name, where it is code that neither m3di nor an installed package declares
            (`Checkpoint.encoder`).

    Returns:
        An `nn.Module` that turns cubes (b, 1, d, h, w) in [0, 1] into an `EncoderOutput`.

    Raises:
        RefusedError: E_WEIGHTS, when there is no pretraining checkpoint; E_NETWORK, for code that only the run names.
        DamagedError: E_WEIGHTS, when a file is not what was written.
    """
    return encoder_of(checkpoint.load(run, kind="pretrain"), named=named)


def encoder_of(found: checkpoint.Checkpoint, *, named: str = "") -> Encoder:
    """The encoder of a checkpoint of pretraining; see `load_encoder`."""
    facts = found.encoder(named=named)
    size = Recipe.from_dict(found.facts["recipe"]).cube_size
    encoder = create_encoder(facts["name"], cube_size=size, **facts["options"])
    as_module(encoder).load_state_dict(found.encoder_weights())
    as_module(encoder).eval()
    return encoder


def recipe_of(run: Path) -> Recipe:
    """How scans became the cubes that a pretraining run has seen; `make_cube` makes more of them.

    Raises:
        RefusedError: E_WEIGHTS, when there is no pretraining checkpoint.
    """
    return Recipe.from_dict(checkpoint.load(run, kind="pretrain").facts["recipe"])
