"""Conserved quantities of the training flows, and their drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import floating, same_kind
from .depth.collocation import Collocation
from .depth.engine import multiply
from .depth.engine.compiled import neighbours
from .depth.grid import DepthGrid, check_grid


def _check(name: str, value: Tensor, axes: str) -> None:
    """Raises unless `value` is a floating-point tensor with these last axes, such as "L, d, d"."""
    floating(name, value)
    if value.ndim < len(axes.split(", ")) or value.shape[-1] != value.shape[-2]:
        raise ValueError(f"{name} must have shape (..., {axes}), got {tuple(value.shape)}")


def _check_moving(W: Tensor, V: Tensor, axes: str) -> None:
    """Raises unless W and V have these last axes, the same, and are of one kind."""
    _check("W", W, axes)
    _check("V", V, axes)
    same_kind("V", V, "W", W)
    if V.shape[-3:] != W.shape[-3:]:
        raise ValueError(f"V must have the axes ({axes}) of W, {tuple(W.shape)}, got {tuple(V.shape)}")


def commutator(W: Tensor) -> Tensor:
    """[Wᵀ, W] = WᵀW − WWᵀ, shape `(..., d, d)`.

    Examples
    --------
    >>> nf.laws.commutator(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """
    _check("W", W, "d, d")
    return multiply(W.mT, W).sub_(multiply(W, W.mT))


def continuous_law(grid: DepthGrid, W: Tensor) -> Tensor:
    """J(s) = S(s) + ∫₀ˢ (WᵀW − WWᵀ) with S = W + Wᵀ, less its mean over depth.

    C(s) = S' + WᵀW − WWᵀ is conserved at every s for every loss; J is its primitive, free of differentiation, up to
    the constant that the mean removes (docs/math.md): a change of J that is the same at all depths, or skew, is none
    of C. How well the grid can hold which part of it is told by `law_change`.

    Parameters
    ----------
    grid : DepthGrid
    W : Tensor (..., N, d, d)

    Returns
    -------
    Tensor (..., N, d, d)

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=4, order=12)
    >>> W0 = nf.relaxed_balanced(2 * torch.eye(2), shift=lambda s: 0.0)
    >>> W = torch.stack([W0(float(s)) for s in grid.nodes])
    >>> float(nf.laws.continuous_law(grid, W).abs().max()) < 1e-13  # balanced: C = 0 at every depth
    True
    """
    check_grid("grid", grid)
    bracket = commutator(W)
    return primitive(grid, W + W.mT, bracket)


class LawChange(NamedTuple):
    """How far J has moved, in Frobenius norms.

    drift : Tensor (...)
        The largest over the nodes: of the lowest third of the modes the whole change, which a grid holds far better
        than the rest, of the others what exceeds the bounds.
    modes, bounds : Tensor (..., m)
        By Legendre mode k = 0 … m − 1 of a panel: the largest change of the coefficient over the panels, and what of
        it the grid itself accounts for.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=2, order=6)
    >>> W = torch.cos(grid.nodes)[:, None, None] * torch.eye(2)
    >>> change = nf.laws.law_change(grid, W, W)
    >>> float(change.drift), change.modes.shape
    (0.0, torch.Size([6]))
    """

    drift: Tensor
    modes: Tensor
    bounds: Tensor


# A bound is this multiple of its estimate, which was 0.7 … 2.5 times what training did on 5 grids.
_SAFETY = 5.0


def law_change(grid: DepthGrid, W: Tensor, start: Tensor) -> LawChange:
    """The change of J from `start` to W, mode by mode, beside the bound that each mode can be held to on the grid.

    The velocity M that collocation makes is, on each panel, the value at the nodes of a polynomial of degree 2m whose
    slope there is that of the exact equation M' = MWᵀ − WᵀM. So dJ/dt is what the m nodes miss of that slope, and no
    more; its k-th Legendre coefficient is O(h^{2m−k}). It is computed from the stages of both states, for a gradient G
    in general position, relative to M; times the change of W it is the bound.
    No velocity of a flow enters: a wrong one shows in every mode.

    Parameters
    ----------
    grid : DepthGrid
    W, start : Tensor (..., N, d, d)

    Returns
    -------
    LawChange

    Examples
    --------
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=2, order=8), nf.Quadratic(2 * torch.eye(2)))
    >>> W = flow.sample(nf.control(torch.tensor([[1.0, 3.0], [0.0, 1.0]])))
    >>> path = nf.integrate(flow, W, [0.0, 1.0], "DOP853", rtol=1e-10, atol=1e-12)
    >>> float(nf.laws.law_change(flow.grid, path.state, W).drift) < 1e-7
    True
    """
    return law_changes(grid, start)(W)


def law_changes(grid: DepthGrid, start: Tensor) -> Callable[[Tensor], LawChange]:
    """`law_change` from one start: a function of W.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=2, order=6)
    >>> W = torch.cos(grid.nodes)[:, None, None] * torch.eye(2)
    >>> change = nf.laws.law_changes(grid, W)
    >>> [round(float(change(W + step * torch.eye(2)).drift), 12) for step in (0.0, 0.1)]  # the same at all depths
    [0.0, 0.0]
    """
    law, unheld, start = continuous_law(grid, start), _unheld(grid, start), start.clone()

    def change(W: Tensor) -> LawChange:
        coefficients = grid.legendre(continuous_law(grid, W) - law)
        sizes = torch.linalg.matrix_norm(coefficients)
        moved = torch.linalg.matrix_norm(W - start).amax(-1)
        bounds = _SAFETY * moved.unsqueeze(-1) * torch.maximum(_unheld(grid, W), unheld)
        kept = (1 - bounds.unsqueeze(-2) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=0.0)
        kept[..., : max(1, (grid.order - 1) // 3) + 1] = 1.0
        beyond = grid.from_legendre(coefficients * kept[..., None, None])
        return LawChange(torch.linalg.matrix_norm(beyond).amax(-1), sizes.amax(-2), bounds)

    return change


def primitive(grid: DepthGrid, local: Tensor, bracket: Tensor) -> Tensor:
    """local + ∫₀ˢ bracket, less its mean over depth: `(..., N, d, d)` each, on the nodes of a grid.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=1, order=6)
    >>> W = grid.nodes[:, None, None] * torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    >>> law = nf.laws.primitive(grid, W + W.mT, nf.laws.commutator(W))
    >>> torch.equal(law, nf.laws.continuous_law(grid, W))
    True
    """
    J = local + grid.antiderivative(bracket)
    return J - grid.integrate(J).unsqueeze(-3)


def _unheld(grid: DepthGrid, W: Tensor) -> Tensor:
    """The part of dJ/dt that the nodes miss, by mode, relative to the largest ‖M‖: `(..., m)`."""
    d = W.shape[-1]
    G = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0), device="cpu").to(W)
    M = Collocation(grid).gradient(W, lambda z: G)
    part = multiply(W.mT, M) - multiply(M, W.mT)
    missed = torch.linalg.matrix_norm(grid.legendre(primitive(grid, M + M.mT, part + part.mT))).amax(-2)
    return missed / torch.linalg.matrix_norm(M).amax(-1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)


def depth_curvature(grid: DepthGrid, W: Tensor) -> Tensor:
    """C(s) = S'(s) + WᵀW − WWᵀ on the nodes: `(..., N, d, d)` → the same shape. Relaxed balance is C(s) = λ(s) I.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=1, order=6)
    >>> W = grid.nodes[:, None, None] * torch.eye(2)  # W = s I: C = 2 I
    >>> bool(torch.allclose(nf.laws.depth_curvature(grid, W), 2 * torch.eye(2)))
    True
    """
    check_grid("grid", grid)
    own = commutator(W)
    return grid.differentiate(W + W.mT) + own


def relaxed_balance_defect(grid: DepthGrid, W: Tensor) -> Tensor:
    """Distance from relaxed balance: the L² norm over depth of C(s) − tr(C(s))/d · I, shape `(...)`.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=1, order=6)
    >>> W = grid.nodes[:, None, None] * torch.diag(torch.tensor([1.0, 0.0]))  # C = diag(2, 0)
    >>> round(float(nf.laws.relaxed_balance_defect(grid, W)) ** 2, 12)  # ‖diag(1, −1)‖²
    2.0
    """
    C = depth_curvature(grid, W)
    identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    deviation = C - C.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * identity
    return torch.sqrt((deviation.square().sum((-2, -1)) * grid.weights.to(W)).sum(-1))


def defect_scale(W: Tensor) -> float:
    """1 + the largest ‖W‖² of depths and members: what a distance from relaxed balance is small or large against.

    Examples
    --------
    >>> nf.laws.defect_scale(torch.stack((torch.eye(4), -2 * torch.eye(4))))  # ‖2I‖² = 16
    17.0
    """
    return 1 + float(torch.linalg.matrix_norm(W).max()) ** 2


def _steps(W: Tensor) -> Tensor:
    """L(S_{k+1} − S_k), S = W + Wᵀ, `(..., L−1, d, d)`: a tensor that may be written to."""
    D = W[..., 1:, :, :] - W[..., :-1, :, :]
    return (D + D.mT).mul_(W.shape[-3])


def euler_law(W: Tensor) -> Tensor:
    """L²(U_{k+1}ᵀU_{k+1} − U_kU_kᵀ) for Euler layers U_k = I + W_k/L, conserved exactly; `(..., L−1, d, d)`.

    Expanded, so that L² does not amplify round-off: L(S_{k+1} − S_k) + W_{k+1}ᵀW_{k+1} − W_kW_kᵀ.

    Examples
    --------
    >>> flow = nf.FiniteFlow(depth=4, loss=nf.Quadratic(2 * torch.eye(2)))
    >>> W = flow.sample(nf.smooth(2, 1.0, torch.Generator().manual_seed(0)))
    >>> path = nf.integrate(flow, W, [0.0, 1.0], "DOP853", rtol=1e-10, atol=1e-12)
    >>> float((nf.laws.euler_law(path.state) - nf.laws.euler_law(W)).abs().max()) < 1e-8
    True
    """
    _check("W", W, "L, d, d")
    if (law := neighbours(W, mean=False)) is not None:
        return law
    after, before = W[..., 1:, :, :], W[..., :-1, :, :]
    return _steps(W).add_(multiply(after.mT, after)).sub_(multiply(before, before.mT))


def relaxed_balance(U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How near layers U `(..., L, d, d)` are to U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = λ_k I.

    Returns
    -------
    lam : Tensor (..., L−1)
        λ_k, the mean of the diagonal.
    off : Tensor (...)
        The largest Frobenius distance of a difference from λ_k I; 0 for one layer.
    scale : Tensor (...)
        The largest ‖U_k‖².

    Examples
    --------
    >>> U = torch.stack([torch.eye(2), math.sqrt(3) * torch.eye(2)])
    >>> lam, off, scale = nf.laws.relaxed_balance(U)
    >>> [round(float(value), 12) for value in (lam[0], off, scale)]
    [2.0, 0.0, 6.0]
    """
    _check("U", U, "L, d, d")
    after, before = U[..., 1:, :, :], U[..., :-1, :, :]
    law = multiply(after.mT, after) - multiply(before, before.mT)
    lam = law.diagonal(dim1=-2, dim2=-1).mean(-1)
    one = torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
    scale = torch.linalg.matrix_norm(U).amax(-1).square()
    return lam, drift(law, lam[..., None, None] * one), scale


def momentum_law(grid: DepthGrid, W: Tensor, V: Tensor) -> Tensor:
    """V(s) + ∫₀ˢ (WᵀV − VWᵀ), less its mean over depth: what momentum V does to the law (derived here; docs/math.md).

    It is the primitive of N = ∂_sV + WᵀV − VWᵀ, free of differentiation. Along W_tt + αW_t = −∇f with V = W_t the
    skew part of e^{αt} N is conserved at every s for every loss, and the law of the gradient flow is driven:
    C_t = N + Nᵀ and C_tt + αC_t = 2(VᵀV − VVᵀ). For heavy-ball steps V_{n+1} = βV_n − ηg_n, W_{n+1} = W_n + V_{n+1}

    - skew N_{n+1} = β skew N_n,
    - C_{n+1} − C_n = β (N_n + N_nᵀ) + V_{n+1}ᵀV_{n+1} − V_{n+1}V_{n+1}ᵀ,

    exactly and at any rate. The same holds of the primitives, J of `continuous_law` for C.

    Parameters
    ----------
    grid : DepthGrid
    W, V : Tensor (..., N, d, d)
        Weights and their velocity, or the last step.

    Returns
    -------
    Tensor (..., N, d, d)

    Raises
    ------
    TypeError, ValueError
        If W and V are of several kinds, or their last axes differ.

    Examples
    --------
    >>> flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels=4, order=14), nf.Quadratic(2 * torch.eye(2)))
    >>> W = flow.sample(nf.smooth(2, 1.0, torch.Generator().manual_seed(0)))
    >>> float(nf.laws.momentum_law(flow.grid, W, flow.velocity(W)).abs().max()) < 1e-12  # zero along a gradient
    True
    >>> V = torch.zeros_like(W) + torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # a moving start
    >>> after = 0.9 * V + 0.1 * flow.velocity(W)
    >>> N, N_after = nf.laws.momentum_law(flow.grid, W, V), nf.laws.momentum_law(flow.grid, W + after, after)
    >>> bool(torch.allclose(N_after - N_after.mT, 0.9 * (N - N.mT), atol=1e-12))
    True
    """
    check_grid("grid", grid)
    _check_moving(W, V, "N, d, d")
    return primitive(grid, V, multiply(W.mT, V) - multiply(V, W.mT))


def euler_momentum_law(W: Tensor, V: Tensor) -> Tensor:
    """N_k = L²(U_{k+1}ᵀU̇_{k+1} − U̇_kU_kᵀ) of Euler layers U_k = I + W_k/L, U̇_k = V_k/L; `(..., L−1, d, d)`.

    What `momentum_law` says of N holds of N_k exactly, with `euler_law` for C and V_{k+1}ᵀV_{k+1} − V_kV_kᵀ for
    VᵀV − VVᵀ (derived here; two layers: Marcotte et al. 2024). Expanded: L(V_{k+1} − V_k) + W_{k+1}ᵀV_{k+1} − V_kW_kᵀ.

    Parameters
    ----------
    W, V : Tensor (..., L, d, d)

    Raises
    ------
    TypeError, ValueError
        If W and V are of several kinds, or their last axes differ.

    Examples
    --------
    >>> flow = nf.MomentumFlow(nf.FiniteFlow(4, nf.Quadratic(2 * torch.eye(2))), friction=0.5)
    >>> W = flow.flow.sample(nf.smooth(2, 1.0, torch.Generator().manual_seed(0)))
    >>> V = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(1)).to(W)
    >>> path = nf.integrate(flow, flow.start(W, V), [0.0, 2.0], "DOP853", rtol=1e-11, atol=1e-13)
    >>> N = nf.laws.euler_momentum_law(W, V)
    >>> N_end = nf.laws.euler_momentum_law(flow.position(path.state), flow.momentum(path.state))
    >>> bool(torch.allclose(math.exp(0.5 * 2.0) * (N_end - N_end.mT), N - N.mT, atol=1e-9))
    True
    """
    _check_moving(W, V, "L, d, d")
    linear = W.shape[-3] * (V[..., 1:, :, :] - V[..., :-1, :, :])
    return linear + multiply(W[..., 1:, :, :].mT, V[..., 1:, :, :]) - multiply(V[..., :-1, :, :], W[..., :-1, :, :].mT)


def symmetric_law(W: Tensor) -> Tensor:
    """L(S_{k+1} − S_k) + ½([W_kᵀ,W_k] + [W_{k+1}ᵀ,W_{k+1}]), `(..., L−1, d, d)`; drifts O(1/L²) at order 2.

    Examples
    --------
    >>> W = torch.eye(2).expand(4, 2, 2)  # the same in each layer, and normal
    >>> float(nf.laws.symmetric_law(W).abs().max())
    0.0
    """
    _check("W", W, "L, d, d")
    if (law := neighbours(W, mean=True)) is not None:
        return law
    C = commutator(W)
    return _steps(W).add_((C[..., 1:, :, :] + C[..., :-1, :, :]).div_(2))


def drift(law: Tensor, start: Tensor) -> Tensor:
    """How far a law has moved: the largest Frobenius distance over depth, `(..., n, d, d)` → `(...)`; 0 for n = 0.

    Examples
    --------
    >>> start = torch.zeros(3, 2, 2)
    >>> float(nf.laws.drift(start + torch.eye(2), start)) == math.sqrt(2)
    True
    """
    _check("law", law, "n, d, d")
    _check("start", start, "n, d, d")
    same_kind("law", law, "start", start)
    if law.shape[-3:] != start.shape[-3:]:
        raise ValueError(f"law must have the axes (n, d, d) of start, {tuple(start.shape)}, got {tuple(law.shape)}")
    distance = torch.linalg.matrix_norm(law - start)
    return distance.amax(-1) if distance.shape[-1] else distance.sum(-1)
