"""A random linear teacher: the target map itself is the data."""

from __future__ import annotations

import torch

from ..checks import count, positive
from ..losses import Quadratic
from ..signatures import Dimension, Seed
from .base import PROBLEMS, Problem, generator, identity, normal, numbers

LEAST_DETERMINANT = 0.05


@PROBLEMS.register("teacher")
def teacher(dimension: Dimension = 8, seed: Seed = 0, scale: float = 0.5) -> Problem:
    """Fit a random target: f(z) = ½‖z − T‖², T = I + scale·N with N of independent standard normals.

    The continuous model only reaches maps of positive determinant (det z > 0 always), so T is redrawn from the same
    generator until det T > 0.05; about half of the draws pass. No entry's sign is changed.

    Parameters
    ----------
    dimension : int
        Size d of the maps.
    seed : int
        Seed of the generator; the same seed gives the same target to the bit.
    scale : float
        Standard deviation of an entry of T − I, above 0.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong kind or out of range.
    """
    d = count("problem.dimension", dimension)
    width = positive("problem.scale", scale)
    random = generator(seed)
    numbers("the target", identity(d))
    while True:
        target = identity(d) + width * normal(random, d, d)
        if torch.linalg.det(target) > LEAST_DETERMINANT:
            break
    title = f"Random teacher: reach the {d} × {d} target map I + {width:g}·randn (seed {seed})"
    return Problem("teacher", title, Quadratic(target), identity(d))
