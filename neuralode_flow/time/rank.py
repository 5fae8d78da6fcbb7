"""Singular values of zero, which the exact flow keeps and logarithms cannot hold."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import of_members
from ..flows.capabilities import KnowsLogSigma, offers


class Risen(NamedTuple):
    """Of which members a singular value has come out of zero, `(...)`, and the sentence."""

    which: Tensor
    sentence: str


def risen(flow: Any, start: Tensor, state: Tensor) -> Risen | None:
    """What is to be said of singular values of zero; None as long as z has the rank that it had.

    A flow that carries logarithms takes the smallest positive number for them. Where the logarithm moves at a rate of
    its own however small the value is, as it does along the flow of two balanced layers, that comes into sight.

    Parameters
    ----------
    flow : Flow
    start, state : Tensor
        The first and the last state.
    """
    if not offers(flow, KnowsLogSigma):
        return None
    numbers = torch.finfo(start.dtype)
    floor, before, now = math.log(numbers.tiny), flow.log_sigma(start), flow.log_sigma(state)
    zero = (before - floor).abs() <= -1e-9 * floor
    size = torch.where(zero[..., :1], 0.0, now[..., :1])  # beside 1 where z was zero
    seen = zero & (now > size + math.log(numbers.eps))
    which = seen.any(-1)
    if not bool(which.any()):
        return None
    largest = float(now[seen].max().exp())
    return Risen(
        which,
        f"a singular value of zero at the start{of_members(which)}, which the exact flow keeps, counts as "
        f"{numbers.tiny:.2g} in logarithms and has grown to {largest:.2g}: what follows is another solution; end "
        f"before, or start from another z",
    )
