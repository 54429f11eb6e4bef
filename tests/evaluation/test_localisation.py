import pytest
import torch

from m3di.evaluation.localisation import score_localisation


def score(predictions, targets, planes, positions, volumes):
    return score_localisation(
        torch.tensor(predictions), torch.tensor(targets), planes=torch.tensor(planes),
        positions=torch.tensor(positions), volumes=torch.tensor(volumes), cube_size=10,
    )  # fmt: skip


def test_slices_are_looked_for_in_their_own_volume():
    # Volume 0: the first slice is found, the second is taken for the first, 4 of 10 voxels off; the third, of the
    # other plane, is taken for the second. Volume 1 has one slice, and what lies nearer in volume 0 does not matter.
    axes = torch.eye(4).tolist()
    predictions = [axes[0], axes[1], axes[2], axes[3]]
    targets = [axes[0], axes[0], axes[1], axes[1]]
    scores = score(predictions, targets, [0, 0, 1, 2], [2, 6, 5, 5], [0, 0, 0, 1])
    assert scores.plane_accuracy == pytest.approx(3 / 4)
    assert scores.position_error == pytest.approx((0 + 0.4 + 0) / 3)
    # Blindly: the first two hit each other or themselves, 0.2 on average; the others are alone in their planes.
    assert scores.position_error_chance == pytest.approx((0.2 + 0.2 + 0 + 0) / 4)


def test_no_slice_in_its_plane_is_no_distance():
    swapped = [[0.0, 1.0], [1.0, 0.0]]
    scores = score(torch.eye(2).tolist(), swapped, [0, 1], [3, 3], [0, 0])
    assert (scores.plane_accuracy, scores.position_error) == (0, None)
