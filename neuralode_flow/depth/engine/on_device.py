"""The engine for accelerators: batched products alone, whose number no one has to wait for.

The collocation equations are solved by as many sweeps in float64 as the last look found necessary, without the detour
through float32 that pays on processors, and C, which is near I, is inverted by products too. What the numbers would
decide on a processor is noted as a doubt (`looks`): where sweeps did not end, or C is not near I.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ... import looks
from ...modes import bare, plain
from .. import picard
from ..products import add_identity
from . import by_torch
from .by_torch import Outer, Stepped, chain, descend_chain, grams, multiply, stepped

__all__ = ["chain", "descend_chain", "descend_flow", "flow", "grams", "multiply", "stepped", "takes"]

if TYPE_CHECKING:
    from ..grid import DepthGrid

# Largest ‖I − C‖ for which four factors of the geometric series of C⁻¹ are exact in float64.
_NEAR = 0.1

# The sweeps are enough for an h‖W‖ that is so much larger than at the last look, and for this one: W moves on.
_ROOM, _LEAST = 1.5, 0.1


def takes(W: Tensor) -> bool:
    """Whether a state is on an accelerator, in eager mode."""
    return not W.is_cpu and plain(W)


class _Unsure(Exception):
    """Looked at: not for this engine."""


class _Halves(NamedTuple):
    """As `by_torch.Middle`, with C⁻¹; whether that is all in doubt, without axes."""

    u: Tensor
    vT: Tensor
    enter: Tensor
    leave: Tensor
    inverse: Tensor
    doubt: Tensor


def flow(grid: DepthGrid, W: Tensor, outer: Outer | None = None) -> Tensor:
    """As `Engine.flow`."""
    key, noted = (grid.panels, grid.order, W.shape, W.dtype), looks.current()
    try:
        number = None if noted is None else noted.known.get(key)
        if number is None:
            halves, number = _looked_at(grid, W)
        else:
            halves = _halves(grid, W, number)
    except _Unsure:
        if noted is not None:
            noted.steady = False
        return by_torch.flow(grid, W, outer)
    if noted is not None:
        noted.known[key] = number
        noted.doubts.append(halves.doubt)
    before, after, z = by_torch.between_middles(grid.panels, halves.enter, halves.leave)
    z = z.view(*W.shape[:-3], *W.shape[-2:])
    if outer is None:
        return z
    G = outer(z)
    if not bare(G):
        return by_torch.flow(grid, W, outer)
    B, m, d, _ = halves.u.shape
    G = G.expand_as(z).unsqueeze(-3).expand(*W.shape[:-3], grid.panels, d, d).reshape(B, d, d)
    inner = halves.inverse.mT @ (after.mT @ G @ before.mT)
    left = torch.bmm(halves.vT.reshape(B, m * d, d), inner)
    return torch.bmm(left.view(B * m, d, d), halves.u.view(B * m, d, d).mT).view(W.shape)


def descend_flow(grid: DepthGrid, W: Tensor, outer: Outer, rate: float, V: Tensor, added: Tensor) -> Stepped:
    """As `Engine.descend_flow`."""
    return stepped(W, flow(grid, W, outer), rate, V, added, apart=0)


def _looked_at(grid: DepthGrid, W: Tensor) -> tuple[_Halves, int]:
    """Both halves of all panels, by a number of sweeps that is found by looking, and that number with some to spare."""
    m = grid.order
    J = picard.integrals(grid.panels, m, W.dtype, W.device).middle
    first = W.reshape(-1, m, *W.shape[-2:])
    second = picard.along_nodes(J, first @ picard.along_nodes(J, first))
    reach = math.sqrt(2 * float(second.abs().max()))
    if not reach <= picard.LARGEST:
        raise _Unsure
    reach = max(_LEAST, _ROOM * reach)
    number, change = 1, reach
    while change > _tolerance(W.dtype) * math.exp(reach):
        number += 1
        change *= reach / number
    halves = _halves(grid, W, number)
    if bool(halves.doubt):
        raise _Unsure
    return halves, number


def _tolerance(dtype: torch.dtype) -> float:
    """Of the change of 1 + J f in the last sweep, beside what that is."""
    return max(picard.TOLERANCE.get(dtype, 1e-6), 2 * torch.finfo(dtype).eps)


def _halves(grid: DepthGrid, W: Tensor, number: int) -> _Halves:
    """Both halves of all panels, by a given number of sweeps."""
    m, d = grid.order, W.shape[-1]
    J, to_ends = picard.integrals(grid.panels, m, W.dtype, W.device)
    local = W.reshape(-1, m, d, d)
    B = len(local)
    both = torch.cat((local, -local.mT))
    nodes, f = both.view(-1, d, d), both
    before = halves = add_identity(picard.along_nodes(J, f))
    for _ in range(number - 1):
        f = torch.bmm(nodes, halves.view(-1, d, d)).view_as(both)
        before, halves = halves, add_identity(picard.along_nodes(J, f))
    # As in `picard`, changes are largest at the outermost nodes; the last is bounded by what it is beside 1 + J f.
    ends = picard.outermost(halves)
    change, size = (ends - picard.outermost(before)).abs().amax(), ends.abs().amax()
    bound = (size + 1) * _tolerance(W.dtype)
    ends = add_identity(picard.along_nodes(to_ends, f))
    leave, vT_start, vT_end = ends[:B, 1], ends[B:, 0], ends[B:, 1]
    rest = add_identity(-(vT_end.mT @ leave))
    inverse, doubt = _near_identity(rest)
    return _Halves(halves[:B], halves[B:], inverse @ vT_start.mT, leave, inverse, ~(change <= bound) | doubt)


def _near_identity(rest: Tensor) -> tuple[Tensor, Tensor]:
    """(I − R)⁻¹ = (I + R)(I + R²)(I + R⁴)(I + R⁸) …, and whether R `(..., d, d)` is too large for that."""
    doubt = ~(torch.linalg.vector_norm(rest, dim=(-2, -1)).amax() <= _NEAR)
    inverse, power = add_identity(rest.clone()), rest
    for _ in range(3):
        power = power @ power
        inverse = torch.baddbmm(inverse, inverse, power)
    return inverse, doubt
