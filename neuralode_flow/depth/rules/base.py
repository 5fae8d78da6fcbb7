"""Where the layer rules are filed."""

from __future__ import annotations

from typing import Any

from ...checks import follows
from ...registry import Registry
from ..promises import LayerRule, check_promises, has_passed, passed

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
    if has_passed(value):
        return
    own = next((f"layer rule {key!r}" for key, rule in LAYERS.items() if rule is value), None)
    check_promises(own or f"{name} {type(value).__name__}", value)
