"""Studies: plain functions that return a labelled dataset and a flat record, one file each."""

from .base import STUDIES, Clock, Study

__all__ = ["STUDIES", "Clock", "Study"]
