"""Clusters as a scene of single bounces would give them."""

import torch

from sensing.coarse.clusters import Clusters

UE = torch.tensor([12.0, 25.0, 1.5], dtype=torch.float64)


def clusters_at(position, ue=UE, beta=3.0, std=0.05, seed=0):
    """Clusters whose excess agrees with a user, up to noise."""
    position = torch.as_tensor(position, dtype=torch.float64)[None]
    count = position.shape[1]
    noise = std * torch.randn(1, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Clusters(
        path=torch.zeros(1, count, 4, dtype=torch.int64),
        position=position,
        excess=(position - ue).norm(dim=-1) + beta + noise,
        covariance=(std**2 / 2 * torch.eye(4, dtype=torch.float64)).expand(1, count, 4, 4),
        log_ratio=torch.ones(1, count, dtype=torch.float64),
        mask=torch.ones(1, count, dtype=torch.bool),
    )


def scattered(count=6, seed=1):
    """Points anywhere in the hall [count xyz]."""
    unit = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return unit * torch.tensor([38.0, 38.0, 7.0]) + torch.tensor([1.0, 1.0, 0.5])
