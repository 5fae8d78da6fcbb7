"""Profiles that are led astray between the ends of the depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import square
from ..depth.grid import Profile, check_profile, sample
from ..matrices import matrix_exp


@dataclass(frozen=True, eq=False)
class Detour:
    """The profile of the path P̃(s,0) = exp(β sin(πs) N) P(s,0): the same end-to-end map by another way.

    W̃ = βπ cos(πs) N + e^{B} W e^{−B} with B = β sin(πs) N. It keeps z₀ and, unless N is skew, breaks relaxed balance.

    Raises
    ------
    TypeError, ValueError
        If profile is no function, or direction no finite square matrix.

    Examples
    --------
    >>> z0 = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> detour = nf.Detour(nf.balanced(z0), direction=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=4, order=12), nf.Quadratic(torch.eye(2)))
    >>> float((flow.product(flow.sample(detour)) - z0).abs().max()) < 1e-12
    True
    """

    profile: Profile
    direction: Tensor

    def __post_init__(self) -> None:
        check_profile("profile", self.profile)
        square("direction", self.direction)

    def __call__(self, s: float) -> Tensor:
        return self.at(torch.tensor([s], dtype=torch.float64, device="cpu")).squeeze(-3)

    def at(self, nodes: Tensor) -> Tensor:
        W = sample(self.profile, nodes)
        s = torch.pi * nodes.to(W)[:, None, None]
        B = torch.sin(s) * self.direction.to(W)
        turned = matrix_exp(B) @ W @ matrix_exp(-B)
        return torch.pi * torch.cos(s) * self.direction.to(W) + turned
