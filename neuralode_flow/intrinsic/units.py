"""Derivatives with the round-off in them, and ranks and null spaces of them that no choice of units changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .ranks import ABOVE_ROUND_OFF, Rank, rank_of

_SWEEPS = 20


@dataclass(frozen=True, eq=False)
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
    def of(cls, samples: Tensor, terms: Tensor | None = None) -> Measured:
        """From samples (k, m, n) at one point and others that round-off does not tell from it.

        Garbage differs among them by as much as it is, and is small beside the `terms` (m, n) that an entry is the sum
        of; so it can be removed at any size, whatever the units.
        """
        values = samples[0]
        sizes = values.abs() if terms is None else terms
        noise = torch.maximum((samples[1:] - values).abs().amax(0), torch.finfo(values.dtype).eps * sizes)
        return cls(torch.where(values.abs() > ABOVE_ROUND_OFF * noise, values, 0.0), noise)

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Factors of the rows and columns that bring all of them to one size."""
        return equilibrated(self.values)

    def above(self, other: Measured) -> Measured:
        """Both matrices under one another."""
        return Measured(torch.cat((self.values, other.values)), torch.cat((self.noise, other.noise)))

    def null_space(self) -> tuple[Tensor, Rank]:
        """A basis (n, k) of the null space, orthonormal in the units of the columns, and the rank n − k.

        Both are of the equilibrated matrix: a rank does not depend on units, but what round-off leaves of it does.
        """
        rows, columns = self.scales
        _, values, Vh = torch.linalg.svd(rows[:, None] * self.values * columns, full_matrices=True)
        there = self.values != 0
        seen = rows[:, None] * self.noise * columns * there.any(0) * there.any(1)[:, None]
        rank = rank_of(values, float(torch.linalg.matrix_norm(seen)))
        return columns[:, None] * Vh[rank.rank :].mT, rank

    @cached_property
    def rank(self) -> Rank:
        """The rank of the equilibrated matrix."""
        return self.null_space()[1]

    def complement(self) -> Measured:
        """Rows that span all that is orthogonal to the rows."""
        basis = self.null_space()[0].mT
        columns = self.scales[1]
        return Measured(basis, 1e-15 * columns.expand(basis.shape))


def equilibrated(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two for the rows and columns that bring the mean square of the entries of each, but zeros, to about 1.

    Multiplying by them is exact. A row or column of zeros gets 1.

    Notes
    -----
    The iteration of Sinkhorn and Knopp on the squares. With means in place of sums the conditions on rows and columns
    agree on the total, whatever the shape.
    """
    largest = matrix.abs().amax() if matrix.numel() else matrix.new_zeros(())
    if not largest > 0:
        return matrix.new_ones(matrix.shape[0]), matrix.new_ones(matrix.shape[1])
    squares = (matrix / largest).square()
    in_row, in_column = (squares > 0).sum(1), (squares > 0).sum(0)
    columns = matrix.new_ones(matrix.shape[1])
    for _ in range(_SWEEPS):
        rows = _ratio(in_row, squares @ columns)
        columns = _ratio(in_column, rows @ squares)
    return torch.exp2((rows.log2() / 2 - largest.log2()).round()), torch.exp2((columns.log2() / 2).round())


def _ratio(numbers: Tensor, sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, numbers / sizes, 1.0)
