"""The flow that gradient descent of a visible step size follows more closely than gradient flow."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..checks import positive
from ..display import said
from ..modes import gradient, undisturbed
from ..promises import Once, Source, denied
from .base import Around, Flow, missing
from .capabilities import Linearises, offers
from .continuous import ContinuousFlow
from .factorization import FactorizationFlow
from .finite import FiniteFlow
from .intrinsic import IntrinsicFlow

# What is passed on: it is about states and z alone, and not about the way that they go.
_PASSED_ON = {"sample", "nodes", "grid", "transfer", "factors"}
_PASSED_ON |= {"depth_error", "polynomial_error", "course_error", "misfit"}

# Flows whose derivative has been compared with differences.
_COMPARED = Once()
for _kind in (ContinuousFlow, FactorizationFlow, FiniteFlow, IntrinsicFlow):
    _COMPARED.tested(_kind)


class FollowsSteps(Around):
    """A flow that follows gradient descent of a rate on another one: W goes another way, and z is that of W as before.

    Attributes
    ----------
    learning_rate : float
        The step size; `rate` is a capability.
    """

    learning_rate: float

    @abstractmethod
    def __init__(self, flow: Flow, rate: float) -> None: ...

    def __repr__(self) -> str:
        return said(self, repr(self.flow), f"rate={self.learning_rate:g}")

    def __getattr__(self, name: str) -> Any:
        if name in _PASSED_ON:
            return getattr(self.__dict__["flow"], name)
        if name == "on" and hasattr(self.__dict__["flow"], "on"):
            return self._on
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def keeps_orientation(self) -> bool:
        """det z > 0 for all time: of the continuous model, whatever way its W goes; not known of others."""
        return isinstance(self.flow, ContinuousFlow)

    def product(self, state: Tensor) -> Tensor:
        """z of the flow."""
        z: Tensor = self.flow.product(state)
        return z

    def law(self, state: Tensor) -> Tensor:
        """Nothing is known to be conserved: an empty tensor."""
        return state.new_empty(*self.loss(self.product(state)).shape, 0, 1, 1)


class ModifiedFlow(FollowsSteps):
    """W' = v − (η/2) Dv[v] of a flow W' = v(W): what steps W + ηv(W) of gradient descent follow to order 2 in η.

    Of a gradient flow, v = −∇f in an inner product that does not change with W (L² over depth, the scaled one of
    layers, the Euclidean one of a factorisation), this is W' = −∇(f + η/4 ‖∇f‖²) in the same inner product: there Dv is
    minus the Hessian. Of the flow of z, whose metric moves with z, it is what steps in z follow.

    Nothing is conserved: the law of the continuous model moves along it as it does in steps, C_t = η (vᵀv − vvᵀ).
    Dv[v] is by `linearised` of the flow where it has that, else by automatic differentiation of its velocity.

    Parameters
    ----------
    flow : Flow
        Its states are those of this one.
    rate : float
        The step size η > 0, in flow time.

    Attributes
    ----------
    learning_rate : float
        η.

    Raises
    ------
    TypeError, ValueError
        If flow is none or rate is not a positive number; at the start of a run if the derivative of a velocity of one's
        own is not that of its differences, as where parts of it are detached.

    Notes
    -----
    Backward error analysis of Euler's method, as Barrett and Dherin (2021, arXiv 2009.11162) apply it to gradient
    descent. `IntrinsicFlow` has no derivative where singular values meet.

    Examples
    --------
    >>> flow = nf.FiniteFlow(4, nf.Quadratic(torch.tensor([[2.0, 0.3], [-0.1, 1.5]])))
    >>> W, times = torch.zeros(4, 2, 2), torch.linspace(0, 1, 11)
    >>> steps = nf.descend(flow, W, steps=100, rate=0.01, record=10)
    >>> gradient, modified = (
    ...     nf.integrate(f, W, times, "DOP853", rtol=1e-10, atol=1e-12) for f in (flow, nf.ModifiedFlow(flow, 0.01))
    ... )
    >>> off = [float((steps.z - path.z).abs().max()) for path in (gradient, modified)]
    >>> off[0] > 1e-3, off[1] < 1e-4
    (True, True)
    """

    def __init__(self, flow: Flow, rate: float) -> None:
        if isinstance(flow, type) or missing(flow):
            what = f"the class {flow.__name__}" if isinstance(flow, type) else type(flow).__name__
            raise TypeError(f"flow must be a flow such as FiniteFlow(…), got {what}")
        self.flow = flow
        self.learning_rate = positive("rate", rate)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the flow takes the state and can be differentiated."""
        self.flow.check(state)
        if self.flow in _COMPARED:
            return
        source = Source(state.dtype, state.device)
        dual = source(*state.shape)
        size = [float(state.norm()) / state.numel() ** 0.5 or 1.0]
        found = denied(
            lambda at: (self.flow.velocity(at) * dual).sum(),
            lambda at, along: (self._derivative(at, along) * dual).sum(),
            state.detach(), size, source,
        )  # fmt: skip
        if found is not None:
            raise ValueError(
                f"flow has a velocity whose derivative is not that of its differences: {found}; write all of it in "
                f"torch, without detach, or give the flow a method linearised(state)"
            )
        _COMPARED.add(self.flow)

    @undisturbed
    def velocity(self, state: Tensor) -> Tensor:
        """v − (η/2) Dv[v], of the shape of the state."""
        v = self.flow.velocity(state)
        return v - self.learning_rate / 2 * self._derivative(state, v)

    def _derivative(self, state: Tensor, direction: Tensor) -> Tensor:
        """Dv(state)[direction]."""
        known = self.flow.linearised(state) if offers(self.flow, Linearises) else None
        if known is not None:
            return known(direction)
        if type(self.flow) is FiniteFlow:  # it is symmetric there
            moved: Tensor | None = _pulled_back(self.flow, state, direction)
        else:  # Dvᵀu is linear in u, and its own transposed derivative is Dv
            zero = torch.zeros_like(state)
            moved = gradient(lambda u: _pulled_back(self.flow, state, u), zero, lambda _: direction)
        return torch.zeros_like(state) if moved is None else moved


def _pulled_back(flow: Flow, state: Tensor, dual: Tensor) -> Tensor:
    """Dv(state)ᵀ dual; zero where the velocity does not depend on the state."""
    found = gradient(flow.velocity, state, lambda _: dual)
    return torch.zeros_like(state) if found is None else found
