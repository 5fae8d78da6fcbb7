"""Studies: plain functions that compare edges of the commuting square and return a labelled dataset."""

from . import closure, conservation_laws, convergence, initialisations, trajectory
from .base import STUDIES, Setup, Study

__all__ = ["STUDIES", "Setup", "Study", "closure", "conservation_laws", "convergence", "initialisations", "trajectory"]
