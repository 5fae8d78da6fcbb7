"""What gradient descent of a visible step does beyond the flow: the slope of the sharpness, and the central flow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import positive
from ..flows.base import Flow
from .hessian import Hessian
from .lanczos import Eigenpairs


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
    return _slope(H, H.top(1))


class Central(NamedTuple):
    """The central flow at a state: see `central_velocity`.

    velocity : Tensor
        Of the shape of the state.
    sharpness : Tensor (...)
        The largest eigenvalue of the Hessian.
    variance : Tensor (...)
        σ², the mean square of the oscillation along the top eigenvector in the flow's inner product; 0 below the edge.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[0] * theta[1], nf.Quadratic(torch.tensor(1.0)))
    >>> float(nf.curvature.central_velocity(flow, torch.tensor([2.0, 0.5]), rate=0.1).variance)  # 4.25 < 2/rate
    0.0
    """

    velocity: Tensor
    sharpness: Tensor
    variance: Tensor


def central_velocity(flow: Flow, state: Tensor, rate: float) -> Central:
    """W' = −∇f − ½σ² ∇S: the rank-one central flow of gradient descent of that rate (Cohen et al., arXiv 2410.24206).

    S is the sharpness. σ² is the least number ≥ 0 with which S is at most 2/rate, to first order, after the time `rate`
    of one step: S' ≤ (2/rate − S)/rate. Well below the edge it is 0, and this is the flow; at the edge S stays there,
    and from beyond S is led back to it. The velocity is continuous where the largest eigenvalue is simple. Time is that
    of the flow: a step takes `rate` of it.

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
        As `sharpness`; or if rate is not above 0, or a second eigenvalue is at 2/rate too, where the central flow is
        not of rank one.

    Examples
    --------
    >>> flow = nf.FactorizationFlow(lambda theta: theta[0] * theta[1], nf.Quadratic(torch.tensor(1.0)))
    >>> theta = torch.tensor([3.0, 0.3])
    >>> rate = 2 / float(nf.curvature.sharpness(flow, theta).value)  # at the edge, where S would rise
    >>> slope, central = nf.curvature.sharpness_gradient(flow, theta), nf.curvature.central_velocity(flow, theta, rate)
    >>> float(slope @ flow.velocity(theta)) > 0, abs(float(slope @ central.velocity)) < 1e-12
    (True, True)
    """
    rate = positive("rate", rate)
    H = Hessian(flow, state)
    with torch.no_grad():
        velocity = flow.velocity(H.state)
    return central(H, velocity, rate)


def central(H: Hessian, velocity: Tensor, rate: float) -> Central:
    """The central flow where the flow has that velocity."""
    edge = 2 / rate
    pairs = H.top(1)
    S, slope = pairs.values[..., 0], _slope(H, pairs)
    excess = _inner(H, slope, velocity) + (S - edge) / rate
    half = torch.where(excess > 0, excess / _inner(H, slope, slope), 0.0)
    if bool((half > 0).any()):
        _check_one(H, edge)
    return Central(velocity - half.reshape(*H.batch, *[1] * len(H.one)) * slope, S, 2 * half)


def _check_one(H: Hessian, edge: float) -> None:
    """Raises ValueError where two eigenvalues are at the edge."""
    if H.size > 1 and bool(((second := H.top(2).values[..., 1]) >= edge).any()):
        raise ValueError(
            f"state has a second eigenvalue, {float(second.max()):.6g}, at 2/rate = {edge:.6g}: the central flow is of "
            f"rank one only where a single one is there; use a smaller rate"
        )


def _inner(H: Hessian, a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two states, `(...)`."""
    return (H.weights.to(a) * a * b).reshape(*H.batch, -1).sum(-1)


def _slope(H: Hessian, pairs: Eigenpairs) -> Tensor:
    """∇⟨u, H u⟩ at the leading eigenvectors u."""
    w, u = H.weights.to(H.state), pairs.vectors.select(len(H.batch), 0)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = H.state.clone().requires_grad_()
        velocity = H.flow.velocity(leaf)
        if not velocity.requires_grad:
            return torch.zeros_like(H.state)
        # As in `by_autograd`, wH is symmetric: this is −wHu.
        image = torch.autograd.grad(velocity, leaf, w * u, create_graph=True, allow_unused=True)[0]
        if image is None or not image.requires_grad:
            return torch.zeros_like(H.state)
        slope = torch.autograd.grad(-image, leaf, u, allow_unused=True)[0]
    return torch.zeros_like(H.state) if slope is None else slope / w
