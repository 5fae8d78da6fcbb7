"""Layer rules: how one layer of a finite network moves X by W_k over the depth 1/L.

A rule maps A = W_k / L to the layer U = rule(A). Euler: I + A. RK2: I + A + A²/2. Cayley: (I − A/2)⁻¹(I + A/2).
Exponential: exp(A). The convergence orders in 1/L are 1, 2, 2, 2 with midpoint sampling.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import follows
from ..matrices import inverse
from ..modes import hidden
from ..registry import Registry
from . import kernel
from .chain import add_identity, identity_like
from .products import multiply
from .promises import check_promises, passed


class LayerRule(Protocol):
    """What a layer rule promises, for A of shape `(..., L, d, d)`.

    1. `layer(A)` gives U = rule(A) and whatever `adjoint` wants to reuse; U is differentiable by autograd.
       A layer depends on its own A alone.
    2. `adjoint(A, saved, M)`, if it has one, is the gradient of tr(MᵀU) with respect to A, exact to round-off. Autograd
       through `layer` takes its place where there is none.
    3. `order` is the order of convergence in 1/L with midpoint sampling. A rule sees one W_k, the middle of its part of
       the depth, which tells the integral of W over it to order 2: so that is the highest.
    4. `quadratic_law` is True where L²(U_{k+1}ᵀU_{k+1} − U_kU_kᵀ) is conserved exactly by the training flow.

    What can be measured of a rule alone is, at its first use in a flow; the order is compared in the study.
    """

    order: int
    quadratic_law: bool

    def layer(self, A: Tensor) -> tuple[Tensor, Any]: ...


LAYERS: Registry[LayerRule] = Registry("layer rule")


def check_rule(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` follows `LayerRule`, of which what it does is measured once."""
    follows(name, value, "a layer rule", "'euler'", ("layer", "order", "quadratic_law"))
    own = next((f"layer rule {key!r}" for key, rule in LAYERS.items() if rule is value), None)
    check_promises(own or f"{name} {type(value).__name__}", value)


class Euler:
    """U = I + A."""

    order = 1
    quadratic_law = True

    def layer(self, A: Tensor) -> tuple[Tensor, None]:
        return identity_like(A) + A, None

    def adjoint(self, A: Tensor, saved: None, M: Tensor) -> Tensor:
        return M


class RK2:
    """U = I + A + A²/2."""

    order = 2
    quadratic_law = False

    def layer(self, A: Tensor) -> tuple[Tensor, None]:
        return add_identity(multiply(A, A).mul_(0.5).add_(A)), None

    def adjoint(self, A: Tensor, saved: None, M: Tensor) -> Tensor:
        return multiply(A.mT, M).add_(multiply(M, A.mT)).mul_(0.5).add_(M)


class Cayley:
    """U = (I − A/2)⁻¹(I + A/2) = 2R − I with R = (I − A/2)⁻¹, so that dU = R dA R."""

    order = 2
    quadratic_law = False

    def layer(self, A: Tensor) -> tuple[Tensor, Tensor]:
        R = inverse(add_identity(A * -0.5))
        return add_identity(2 * R, -1.0), R

    def adjoint(self, A: Tensor, saved: Tensor, M: Tensor) -> Tensor:
        return multiply(multiply(saved.mT, M), saved.mT)


class Exponential:
    """U = exp(A) = E² with E = exp(A/2).

    The adjoint of the Fréchet derivative is Eᵀ [sinh(ad/2)/(ad/2)](M) Eᵀ with ad(M) = AᵀM − MAᵀ, summed to round-off:
    Σ_k ad²ᵏ(M) / (4ᵏ (2k+1)!), at most ‖A‖²ᵏ/(2k+1)! ‖M‖ each. Two terms do for the small A of a deep network; for
    large A the derivative is read off the exponential of [[Aᵀ, M], [0, Aᵀ]] (Al-Mohy–Higham 2009).
    """

    order = 2
    quadratic_law = False

    SERIES_NORM = 2.0  # above it the terms grow before they shrink, and digits are lost

    def layer(self, A: Tensor) -> tuple[Tensor, tuple[Tensor, float]]:
        norm = math.inf if hidden(A) else float(torch.linalg.matrix_norm(A.detach()).max())
        E = _taylor_exp(A / 2, norm / 2) if norm <= self.SERIES_NORM else torch.linalg.matrix_exp(A / 2)
        return multiply(E, E), (E, norm)

    def adjoint(self, A: Tensor, saved: tuple[Tensor, float], M: Tensor) -> Tensor:
        E, norm = saved
        B = A.mT
        if not norm <= self.SERIES_NORM:
            d = A.shape[-1]
            # Linear in M, which is brought to size one: a large M would make the exponential scale A away.
            size = M.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(M.dtype).tiny)
            block = torch.cat((torch.cat((B, M / size), -1), torch.cat((torch.zeros_like(B), B), -1)), -2)
            return size * torch.linalg.matrix_exp(block)[..., :d, d:]
        square, term, total = multiply(B, B), M, M
        for k in range(1, _terms(norm, 2, torch.finfo(A.dtype).eps)):
            middle = multiply(multiply(B, term), B)
            term = multiply(square, term).add_(multiply(term, square)).sub_(middle, alpha=2)
            term /= 8 * k * (2 * k + 1)
            total = total + term
        return multiply(multiply(E.mT, total), E.mT)


def _terms(norm: float, stride: int, eps: float) -> int:
    """How many terms of Σ_k norm^{stride·k}/(stride·k + stride − 1)! stand above round-off."""
    k, size = 0, 1.0
    while size > eps / 8:
        k += 1
        for factor in range(stride * k, stride * (k + 1)):
            size *= norm / factor
    return k


def _taylor_exp(A: Tensor, norm: float) -> Tensor:
    """exp(A) for ‖A‖ <= norm <= 1 by Horner's rule in A²; torch's own spends longer on sorting a batch by norm."""
    degree = max(1, _terms(norm, 1, torch.finfo(A.dtype).eps) - 1)
    square = multiply(A, A)
    factorials = [1 / math.factorial(k) for k in range(degree // 2 * 2 + 2)]
    result: Tensor | None = None  # Σ_{k >= 2j} A^{k − 2j}/k!
    for j in range(degree // 2, -1, -1):
        even, odd = factorials[2 * j : 2 * j + 2]
        pair = add_identity(A * odd, even)
        result = pair if result is None else pair.add_(multiply(square, result))
    assert result is not None
    return result


LAYERS.register("euler")(Euler())
LAYERS.register("rk2")(RK2())
LAYERS.register("cayley")(Cayley())
LAYERS.register("exp")(Exponential())
for _rule in LAYERS.values():
    passed(_rule)

# What the compiled kernel has, by the class itself: a subclass may be another rule.
COMPILED: dict[type, int] = {Euler: kernel.EULER, RK2: kernel.RK2, Cayley: kernel.CAYLEY, Exponential: kernel.EXP}
