"""The kernel of L layers, a divided difference, and the roots that it needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import float_tensor, positive
from ..display import said
from ..modes import hidden, plain
from .base import PASSED, check_values
from .logmean import log_logmean


@PASSED.tested
class DividedDifference:
    """L relaxed balanced layers: K_ab = (p(x_a) − p(x_b))/(x_a − x_b), p(x) = Π_k (x + c_k), p(x_a) = σ_a².

    The difference is never formed: with p telescoped over its factors every term is positive, so that K keeps its
    relative accuracy for equal and for far apart singular values. Up to L = 1e5 it was within 4e-13 of 50 digits for σ
    from 1e-3 to 1e3 (tests/flows/test_intrinsic.py), and within 1e-11 near the ends of the floating-point range.

    Parameters
    ----------
    shifts : Tensor (L,)
        c_k = λ_1 + … + λ_{k−1}, c_1 = 0. (Adding one number to all of them changes nothing.)
    time_scale : float
        The velocity is multiplied by it. 1 is Euclidean gradient flow on the layers; 1/L is the time of
        `FiniteFlow` and of the limit.

    Raises
    ------
    TypeError, ValueError
        If shifts is not a finite floating-point vector or time_scale not a positive number.

    Examples
    --------
    >>> sigma = torch.tensor([2.0, 1.0])
    >>> limit = nf.DividedDifference(torch.zeros(1000), time_scale=1 / 1000)(sigma)
    >>> float((limit - nf.LogMean()(sigma)).abs().max()) < 1e-2  # L balanced layers tend to the limit, at order 1/L
    True
    """

    positive_determinant = False

    def __init__(self, shifts: Tensor, time_scale: float = 1.0) -> None:
        self.shifts = float_tensor("shifts", shifts, ndim=1)
        if shifts.ndim != 1:
            raise ValueError(f"shifts must have shape (L,), got {tuple(shifts.shape)}")
        least, largest = torch.aminmax(shifts)
        if not bool(torch.isfinite(largest - least)):
            raise ValueError(
                f"shifts have no admissible root in {shifts.dtype}: they span {shifts.min():.3g} to {shifts.max():.3g}"
            )
        self.time_scale = positive("time_scale", time_scale)

    def __repr__(self) -> str:
        scale = "" if self.time_scale == 1 else f"time_scale={self.time_scale:g}"
        return said(self, f"{self.shifts.shape[-1]} layers", scale)

    @property
    def keeps_sign(self) -> bool:
        """Whether the least c_k is attained at least twice: those layers become singular together."""
        return self.shifts.ndim == 1 and self._least() > 1

    @property
    def near_zero(self) -> str:
        """As what a singular value near 0 counts in K."""
        return f"its power 2/{self._least()}"

    def _least(self) -> int:
        """How many layers have the least c_k, and become singular together."""
        return int((self.shifts == self.shifts.amin(-1, keepdim=True)).sum(-1).max())

    @classmethod
    def together(cls, kernels: Sequence[DividedDifference]) -> DividedDifference:
        """One kernel of members with shifts `(n, L)` of their own, at one time scale; it has no `log_rate`."""
        some = copy.copy(kernels[0])
        some.shifts = torch.stack([kernel.shifts for kernel in kernels])
        return some

    def select(self, members: Sequence[int], index: Tensor) -> DividedDifference:
        """The kernel of some members `(n,)` of a batch."""
        if self.shifts.ndim == 1:
            return self
        some = copy.copy(self)
        some.shifts = self.shifts.expand(*members, self.shifts.shape[-1]).flatten(0, -2)[index]
        return some

    def log_rate(self, ell: Tensor) -> Tensor:
        """A_ab = ½ Σ_k 1/logmean(x_a + c_k, x_b + c_k) times the time scale, one term for equal c_k."""
        shifts, layers = torch.unique(self.shifts.to(ell), return_counts=True)
        logs = _log_factors(2 * ell, shifts.unsqueeze(-2), layers.to(ell)).mT  # (..., number of shifts, d)
        terms = torch.log(layers.to(ell))[:, None, None] - log_logmean(logs)
        return torch.logsumexp(terms, dim=-3) + math.log(self.time_scale / 2)

    def log_nought(self, sigma: Tensor) -> Tensor:
        """ℓ of a singular value that moves others `(..., d)` as 0 does: `(..., 1)`, -inf where all are 0.

        Its root is below the round-off of theirs, and of the other factors; that of the smallest number is not where
        many layers become singular together.
        """
        gaps = (self.shifts - self.shifts.min()).to(sigma)
        others = torch.log(gaps[gaps > 0])
        largest = log_factors(sigma.amax(-1, keepdim=True), self.shifts.to(sigma)).amin(-1)
        root = torch.cat((largest, others.expand(*largest.shape[:-1], -1)), -1).amin(-1, keepdim=True)
        root = root + math.log(torch.finfo(sigma.dtype).eps)
        return ((len(gaps) - len(others)) * root + others.sum()) / 2

    def __call__(self, sigma: Tensor) -> Tensor:
        check_values(sigma)
        _, before, after = self._products(sigma)
        K = before @ after.mT
        return self.time_scale * (K + K.mT) / 2

    def slope(self, sigma: Tensor) -> Tensor:
        """∂K_ab/∂σ_a `(..., d, d)`: the same sum with Σ_{j<k} 1/(x_a + c_j) in each term, times dx_a/dσ_a.

        From p(x_a) = σ_a² the latter is 2 / (σ_a Σ_j 1/(x_a + c_j)); again all terms are positive. At σ_a = 0 it is the
        limit, which is infinite where three layers or more become singular together and σ_b is not 0.
        """
        logs, before, after = self._products(sigma)
        shares = torch.softmax(-logs, dim=-1)  # of 1/(x_a + c_j) in their sum
        earlier = torch.nn.functional.pad(_running_sum(shares[..., :-1]), (1, 0))
        root = sigma.clamp(min=torch.finfo(sigma.dtype).tiny).unsqueeze(-1)
        slope = self.time_scale * 2 * ((before * earlier / root) @ after.mT)
        zero = (sigma == 0).unsqueeze(-1)
        if plain(sigma) and not bool(zero.any()):
            return slope
        return torch.where(zero, self._slope_at_zero(sigma, after), slope)

    def _slope_at_zero(self, sigma: Tensor, after: Tensor) -> Tensor:
        """∂K_ab/∂σ_a at σ_a = 0: with m least c_k and P the product of the other c_j − c, x_a − x is (σ_a²/P)^{1/m}.

        It grows as σ_a² for m = 1, and as σ_a/√P for m = 2, where the terms that count have one factor of 0 less.
        """
        gaps = (self.shifts - self.shifts.amin(-1, keepdim=True)).to(sigma).unsqueeze(-2)
        least = gaps == 0
        m = least.sum(-1, keepdim=True)
        both = (sigma == 0).unsqueeze(-1) & (sigma == 0).unsqueeze(-2)
        logs = torch.where(least, 0.0, torch.log(torch.where(least, 1.0, gaps)))  # (..., 1, L)
        tops = log_factors(sigma, self.shifts.to(sigma)).amax(-2, keepdim=True)
        before, number = torch.cumsum(logs, -1) - logs, torch.cumsum(least, -1) - least.to(torch.int64)
        others = torch.cumsum(torch.where(least, 0.0, 1 / torch.where(least, 1.0, gaps)), -1)
        others = torch.nn.functional.pad(others[..., :-1], (1, 0))
        # Of the factors before k one that is 0 is left out, or one of the others where none is.
        factor = torch.where(number == 0, others, (number == 1).to(sigma))
        later = tops.sum(-1, keepdim=True) - torch.cumsum(tops, -1)  # `after` is relative to them
        scaled = torch.exp(before + later - logs.sum(-1, keepdim=True) / 2) * factor
        of_two = self.time_scale * (scaled @ after.mT).expand(*sigma.shape, sigma.shape[-1])
        of_more = torch.where(both, 0.0, torch.inf).to(sigma)
        return torch.where(m == 1, 0.0, torch.where(m == 2, of_two, of_more))

    def _products(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(x_a + c_k), and the products of the factors before k at x_a and after k at x_b: `(..., d, L)` each."""
        logs = log_factors(sigma, self.shifts.to(sigma))
        none = torch.isneginf(logs)  # factors that are 0, of singular values that are
        logs = logs.clamp(min=_NOUGHT)
        top = logs.amax(-2, keepdim=True)
        # Σ_k Π_{j<k}(x_a + c_j) Π_{j>k}(x_b + c_j), each factor divided by that of the largest singular value, so that
        # no partial product leaves [0, 1].
        relative, total = _relative(logs, top, sigma)
        relative = relative.masked_fill(none, 0.0)  # they are not summed: a product with one of them is 0
        with_own, number = _running_sum(relative), torch.cumsum(none, -1)
        before, after = with_own - relative, with_own[..., -1:] - with_own
        before = torch.exp(before - top + total).masked_fill(number > none, 0.0)
        return logs, before, torch.exp(after).masked_fill(number[..., -1:] > number, 0.0)


# In place of the logarithm of 0.
_NOUGHT = -2e3

# Up to so many layers L round-offs are few, and the plain formulas cost two thirds of the careful ones.
_SHALLOW = 64


def _relative(logs: Tensor, top: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """log (x_a + c_k)/(x + c_k) for the largest root x, and 2 log σ of that one: `(..., d, L)` and `(..., 1, 1)`.

    In deep networks each is of size 1/L, and the difference of two logarithms would leave the sum with L round-offs. It
    is log(1 − q) with q = (x − x_a)/(x + c_k), and what the sum over k must be, 2 log σ_a/σ, is known.
    """
    if logs.shape[-1] <= _SHALLOW:
        return logs - top, top.sum(-1, keepdim=True)
    goal = 2 * torch.log(sigma.clamp(min=torch.finfo(sigma.dtype).tiny)).unsqueeze(-1)
    goal = torch.where(sigma.unsqueeze(-1) == 0, logs.sum(-1, keepdim=True), goal)
    total = goal.amax(-2, keepdim=True)
    smallest, largest = logs.amin(-1, keepdim=True), top.amin(-1, keepdim=True)  # log(x_a + min c), log(x + min c)
    q = torch.exp(largest - top) * -torch.expm1(smallest - largest)
    relative = torch.where(q < 0.5, torch.log1p(-q.clamp(max=0.5)), logs - top)
    slopes = torch.exp(smallest - logs)
    excess = relative.sum(-1, keepdim=True) - (goal - total)
    return relative - slopes * (excess / slopes.sum(-1, keepdim=True)), total


def _running_sum(values: Tensor) -> Tensor:
    """`cumsum` along the last axis with √L round-offs in place of L: of parts, and of their sums."""
    L = values.shape[-1]
    if L <= _SHALLOW:
        return torch.cumsum(values, -1)
    size = math.isqrt(L)
    parts = torch.nn.functional.pad(values, (0, -L % size)).unflatten(-1, (-1, size))
    within = torch.cumsum(parts, -1)
    ends = within[..., -1]
    return (within + (torch.cumsum(ends, -1) - ends).unsqueeze(-1)).flatten(-2)[..., :L]


def log_factors(sigma: Any, shifts: Any) -> Any:
    """log(x_a + c_k) for the root x_a > −min c of Π_k (x + c_k) = σ_a².

    With y = log(x + min c) the equation Σ_k log(eʸ + c_k − min c) = 2 log σ is increasing and convex in y, and Newton's
    method comes down to the root monotonically once it is right of it. (2 log σ)/L is. Where the shifts are small, as
    in deep networks, the root for their mean in place of each is closer; it is on the left, and one step leads across.

    Parameters
    ----------
    sigma : (..., d)
        Singular values, a tensor or an array of NumPy. Of zero the root is −min c, so that the least factors are 0:
        the smallest positive number would not do, whose L-th root is of size 1 in deep networks.
    shifts : (..., L)
        Of the same kind.

    Returns
    -------
    (..., d, L), of the same kind
    """
    xp: Any = np if isinstance(sigma, np.ndarray) else torch
    goal = 2 * xp.log(xp.clip(sigma, xp.finfo(sigma.dtype).tiny, None))
    gaps = shifts - xp.amin(shifts, axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        logs = _log_factors(goal, shifts[..., None, :], xp.ones_like(shifts[(0,) * (shifts.ndim - 1)]))
        return xp.where((sigma == 0)[..., None], xp.log(gaps)[..., None, :], logs)


def _log_factors(goal: Any, shifts: Any, layers: Any) -> Any:
    """`log_factors` for log σ² = `goal`, with `layers` (n,) counting those of each shift (..., 1, n): `(..., d, n)`.

    Each member of a batch takes the steps that it would take alone.
    """
    xp: Any = np if isinstance(goal, np.ndarray) else torch
    gaps, number = shifts - xp.amin(shifts, axis=-1, keepdims=True), layers.sum()
    log_gaps = xp.log(gaps)
    y = goal / number
    excess = (gaps * layers).sum(-1) / number * xp.exp(-y)
    y = xp.where(excess < 0.5, y + xp.log1p(-xp.clip(excess, None, 0.5)), y)
    small, unseen = xp.finfo(goal.dtype).eps ** 0.5, xp is torch and (hidden(goal) or hidden(shifts))
    for _ in range(100):
        logs = xp.logaddexp(y[..., None], log_gaps)
        slopes = xp.exp(y[..., None] - logs)
        step = ((layers * logs).sum(-1) - goal) / (layers * slopes).sum(-1)
        # All second derivatives are at most 1/4, so that the square of a small step is below round-off.
        far = xp.amax(abs(step), axis=-1, keepdims=True) > small
        if not (unseen or bool(far.any())):
            break
        y = xp.where(far | unseen, y - step, y)
    return logs - step[..., None] * slopes
