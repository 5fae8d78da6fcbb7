"""Numerical ranks that say how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Relative to the largest singular value: up to ZERO one counts as zero, from NONZERO on as none; between them the
# rank is undecided, and CUT is the best guess. Exact derivatives in float64 leave zeros of about 1e-15.
ZERO, CUT, NONZERO = 1e-11, 3e-10, 1e-8

UNDECIDED = "undecided"


@dataclass(frozen=True)
class Rank:
    """A rank and the gap in the singular values that decided it.

    Attributes
    ----------
    rank : int
        The best guess.
    largest_zero, smallest_nonzero : float
        Singular values on both sides of the cut, relative to the largest; 0 and inf where there are none.
    """

    rank: int
    largest_zero: float
    smallest_nonzero: float

    @property
    def decided(self) -> bool:
        """Whether no singular value is in doubt."""
        return self.largest_zero <= ZERO and self.smallest_nonzero >= NONZERO

    @property
    def verdict(self) -> int | str:
        """The rank, or "undecided"."""
        return self.rank if self.decided else UNDECIDED

    def minus_from(self, whole: int) -> Rank:
        """The corank in a space of dimension `whole`, decided by the same gap."""
        return Rank(whole - self.rank, self.largest_zero, self.smallest_nonzero)

    def then(self, later: Rank) -> Rank:
        """A later rank that rests on this one: what was in doubt stays so."""
        return Rank(
            later.rank,
            max(self.largest_zero, later.largest_zero),
            min(self.smallest_nonzero, later.smallest_nonzero),
        )

    def __str__(self) -> str:
        gap = f"largest zero {self.largest_zero:.1e}, smallest non-zero {self.smallest_nonzero:.1e}"
        return f"{self.rank}{'' if self.decided else ' (undecided)'}  [{gap}]"


def rank_of(values: Tensor) -> Rank:
    """The rank that singular values, in falling order, stand for."""
    if not len(values) or values[0] == 0:
        return Rank(0, 0.0, float("inf"))
    relative = values / values[0]
    rank = int((relative > CUT).sum())
    largest_zero = float(relative[rank]) if rank < len(relative) else 0.0
    return Rank(rank, largest_zero, float(relative[rank - 1]))


def kernel(matrix: Tensor) -> tuple[Tensor, Rank]:
    """An orthonormal basis (n, k) of the kernel of a matrix (m, n), and the rank n − k."""
    _, values, Vh = torch.linalg.svd(matrix, full_matrices=True)
    rank = rank_of(values)
    return Vh[rank.rank :].mT, rank


def stacked(*matrices: Tensor) -> Tensor:
    """Matrices (m_i, n) under one another, each divided by its norm, so that none drowns in another."""
    norms = [torch.linalg.matrix_norm(matrix) for matrix in matrices]
    return torch.cat([matrix / (norm if norm > 0 else 1.0) for matrix, norm in zip(matrices, norms, strict=True)])
