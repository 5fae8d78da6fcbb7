"""What a flow promises to `integrate` and to the studies."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..checks import same_kind, square
from ..losses import Loss


class Flow(Protocol):
    """A training flow: a vector field on its own state, with an end-to-end map and conserved quantities.

    1. `check(state)` raises TypeError or ValueError, naming what is wrong, unless `state` fits this flow.
    2. `velocity(state)` is dstate/dt, of the same shape.
    3. `product(state)` is z, shape `(..., d, d)`.
    4. `law(state)` is a quantity that the exact flow conserves, shape `(..., n, d, d)`; n = 0 where there is none.
    5. The four of them accept leading batch axes.
    """

    loss: Loss

    def check(self, state: Tensor) -> None: ...

    def velocity(self, state: Tensor) -> Tensor: ...

    def product(self, state: Tensor) -> Tensor: ...

    def law(self, state: Tensor) -> Tensor: ...


def check_matrices(name: str, state: Tensor, loss: Loss) -> None:
    """Raises unless `state` is finite, square in its last two axes, and of the size, dtype and device of the loss."""
    square(name, state)
    if loss.dimension is not None and state.shape[-1] != loss.dimension:
        raise ValueError(
            f"{name} has matrices of size {state.shape[-1]} but the loss is for d = {loss.dimension}, "
            f"got shape {tuple(state.shape)}"
        )
    for part, value in vars(loss).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            same_kind(name, state, f"{part.lstrip('_')} of the loss", value)
