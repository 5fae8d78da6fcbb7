"""What a flow may offer beside velocity, product, law, check and loss: each of these is asked for where it is of use.

A class that has the method has the capability: there is nothing to inherit and nothing to register.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..depth.engine import Stepped
from ..depth.engine.explicit import Legs, Ran, Tableau, Tried
from ..depth.engine.polar import Formulas, NdfSteps
from ..depth.grid import DepthGrid, Profile
from ..laws import LawChange
from ..looks import current

C = TypeVar("C")


def offers(flow: object, capability: Callable[..., C]) -> TypeGuard[C]:
    """Whether a flow has all that a capability, one of the protocols below, names.

    Unlike `isinstance` this sees, in all versions of Python, what a flow passes on to another one by `__getattr__`.
    """
    return all(getattr(flow, name, None) is not None for name in _names(capability))


def itself_offers(flow: object, capability: Callable[..., C]) -> TypeGuard[C]:
    """Whether a flow offers a capability of its own class: one that passes it on from another has its own velocity."""
    return offers(flow, capability) and all(hasattr(type(flow), name) for name in _names(capability))


@cache
def _names(capability: type) -> tuple[str, ...]:
    kinds = [kind for kind in capability.__mro__ if kind not in (Protocol, *Protocol.__mro__)]
    names = [name for kind in kinds for name in (*vars(kind), *kind.__dict__.get("__annotations__", {}))]
    return tuple(name for name in names if not name.startswith("_"))


# What a velocity does.


class Repeats(Protocol):
    """Says whether its velocity does the same operations whatever the numbers are, so that a device can be taught it.

    Nothing in it may change between two calls but the numbers in the tensors that it holds.
    """

    repeats: bool


def replayed(flow: Any) -> Callable[[Tensor], Tensor]:
    """The velocity of a flow; where looks are postponed and it repeats, as the device has been taught it."""
    velocity: Callable[[Tensor], Tensor] = flow.velocity
    noted = current()
    if noted is None or not (itself_offers(flow, Repeats) and flow.repeats):
        return velocity
    return partial(noted.replayed, id(flow), velocity)


# Depth.


class Samples(Protocol):
    """Makes a state of a function of depth, so that `integrate` can be given the function."""

    def sample(self, W0: Profile) -> Tensor:
        """The state of W0, a function float s → (..., d, d)."""


class AtDepths(Protocol):
    """Knows at which depths the matrices of its state stand."""

    @property
    def nodes(self) -> Tensor:
        """Depths in [0, 1], shape (N,)."""


class OnGrid(Protocol):
    """Stands on a depth grid, which `stats["grid"]` tells of."""

    grid: DepthGrid


def inner_weights(flow: object) -> Tensor:
    """The weights of the inner product in which a flow descends; they broadcast to its states.

    Those of the quadrature on a grid (L² over depth), 1/L for each of L layers, else 1.
    """
    if offers(flow, OnGrid):
        return flow.grid.weights[:, None, None]
    if offers(flow, AtDepths):
        return torch.full((1, 1, 1), 1 / len(flow.nodes), dtype=torch.float64, device="cpu")
    return torch.ones((), dtype=torch.float64, device="cpu")


class ChangesGrid(OnGrid, Protocol):
    """Can be put on another grid, as ``adapt=True`` does."""

    def on(self, grid: DepthGrid) -> Any:
        """The same flow on another grid."""

    def transfer(self, state: Tensor, grid: DepthGrid) -> Tensor:
        """A state on another grid."""


class EstimatesDepth(Protocol):
    """Estimates the error that its grid makes in z, which `Trajectory.depth_error` and the status tell of."""

    def depth_error(self, state: Tensor) -> float:
        """Frobenius norm, the largest of a batch."""


class EstimatesSmooth(Protocol):
    """Estimates that error of states whose start has been compared with its profile: nothing has to be guessed."""

    def polynomial_error(self, state: Tensor) -> float:
        """Frobenius norm, the largest of a batch."""


class KnowsMisfit(EstimatesSmooth, Protocol):
    """Compares a start with the profile that it was sampled from."""

    def misfit(self, state: Tensor, W0: Profile) -> float:
        """How far z of the state is from that of the profile: Frobenius norm, the largest of a batch."""


class EstimatesCourse(Protocol):
    """Estimates what the error of the velocity that comes from the depth grid will make of z, before it does."""

    def course_error(self, state: Tensor, left: Tensor | None = None) -> float:
        """Frobenius norm, the largest of a batch; `left` `(...)` bounds the way that is left."""


class Multiplies(Protocol):
    """Knows how many matrices are multiplied to z: what the round-off of z grows with."""

    @property
    def factors(self) -> int:
        """Their number."""


# Laws and determinants.


class TellsLawChange(Protocol):
    """Tells what of a change of its law the grid accounts for; else the drift is the largest distance over depth."""

    def law_changes(self, start: Tensor) -> Callable[[Tensor], LawChange]:
        """How far the law has moved from `start`: a function of a state."""


class KnowsStepLaw(Protocol):
    """Knows how a step along a gradient moves its law: by a quadratic form of the step, and by nothing else."""

    @property
    def step_law_is_exact(self) -> bool:
        """Whether that is so for this flow."""

    def step_law(self, step: Tensor, directions: Tensor) -> Tensor:
        """What a step adds, seen from directions V `(d, k)` on both sides; contributions of several are added up."""

    def stepped(self, state: Tensor, velocity: Tensor, rate: float, directions: Tensor, added: Tensor) -> Stepped:
        """state + rate · velocity, what steps have added with what the step from one to the other adds, and a check.

        The velocity is given away: the result may be written over it.
        """

    def law_of_steps(self, added: Tensor) -> Tensor:
        """By how much steps that have added so much have moved Vᵀ law V."""


class Descends(KnowsStepLaw, Protocol):
    """Takes a step along its own velocity in less than the one after the other."""

    def descended(self, state: Tensor, rate: float, directions: Tensor, added: Tensor) -> Stepped:
        """`stepped` along the velocity at the state."""


class KnowsMomentumLaw(KnowsStepLaw, Protocol):
    """Knows N(V; W), whose skew part momentum keeps up to e^{αt}, and which drives the law (`laws.momentum_law`)."""

    def momentum_law(self, state: Tensor, velocity: Tensor) -> Tensor:
        """N of a state that moves at a velocity, of the shape of the law."""


class KeepsOrientation(Protocol):
    """Says that det z > 0 stays so: then a target with det z < 0 is called unreachable."""

    @property
    def keeps_orientation(self) -> bool:
        """Whether det z keeps its sign for all time."""


class KeepsSign(Protocol):
    """Says of a start whether the exact flow keeps the sign of det z: a run then tells when its steps do not."""

    def keeps_sign(self, state: Tensor) -> Tensor | None:
        """Booleans `(...)`; None where it is not known, and `PullsBack` decides at each crossing."""


class PullsBack(Protocol):
    """Pulls a matrix back through the end-to-end map; wanted where `keeps_sign` returns None."""

    def pull_back(self, state: Tensor, M: Tensor) -> Tensor:
        """The gradient of ⟨M, z⟩ in the state."""


# Time.


class StepsExplicitly(Protocol):
    """Takes whole steps of explicit formulas along its velocity in less than one velocity after the other."""

    def knows_steps(self, state: Tensor) -> bool:
        """Whether it does so, with its loss, for states of this kind."""

    def explicit_steps(self, states: Tensor, slopes: Tensor, h: np.ndarray, tableau: Tableau) -> Tried | None:
        """A step of each state `(n, ...)` along its slope, of size h `(n,)`; None where it cannot be taken so.

        A step h `()` is that of all states `(...)` together.
        """


def steps_explicitly(flow: Any, state: Tensor) -> bool:
    """Whether a flow itself takes whole steps from states of this kind."""
    return itself_offers(flow, StepsExplicitly) and flow.knows_steps(state)


class RunsExplicitly(StepsExplicitly, Protocol):
    """Takes many of these steps at once, where nobody is to look in between."""

    def explicit_runs(self, states: Tensor, slopes: Tensor, legs: Legs, tableau: Tableau) -> Ran | None:
        """Steps of each state `(n, ...)` on its way to a time, as many as it can take; None where there are none."""


def runs_explicitly(flow: Any, state: Tensor) -> bool:
    """Whether a flow itself does so from states of this kind, and nothing that it would pass over was put into it."""
    able = itself_offers(flow, RunsExplicitly) and flow.knows_steps(state)
    return able and not {"explicit_steps", "finite"} & vars(flow).keys()


class Linearises(Protocol):
    """Gives stiff solvers exact Jacobian–vector products in place of differences."""

    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The derivative of the velocity at a state, a function of a direction; None where it is not known."""


class DerivesAlongMany(Linearises, Protocol):
    """Its derivative takes directions along further leading axes in one call, where that is true."""

    many_directions: bool


class KnowsJacobian(Protocol):
    """Makes the derivative of its velocity as a whole, for implicit methods and states of a few hundred numbers."""

    def knows_jacobian(self, state: Tensor) -> bool:
        """Whether it does so, with its loss, for states of this kind."""

    def jacobian(self, state: Tensor) -> Tensor:
        """The derivative as a matrix `(n, n)` of the n numbers of a state."""


class Resolves(Protocol):
    """Solves the linear systems of implicit methods, (1 − γJ) x = r, by what it knows of its velocity's derivative J.

    An approximation of J does: it decides how fast Newton's iteration converges, and not to what.
    """

    def knows_resolvent(self, state: Tensor) -> bool:
        """Whether it does so, with its loss, for states of this kind."""

    def resolvent(self, state: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """γ ↦ (r ↦ (1 − γJ)⁻¹ r) with J at a state; what depends on γ alone is factorised once."""


class StepsImplicitly(Resolves, Protocol):
    """Takes whole steps of differentiation formulas, with Newton's iteration for each, in one call."""

    def implicit_steps(self, state: Tensor, formulas: Formulas) -> NdfSteps | None:
        """What takes them from such a state; None where this is to be done from outside."""


class Carried(Protocol):
    """Is integrated in other coordinates than its own where that is better."""

    def carrier(self) -> Any:
        """The same flow there, which `Enters` and `Leaves`; None where it is integrated as it is."""


class Enters(Protocol):
    """A flow in coordinates of its own, as `LogPolarFlow`, which takes states that are given in others."""

    def enter(self, state: Tensor) -> Tensor:
        """A given state in the coordinates of this flow."""


class Leaves(Protocol):
    """A flow in coordinates of its own, whose states are given back in others."""

    def leave(self, state: Tensor) -> Tensor:
        """A state in the coordinates in which it was given."""


class ChoosesTolerances(Protocol):
    """Has entries of the state that stand for those of z, and need other tolerances."""

    def tolerances(self, state: Tensor, rtol: float, atol: float) -> tuple[float, float]:
        """rtol and atol of the entries of the state that stand for those of z."""


class KnowsFinite(Protocol):
    """Has states that are finite where z is not, at which a run has to end."""

    def finite(self, state: Tensor) -> Tensor:
        """Whether z is in the range of numbers, `(...)`."""


class KnowsRate(Protocol):
    """Knows how fast a state moves in the coordinates in which it was given; else its velocity is that."""

    def rate(self, state: Tensor) -> Tensor:
        """Its derivative in time."""


class KnowsLogSigma(Protocol):
    """Knows the singular values of z better than z itself can hold them: see `Trajectory.log_sigma`."""

    def log_sigma(self, state: Tensor) -> Tensor:
        """Their logarithms, falling, `(..., d)`."""
