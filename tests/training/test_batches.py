import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3di.training.batches import BalancedShuffle, read_ahead


class Numbers:
    """Cubes that are their own numbers."""

    def __init__(self, broken=None):
        self.broken = broken
        self.reads = 0

    def read(self, volumes):
        self.reads += 1
        if self.broken in volumes:
            raise OSError("gone")
        cubes = torch.tensor(volumes).float().view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2)
        return cubes, -torch.tensor(volumes)


@given(st.lists(st.integers(0, 2), min_size=3, max_size=20), st.integers(0, 5), st.integers(1, 7), st.integers(0, 50))
def test_classes_come_equally_often(targets, seed, batch_size, start):
    order = BalancedShuffle(targets, seed=seed)
    num_classes = len(set(targets))
    names, _ = order.draw(start * num_classes, 6 * num_classes)
    counts = np.unique(np.array(targets)[names], return_counts=True)[1]
    assert counts.tolist() == [6] * num_classes
    again = np.concatenate([order.draw(clock, batch_size)[0] for clock in range(0, 21, batch_size)])
    assert again.tolist() == BalancedShuffle(targets, seed=seed).draw(0, len(again))[0].tolist()


def test_every_member_of_a_class_comes_once_in_its_epoch():
    targets = [0, 1, 0, 0, 1]
    names, epochs = BalancedShuffle(targets, seed=1).draw(0, 12)
    of_first = [(name, epoch) for name, epoch in zip(names, epochs, strict=True) if targets[name] == 0]
    assert sorted(of_first) == [(name, epoch) for name in (0, 2, 3) for epoch in (0, 1)]
    of_second = [epoch for name, epoch in zip(names, epochs, strict=True) if targets[name] == 1]
    assert of_second == [0, 0, 1, 1, 2, 2]


def numbers(batch):
    return batch.volumes[:, 0, 0, 0, 0].tolist()


def draw(samples_seen, batch_size):
    return np.arange(samples_seen, samples_seen + batch_size) % 4, np.zeros(batch_size, int)


def test_batches_come_in_order_from_the_training_volumes():
    batches = list(read_ahead(Numbers().read, [10, 11, 12, 13], draw, start=2, stop=8, batch_size=2))
    assert [numbers(batch) for batch in batches] == [[12, 13], [10, 11], [12, 13]]
    assert [batch.labels.tolist() for batch in batches] == [[-12, -13], [-10, -11], [-12, -13]]
    assert batches[0].names.tolist() == [2, 3]


def test_an_error_comes_with_its_batch_and_nothing_is_read_in_vain():
    cubes = Numbers(broken=13)
    batches = read_ahead(cubes.read, [10, 11, 12, 13], draw, start=0, stop=8, batch_size=2)
    assert numbers(next(batches)) == [10, 11]
    with pytest.raises(OSError, match="gone"):
        next(batches)
    assert list(read_ahead(cubes.read, [10], draw, start=8, stop=8, batch_size=2)) == []
    assert cubes.reads == 2
