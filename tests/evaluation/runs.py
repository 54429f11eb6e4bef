"""Small fine-tuned runs to evaluate and predict with."""

from m3di.config import load_config
from m3di.events import ignore
from m3di.tasks.data import prepare_task
from m3di.tasks.registry import load_task
from m3di.training.finetune import finetune

SIZES = [
    "volumes.cube_size=16", "finetune.max_steps=2", "finetune.evaluate_every=100", "finetune.checkpoint_every=100",
    "split.ratios=[0.5, 0.25, 0.25]", "split.seed=3",
]  # fmt: skip
# Enough to find the structures of the phantom heads, if badly.
LEARNT = (
    "finetune.max_steps=60", "finetune.learning_rate=3e-3", "finetune.affine_augmentation=false",
    "finetune.intensity_augmentation=false", "finetune.ema_decay=0.5",
)  # fmt: skip


def train(task, data, run, *settings, seed=0, **options):
    """Fine-tune in this process alone, without workers."""
    config = load_config(preset="smoke", settings=[*SIZES, *settings], overrides=[("seed", seed)])
    cubes = run.parent / ".data"
    prepare_task(load_task(task, data), config.volumes, cubes, workers=0, report=ignore)
    finetune(task, data, run, config, cubes_folder=cubes, device="cpu", report=ignore, **options)
    return run
