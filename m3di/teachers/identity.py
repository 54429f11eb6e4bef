"""What a fitted teacher answers to: a digest that says whether the store has it. Needs no torch."""

from m3di.config import Config
from stores.recipe import digest_of


def teacher_request(config: Config, captioner: str) -> str:
    """Identity of the settings that a fitted teacher answers to."""
    return digest_of({"teacher": config.to_dict()["teacher"], "captioner": captioner, "seed": config.seed})
