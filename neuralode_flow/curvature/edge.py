"""What gradient descent of a visible step does beyond the flow: the slope of the sharpness, and the central flow."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import positive
from ..flows.base import Flow
from ..modes import undisturbed
from .complementarity import coordinates, solve
from .hessian import Hessian
from .lanczos import SMALL, Eigenpairs

# In units of 2/rate: from where on all eigenvalues are looked after, and how far apart two of them are held by their
# own rates of change alone.
_REACH, _APART = 0.8, 0.05

# By how much, relatively, a bound may be missed before another direction is taken.
_ROUND_OFF = 1e-12


@undisturbed
def sharpness_gradient(flow: Flow, state: Tensor) -> Tensor:
    """The gradient of the sharpness in the flow's inner product, ∇⟨u, H u⟩ with the top eigenvector u: exact.

    Parameters
    ----------
    flow, state
        As `hessian` takes them. The velocity must be differentiable twice by autograd.

    Returns
    -------
    Tensor
        Of the shape of the state. Where the largest eigenvalue is multiple the sharpness has no gradient, and this is
        that of one of its branches.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `sharpness`.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[0] * theta[1], nf.Quadratic(torch.tensor(1.0)))
    >>> slope = nf.curvature.sharpness_gradient(flow, torch.tensor([2.0, 0.5]))
    >>> [round(entry, 10) for entry in slope.tolist()]
    [4.2352941176, 1.9411764706]
    """
    H = Hessian(flow, state)
    slopes, u = _Slopes(H), H.top(1).vectors.select(len(H.batch), 0)
    return slopes.along(slopes.image(u), u)


class Central(NamedTuple):
    """The central flow at a state: see `central_velocity`.

    velocity : Tensor
        Of the shape of the state.
    sharpness : Tensor (...)
        The largest eigenvalue of the Hessian.
    variance : Tensor (...)
        σ², the mean square of the oscillation along the top eigenvector in the flow's inner product; 0 below the edge.
    covariance : Tensor (..., k, k)
        X, that along the k leading eigenvectors, of which σ² is the first entry. Its eigenvalues do not depend on which
        eigenvectors are taken where eigenvalues are multiple.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[0] * theta[1], nf.Quadratic(torch.tensor(1.0)))
    >>> float(nf.curvature.central_velocity(flow, torch.tensor([2.0, 0.5]), rate=0.1).variance)  # 4.25 < 2/rate
    0.0
    """

    velocity: Tensor
    sharpness: Tensor
    variance: Tensor
    covariance: Tensor


@undisturbed
def central_velocity(flow: Flow, state: Tensor, rate: float) -> Central:
    """W' = −∇f − ½∇⟨UXUᵀ, H⟩: the central flow of gradient descent of that rate (Cohen et al., arXiv 2410.24206).

    U are leading eigenvectors of the Hessian H, held where the gradient is taken, and X ⪰ 0 is the covariance of the
    oscillation along them. X is such that, to first order after the time `rate` of one step, no eigenvalue is above
    2/rate, and zero where that holds anyway: with R_ij = ⟨u_i, H'u_j⟩, the eigenvalues Λ and
    D = (2/rate − Λ)/rate − R, it is D ⪰ 0 and ⟨D, X⟩ = 0. So W' is the velocity next to −∇f among all with D ⪰ 0. Where
    only the largest eigenvalue S is near the edge this is W' = −∇f − ½σ²∇S with the least σ² ≥ 0 for which
    S' ≤ (2/rate − S)/rate.

    Well below the edge X is 0, and this is the flow; at the edge the eigenvalues stay there, and from beyond they are
    led back to it. The velocity is continuous, also where eigenvalues meet. Time is that of the flow: a step takes
    `rate` of it.

    Parameters
    ----------
    flow, state
        As `sharpness_gradient` takes them.
    rate : float
        η > 0, the step of gradient descent ``state + rate * flow.velocity(state)``.

    Returns
    -------
    Central

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `sharpness`; or if rate is not above 0, or no velocity brings the eigenvalues beyond 2/rate down.

    Notes
    -----
    U are the eigenvectors of the largest eigenvalue and of all others above 0.8 · 2/rate: one from below would have to
    climb by a quarter of itself in a step. Entries of R off its diagonal turn eigenvectors, and move eigenvalues at
    first order only where two are equal: in D they count with a weight, and in X there is the same weight as a factor
    of Y, with Y ⪰ 0 and ⟨D, Y⟩ = 0. It falls from 1 at equal eigenvalues to 0 where they are x = 1 apart in units of
    0.05 · 2/rate, as (1 − x)³(3x + 1), Wendland's function, which is positive definite and so leaves X ⪰ 0. From there
    on each eigenvalue is held by its own rate of change.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[0] * theta[1], nf.Quadratic(torch.tensor(1.0)))
    >>> theta = torch.tensor([3.0, 0.3])
    >>> rate = 2 / float(nf.curvature.sharpness(flow, theta).value)  # at the edge, where S would rise
    >>> slope, central = nf.curvature.sharpness_gradient(flow, theta), nf.curvature.central_velocity(flow, theta, rate)
    >>> float(slope @ flow.velocity(theta)) > 0, abs(float(slope @ central.velocity)) < 1e-12
    (True, True)

    Two problems side by side that are both at the edge:

    >>> flow = nf.FactorizationFlow(lambda theta: theta[:2] * theta[2:], nf.Quadratic(torch.ones(2), axes=1))
    >>> both = nf.curvature.central_velocity(flow, torch.tensor([3.0, 3.0, 0.3, 0.31]), rate=2 / 9)
    >>> torch.linalg.eigvalsh(both.covariance) > 0
    tensor([True, True])
    """
    rate = positive("rate", rate)
    H = Hessian(flow, state)
    with torch.no_grad():
        velocity = flow.velocity(H.state)
    return central(H, velocity, rate)


def central(H: Hessian, velocity: Tensor, rate: float) -> Central:
    """The central flow where the flow has that velocity."""
    pairs = _within_reach(H, 2 / rate)
    near = _near(pairs.values, 2 / rate)
    slopes = _slopes(H, pairs.vectors.movedim(len(H.batch), 0), near)
    root, members = H.weights.to(velocity).sqrt(), math.prod(H.batch)
    flat = (root * slopes).reshape(len(slopes), members, -1).movedim(1, 0)
    parts = (pairs.values.reshape(members, -1), flat, (root * velocity).reshape(members, -1))
    values, G, v = (part.double().cpu().numpy() for part in parts)
    Y = np.stack([_held(values[m], G[m], v[m], rate) for m in range(members)])
    weights = torch.from_numpy(np.einsum("aij,mij->am", coordinates(Y.shape[-1]), Y)).to(velocity)
    moved = (weights.reshape(-1, *H.batch, *[1] * len(H.one)) * slopes).sum(0)
    covariance = 2 * near * torch.from_numpy(Y).to(velocity).reshape(near.shape)
    return Central(velocity - moved, pairs.values[..., 0], covariance[..., 0, 0], covariance)


def _within_reach(H: Hessian, edge: float) -> Eigenpairs:
    """The largest eigenvalue, and all others within reach of the edge, of one member of a batch at least."""
    k = H.size if H.size <= SMALL else 1  # where they come together
    pairs = H.top(k)
    while k < H.size and bool((pairs.values[..., -1] >= _REACH * edge).any()):
        k = min(2 * k, H.size)
        pairs = H.top(k)
    k = max(1, int((pairs.values >= _REACH * edge).sum(-1).max()))
    return Eigenpairs(pairs.values[..., :k], pairs.vectors.narrow(len(H.batch), 0, k), pairs.residuals[..., :k])


def _near(values: Tensor, edge: float) -> Tensor:
    """Weights (..., k, k) of what turns eigenvectors: 1 where two eigenvalues are equal, 0 where they are far apart."""
    x = ((values.unsqueeze(-1) - values.unsqueeze(-2)).abs() / (_APART * edge)).clamp(max=1)
    return (1 - x) ** 3 * (3 * x + 1)


def _slopes(H: Hessian, directions: Tensor, near: Tensor) -> Tensor:
    """∇⟨u_i, H u_j⟩ times the weights, in the order and scale of `coordinates`: (p, …) of k directions (k, …)."""
    slopes, k = _Slopes(H), len(directions)
    images = [slopes.image(u) for u in directions]
    found = H.state.new_zeros(k * (k + 1) // 2, *H.state.shape)
    for a, (i, j) in enumerate(combinations_with_replacement(range(k), 2)):
        weight = near[..., i, j] * (1 if i == j else math.sqrt(2))
        if bool((weight > 0).any()):
            found[a] = weight.reshape(*H.batch, *[1] * len(H.one)) * slopes.along(images[i], directions[j])
    return found


def _held(values: np.ndarray, slopes: np.ndarray, velocity: np.ndarray, rate: float) -> np.ndarray:
    """Y = ½X without the weights, (k, k): that which holds the eigenvalues of one member at the edge."""
    edge, k = 2 / rate, len(values)
    E, columns = coordinates(k), np.triu_indices(k)[1]
    A = np.einsum("a,aij->ij", slopes @ velocity, E) - np.diag((edge - values) / rate)
    B, Y = slopes @ slopes.T, np.zeros((k, k))
    reached = max(1, int((values >= _REACH * edge).sum()))
    for r in range(1, reached + 1):  # as many directions as it takes
        own = columns < r
        found = solve(B[own][:, own], A[:r, :r])
        if found is None:
            raise ValueError(
                f"state has eigenvalues up to {values[0]:.6g}, beyond 2/rate = {edge:.6g}, which no velocity brings "
                f"down: gradient descent has no central flow there; use a smaller rate"
            )
        Y[:r, :r] = found
        left = A - np.einsum("a,aij->ij", B @ np.einsum("aij,ij->a", E, Y), E)
        if np.linalg.eigvalsh(left[:reached, :reached])[-1] <= _ROUND_OFF * np.linalg.norm(A):
            break
    return Y


class _Slopes:
    """∇⟨a, H b⟩ in the inner product of the flow, of directions a, b of the shape of the state that are held."""

    def __init__(self, H: Hessian) -> None:
        self._w = H.weights.to(H.state)
        with torch.inference_mode(False), torch.enable_grad():
            self._leaf = H.state.clone().requires_grad_()
            self._velocity = H.flow.velocity(self._leaf)

    def image(self, a: Tensor) -> Tensor | None:
        """−wHa, for wH is symmetric as in `by_autograd`; None where it does not depend on the state."""
        if not self._velocity.requires_grad:
            return None
        with torch.inference_mode(False), torch.enable_grad():
            wa = self._w * a.clone()
            found = torch.autograd.grad(self._velocity, self._leaf, wa, create_graph=True, allow_unused=True)[0]
        return found if found is not None and found.requires_grad else None

    def along(self, image: Tensor | None, b: Tensor) -> Tensor:
        """The gradient, by the image of a."""
        slope = None
        if image is not None:
            with torch.inference_mode(False), torch.enable_grad():
                slope = torch.autograd.grad(image, self._leaf, -b.clone(), retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(self._leaf).detach() if slope is None else slope / self._w
