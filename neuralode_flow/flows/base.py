"""What a flow promises to `integrate` and to the studies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from scipy.linalg.lapack import dgetrf, dgetrs
from torch import Tensor

from ..checks import all_finite, floating, goes_with, same_kind, square, unpatched
from ..depth.grid import DepthGrid
from ..losses import Loss, loss_said

# Numbers of z up to which closed flows factorise Newton's systems, d = 32: beyond, products with directions cost less.
MOST_RESOLVED = 1024

_DERIVED = "velocity", "linearised"

# Numbers of all directions that a derivative takes at once.
_MOST_NUMBERS = 2**20


class Flow(Protocol):
    """A training flow: a vector field on its own state, with an end-to-end map and conserved quantities.

    1. `check(state)` raises TypeError or ValueError, naming what is wrong, unless `state` fits this flow.
    2. `velocity(state)` is dstate/dt, of the same shape.
    3. `product(state)` is z, shape `(..., d, d)`; of a factorisation, of any shape `(..., *shape)`.
    4. `law(state)` is a quantity that the exact flow conserves, shape `(..., n, d, d)`; n = 0 where there is none.
    5. The four of them accept leading batch axes.
    6. What `velocity` and `product` give may lie where the flow puts the next one.

    What else a flow may offer is listed in `flows/capabilities.py`.
    """

    loss: Loss

    def check(self, state: Tensor) -> None: ...

    def velocity(self, state: Tensor) -> Tensor: ...

    def product(self, state: Tensor) -> Tensor: ...

    def law(self, state: Tensor) -> Tensor: ...


def missing(flow: Any) -> list[str]:
    """What of `Flow` an object does not have."""
    return [name for name in ("velocity", "product", "law", "check", "loss") if not hasattr(flow, name)]


class Around:
    """A flow that is made of another one, with the same loss; that of a copy can be changed without changing it."""

    flow: Any

    @property
    def loss(self) -> Loss:
        """f of the flow that it is made of."""
        loss: Loss = self.flow.loss
        return loss

    @loss.setter
    def loss(self, loss: Loss) -> None:
        self.flow = copy.copy(self.flow)
        self.flow.loss = loss

    def _on(self, grid: DepthGrid) -> Self:
        """The same around that flow on another grid, where it can be put on one."""
        moved = copy.copy(self)
        moved.flow = self.flow.on(grid)
        return moved


def restricted(flow: Any, members: Sequence[int], index: Tensor) -> Any:
    """The flow of some members of a batch of that shape, `(n,)`, which are counted in one line."""
    selects = {name: getattr(getattr(flow, name, None), "select", None) for name in ("loss", "kernel")}
    if not any(selects.values()):
        return flow
    some = copy.copy(flow)
    for name, select in selects.items():
        if select is not None:
            setattr(some, name, select(members, index))
    return some


def own_velocity(flow: Any, kind: type[Any]) -> bool:
    """Whether the velocity of a flow is that of its kind, and no subclass or user has put another in its place."""
    own = type(flow).velocity is kind.velocity and "velocity" not in vars(flow)
    return own and unpatched(kind, "velocity")


def lends_velocity(flow: Any) -> bool:
    """Whether a velocity may lie where its flow keeps it, or puts the next one: that of a user's class or object."""
    home = next((kind for kind in type(flow).__mro__ if "velocity" in vars(kind)), None)
    library = __name__.partition(".")[0]
    return home is None or home.__module__.partition(".")[0] != library or not own_velocity(flow, home)


def as_matrix(derivative: Callable[[Tensor], Tensor] | None, state: Tensor) -> Tensor:
    """The matrix `(n, n)` of a derivative that takes many directions in one call."""
    if derivative is None:
        raise ValueError(
            f"state {tuple(state.shape)} has a velocity whose derivative is not known: ask knows_jacobian first, and "
            f"give the loss a method hessian(z, direction)"
        )
    n = state.numel()
    basis = torch.eye(n, dtype=state.dtype, device=state.device).reshape(n, *state.shape)
    return derivative(basis).reshape(n, n).mT


def jacobian(flow: Any, state: Tensor) -> Tensor:
    """∂velocity/∂state of one state `(N, N)`, likewise: a velocity of one state alone need not take leading axes."""
    return _jacobians(flow, state, state.shape)[0]


def jacobians(flow: Any, states: Tensor) -> Tensor:
    """∂velocity/∂state of each of n states as a matrix `(n, N, N)`; raises TypeError where there is no derivative.

    By products of the flow's own `linearised` with the unit directions, or else by autograd; LinAlgError where that
    has no finite derivative of a finite velocity.
    """
    return _jacobians(flow, states, states.shape[1:])


def _jacobians(flow: Any, states: Tensor, shape: Sequence[int]) -> Tensor:
    """Those of states of that shape each."""
    size = math.prod(shape)
    n = states.numel() // size
    derivative = flow.linearised(states) if _derives_itself(flow) else None
    if derivative is not None:
        found = states.new_empty(n, size, size)
        basis = torch.eye(size, dtype=states.dtype, device=states.device)
        basis = basis.reshape(size, *[1] * (states.ndim - len(shape)), *shape)
        many = getattr(type(flow), "many_directions", False)
        number = max(1, _MOST_NUMBERS // (n * size)) if many else 1
        for first in range(0, size, number):
            some = basis[first : first + number].expand(-1, *states.shape)
            moved = derivative(some) if many else derivative(some[0].contiguous())
            found[:, :, first : first + len(some)] = moved.reshape(len(some), n, size).permute(1, 2, 0)
        return found
    with torch.inference_mode(False), torch.enable_grad():
        start, found = states.detach().clone().requires_grad_(), states.new_empty(n, size, size)
        values = flow.velocity(start).reshape(n, size).sum(0)  # members do not know of each other
        if not values.requires_grad:
            raise TypeError(
                f"{type(flow).__name__} gives no derivative of its velocity: it has no `linearised`, and torch finds "
                f"no path through the velocity"
            )
        for k, value in enumerate(values):
            found[:, k] = torch.autograd.grad(value, start, retain_graph=k + 1 < size)[0].reshape(n, size)
    if not all_finite(found) and all_finite(values.detach()):
        raise torch.linalg.LinAlgError(
            "torch has no finite derivative of the velocity there, as where singular values meet; a loss with "
            "`hessian` gives the flow its own"
        )
    return found


def _derives_itself(flow: Any) -> bool:
    """Whether `linearised` is of this very velocity: both come from one class, and neither was put in later."""
    homes = [next((kind for kind in type(flow).__mro__ if name in vars(kind)), None) for name in _DERIVED]
    return callable(getattr(flow, "linearised", None)) and homes[0] is homes[1] and "velocity" not in vars(flow)


def factored(J: Any, gamma: float) -> Callable[[Any], Any]:
    """r ↦ (1 − γJ)⁻¹ r for a matrix `(n, n)`, factorised once; of NumPy, or torch. Not finite where it is singular."""
    M = -gamma * J
    if isinstance(M, np.ndarray):
        M.flat[:: len(M) + 1] += 1.0
        LU, pivots, _ = dgetrf(M)
        return lambda r: dgetrs(LU, pivots, r)[0]
    M.diagonal().add_(1.0)
    LU, pivots, _ = torch.linalg.lu_factor_ex(M)
    return lambda r: torch.linalg.lu_solve(LU, pivots, r.unsqueeze(-1)).squeeze(-1)


def hessian_in_frame(loss: Any, z: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """H of z → ∇f(z) as a matrix `(d², d²)` of the entries of UᵀzV, for orthogonal U and V `(d, d)`."""
    n = z.numel()
    pairs = (U.mT[:, None, :, None] * V.mT[None, :, None, :]).reshape(n, *z.shape)
    return (U.mT @ loss.hessian(z.expand_as(pairs), pairs) @ V).reshape(n, n).mT


def flow_said(flow: Any, *parts: str) -> str:
    """The repr of a flow: d where its loss knows it, what it is made of, its loss, and the members of that."""
    return loss_said(flow, *parts, type(flow.loss).__name__, loss=flow.loss)


def check_layers(state: Tensor, number: int, what: str) -> None:
    """Raises unless `state` is a floating-point tensor `(..., number, d, d)`: cheap enough for every call."""
    floating("state", state)
    if state.numel() == 0:
        raise ValueError(f"state must not be empty, got shape {tuple(state.shape)}")
    if state.ndim < 3 or state.shape[-3] != number:
        raise ValueError(f"state must have shape (..., {number}, d, d) with {number} {what}, got {tuple(state.shape)}")
    if state.shape[-1] != state.shape[-2]:
        raise ValueError(f"state must be square in its last two axes, got shape {tuple(state.shape)}")


def check_matrices(name: str, state: Tensor, loss: Loss, axes: int) -> None:
    """Raises unless `state` is finite, square in its last two axes, and of the size, dtype and device of the loss.

    The axes before its last `axes` are those of its end-to-end map, to which those of the loss must broadcast.
    """
    square(name, state)
    batch = tuple(state.shape[:-axes])
    if loss.dimension is not None and state.shape[-1] != loss.dimension:
        raise ValueError(
            f"{name} has matrices of size {state.shape[-1]} but the loss is for d = {loss.dimension}, "
            f"got shape {tuple(state.shape)}"
        )
    for part, tensor in check_loss_kind(name, state, loss):
        members = tuple(tensor.shape[:-2])
        if not goes_with(members, batch):
            raise ValueError(
                f"{name} has leading axes {batch} but {part} of the loss has {members}: "
                f"give one state per member, or one loss for all"
            )


def place_of(loss: Loss) -> torch.device | None:
    """Where the numbers of a loss are; None where it has none."""
    parts = getattr(loss, "__dict__", {}).values()
    return next((part.device for part in parts if isinstance(part, Tensor)), None)


def check_loss_kind(name: str, value: Tensor, loss: Loss) -> list[tuple[str, Tensor]]:
    """The tensors of a loss by name; raises TypeError unless they are of the dtype and device of `value`."""
    parts = [
        (part.lstrip("_"), tensor)
        for part, tensor in getattr(loss, "__dict__", {}).items()
        if isinstance(tensor, Tensor)
    ]
    for part, tensor in parts:
        if tensor.is_floating_point():
            same_kind(name, value, f"{part} of the loss", tensor)
    return parts
