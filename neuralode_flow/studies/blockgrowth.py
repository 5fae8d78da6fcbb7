"""How the first block of the Hessian grows with the number of layers, and the gain at which it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from ..matrices import normal
from .blocks import ACTIVATIONS, CLASSES, PIXELS, Digits, Network, Softmax, SquaredError, gaussian, norm

HOMOGENEOUS = ("linear", "relu")
NUMBERS = (2, 3, 5, 9)  # of networks with the squared loss
FACTORS = (0.7, 1.0, 1.4)  # of the critical gain, with cross-entropy


def edge(kind: str, layers: int) -> float:
    """log of ‖J_1‖² as the width tends to infinity, at the critical gain, for J_1 of p = layers − 1 square matrices.

    The S-transform of p Gaussian matrices, each beside a projection to half of the dimensions for ReLU, has the largest
    squared singular value min over u > 0 of (1 + u)(1 + au)^p / u, a = 1 for linear networks and 2 for ReLU; for a = 1
    it is (p + 1)^{p+1}/p^p.
    """
    p, a = layers - 1, {"linear": 1.0, "relu": 2.0}[kind]

    def logarithm(v: float) -> float:
        u = np.exp(v)
        return float(np.log1p(u) + p * np.log1p(a * u) - v)

    return float(minimize_scalar(logarithm, bounds=(-20.0, 10.0), method="bounded", options={"xatol": 1e-10}).fun)


def edge_by_root(kind: str, layers: int) -> float:
    """`edge` by the root of the derivative: pau² + (p − 1)au = 1."""
    p, a = layers - 1, {"linear": 1.0, "relu": 2.0}[kind]
    u = ((p - 1) ** 2 * a**2 + 4 * p * a) ** 0.5 / (2 * p * a) - (p - 1) / (2 * p)
    return float(np.log((1 + u) * (1 + a * u) ** p / u))


def _squared(width: int, repeats: int, random: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """log ‖H_1‖/‖x‖² and log tr H_1/(n‖x‖²) at the critical gain, one sample: (kind, layers, draw), both."""
    norms, traces = [], []
    for kind in HOMOGENEOUS:
        for _ in range(repeats):
            x = normal(random, 1, width)
            x = x / x.norm()
            weights = gaussian(random, ACTIVATIONS[kind].gain, (width,) * (NUMBERS[-1] + 1))
            for L in NUMBERS:
                network = Network(x, ACTIVATIONS[kind], SquaredError(torch.zeros_like(x)), weights[:L])
                norms.append(np.log(norm(network.exact(0), weights[0])))
                traces.append(float((network.parts()[1][0].square().sum() / width).log()))
    shape = (len(HOMOGENEOUS), repeats, len(NUMBERS))
    return np.reshape(norms, shape).swapaxes(1, 2), np.reshape(traces, shape).swapaxes(1, 2)


def _softmax(
    data: Digits, width: int, deep: Sequence[int], draws: int, random: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """log ‖H_1‖ with cross-entropy on digits, and log of the mean of tr H_out: (kind, factor, layers, draw), both."""
    norms, traces = [], []
    for activation in ACTIVATIONS.values():
        for _ in range(draws):
            unit = [gaussian(random, activation.gain, (PIXELS, *(L - 1) * (width,), CLASSES)) for L in deep]
            for factor in FACTORS:
                for one in unit:
                    weights = [factor * W for W in one]
                    network = Network(data.x, activation, Softmax(data.y), weights)
                    norms.append(np.log(norm(network.exact(0), weights[0])))
                    H = network.loss.curvature(network.outputs(weights))
                    traces.append(float(H.diagonal(dim1=-2, dim2=-1).sum(-1).mean().log()))
    shape = (len(ACTIVATIONS), draws, len(FACTORS), len(deep))
    return np.moveaxis(np.reshape(norms, shape), 1, -1), np.moveaxis(np.reshape(traces, shape), 1, -1)


def growth(
    data: Digits, width: int, deep: Sequence[int], draws: int, repeats: int, random: torch.Generator
) -> dict[str, Any]:
    """Variables of the dataset."""
    norms, traces = _squared(width, repeats, random)
    real, out = _softmax(data, width, deep, draws, random)
    edges = [[edge(kind, L) for L in NUMBERS] for kind in HOMOGENEOUS]
    roots = [[edge_by_root(kind, L) for L in NUMBERS] for kind in HOMOGENEOUS]
    over, beside = ("homogeneous", "number", "repeat"), ("kind", "gain_factor", "deep", "draw")
    return {
        "log_norm": (over, norms),
        "log_trace": (over, traces),
        "log_edge": (over[:2], edges),
        "edge_off": (over[:2], np.abs(np.subtract(edges, roots))),
        "log_real": (beside, real),
        "log_out": (beside, out),
    }


def rates(layers: Sequence[int], logarithms: np.ndarray) -> np.ndarray:
    """Growth per layer, by least squares over the axis of layers, the last but one."""
    centred = np.asarray(layers) - np.mean(layers)
    return np.tensordot(logarithms, centred, ((-2,), (0,))) / (centred @ centred)


class Gain(NamedTuple):
    """A gain over the critical one, and its standard error over draws."""

    value: float
    error: float


def critical(growth: np.ndarray) -> Gain:
    """The gain without growth of a network that is homogeneous, from its growth at the critical gain, (draw,).

    There weights of c times the size have 2 log c more growth.
    """
    gains = np.exp(-growth / 2)
    return Gain(float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5))


def crossing(growth: np.ndarray) -> Gain:
    """The gain without growth, (factor, draw): where the mean crosses 0, linear in log gain; error by leaving one out.

    NaN where the mean does not cross.
    """
    draws = growth.shape[-1]
    left_out = [_crossing(np.delete(growth, i, axis=-1).mean(-1)) for i in range(draws)]
    return Gain(_crossing(growth.mean(-1)), float(np.std(left_out) * (draws - 1) ** 0.5))


def _crossing(growth: np.ndarray) -> float:
    if not (np.diff(growth) > 0).all() or growth[0] > 0 or growth[-1] < 0:
        return np.nan
    return float(np.exp(np.interp(0.0, growth, np.log(FACTORS))))
