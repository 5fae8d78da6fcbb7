"""The collocation equations solved fast: one matrix product per node and sweep, most of them in single precision.

The slopes f = X' at the nodes of a panel solve f = W (1 + J f), with J the integrals of the Lagrange polynomials from
the point where X = 1. Sweeps f ← W + W J f gain one order in h‖W‖ each. From d = `MIXED_FROM` on they run in float32,
where a product costs about a third, and iterative refinement brings the result to float64: one product in float64 gives
the defect, and the same sweeps on the defect give the correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .grid import gauss_rule
from .workspace import Take

# From this d on two sweeps in float32 cost less than one in float64.
MIXED_FROM = 16

# h‖W‖ up to the far end of a panel, beyond which the sweeps are many and lose digits.
LARGEST = 3.0

_MAX_SWEEPS = 40
_MAX_REFINEMENTS = 4

# Largest change of 1 + J f in the last sweep; what is left after it is about ten times smaller.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}
_ROUGH = 3e-7  # of a solution in float32 that will be refined
_ROUND_OFF = 1e-10  # what the defect of a solution in float32 counts for in J f: it is rough, and J smooths it
_REFINED = 2e-7  # a correction below it is as accurate in float32 as float64 can tell


class Unsolved(Exception):
    """The sweeps do not lead to the solution: W is large, or the grid does not resolve it."""


class Integrals(NamedTuple):
    """Integrals of the Lagrange polynomials of a panel, made once for each grid."""

    middle: Tensor  # (m, m): from the middle to the nodes
    ends: Tensor  # (2, m): from the middle to both ends


@cache
def integrals(panels: int, order: int, dtype: torch.dtype, device: torch.device) -> Integrals:
    """Those of a grid."""
    rule = gauss_rule(order)
    arrays = rule.from_middle[:order], rule.from_middle[order:]
    return Integrals(*(torch.as_tensor(array / panels, dtype=dtype, device=device) for array in arrays))


class Slopes(NamedTuple):
    """f and J f, `(B, m, d, d)`, in memory of the workspace; the largest entry of J f, and about h‖W‖ as seen."""

    slopes: Tensor
    integral: Tensor
    size: float
    reach: float


def solve(W: Tensor, J: Tensor, take: Take) -> Slopes:
    """The solution f of f = W (1 + J f) on many panels at once.

    Parameters
    ----------
    W : Tensor (B, m, d, d)
        The model on the m nodes of B panels.
    J : Tensor (m, m)
    take : Take
        Gives the memory.

    Raises
    ------
    Unsolved
        If W is too large for it.
    """
    if W.dtype == torch.float64 and W.shape[-1] >= MIXED_FROM:
        return _refined(W, _single(W, take), J, W, take)
    return _sweep(W, J, W, TOLERANCE.get(W.dtype, 1e-6), take)


def solve_by_strips(W: Tensor, J: Tensor, width: int, take: Take) -> Iterator[tuple[slice, Slopes]]:
    """The same by strips of `width` columns of f and J f, `(B, m, d, width)`: columns do not know of each other.

    W is of float64 and any strides. Each strip is written over by the next.
    """
    single = _single(W, take)
    for start in range(0, W.shape[-1], width):
        strip = slice(start, start + width)
        yield strip, _refined(W, single, J, W[..., strip].contiguous(), take)


def along_nodes(matrix: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
    """Applies a matrix `(n, m)` along the nodes of `(B, m, d, d)`: `(B, n, d, d)`."""
    B, m, *square = values.shape
    if out is None:
        out = values.new_empty(B, len(matrix), *square)
    torch.bmm(matrix.expand(B, -1, -1), values.view(B, m, -1), out=out.view(B, len(matrix), -1))
    return out


def _single(W: Tensor, take: Take) -> Tensor:
    """W in float32."""
    return take("W32", W.shape, W.new_empty(0, dtype=torch.float32)).copy_(W)


def _refined(W: Tensor, single: Tensor, J: Tensor, source: Tensor, take: Take) -> Slopes:
    """f of f = source + W J f; `single` is W in float32."""
    single_J, single_source = J.float(), single
    if source is not W:
        single_source = take("source32", source.shape, single).copy_(source)
    start = _sweep(single, single_J, single_source, _ROUGH, take, certify=False)
    f = take("f64", source.shape, W).copy_(start.slopes)
    integral, defect = (take(name, source.shape, W) for name in ("integral64", "defect64"))
    rest = take("defect32", source.shape, single)
    along_nodes(J, f, integral)
    for _ in range(_MAX_REFINEMENTS):
        torch.baddbmm(_nodes(source), _nodes(W), _nodes(integral), out=_nodes(defect))
        rest.copy_(defect.sub_(f))
        correction = _sweep(single, single_J, rest, TOLERANCE[torch.float64], take, start.reach)
        # A sum of two precisions is slower than a copy and a sum of one.
        f += defect.copy_(correction.slopes)
        if correction.size <= _REFINED:
            integral += defect.copy_(correction.integral)
            return Slopes(f, integral, correction.size, start.reach)
        along_nodes(J, f, integral)
    raise Unsolved


def _sweep(
    W: Tensor,
    J: Tensor,
    source: Tensor,
    tolerance: float,
    take: Take,
    reach: float | None = None,
    *,
    certify: bool = True,
) -> Slopes:
    """f = source + W J f by sweeps, until J f changes by less than `tolerance` beside 1, or Unsolved.

    The changes fall like ν^k/k! with ν ≈ h‖W‖ (`reach`), so that the second one tells how many sweeps it takes. They
    are looked at only then, where they are largest: at the outermost nodes. Without `certify` they are not looked at
    again, and J f is one sweep behind.
    """
    B, m = W.shape[:2]
    f, integral = take("f", source.shape, W), take("integral", source.shape, W)
    along_nodes(J, source, integral)
    # The views of one sweep's two products, made once: at small d they would cost as much as the products.
    into_f = _nodes(source), _nodes(W), _nodes(integral)
    into_integral = J.expand(B, -1, -1), f.view(B, m, -1)
    out_f, out_integral = _nodes(f), integral.view(B, m, -1)
    done, due = 1, 2 if reach is None else 1 + _sweeps_left(_ROUND_OFF, 1, reach, tolerance)
    while True:
        for _ in range(due - done - 1):
            torch.baddbmm(*into_f, out=out_f)
            torch.bmm(*into_integral, out=out_integral)
        torch.baddbmm(*into_f, out=out_f)
        if due > 2 and not certify:
            return Slopes(f, integral, 0.0, reach or 0.0)
        done, before = due, outermost(integral).clone()
        torch.bmm(*into_integral, out=out_integral)
        ends = outermost(integral)
        change, size = (float(values.abs().max()) for values in (before.sub_(ends), ends))
        if reach is None:
            reach = math.sqrt(2 * change)
        if not (reach <= LARGEST and done < _MAX_SWEEPS):
            raise Unsolved
        bound = max(tolerance * math.exp(reach), 2 * torch.finfo(W.dtype).eps * size)
        if change <= bound:
            return Slopes(f, integral, size, reach)
        due = done + _sweeps_left(change, done, reach, bound)


def _nodes(values: Tensor) -> Tensor:
    """`(B, m, d, d)` as one batch of matrices."""
    return values.view(-1, *values.shape[-2:])


def outermost(values: Tensor) -> Tensor:
    """The values at the outermost nodes, where changes are largest: `(B, m, d, d)` → `(B, 1 or 2, d, d)`."""
    return values[:, :: max(1, values.shape[1] - 1)]


def _sweeps_left(change: float, done: int, reach: float, bound: float) -> int:
    """How many more sweeps bring changes of size ν^k/k! below a bound."""
    left = 0
    while change > bound and done + left < _MAX_SWEEPS:
        left += 1
        change *= reach / (done + left)
    return max(1, left)
