"""The barrier det z = 0 of balanced starts: the exact flow never crosses it, step errors and round-off can."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, log
from typing import Any

import torch
from torch import Tensor

from ..checks import all_finite
from ..flows.capabilities import KeepsSign, offers
from ..matrices import frobenius, slogdet
from .base import Control, fixed_steps

# det z has a sign that can be trusted from this multiple of d ε on, as a ratio of the singular values of z.
_RESOLVED = 1e3

# Where z can be moved across by less than this part of what moves it most, only errors do: a balanced flow cannot at
# all. Errors of steps leave about their own size of it; those of fixed steps are not known.
_IMMOBILE, _IMMOBILE_FIXED = 1e-5, 1e-2


class Barrier:
    """Watches over the sign of det z at every step of a flow that has no other means to keep it.

    Of a `FiniteFlow` it is known at the start whether the exact flow keeps the sign. Of a `FactorizationFlow` it is
    not; there a change of sign is looked at where it happens. With u, v the singular vectors of z at the singular value
    that is zero, σ' = −⟨∂φᵀ(uvᵀ), ∂φᵀ∇f⟩, and ∂φᵀ(uvᵀ) = 0 where factors are balanced: they are singular together.
    A balanced start whose smallest singular value comes back from below round-off with its sign kept is not told.

    Parameters
    ----------
    flow : Flow
        One that `KeepsSign`, with a square z.
    start : Tensor
        Its initial state.
    control : Control
    method : Method
        The time method.
    """

    def __init__(self, flow: Any, start: Tensor, control: Control, method: Any) -> None:
        self.flow = flow
        self.certain = flow.keeps_sign(start)
        self.sign, resolved = _signs(flow.product(start))
        self.sign = torch.where(resolved, self.sign, 0.0)
        self.least = torch.full_like(self.sign, torch.inf)
        self.immobile = (
            _IMMOBILE_FIXED if fixed_steps(method) else max(_IMMOBILE, min(_IMMOBILE_FIXED, 10 * control.rtol))
        )
        # When the sign changed, NaN as long as it has not: on an accelerator nobody waits for it.
        self.when = torch.full_like(self.sign, torch.nan)

    @property
    def escaped(self) -> float | None:
        """When a z was first seen to have been carried across."""
        when = [t for t in self.when.flatten().tolist() if not isnan(t)]
        return min(when, default=None)

    def after_step(
        self, before: float, t: float, at: Callable[[float], Tensor], now: Tensor | float | None = None
    ) -> None:
        """Looks at the end of a step from `before` to t; `at` gives the states inside it.

        The times `(...)` of members that are each at one of their own are `now`.
        """
        state = at(t)
        z = self.flow.product(state)
        if z.is_cpu and not all_finite(z):  # which the run tells of
            return
        sign, resolved = _signs(z)
        crossed = resolved & (sign * self.sign < 0)
        if self.certain is not None:
            escaped = crossed & self.certain
        else:
            if not bool(resolved.all()):
                self.least = torch.where(resolved, self.least, torch.minimum(self.least, self._mobility(state)))
            if bool((crossed & self.least.isinf()).any()):
                self.least = torch.where(crossed, torch.minimum(self.least, self._inside(before, t, at)), self.least)
            escaped = crossed & (self.least <= self.immobile)
        self.when = torch.where(escaped & self.when.isnan(), t if now is None else now, self.when)
        self.sign = torch.where(resolved, sign, self.sign)
        self.least = torch.where(crossed, torch.inf, self.least)

    def verdict(self) -> str | None:
        """What is to be said at the end."""
        when = self.escaped
        if when is None:
            return None
        return (
            f"det z has changed its sign by t = {when:.6g}, which the exact flow from a balanced start cannot "
            f"do: errors of steps or round-off have carried z across det z = 0, and what follows is another solution; "
            f"integrate IntrinsicFlow in its place, which carries logarithms, or end before (stop={{'sigma_min': …}})"
        )

    def memory(self) -> dict[str, Tensor]:
        """What it is taken back to."""
        return {"sign": self.sign, "least": self.least, "when": self.when}

    def go_back(self, memory: dict[str, Tensor]) -> None:
        """Goes back to what `memory` gave."""
        self.sign, self.least, self.when = memory["sign"], memory["least"], memory["when"]

    def resume(self, said: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds, as `written` wrote it."""
        self.sign, self.least = (
            torch.tensor([float(x) for x in said[name]], dtype=torch.float64, device="cpu")
            .to(self.sign)
            .reshape(self.sign.shape)
            for name in ("sign", "least")
        )
        escaped = said["escaped"]
        times = escaped if isinstance(escaped, list) else [escaped] * self.sign.numel()  # of a run from before
        self.when = self.when.new_tensor([torch.nan if t is None else t for t in times]).reshape(self.sign.shape)

    def _mobility(self, state: Tensor) -> Tensor:
        """‖∂φᵀ(uvᵀ)‖ of the smallest singular value, relative to that of the largest, per member."""
        U, _, Vh = torch.linalg.svd(self.flow.product(state))
        sizes = [
            frobenius(self.flow.pull_back(state, U[..., :, k, None] * Vh[..., None, k, :]), self.sign.ndim)
            for k in (-1, 0)
        ]
        return sizes[0] / sizes[1]

    def _inside(self, before: float, t: float, at: Callable[[float], Tensor]) -> Tensor:
        """The mobility where det z is zero inside a step that changes its sign, by bisection."""
        low, high = before, t
        for _ in range(30):
            middle = (low + high) / 2
            sign = _signs(self.flow.product(at(middle)))[0]
            low, high = (low, middle) if bool((sign * self.sign < 0).any()) else (middle, high)
        return self._mobility(at(high))


def barrier_of(flow: Any, start: Tensor, control: Control, method: Any) -> Barrier | None:
    """The barrier of a flow that has one to be watched: it can say so, and z is a square matrix."""
    told = offers(flow, KeepsSign)
    if not told:
        return None
    z = flow.product(start)
    square = z.ndim >= 2 and z.shape[-1] == z.shape[-2] and z.ndim == flow.loss(z).ndim + 2
    kept = flow.keeps_sign(start) if square else torch.tensor(False, device="cpu")
    return Barrier(flow, start, control, method) if kept is None or bool(kept.any()) else None


def written(memory: dict[str, Tensor]) -> dict[str, Any]:
    """The memory of a barrier in a checkpoint."""
    lists = {name: memory[name].flatten().tolist() for name in ("sign", "least", "when")}
    return {**lists, "escaped": [None if isnan(t) else t for t in lists.pop("when")]}


def _signs(z: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of det z, and whether round-off leaves it in no doubt."""
    doubt = _RESOLVED * z.shape[-1] * torch.finfo(z.dtype).eps
    sign, log_det = slogdet(z)
    if z.is_cpu:
        # The others multiply to at most (‖z‖²/(d − 1))^((d − 1)/2), which mostly says enough of the least.
        others = z.shape[-1] - 1
        size = torch.linalg.matrix_norm(z).log()
        sure = log_det - others * (size - log(max(others, 1)) / 2) > log(doubt) + size
        if bool(sure.all()):
            return sign, sure
        sigma = torch.linalg.svdvals(z)
        return sign, sigma[..., -1] > doubt * sigma[..., 0]
    # The processor would wait for singular values; these bounds of them are at most √d away.
    inverse = torch.linalg.inv_ex(z).inverse
    return sign, doubt * torch.linalg.matrix_norm(z) * torch.linalg.matrix_norm(inverse) < 1
