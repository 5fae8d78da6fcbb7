"""Kernels K(σ_a, σ_b) of the intrinsic dynamics ż = −U (K ∘ (UᵀGV)) Vᵀ, with z = U diag(σ) Vᵀ, a file for each.

A file that is put here and registers a kernel in `KERNELS` is found by its name.
"""

import sys

from ..registry import import_modules
from .base import KERNELS, Kernel, LogKernel, check_kernel
from .divided import DividedDifference, log_factors
from .logmean import LogMean, log_logmean
from .two_layer import TwoLayer

import_modules(sys.modules[__name__])

__all__ = [
    "KERNELS",
    "DividedDifference",
    "Kernel",
    "LogKernel",
    "LogMean",
    "TwoLayer",
    "check_kernel",
    "log_factors",
    "log_logmean",
]
