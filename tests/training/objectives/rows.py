"""Random rows and groups for the tests of objectives."""

import torch


def embeddings(seed, s=6, e=8, dtype=torch.float64):
    return torch.randn(s, e, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def same_group(groups):
    groups = torch.tensor(groups)
    return groups[:, None] == groups[None]
