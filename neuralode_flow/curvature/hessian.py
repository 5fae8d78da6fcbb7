"""The Hessian of the loss in the state of a flow, in the flow's own inner product, by exact products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import all_finite, count, floating, same_kind
from ..display import named
from ..flows.base import Flow
from ..flows.capabilities import Linearises, inner_weights, offers
from ..flows.continuous import ContinuousFlow
from ..flows.factorization import FactorizationFlow
from ..flows.finite import FiniteFlow
from ..modes import followed, undisturbed
from .lanczos import Apply, Eigenpairs, Solved, dense, largest

# Entries of a state up to which the whole spectrum is computed: a matrix of 128 MiB.
MOST = 4096

# How far, relatively, a product may be from differences of the velocity before it counts as wrong.
_WRONG = 1e-2


class Hessian:
    """H = −∂velocity(state): the second derivative of f(z(state)) in the inner product in which the flow descends.

    That is Σ w_i tr(AᵢᵀBᵢ) on a depth grid, which stands for L²([0,1]; ds), (1/L) Σ tr(AₖᵀBₖ) for L layers, and the
    Euclidean one for a factorisation. H is symmetric in it. Made by `hessian`.

    Attributes
    ----------
    flow : Flow
    state : Tensor
    weights : Tensor
        Of the inner product: it broadcasts to the state.
    batch : tuple of int
        The leading axes of the state that are members of an ensemble: each has a Hessian of its own.
    one : tuple of int
        The other axes: those of one member.

    Examples
    --------
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=2, order=8), nf.Quadratic(2 * torch.eye(2)))
    >>> H = nf.curvature.hessian(flow, flow.sample(nf.balanced(2 * torch.eye(2))))
    >>> H
    Hessian(ContinuousFlow, 64 entries)
    >>> bool(torch.allclose(H.spectrum().values[:5], torch.tensor([4.0, 4.0, 4.0, 4.0, 0.0])))
    True
    """

    def __init__(self, flow: Flow, state: Tensor) -> None:
        fixed_weights(flow)
        flow.check(plain_numbers("state", state))
        _check_velocity(flow, state.detach())
        self._prepare(flow, state.detach())
        compare(self.product, self._slope, self.state, f"flow, with its loss ({named(flow.loss)}),", "velocity")

    @classmethod
    def unchecked(cls, flow: Flow, state: Tensor) -> Hessian:
        """The same where all of it has been checked at another state of the flow."""
        H = cls.__new__(cls)
        H._prepare(flow, state)
        return H

    def _prepare(self, flow: Flow, state: Tensor) -> None:
        state = state.clone()  # training goes on, and may do so in place
        self.flow, self.state = flow, state
        self.weights = fixed_weights(flow)
        with torch.no_grad():
            self.batch = tuple(flow.loss(flow.product(state)).shape)
        self.one = tuple(state.shape[len(self.batch) :])
        self._times = derivative(flow, state, self.weights)

    def __reduce__(self) -> tuple[Any, ...]:
        # The product is a function of the flow and the state, which it is made of again.
        return type(self).unchecked, (self.flow, self.state)

    def __repr__(self) -> str:
        members = f", members of shape {self.batch}" if self.batch else ""
        return f"Hessian({type(self.flow).__name__}, {self.size} entries{members})"

    @property
    def size(self) -> int:
        """The number of entries of the state of one member."""
        return math.prod(self.one)

    def product(self, direction: Tensor) -> Tensor:
        """H times a direction, of the shape of the state.

        Raises
        ------
        TypeError, ValueError
            If the direction has another shape, dtype or device than the state.
        """
        floating("direction", direction)
        same_kind("direction", direction, "state", self.state)
        if direction.shape != self.state.shape:
            raise ValueError(f"direction must have the shape {tuple(self.state.shape)} of the state, "
                             f"got {tuple(direction.shape)}")  # fmt: skip
        return self._times(direction.detach())

    def spectrum(self) -> Eigenpairs:
        """All eigenpairs, as many as a state has entries, by that many products and a dense solve.

        Raises
        ------
        ValueError
            If a state has more than 4096 entries.
        """
        if self.size > MOST:
            raise ValueError(
                f"state has {self.size} entries, and the whole spectrum is computed for at most {MOST}; "
                f"use top(k), or minimiser_spectrum at a minimiser"
            )
        return self._solved(lambda apply, dtype: dense(apply, self.size, dtype))

    def top(self, k: int = 1) -> Eigenpairs:
        """The k algebraically largest eigenpairs, by Lanczos' method (ARPACK, from a fixed random start).

        Multiple eigenvalues come as often as they are. Nothing proves that no larger eigenvalue was missed; the
        residuals bound how far each value is from one.

        Parameters
        ----------
        k : int
            From 1 to the number of entries of a state.

        Raises
        ------
        TypeError, ValueError
            If k is no such number.
        RuntimeError
            If Lanczos' method does not converge.
        """
        count("k", k, most=self.size)
        return self._solved(lambda apply, dtype: largest(apply, self.size, int(k), dtype))

    def _slope(self, state: Tensor) -> Tensor:
        with torch.no_grad():
            return -self.flow.velocity(state)

    def _solved(self, solve: Callable[[Apply, np.dtype], Solved]) -> Eigenpairs:
        """`solve` of the symmetric matrix √w H /√w of each member, put together along the axes of the batch."""
        root = self.weights.to(self.state).sqrt()
        dtype = np.dtype(str(self.state.dtype).removeprefix("torch."))

        def arranged(times: Callable[[Tensor], Tensor]) -> Apply:
            def apply(x: np.ndarray) -> np.ndarray:
                direction = torch.from_numpy(np.ascontiguousarray(x)).to(self.state).reshape(self.one)
                return (times(direction / root) * root).reshape(-1).cpu().numpy()

            return apply

        solved = [solve(arranged(times), dtype) for times in self._members()]
        values, vectors, residuals = (torch.from_numpy(np.stack(part)).to(self.state) for part in zip(*solved))
        k = values.shape[-1]
        vectors = vectors.mT.reshape(*self.batch, k, *self.one) / root
        return Eigenpairs(values.reshape(*self.batch, k), vectors, residuals.reshape(*self.batch, k))

    def _members(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The product of each member; where the loss has members too, that of all with zeros for the others."""
        if not self.batch:
            yield self._times
            return
        states = self.state.reshape(-1, *self.one)
        for i, state in enumerate(states):
            if self._stands_alone(state):
                yield derivative(self.flow, state, self.weights)
            else:
                yield lambda direction, i=i: self._embedded(direction, i)  # type: ignore[misc]

    def _stands_alone(self, state: Tensor) -> bool:
        """Whether the loss has nothing of its own for each member, of which one state has none."""
        try:
            self.flow.check(state)
            with torch.no_grad():
                return bool(self.flow.loss(self.flow.product(state)).ndim == 0)
        except (RuntimeError, ValueError):
            return False

    def _embedded(self, direction: Tensor, i: int) -> Tensor:
        whole = torch.zeros_like(self.state).reshape(-1, *self.one)
        whole[i] = direction
        return self._times(whole.reshape(self.state.shape)).reshape(-1, *self.one)[i]


@undisturbed
def hessian(flow: Flow, state: Tensor) -> Hessian:
    """The Hessian of a flow's loss at a state, matrix-free, in the inner product in which the flow descends.

    Parameters
    ----------
    flow : ContinuousFlow, FiniteFlow or FactorizationFlow
    state : Tensor
        As the flow takes it; leading axes of an ensemble make as many Hessians. In float32 all errors are those of
        float32, and the residuals tell of them.

    Returns
    -------
    Hessian
        With `product(direction)`, `spectrum()` and `top(k)`.

    Raises
    ------
    TypeError, ValueError
        If the flow is none of those, the state does not fit it or is not finite, or a product is not what differences
        of the velocity are.

    Notes
    -----
    Products are exact derivatives: the flow's `linearised` where it knows it, else autograd through its velocity. One
    is compared with differences of the velocity. An IntrinsicFlow descends in a metric that changes with z, in which
    the Hessian is the linearised velocity at critical points alone: `balanced_spectrum` has that spectrum.

    Examples
    --------
    >>> flow = nf.FiniteFlow(depth=8, loss=nf.Quadratic(torch.diag(torch.tensor([3.0, 2.0]))), layer="exp")
    >>> H = nf.curvature.hessian(flow, flow.sample(nf.balanced(flow.loss.target)))
    >>> values, vectors, residuals = H.top(3)
    >>> [round(float(value), 2) for value in values]  # 3², and twice the logarithmic mean of 3² and 2² up to O(1/L²)
    [9.0, 6.16, 6.16]
    >>> bool(torch.allclose(H.product(vectors[0]), values[0] * vectors[0]))
    True
    """
    return Hessian(flow, state)


class Sharpness(NamedTuple):
    """The largest eigenvalue of a Hessian, and how far it is at most from one: tensors with the axes of the batch.

    Examples
    --------
    >>> nf.curvature.Sharpness(torch.tensor(2.0), torch.tensor(0.0)).value
    tensor(2.)
    """

    value: Tensor
    error: Tensor


@undisturbed
def sharpness(flow: Flow, state: Tensor) -> Sharpness:
    """The algebraically largest eigenvalue of the Hessian, and the residual of its eigenvector.

    Away from minimisers it is not the one of the largest modulus where that is negative, and may itself be negative.
    Gradient descent of rate η can settle on a minimiser only if it is at most 2/η.

    Parameters
    ----------
    flow, state
        As `hessian` takes them.

    Returns
    -------
    Sharpness
        ``value`` and ``error``, `(...)`: one for each member of the state.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `hessian` and `Hessian.top`.

    Examples
    --------
    >>> target = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=4, order=8), nf.Quadratic(target))
    >>> value, error = nf.curvature.sharpness(flow, flow.sample(nf.balanced(target)))
    >>> abs(float(value) - float(torch.linalg.matrix_norm(target, 2)) ** 2) < 1e-10, float(error) < 1e-10
    (True, True)
    """
    pairs = Hessian(flow, state).top(1)
    return Sharpness(pairs.values[..., 0], pairs.residuals[..., 0])


def _check_velocity(flow: Flow, state: Tensor) -> None:
    """Raises ValueError where a state has no finite velocity."""
    try:
        with torch.no_grad():
            velocity = flow.velocity(state)
    except (torch.linalg.LinAlgError, FloatingPointError):
        velocity = state * math.nan
    if not all_finite(velocity):
        raise ValueError("state has no finite velocity: it is too large, or the loss is not defined there")


def plain_numbers(name: str, tensor: Tensor) -> Tensor:
    """A floating-point tensor as its numbers; raises TypeError where a derivative or a transform is asked of them."""
    floating(name, tensor)
    if followed() or (tensor.requires_grad and torch.is_grad_enabled()):
        raise TypeError(
            f"{name} must be plain numbers: spectra carry no derivatives and take no part in transforms of torch.func; "
            f"pass {name}.detach()"
        )
    return tensor.detach()


def fixed_weights(flow: Any) -> Tensor:
    """The weights of the inner product in which a flow descends; raises TypeError unless it is one for all states."""
    if isinstance(flow, (ContinuousFlow, FiniteFlow, FactorizationFlow)):
        return inner_weights(flow)
    raise TypeError(
        f"flow must be a ContinuousFlow, FiniteFlow or FactorizationFlow, which descend in a fixed inner product, got "
        f"{type(flow).__name__}; for a flow of z alone use curvature.balanced_spectrum(loss, z, kernel)"
    )


def derivative(flow: Any, state: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """−∂velocity at a state, a function of a direction."""
    with torch.no_grad():
        known = flow.linearised(state) if offers(flow, Linearises) else None
    if known is None:
        return by_autograd(flow, state, weights)

    def product(direction: Tensor) -> Tensor:
        with torch.no_grad():
            return -known(direction)

    return product


def by_autograd(flow: Flow, state: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The same by autograd through the velocity.

    With the weights w, wH is symmetric: H v = w⁻¹ (−∂velocity)ᵀ (w v), and the graph of one velocity serves all.
    """
    w = weights.to(state)
    transposed = derivative_of(flow.velocity, state)
    return lambda direction: -transposed(w * direction) / w


def derivative_of(field: Callable[[Tensor], Tensor], point: Tensor) -> Callable[[Tensor], Tensor]:
    """The transposed derivative of a field at a point, by autograd: for gradients, it is the derivative."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = point.detach().clone().requires_grad_()
        value = field(leaf)

    def product(direction: Tensor) -> Tensor:
        if not value.requires_grad:  # the field is constant, or cannot be followed: `compare` tells
            return torch.zeros_like(direction)
        slope = torch.autograd.grad(value, leaf, direction, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(direction) if slope is None else slope

    return product


def compare(
    times: Callable[[Tensor], Tensor], field: Callable[[Tensor], Tensor], point: Tensor, who: str, what: str
) -> None:
    """Raises ValueError where a derivative at a point, times a direction, is not what differences of its field are."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(point.shape, generator=generator, dtype=torch.float64, device="cpu").to(point)
    eps = torch.finfo(point.dtype).eps
    h = max(1.0, float(point.abs().max())) * eps ** (1 / 3)
    ahead, behind = field(point + h * direction), field(point - h * direction)
    wanted = (ahead - behind) / (2 * h)
    off, size, most = (float(torch.linalg.vector_norm(x)) for x in (times(direction) - wanted, wanted, ahead))
    if not off <= _WRONG * size + 1e3 * eps / h * most:
        raise ValueError(
            f"{who} has second derivatives that are off by {off:.2g} of {size:.2g} from differences of its {what}: "
            f"there is a wrong hessian, or a gradient that autograd cannot follow; write it in torch operations"
        )
