"""The systems of the literature, one file each."""

from .base import SYSTEMS, ClosedFlow, System

__all__ = ["SYSTEMS", "ClosedFlow", "System"]
