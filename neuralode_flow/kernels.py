"""Kernels K(σ_a, σ_b) of the intrinsic dynamics ż = −U (K ∘ (UᵀGV)) Vᵀ, with z = U diag(σ) Vᵀ."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from .checks import float_tensor, floating, follows, positive, real
from .modes import hidden
from .promises import Once, kind


class Kernel(Protocol):
    """What a kernel promises.

    1. `kernel(sigma)` maps singular values `(..., d)`, all >= 0, to K `(..., d, d)`, symmetric and >= 0, whatever their
       order; where two are equal, K_aa = K_ab.
    2. `positive_determinant` is True where its flow exists for det z > 0 only.

    This is measured when a flow is made of it, once for each kernel.
    """

    positive_determinant: bool

    def __call__(self, sigma: Tensor) -> Tensor: ...


class LogKernel(Kernel, Protocol):
    """What a kernel promises besides, if its flow can never cross det z = 0.

    1. `keeps_sign` is True where that is so.
    2. `log_rate(ell)` maps ℓ = log σ `(..., d)` to the logarithm `(..., d, d)` of
       A_ab = K_ab log(σ_a/σ_b) / (σ_a² − σ_b²), A_aa = K_aa/2σ_a², for any ℓ, also where σ is no number any more:
       with it the flow is integrated in logarithms of the singular values (`LogPolarFlow`).
    """

    @property
    def keeps_sign(self) -> bool: ...

    def log_rate(self, ell: Tensor) -> Tensor: ...


_PASSED = Once()


def check_kernel(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` follows `Kernel`, of which what it does is measured once."""
    follows(name, value, "a kernel", "LogMean()", ("positive_determinant", "__call__"))
    # The library's own are checked by its tests.
    if type(value) not in (LogMean, TwoLayer, DividedDifference) and value not in _PASSED:
        _check_values_of(f"{name} {type(value).__name__}", value)
        _PASSED.add(value)


# Singular values of three maps: apart, two equal ones, and one that is zero.
_SIGMA = ((2.0, 0.7, 0.3), (1.3, 1.3, 0.4), (1.0, 0.5, 0.0))


@torch.no_grad()
def _check_values_of(name: str, kernel: Any) -> None:
    """Raises unless K has the shape, the symmetry and the sign that it must have, and `positive_determinant` holds."""
    sigma = torch.tensor(_SIGMA, **kind(kernel))
    K = kernel(sigma)
    if not isinstance(K, Tensor) or K.shape != (3, 3, 3):
        got = tuple(K.shape) if isinstance(K, Tensor) else type(K).__name__
        raise ValueError(f"{name} must map sigma (..., d) to K (..., d, d), got {got} for sigma (3, 3)")
    if bool(torch.isposinf(K).any()):  # such as 1000 layers with c_k = 1e8: these sigma are not for it
        return
    bound = 1e3 * torch.finfo(K.dtype).eps * float(K.abs().max())
    wrong = {
        "be >= 0": not bool((K >= 0).all()),
        "be symmetric, K_ab = K_ba": not float((K - K.mT).abs().max()) <= bound,
        "give each member of a batch its own K": not float((kernel(sigma[0]) - K[0]).abs().max()) <= bound,
        "not depend on the order of sigma": not float((kernel(sigma.flip(-1)).flip(-1, -2) - K).abs().max()) <= bound,
        # Singular vectors of equal values are any basis of their plane, on which the velocity must not depend.
        "have K_aa = K_ab where sigma_a = sigma_b": not float((K[1, 0] - K[1, 1]).abs().max()) <= bound,
    }
    for promise, broken in wrong.items():
        if broken:
            k = 1 if "K_aa" in promise else 0
            shown = [[round(entry, 6) for entry in row] for row in K[k].tolist()]
            raise ValueError(f"{name} must {promise}, got K = {shown} for sigma = {list(_SIGMA[k])} among others")
    if kernel.positive_determinant:
        _check_boundary(name, kernel, sigma)
    if getattr(kernel, "keeps_sign", False):
        _check_log_rate(name, kernel, sigma[0], K[0])


def _check_log_rate(name: str, kernel: Any, sigma: Tensor, K: Tensor) -> None:
    """Raises unless `log_rate` is that of K: a flow in logarithms would be another one."""
    a, b = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
    ratio = torch.where(a == b, 1 / (2 * a.square()), torch.log(a / b) / (a.square() - b.square()))
    A = torch.exp(kernel.log_rate(torch.log(sigma)))
    if not (A.shape == K.shape and float((A / (K * ratio) - 1).abs().max()) <= torch.finfo(K.dtype).eps ** 0.5):
        raise ValueError(
            f"{name} must have log_rate = log(K_ab log(σ_a/σ_b) / (σ_a² − σ_b²)), got {A.log().tolist()} for sigma = "
            f"{sigma.tolist()}; leave keeps_sign out, or give the rate of K"
        )


def _check_boundary(name: str, kernel: Any, sigma: Tensor) -> None:
    """σ' = −K_aa g reaches 0 in finite time unless K_aa falls with σ, up to a logarithm: so does the determinant."""
    small = torch.finfo(sigma.dtype).tiny ** 0.45
    near, far = (float(kernel(torch.full_like(sigma[0, :1], value))[0, 0]) / value for value in (small, small**0.1))
    if not near <= 1e3 * max(far, float(kernel(torch.ones_like(sigma[0, :1]))[0, 0])):
        raise ValueError(
            f"{name} declares positive_determinant = True, but K_aa = {near * small:.3g} at sigma_a = {small:.3g} does "
            f"not fall with sigma_a, and the flow crosses det z = 0; declare positive_determinant = False"
        )


def _check_values(sigma: Tensor) -> None:
    """Raises unless sigma are singular values `(..., d)`: cheap enough for every call. NaN passes, as it does in z."""
    floating("sigma", sigma)
    if sigma.ndim == 0 or sigma.numel() == 0:
        raise ValueError(f"sigma must have shape (..., d) with d >= 1, got {tuple(sigma.shape)}")
    if not hidden(sigma) and bool((sigma < 0).any()):
        raise ValueError(f"sigma must be >= 0, got {float(sigma.min()):.6g}; singular values have no sign")


def log_logmean(ell: Tensor) -> Tensor:
    """log logmean(x_a, x_b) of x = e^ℓ, (x_a − x_b)/(ℓ_a − ℓ_b): `(..., n)` → `(..., n, n)`. No x is formed."""
    a, b = ell.unsqueeze(-1), ell.unsqueeze(-2)
    r = (a - b).abs()
    return torch.maximum(a, b) + torch.where(r > 0, torch.log(-torch.expm1(-r) / r), 0.0)


class LogMean:
    """Infinite depth under relaxed balance: K_ab = logmean(σ_a², σ_b²), K_aa = σ_a².

    Written as hi² (1 − e^{−2r}) / (2r) with hi the larger of the two and r = log(hi/lo), which holds near r = 0 and at
    σ = 0 alike (Marcotte–Peyré–Gribonval, arXiv 2508.07370; docs/math.md).
    """

    positive_determinant = True
    keeps_sign = True

    def log_rate(self, ell: Tensor) -> Tensor:
        """A = ½: on symmetric S = log(zᵀz)/2 the flow is S' = −½(zᵀG + Gᵀz)."""
        return ell.new_full((*ell.shape, ell.shape[-1]), -math.log(2))

    def __call__(self, sigma: Tensor) -> Tensor:
        _check_values(sigma)
        a, b = sigma.unsqueeze(-1), sigma.unsqueeze(-2)
        hi, lo = torch.maximum(a, b), torch.minimum(a, b)
        ratio = (hi - lo) / lo
        r = torch.where(torch.isinf(ratio), torch.log(hi) - torch.log(lo), torch.log1p(ratio))
        twice_r = torch.where(hi == lo, 0.0, 2 * r)  # infinite where lo = 0, and K is 0 there
        ratio = torch.where(twice_r > 0, -torch.expm1(-twice_r) / twice_r, 1.0)
        return hi.square() * ratio


class TwoLayer:
    """Two λ-balanced layers, W₂ᵀW₂ − W₁W₁ᵀ = λI: K_ab = √(σ_a² + λ²/4) + √(σ_b² + λ²/4).

    Flow time is that of Euclidean gradient flow on (W₁, W₂).

    Parameters
    ----------
    shift : float
        λ, of either sign.
    """

    positive_determinant = False

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = real("shift", shift)

    @property
    def keeps_sign(self) -> bool:
        """Two balanced layers, λ = 0, become singular together, and then do not move across det z = 0."""
        return self.shift == 0

    def log_rate(self, ell: Tensor) -> Tensor:
        """A_ab = 1/logmean(σ_a, σ_b), for λ = 0."""
        return -log_logmean(ell)

    def __call__(self, sigma: Tensor) -> Tensor:
        _check_values(sigma)
        # No square, which would vanish below 1e-162; without λ also differentiable at σ = 0.
        root = torch.hypot(sigma, sigma.new_tensor(self.shift / 2)) if self.shift else sigma
        return root.unsqueeze(-1) + root.unsqueeze(-2)


class DividedDifference:
    """L relaxed balanced layers: K_ab = (p(x_a) − p(x_b))/(x_a − x_b), p(x) = Π_k (x + c_k), p(x_a) = σ_a².

    The difference is never formed: with p telescoped over its factors every term is positive, so that K keeps its
    relative accuracy for equal and for far apart singular values. Up to L = 1e5 it was within 4e-13 of 50 digits for σ
    from 1e-3 to 1e3 (tests/flows/test_intrinsic.py), and within 1e-11 near the ends of the floating-point range.

    Parameters
    ----------
    shifts : Tensor (L,)
        c_k = λ_1 + … + λ_{k−1}, c_1 = 0. (Adding one number to all of them changes nothing.)
    time_scale : float
        The velocity is multiplied by it. 1 is Euclidean gradient flow on the layers; 1/L is the time of
        `FiniteFlow` and of the limit.

    Raises
    ------
    TypeError, ValueError
        If shifts is not a finite floating-point vector or time_scale not a positive number.
    """

    positive_determinant = False

    def __init__(self, shifts: Tensor, time_scale: float = 1.0) -> None:
        self.shifts = float_tensor("shifts", shifts, ndim=1)
        if shifts.ndim != 1:
            raise ValueError(f"shifts must have shape (L,), got {tuple(shifts.shape)}")
        if not bool(torch.isfinite(shifts.max() - shifts.min())):
            raise ValueError(
                f"shifts have no admissible root in {shifts.dtype}: they span {shifts.min():.3g} to {shifts.max():.3g}"
            )
        self.time_scale = positive("time_scale", time_scale)

    @property
    def keeps_sign(self) -> bool:
        """Whether the least c_k is attained at least twice: those layers become singular together."""
        return bool((self.shifts == self.shifts.min()).sum() > 1)

    def log_rate(self, ell: Tensor) -> Tensor:
        """A_ab = ½ Σ_k 1/logmean(x_a + c_k, x_b + c_k) times the time scale, one term for equal c_k."""
        shifts, layers = torch.unique(self.shifts.to(ell), return_counts=True)
        logs = _log_factors(2 * ell, shifts, layers.to(ell)).mT  # (..., number of shifts, d)
        terms = torch.log(layers.to(ell))[:, None, None] - log_logmean(logs)
        return torch.logsumexp(terms, dim=-3) + math.log(self.time_scale / 2)

    def __call__(self, sigma: Tensor) -> Tensor:
        _check_values(sigma)
        shifts = self.shifts.to(sigma)
        logs = log_factors(sigma, shifts)  # (..., d, L)
        top = logs.amax(-2, keepdim=True)
        # Σ_k Π_{j<k}(x_a + c_j) Π_{j>k}(x_b + c_j), each factor divided by that of the largest singular value, so that
        # no partial product leaves [0, 1].
        relative, total = _relative(logs, top, sigma)
        with_own = _running_sum(relative)
        before, after = with_own - relative, with_own[..., -1:] - with_own
        K = torch.exp(before - top + total) @ torch.exp(after).mT
        return self.time_scale * (K + K.mT) / 2


# Up to so many layers L round-offs are few, and the plain formulas cost two thirds of the careful ones.
_SHALLOW = 64


def _relative(logs: Tensor, top: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """log (x_a + c_k)/(x + c_k) for the largest root x, and 2 log σ of that one: `(..., d, L)` and `(..., 1, 1)`.

    In deep networks each is of size 1/L, and the difference of two logarithms would leave the sum with L round-offs. It
    is log(1 − q) with q = (x − x_a)/(x + c_k), and what the sum over k must be, 2 log σ_a/σ, is known.
    """
    if logs.shape[-1] <= _SHALLOW:
        return logs - top, top.sum(-1, keepdim=True)
    goal = 2 * torch.log(sigma.clamp(min=torch.finfo(sigma.dtype).tiny)).unsqueeze(-1)
    total = goal.amax(-2, keepdim=True)
    smallest, largest = logs.amin(-1, keepdim=True), top.amin(-1, keepdim=True)  # log(x_a + min c), log(x + min c)
    q = torch.exp(largest - top) * -torch.expm1(smallest - largest)
    relative = torch.where(q < 0.5, torch.log1p(-q.clamp(max=0.5)), logs - top)
    slopes = torch.exp(smallest - logs)
    excess = relative.sum(-1, keepdim=True) - (goal - total)
    return relative - slopes * (excess / slopes.sum(-1, keepdim=True)), total


def _running_sum(values: Tensor) -> Tensor:
    """`cumsum` along the last axis with √L round-offs in place of L: of parts, and of their sums."""
    L = values.shape[-1]
    if L <= _SHALLOW:
        return torch.cumsum(values, -1)
    size = math.isqrt(L)
    parts = torch.nn.functional.pad(values, (0, -L % size)).unflatten(-1, (-1, size))
    within = torch.cumsum(parts, -1)
    ends = within[..., -1]
    return (within + (torch.cumsum(ends, -1) - ends).unsqueeze(-1)).flatten(-2)[..., :L]


def log_factors(sigma: Tensor, shifts: Tensor) -> Tensor:
    """log(x_a + c_k) for the root x_a > −min c of Π_k (x + c_k) = σ_a².

    With y = log(x + min c) the equation Σ_k log(eʸ + c_k − min c) = 2 log σ is increasing and convex in y, and Newton's
    method comes down to the root monotonically once it is right of it. (2 log σ)/L is. Where the shifts are small, as
    in deep networks, the root for their mean in place of each is closer; it is on the left, and one step leads across.

    Parameters
    ----------
    sigma : Tensor (..., d)
        Singular values; zero is moved to the smallest positive number.
    shifts : Tensor (L,)

    Returns
    -------
    Tensor (..., d, L)
    """
    goal = 2 * torch.log(sigma.clamp(min=torch.finfo(sigma.dtype).tiny))
    return _log_factors(goal, shifts, torch.ones_like(shifts))


def _log_factors(goal: Tensor, shifts: Tensor, layers: Tensor) -> Tensor:
    """`log_factors` for log σ² = `goal`, with `layers` (n,) counting those of each shift (n,): `(..., d, n)`."""
    gaps, number = shifts - shifts.min(), layers.sum()
    log_gaps = torch.log(gaps)
    y = goal / number
    excess = (gaps * layers).sum() / number * torch.exp(-y)
    y = torch.where(excess < 0.5, y + torch.log1p(-excess.clamp(max=0.5)), y)
    small, unseen = torch.finfo(goal.dtype).eps ** 0.5, hidden(goal) or hidden(shifts)
    for _ in range(100):
        logs = torch.logaddexp(y.unsqueeze(-1), log_gaps)
        slopes = torch.exp(y.unsqueeze(-1) - logs)
        step = (((layers * logs).sum(-1) - goal) / (layers * slopes).sum(-1)).unsqueeze(-1)
        # All second derivatives are at most 1/4, so that the square of a small step is below round-off.
        if not (unseen or float(step.detach().abs().max()) > small):
            break
        y = y - step.squeeze(-1)
    return logs - step * slopes
