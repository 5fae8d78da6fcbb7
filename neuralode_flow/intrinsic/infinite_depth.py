"""Criterion B at infinite depth: whether the metric of z depends on more of W(s) than z and the law."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import count
from ..depth.collocation import Collocation
from ..depth.grid import DepthGrid, check_grid
from ..flows.base import check_layers
from ..matrices import solve
from .metric import Change, Verdict
from .ranks import ABOVE_ROUND_OFF, UNDECIDED, Rank
from .units import Measured

# Picard sweeps of the linear equation of the symmetric part: they converge like (2‖W‖)^k/k!.
_MOST_SWEEPS = 200


@dataclass(frozen=True)
class DepthCriterion:
    """Criterion B for the continuous-depth model at a profile W.

    Attributes
    ----------
    metric : True, False or "undecided"
        Whether ∂M vanishes on the variations of W that keep z and the law C(s) at every s.
    size : float
        The largest ‖∂M[v]‖, Frobenius norm of an operator on matrices, over those v with ∫‖v‖² ds = 1.
    scale : float
        ‖M‖ / (∫‖W‖² ds)^½, or ‖M‖ for W of norm below 1: what size is compared with in figures.
    variations : Rank
        The number of such v that were tried, and the gap that decided it.
    relative : float
        What the verdict is about: the largest entry of ∂M relative to the same entry of M at most, times that norm.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=4, order=12)
    >>> W = torch.diag(torch.tensor([1.0, -0.5])).expand(48, 2, 2)  # constant and symmetric: balanced
    >>> found = nf.intrinsic.depth_criterion(grid, W)
    >>> found.metric, found.size < 1e-8 * found.scale
    (True, True)
    """

    metric: Verdict
    size: float
    scale: float
    variations: Rank
    relative: float = 0.0


def depth_criterion(grid: DepthGrid, W: Tensor, modes: int = 4) -> DepthCriterion:
    """Criterion B of arXiv 2508.07370 at infinite depth, for M[G] = ∫ PPᵀ G PᵀP ds with P = P(1,s), P(s,0).

    A variation v = S/2 + Ω that keeps C = S' + WᵀW − WWᵀ at every s is known by its skew part Ω(s) and S(0): S solves
    a linear equation. Ω is tried in the first Legendre polynomials of depth; of all combinations those that keep z
    remain. So False is a proof, and True says that no variation of this kind objects.

    Parameters
    ----------
    grid : DepthGrid
        It must resolve W: the derivatives are as accurate as the collocation.
    W : Tensor (N, d, d)
        A profile on the nodes.
    modes : int
        Polynomials for each entry of Ω.

    Returns
    -------
    DepthCriterion

    Raises
    ------
    TypeError, ValueError
        If W does not fit the grid, or modes is no positive integer.
    FloatingPointError
        If the equation of S cannot be solved on the grid.

    Examples
    --------
    >>> grid = nf.DepthGrid.gauss(panels=4, order=12)
    >>> z0 = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> profiles = {"relaxed balanced": nf.balanced(z0), "control": nf.control(z0)}
    >>> for name, W0 in profiles.items():
    ...     W = torch.stack([W0(float(s)) for s in grid.nodes])
    ...     print(name, nf.intrinsic.depth_criterion(grid, W).metric)
    relaxed balanced True
    control False
    """
    check_grid("grid", grid)
    check_layers(W, len(grid), "depth nodes")
    if W.ndim != 3:
        raise ValueError(f"W must have shape (N, d, d), got {tuple(W.shape)}")
    variations = _keep_law(grid, W, count("modes", modes))
    X, _, z = Collocation(grid).propagators(W)
    # δz = z K(1).
    moved = (z @ grid.integrate(solve(X, variations @ X))).reshape(len(variations), -1).mT
    keep, rank = Measured(moved, torch.finfo(W.dtype).eps * moved.abs()).null_space()
    weights = grid.weights.to(W)[:, None, None]
    v = _combined(keep, variations)
    if len(v) == 0:  # d = 1: nothing keeps the number z, and nothing objects
        M, _ = _metric_and_change(grid, W, variations)
        scale = float(torch.linalg.vector_norm(M)) / max(_norm(grid, W), 1.0)
        return DepthCriterion(True if rank.decided else UNDECIDED, 0.0, scale, replace(rank, rank=0), 0.0)
    R = torch.linalg.qr((v * weights.sqrt()).reshape(len(v), -1).mT, mode="r").R
    v = _combined(keep @ torch.linalg.inv(R), variations)  # now the combinations are orthonormal in L²
    M, change = _metric_and_change(grid, W, v)
    size = float(torch.linalg.svdvals(change.reshape(len(change), -1))[0])
    norm = _norm(grid, W)
    scale = float(torch.linalg.vector_norm(M)) / max(norm, 1.0)
    found = _entrywise(grid, W, v, M, change, norm)
    verdict = found.verdict if rank.decided else UNDECIDED
    return DepthCriterion(verdict, size, scale, replace(rank, rank=len(change)), found.relative)


def _norm(grid: DepthGrid, W: Tensor) -> float:
    """‖W‖ in L²."""
    return float((W.square() * grid.weights.to(W)[:, None, None]).sum().sqrt())


def _metric_and_change(grid: DepthGrid, W: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """M (d, d, d, d) and ∂M[v] (k, d, d, d, d) for variations v (k, N, d, d) of W; entry abcd takes G_bc to ż_ad."""
    X, Y, _ = Collocation(grid).propagators(W)
    inside = solve(X, v @ X)
    K, whole = grid.antiderivative(inside), grid.integrate(inside)
    # δP(s,0) = P(s,0) K(s), δP(1,s) = P(1,s) X (K(1) − K(s)) X⁻¹.
    dX = X @ K
    dY = Y @ X @ (whole.unsqueeze(-3) - K) @ torch.linalg.inv(X)
    left, right = Y @ Y.mT, X.mT @ X
    d_left, d_right = dY @ Y.mT + Y @ dY.mT, dX.mT @ X + X.mT @ dX
    weights = grid.weights.to(W)[:, None, None]
    return _operator(weights, left, right), _operator(weights, d_left, right) + _operator(weights, left, d_right)


def _entrywise(grid: DepthGrid, W: Tensor, v: Tensor, M: Tensor, change: Tensor, norm: float) -> Change:
    """The largest entry of ∂M relative to what M, a positive operator, allows there: √(M_aacc M_bbdd)/‖W‖.

    A global norm would let a large block of z hide a small one.
    """
    sizes = torch.einsum("aacc->ac", M).sqrt()
    allowed = sizes[:, None, :, None] * sizes[None, :, None, :] / max(norm, 1.0)
    relative = torch.linalg.vector_norm(change, dim=0) / allowed
    worst = int(relative.argmax())
    entries = change.reshape(len(change), -1)[:, worst]
    largest = float(torch.linalg.vector_norm(entries))
    if not largest > 0:
        return Change(0.0, True)
    direction = _combined((entries / largest).unsqueeze(-1), v)
    draws = torch.Generator().manual_seed(0)
    noise = 0.0
    for _ in range(2):
        shaken = W * (1 + 4 * torch.finfo(W.dtype).eps * torch.randn(W.shape, generator=draws, device="cpu").to(W))
        again = _metric_and_change(grid, shaken, direction)[1].reshape(-1)[worst]
        noise = max(noise, abs(float(again) - largest))
    return Change(float(relative.flatten()[worst]), largest >= ABOVE_ROUND_OFF * noise)


def _keep_law(grid: DepthGrid, W: Tensor, modes: int) -> Tensor:
    """Variations (k, N, d, d) that keep C(s): one for each entry and mode of Ω, and for each entry of S(0)."""
    d = W.shape[-1]
    x = 2 * grid.nodes.to(W) - 1
    waves = [torch.special.legendre_polynomial_p(x, n) for n in range(modes)]
    skew, start = [], []
    for i in range(d):
        for j in range(i, d):
            E = torch.zeros(d, d, dtype=W.dtype, device=W.device)
            E[i, j] = 1.0
            if i < j:
                skew += [wave[:, None, None] * (E - E.mT) for wave in waves]
            start.append(E + E.mT)
    zero = W.new_zeros(W.shape)
    omega = torch.stack([*skew, *(zero for _ in start)])
    S0 = torch.stack([zero[0] for _ in skew] + start).unsqueeze(-3)
    S = S0.expand_as(omega)
    for _ in range(_MOST_SWEEPS):
        v = S / 2 + omega
        bracket = W.mT @ v + v.mT @ W - W @ v.mT - v @ W.mT
        S, before = S0 - grid.antiderivative(bracket), S
        moved = float((S - before).abs().max())
        if moved <= 1e-15 * float(S.abs().max()):
            return S / 2 + omega
        if not moved < 1e100:
            break
    if moved <= 1e-13 * float(S.abs().max()):
        return S / 2 + omega
    raise FloatingPointError("the variations that keep the law could not be computed: use more depth nodes")


def _combined(combinations: Tensor, values: Tensor) -> Tensor:
    """Σ_i combinations[i, k] values[i]."""
    return torch.einsum("ik,i...->k...", combinations, values)


def _operator(weights: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """∫ left ⊗ right ds, `(..., N, d, d)` twice → `(..., d, d, d, d)`."""
    return torch.einsum("...nab,...ncd->...abcd", weights * left, right)
