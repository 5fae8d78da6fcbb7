"""Losses f(z) of the end-to-end map and their gradients G = ∇f(z)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from .checks import count, float_tensor, follows, same_kind
from .matrices import slogdet
from .modes import gradient, uncompiled
from .promises import Once, Source, denied
from .registry import Registry
from .signatures import known


class Loss(Protocol):
    """What a loss promises, for z of shape `(..., d, d)`, or another one that it says.

    1. `loss(z)` is f(z), shape `(...)`.
    2. `loss.gradient(z)` is ∇f(z), of the shape of z.
    3. `dimension` is d, or None when any d will do or z is not square.

    A loss for one shape of z alone has it as `shape`: the square flows refuse one that is not square, which is for
    FactorizationFlow.

    Where it is known, `boundary()` is what a flow with det z > 0 cannot fall below where the minimiser has det < 0: the
    least value on singular matrices, `(...)`; NaN for members whose minimiser has not. `plateau()` is the next value
    at which such a flow can come to rest there, `(...)`: below it the loss tends to `boundary()`. `hessian(z,
    direction)`, the derivative of the gradient, makes the Jacobian–vector products of stiff solvers exact.
    """

    dimension: int | None

    def __call__(self, z: Tensor) -> Tensor: ...

    def gradient(self, z: Tensor) -> Tensor: ...


def check_loss(name: str, value: Any) -> None:
    """Raises TypeError unless `value` follows `Loss`."""
    follows(name, value, "a loss", "Quadratic(target)", ("gradient", "dimension", "__call__"))


def check_square_loss(name: str, value: Any) -> None:
    """Raises unless `value` follows `Loss` and is for square z, the product of a depth."""
    check_loss(name, value)
    shape = getattr(value, "shape", None)
    if shape is not None and (len(shape) != 2 or shape[0] != shape[1]):
        raise ValueError(
            f"{name} must be for square matrices, the products over depth, got one for z of shape {tuple(shape)}; "
            f"FactorizationFlow takes it"
        )


_PASSED = Once()


def check_derivatives(loss: Any, z: Tensor) -> None:
    """`compare_derivatives` near the z of a start, once for each loss that has a user's part in it.

    A loss without a gradient passes: it is not for training.
    """
    # The library's own losses are checked by its tests, and need not take a start's time; what a user writes into
    # Separable or Custom is the user's.
    own = type(loss) in (Quadratic, Completion, Regression, LeastSquares)
    if own or loss in _PASSED or not hasattr(loss, "gradient") or not callable(loss):
        return
    compare_derivatives(loss, z)
    _PASSED.add(loss)


@torch.no_grad()
def compare_derivatives(loss: Loss, z: Tensor) -> None:
    """Compares the gradient of a loss, and its Hessian if it has one, with differences near z.

    Raises
    ------
    ValueError
        If a derivative is beyond doubt not that of the function, a shape is wrong, or `boundary` is above the loss of a
        singular matrix.
    """
    name, source = f"the loss {type(loss).__name__}", Source(z.dtype, z.device)
    value, G = loss(z), loss.gradient(z)
    batch = tuple(value.shape)
    if tuple(z.shape[: len(batch)]) != batch:
        raise ValueError(f"{name} must give one number for each z, shape (...), got {batch} for z {tuple(z.shape)}")
    if G.shape != z.shape:
        raise ValueError(f"{name} must have gradients of the shape of z, {tuple(z.shape)}, got {tuple(G.shape)}")

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).reshape(*batch, -1).sum(-1)

    lengths = _lengths(z, value, G)
    found = denied(loss, lambda at, along: inner(loss.gradient(at), along), z, lengths, source)
    if found is not None:
        raise ValueError(f"{name} has a gradient that is not its own: {found}; mend it, or use Custom(f)")
    hessian = getattr(loss, "hessian", None)
    if hessian is not None:
        dual = source(*z.shape)
        found = denied(
            lambda at: inner(loss.gradient(at), dual),
            lambda at, along: inner(hessian(at, along), dual),
            z, lengths, source,
        )  # fmt: skip
        if found is not None:
            raise ValueError(
                f"{name} has a hessian that is not that of its gradient: {found}; mend it, or leave it out"
            )
    _check_boundary(name, loss, z, G)


def _lengths(z: Tensor, value: Tensor, G: Tensor) -> list[float]:
    """Over what size of an entry a loss changes: that of z, and what is left to go, f/‖∇f‖; 1 where there is none."""
    number = max(1, z.numel()) ** 0.5
    own, left = float(z.norm()) / number, float(value.abs().double().norm()) / max(float(G.norm()), 1e-300) / number
    found = [length for length in (own, left) if 1e-150 < length < 1e150] or [1.0]
    return found[:1] if max(found) < 3 * min(found) else found


def _check_boundary(name: str, loss: Any, z: Tensor, G: Tensor) -> None:
    """Raises where what is said to be the least loss on singular matrices is not."""
    boundary = loss.boundary() if hasattr(loss, "boundary") and z.ndim >= 2 and z.shape[-1] == z.shape[-2] else None
    if boundary is None or not bool(torch.isfinite(z).all() & torch.isfinite(G).all()):
        return
    for step in (0.0, 0.5, 1.0):
        U, sigma, Vh = torch.linalg.svd(z - step * G)
        sigma[..., -1] = 0
        values = loss(U @ (sigma.unsqueeze(-1) * Vh))
        if bool((boundary > values * (1 + 1e-3) + 1e-300).any()):
            raise ValueError(
                f"{name} says by boundary() that it is at least {float(boundary.max()):.6g} on singular matrices, and "
                f"one has {float(values.min()):.6g}; mend it, or leave it out"
            )


def _check_z(z: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raises unless z is a tensor with these last axes: cheap enough for every call."""
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch tensor, got {type(z).__name__}; use torch.as_tensor(...)")
    if shape is not None and z.shape[z.ndim - len(shape) :] != shape:
        wanted = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"z must have shape ({wanted}), that of the loss, got {tuple(z.shape)}")


def _half_square(residual: Tensor, axes: int = 2) -> Tensor:
    return residual.square().sum(tuple(range(-axes, 0))) / 2 if axes else residual.square() / 2


def _rests(target: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """The two least values above f(target) at which a flow can rest on det z = 0, `(...)` each; NaN if det target ≥ 0.

    f is half the squared distance from `weighted`. Its critical points among the singular matrices leave out some
    singular values s of it (Eckart–Young), at ½ Σ s²: the least leaves out s₁, the next s₂ or both; equal ones are one
    value. inf where there is no second one.
    """
    halves = torch.linalg.svdvals(weighted).flip(-1).square() / 2
    least = halves[..., 0]
    others = torch.cat((halves, halves[..., :2].sum(-1, keepdim=True)), -1) if halves.shape[-1] > 1 else halves
    # To round-off of the largest: singular values are computed no better.
    equal = least.unsqueeze(-1) + 1e3 * torch.finfo(halves.dtype).eps * halves[..., -1:]
    following = torch.where(others > equal, others, torch.inf).amin(-1)
    reflected = slogdet(target)[0] < 0
    return torch.where(reflected, least, torch.nan), torch.where(reflected, following, torch.nan)


class Quadratic:
    """f(z) = ½‖z − T‖² in the Frobenius norm.

    Parameters
    ----------
    target : Tensor (..., d, d), or (n,), or of another shape of z
        T; leading axes make an ensemble.
    axes : int, optional
        How many of its last axes are one z, 0 for a number; by default 2, or all of a target that has fewer.

    Raises
    ------
    TypeError, ValueError
        If the target is not a finite floating-point tensor, or axes is not an integer from 0 to the number of its axes.
    """

    def __init__(self, target: Tensor, axes: int | None = None) -> None:
        self.target = float_tensor("target", target)
        number = min(target.ndim, 2) if axes is None else count("axes", axes, least=0, most=target.ndim)
        self.shape = target.shape[target.ndim - number :]
        square = number == 2 and self.shape[0] == self.shape[1]
        self.dimension: int | None = self.shape[0] if square else None

    def __call__(self, z: Tensor) -> Tensor:
        _check_z(z, self.shape)
        return _half_square(z - self.target, len(self.shape))

    def gradient(self, z: Tensor) -> Tensor:
        return z - self.target

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return direction

    def boundary(self) -> Tensor | None:
        """½σ_min(T)² where det T < 0 (Eckart–Young), else NaN; None where T is not square."""
        return None if self.dimension is None else _rests(self.target, self.target)[0]

    def plateau(self) -> Tensor | None:
        """The next value after `boundary()` at which a flow can rest: ½σ² or ½(σ₁² + σ₂²) of T."""
        return None if self.dimension is None else _rests(self.target, self.target)[1]


class Completion:
    """f(z) = ½‖M ∘ (z − T)‖²: only the entries in the mask are seen.

    Parameters
    ----------
    target : Tensor (..., d, d), or (..., n, m) for a factorisation
        T; entries outside the mask do not matter (they must still be finite).
    mask : Tensor of bool, of the same matrix shape
        M, True where T is known.

    Raises
    ------
    TypeError, ValueError
        If the target is not a finite matrix, the mask is not bool, has another shape, or sees nothing of a
        member.
    """

    def __init__(self, target: Tensor, mask: Tensor) -> None:
        self.target = float_tensor("target", target, ndim=2)
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
        self.shape = target.shape[-2:]
        self.dimension: int | None = self.shape[0] if self.shape[0] == self.shape[1] else None

    def __call__(self, z: Tensor) -> Tensor:
        _check_z(z, self.shape)
        return _half_square(self.gradient(z))

    def gradient(self, z: Tensor) -> Tensor:
        return torch.where(self.mask, z - self.target, 0.0)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return torch.where(self.mask, direction, 0.0)


def _check_samples(x: Tensor, y: Tensor, readin: Tensor | None, readout: Tensor | None) -> tuple[Tensor, int]:
    """The inputs of z, `(n, d)`, and d; raises unless samples, readin and readout fit together."""
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
    d = y.shape[1] if readout is None else readout.shape[1]
    if inputs.shape[1] != d:
        raise ValueError(
            f"z would map {inputs.shape[1]} inputs to {d} outputs, but it is square: "
            f"give readin (d, {x.shape[1]}) and readout ({y.shape[1]}, d) with one d"
        )
    return inputs, d


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
        inputs, d = _check_samples(x, y, readin, readout)
        scale = x.shape[0] ** 0.5
        factor = torch.linalg.qr(torch.cat((inputs, y), dim=1) / scale, mode="r").R
        self._x, self._y = factor[:, :d].contiguous(), factor[:, d:].contiguous()
        self.readout = readout
        self.dimension: int | None = d
        self.shape = (d, d)

    def _residual(self, z: Tensor) -> Tensor:
        prediction = self._x @ z.mT
        return (prediction if self.readout is None else prediction @ self.readout.mT) - self._y

    def __call__(self, z: Tensor) -> Tensor:
        _check_z(z, self.shape)
        return _half_square(self._residual(z))

    def gradient(self, z: Tensor) -> Tensor:
        residual = self._residual(z)
        return (residual if self.readout is None else residual @ self.readout).mT @ self._x

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        image = self._x @ direction.mT
        return (image if self.readout is None else image @ self.readout.mT @ self.readout).mT @ self._x

    def boundary(self) -> Tensor | None:
        """The least loss on det z = 0 where the minimiser has det < 0, else NaN; None if there are several."""
        return self._rest(0)

    def plateau(self) -> Tensor | None:
        """The next value after `boundary()` at which a flow can rest on det z = 0."""
        return self._rest(1)

    def _rest(self, which: int) -> Tensor | None:
        if self.readout is not None or torch.linalg.matrix_rank(self._x) < self._x.shape[1]:
            return None
        minimiser = torch.linalg.lstsq(self._x, self._y).solution.mT
        return self(minimiser) + _rests(minimiser, minimiser @ self._x.mT)[which]


class Separable:
    """f(z) = 1/n Σ_i Σ_o ρ((R z P x_i − y_i)_o): a regression that weighs residuals by any smooth ρ.

    Parameters
    ----------
    rho : callable
        Tensor → tensor of the same shape, entry by entry, written in torch; ρ(r) = r²/2 is `Regression`.
    x, y, readin, readout
        As in `Regression`.

    Raises
    ------
    TypeError, ValueError
        If rho is no function, or shapes, dtypes or devices do not fit together, or an entry is not finite.
    """

    def __init__(
        self,
        rho: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        readin: Tensor | None = None,
        readout: Tensor | None = None,
    ) -> None:
        if not callable(rho):
            raise TypeError(f"rho must be a function of a tensor, entry by entry, got {type(rho).__name__}")
        self.rho = rho
        self.x, d = _check_samples(x, y, readin, readout)
        self.y, self.readout = y, readout
        self.dimension: int | None = d
        self.shape = (d, d)

    def _prediction(self, z: Tensor) -> Tensor:
        prediction = self.x @ z.mT
        return prediction if self.readout is None else prediction @ self.readout.mT

    def _pulled_back(self, slope: Tensor) -> Tensor:
        """The gradient in z of ⟨slope, prediction⟩ / n."""
        return (slope if self.readout is None else slope @ self.readout).mT @ self.x / len(self.x)

    def __call__(self, z: Tensor) -> Tensor:
        _check_z(z, self.shape)
        return self.rho(self._prediction(z) - self.y).sum((-2, -1)) / len(self.x)

    @uncompiled
    def gradient(self, z: Tensor) -> Tensor:
        return self._pulled_back(self._slope(self._prediction(z) - self.y))

    @uncompiled
    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        bend = gradient(lambda residual: self._slope(residual).sum(), self._prediction(z) - self.y)
        return self._pulled_back(self._prediction(direction) * (0.0 if bend is None else bend))

    def _slope(self, residual: Tensor) -> Tensor:
        """ρ' of each residual."""
        slope = gradient(lambda r: self.rho(r).sum(), residual)
        if slope is None:
            raise TypeError("rho must depend on its residuals through torch operations, but autograd finds no path")
        return slope


# Losses of a regression by name, as data problems take them: (x, y, readin, readout) → Loss.
LOSSES: Registry[Callable[..., Loss]] = Registry("loss")
LossName = Annotated[str, known(LOSSES)]
LOSSES.register("quadratic")(Regression)


@LOSSES.register("log_cosh")
def log_cosh(x: Tensor, y: Tensor, readin: Tensor | None = None, readout: Tensor | None = None) -> Separable:
    """ρ(r) = log cosh r: quadratic near 0 and |r| far from it, smooth between."""
    return Separable(lambda r: r + torch.nn.functional.softplus(-2 * r) - math.log(2), x, y, readin, readout)


class LeastSquares:
    """f(z) = 1/(2n) ‖A vec(z) − b‖²: any linear observation of a z of any shape.

    Parameters
    ----------
    A : Tensor (n, p)
    b : Tensor (n,)
    shape : sequence of int, optional
        Shape of z, with p entries that vec takes row by row; by default z is a vector (p,).

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit together, or an entry is not finite.
    """

    def __init__(self, A: Tensor, b: Tensor, shape: Sequence[int] | None = None) -> None:
        for name, value, axes in (("A", A, 2), ("b", b, 1)):
            if float_tensor(name, value, ndim=axes).ndim != axes:
                raise ValueError(f"{name} must have {axes} axes, got shape {tuple(value.shape)}")
        same_kind("b", b, "A", A)
        if len(b) != len(A):
            raise ValueError(f"A and b must have the same number of rows, got {len(A)} and {len(b)}")
        self.A, self.b = A, b
        self.shape = (A.shape[1],) if shape is None else tuple(count("shape", part, least=0) for part in shape)
        if math.prod(self.shape) != A.shape[1]:
            raise ValueError(f"shape must have {A.shape[1]} entries, one for each column of A, got {self.shape}")
        square = len(self.shape) == 2 and self.shape[0] == self.shape[1]
        self.dimension: int | None = self.shape[0] if square else None

    def _flat(self, z: Tensor) -> Tensor:
        return z.reshape(*z.shape[: z.ndim - len(self.shape)], self.A.shape[1])

    def __call__(self, z: Tensor) -> Tensor:
        _check_z(z, self.shape)
        return (self._flat(z) @ self.A.mT - self.b).square().sum(-1) / (2 * len(self.b))

    def gradient(self, z: Tensor) -> Tensor:
        residual = self._flat(z) @ self.A.mT - self.b
        return (residual @ self.A / len(self.b)).reshape(z.shape)

    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return (self._flat(direction) @ self.A.mT @ self.A / len(self.b)).reshape(direction.shape)


class Custom:
    """Any f written in torch; its gradient comes from autograd.

    Parameters
    ----------
    f : callable, z → scalar Tensor
        It is called with one z at a time, also for ensembles.
    dimension : int, optional
        d, when f only fits matrices of one size d × d.
    axes : int
        How many axes one z has: further leading ones are members of an ensemble; a z with fewer is taken whole.

    Raises
    ------
    TypeError, ValueError
        If f is not callable, the dimension not a positive integer or axes not an integer >= 0, or later if f does not
        return a scalar tensor that depends on z.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], dimension: int | None = None, *, axes: int = 2) -> None:
        if not callable(f):
            raise TypeError(f"f must be a function z tensor -> scalar tensor, got {type(f).__name__}")
        self.f = f
        self.dimension: int | None = None if dimension is None else count("dimension", dimension)
        self.axes = count("axes", axes, least=0)
        self.shape = None if self.dimension is None else (self.dimension, self.dimension)

    def __call__(self, z: Tensor) -> Tensor:
        _check_z(z, self.shape)
        return self._map(self._value, z)

    @uncompiled
    def gradient(self, z: Tensor) -> Tensor:
        return self._map(self._one_gradient, z)

    @uncompiled
    def hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        return self._map(self._one_hessian, z, direction.expand_as(z))

    def _one_hessian(self, z: Tensor, direction: Tensor) -> Tensor:
        """The gradient of ⟨∇f(z), direction⟩."""

        def along(point: Tensor) -> Tensor:
            # What was made in inference mode cannot be kept for autograd.
            return (self._one_gradient(point) * (direction.clone() if direction.is_inference() else direction)).sum()

        bend = gradient(along, z)
        return torch.zeros_like(z) if bend is None else bend  # f is linear

    def _value(self, z: Tensor) -> Tensor:
        value = self.f(z)
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise TypeError(f"f must return a scalar tensor, got {getattr(value, 'shape', type(value).__name__)}")
        if not value.is_floating_point():
            raise TypeError(f"f must return a floating-point number, got dtype {value.dtype}")
        return value

    def _one_gradient(self, z: Tensor) -> Tensor:
        slope = gradient(self._value, z)
        if slope is None:
            raise TypeError("f must depend on z through torch operations, but autograd finds no path from z to f(z)")
        return slope

    def _map(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`function` of each member of an ensemble."""
        number = values[0].ndim - self.axes
        if number <= 0:
            return function(*values)
        batch, one = values[0].shape[:number], values[0].shape[number:]
        results = [function(*member) for member in zip(*(value.reshape(-1, *one) for value in values), strict=True)]
        return torch.stack(results).reshape(*batch, *results[0].shape)
