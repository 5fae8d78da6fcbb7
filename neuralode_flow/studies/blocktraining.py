"""Blocks of the Hessian along gradient descent on digits, and which step sizes are stable where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..curvature import hessian, sharpness
from ..flows.factorization import FactorizationFlow
from ..time.descend import descend
from .base import whole
from .blocks import ACTIVATIONS, CLASSES, PIXELS, Digits, Network, SquaredError, block_norms, gaussian

RATIOS = (0.9, 0.98, 1.02, 1.1)  # of step sizes over 2/λ_max
LAYERS_TRAINED = 4
_STEPS, _AWAY, _RECORDS, _SETTLE = 10, 1e-6, 8, 100
_NEAR = 1e-5  # of central differences: about the cube root of round-off, which leaves 1e-10


def training(data: Digits, width: int, rate: float, steps: int, random: torch.Generator) -> dict[str, Any]:
    """tanh networks of four layers with the squared loss: variables of the dataset.

    Raises
    ------
    RuntimeError
        If gradient descent leaves the numbers.
    """
    weights = gaussian(random, 1.0, (PIXELS, *(LAYERS_TRAINED - 1) * (width,), CLASSES))
    network = Network(data.x, ACTIVATIONS["tanh"], SquaredError(data.y), weights)
    flow = FactorizationFlow(lambda theta: network.outputs(_split(theta, weights)), network.loss)
    theta = torch.cat([W.flatten() for W in weights])
    marks = np.unique(np.geomspace(1, steps, _RECORDS).round().astype(int))
    states = [theta]
    for number in np.diff(marks, prepend=0):
        states.append(_descent(flow, states[-1], int(number), rate)[-1])
    found = [_look(network, _split(state, weights)) for state in states]
    exact, kept, dropped = np.moveaxis(np.array(found), -1, 0)
    settled = _descent(flow, states[-1], _SETTLE, rate / 2)[-1]  # what oscillates near 2/λ goes at half the rate
    measured, theory = _stability(flow, settled)
    sharp = [float(sharpness(flow, state).value) for state in states]
    return {
        "mark": np.concatenate(([0], marks)),
        "loss": ("mark", [float(flow.loss(flow.product(state))) for state in states]),
        "sharpness": ("mark", sharp),
        "sharpness_off": ((), abs(sharp[-1] / _slope(flow, states[-1]) - 1)),
        "trained": (("mark", "inner"), exact),
        "trained_dropped": (("mark", "inner"), dropped / kept),
        "factor": ("ratio", measured),
        "factor_expected": ("ratio", theory),
    }


def _split(theta: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = theta.split([W.numel() for W in like])
    return [part.view(W.shape) for part, W in zip(parts, like, strict=True)]


def _descent(flow: FactorizationFlow, theta: Tensor, steps: int, rate: float) -> Tensor:
    path = descend(flow, theta, steps, "gd", rate, record=steps, observe=lambda _, state: state.clone())
    kept = whole(path, f"gradient descent of rate {rate:g}").observed
    assert kept is not None
    return kept


def _look(network: Network, weights: list[Tensor]) -> list[tuple[float, float, float]]:
    """Norms of the exact block, of that of the chain rule and of what it drops, for each layer."""
    now = Network(network.inputs, network.activation, network.loss, weights)
    return [block_norms(now, k) for k in range(len(weights))]


def _slope(flow: FactorizationFlow, theta: Tensor) -> float:
    """How fast the gradient grows along the leading eigenvector, by central differences."""
    vector = hessian(flow, theta).top(1).vectors[0]
    behind, ahead = (flow.velocity(theta + sign * _NEAR * vector) for sign in (-1, 1))
    return float((behind - ahead) @ vector) / (2 * _NEAR)


def _stability(flow: FactorizationFlow, theta: Tensor) -> tuple[list[float], list[float]]:
    """By what a disturbance along the leading eigenvector grows in a step of descent, and |1 − ηλ_max|, by ratio.

    It is the distance of two runs, so that what the common state still moves does not count.
    """
    pairs = hessian(flow, theta).top(1)
    value, vector = float(pairs.values[0]), pairs.vectors[0]
    measured, theory = [], []
    for ratio in RATIOS:
        rate = 2 * ratio / value
        ends = [_descent(flow, start, _STEPS, rate)[-1] for start in (theta, theta + _AWAY * vector)]
        along = abs(float((ends[1] - ends[0]) @ vector)) / _AWAY
        measured.append(along ** (1 / _STEPS))
        theory.append(abs(1 - rate * value))
    return measured, theory
