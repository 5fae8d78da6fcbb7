"""Curvature of the loss in the weights: Hessians of flows, their spectra, and what they are at minimisers."""

from .along import along
from .closed import balanced_spectrum, least_sharpness, minimiser_spectrum
from .edge import Central, central_velocity, sharpness_gradient
from .hessian import Hessian, Sharpness, hessian, sharpness
from .lanczos import Eigenpairs

__all__ = [
    "Central",
    "Eigenpairs",
    "Hessian",
    "Sharpness",
    "along",
    "balanced_spectrum",
    "central_velocity",
    "hessian",
    "least_sharpness",
    "minimiser_spectrum",
    "sharpness",
    "sharpness_gradient",
]
