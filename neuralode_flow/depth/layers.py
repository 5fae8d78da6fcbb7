"""The former home of the layer rules, which plugins of version 0.1 import; it goes with the next version."""

from .rules import LAYERS, LayerRule, check_rule
from .rules.cayley import Cayley
from .rules.euler import Euler
from .rules.exponential import Exponential
from .rules.rk2 import RK2

__all__ = ["LAYERS", "RK2", "Cayley", "Euler", "Exponential", "LayerRule", "check_rule"]
