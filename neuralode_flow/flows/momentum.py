"""Momentum as a flow: any training flow with inertia and friction, on pairs of weights and their velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from ..checks import count, real, same_kind
from ..depth.grid import DepthGrid, Profile
from ..losses import squares_of
from .base import Around, Flow, flow_said, missing
from .capabilities import AtDepths, EstimatesCourse, KnowsMomentumLaw, Linearises, OnGrid, Samples, offers
from .intrinsic import IntrinsicFlow

# What a flow offers that concerns its weights alone: functions of a state, and what knows none.
_OF_WEIGHTS, _OF_FLOW = ("depth_error", "polynomial_error", "misfit"), ("grid", "factors")


class MomentumFlow(Around):
    """W_tt + αW_t = −∇f(W): a training flow with inertia and friction α, as a flow of pairs (W, V), V = W_t.

    A state has the pair on an axis of its own behind those of a batch: `(..., 2, N, d, d)` on a grid or of N layers.
    Where it comes from heavy-ball steps is told in docs/math.md: V_{n+1} = βV_n − ηg_n with β = 1 − α√η is this flow
    in the time √η n, up to O(√η).

    Parameters
    ----------
    flow : Flow
        Any flow whose velocity is −∇f: `ContinuousFlow`, `FiniteFlow`, `FactorizationFlow`. Of `IntrinsicFlow` it is z
        that gets inertia, which is another thing than inertia of the weights.
    friction : float
        α >= 0.
    axes : int, optional
        Axes of a state of the flow without those of a batch: known (3) on grids and of layers; else 2 for
        `IntrinsicFlow` and 1, a vector of parameters, by default.

    Raises
    ------
    TypeError, ValueError
        If flow is none, friction is negative or axes no count.

    Notes
    -----
    Its law for α = 0 is the skew part of N = ∂_sV + WᵀV − VWᵀ (`laws.momentum_law`), which is conserved; with friction
    e^{αt} times that is, which is no function of the state alone: then it has none, and `drift` is 0.

    Examples
    --------
    >>> inner = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=2, order=10), nf.Quadratic(2 * torch.eye(2)))
    >>> flow = nf.MomentumFlow(inner, friction=2.0)
    >>> path = nf.integrate(flow, nf.identity(2), [0.0, 5.0, 20.0], "DOP853", rtol=1e-10, atol=1e-12)  # from rest
    >>> path.state.shape, float(path.loss[-1]) < 1e-10
    (torch.Size([2, 20, 2, 2]), True)
    >>> flow.position(path.state).shape, float(flow.momentum(path.state).abs().max()) < 1e-5
    (torch.Size([20, 2, 2]), True)
    """

    def __init__(self, flow: Flow, friction: float, axes: int | None = None) -> None:
        if isinstance(flow, type) or missing(flow):
            raise TypeError(f"flow must be a flow such as ContinuousFlow(…), got {flow!r}")
        self.friction = real("friction", friction)
        if self.friction < 0:
            raise ValueError(f"friction must be at least 0, got {friction!r}")
        self.flow = flow
        at_depths = offers(flow, OnGrid) or offers(flow, AtDepths)
        known = 3 if at_depths else 2 if isinstance(flow, IntrinsicFlow) else 1
        self.axes = known if axes is None else count("axes", axes, 0)

    def __repr__(self) -> str:
        return flow_said(self, type(self.flow).__name__, f"friction {self.friction:g}")

    def __getattr__(self, name: str) -> Any:
        """What the flow offers beside: of its depth grid, of the error that this makes in z, of its factors."""
        if name == "course_error" and offers(self.__dict__["flow"], EstimatesCourse):
            return self._course_error
        if name not in (*_OF_WEIGHTS, *_OF_FLOW):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        found = getattr(self.__dict__["flow"], name)
        return found if name in _OF_FLOW else lambda state, *more: found(self.position(state), *more)

    @property
    def keeps_orientation(self) -> bool:
        """det z > 0 for all time: of the continuous model at any W, with inertia or without."""
        return offers(self.flow, OnGrid) and getattr(self.flow, "keeps_orientation", False)

    def start(self, W: Tensor, V: Tensor | None = None) -> Tensor:
        """The state of weights W that move at V, of the same shape; at rest by default."""
        V = torch.zeros_like(W) if V is None else V
        same_kind("V", V, "W", W)
        if V.shape != W.shape:
            raise ValueError(f"V must have the shape of W, {tuple(W.shape)}, got {tuple(V.shape)}")
        if W.ndim < self.axes:
            raise ValueError(f"W must have at least {self.axes} axes, got shape {tuple(W.shape)}")
        return torch.stack((W, V), dim=W.ndim - self.axes)

    def sample(self, W0: Profile) -> Tensor:
        """The state of W0, a function of depth, at rest."""
        if not offers(self.flow, Samples):
            raise TypeError(
                f"state must be a tensor for {type(self.flow).__name__}, which samples no function of depth"
            )
        return self.start(self.flow.sample(W0))

    def position(self, state: Tensor) -> Tensor:
        """W of a state."""
        return state.select(-1 - self.axes, 0)

    def momentum(self, state: Tensor) -> Tensor:
        """V = W_t of a state."""
        return state.select(-1 - self.axes, 1)

    def on(self, grid: DepthGrid) -> Self:
        """The same flow on another depth grid, for ``adapt=True``."""
        return self._on(grid)

    def transfer(self, state: Tensor, grid: DepthGrid) -> Tensor:
        """A state on the nodes of another grid."""
        moved: Tensor = self.flow.transfer(state, grid)
        return moved

    def _course_error(self, state: Tensor) -> float:
        """That of the flow, with the way left that friction allows of the energy of a square, √(2E)/α."""
        if self.friction and squares_of(self.loss) is not None:
            left = (2 * self.energy(state)).sqrt() / self.friction
        else:
            left = torch.full(self.product(state).shape[:-2], torch.inf, dtype=state.dtype, device=state.device)
        found: float = self.flow.course_error(self.position(state), left)
        return found

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless W and V are such as the flow takes, one beside the other."""
        if not isinstance(state, Tensor) or state.ndim <= self.axes or state.shape[-1 - self.axes] != 2:
            shape = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(
                f"state must be a pair (W, V) on the axis before the last {self.axes}, got {shape}; "
                f"make one with start(W, V) or start(W), which is at rest"
            )
        W, V = self.position(state), self.momentum(state)
        self.flow.check(W)
        if not bool(torch.isfinite(V).all()):
            raise ValueError("state must be finite, got a velocity V with NaN or infinity")
        members = self.loss(self.flow.product(W)).ndim
        if members != W.ndim - self.axes:
            raise ValueError(
                f"axes = {self.axes} leaves {W.ndim - self.axes} axes of a batch in W of shape {tuple(W.shape)}, but z "
                f"of it has {members}; give axes={W.ndim - members} to MomentumFlow"
            )

    def velocity(self, state: Tensor) -> Tensor:
        """(V, −∇f(W) − αV), of the shape of the state."""
        W, V = self.position(state), self.momentum(state)
        return torch.stack((V, self.flow.velocity(W) - self.friction * V), dim=-1 - self.axes)

    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The exact derivative of the velocity at a state; None where that of the flow is not known."""
        inner = self.flow.linearised(self.position(state)) if offers(self.flow, Linearises) else None
        if inner is None:
            return None

        def along(direction: Tensor) -> Tensor:
            W, V = self.position(direction), self.momentum(direction)
            return torch.stack((V, inner(W) - self.friction * V), dim=-1 - self.axes)

        return along

    def product(self, state: Tensor) -> Tensor:
        """z of W."""
        z: Tensor = self.flow.product(self.position(state))
        return z

    def energy(self, state: Tensor) -> Tensor:
        """f + ½‖V‖², in the norm of the flow, `(...)`: it falls at the rate α‖V‖², and stays for α = 0."""
        V = self.momentum(state)
        squares = V.square()
        if offers(self.flow, OnGrid):
            squares = squares * self.flow.grid.weights.to(V)[:, None, None]
        elif offers(self.flow, AtDepths):
            squares = squares / V.shape[-3]
        return self.loss(self.product(state)) + squares.sum(tuple(range(-self.axes, 0))) / 2

    def law(self, state: Tensor) -> Tensor:
        """The skew part of N without friction, where it is conserved; else empty, `(..., 0, d, d)`."""
        W, V = self.position(state), self.momentum(state)
        if self.friction == 0 and offers(self.flow, KnowsMomentumLaw) and self.flow.step_law_is_exact:
            N = self.flow.momentum_law(W, V)
            return (N - N.mT) / 2
        batch, own = W.shape[: W.ndim - self.axes], W.shape[-2:] if self.axes > 1 else (1, 1)
        return state.new_empty(*batch, 0, *own)
