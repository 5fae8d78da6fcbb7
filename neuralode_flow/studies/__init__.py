"""Studies: plain functions that compare edges of the commuting square and return a labelled dataset."""

from . import convergence, trajectory
from .base import STUDIES, Setup, Study

__all__ = ["STUDIES", "Setup", "Study", "convergence", "trajectory"]
