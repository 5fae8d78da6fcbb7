"""Layer rules: how one layer of a finite network moves X by W_k over the depth 1/L. One file each.

A rule maps A = W_k / L to the layer U = rule(A). Euler: I + A. RK2: I + A + A²/2. Cayley: (I − A/2)⁻¹(I + A/2).
Exponential: exp(A). The convergence orders in 1/L are 1, 2, 2, 2 with midpoint sampling. A file that is put here and
registers an instance in `LAYERS` is found by its name.
"""

import sys

from ...registry import import_modules
from .base import LAYERS, LayerRule, check_rule, label

# isort: off
from . import euler, rk2, cayley, exponential  # noqa: F401 (listed first, in this order)
# isort: on

import_modules(sys.modules[__name__])

__all__ = ["LAYERS", "LayerRule", "check_rule", "label"]
