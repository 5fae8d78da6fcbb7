"""Smooth random functions of the depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ..checks import count, positive, random_source, underived
from ..depth.grid import Profile
from ..depth.products import along


@dataclass(frozen=True, eq=False)
class Smooth:
    """W0(s) = Σ_k a_k cos(kπs): `coefficients` a_k of shape `(n, d, d)`."""

    coefficients: Tensor

    @cached_property
    def skew(self) -> bool:
        """Whether it is skew at all depths, to the bit."""
        return torch.equal(self.coefficients.mT, -self.coefficients)

    def __call__(self, s: float) -> Tensor:
        return self._at(_cosines(np.array([s]).tobytes(), len(self.coefficients))).squeeze(-3)

    def at(self, nodes: Tensor) -> Tensor:
        """The same at depths (n,)."""
        return self._at(_known_cosines(_digits(nodes), len(self.coefficients)))

    def _at(self, waves: np.ndarray) -> Tensor:
        return along(torch.from_numpy(waves), self.coefficients.flatten(1)).unflatten(-1, self.coefficients.shape[1:])


@dataclass(frozen=True, eq=False)
class SmoothNumber:
    """λ(s) = size · Σ_k a_k cos(kπs)/(1+k): `coefficients` a_k."""

    size: float
    coefficients: tuple[float, ...]

    def __call__(self, s: float) -> float:
        return float(self._at(_waves(np.array([s]).tobytes(), len(self.coefficients)))[0])

    def at(self, nodes: Tensor) -> Tensor:
        """The same at depths (n,), to the bit."""
        return torch.from_numpy(self._at(_known_waves(_digits(nodes), len(self.coefficients))))

    def _at(self, waves: np.ndarray) -> np.ndarray:
        terms = (a * wave / (1 + k) for k, (a, wave) in enumerate(zip(self.coefficients, waves, strict=True)))
        return self.size * sum(terms, np.zeros(waves.shape[1]))


def _digits(nodes: Tensor) -> bytes:
    """Depths as the caches below know them."""
    underived("s", nodes, "cosines are computed")
    return nodes.detach().cpu().double().numpy().tobytes()


def _waves(nodes: bytes, terms: int) -> np.ndarray:
    """cos(kπs) of numbers, `(terms, n)`."""
    return np.array([[math.cos(k * math.pi * s) for s in np.frombuffer(nodes).tolist()] for k in range(terms)])


def _cosines(nodes: bytes, terms: int) -> np.ndarray:
    """The same as torch has them, `(n, terms)`."""
    k = torch.arange(terms, dtype=torch.float64, device="cpu")
    return torch.cos(torch.pi * torch.from_numpy(np.frombuffer(nodes).copy())[:, None] * k).numpy()


# Many profiles are looked at in the same depths.
_known_waves, _known_cosines = lru_cache(maxsize=8)(_waves), lru_cache(maxsize=16)(_cosines)


def smooth(d: int, scale: float, generator: torch.Generator, terms: int = 4) -> Profile:
    """A smooth random profile Σ_k a_k cos(kπs), not relaxed balanced.

    The entries of a_k are independent and normal, of size scale/(1 + k)/√d.

    Raises
    ------
    TypeError, ValueError
        If d or terms is not an integer of at least 1, scale not above 0, or generator none of torch's.

    Examples
    --------
    >>> W0 = nf.smooth(3, scale=0.5, generator=torch.Generator().manual_seed(0))
    >>> W0(0.25).shape
    torch.Size([3, 3])
    """
    size, k = positive("scale", scale), torch.arange(count("terms", terms), dtype=torch.float64, device="cpu")
    weights = size / (1 + k) / math.sqrt(count("d", d))
    noise = torch.randn(terms, d, d, dtype=torch.float64, generator=random_source("generator", generator), device="cpu")
    return Smooth(weights[:, None, None] * noise)


def random_twist(d: int, size: float, generator: torch.Generator) -> Callable[[float], Tensor]:
    """A smooth random skew Ω(s) = Σ_k A_k cos(kπs)/(1+k), k < 4, with ‖A_0‖ about `size` in the spectral norm."""
    raw = torch.randn(4, d, d, dtype=torch.float64, generator=random_source("generator", generator), device="cpu")
    scale = size / (1 + torch.arange(4, dtype=torch.float64, device="cpu")) / (2 * math.sqrt(2 * d))
    return Smooth(scale[:, None, None] * (raw - raw.mT))


def random_shift(size: float, generator: torch.Generator) -> Callable[[float], float]:
    """A smooth random λ(s) = size · Σ_k a_k cos(kπs)/(1+k), k < 4, with normal a_k."""
    a = torch.randn(4, dtype=torch.float64, generator=random_source("generator", generator), device="cpu").tolist()
    return SmoothNumber(size, tuple(a))


def random_direction(d: int, size: float, generator: torch.Generator) -> Tensor:
    """A normal random matrix (d, d) with a Frobenius norm of about `size`."""
    return (
        size / d * torch.randn(d, d, dtype=torch.float64, generator=random_source("generator", generator), device="cpu")
    )
