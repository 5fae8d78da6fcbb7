"""Closed-form solutions: the truth that tests and studies compare with. Float64 throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import wrightomega
from torch import Tensor

from .checks import count, float_tensor


def aligned_limit(times: Tensor, sigma0: Tensor, tau: Tensor) -> Tensor:
    """Infinite depth, f = ½‖z − T‖², z₀ and T with the same singular vectors: σ' = σ²(τ − σ), mode by mode.

    Solved from t = [τ⁻² log(σ/(τ−σ)) − 1/(τσ)] between σ(0) and σ(t) (arXiv 2508.07370); below the target that
    is inverted by Wright's omega function, σ = τ/(1 + ω).

    Parameters
    ----------
    times : Tensor (T,)
        Times >= 0, in the flow time of `ContinuousFlow`.
    sigma0, tau : Tensor (d,)
        Singular values of z₀ (> 0) and of the target in the same basis (of any sign; τ <= 0 cannot be reached).

    Returns
    -------
    Tensor (T, d)
        σ(t). Its relative error is below 1e-15 (1 + κ), with κ the condition of the question: of relative changes of t,
        σ(0) and τ into that of σ(t). κ is of size 1 but for a start far below its target, σ(0) ≪ τ: while σ escapes,
        at t ≈ 1/(τ σ(0)), it is up to τ/(4σ(0)), and no arithmetic gives more than that leaves (checked against 70
        digits in tests/test_exact.py).

    Examples
    --------
    >>> sigma = nf.exact.aligned_limit(torch.tensor([0.0, 10.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]))
    >>> sigma[0].tolist(), bool((2 - sigma[1]).abs().max() < 1e-12)
    ([1.0, 2.0], True)
    """
    return _modes(times, sigma0, tau, _limit_mode)


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

    Examples
    --------
    >>> times, sigma0, tau = torch.tensor([0.0, 0.7]), torch.tensor([1.0]), torch.tensor([2.0])
    >>> two = nf.exact.aligned_layers(times, sigma0, tau, depth=2)
    >>> bool(torch.allclose(two, nf.exact.saxe(times, sigma0, tau), rtol=1e-14))
    True
    """
    if count("depth", depth) == 1:
        _check_modes(times, sigma0, tau)
        start, target = sigma0.double(), tau.double()
        return (
            target + (start - target) * torch.exp(-times.double())[:, None]
        )  # linear: the only depth at which σ can cross zero
    return _modes(times, sigma0, tau, lambda t, start, target: _layers_mode(t, start, target, depth))


def saxe(times: Tensor, sigma0: Tensor, tau: Tensor) -> Tensor:
    """Two balanced layers, aligned: σ(t) = τ e^{2τt} / (e^{2τt} − 1 + τ/σ₀), in Euclidean flow time (Saxe 2014).

    Parameters
    ----------
    times : Tensor (T,)
    sigma0, tau : Tensor (d,)

    Returns
    -------
    Tensor (T, d)

    Examples
    --------
    >>> nf.exact.saxe(torch.tensor([0.0, 50.0]), torch.tensor([0.1]), torch.tensor([2.0])).flatten().tolist()
    [0.1, 2.0]
    """
    _check_modes(times, sigma0, tau)
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
        Euclidean flow time on (W₁, W₂), >= 0 and never less than the one before.
    W1 : Tensor (h, n_in)
    W2 : Tensor (n_out, h)
    target : Tensor (n_out, n_in)

    Returns
    -------
    Tensor (T, n_in + n_out, n_in + n_out)
        QQᵀ: blocks W₁ᵀW₁, (W₂W₁)ᵀ; W₂W₁, W₂W₂ᵀ. The end-to-end map is ``[:, n_in:, :n_in]``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a finite floating-point tensor of its shape, the times decrease, or the layers are not
        λ-balanced.

    Examples
    --------
    >>> W1 = W2 = torch.eye(2)
    >>> QQ = nf.exact.two_layer(torch.tensor([0.0, 20.0]), W1, W2, target=torch.diag(torch.tensor([2.0, 3.0])))
    >>> bool(torch.allclose(QQ[-1, 2:, :2], torch.diag(torch.tensor([2.0, 3.0]))))
    True
    """
    _check_times(times)
    if bool((times.diff() < 0).any()):
        raise ValueError("times must not decrease, got a later one before an earlier one; sort them")
    for name, matrix in (("W1", W1), ("W2", W2), ("target", target)):
        if float_tensor(name, matrix, ndim=2).ndim != 2:
            raise ValueError(f"{name} must have 2 axes, got shape {tuple(matrix.shape)}")
    W1, W2, target = W1.double(), W2.double(), target.double()
    if W2.shape[1] != W1.shape[0]:
        raise ValueError(f"W2 must have shape (n_out, {W1.shape[0]}) to follow W1, got {tuple(W2.shape)}")
    if target.shape != (len(W2), W1.shape[1]):
        raise ValueError(f"target must have the shape of W2 W1, {(len(W2), W1.shape[1])}, got {tuple(target.shape)}")
    law = W2.mT @ W2 - W1 @ W1.mT
    lam = law.diagonal().mean()
    deviation = float((law - lam * torch.eye(len(law), dtype=law.dtype, device=law.device)).abs().max())
    if deviation > 1e-9 * (1 + float(law.abs().max())):
        raise ValueError(f"W1 and W2 must be λ-balanced, W2ᵀW2 − W1W1ᵀ = λI, got a deviation of {deviation:.3g}")
    n_out, n_in = target.shape
    half = lam / 2
    top = torch.cat((-half * torch.eye(n_in, dtype=target.dtype, device=target.device), target.mT), 1)
    bottom = torch.cat((target, half * torch.eye(n_out, dtype=target.dtype, device=target.device)), 1)
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
    still = rates == 0
    growth = torch.where(still, 2 * t, torch.expm1(2 * rates * t) / torch.where(still, 1.0, rates))
    core = torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device) + Q.mT @ (growth.unsqueeze(-1) * Q) / 2
    moved = torch.exp(rates * t).unsqueeze(-1) * Q
    return torch.linalg.solve_triangular(torch.linalg.cholesky(core), moved.mT, upper=False).mT


# Above this ratio of σ to |τ| a primitive is summed as a series in τ/σ; its closed form would cancel.
_FAR = 2.0


def _limit_time(sigma: float, tau: float) -> float:
    """A primitive of 1/(σ²(τ − σ)) for σ > τ, as g(τ/σ)/σ² with g(q) = −(log(1 − q) + q)/q²."""
    q = tau / sigma
    if _FAR * abs(q) < 1:
        return _series(q, 2.0) / sigma**2
    with np.errstate(divide="ignore"):  # σ = τ is reached at t = ∞
        return -(float(np.log((sigma - tau) / sigma)) + q) / tau**2


def _layers_time(sigma: float, tau: float, L: int) -> float:
    """A primitive of 1/(L σ^{2−2/L}(τ − σ)), L >= 2, by partial fractions in w = σ^{1/L} over the roots r of rᴸ = τ."""
    w = sigma ** (1 / L)
    angles = (2 * np.arange(L) + (tau < 0)) * np.pi / L
    roots = abs(tau) ** (1 / L) * np.exp(1j * angles)
    gaps = 1 - w / roots
    if tau > 0:
        gaps[0] = abs(np.expm1(np.log(sigma / tau) / L))  # the positive root, which σ approaches
    with np.errstate(divide="ignore", invalid="ignore"):  # σ = τ is reached at t = ∞
        logs = float((roots**2 * np.log(gaps)).sum().real) / (L * tau)
    return ((np.log(w) if L == 2 else w ** (2 - L) / (2 - L)) - logs) / tau


def _far_layers_time(sigma: float, tau: float, L: int) -> float:
    """Another primitive of the same, for σ > 2|τ|: σ^{−a}/L Σ_n (τ/σ)ⁿ/(a + n) with a = 2 − 2/L."""
    a = 2 - 2 / L
    return _series(tau / sigma, a) * sigma**-a / L


def _series(q: float, a: float) -> float:
    """Σ_n qⁿ/(a + n) to round-off, for |q| <= 1/2."""
    n = np.arange(56)
    return float((q**n / (a + n)).sum())


def _layers_elapsed(start: float, sigma: float, tau: float, L: int) -> float:
    """The time that σ takes from start to sigma; far above the target by the series, near it by partial fractions."""
    border = _FAR * abs(tau)
    if start <= border:
        return _layers_time(sigma, tau, L) - _layers_time(start, tau, L)
    if sigma >= border:
        return _far_layers_time(sigma, tau, L) - _far_layers_time(start, tau, L)
    far = _far_layers_time(border, tau, L) - _far_layers_time(start, tau, L)
    return far + _layers_time(sigma, tau, L) - _layers_time(border, tau, L)


def _limit_mode(t: float, start: float, tau: float) -> float:
    """σ(t) at infinite depth."""
    if 0 < start < tau:
        # With v = log(σ/(τ − σ)) the time is (v − e^{−v})/τ²: Wright's omega function inverts it.
        odds = (tau - start) / start
        return tau / (1 + float(wrightomega(odds + np.log(odds) - tau**2 * t)))
    return _decay(t, start, tau, lambda sigma: _limit_time(sigma, tau) - _limit_time(start, tau))


def _layers_mode(t: float, start: float, tau: float, L: int) -> float:
    """σ(t) of L >= 2 balanced layers."""

    def elapsed(sigma: float) -> float:
        return _layers_elapsed(start, sigma, tau, L)

    if not 0 < start < tau:
        return _decay(t, start, tau, elapsed)
    # σ = τ/(1 + e^{−v}): near 0 and near τ alike v keeps the relative accuracy of the distance.
    low = np.log(start / (tau - start))

    def sigma_at(v: float) -> float:
        return tau / (1 + float(np.exp(-v)))

    return sigma_at(_root(lambda v: elapsed(sigma_at(v)) - t, low, max(low, 0.0) + 1.0, 33.0))


def _decay(t: float, start: float, tau: float, elapsed: Callable[[float], float]) -> float:
    """σ(t) from above the target (or above 0, where the target is not positive); elapsed(σ) is the time to reach σ."""
    floor = max(tau, 0.0)

    def sigma_at(u: float) -> float:
        return floor + (start - floor) * float(np.exp(-u))

    # Where e^{−u} times the start is below round-off of the target, or of the smallest number.
    last = 40.0 + max(0.0, float(np.log(start / tau))) if tau > 0 else 700.0
    return sigma_at(_root(lambda u: elapsed(sigma_at(u)) - t, 0.0, 1.0, last))


def _root(late: Callable[[float], float], low: float, high: float, last: float) -> float:
    """The root of an increasing function in [low, last]; the ends stand for what lies beyond them."""

    def bounded(x: float) -> float:
        return min(late(x), 1e300)

    if bounded(low) >= 0:
        return low
    while high < last and bounded(high) < 0:
        high = min(2 * high, last)
    if not bounded(high) > 0:
        return high
    return float(brentq(bounded, low, high, xtol=1e-15, rtol=1e-15))


def _check_times(times: Tensor) -> None:
    if float_tensor("times", times, ndim=1).ndim != 1:
        raise ValueError(f"times must have shape (T,), got {tuple(times.shape)}")
    if bool((times < 0).any()):
        raise ValueError(f"times must be >= 0, got {float(times.min())}")


def _check_modes(times: Tensor, sigma0: Tensor, tau: Tensor) -> None:
    """Raises unless these are times >= 0, singular values above 0, and as many targets."""
    _check_times(times)
    for name, value in (("sigma0", sigma0), ("tau", tau)):
        if float_tensor(name, value, ndim=1).ndim != 1:
            raise ValueError(f"{name} must have shape (d,), got {tuple(value.shape)}")
    if len(sigma0) != len(tau):
        raise ValueError(f"sigma0 and tau must have the same length, got {len(sigma0)} and {len(tau)}")
    if not bool((sigma0 > 0).all()):
        raise ValueError(f"sigma0 must be above 0, got {float(sigma0.min())}")


def _modes(times: Tensor, sigma0: Tensor, tau: Tensor, mode: Callable[[float, float, float], float]) -> Tensor:
    """mode(t, σ₀, τ) for every time and mode, (T, d)."""
    _check_modes(times, sigma0, tau)
    columns = [
        [start if t == 0 or start == target else mode(t, start, target) for t in times.tolist()]
        for start, target in zip(sigma0.tolist(), tau.tolist(), strict=True)
    ]
    return torch.tensor(columns, dtype=torch.float64, device="cpu").mT
