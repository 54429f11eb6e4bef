import pytest
import torch

from m3di.teachers.copies import staged


def test_on_a_cpu_the_batches_are_passed_on_one_by_one_as_they_are():
    made = []

    def batches():
        for number in range(3):
            made.append(number)
            yield torch.full((2,), number)

    passed = staged(batches(), torch.device("cpu"))
    assert next(passed).tolist() == [0, 0]
    assert made == [0], "nothing is read ahead"
    assert [batch.tolist() for batch in passed] == [[1, 1], [2, 2]]
    whole = torch.arange(6)
    assert next(staged([whole], torch.device("cpu"))).data_ptr() == whole.data_ptr()
    assert list(staged([], torch.device("cpu"))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_every_batch_arrives_whole_and_in_order():
    device = torch.device("cuda", torch.cuda.current_device())
    images = torch.randint(0, 255, (50, 3, 256, 256), dtype=torch.uint8)
    sums = [batch.long().sum(dim=(1, 2, 3)) for batch in staged(images.split(8), device)]
    assert all(part.device == device for part in sums)
    assert torch.equal(torch.cat(sums).cpu(), images.long().sum(dim=(1, 2, 3)))
    assert list(staged([], device)) == []
