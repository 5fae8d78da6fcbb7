"""Figures by study: each is drawn from a saved dataset and nothing else, one file each."""

import sys

from ..registry import import_modules
from .base import FIGURES, Figures, FigureSet, Movie, save
from .interactive import describe

__all__ = ["FIGURES", "FigureSet", "Figures", "Movie", "describe", "save"]

import_modules(sys.modules[__name__])
