"""Skorski, Temperoni, Theobald 2020: a start that holds the Hessians of the layers, by an approximate chain rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
import xarray as xr

from ..depth.rules import LAYERS
from ..display import with_error
from ..finding import Check, Claim, Finding
from ..orders import Order, observed_order, said_each
from ..signatures import Count, Positive, Seed, above, at_least, at_most, distinct, each, increasing, known
from . import blockdepth, blockgrowth
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study
from .blockgrowth import FACTORS, HOMOGENEOUS, Gain, critical, crossing, rates
from .blocks import ACTIVATIONS, against_chain_rule, digits, powers
from .blocktraining import LAYERS_TRAINED, RATIOS, training

_WEAK = 0.3  # the first gain must be at most that

# Checks: of round-off; of the drop of norms at the first layer; of exponents; of gains with cross-entropy from few
# layers; of growth away from the critical gain; of factors of a step; of what is dropped at the end; of orders.
_ROUND_OFF, _FAR, _EXPONENT, _REAL, _DECAYS, _GROWS = 1e-12, 0.8, 0.1, 0.2, -0.2, 0.05
_STEP, _END, _START, _ORDER, _OTHER, _APART = 0.01, 0.05, 0.1, 0.15, 0.1, 0.04

# A critical gain is off by the first correction in 1/width, about 2.5/width, and by its standard error.
_FINITE, _ERRORS = 3.0, 3.0
_CLOSED = 1e-9  # of a minimum to half the digits in its place
_SLOPE = 1e-6  # of central differences and of Lanczos' method
_EDGE = 2.5  # times width^(−2/3), the size of fluctuations at the edge of a spectrum

LONG_NAMES = {
    "exact": "spectral norm of the block of a layer, exact",
    "kept": "spectral norm of the same by the chain rule",
    "dropped": "spectral norm of what the chain rule drops",
    "power": "slope of log(dropped/kept) in log gain as the gain tends to 0",
    "power_expected": "2k − L",
    "log_norm": "log ‖H_1‖/‖x‖² of one sample, squared loss, at the critical gain",
    "log_edge": "the same at infinite width",
    "edge_off": "distance of that from the same by the root of the derivative",
    "log_trace": "log tr H_1/(n‖x‖²) of one sample, squared loss, at the critical gain",
    "log_real": "log ‖H_1‖, digits, cross-entropy",
    "log_out": "log of the mean trace of the Hessian in the outputs, digits, cross-entropy",
    "loss": "loss of gradient descent",
    "sharpness": "largest eigenvalue of the whole Hessian",
    "sharpness_off": "relative distance of the last one from the growth of the gradient along its eigenvector",
    "trained": "spectral norm of the block of a layer along training",
    "trained_dropped": "dropped over kept along training",
    "factor": "growth of a disturbance in a step of gradient descent",
    "factor_expected": "|1 − ηλ|",
    "block": "L²‖∂²f/∂W_k²‖",
    "at_depth": "depths of these blocks",
    "error": "largest relative distance of the blocks from their limit",
    "error_other": "the same from the limit of the other kind of layers",
    "curve": "the limit, by kind of layers",
    "error_grid": "relative error of the limit that the depth grid makes",
}


def _weak(key: str, values: Sequence[float]) -> None:
    if values[0] > _WEAK:
        raise ValueError(f"{key} must begin at {_WEAK:g} or below, got {values}")


def _several(key: str, values: Sequence[int]) -> None:
    if len(values) < 2:
        raise ValueError(f"{key} must be two or more, for a growth per layer, got {values}")


def _spread(key: str, values: Sequence[int]) -> None:
    off = [L for L in values if L % blockdepth.LOOKED_AT]
    if len(values) < 3 or off:
        raise ValueError(f"{key} must be three or more multiples of {blockdepth.LOOKED_AT}, got {values}")


Width = Annotated[int, at_least(16), at_most(256)]
Samples = Annotated[int, at_least(2), at_most(1000)]
Deep = Annotated[int, at_least(3), at_most(20)]
Gains = Annotated[Sequence[float], distinct, each(above(0)), increasing, _weak]
Several = Annotated[Sequence[int], distinct, each(at_least(3), at_most(10)), increasing, _several]
Draws = Annotated[int, at_least(2), at_most(1000)]
Trained = Annotated[int, at_least(4), at_most(100)]
Rules = Annotated[Sequence[str], distinct, each(known(LAYERS))]
Multiples = Annotated[Sequence[int], distinct, each(at_least(8), at_most(1024)), increasing, _spread]


def run(
    *,
    width: Width = 64,
    samples: Samples = 64,
    layers: Deep = 5,
    gains: Gains = (0.3, 0.7, 1.0, 1.5),
    deep: Several = (3, 5, 7),
    draws: Draws = 3,
    repeats: Draws = 12,
    trained: Samples = 20,
    trained_width: Trained = 12,
    rate: Positive = 0.12,
    steps: Count = 1500,
    rules: Rules = ("euler", "cayley", "exp"),
    depths: Multiples = (32, 64, 128, 256),
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Blocks of the Hessian, one for each layer: against the chain rule, by gain, in training, and in depth.

    Parameters
    ----------
    width : int
        Of hidden layers.
    samples : int
        Digits.
    layers : int
        L of the networks whose blocks are compared with the chain rule.
    gains : sequence of float
        Of tanh networks: entries of W_k have the standard deviation gain/√fan-in; increasing, the first at most 0.3.
    deep : sequence of int
        L of the networks whose first block is followed by gain, and of tanh networks of small gain; two or more.
    draws : int
        Of the weights on digits.
    repeats : int
        Of the weights with one Gaussian sample.
    trained : int
        Digits of training.
    trained_width : int
        Of the trained network.
    rate : float
        Step size of gradient descent.
    steps : int
        Its steps.
    rules : sequence of str
        Layer rules of networks I + W/L + ….
    depths : sequence of int
        Their numbers of layers, increasing multiples of 8.
    seed : int
        Of all draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `exact`, `kept`, `dropped` over case, layer and draw; `log_real` over kind, factor, deep and draw.

    Raises
    ------
    RuntimeError
        If gradient descent does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    random = torch.Generator().manual_seed(seed)
    data = digits(samples, random)
    say(0.0, "blocks of layers against the chain rule")
    variables, cases = against_chain_rule(data, width, layers, gains, draws, random)
    say(0.25, "powers of the gain")
    variables |= powers(data, width, deep, random)
    say(0.4, "growth by depth")
    variables |= blockgrowth.growth(data, width, deep, draws, repeats, random)
    say(0.7, "gradient descent")
    along = training(digits(trained, random), trained_width, rate, steps, random)
    marks = along.pop("mark")
    say(0.8, "blocks in depth")
    variables |= along | blockdepth.in_depth(rules, depths, random)
    axes = [
        axis("case", cases, "activation and gain"),
        axis("layer", np.arange(layers) + 1, "layer k"),
        axis("draw", np.arange(draws), "draw"),
        axis("deep", list(deep), "number of layers L"),
        axis("inside", np.arange(max(deep) - 1) + 1, "layer k, small gain"),
        axis("inner", np.arange(LAYERS_TRAINED) + 1, "layer k, training"),
        axis("homogeneous", list(HOMOGENEOUS), "activation"),
        axis("number", list(blockgrowth.NUMBERS), "number of layers L, squared loss"),
        axis("kind", list(ACTIVATIONS), "activation"),
        axis("gain_factor", list(FACTORS), "gain over the critical one"),
        axis("mark", marks, "steps of gradient descent"),
        axis("ratio", list(RATIOS), "step size over 2/λ"),
        axis("rule", list(rules), "layer rule"),
        axis("depth", list(depths), "number of layers L"),
        axis("limit", ["no second derivative", "second derivative"], "of a layer in its W"),
        axis("s", blockdepth.CURVE, "depth s"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    title = f"{samples} digits, width {width}; I + W/L up to L = {depths[-1]}"
    return _finding(dataset, title, width).attached(dataset)


def _exponents(dataset: xr.Dataset) -> float:
    """How far the powers of the gain are from 2k − L, the largest over layers and depths."""
    known = ~np.isnan(dataset.power_expected.values)
    return float(np.abs(dataset.power.values[known] - dataset.power_expected.values[known]).max())


def _gains(dataset: xr.Dataset) -> dict[str, list[Gain]]:
    """Gains without growth over the critical one: by trace, norm over its edge and norm, and by norm on digits."""
    number, real = dataset.number.values, dataset.deep.values
    logs = {
        "trace": dataset.log_trace.values,
        "edge": dataset.log_norm.values - dataset.log_edge.values[..., None],
        "norm": dataset.log_norm.values,
    }
    found = {name: [critical(one) for one in rates(number, values)] for name, values in logs.items()}
    return found | {"real": [crossing(one) for one in rates(real, dataset.log_real.values)]}


def _orders(dataset: xr.Dataset) -> list[Order]:
    """How the blocks of each rule tend to their limit in depth."""
    floor = max(1e-14, float(dataset.error_grid))
    return [
        observed_order(dataset.depth.values, errors, floor)._replace(rule=f"blocks, {rule}", expected=1.0)
        for rule, errors in zip(dataset.rule.values, dataset.error.values, strict=True)
    ]


def _finding(dataset: xr.Dataset, title: str, width: int) -> Finding:
    orders, gains = _orders(dataset), _gains(dataset)
    return Finding(
        study="curvature",
        problem=f"Skorski et al. 2020: blocks of the Hessian, {title}",
        status="ok",
        verdict=_verdict(dataset, orders, gains),
        claim=Claim(
            "an approximate chain rule gives the Hessians of the layers, whose norms neither grow nor decay with depth "
            "at gain 1 (linear, tanh) and √2 (ReLU)",
            measured={name: [gain.value for gain in found] for name, found in gains.items()},
            published=1.0,
            figure="Skorski 2020",
        ),
        checks=_checks(dataset, width, orders, gains),
        orders=tuple(orders),
        numbers={
            "norm_gap": _norm_gap(dataset).mean("draw").values.tolist(),
            "dropped_over_kept": (dataset.dropped / dataset.kept).mean("draw").values.tolist(),
            "gains": {name: [list(gain) for gain in found] for name, found in gains.items()},
            "growth_real": rates(dataset.deep.values, dataset.log_real.values).mean(-1).tolist(),
            "growth_out": rates(dataset.deep.values, dataset.log_out.values).mean(-1).tolist(),
            "factors": dataset.factor.values.tolist(),
            "error_grid": float(dataset.error_grid),
        },
    )


def _verdict(dataset: xr.Dataset, orders: Sequence[Order], gains: dict[str, list[Gain]]) -> str:
    first = _norm_gap(dataset).sel(layer=1).mean("draw").values
    said = {name: ", ".join(map(_said, found)) for name, found in gains.items()}
    missed, off = f"{first[2]:.0%} of the norm of the first layer at gain {_gain(dataset, 2)}", _off_expected(dataset)
    grows = "a disturbance grows as |1 − ηλ| says"
    if not off <= _STEP:
        grows = f"the growth of a disturbance is off |1 − ηλ| by {off:.1%}"
    if len(first) > 3:
        missed += f" and {first[-1]:.0%} at gain {_gain(dataset, -1)}"
    return (
        f"The chain rule is exact for linear and ReLU networks to {_exactness(dataset):.1e}; for tanh it misses "
        f"{missed}, and dropped over kept has the power 2k − L of the gain to {_exponents(dataset):.3f}. "
        f"In units of the gains 1 (linear) and √2 (ReLU) the first block does not grow at {said['trace']} by its trace "
        f"and at {said['edge']} by its norm over that of infinite width; on digits with cross-entropy at "
        f"{said['real']} (linear, ReLU, tanh). Gradient descent ends at λ = {float(dataset.sharpness[-1]):.4g}, where "
        f"{grows}. L² times the blocks of networks of L layers tends to a function of depth at orders "
        f"{said_each(dict(zip(dataset.rule.values, orders, strict=True)))}."
    )


def _said(gain: Gain) -> str:
    return "none found" if np.isnan(gain.value) else with_error(gain.value, gain.error)


def _off_expected(dataset: xr.Dataset) -> float:
    """How far the growth of a disturbance is from |1 − ηλ|, relative, the largest over the step sizes."""
    return float(np.abs(dataset.factor.values / dataset.factor_expected.values - 1).max())


def _gain(dataset: xr.Dataset, case: int) -> str:
    return str(dataset.case.values[case]).split()[1]


def _norm_gap(dataset: xr.Dataset) -> xr.DataArray:
    """|‖G_k‖ − ‖H_k‖|/‖H_k‖."""
    return abs(dataset.kept - dataset.exact) / dataset.exact


def _exactness(dataset: xr.Dataset) -> float:
    """‖H_k − G_k‖ and ‖G_k‖ − ‖H_k‖ over ‖H_k‖, the largest over layers and draws of linear and ReLU networks."""
    return largest_of([largest_of((dataset.dropped / dataset.exact)[:2]), largest_of(_norm_gap(dataset)[:2])])


def _checks(
    dataset: xr.Dataset, width: int, orders: Sequence[Order], gains: dict[str, list[Gain]]
) -> tuple[Check, ...]:
    return (
        *_checks_of_chain_rule(dataset),
        *_checks_of_growth(dataset, width, gains),
        *_checks_of_training(dataset),
        Check(
            "orders of blocks in depth from 1",
            float(np.max([abs(order.value - 1) for order in orders])),
            _ORDER,
            "in 1/L, largest over the rules",
        ),
        Check(
            "distance from the limit of the other kind of layers, a control",
            least_of(dataset.error_other[:, -1]),
            _OTHER,
            "relative, at the largest L, least over the rules",
            least=True,
        ),
    )


def _checks_of_chain_rule(dataset: xr.Dataset) -> tuple[Check, ...]:
    over, last = "largest over layers and draws", largest_of((dataset.dropped / dataset.exact)[2:, -1])
    return (
        Check("blocks of the chain rule from exact ones, linear and ReLU", _exactness(dataset), _ROUND_OFF, over),
        Check("the same at the last layer, tanh", last, _ROUND_OFF, "largest over gains and draws"),
        Check(
            "norm that the chain rule misses at the first layer, tanh of the least gain, a control",
            least_of(_norm_gap(dataset)[2, 0]),
            _FAR,
            "relative, the least of the draws",
            least=True,
        ),
        Check("power of the gain in dropped over kept from 2k − L, tanh", _exponents(dataset), _EXPONENT, over),
    )


def _checks_of_growth(dataset: xr.Dataset, width: int, gains: dict[str, list[Gain]]) -> tuple[Check, ...]:
    growth = rates(dataset.deep.values, dataset.log_real.values).mean(-1)
    two_layers = largest_of(np.abs(dataset.log_norm[:, 0].mean("repeat", skipna=False) - dataset.log_edge[:, 0]))
    two, three = "linear and ReLU, the larger", "linear, ReLU and tanh, the largest"
    finite = {name: _FINITE / width + _ERRORS * max(gain.error for gain in gains[name]) for name in ("trace", "edge")}
    return (
        Check("gain without growth of the trace from the critical one", _off(gains["trace"]), finite["trace"], two),
        Check(
            "gain without growth of the norm over its edge from the critical one",
            _off(gains["edge"]),
            finite["edge"],
            two,
        ),
        Check("that edge from its closed form", largest_of(dataset.edge_off), _CLOSED, "its logarithm, all layers"),
        Check("log norm of two layers from its edge", two_layers, _EDGE * width ** (-2 / 3), two),
        Check(
            "gain without growth of the norm itself from the critical one, a control",
            float(np.min([abs(gain.value - 1) for gain in gains["norm"]])),
            _APART,
            "linear and ReLU, the smaller",
            least=True,
        ),
        Check(
            "gain without growth of the norm on digits, cross-entropy, from the critical one",
            _off(gains["real"]),
            _REAL,
            three,
        ),
        Check("growth per layer at 0.7 of the critical gain, a control", float(growth[:, 0].max()), _DECAYS, three),
        Check(
            "growth per layer at 1.4 of the critical gain, a control",
            float(growth[:, -1].min()),
            _GROWS,
            "linear, ReLU and tanh, the least",
            least=True,
        ),
    )


def _checks_of_training(dataset: xr.Dataset) -> tuple[Check, ...]:
    along, factor = dataset.trained_dropped.max("inner", skipna=False).values, dataset.factor.values
    off, unstable = _off_expected(dataset), dataset.ratio.values > 1
    above, over = float(factor[unstable].min()), "largest over layers"
    return (
        Check("growth of a disturbance in a step from |1 − ηλ|", off, _STEP, "relative, largest over the step sizes"),
        Check(
            "sharpness where training ends from the growth of the gradient along its eigenvector",
            float(dataset.sharpness_off),
            _SLOPE,
            "relative",
        ),
        Check("that growth at step sizes below 2/λ", float(factor[~unstable].max()), 1.0, "largest"),
        Check("that growth at step sizes above 2/λ, a control", above, 1.0, "least", least=True),
        Check("dropped over kept where training ends", float(along[-1]), _END, over),
        Check("dropped over kept where it starts, a control", float(along[0]), _START, over, least=True),
    )


def _off(gains: Sequence[Gain]) -> float:
    """The largest distance from 1; NaN where there is a NaN."""
    return float(np.max([abs(gain.value - 1) for gain in gains]))


STUDIES.register("curvature")(
    Study(
        run,
        question="Do the Hessians of the layers follow an approximate chain rule, and at which gain does their norm "
        "neither grow nor decay with depth, in training and as layers become a flow?",
    )
)
