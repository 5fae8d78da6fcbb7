"""Initialisations: profiles W0(s) of the continuous model, and relaxed balanced finite networks.

A file that is put here and registers a builder in `INITIALS` is found by its name.
"""

import sys

from ..registry import import_modules
from .base import INITIALS, Constant, control, identity
from .detour import Detour
from .layers import relaxed_balanced_layers
from .random import Smooth, random_direction, random_shift, random_twist, smooth
from .relaxed import balanced, relaxed_balanced
from .rough import Rough

import_modules(sys.modules[__name__])

__all__ = [
    "INITIALS",
    "Constant",
    "Detour",
    "Rough",
    "Smooth",
    "balanced",
    "control",
    "identity",
    "random_direction",
    "random_shift",
    "random_twist",
    "relaxed_balanced",
    "relaxed_balanced_layers",
    "smooth",
]
