"""The central flow as a flow, which `integrate` moves through time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import all_finite, positive
from ..depth.grid import DepthGrid
from ..display import said
from ..flows.base import Around, Flow
from ..flows.continuous import ContinuousFlow
from ..modes import uncompiled
from .edge import central
from .hessian import Hessian, fixed_weights, plain_numbers

# What is passed on: it is about states and z alone, and not about the way that they go.
_PASSED_ON = {"sample", "nodes", "grid", "transfer", "depth_error", "polynomial_error", "misfit", "factors"}


class CentralFlow(Around):
    """The central flow of gradient descent of a rate, around the flow whose steps those are: see `central_velocity`.

    Where the sharpness is well below 2/rate it is the flow itself; at the edge of stability it goes through the middle
    of the oscillation of gradient descent.

    Parameters
    ----------
    flow : ContinuousFlow, FiniteFlow or FactorizationFlow
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
        If flow is none of those or rate is not a positive number; at the start of a run as `hessian` does.

    Notes
    -----
    Each velocity finds eigenpairs of the Hessian anew, from the same start: nothing is remembered from one to the next,
    so that a run which is resumed gives the same numbers to the bit. The velocity is continuous and has kinks where a
    variance becomes zero, across which steps in time are of lower order: methods with error control take small ones
    there.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[..., 0] * theta[..., 1], nf.Quadratic(torch.tensor(1.0)))
    >>> theta, rate = torch.tensor([3.0, 0.1]), 0.25
    >>> path = nf.integrate(nf.CentralFlow(flow, rate), theta, [0.0, 4.0], rtol=1e-4, atol=1e-6)
    >>> sharpness = nf.curvature.sharpness(flow, path.state).value
    >>> abs(float(sharpness) - 2 / rate) < 1e-3, float(path.loss[-1]) < 1e-6
    (True, True)
    """

    def __init__(self, flow: Flow, rate: float) -> None:
        fixed_weights(flow)
        self.flow = flow
        self.learning_rate = positive("rate", rate)  # `rate` is a capability

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

    def _on(self, grid: DepthGrid) -> CentralFlow:
        """The same flow on another grid."""
        return CentralFlow(self.flow.on(grid), self.learning_rate)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless the flow has a Hessian at the state."""
        Hessian(self.flow, state)

    @uncompiled
    def velocity(self, state: Tensor) -> Tensor:
        """That of `central_velocity`, of the shape of the state."""
        state = plain_numbers("state", state)
        with torch.no_grad():
            velocity = self.flow.velocity(state)
        if not all_finite(velocity):
            return velocity
        try:
            return central(Hessian.unchecked(self.flow, state), velocity, self.learning_rate).velocity
        except (RuntimeError, ValueError) as error:
            raise FloatingPointError(str(error)) from error

    def product(self, state: Tensor) -> Tensor:
        """z of the flow."""
        z: Tensor = self.flow.product(state)
        return z

    def law(self, state: Tensor) -> Tensor:
        """Nothing is known to be conserved: an empty tensor."""
        return state.new_empty(*self.loss(self.product(state)).shape, 0, 1, 1)
