"""Spectra at minimisers in closed form: what the Hessian of a network has beside zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..checks import count, square
from ..display import named
from ..flows.base import Flow, check_matrices
from ..kernels import Kernel, LogMean, check_kernel
from ..losses import Loss, check_square_loss
from ..modes import undisturbed
from .hessian import compare, derivative_of, fixed_weights, plain_numbers


@undisturbed
def balanced_spectrum(loss: Loss, z: Tensor, kernel: Kernel | None = None) -> Tensor:
    """The non-zero spectrum of the L² Hessian at a relaxed balanced minimiser with end-to-end map z.

    With A = D²f(z) and D[G] = U (K ∘ (UᵀGV)) Vᵀ it is that of D^½ A D^½ on d × d matrices. For f = ½‖z − T‖², A = I,
    its eigenvalues are K_ab = logmean(σ_a², σ_b²) themselves (derived here; docs/math.md). It is also the spectrum of
    the linearised `IntrinsicFlow` at a critical point.

    Parameters
    ----------
    loss : Loss
    z : Tensor (..., d, d)
        A critical point of the loss; elsewhere this is the part of the Hessian without the gradient.
    kernel : Kernel, optional
        `LogMean()`, that of infinite depth, when left out; ``DividedDifference(torch.zeros(L), time_scale=1 / L)`` is
        that of L balanced Euler layers.

    Returns
    -------
    Tensor (..., d²)
        Falling.

    Raises
    ------
    TypeError, ValueError
        If loss or kernel is none or z does not fit.

    Examples
    --------
    >>> T = torch.diag(torch.tensor([2.0, 1.0]))
    >>> values = nf.curvature.balanced_spectrum(nf.Quadratic(T), T)
    >>> bool(torch.allclose(values, torch.tensor([4.0, 3 / math.log(4), 3 / math.log(4), 1.0])))
    True
    """
    check_square_loss("loss", loss)
    kernel = LogMean() if kernel is None else kernel
    check_kernel("kernel", kernel)
    z = plain_numbers("z", z)
    check_matrices("z", z, loss, 2)
    U, sigma, Vh = torch.linalg.svd(z)
    d = z.shape[-1]
    units = torch.eye(d * d, dtype=z.dtype, device=z.device).reshape(d * d, d, d)
    root = kernel(sigma).sqrt().unsqueeze(-3)
    U, Vh = U.unsqueeze(-3), Vh.unsqueeze(-3)
    half = (U @ (root * (U.mT @ units @ Vh.mT)) @ Vh).flatten(-2)
    return _falling(half @ _loss_hessian(loss, z, z.ndim - 2) @ half.mT)


@undisturbed
def minimiser_spectrum(flow: Flow, state: Tensor) -> Tensor:
    """The non-zero spectrum of a flow's Hessian at a minimiser: that of M^½ A M^½ with A = D²f(z), on the space of z.

    M = ∂z ∂zᵀ in the flow's inner product: in continuous depth M[G] = ∫ P(1,s)P(1,s)ᵀ G P(s,0)ᵀP(s,0) ds, and for Euler
    layers (1/L) Σ BBᵀ G AᵀA with B = U_L … U_{k+1}, A = U_{k−1} … U_1. The Hessian ∂zᵀ A ∂z has the eigenvalues of
    M^½ A M^½ and zeros: a second route to them, without second derivatives of z, and small, d² × d² at every depth.

    Parameters
    ----------
    flow, state
        As `hessian` takes them. Where the gradient ∇f(z) is not zero this is the Gauss–Newton part of the Hessian.

    Returns
    -------
    Tensor (..., n)
        Falling, n the number of entries of one z.

    Raises
    ------
    TypeError, ValueError
        If the flow or the state is none that `hessian` takes.

    Examples
    --------
    >>> T = torch.diag(torch.tensor([2.0, 1.0]))
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=4, order=8), nf.Quadratic(T))
    >>> values = nf.curvature.minimiser_spectrum(flow, flow.sample(nf.balanced(T)))
    >>> bool(torch.allclose(values, nf.curvature.balanced_spectrum(flow.loss, T)))
    True
    """
    weights = fixed_weights(flow)
    state = plain_numbers("state", state)
    flow.check(state)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = state.clone().requires_grad_()
        z = flow.product(leaf)
    batch = flow.loss(z.detach()).shape
    root = weights.to(z).sqrt()
    pulled = [torch.autograd.grad(z, leaf, unit, retain_graph=True)[0] / root for unit in _units(z, len(batch))]
    half = torch.stack(pulled).reshape(len(pulled), *batch, -1)
    values, vectors = torch.linalg.eigh(torch.einsum("a...n,b...n->...ab", half, half))
    square_root = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
    return _falling(square_root @ _loss_hessian(flow.loss, z.detach(), len(batch)) @ square_root)


@undisturbed
def least_sharpness(z: Tensor, depth: int | None = None) -> Tensor:
    """The least sharpness of all minimisers of ½‖z − T‖² with end-to-end map z = T: σ₁², or σ₁^{2−2/L} for L layers.

    At infinite depth each W with P(1,0) = z has sharpness ≥ σ₁(z)², and relaxed balanced ones attain it (derived here;
    docs/math.md). For L layers, with U_k = I + W_k/L and the inner product (1/L) Σ of `FiniteFlow`, it is σ₁^{2−2/L}:
    L σ₁^{2−2/L} in the Euclidean one on U_k (Mulayoff–Michaeli, arXiv 2002.04710).

    Parameters
    ----------
    z : Tensor (..., d, d)
    depth : int, optional
        L >= 1; infinite when left out.

    Returns
    -------
    Tensor (...)

    Raises
    ------
    TypeError, ValueError
        If z is not finite and square or depth not a positive integer.

    Examples
    --------
    >>> z = torch.diag(torch.tensor([4.0, 1.0]))
    >>> float(nf.curvature.least_sharpness(z)), float(nf.curvature.least_sharpness(z, depth=2))
    (16.0, 4.0)
    """
    power = 2.0 if depth is None else 2 - 2 / count("depth", depth)
    return torch.linalg.matrix_norm(square("z", z), ord=2) ** power


def _units(z: Tensor, batch: int) -> Iterator[Tensor]:
    """The unit vectors of the space of one z, each for all members: of the shape of z."""
    one = z.shape[batch:]
    for unit in torch.eye(one.numel(), dtype=z.dtype, device=z.device):
        yield unit.reshape(one).expand_as(z).contiguous()


def _loss_hessian(loss: Loss, z: Tensor, batch: int) -> Tensor:
    """D²f(z) as matrices `(..., n, n)` on the entries of one z."""
    known = getattr(loss, "hessian", None)
    times: Callable[[Tensor], Tensor]
    if known is not None:
        times = partial(known, z)
    else:
        times = derivative_of(loss.gradient, z)
        compare(times, loss.gradient, z, f"loss ({named(loss)})", "gradient")
    with torch.no_grad():
        columns = [times(unit).reshape(*z.shape[:batch], -1) for unit in _units(z, batch)]
    return torch.stack(columns, dim=-1)


def _falling(A: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((A + A.mT) / 2).flip(-1)
