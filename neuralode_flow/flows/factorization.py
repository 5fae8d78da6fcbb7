"""The gradient flow of any factorisation z = φ(θ)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import float_tensor, same_kind
from ..display import named
from ..losses import Loss, check_loss
from ..modes import gradient, in_inference_mode, plain, undisturbed
from ..promises import Once, Source, denied
from .base import check_loss_kind, flow_said

Map = Callable[[Tensor], Tensor]

# Flows whose φ has been compared with differences.
_COMPARED = Once()


class FactorizationFlow:
    """θ' = −∇(f∘φ)(θ) = −∂φ(θ)ᵀ ∇f(z), z = φ(θ), in the Euclidean metric of θ.

    Parameters
    ----------
    phi : callable, θ → z
        Any function written in torch, from a tensor θ of any shape to a tensor z of any shape. Leading axes of θ make
        an ensemble if φ takes them (written with `...`) and z gets them; all axes of z before those that the loss takes
        for one z count as such.
    loss : Loss
        ``Quadratic(target)`` and ``Custom(f, axes=n)`` are for any shape of z, with n the number of its axes.
    laws : callable, optional
        θ → h(θ), the conserved quantities, with the leading axes of z and any others; `path.drift` is then their drift.

    Raises
    ------
    TypeError, ValueError
        If phi or laws cannot be called or loss is none; at the start of a run if they do not fit θ or each other, or
        the derivative of φ by autograd is not its own, as where parts of it are detached.

    Notes
    -----
    arXiv 2508.07370, section 2. `linearised` gives stiff solvers exact Jacobian–vector products; it needs `hessian` of
    the loss.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[..., 0] * theta[..., 1], nf.Quadratic(torch.tensor(2.0)),
    ...                             laws=lambda theta: theta[..., 0] ** 2 - theta[..., 1] ** 2)
    >>> path = nf.integrate(flow, torch.tensor([1.0, 0.5]), [0.0, 10.0], "DOP853", rtol=1e-10, atol=1e-12)
    >>> abs(float(path.z[-1]) - 2) < 1e-8, float(path.drift[-1]) < 1e-9
    (True, True)
    """

    def __init__(self, phi: Map, loss: Loss, laws: Map | None = None) -> None:
        check_map("phi", phi)
        if laws is not None:
            check_map("laws", laws)
        check_loss("loss", loss)
        self.phi = phi
        self.loss = loss
        self.laws = laws

    def __repr__(self) -> str:
        laws = "" if self.laws is None else f"laws={named(self.laws)}"
        return flow_said(self, f"phi={named(self.phi)}", laws)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless φ, the laws and the loss fit the state and each other."""
        float_tensor("state", state)
        z = checked_map("phi", self.phi, state)
        same_kind("phi(state)", z, "state", state)
        shape = getattr(self.loss, "shape", None)
        if shape is not None and z.shape[z.ndim - len(shape) :] != tuple(shape):
            raise ValueError(f"phi gives z of shape {tuple(z.shape)} but the loss is for z of shape {tuple(shape)}")
        check_loss_kind("phi(state)", z, self.loss)
        if self.loss.gradient(z).shape != z.shape:
            raise ValueError(
                f"phi gives z of shape {tuple(z.shape)} but the loss has more members, with gradients of shape "
                f"{tuple(self.loss.gradient(z).shape)}: give one state per member, or one loss for all"
            )
        if self.laws is not None:
            self.law(state)
        if self not in _COMPARED:
            self._compare(state.detach(), z)
            _COMPARED.add(self)

    def _compare(self, state: Tensor, z: Tensor) -> None:
        """Raises ValueError where the derivative of φ by autograd is beyond doubt not that of its differences."""
        source = Source(state.dtype, state.device)
        dual = source(*z.shape)
        size = [float(state.norm()) / state.numel() ** 0.5 or 1.0]
        found = denied(
            lambda at: (self.phi(at) * dual).sum(),
            lambda at, along: (self.pull_back(at, dual) * along).sum(),
            state, size, source,
        )  # fmt: skip
        if found is not None:
            raise ValueError(
                f"phi has a derivative that is not that of its differences: {found}; write all of it in torch, without "
                f"detach"
            )

    @undisturbed
    def velocity(self, state: Tensor) -> Tensor:
        """−∂φᵀ∇f(z), of the shape of the state."""
        return -self._pulled_back(state, self.loss.gradient)

    def pull_back(self, state: Tensor, M: Tensor) -> Tensor:
        """∂φᵀM, the gradient of ⟨M, φ(θ)⟩, of the shape of the state."""
        return self._pulled_back(state, lambda z: M)

    def _pulled_back(self, state: Tensor, outer: Map) -> Tensor:
        slope = gradient(self.phi, state, outer)
        if slope is None:
            raise TypeError("phi must depend on theta through torch operations, but autograd finds no path to it")
        return slope

    def keeps_sign(self, state: Tensor) -> None:
        """Not known of any φ: whether the exact flow keeps the sign of det z is looked at where it changes."""

    @undisturbed
    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The exact derivative of the velocity at a state, a function of a direction; None where it is not known."""
        hessian = getattr(self.loss, "hessian", None)
        if hessian is None:
            return None
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                usual = self.linearised(state.clone())
            return None if usual is None else in_inference_mode(usual)
        if not plain(state):
            # The derivative of u ↦ ∂velocityᵀu, which is linear in u, along a direction.
            pull = torch.func.vjp(self.velocity, state)[1]
            return lambda direction: torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(state))[1](direction)[0]
        with torch.enable_grad():
            leaf = (state.clone() if state.is_inference() else state.detach()).requires_grad_()
            z = self.phi(leaf)
            G = self.loss.gradient(z.detach())
            # ∂φᵀ dual is linear in dual: its derivative in dual along v is ∂φ v.
            dual = torch.zeros_like(z, requires_grad=True)
            pulled = torch.autograd.grad(z, leaf, dual, create_graph=True)[0]
            slope = torch.autograd.grad(z, leaf, G, create_graph=True)[0]

        def product(direction: Tensor) -> Tensor:
            moved = torch.autograd.grad(pulled, dual, direction, retain_graph=True)[0]
            change = torch.autograd.grad(z, leaf, hessian(z.detach(), moved), retain_graph=True)[0]
            if slope.requires_grad:  # else φ is linear
                curved = torch.autograd.grad(slope, leaf, direction, retain_graph=True, allow_unused=True)[0]
                change = change if curved is None else change + curved
            return -change

        return product

    @undisturbed
    def product(self, state: Tensor) -> Tensor:
        """z = φ(θ)."""
        return self.phi(state)

    def law(self, state: Tensor) -> Tensor:
        """The laws as `(..., n, 1, 1)`, n = 0 without any."""
        z = self.phi(state)
        batch = self.loss(z).shape
        if self.laws is None:
            return state.new_empty(*batch, 0, 1, 1)
        h = checked_map("laws", self.laws, state, depends=False)
        if h.shape[: len(batch)] != batch:
            raise ValueError(f"laws must have the leading axes {tuple(batch)} of z, got shape {tuple(h.shape)}")
        return h.reshape(*batch, -1, 1, 1)


def check_map(name: str, value: object) -> None:
    """Raises TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of a tensor that returns a tensor, got {type(value).__name__}")


def checked_map(name: str, function: Map, theta: Tensor, *, depends: bool = True) -> Tensor:
    """function(θ), a finite floating-point tensor; with `depends` also one that autograd leads back to θ.

    Raises
    ------
    TypeError, ValueError
        If it is something else; what the function itself raises comes through.
    """
    if depends and (torch.is_inference_mode_enabled() or theta.is_inference()):
        with torch.inference_mode(False):
            return checked_map(name, function, theta.clone())
    with torch.set_grad_enabled(depends):
        value = function(theta.detach().requires_grad_(depends))
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(value).__name__}; stack its parts into one")
    if depends or value.numel():  # there may be no laws
        float_tensor(f"{name}(theta)", value)
    if depends and not value.requires_grad:
        raise TypeError(f"{name} must depend on theta through torch operations, but autograd finds no path to it")
    return value.detach()
