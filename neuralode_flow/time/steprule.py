"""What a step rule promises: training in steps of a given rate, as optimisers take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..flows.capabilities import AtDepths, OnGrid, inner_weights, offers
from ..registry import Registry
from ..signatures import at_least, below
from .steplaw import StepLaw

Velocity = Callable[[Tensor], Tensor]
Fraction = Annotated[float, at_least(0), below(1)]  # such as a momentum


@dataclass(frozen=True, eq=False)
class Ground:
    """What a rule may ask of the flow that it trains.

    Attributes
    ----------
    flow : Flow
    velocity : callable
        Of a state: minus the gradient of the loss in the inner product of the flow.
    with_loss : callable
        The gradient of another loss: (state, loss) → g.
    members : int
        How many leading axes of a state belong to a batch.
    start : Tensor
        The state at step 0.
    """

    flow: Any
    velocity: Velocity
    with_loss: Callable[[Tensor, Any], Tensor]
    members: int
    start: Tensor

    @property
    def matrices(self) -> bool:
        """Whether the last two axes of a state are a matrix: at each depth, or z itself."""
        own = self.start.shape[self.members :]
        at_depths = offers(self.flow, OnGrid) or offers(self.flow, AtDepths)
        return at_depths or (len(own) == 2 and own == self.flow.product(self.start).shape[-2:])

    def gradient(self, state: Tensor) -> Tensor:
        """g, the gradient of the loss in the inner product of the flow."""
        return -self.velocity(state)

    def norm(self, g: Tensor) -> Tensor:
        """The norm of a gradient, of each member, with axes of length 1 for what it runs over.

        In L² over depth: quadrature on a grid, the mean over the layers of a network; else the Euclidean one.
        """
        axes = tuple(range(self.members - g.ndim, 0))
        squares = g.square() * inner_weights(self.flow).to(g)
        return (squares.sum(axes, keepdim=True) if axes else squares).sqrt()  # without axes `sum` takes all


class StepRule(ABC):
    """A step rule in motion.

    1. `Rule(ground, rate, **options)` stands at step 0, at rest. The options are keyword parameters whose annotations
       have types and ranges (`signatures.py`); one that does not suit the flow raises ValueError.
    2. `step(n, state)` is the state after step n, from the one before it; it may raise Stopped.
    3. `memory` has what it must remember between two steps, tensors by name, so that a checkpoint can hold them. A step
       puts new ones there and changes neither them nor the state in place: a step that fails is taken back.

    Attributes
    ----------
    equivariant : bool
        Whether it turns with the gradient, g(s) ↦ Q(s) g(s) Q(s)ᵀ: then z₀ decides the whole sequence z_n on relaxed
        balanced starts (docs/math.md).
    """

    equivariant: ClassVar[bool] = True

    def __init__(self, ground: Ground, rate: float) -> None:
        self.ground = ground
        self.rate = rate
        self.memory: dict[str, Tensor] = {}

    def law(self) -> StepLaw | None:
        """Where its steps take the law of the flow, from its start on; None where they do not say it."""
        return None

    @abstractmethod
    def step(self, n: int, state: Tensor) -> Tensor:
        """The state after step n."""

    def remembered(self, name: str) -> Tensor:
        """A tensor of the memory; zeros of the shape of a state before it was set."""
        return self.memory.get(name, torch.zeros_like(self.ground.start))


class AlongGradient(StepRule):
    """A rule whose step is a number times a gradient of some loss of z: the law then moves by the square of the step.

    In place of `step` it has `along`.
    """

    def law(self) -> StepLaw | None:
        flow = self.ground.flow
        return StepLaw(flow, self.ground.start) if StepLaw.known(flow) else None

    def step(self, n: int, state: Tensor) -> Tensor:
        return torch.add(state, self.along(n, state), alpha=self.rate)

    @abstractmethod
    def along(self, n: int, state: Tensor) -> Tensor:
        """A step over the rate: minus a gradient, times a number for each member; not finite where that is not.

        The step is written over it, unless it lies in the memory or is the state.
        """


class AlongVelocity(AlongGradient):
    """A rule that steps along the velocity itself, which a flow may take together with the step."""

    def along(self, n: int, state: Tensor) -> Tensor:
        return self.ground.velocity(state)


def directed(g: Tensor, size: Tensor) -> Tensor:
    """g / size, and zero where that is zero."""
    return torch.where(size == 0, torch.zeros_like(g), g / size)


def need_matrices(name: str, ground: Ground) -> None:
    """Raises ValueError for a rule of matrices where a flow has none."""
    if not ground.matrices:
        raise ValueError(
            f"rule={name!r} works on the matrix at each depth, and {type(ground.flow).__name__} has none in a state of "
            f"shape {tuple(ground.start.shape)}; choose gd, heavy_ball, nesterov or normalised"
        )


STEP_RULES: Registry[type[StepRule]] = Registry("step rule")
