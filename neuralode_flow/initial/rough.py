"""Layers with independent noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import count, positive, seeded
from ..depth.grid import Profile, check_profile, sample


@dataclass(frozen=True, eq=False)
class Rough:
    """Layers W_k = W(s_k) + ε_k with independent normal entries of size `noise`; `networks` of them at once.

    The continuous model starts from W itself; finite networks reach it at order about ½ only, which is `order`.

    Raises
    ------
    TypeError, ValueError
        If profile is no function, noise is not above 0, networks is no integer of at least 1, or seed none in [0, 2³²).

    Examples
    --------
    >>> start = nf.Rough(nf.identity(2), noise=0.5, networks=8, seed=0)
    >>> flow = nf.FiniteFlow(depth=16, loss=nf.Quadratic(torch.eye(2)))
    >>> flow.sample(start).shape
    torch.Size([8, 16, 2, 2])
    """

    order: ClassVar[float] = 0.5

    profile: Profile
    noise: float
    networks: int
    seed: int

    def __post_init__(self) -> None:
        check_profile("profile", self.profile)
        positive("noise", self.noise)
        count("networks", self.networks)
        seeded("seed", self.seed)

    def __call__(self, s: float) -> Tensor:
        return self.profile(s)

    def at(self, nodes: Tensor) -> Tensor:
        return sample(self.profile, nodes)

    def layers(self, nodes: Tensor) -> Tensor:
        """`(networks, L, d, d)`; other depths draw other noise from the same seed."""
        base = sample(self.profile, nodes)
        generator = torch.Generator().manual_seed(int(self.seed) + len(nodes))
        noise = torch.randn(self.networks, *base.shape, dtype=torch.float64, generator=generator, device="cpu")
        return base + self.noise * noise.to(base)
