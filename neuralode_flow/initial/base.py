"""Where initialisations are filed by name, and the simplest profiles.

A profile is a function of the depth s; it may have a method `at(nodes)` that evaluates many depths at once, and a
method `layers(nodes)` when the layers of a finite network are not its values (rough layers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import count, placed, square, underived
from ..depth.grid import Profile
from ..matrices import real_log
from ..registry import Registry

# (z₀, settings) → a profile with P(1,0) = z₀, or one of its own.
INITIALS: Registry[Callable[..., Profile]] = Registry("initialisation")


@dataclass(frozen=True, eq=False)
class Constant:
    """W0(s) = W for every s; W of shape `(..., d, d)`."""

    W: Tensor

    def __call__(self, s: float) -> Tensor:
        return self.W

    def at(self, nodes: Tensor) -> Tensor:
        return self.W.unsqueeze(-3).expand(*self.W.shape[:-2], len(nodes), *self.W.shape[-2:]).clone()


def identity(d: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Profile:
    """W = 0, so z₀ = I; balanced.

    Examples
    --------
    >>> nf.identity(2)(0.5).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    placed(dtype, device)
    return Constant(torch.zeros(count("d", d), d, dtype=dtype, device=device))


def control(z0: Tensor) -> Profile:
    """The negative control W = log z₀, constant: the same z₀, but not relaxed balanced unless z₀ is normal.

    Raises
    ------
    ValueError
        If z₀ is singular or has no real logarithm.

    Examples
    --------
    >>> W0 = nf.control(torch.tensor([[1.0, 3.0], [0.0, 1.0]]))
    >>> bool(torch.allclose(W0(0.7), torch.tensor([[0.0, 3.0], [0.0, 0.0]])))
    True
    """
    square("z0", z0)
    underived("z0", z0, "its logarithm is computed")
    sigma = torch.linalg.svdvals(z0)
    if bool((sigma.amin(-1) <= torch.finfo(z0.dtype).eps * sigma.amax(-1)).any()):
        raise ValueError(
            f"z0 has no real logarithm: it is singular to round-off, with singular values of up to "
            f"{float(sigma.max()):.3g}; choose another matrix"
        )
    return Constant(real_log("z0", z0))
