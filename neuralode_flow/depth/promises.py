"""What a layer rule promises, measured once for each rule, at its first use."""

from __future__ import annotations

import math
import numbers
from typing import Any, Protocol

import torch
from torch import Tensor

from ..promises import Once, Source, denied, kind
from . import chain
from .engine.by_torch import pulled_back


class LayerRule(Protocol):
    """What a layer rule promises, for A of shape `(..., L, d, d)`.

    1. `layer(A)` gives U = rule(A) and whatever `adjoint` wants to reuse; U is differentiable by autograd.
       A layer depends on its own A alone.
    2. `adjoint(A, saved, M)`, if it has one, is the gradient of tr(MᵀU) with respect to A, exact to round-off. Autograd
       through `layer` takes its place where there is none.
    3. `order` is the order of convergence in 1/L with midpoint sampling. A rule sees one W_k, the middle of its part of
       the depth, which tells the integral of W over it to order 2: so that is the highest.
    4. `quadratic_law` is True where L²(U_{k+1}ᵀU_{k+1} − U_kU_kᵀ) is conserved exactly by the training flow.
    5. `label`, if it has one, is what figures call it; else they take its name.
    6. `compiled`, if its class itself has one (a subclass may be another rule), is its number in the compiled engine.

    What can be measured of a rule alone is, at its first use in a flow; the order is compared in the study.
    """

    order: int
    quadratic_law: bool

    def layer(self, A: Tensor) -> tuple[Tensor, Any]: ...


# Shapes (…, d, d) and sizes of A: one layer alone, many, members of an ensemble; small as in deep networks, and large.
_CASES = (((2, 2), 0.3), ((3, 4, 4), 1e-3), ((2, 3, 3, 3), 1.0), ((2, 1, 1), 0.5), ((2, 3, 3), 3.0))

MOST_ORDER = 2

_PASSED = Once()


def passed(rule: Any) -> None:
    """Takes a rule as checked: the library's own are, by its tests, and need not take a start's time."""
    _PASSED.add(rule)


def has_passed(rule: Any) -> bool:
    """Whether a rule need not be looked at again."""
    return rule in _PASSED


def check_promises(name: str, rule: Any) -> None:
    """Raises unless a rule does what it declares; from then on it `has_passed`.

    The layers have the shape and dtype of A and do not depend on their neighbours; `adjoint`, if there is one, is the
    gradient that autograd finds through `layer`; `quadratic_law` is True only where the law is conserved; `order` is
    one that a rule can have. Whether it has that order is for a study to see.

    Raises
    ------
    TypeError, ValueError
        The message has the name of the rule, what is wrong, by how much, and what to do.
    """
    _check_order(name, rule.order)
    if not isinstance(rule.quadratic_law, bool):
        raise TypeError(f"{name} must have a quadratic_law that is True or False, got {rule.quadratic_law!r}")
    place = kind(rule)
    source = Source(**place)
    with torch.inference_mode(False):
        for shape, size in _CASES:
            A = size * source(*shape) / shape[-1] ** 0.5
            _check_layer(name, rule, A)
            _check_adjoint(name, rule, A, source(*shape), source)
        if rule.quadratic_law:
            _check_law(name, rule, source)
    _PASSED.add(rule)


def _check_order(name: str, order: Any) -> None:
    if isinstance(order, bool) or not isinstance(order, numbers.Real):
        raise TypeError(f"{name} must have an order that is a number, got {order!r}")
    if not 0 < float(order) <= MOST_ORDER:
        raise ValueError(
            f"{name} must have an order above 0 and at most {MOST_ORDER}, got {order!r}: a rule sees W(s) at one depth "
            f"of each layer, and the midpoint of an interval tells its integral to order {MOST_ORDER} only"
        )


def _check_layer(name: str, rule: Any, A: Tensor) -> None:
    with torch.no_grad():
        result = rule.layer(A.clone())
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
            raise TypeError(f"{name} must have a layer(A) that returns (U, saved), got {type(result).__name__}")
        U = result[0]
        if U.shape != A.shape or U.dtype != A.dtype or U.device != A.device:
            raise ValueError(
                f"{name} must give layers of the shape, dtype and device of A, {tuple(A.shape)} in {A.dtype} on "
                f"{A.device}, got {tuple(U.shape)} in {U.dtype} on {U.device}"
            )
        if A.ndim > 2:
            off = _relative(rule.layer(A[0].clone())[0], U[0])
            if not off <= _bound(A):
                raise ValueError(
                    f"{name} must give each layer from its own A, but the first of {A.shape[0]} is another by itself, "
                    f"by {off:.2g} of its size; write it with leading axes (...)"
                )


def _check_adjoint(name: str, rule: Any, A: Tensor, M: Tensor, source: Source) -> None:
    """`adjoint` against autograd through `layer`, or against differences where autograd finds no way."""
    with torch.enable_grad():
        leaf = A.clone().requires_grad_()
        U = rule.layer(leaf)[0]
    if not hasattr(rule, "adjoint"):
        if not U.requires_grad:
            raise TypeError(
                f"{name} must have a layer(A) written in torch, or an adjoint(A, saved, M): autograd finds none"
            )
        return
    with torch.no_grad():
        found = rule.adjoint(A, rule.layer(A)[1], M.clone())
    if not isinstance(found, Tensor) or found.shape != A.shape:
        raise ValueError(f"{name} must have an adjoint of the shape of A, {tuple(A.shape)}, got {_shape(found)}")
    advice = "mend adjoint(A, saved, M), or leave it out: autograd takes its place"
    if U.requires_grad:
        off = _relative(found, torch.autograd.grad((M * U).sum(), leaf)[0])
        if not off <= _bound(A):
            raise ValueError(
                f"{name} has an adjoint that is not the gradient of its layer: for A {tuple(A.shape)} of norm "
                f"{float(torch.linalg.matrix_norm(A).max()):.2g} it is off by {off:.2g} of its size; {advice}"
            )
        return

    def claimed(at: Tensor, along: Tensor) -> Tensor:
        return (rule.adjoint(at, rule.layer(at)[1], M.clone()) * along).sum()

    with torch.no_grad():
        wrong = denied(lambda at: (M * rule.layer(at)[0]).sum(), claimed, A, [float(A.abs().max())], source)
    if wrong is not None:
        raise ValueError(f"{name} has an adjoint that is not the gradient of its layer: {wrong}; {advice}")


def _check_law(name: str, rule: Any, source: Source) -> None:
    """U_{k+1}ᵀU_{k+1} − U_kU_kᵀ along the velocity −adjoint of a network of three layers, by central differences."""
    A, G, h = source(3, 3, 3) / 3, source(3, 3), 1e-4

    def law(A: Tensor) -> Tensor:
        U = rule.layer(A)[0]
        return U[1:].mT @ U[1:] - U[:-1] @ U[:-1].mT

    velocity = pulled_back(rule, A, lambda U: chain.gradient(U, lambda z: G))
    velocity = velocity / velocity.norm()
    with torch.no_grad():
        moved = float(((law(A + h * velocity) - law(A - h * velocity)) / (2 * h)).norm())
    if not moved <= 1e-5 + 10 * torch.finfo(A.dtype).eps / h:
        raise ValueError(
            f"{name} declares quadratic_law = True, but U_(k+1)ᵀU_(k+1) − U_kU_kᵀ moves along its flow, at the rate "
            f"{moved:.2g} of the layers; declare quadratic_law = False"
        )


def _relative(found: Tensor, wanted: Tensor) -> float:
    size = float(torch.linalg.vector_norm(wanted))
    gap = float(torch.linalg.vector_norm(found - wanted))
    return gap / size if size > 0 else (math.inf if gap > 0 else 0.0)


def _bound(A: Tensor) -> float:
    return torch.finfo(A.dtype).eps ** 0.5


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
