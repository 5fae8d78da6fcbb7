"""Layers that rewrite what they read (Deep Delta Learning): their update, their gates, and their limit in depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..depth.collocation import Collocation
from ..depth.grid import DepthGrid
from ..intrinsic.systems.base import Map
from ..intrinsic.systems.delta_block import phi_of

Gate = Callable[[Tensor], Tensor]

# Of h = b/L: the update with each of them is the layer of that rule for dX/ds = b k(vᵀ − kᵀX).
DEPTH_GATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "euler": lambda h: h,
    "cayley": lambda h: h / (1 + h / 2),
    "exp": lambda h: -np.expm1(-h),
}


def gate(c: Tensor) -> Tensor:
    """β = 2σ(c), in (0, 2)."""
    return 2 * torch.sigmoid(c)


def limit_gate(c: Tensor) -> Tensor:
    """β = 1 − e^{−h} with h = eᶜ, in (0, 1): the gate of depth h of the limit."""
    return -torch.expm1(-torch.exp(c))


def unit(keys: Tensor) -> Tensor:
    """Keys `(..., d)` of length 1."""
    return keys / torch.linalg.vector_norm(keys, dim=-1, keepdim=True)


def shortcut(d: int, beta: Gate) -> Map:
    """θ = (c_1, k_1, c_2, …) → B_L … B_1 with B = I − β(c) k kᵀ/‖k‖²: `(..., L(d + 1))` → `(..., d, d)`."""
    product = phi_of(d)

    def phi(theta: Tensor) -> Tensor:
        parts = theta.unflatten(-1, (-1, d + 1))
        return product(torch.cat((beta(parts[..., :1]), unit(parts[..., 1:])), dim=-1).flatten(-2))

    return phi


def rewrite(X: np.ndarray, key: np.ndarray, value: np.ndarray, beta: float) -> np.ndarray:
    """X + β k(vᵀ − kᵀX): what is read along the key, kᵀX, comes the part β of the way to vᵀ.

    Parameters
    ----------
    X : array (d, m)
    key : array (d,)
        k, of length 1.
    value : array (m,)
        v.
    beta : float

    Returns
    -------
    array (d, m)
    """
    return X + beta * np.outer(key, value - key @ X)


@dataclass(frozen=True, eq=False)
class Profiles:
    """Unit keys, values and rate of layers as functions of the depth s, and what they act on.

    Attributes
    ----------
    keys : array (3, d)
        k(s) is the first row, the second times cos πs and the third times sin πs, together, at length 1.
    values : array (3, m)
        v(s), without the length.
    start : array (d, m)
        X(0).
    strength : float
        ∫b of b(s) = strength (5 − 3s²)/4: concave, so that in the determinant the errors of the Cayley gate and of
        midpoints do not cancel.
    """

    keys: np.ndarray
    values: np.ndarray
    start: np.ndarray
    strength: float

    @classmethod
    def random(cls, d: int, m: int, strength: float, seed: int) -> Profiles:
        """Normal ones; the rows of keys have lengths 1, ½ and ½, so that their sum never comes near 0."""
        normal = np.random.default_rng(seed).standard_normal
        keys = np.array([[1.0], [0.5], [0.5]]) * unit(torch.as_tensor(normal((3, d)))).numpy()
        return cls(keys=keys, values=normal((3, m)), start=normal((d, m)), strength=strength)

    def at(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys `(n, d)`, values `(n, m)` and rates `(n,)` at depths `(n,)`."""
        waves = np.stack((np.ones_like(s), np.cos(np.pi * s), np.sin(np.pi * s)), axis=-1)
        keys = unit(torch.as_tensor(waves @ self.keys)).numpy()
        return keys, waves @ self.values, self.strength * (5 - 3 * s**2) / 4

    def limit(self) -> np.ndarray:
        """X(1) of dX/ds = b k(vᵀ − kᵀX), `(d, m)`, by Gauss collocation of the linear equation of (X, I)."""
        d, m = self.start.shape
        grid = DepthGrid.gauss(16, 12)
        k, v, b = self.at(grid.nodes.numpy())
        A = np.zeros((len(b), d + m, d + m))
        A[:, :d, :d] = -b[:, None, None] * k[:, :, None] * k[:, None, :]
        A[:, :d, d:] = b[:, None, None] * k[:, :, None] * v[:, None, :]
        z = Collocation(grid).product(torch.as_tensor(A)).numpy()
        return z[:d, :d] @ self.start + z[:d, d:]

    def layers(self, depth: int, at: float, gates: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
        """X after that many layers, and the determinant of the product of their shortcuts.

        Parameters
        ----------
        depth : int
            L; layer l has the key, value and rate at the depth (l + at)/L, l = 0, …, L − 1.
        at : float
            ½ for midpoints, 0 for left nodes.
        gates : callable
            b/L → β.

        Returns
        -------
        X : array (d, m)
        determinant : float
        """
        keys, values, rates = self.at((np.arange(depth) + at) / depth)
        X, P = self.start, np.eye(len(self.start))
        for k, v, beta in zip(keys, values, gates(rates / depth), strict=True):
            X, P = rewrite(X, k, v, beta), rewrite(P, k, np.zeros(len(k)), beta)
        return X, float(np.linalg.det(P))


def age(delta: np.ndarray) -> np.ndarray:
    """The time, but for a constant, at which δ = 2 − β is what it is, along the key of a reflection, for β = 2σ(c).

    ∫dx / (x³(1 − x/2)²) down to δ, by partial fractions in u = δ/2, since δ' = −δ (δ(1 − δ/2))²: it is 1/(2δ²) for
    small δ, so that t times the loss δ²/2 tends to ¼. NaN unless 0 < δ < 2.
    """
    within = np.asarray(delta, dtype=float)
    u = np.where((within > 0) & (within < 2), within, np.nan) / 2
    return (1 / (2 * u**2) + 2 / u - 3 * np.log(u) - 1 / (1 - u) + 3 * np.log1p(-u)) / 4
