"""What a system is: a factorisation of the literature with all that is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...checks import count
from ...flows.base import Flow
from ...losses import Loss
from ...registry import Registry

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
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


SYSTEMS: Registry[Callable[..., System]] = Registry("system")


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
    return torch.Generator(device="cpu").manual_seed(count("system.seed", seed, least=0, most=2**63 - 1))


def normal(random: torch.Generator, *shape: int) -> Tensor:
    """Standard normals in float64; drawn on the CPU, so that a seed means the same numbers on every device."""
    return torch.randn(shape, generator=random, dtype=torch.float64, device="cpu").to(torch.get_default_device())
