"""What a layer rule is, and where the rules are filed."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ...checks import follows
from ...registry import Registry
from ..promises import check_promises, passed


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


LAYERS: Registry[LayerRule] = Registry("layer rule")


def own(name: str, rule: LayerRule) -> None:
    """Files a rule of the library, which its tests have checked: at its first use it need not take a start's time."""
    LAYERS.register(name)(rule)
    passed(rule)


def label(name: str) -> str:
    """What figures call a rule."""
    return str(getattr(LAYERS[name], "label", name))


def check_rule(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` follows `LayerRule`, of which what it does is measured once."""
    follows(name, value, "a layer rule", "'euler'", ("layer", "order", "quadratic_law"))
    own = next((f"layer rule {key!r}" for key, rule in LAYERS.items() if rule is value), None)
    check_promises(own or f"{name} {type(value).__name__}", value)
