"""What a kernel is, and where kernels are filed by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import floating, follows
from ..modes import hidden
from ..promises import Once, Source, denied, kind
from ..registry import Registry


class Kernel(Protocol):
    """What a kernel promises.

    1. `kernel(sigma)` maps singular values `(..., d)`, all >= 0, to K `(..., d, d)`, symmetric and >= 0, whatever their
       order; where two are equal, K_aa = K_ab.
    2. `positive_determinant` is True where its flow exists for det z > 0 only.

    This is measured when a flow is made of it, once for each kernel.

    Where it is known, `slope(sigma)` is ∂K_ab/∂σ_a `(..., d, d)`, where a = b half the derivative of K_aa: with it
    stiff methods have the Jacobian of a flow that is integrated in z itself. `near_zero` says in words as what a
    singular value near 0 counts in K; without it a warning of one that is round-off does without these words.
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


# Kernels that need nothing to be made, by name: () → Kernel.
KERNELS: Registry[Callable[[], Kernel]] = Registry("kernel")


PASSED = Once()


def check_kernel(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` follows `Kernel`, of which what it does is measured once."""
    follows(name, value, "a kernel", "LogMean()", ("positive_determinant", "__call__"))
    if value not in PASSED:
        _check_values_of(f"{name} {type(value).__name__}", value)
        PASSED.add(value)


# Singular values of three maps: apart, two equal ones, and one that is zero.
_SIGMA = ((2.0, 0.7, 0.3), (1.3, 1.3, 0.4), (1.0, 0.5, 0.0))
_NEAR = 0.02  # by which singular values are moved, to look at slopes


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
    if callable(getattr(kernel, "slope", None)):
        _check_slope(name, kernel, sigma[0])


def _check_slope(name: str, kernel: Any, sigma: Tensor) -> None:
    """Raises unless `slope` is that of K, from dK_ab = slope_ab dσ_a + slope_ba dσ_b: else steps shrink to nothing."""
    source = Source(sigma.dtype, sigma.device)
    try:
        S = kernel.slope(sigma)
    except Exception as error:
        raise ValueError(
            f"{name} has a slope that raises {type(error).__name__}: {error}; mend it (derivatives are off where it is "
            f"asked for), or leave it out"
        ) from error
    if not isinstance(S, Tensor) or S.shape != (3, 3):
        got = tuple(S.shape) if isinstance(S, Tensor) else type(S).__name__
        raise ValueError(f"{name} must have slopes (..., d, d) for sigma (..., d), got {got} for sigma (3,)")
    dual = source(3, 3)
    dual = dual + dual.mT

    def change(at: Tensor, along: Tensor) -> Tensor:
        return 2 * (dual * kernel.slope(at) * along.unsqueeze(-1)).sum()

    found = denied(lambda at: (dual * kernel(at)).sum(), change, sigma, [_NEAR], source)
    if found is not None:
        raise ValueError(
            f"{name} has a slope that is not ∂K_ab/∂σ_a of its K: {found}; mend it, or leave it out (with a = b it is "
            f"half the derivative of K_aa)"
        )


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


def check_values(sigma: Tensor) -> None:
    """Raises unless sigma are singular values `(..., d)`: cheap enough for every call. NaN passes, as it does in z."""
    floating("sigma", sigma)
    if sigma.ndim == 0 or sigma.numel() == 0:
        raise ValueError(f"sigma must have shape (..., d) with d >= 1, got {tuple(sigma.shape)}")
    if not hidden(sigma) and bool((sigma < 0).any()):
        raise ValueError(f"sigma must be >= 0, got {float(sigma.min()):.6g}; singular values have no sign")
