"""Closed-form solutions: the truth that tests and studies compare with. Float64 throughout.

`saxe` can be differentiated, `two_layer` in all but its times; what is found number by number refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from .checks import count, float_tensor, underived


def aligned_limit(times: Tensor, sigma0: Tensor, tau: Tensor) -> Tensor:
    """Infinite depth, f = ½‖z − T‖², z₀ and T with the same singular vectors: σ' = σ²(τ − σ), mode by mode.

    Solved from t = [τ⁻² log(σ/(τ−σ)) − 1/(τσ)] between σ(0) and σ(t) (arXiv 2508.07370), computed as an integral in
    which nothing cancels.

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
    return _modes(times, sigma0, tau, lambda t, start, target: _mode(t, start, target, 1.0, 2.0))


def aligned_layers(times: Tensor, sigma0: Tensor, tau: Tensor, depth: int) -> Tensor:
    """L balanced layers, aligned with the target: σ' = L σ^{2−2/L}(τ − σ), in Euclidean flow time on the layers.

    Solved from t = ∫dσ / (L σ^{2−2/L}(τ − σ)), by quadrature in a variable in which nothing cancels (Saxe 2014 for
    L = 2; Arora–Cohen–Hazan 2018 for the equation). Multiply times by 1/L for the time of `FiniteFlow`:
    σ_FiniteFlow(t) = σ(t/L).

    Parameters
    ----------
    times : Tensor (T,)
    sigma0, tau : Tensor (d,)
    depth : int
        L >= 1.

    Returns
    -------
    Tensor (T, d)
        σ(t), with a relative error below 1e-14 (1 + κ), κ as in `aligned_limit`, for any number of layers.

    Examples
    --------
    >>> times, sigma0, tau = torch.tensor([0.0, 0.7]), torch.tensor([1.0]), torch.tensor([2.0])
    >>> two = nf.exact.aligned_layers(times, sigma0, tau, depth=2)
    >>> bool(torch.allclose(two, nf.exact.saxe(times, sigma0, tau), rtol=1e-14))
    True
    """
    if count("depth", depth) == 1:
        _check_modes(times, sigma0, tau)
        t = times.double()[:, None]  # linear: the only depth at which σ can cross zero
        return sigma0.double() * torch.exp(-t) - tau.double() * torch.expm1(-t)
    return _modes(times, sigma0, tau, lambda t, start, target: _mode(t, start, target, depth, 2 - 2 / depth))


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
    # 1/σ = (1 − e^{−2τt})/τ + e^{−2τt}/σ₀: no overflow below a target far away. The first tends to 2t at τ = 0.
    still = (target * t).abs() < 1e-20
    grown = torch.where(still, 2 * t, -torch.expm1(-2 * (target * t)) / torch.where(target == 0, 1.0, target))
    root = torch.exp(-target * t)
    return torch.where(t == 0, start, 1 / (grown + root / start * root))


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
    underived("times", times, "the steps are chosen")
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
    fastest = float(rates.detach().abs().max())
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


# Beyond this ratio of σ and |τ| the smaller one is below round-off of the larger, and the equation is that of a power.
_APART = 1e20
# Gauss–Legendre on panels of length 2: what is integrated is analytic up to a distance π from the real axis.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def _mode(t: float, start: float, tau: float, rate: float, a: float) -> float:
    """σ(t) of σ' = rate · σᵃ (τ − σ), 1 <= a <= 2."""
    size = abs(tau)
    if start > _APART * size:
        far = _fallen(_product(a, rate, t, start, start ** (a - 1)), (a, rate, t), start, a)
        if far >= _APART * size:
            return far
        border = _APART * size
        with np.errstate(over="ignore"):
            passed = float((np.float64(border) ** -a - np.float64(start) ** -a) / (a * rate))
        t, start = max(0.0, t - passed), border
    if start < size / _APART:
        return _from_far_below(t, start, tau, rate, a)
    return _between(t, start, tau, rate, a)


def _from_far_below(t: float, start: float, tau: float, rate: float, a: float) -> float:
    """σ(t) from σ(0) ≪ |τ|: σ' = rate · σᵃ τ while it is small."""
    b = a - 1
    span = _product(rate, abs(tau), t, start**b)
    if tau < 0:
        if b == 0:
            return start * math.exp(-span / 2) * math.exp(-span / 2)
        return _fallen(b * span, (b, rate, -tau, t), start, b)
    border = tau / _APART
    doublings = math.log(border) - math.log(start)
    passed = -math.expm1(-b * doublings) / b if b else doublings
    if span <= passed:
        return start * (math.exp(span / 2) * math.exp(span / 2) if b == 0 else (1 - b * span) ** (-1 / b))
    return _between(t * (1 - passed / span), border, tau, rate, a)


def _fallen(fall: float, factors: tuple[float, ...], start: float, power: float) -> float:
    """start · (1 + fall)^{−1/power}, fall = the product of the factors and start^power, which may be out of range."""
    if fall < 1e20:
        return float(start * (1 + fall) ** (-1 / power))
    rest = _product(*factors)
    return 0.0 if rest == math.inf else float(rest ** (-1 / power))


def _between(t: float, start: float, tau: float, rate: float, a: float) -> float:
    """σ(t) while σ/|τ| is a number of moderate size: the time is an integral of what has one sign and is smooth.

    In the unit |τ|, and of a variable e that falls to 0: the odds (τ − σ)/σ below the target, the distance σ − τ above
    it, σ itself above a target below 0. With e = e(0) e^{−s} the time is an integral over s of (1 + e)^{a − 1},
    (1 + e)^{−a} and e^{1 − a}/(1 + e). It is taken from the end at which it is largest.
    """
    size = abs(tau)
    span = _product(rate, t, size, size ** (a - 1))
    if span == 0:
        return start
    below = start < tau
    first = (tau - start) / start if below else (start - tau) / size if tau > 0 else start / size

    def pace(e: Any) -> Any:
        return (1 + e) ** (a - 1) if below else (1 + e) ** -a if tau > 0 else e ** (1 - a) / (1 + e)

    def elapsed(s: float, last: float) -> float:
        panels = max(1, math.ceil(s / 2))
        half = s / panels / 2
        at = half * (2 * np.arange(panels)[:, None] + 1 + _NODES)
        return half * float((_WEIGHTS * pace(first * np.exp(-at) if below else last * np.exp(at))).sum())

    def late(s: float) -> float:
        return elapsed(s, first * math.exp(-s)) - span

    def sigma(e: float) -> float:
        return tau / (1 + e) if below else tau + size * e if tau > 0 else size * e

    most = max(0.0, math.log(first * _APART))
    beyond = late(most) <= 0
    if beyond and tau > 0:
        return tau
    if beyond:
        whole = elapsed(most, 1 / _APART)
        return _from_far_below(t * (1 - whole / span), size / _APART, tau, rate, a)
    s = float(brentq(late, 0.0, most, xtol=1e-15, rtol=1e-15))
    last = first * math.exp(-s)
    return sigma(last * math.exp((elapsed(s, last) - span) / pace(last)))


def _product(*factors: float) -> float:
    """Their product, of which no part leaves the range of numbers before the whole does."""
    mantissa, exponent = 1.0, 0
    for factor in factors:
        part, shift = math.frexp(factor)
        mantissa, exponent = mantissa * part, exponent + shift
    try:
        return math.ldexp(mantissa, exponent)
    except OverflowError:
        return math.inf


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
    for name, value in (("times", times), ("sigma0", sigma0), ("tau", tau)):
        underived(name, value, "this solution is found")
    _check_modes(times, sigma0, tau)
    columns = [
        [start if t == 0 or start == target else mode(t, start, target) for t in times.tolist()]
        for start, target in zip(sigma0.tolist(), tau.tolist(), strict=True)
    ]
    return torch.tensor(columns, dtype=torch.float64, device="cpu").mT
