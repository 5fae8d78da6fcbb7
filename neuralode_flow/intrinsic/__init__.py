"""The intrinsic property of a factorisation z = φ(θ): when gradient flow on θ closes on z."""

from __future__ import annotations

from .infinite_depth import DepthCriterion, depth_criterion
from .lie import count_laws
from .quadratic import QuadraticLaws, quadratic_laws
from .ranks import Rank
from .recovery import RecoveredFlow, recover
from .report import Report, report

__all__ = [
    "DepthCriterion",
    "QuadraticLaws",
    "Rank",
    "RecoveredFlow",
    "Report",
    "count_laws",
    "depth_criterion",
    "quadratic_laws",
    "recover",
    "report",
]
