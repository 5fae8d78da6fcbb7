"""Two-layer leaky ReLU networks."""

from __future__ import annotations

from ...signatures import Seed
from .base import SYSTEMS, System
from .relu_two_layer import random_network


@SYSTEMS.register("leaky_relu")
def leaky_relu(
    inputs: int = 3,
    outputs: int = 1,
    width: int = 6,
    samples: int = 12,
    biases: bool = True,
    slope: float = 0.1,
    seed: Seed = 0,
) -> System:
    """`relu_two_layer` with σ(p) = `slope` p for p ≤ 0: z, its laws and the closed flow are the same.

    Parameters
    ----------
    inputs, outputs, width, samples, biases, slope, seed
        As for `relu_two_layer`.
    """
    return random_network("leaky_relu", "leaky ReLU", inputs, outputs, width, samples, biases, slope, seed)
