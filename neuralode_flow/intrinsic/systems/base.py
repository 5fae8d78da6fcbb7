"""What a system is: a factorisation of the literature with all that is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...checks import float_tensor, positive, seeded
from ...flows.base import Flow
from ...flows.factorization import check_map, checked_map
from ...losses import Loss, check_loss
from ...matrices import normal as normal
from ...registry import Registry
from ..derivatives import jacobian
from ..place import Place
from ..report import check_conserved

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class System:
    """A factorisation z = φ(θ), where it starts, what it is trained for, and what must hold.

    Attributes
    ----------
    name : str
        The name it is chosen by.
    title : str
        One sentence for people, with the sizes.
    source : str
        Where it and its closed flow come from.
    phi : callable
        θ (..., n) → z (..., *shape).
    laws : callable
        θ (..., n) → (..., k), conserved by θ' = −∇(f∘φ) for every f.
    theta : Tensor (n,)
        The start θ₀.
    loss : Loss
        f(z) of the default problem.
    independent : int or None
        How many of the laws are independent at a generic θ, where that is known.
    closed : Flow or None
        The closed flow of z that starts at φ(θ₀) on the level set of the laws of θ₀: a formula in z alone.
    recoverable, metric : bool or None
        What criteria A and B say at θ₀, where theory tells; None where it does not.
    control : Flow or None
        A flow of z that z must not follow: of a negative control.
    flow : Flow or None
        The parameter flow where it is not FactorizationFlow(phi, loss, laws): of a ReLU network, whose loss depends on
        the activations of θ.
    until : callable or None
        (t, z, θ) → float that falls to zero where the comparison must end.
    until_what : str
        What happens there, such as "the first switch of an activation".
    bound : float
        What the distance of the two z-trajectories must stay below over T = 3.
    checks : mapping of str to callable
        Further identities: (times (T,), path of θ (T, n)) → the error of each, at most `bound`.
    observe : mapping of str to callable
        Quantities worth a figure: θ (n,) → tensor, such as the knots of a spline.
    facts : mapping
        Arrays of the problem that figures need.
    """

    name: str
    title: str
    source: str
    phi: Map
    laws: Map
    theta: Tensor
    loss: Loss
    independent: int | None = None
    closed: Flow | None = None
    control: Flow | None = None
    recoverable: bool | None = None
    metric: bool | None = None
    flow: Flow | None = None
    until: Callable[[float, Tensor, Tensor], float] | None = None
    until_what: str = ""
    bound: float = 1e-8
    checks: Mapping[str, Callable[[Tensor, Tensor], float]] = field(default_factory=dict)
    observe: Mapping[str, Map] = field(default_factory=dict)
    facts: Mapping[str, Tensor] = field(default_factory=dict)


def check_system(system: System) -> None:
    """What a system states, as far as one point tells: its parts fit, and its laws are laws, at θ₀ and not only there.

    Raises
    ------
    TypeError, ValueError
        With the name of the system and of the part that is at fault.
    """

    def part(name: str) -> str:
        return f"{name} of system '{system.name}'"

    theta = float_tensor(part("theta"), system.theta)
    if theta.ndim != 1:
        raise ValueError(f"{part('theta')} must have shape (n,), got {tuple(theta.shape)}; flatten it")
    check_map(part("phi"), system.phi)
    check_map(part("laws"), system.laws)
    check_loss(part("loss"), system.loss)
    positive(part("bound"), system.bound)
    z = checked_map(part("phi"), system.phi, theta)
    checked_map(part("laws"), system.laws, theta, depends=False)
    for name, flow in (("closed", system.closed), ("control", system.control)):
        if flow is not None and flow.velocity(z).shape != z.shape:
            raise ValueError(
                f"{part(name)} must give a velocity of the shape {tuple(z.shape)} of phi(theta), got "
                f"{tuple(flow.velocity(z).shape)}"
            )
    random = torch.Generator().manual_seed(0)

    def flat(point: Tensor) -> Tensor:
        return system.phi(point).reshape(-1)

    start = Place.at(theta.detach().double(), flat, random)
    for place in (start, start.nearby(flat, random)[0]):
        check_conserved(place.jacobian(flat), place.jacobian(system.laws), part("laws"))


def closed_velocity_error(system: System, flow: Flow, path: Tensor) -> float:
    """How far the closed flow is from ∂φ(θ) θ' at points of a path of θ (T, n), relative to the largest speed of z.

    No integration is in between: a closed flow is wrong by itself, or not.
    """
    assert system.closed is not None
    errors, speeds = [], []
    for theta in path:
        z = system.phi(theta)
        moved = (jacobian(system.phi, theta) @ flow.velocity(theta)).reshape(z.shape)
        errors.append(torch.linalg.vector_norm(system.closed.velocity(z) - moved))
        speeds.append(torch.linalg.vector_norm(moved))
    return float(torch.stack(errors).max() / torch.stack(speeds).max().clamp(min=torch.finfo(path.dtype).tiny))


SYSTEMS: Registry[Callable[..., System]] = Registry("system", __package__)


class ClosedFlow:
    """ż = velocity(z, ∇f(z)): a closed flow that is one formula.

    Parameters
    ----------
    loss : Loss
    formula : callable
        (z, G) → ż, all of the shape `(..., *shape)`.
    """

    def __init__(self, loss: Loss, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.formula = formula

    def check(self, state: Tensor) -> None:
        """Raises unless the loss takes the state."""
        self.loss(state)

    def velocity(self, state: Tensor) -> Tensor:
        """ż."""
        return self.formula(state, self.loss.gradient(state))

    def product(self, state: Tensor) -> Tensor:
        """z is the state itself."""
        return state

    def law(self, state: Tensor) -> Tensor:
        """No function of z is conserved for every loss."""
        return state.new_empty(*self.loss(state).shape, 0, 1, 1)


def generator(seed: int) -> torch.Generator:
    """The only source of random numbers of a system."""
    return seeded("system.seed", seed)
