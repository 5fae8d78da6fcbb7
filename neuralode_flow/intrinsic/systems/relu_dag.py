"""Deep ReLU networks with biases and skip connections, through their path lifting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from ...checks import count
from ...losses import LeastSquares
from ...signatures import Seed
from ..paths import ReluDag
from .base import SYSTEMS, System, generator, normal
from .relu_two_layer import network_flow, slope_of

# A comparison ends where a preactivation has lost all but this part of what it had at the start: not at zero, since a
# switch that both sides lead to is approached and never passed.
_LEFT = 1e-3

_DRAWS = 1000


@SYSTEMS.register("relu_dag")
def relu_dag(
    widths: Sequence[int] = (2, 4, 3, 1),
    skips: bool = True,
    slope: float = 0.0,
    samples: int = 8,
    seed: Seed = 0,
) -> System:
    """z = φ(θ), the products of the weights along all paths, with a law for every hidden neuron (Marcotte 2025).

    (z, h) determine θ locally where none of its entries is zero, but there is no formula for the flow of z. f(z) is the
    regression 1/(2n) Σ_i ‖y(x_i) − y_i‖² with the activations of θ₀, true until the first of them switches; `flow` is
    that of the network itself and goes on. That θ is recovered from (z, h), from the last one on, makes the comparison
    a check that they determine θ, and not one with an independent formula.

    Parameters
    ----------
    widths : sequence of int
        Widths of the layers, from the inputs to the outputs.
    skips : bool
        Whether every layer also leads to the layer after the next.
    slope : float
        σ(p) = p for p > 0 and `slope` p else, from 0 (ReLU) up to 1.
    samples : int
        n, how many x_i there are: absolute values of standard normals. The y_i are a linear map of them.
    seed : int
        Seed of x, y and θ₀, which is the best of 1000 draws: see `far_from_switches`.
    """
    n = count("system.samples", samples)
    if not isinstance(widths, Sequence) or len(widths) < 3:
        raise TypeError(f"system.widths must be a sequence of at least 3 integers, got {widths!r}")
    if not isinstance(skips, bool):
        raise TypeError(f"system.skips must be True or False, got {skips!r}")
    sizes = [count("system.widths", width) for width in widths]
    dag = ReluDag.layered(sizes, skips=skips, slope=slope_of(slope))
    random = generator(seed)
    x = normal(random, n, dag.inputs).abs()
    y = x @ normal(random, dag.inputs, dag.outputs) / math.sqrt(dag.inputs)
    theta = far_from_switches(dag, x, normal(random, _DRAWS, dag.parameters) / math.sqrt(max(sizes)))
    design, start = dag.design(theta, x), dag.preactivations(theta, x)
    # LeastSquares divides by the outputs too.
    scale = math.sqrt(dag.outputs)
    return System(
        name="relu_dag",
        title=f"ReLU network {'–'.join(map(str, sizes))}{' with skips' if skips else ''}, {dag.paths} paths, "
        f"regression on {n} samples (seed {seed})",
        source="Marcotte et al. 2025, arXiv 2508.07370; paths: Gonon et al. 2023, arXiv 2310.01225",
        phi=dag.lifting,
        laws=dag.laws,
        theta=theta,
        loss=LeastSquares(scale * design, scale * y.flatten()),
        independent=dag.hidden,
        recoverable=True,
        metric=True,
        flow=network_flow(partial(dag.forward, x=x), y, dag.laws),
        until=partial(_before_switch, dag=dag, x=x, start=start),
        until_what="the first switch of an activation",
        bound=1e-6,
        checks=checks_of(dag, x),
    )


def checks_of(dag: ReluDag, x: Tensor) -> dict[str, Callable[[Tensor, Tensor], float]]:
    """What must hold along a path θ(t) of the network on samples x: errors, by name."""
    return {
        "output equals Σ paths": partial(_off_sums, dag=dag, x=x),
        "invariant under neuron rescaling": partial(_moved_by_rescaling, dag=dag),
    }


def _off_sums(times: Tensor, path: Tensor, dag: ReluDag, x: Tensor) -> float:
    listed = (dag.design(path, x) @ dag.lifting(path).unsqueeze(-1)).squeeze(-1)
    return float((listed - dag.forward(path, x).flatten(-2)).abs().max())


def _moved_by_rescaling(times: Tensor, path: Tensor, dag: ReluDag) -> float:
    moved = path
    for neuron in range(dag.hidden):
        moved = dag.rescale(moved, neuron, 1.5 + neuron % 2)
    return float((dag.lifting(moved) - dag.lifting(path)).abs().max())


def _before_switch(t: float, z: Tensor, theta: Tensor, dag: ReluDag, x: Tensor, start: Tensor) -> float:
    return float((dag.preactivations(theta, x) / start).min()) - _LEFT


def far_from_switches(dag: ReluDag, x: Tensor, draws: Tensor) -> Tensor:
    """The θ (n,) of draws (N, n) whose smallest |preactivation| is largest.

    Only those count that make something of the activations: every neuron is active at some sample, and a third of them
    not at all samples.
    """
    sums = dag.preactivations(draws, x)
    active = (sums > 0).any(-2)
    mixed = active & ~(sums > 0).all(-2)
    counts = active.all(-1) & (3 * mixed.sum(-1) >= dag.hidden)
    return draws[(sums.abs().amin((-2, -1)) * counts).argmax()]
