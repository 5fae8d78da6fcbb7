"""Blocks of the Hessian of linear networks I + W/L, and the functions of depth that they tend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..curvature import hessian
from ..depth.collocation import Collocation
from ..depth.grid import DepthGrid, sample
from ..depth.rules import LAYERS
from ..flows.finite import FiniteFlow
from ..losses import Loss
from ..matrices import normal
from ..problems.base import PROBLEMS

_PANELS, _ORDER = 4, 12
LOOKED_AT = 8  # layers of each network
CURVE = np.linspace(0, 1, 41)  # depths of the limit curve


class Wave:
    """W(s) = A + B cos πs + C sin πs with A, B and C normal, of standard deviation ½."""

    def __init__(self, dimension: int, random: torch.Generator) -> None:
        self.parts = normal(random, 3, dimension, dimension) / 2

    def __call__(self, s: float) -> Tensor:
        return self.parts[0] + self.parts[1] * np.cos(np.pi * s) + self.parts[2] * np.sin(np.pi * s)


def finite(flow: FiniteFlow, wave: Wave) -> tuple[Tensor, Tensor]:
    """Depths of some layers, and L² ∂²f/∂W_k² there, `(layers, d², d²)`: by products with the Hessian of the network.

    The Hessian is that of the inner product (1/L) Σ tr(AₖᵀBₖ): its block is L ∂²f/∂W_k².
    """
    L, state = flow.depth, flow.sample(wave)
    H = hessian(flow, state)
    layers = L // LOOKED_AT * np.arange(LOOKED_AT) + L // LOOKED_AT // 2
    found = []
    for k in layers:
        rows = []
        for V in _units(state):
            direction = torch.zeros_like(state)
            direction[k] = V
            rows.append(L * H.product(direction)[k].reshape(-1))
        found.append(torch.stack(rows))
    return flow.nodes[layers], torch.stack(found)


def limit(loss: Loss, wave: Wave, depths: Tensor, curved: bool, panels: int = _PANELS) -> Tensor:
    """The limit of the same at depths s, by Gauss collocation.

    With P = P(1, s), Q = P(s, 0) and z = P(1, 0) it is the quadratic form ∇²f(z)[PVQ, PVQ], to which layers
    that have a second derivative U = I + W/L + W²/2L² + … add ⟨∇f(z), P V² Q⟩: they are `curved`.
    """
    grid = DepthGrid.gauss(panels, _ORDER)
    before, after, z = Collocation(grid).propagators(sample(wave, grid.nodes))
    G, found = loss.gradient(z), []
    for P, Q in zip(grid.interpolate(after, depths), grid.interpolate(before, depths), strict=True):
        M = P.mT @ G @ Q.mT
        rows = [
            P.mT @ loss.hessian(z, P @ V @ Q) @ Q.mT + curved * (M @ V.mT + V.mT @ M) / 2  # type: ignore[attr-defined]
            for V in _units(z)
        ]
        found.append(torch.stack(rows).flatten(1))
    return torch.stack(found)


def _units(like: Tensor) -> Tensor:
    d = like.shape[-1]
    return torch.eye(d * d).to(like).reshape(-1, d, d)


def _norm(blocks: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(blocks, 2)


def in_depth(rules: Sequence[str], depths: Sequence[int], random: torch.Generator) -> dict[str, Any]:
    """Variables of the dataset: blocks of linear networks I + W/L on the linnerud data, and their limits."""
    loss = PROBLEMS["linnerud"]().loss
    assert loss.dimension is not None
    wave = Wave(loss.dimension, random)
    block, places, error, other = [], [], [], []
    for rule in rules:
        for L in depths:
            at, found = finite(FiniteFlow(L, loss, rule), wave)
            # A rule of order 2 is I + A + A²/2 + …; of order 1 is I + A.
            curved = LAYERS[rule].order >= 2
            own, not_own = limit(loss, wave, at, curved), limit(loss, wave, at, not curved)
            block.append(_norm(found))
            places.append(at)
            error.append((_norm(found - own) / _norm(own)).max())
            other.append((_norm(found - not_own) / _norm(not_own)).max())
    s, shape = torch.from_numpy(CURVE), (len(rules), len(depths))
    curves = [limit(loss, wave, s, curved) for curved in (False, True)]
    finer = limit(loss, wave, s, True, panels=8)
    return {
        "block": (("rule", "depth", "at"), torch.stack(block).reshape(*shape, -1)),
        "at_depth": (("rule", "depth", "at"), torch.stack(places).reshape(*shape, -1)),
        "error": (("rule", "depth"), torch.stack(error).reshape(shape)),
        "error_other": (("rule", "depth"), torch.stack(other).reshape(shape)),
        "curve": (("limit", "s"), torch.stack([_norm(one) for one in curves])),
        "error_grid": (
            (),
            (_norm(curves[1] - finer) / _norm(finer)).max(),
            "relative error of the limit that the depth grid makes",
        ),
    }
