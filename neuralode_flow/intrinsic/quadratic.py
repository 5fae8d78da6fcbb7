"""Quadratic conservation laws of any φ, found numerically."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import count, seeded
from ..modes import undisturbed
from .derivatives import Map, gradients
from .place import Place
from .ranks import Rank
from .units import Measured

# Unknowns beyond which the null space would take minutes.
MOST_UNKNOWNS = 2500

# By how many units in the last place random θ are shaken, and how often, to see what is only round-off there.
_SHAKEN, _TIMES = 4, 3


@dataclass(frozen=True, eq=False)
class QuadraticLaws:
    """A basis of all h(θ) = ½θᵀAθ + b·θ that every gradient flow of f∘φ conserves.

    Attributes
    ----------
    A : Tensor (k, n, n)
        Symmetric.
    b : Tensor (k, n)
    evidence : Rank
        k, with the gap in the singular values that decided it.

    Examples
    --------
    >>> found = nf.intrinsic.quadratic_laws(lambda theta: theta[0] * theta[1], dimension=2)
    >>> found.A.shape, found.b.shape, found.evidence.rank
    (torch.Size([1, 2, 2]), torch.Size([1, 2]), 1)
    """

    A: Tensor
    b: Tensor
    evidence: Rank

    def __len__(self) -> int:
        return len(self.A)

    def __call__(self, theta: Tensor) -> Tensor:
        """h(θ), `(..., n)` → `(..., k)`."""
        half = torch.einsum("kij,...j->...ki", self.A, theta) / 2
        return (half @ theta.unsqueeze(-1)).squeeze(-1) + theta @ self.b.mT


@undisturbed
@torch.inference_mode(False)  # whose tensors take no part in derivatives
def quadratic_laws(phi: Map, dimension: int, seed: int = 0) -> QuadraticLaws:
    """All quadratic laws of φ: the (A, b) with (Aθ + b)·∇φ_i(θ) = 0 at random θ, a null space.

    A law holds for all θ, and finitely many random θ decide: an equation that holds at more of them than there are
    unknowns holds everywhere with probability one, φ being analytic.

    Parameters
    ----------
    phi : callable
        θ (n,) → z.
    dimension : int
        n, at most about 68: there are n(n+3)/2 unknowns.
    seed : int
        Of the random θ.

    Raises
    ------
    TypeError, ValueError
        If dimension or seed is no integer in range, or there are too many unknowns.

    Examples
    --------
    >>> found = nf.intrinsic.quadratic_laws(lambda theta: theta[0] * theta[1], dimension=2)
    >>> A = found.A[0] / found.A[0, 0, 0]
    >>> [[round(entry, 12) + 0.0 for entry in row] for row in A.tolist()]  # θ₁² − θ₂²
    [[1.0, 0.0], [0.0, -1.0]]
    """
    n = count("dimension", dimension)
    unknowns = n * (n + 3) // 2
    if unknowns > MOST_UNKNOWNS:
        raise ValueError(
            f"dimension = {n} means {unknowns} coefficients of a quadratic law, more than {MOST_UNKNOWNS}: use "
            f"count_laws, which only counts"
        )
    generator = seeded("seed", seed)
    # One random combination of the gradients at each of many points says as much as all gradients at few points.
    points = torch.randn(unknowns + 20, n, generator=generator, dtype=torch.float64, device="cpu")
    m = phi(points[0]).numel()
    # In a combination of gradients of all sizes the small ones would drown, as in one that is only round-off.
    J = Place.at(points[0], phi, generator).jacobian(phi)
    sizes = torch.where(J.values.any(1), J.scales[0], 0.0)
    combinations = sizes * torch.randn(len(points), m, generator=generator, dtype=torch.float64, device="cpu")
    i, j = torch.triu_indices(n, n, device="cpu")
    twice = torch.where(i == j, 0.0, 1.0)

    def products(near: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of A_ij = A_ji in θᵀA X and of b in b·X, and the sizes of the terms that they sum."""
        X = gradients(phi, near, combinations)
        one, other = X[:, i] * near[:, j], twice * X[:, j] * near[:, i]
        return torch.cat((one + other, X), dim=1), torch.cat((one.abs() + other.abs(), X.abs()), dim=1)

    # Of u v, where z is u² − v², a coefficient is nothing but the round-off of two terms: it is 0, and must not be
    # brought to the size of the others.
    shaken = _SHAKEN * torch.finfo(points.dtype).eps * points
    rows, terms = products(points)
    samples = [rows, *(products(points + shaken * points.roll(k, 0))[0] for k in range(1, _TIMES + 1))]
    basis, rank = Measured.of(torch.stack(samples), terms).null_space()
    A = torch.zeros(basis.shape[1], n, n, dtype=torch.float64, device="cpu")
    A[:, i, j] = A[:, j, i] = basis[: len(i)].mT
    return QuadraticLaws(A, basis[len(i) :].mT.contiguous(), rank.minus_from(unknowns))
