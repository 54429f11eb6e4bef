"""Trainers for nnU-Net, which finds them by `nnUNet_extTrainer`: two steps, and the weights that they began with."""

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

try:
    from nnunetv2.training.nnUNetTrainer.pretraining.pretrainedTrainer import PretrainedTrainer
except ImportError:  # releases before the newer entry
    PretrainedTrainer = None


class _TwoSteps:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads(1)  # nnU-Net takes one a core of the machine, however few it may use
        self.num_epochs = 1
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1

    def on_train_start(self):
        super().on_train_start()
        torch.save(self.network.state_dict(), Path(self.output_folder) / "begun.pth")


class TwoSteps(_TwoSteps, nnUNetTrainer):
    pass


if PretrainedTrainer is not None:

    class TwoStepsPretrained(_TwoSteps, PretrainedTrainer):
        pass
