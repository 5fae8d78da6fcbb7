"""Derivatives with the round-off in them, and ranks and kernels of them that no choice of units changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .derivatives import Map
from .ranks import ABOVE_ROUND_OFF, Rank, rank_of

_SWEEPS = 30



@dataclass(frozen=True)
class Measured:
    """A matrix (m, n) whose entries are known up to round-off.

    Attributes
    ----------
    values : Tensor (m, n)
        Those entries that are nothing but round-off are exactly zero.
    noise : Tensor (m, n)
        The round-off of each.
    """

    values: Tensor
    noise: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Measured:
        """From samples (k, m, n) at one point and others that round-off does not tell from it.

        Garbage differs among them by as much as it is; so it can be removed at any size, whatever the units.
        """
        values = samples[0]
        noise = torch.maximum((samples[1:] - values).abs().amax(0), torch.finfo(values.dtype).eps * values.abs())
        return cls(torch.where(values.abs() > ABOVE_ROUND_OFF * noise, values, 0.0), noise)

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Factors of the rows and columns that bring all of them to one size."""
        return equilibrated(self.values)

    def above(self, other: Measured) -> Measured:
        """Both matrices under one another."""
        return Measured(torch.cat((self.values, other.values)), torch.cat((self.noise, other.noise)))

    def kernel(self) -> tuple[Tensor, Rank]:
        """Of the equilibrated matrix: a basis (n, k) of its kernel, orthonormal in the units of its columns, and the
        rank n − k. A rank does not depend on units, but what round-off leaves of it does."""
        rows, columns = self.scales
        _, values, Vh = torch.linalg.svd(rows[:, None] * self.values * columns, full_matrices=True)
        seen = rows[:, None] * self.noise * columns * (self.values != 0).any(0)
        rank = rank_of(values, float(torch.linalg.matrix_norm(seen)))
        return columns[:, None] * Vh[rank.rank :].mT, rank

    @cached_property
    def rank(self) -> Rank:
        """The rank of the equilibrated matrix."""
        return self.kernel()[1]

    def complement(self) -> Measured:
        """Rows that span all that is orthogonal to the rows."""
        basis = self.kernel()[0].mT
        columns = self.scales[1]
        return Measured(basis, 1e-15 * columns.expand(basis.shape))


def equilibrated(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two for the rows and for the columns that bring them all to Euclidean norms of about 1.

    Multiplying by them is exact. A row or column of zeros gets 1.

    Notes
    -----
    Ruiz, *A scaling algorithm to equilibrate both rows and columns norms in matrices* (2001), in the Euclidean norm;
    in logarithms, so that squares of extreme entries do not overflow.
    """
    logs = matrix.abs().log2()
    rows, columns = logs.new_zeros(logs.shape[0]), logs.new_zeros(logs.shape[1])
    for _ in range(_SWEEPS if logs.numel() else 0):
        scaled = 2 * (logs + rows[:, None] + columns)
        rows = rows - _finite(_log_norm(scaled, 1)) / 2
        columns = columns - _finite(_log_norm(scaled, 0)) / 2
    return torch.exp2(rows.round()), torch.exp2(columns.round())


def _log_norm(doubled: Tensor, axis: int) -> Tensor:
    """log2 of Euclidean norms from 2 log2 of the entries."""
    peak = _finite(doubled.amax(axis, keepdim=True))
    return ((doubled - peak).exp2().sum(axis, keepdim=True).log2() + peak).squeeze(axis) / 2


def _finite(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, 0.0)
