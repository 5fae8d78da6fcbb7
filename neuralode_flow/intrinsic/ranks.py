"""Numerical ranks that say how sure they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Relative to the largest singular value: up to ZERO one counts as zero, from NONZERO on as none; between them the
# rank is undecided, and CUT is the best guess. Exact derivatives in float64 leave zeros of about 1e-15.
ZERO, CUT, NONZERO = 1e-11, 3e-10, 1e-8

# A number must be this many times the round-off that was seen in it to count as one.
ABOVE_ROUND_OFF = 1e3

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
    doubt : str
        Why the gap does not decide, if something else forbids it; else empty.
    above_noise : bool
        Whether the smallest non-zero is far above the round-off in it.

    Examples
    --------
    >>> rank = nf.intrinsic.count_laws(lambda theta: theta[0] * theta[1], dimension=2)
    >>> rank.rank, rank.doubt
    (1, '')
    """

    rank: int
    largest_zero: float
    smallest_nonzero: float
    doubt: str = ""
    above_noise: bool = True

    @property
    def decided(self) -> bool:
        """Whether no singular value is in doubt."""
        return not self.doubt and self.largest_zero <= ZERO and self.smallest_nonzero >= NONZERO

    @property
    def verdict(self) -> int | str:
        """The rank, or "undecided"."""
        return self.rank if self.decided else UNDECIDED

    @property
    def full(self) -> bool:
        """Whether all that counts as non-zero surely is: the rank is no smaller."""
        return self.above_noise and self.smallest_nonzero >= NONZERO

    def minus_from(self, whole: int) -> Rank:
        """The corank in a space of dimension `whole`, decided by the same gap."""
        return replace(self, rank=whole - self.rank)

    def doubted(self, doubt: str) -> Rank:
        """The same with a doubt, if there is one."""
        return replace(self, doubt=self.doubt or doubt)

    def __str__(self) -> str:
        gap = f"largest zero {self.largest_zero:.1e}, smallest non-zero {self.smallest_nonzero:.1e}"
        why = f": {self.doubt}" if self.doubt else ""
        return f"{self.rank}{'' if self.decided else f' (undecided{why})'}  [{gap}]"


def rank_of(values: Tensor, floor: float = 0.0) -> Rank:
    """The rank that singular values, in falling order, stand for.

    Parameters
    ----------
    values : Tensor (k,)
    floor : float
        The round-off in them: a value is told from zero only far above it, and a zero only if it is small itself.
    """
    if not len(values) or values[0] == 0:
        return Rank(0, 0.0, float("inf"))
    relative = values / values[0]
    rank = int((relative > CUT).sum())
    largest_zero = float(relative[rank]) if rank < len(relative) else 0.0
    found = Rank(rank, largest_zero, float(relative[rank - 1]))
    noise = floor / float(values[0])
    above = found.smallest_nonzero >= ABOVE_ROUND_OFF * noise
    hidden = not above or (rank < len(relative) and noise > ZERO)
    doubt = f"the derivatives have a round-off of {noise:.0e}" if hidden else ""
    return replace(found, doubt=doubt, above_noise=above)


def null_space(matrix: Tensor) -> tuple[Tensor, Rank]:
    """An orthonormal basis (n, k) of the null space of a matrix (m, n), and the rank n − k."""
    _, values, Vh = torch.linalg.svd(matrix, full_matrices=True)
    rank = rank_of(values)
    return Vh[rank.rank :].mT, rank
