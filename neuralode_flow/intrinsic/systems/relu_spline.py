"""Univariate two-layer ReLU networks: splines of first degree."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ...checks import count, positive
from ...signatures import Positive, Seed, known
from .base import SYSTEMS, System, generator, normal
from .relu_two_layer import TwoLayer, two_layer_system

KNOTS = dict.fromkeys(("random", "even"))


@SYSTEMS.register("relu_spline")
def relu_spline(
    width: int = 10,
    samples: int = 40,
    seed: Seed = 0,
    knots: Annotated[str, known(KNOTS, "choice of knots")] = "random",
    imbalance: Positive = 1.0,
) -> System:
    """y(x) = Σ_j u_j σ(w_j x + b_j) with z_j = u_j (w_j, b_j) and the laws u_j² − w_j² − b_j² (Sahs 2020).

    Neuron j has its knot at −b_j/w_j, where the slope of y changes by u_j |w_j|. The closed flow is that of
    `relu_two_layer` with 2-vectors. The samples are those of sin πx at equal distances on [−1, 1], and the knots of θ₀
    lie there as well.

    Parameters
    ----------
    width : int
        Number of neurons, of one knot each.
    samples : int
        n.
    seed : int
        Seed of θ₀.
    knots : "random" or "even"
        How the knots of θ₀ lie: anywhere, or one in the middle half of each of `width` equal parts of [−1, 1], with
        neurons that are active to the left and to the right of their knots in turn.
    imbalance : float
        What (w_j, b_j) is multiplied with at the start and u_j divided by, above 0: y is the same, and the larger it
        is, the less knots move while y is fitted.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong kind or out of range.

    Notes
    -----
    A knot may come to a sample and be held there, which ends both flows: see `relu_two_layer`. It does not happen
    before t = 3 for the defaults, and the more samples there are the less each of them holds; knots that hardly move
    are held at none (`experiment=relu_spline` is such a start, that comes to its target).
    """
    k, n = count("system.width", width), count("system.samples", samples, least=2)
    known(KNOTS, "choice of knots")("system.knots", knots)
    ratio = positive("system.imbalance", imbalance)
    random = generator(seed)
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y, grid = torch.sin(math.pi * x), torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    u, signs = normal(random, k) / math.sqrt(k), normal(random, k).sign()
    size, knot = torch.rand(2, k, generator=random, dtype=torch.float64, device="cpu").to(u)
    if knots == "even":
        place = torch.arange(k, dtype=u.dtype)
        knot, size, signs = (place + 0.25 + 0.5 * knot) / k, torch.full_like(u, 0.5), 1 - 2 * (place % 2)
    w, knot = ratio * signs * (0.5 + size), 2 * knot - 1
    theta = torch.cat((u / ratio, torch.stack((w, -w * knot), dim=-1).flatten()))
    network = TwoLayer(with_one(x), y.unsqueeze(-1), k, 0.0, (k, 2))
    return two_layer_system(
        "relu_spline",
        f"Univariate ReLU network with {k} knots, {n} samples of sin πx (seed {seed})",
        "Sahs et al. 2020, arXiv 2008.01772; closed flow: Marcotte et al. 2025, arXiv 2508.07370",
        network,
        theta,
        observe={
            "knots": partial(places, network=network),
            "slopes": partial(slopes, network=network),
            "function": partial(function, network=network, x=grid),
        },
        facts={"x": x, "y": y, "grid": grid},
    )


def places(theta: Tensor, network: TwoLayer) -> Tensor:
    """−b_j/w_j."""
    v = network.factors(theta)[1]
    return -v[..., 1] / v[..., 0]


def slopes(theta: Tensor, network: TwoLayer) -> Tensor:
    """u_j w_j."""
    u, v = network.factors(theta)
    return u[..., 0] * v[..., 0]


def function(theta: Tensor, network: TwoLayer, x: Tensor) -> Tensor:
    """y at x (n,)."""
    return network.outputs(theta, with_one(x)).squeeze(-1)


def with_one(x: Tensor) -> Tensor:
    """x (n,) as inputs (n, 2), with the one of the biases."""
    return torch.stack((x, torch.ones_like(x)), dim=-1)
