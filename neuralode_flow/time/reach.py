"""Targets with det < 0, out of reach of a flow that keeps det > 0: what is proved of the loss, and what is measured."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import of_members
from ..flows.capabilities import KeepsOrientation, offers
from ..flows.falling import loss_falls
from ..matrices import slogdet
from .base import FAILURES

# A loss within this part of its whole way from the least value that is left, at a z whose smallest singular value is
# this part of its largest, counts as having arrived there ...
_ARRIVED, _SINGULAR = 0.03, 0.04

# ... and as being at rest if at its present rate it would fall, in the whole time again, by no more than that part of
# what it fell, and of what it is above that value.


class OutOfReach(NamedTuple):
    """Which members have such a target, `(...)`, and the sentence."""

    which: Tensor
    sentence: str


def out_of_reach(
    flow: Any, state: Tensor, t: float, columns: dict[str, list[Tensor]], since: float, wanted: list[float]
) -> OutOfReach | None:
    """What is to be said of a target with det < 0; None unless it is sure that the loss goes no lower, and matters now.

    It matters where a wanted loss lies below the least value on det z = 0, and where the loss has come to that value or
    to rest, with z near det = 0. That the loss cannot fall below the least value is proved; that it tends there is said
    only along a gradient flow, of one that is below the next value at which the flow could rest: it decreases, and
    nothing else is left. With inertia it may go up and down for ever.

    Parameters
    ----------
    flow : Flow
    state : Tensor
        The last one, at time t.
    columns : dict
        "z" and "loss" at the outputs; the last ones are those of `state`.
    since : float
        The first time.
    wanted : list of float
        Losses that the run was to reach.
    """
    least = getattr(flow.loss, "boundary", lambda: None)()
    keeps = offers(flow, KeepsOrientation) and flow.keeps_orientation
    if least is None or not keeps or bool(least.isnan().all()):
        return None
    first, last = columns["loss"][0], columns["loss"][-1]
    least = torch.where(slogdet(columns["z"][0])[0] > 0, least, torch.nan)
    plateau = getattr(flow.loss, "plateau", lambda: None)()
    sigma, size = torch.linalg.svdvals(columns["z"][-1]), torch.linalg.svdvals(columns["z"][0])[..., 0]
    near = sigma[..., -1] <= _SINGULAR * sigma[..., 0]
    arrived = near & (last - least <= _ARRIVED * (first - least))
    falling = _rate(flow, state, last)
    # Where all of z falls to zero, its singular values may keep their ratios.
    resting = (near | (sigma[..., 0] <= _SINGULAR * size)) & (
        falling.abs() * (t - since) <= _ARRIVED * torch.minimum(first - last, last - least)
    )
    gone = arrived | (resting & (last > least)) | (least > max(wanted, default=torch.inf))
    if not bool(gone.any()):
        return None
    member = tuple(gone.nonzero()[0].tolist())
    tends = plateau is not None and bool((last < plateau)[member]) and loss_falls(flow)
    value = f"{float(least[member]):.6g}, its least value on the boundary det = 0"
    rate = float(falling[member])
    here = f"it is {float(last[member]):.6g} at t = {t:.6g}"
    if 0 < rate < inf:
        here = f"{here}, falling at {rate:.2g} per unit of time"
    claim = f"the loss tends to {value} ({here})" if tends else f"the loss cannot fall below {value}; {here}"
    return OutOfReach(
        gone,
        f"the target{of_members(gone)} has det < 0, which a flow that keeps det > 0 cannot reach: "
        f"{_first(gone)}{claim}",
    )


def _first(gone: Tensor) -> str:
    """Of which member the numbers are, where there are several."""
    if int(gone.sum()) < 2:
        return ""
    one = torch.zeros_like(gone)
    one[tuple(gone.nonzero()[0].tolist())] = True
    return f"{of_members(one).removeprefix(' ')}: "


def _rate(flow: Any, state: Tensor, loss: Tensor) -> Tensor:
    """How fast the loss falls, `(...)`, by a difference along the velocity; inf where that cannot be computed.

    Below zero where it rises, which along a gradient flow is round-off, and 0.
    """
    try:
        velocity = flow.velocity(state)
        size = float(velocity.abs().max())
        if size == 0:
            return torch.zeros_like(loss)
        h = sqrt(torch.finfo(state.dtype).eps) * (1 + float(state.abs().max())) / size
        fallen = (loss - flow.loss(flow.product(state + h * velocity))) / h
    except FAILURES:
        return torch.full_like(loss, torch.inf)
    fallen = fallen.clamp(min=0) if loss_falls(flow) else fallen
    return torch.where(fallen.isfinite(), fallen, torch.inf)
