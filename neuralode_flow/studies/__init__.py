"""Studies: plain functions that return a labelled dataset and a flat record, one file each."""

import sys

from ..registry import import_modules
from .base import STUDIES, Clock, Study

__all__ = ["STUDIES", "Clock", "Study"]

import_modules(sys.modules[__name__])
