"""A target that the continuous model cannot reach: a reflection."""

from __future__ import annotations

import torch

from ..checks import count
from ..losses import Quadratic
from ..signatures import Dimension, Seed
from .base import PROBLEMS, Problem, generator, identity, normal


@PROBLEMS.register("reflection")
def reflection(dimension: Dimension = 3, seed: Seed = 0) -> Problem:
    """Fit T = I − 2kkᵀ, ‖k‖ = 1 random: f(z) = ½‖z − T‖², det T = −1.

    One delta block I − βkkᵀ is T for β = 2; det z > 0 keeps the continuous model from it, and its loss tends to ½, half
    the squared distance of T to the singular matrices.

    Parameters
    ----------
    dimension : int
        Size d of the maps.
    seed : int
        Seed of k.
    """
    d = count("problem.dimension", dimension)
    k = torch.nn.functional.normalize(normal(generator(seed), d), dim=0)
    target = identity(d) - 2 * torch.outer(k, k)
    title = f"Reflection: reach the {d} × {d} target map I − 2kkᵀ (seed {seed}), out of reach"
    return Problem("reflection", title, Quadratic(target), identity(d))
