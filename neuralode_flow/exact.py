"""Closed-form solutions: the truth that tests and studies compare with. Float64 throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from .checks import count, float_tensor, positive, real


def aligned_limit(times: Tensor, sigma0: Tensor, tau: Tensor) -> Tensor:
    """Infinite depth, f = ½‖z − T‖², z₀ and T with the same singular vectors: σ' = σ²(τ − σ), mode by mode.

    Solved from t = [τ⁻² log(σ/(τ−σ)) − 1/(τσ)] between σ(0) and σ(t) (arXiv 2508.07370).

    Parameters
    ----------
    times : Tensor (T,)
        Times >= 0, in the flow time of `ContinuousFlow`.
    sigma0, tau : Tensor (d,)
        Singular values of z₀ (> 0) and of the target in the same basis (of any sign; τ <= 0 cannot be reached).

    Returns
    -------
    Tensor (T, d)
        σ(t); the error of t inverted is below 1e-12 relative to 1 + t.
    """
    return _modes(times, sigma0, tau, _limit_time)


def aligned_layers(times: Tensor, sigma0: Tensor, tau: Tensor, depth: int) -> Tensor:
    """L balanced layers, aligned with the target: σ' = L σ^{2−2/L}(τ − σ), in Euclidean flow time on the layers.

    Solved from t = ∫dσ / (L σ^{2−2/L}(τ − σ)), by partial fractions (Saxe 2014 for L = 2; Arora–Cohen–Hazan 2018 for
    the equation). Multiply times by 1/L for the time of `FiniteFlow`: σ_FiniteFlow(t) = σ(t/L).

    Parameters
    ----------
    times : Tensor (T,)
    sigma0, tau : Tensor (d,)
    depth : int
        L >= 1.

    Returns
    -------
    Tensor (T, d)
    """
    if count("depth", depth) == 1:
        return tau + (sigma0 - tau) * torch.exp(-times)[:, None]  # linear: the only depth at which σ can cross zero
    return _modes(times, sigma0, tau, lambda sigma, target: _layers_time(sigma, target, depth))


def saxe(times: Tensor, sigma0: Tensor, tau: Tensor) -> Tensor:
    """Two balanced layers, aligned: σ(t) = τ e^{2τt} / (e^{2τt} − 1 + τ/σ₀), in Euclidean flow time (Saxe 2014).

    Parameters
    ----------
    times : Tensor (T,)
    sigma0, tau : Tensor (d,)

    Returns
    -------
    Tensor (T, d)
    """
    t, start, target = times.double()[:, None], sigma0.double(), tau.double()
    # Divided by e^{2τt}: no overflow. (1 − e^{−2τt})/τ tends to 2t at τ = 0.
    decay = torch.exp(-2 * target * t)
    grown = torch.where(target == 0, 2 * t, -torch.expm1(-2 * target * t) / torch.where(target == 0, 1.0, target))
    return start / (start * grown + decay)


def two_layer(times: Tensor, W1: Tensor, W2: Tensor, target: Tensor) -> Tensor:
    """Two λ-balanced layers, W₂ᵀW₂ − W₁W₁ᵀ = λI, f = ½‖W₂W₁ − Σ‖² (whitened inputs): the closed solution in t.

    Q = [W₁ᵀ; W₂], F = [[−λ/2 I, Σᵀ], [Σ, λ/2 I]],
    QQᵀ(t) = e^{Ft}Q₀[I + ½Q₀ᵀ(e^{Ft}F⁻¹e^{Ft} − F⁻¹)Q₀]⁻¹Q₀ᵀe^{Ft} (Braun 2022, Dominé 2025).

    Parameters
    ----------
    times : Tensor (T,)
        Euclidean flow time on (W₁, W₂).
    W1 : Tensor (h, n_in)
    W2 : Tensor (n_out, h)
    target : Tensor (n_out, n_in)

    Returns
    -------
    Tensor (T, n_in + n_out, n_in + n_out)
        QQᵀ: blocks W₁ᵀW₁, (W₂W₁)ᵀ; W₂W₁, W₂W₂ᵀ. The end-to-end map is ``[:, n_in:, :n_in]``.

    Raises
    ------
    ValueError
        If the layers are not λ-balanced.
    """
    law = W2.mT @ W2 - W1 @ W1.mT
    lam = law.diagonal().mean()
    deviation = float((law - lam * torch.eye(len(law)).to(law)).abs().max())
    if deviation > 1e-9 * (1 + float(law.abs().max())):
        raise ValueError(f"W1 and W2 must be λ-balanced, W2ᵀW2 − W1W1ᵀ = λI, got a deviation of {deviation:.3g}")
    n_out, n_in = target.shape
    half = lam / 2
    top = torch.cat((-half * torch.eye(n_in).to(target), target.mT), 1)
    bottom = torch.cat((target, half * torch.eye(n_out).to(target)), 1)
    rates, basis = torch.linalg.eigh(torch.cat((top, bottom), 0))
    Q = basis.mT @ torch.cat((W1.mT, W2), 0)
    fastest = float(rates.abs().max())
    result, reached = [], 0.0
    for t in times.tolist():
        # QQᵀ follows an autonomous equation: the solution is applied in steps short enough for e^{Ft} to be tame.
        steps = max(1, math.ceil(fastest * (t - reached) / 4))
        for _ in range(steps):
            Q = _two_layer_step(rates, Q, (t - reached) / steps)
        reached = t
        result.append(basis @ Q @ Q.mT @ basis.mT)
    return torch.stack(result)


def _two_layer_step(rates: Tensor, Q: Tensor, t: float) -> Tensor:
    """A factor of QQᵀ after time t, in the eigenbasis of F: e^{Ft} Q C⁻ᵀ with CCᵀ the bracket of the solution."""
    still = rates.abs() * t < 1e-9
    growth = torch.where(still, 2 * t, torch.expm1(2 * rates * t) / torch.where(still, 1.0, rates))
    core = torch.eye(Q.shape[1]).to(Q) + Q.mT @ (growth.unsqueeze(-1) * Q) / 2
    moved = torch.exp(rates * t).unsqueeze(-1) * Q
    return torch.linalg.solve_triangular(torch.linalg.cholesky(core), moved.mT, upper=False).mT


def _limit_time(sigma: float, tau: float) -> float:
    """A primitive of 1/(σ²(τ − σ))."""
    if tau == 0:
        return 1 / (2 * sigma**2)
    return np.log(sigma / abs(tau - sigma)) / tau**2 - 1 / (tau * sigma)


def _layers_time(sigma: float, tau: float, L: int) -> float:
    """A primitive of 1/(L σ^{2−2/L}(τ − σ)), L >= 2, by partial fractions in w = σ^{1/L} over the roots r of rᴸ = τ."""
    if tau == 0:
        return sigma ** (2 / L - 2) / (2 * L - 2)
    w = sigma ** (1 / L)
    angles = (2 * np.arange(L) + (tau < 0)) * np.pi / L
    roots = abs(tau) ** (1 / L) * np.exp(1j * angles)
    gaps = 1 - w / roots
    if tau > 0:
        gaps[0] = abs(np.expm1(np.log(sigma / tau) / L))  # the positive root, which σ approaches
    logs = float((roots**2 * np.log(gaps)).sum().real) / (L * tau)
    return ((np.log(w) if L == 2 else w ** (2 - L) / (2 - L)) - logs) / tau


def _modes(times: Tensor, sigma0: Tensor, tau: Tensor, primitive: Callable[[float, float], float]) -> Tensor:
    """Inverts t = primitive(σ(t)) − primitive(σ(0)) for every time and mode, in log|σ − τ| near the target."""
    for name, value in (("times", times), ("sigma0", sigma0), ("tau", tau)):
        float_tensor(name, value, ndim=1)
    columns = [
        [_invert(real("times", t), positive("sigma0", s), target, primitive) for t in times.tolist()]
        for s, target in zip(sigma0.tolist(), tau.tolist(), strict=True)
    ]
    return torch.tensor(columns, dtype=torch.float64).mT


def _invert(t: float, start: float, tau: float, primitive: Callable[[float, float], float]) -> float:
    if t < 0:
        raise ValueError(f"times must be >= 0, got {t}")
    if t == 0 or start == tau:
        return start
    origin = primitive(start, tau)
    if tau > 0:
        # σ = τ + (start − τ) e^{−u}, u >= 0: the distance to the target keeps its relative accuracy.
        def late(u: float) -> float:
            return primitive(tau + (start - tau) * np.exp(-u), tau) - origin - t

        top = 1.0
        while top < 30 and late(top) < 0:
            top *= 2
        if late(min(top, 30.0)) < 0:
            return tau
        return tau + (start - tau) * float(np.exp(-brentq(late, 0, min(top, 30.0), xtol=1e-15, rtol=1e-15)))

    def decayed(u: float) -> float:
        return primitive(start * np.exp(-u), tau) - origin - t

    top = 1.0
    while top < 700 and decayed(top) < 0:
        top *= 2
    if decayed(top) < 0:
        return 0.0  # below the smallest positive float
    return start * float(np.exp(-brentq(decayed, 0, top, xtol=1e-15, rtol=1e-15)))
