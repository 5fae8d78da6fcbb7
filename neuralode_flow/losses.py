"""Losses f(z) of the end-to-end map and their gradients G = ∇f(z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .checks import count, float_tensor, follows, same_kind, square


class Loss(Protocol):
    """What a loss promises, for z of shape `(..., d, d)`.

    1. `loss(z)` is f(z), shape `(...)`.
    2. `loss.gradient(z)` is ∇f(z), shape `(..., d, d)`.
    3. `dimension` is d, or None when any d will do.

    Where it is known, `boundary()` is what a flow with det z > 0 is left with where the minimiser has det < 0: the
    least value on singular matrices, `(...)`; NaN for members whose minimiser has not. `hessian(z, direction)`, the
    derivative of the gradient, makes the Jacobian–vector products of stiff solvers exact.
    """

    dimension: int | None

    def __call__(self, z: Tensor) -> Tensor: ...

    def gradient(self, z: Tensor) -> Tensor: ...


def check_loss(name: str, value: Any) -> None:
    """Raises TypeError unless `value` follows `Loss`."""
    follows(name, value, "a loss", "Quadratic(target)", ("gradient", "dimension", "__call__"))


def _check_maps(z: Tensor, dimension: int | None) -> None:
    """Raises unless z has the shape `(..., d, d)` of a loss: cheap enough for every call."""
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch tensor, got {type(z).__name__}; use torch.as_tensor(...)")
    d = z.shape[-1] if dimension is None and z.ndim else dimension
    if z.ndim < 2 or z.shape[-2:] != (d, d):
        size = "" if dimension is None else f" with d = {dimension}, the size of the loss"
        raise ValueError(f"z must have shape (..., d, d){size}, got {tuple(z.shape)}")


def _half_square(residual: Tensor) -> Tensor:
    return residual.square().sum((-2, -1)) / 2


def _nearest_singular(target: Tensor, weighted: Tensor) -> Tensor:
    """½σ_min(weighted)², where det target < 0: half the squared distance to the singular matrices; else NaN."""
    distance = torch.linalg.svdvals(weighted).amin(-1).square() / 2
    return torch.where(torch.linalg.det(target) < 0, distance, torch.nan)


class Quadratic:
    """f(z) = ½‖z − T‖² in the Frobenius norm.

    Parameters
    ----------
    target : Tensor (..., d, d)
        T; leading axes make an ensemble.

    Raises
    ------
    TypeError, ValueError
        If the target is not a finite floating-point square matrix.
    """

    def __init__(self, target: Tensor) -> None:
        self.target = square("target", target)
        self.dimension: int | None = target.shape[-1]

    def __call__(self, z: Tensor) -> Tensor:
        _check_maps(z, self.dimension)
        return _half_square(z - self.target)

    def gradient(self, z: Tensor) -> Tensor:
        return z - self.target

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return direction

    def boundary(self) -> Tensor:
        """½σ_min(T)² where det T < 0 (Eckart–Young), else NaN."""
        return _nearest_singular(self.target, self.target)


class Completion:
    """f(z) = ½‖M ∘ (z − T)‖²: only the entries in the mask are seen.

    Parameters
    ----------
    target : Tensor (..., d, d)
        T; entries outside the mask do not matter (they must still be finite).
    mask : Tensor (..., d, d) of bool
        M, True where T is known.

    Raises
    ------
    TypeError, ValueError
        If the target is not a finite square matrix, the mask is not bool, has another shape, or sees nothing of a
        member.
    """

    def __init__(self, target: Tensor, mask: Tensor) -> None:
        self.target = square("target", target)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a tensor of bool, got {getattr(mask, 'dtype', type(mask).__name__)}")
        if mask.shape[-2:] != target.shape[-2:]:
            raise ValueError(
                f"mask must have the matrix shape of target, {tuple(target.shape)}, got {tuple(mask.shape)}"
            )
        try:
            torch.broadcast_shapes(mask.shape, target.shape)
        except RuntimeError:
            raise ValueError(
                f"mask must have leading axes that go with those of target, {tuple(target.shape)}, "
                f"got {tuple(mask.shape)}; give one mask per member, or one for all"
            ) from None
        if mask.device != target.device:
            raise TypeError(f"mask is on {mask.device} but target is on {target.device}; move one with .to(device=...)")
        if not bool(mask.any(-1).any(-1).all()):
            raise ValueError("mask must be True somewhere in every member: an empty mask makes a loss zero everywhere")
        self.mask = mask
        self.dimension: int | None = target.shape[-1]

    def __call__(self, z: Tensor) -> Tensor:
        _check_maps(z, self.dimension)
        return _half_square(self.gradient(z))

    def gradient(self, z: Tensor) -> Tensor:
        return torch.where(self.mask, z - self.target, 0.0)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return torch.where(self.mask, direction, 0.0)


class Regression:
    """f(z) = 1/(2n) Σ_i ‖R z P x_i − y_i‖², with fixed readin P and readout R around z.

    The data enter through the triangular factor of [x Pᵀ, y] (QR), at most d + d_out rows whatever n, so that value
    and gradient are exact and cost nothing in n.

    Parameters
    ----------
    x : Tensor (n, d_in)
    y : Tensor (n, d_out)
    readin : Tensor (d, d_in), optional
        P; the identity when left out, then d = d_in.
    readout : Tensor (d_out, d), optional
        R; the identity when left out, then d = d_out.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, or an entry is not finite.
    """

    def __init__(self, x: Tensor, y: Tensor, readin: Tensor | None = None, readout: Tensor | None = None) -> None:
        matrices = {"x": x, "y": y, "readin": readin, "readout": readout}
        for name, matrix in matrices.items():
            if matrix is not None or name in ("x", "y"):
                table = float_tensor(name, matrix, ndim=2)
                same_kind(name, table, "x", x)
                if table.ndim != 2:
                    raise ValueError(f"{name} must have 2 axes, got shape {tuple(table.shape)}")
        if x.shape[0] != y.shape[0]:
            raise ValueError(f"x and y must have the same number of rows, got {x.shape[0]} and {y.shape[0]}")
        if readin is not None and readin.shape[1] != x.shape[1]:
            raise ValueError(f"readin must have shape (d, {x.shape[1]}) to follow x, got {tuple(readin.shape)}")
        if readout is not None and readout.shape[0] != y.shape[1]:
            raise ValueError(f"readout must have shape ({y.shape[1]}, d) to lead to y, got {tuple(readout.shape)}")
        inputs = x if readin is None else x @ readin.mT
        d_out = y.shape[1] if readout is None else readout.shape[1]
        if inputs.shape[1] != d_out:
            raise ValueError(
                f"z would map {inputs.shape[1]} inputs to {d_out} outputs, but it is square: "
                f"give readin (d, {x.shape[1]}) and readout ({y.shape[1]}, d) with one d"
            )
        scale = x.shape[0] ** 0.5
        factor = torch.linalg.qr(torch.cat((inputs, y), dim=1) / scale, mode="r").R
        self._x, self._y = factor[:, :d_out], factor[:, d_out:]
        self.readout = readout
        self.dimension: int | None = d_out

    def _residual(self, z: Tensor) -> Tensor:
        prediction = self._x @ z.mT
        return (prediction if self.readout is None else prediction @ self.readout.mT) - self._y

    def __call__(self, z: Tensor) -> Tensor:
        _check_maps(z, self.dimension)
        return _half_square(self._residual(z))

    def gradient(self, z: Tensor) -> Tensor:
        residual = self._residual(z)
        return (residual if self.readout is None else residual @ self.readout).mT @ self._x

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        image = self._x @ direction.mT
        return (image if self.readout is None else image @ self.readout.mT @ self.readout).mT @ self._x

    def boundary(self) -> Tensor | None:
        """The least loss on det z = 0 where the minimiser has det < 0, else NaN; None if there are several."""
        if self.readout is not None or torch.linalg.matrix_rank(self._x) < self._x.shape[1]:
            return None
        minimiser = torch.linalg.lstsq(self._x, self._y).solution.mT
        return self(minimiser) + _nearest_singular(minimiser, minimiser @ self._x.mT)


class Custom:
    """Any f written in torch; its gradient comes from autograd.

    Parameters
    ----------
    f : callable, (d, d) → scalar Tensor
        It is called with one matrix at a time, also for ensembles.
    dimension : int, optional
        d, when f only fits one size.

    Raises
    ------
    TypeError, ValueError
        If f is not callable or the dimension not a positive integer, or later if f does not return a scalar tensor that
        depends on z.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], dimension: int | None = None) -> None:
        if not callable(f):
            raise TypeError(f"f must be a function (d, d) tensor -> scalar tensor, got {type(f).__name__}")
        self.f = f
        self.dimension: int | None = None if dimension is None else count("dimension", dimension)

    def __call__(self, z: Tensor) -> Tensor:
        _check_maps(z, self.dimension)
        return self._map(self._value, z)

    def gradient(self, z: Tensor) -> Tensor:
        return self._map(self._one_gradient, z)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        pair = torch.stack((z, direction.expand_as(z)), dim=-3)
        if pair.ndim == 3:
            return self._one_hessian(pair)
        members = [self._one_hessian(member) for member in pair.reshape(-1, *pair.shape[-3:])]
        return torch.stack(members).reshape(z.shape)

    def _one_hessian(self, pair: Tensor) -> Tensor:
        """The gradient of ⟨∇f(z), direction⟩."""
        with torch.enable_grad():
            leaf = pair[0].detach().requires_grad_()
            slope = torch.autograd.grad(self._value(leaf), leaf, create_graph=True)[0]
            if not slope.requires_grad:  # f is linear
                return torch.zeros_like(leaf)
            return torch.autograd.grad((slope * pair[1]).sum(), leaf)[0]

    def _value(self, z: Tensor) -> Tensor:
        value = self.f(z)
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise TypeError(f"f must return a scalar tensor, got {getattr(value, 'shape', type(value).__name__)}")
        if not value.is_floating_point():
            raise TypeError(f"f must return a floating-point number, got dtype {value.dtype}")
        return value

    def _one_gradient(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self._value(leaf)
            if not value.requires_grad:
                raise TypeError(
                    "f must depend on z through torch operations, but autograd finds no path from z to f(z)"
                )
            return torch.autograd.grad(value, leaf)[0]

    @staticmethod
    def _map(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        if z.ndim == 2:
            return function(z)
        values = [function(member) for member in z.reshape(-1, *z.shape[-2:])]
        return torch.stack(values).reshape(*z.shape[:-2], *values[0].shape)
