"""Min, Tarmoun, Vidal, Mallada 2021: what the start of two linear layers decides, their rate and their solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..display import with_error
from ..finding import Check, Claim, Finding
from ..orders import Order, observed_order
from ..problems import Problem
from ..signatures import Count, Positive, Seed, at_least, distinct, each, increasing
from ..time.integrate import integrate
from .axes import arranged, axis
from .base import STUDIES, Progress, Study, whole
from .overparametrised import (
    Samples,
    ends,
    gaussian,
    imbalance,
    invariant,
    kernel,
    one_sided,
    rate_bound,
    samples_of,
    wide_ends,
    wide_start,
)

# α of the entries N(0, width^(−2α)): at ¼ the distance from the least norm does not fall with the width, a control.
EXPONENTS = (0.5, 0.25)

# Below this part of the first loss the error of the solver could look like a slower fall.
_SEEN = 1e-8

_RTOL, _ATOL = 1e-9, 1e-12
_OUTPUTS = 41  # times of a run

# Bounds: of what the solver makes alone; of the kept law; of rates, whose kernel still moves by exp(−horizon/2); of
# what is left of a loss; of orders without and with draws behind them, the second at four standard errors or more.
_EXACT, _KEPT, _RATE, _LEFT, _ORDER, _DRAWN = 1e-4, 1e-7, 1e-3, 1e-6, 0.1, 0.05
_ERRORS, _SHARP, _APART = 4.0, 0.02, 0.05

LONG_NAMES = {
    "distance": "distance of UVᵀ from the solution of least norm, root mean square over draws",
    "distance_error": "its standard error",
    "distance_wide": "its limit in closed form, at infinite width but for the factor width^(−α)",
    "moved": "‖V‖² at the end over its limit in closed form, minus 1, root mean square over draws",
    "moved_error": "its relative standard error",
    "bound_over_fall": "rate of the bound over the fall of the loss, largest over draws and time",
    "rate": "rate of the residual along its slowest direction over σ_min(X)²",
    "rate_closed": "the same in closed form",
    "rate_bound": "c",
    "family_bound_over_fall": "rate of the bound over the fall of the loss, largest over time",
    "loss": "loss over its first value",
    "bound_time": "exponent 2σ_min(X)²ct of the bound",
}


def _begins_balanced(key: str, values: Sequence[float]) -> None:
    if len(values) < 4 or values[0] != 0:
        raise ValueError(f"{key} must be 0 and at least three larger numbers, got {values}")


def _several(key: str, values: Sequence[int]) -> None:
    if len(values) < 3:
        raise ValueError(f"{key} must be at least three numbers, for an order, got {values}")


Imbalances = Annotated[Sequence[float], distinct, increasing, _begins_balanced]
Widths = Annotated[Sequence[int], distinct, each(at_least(1)), increasing, _several]
Draws = Annotated[int, at_least(8)]


def run(
    problem: Problem,
    *,
    rows: Count = 4,
    outputs: Count = 2,
    widths: Widths = (32, 128, 512, 2048),
    draws: Draws = 64,
    imbalances: Imbalances = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
    horizon: Positive = 20.0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Two linear layers X U Vᵀ on fewer samples than features: the rate by the imbalance, the solution by the width.

    Parameters
    ----------
    problem : Problem
        One with samples.
    rows : int
        Number of samples, fewer than X has columns; drawn.
    outputs : int
        Columns of Y, fewer than `rows`: balanced square factors would keep the sign of their determinant.
    widths : sequence of int
        Hidden units of random starts, at least as many as features and outputs together; any number costs the same.
    draws : int
        Random starts of each width.
    imbalances : sequence of float
        a² of the starts with Λ = U₁ᵀU₁ − VᵀV = a²; the first is 0, a balanced start.
    horizon : float
        Where training ends, in units of 1/the slowest rate at the end in closed form.
    seed : int
        Of rows and starts.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ValueError
        If the problem has no samples, or the rows or the widths do not suit it.
    RuntimeError
        If a run does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    samples = samples_of(problem, rows, outputs, seed)
    least = samples.x.shape[1] + outputs
    if widths[0] < least:
        raise ValueError(f"study.widths must begin at {least} or more, features and outputs together, got {widths[0]}")
    generator = torch.Generator().manual_seed(seed)
    say(0.0, "random starts of several widths")
    variables, numbers = _random(samples, widths, draws, horizon, generator)
    say(0.8, "starts of several imbalances")
    family, more = _family(samples, imbalances, horizon, generator)
    times = np.linspace(0.0, horizon, _OUTPUTS)
    axes = [
        axis("exponent", list(EXPONENTS), "α of the entries N(0, width^(−2α))"),
        axis("width", list(widths), "hidden units"),
        axis("imbalance", list(imbalances), "imbalance a² = U₁ᵀU₁ − VᵀV"),
        axis("time", times, "training time t, in units of 1/the slowest rate"),
    ]
    dataset = arranged(variables | family, axes, LONG_NAMES)
    title = f"{rows} samples with {outputs} targets of {problem.title}"
    return _finding(dataset, title, numbers | more).attached(dataset)


def _trained(samples: Samples, theta: Tensor, rates: Tensor, horizon: float) -> tuple[Tensor, Tensor]:
    """The states (T, ...) and losses (T, ...) of one flow for each member, in units of 1/its rate."""
    times = torch.linspace(0.0, horizon, _OUTPUTS, dtype=torch.float64)
    path = integrate(samples.flow(rates), theta, times, "DOP853", _RTOL, _ATOL, observe=lambda _, state: state.clone())
    states = whole(path, "flow of two linear layers").observed
    assert states is not None
    return states, samples.residual(states).square().sum((-2, -1)) / 2


def _random(
    samples: Samples, widths: Sequence[int], draws: int, horizon: float, generator: torch.Generator
) -> tuple[dict[str, Any], dict[str, float]]:
    """Gaussian starts of every exponent and width at once, and starts in the invariant set."""
    n, m = samples.y.shape
    w, x1 = samples.span.mT @ samples.least, samples.x @ samples.span
    scales = [[float(width) ** (1 - 2 * exponent) for width in widths] for exponent in EXPONENTS]
    limits = [[wide_ends(w, scale) for scale in row] for row in scales]
    rates = torch.stack([torch.stack([_slowest(kernel(x1, *one)) for one in row]) for row in limits])
    size = torch.stack([torch.stack([one[1].trace() for one in row]) for row in limits])
    start = torch.stack(
        [
            torch.stack([gaussian(samples, width, exponent, draws, generator) for width in widths])
            for exponent in EXPONENTS
        ]
    )
    states, losses = _trained(samples, start, rates.unsqueeze(-1), horizon)
    U1, U2, V = samples.parts(states)
    law = imbalance(U1, V)
    sigma = torch.linalg.matrix_norm(samples.x, ord=-2)
    c = 2 * sigma**2 * rate_bound(law[0], n, m) / rates.unsqueeze(-1)
    U, V_end = samples.factors(states[-1])
    off, unfitted = U @ V_end.mT - samples.least, torch.linalg.pinv(samples.x) @ samples.residual(states[-1])
    squares, ends_at = off.square().sum((-2, -1)), V_end.square().sum((-2, -1)) / size.unsqueeze(-1) - 1
    factor = torch.tensor([[width ** (-2 * exponent) for width in widths] for exponent in EXPONENTS], dtype=size.dtype)
    factor = factor.to(size)
    free = samples.x.shape[1] - n
    sum_of = U1.mT @ U1 + V.mT @ V
    inside = invariant(samples, start[0, -1, :8])
    reached = samples.factors(_trained(samples, inside, rates[0, -1].expand(8), horizon)[0][-1])
    variables = {
        "distance": squares.mean(-1).sqrt(),
        "distance_error": squares.std(-1) / (2 * squares.mean(-1).sqrt() * draws**0.5),
        "distance_wide": (free * factor * size).sqrt(),
        "moved": ends_at.square().mean(-1).sqrt(),
        "moved_error": ends_at.square().std(-1) / (2 * ends_at.square().mean(-1) * draws**0.5),
        "bound_over_fall": _bound_over_fall(losses, c, horizon).amax(-1),
    }
    norm = samples.least.norm()
    squares_of_start = (start.square().sum((-3, -2, -1)) / factor).sum()
    entries = len(EXPONENTS) * draws * (samples.x.shape[1] + m) * sum(widths)
    return {name: (("exponent", "width"), values) for name, values in variables.items()}, {
        "law": float(((law - law[0]).norm(dim=(-2, -1)) / law[0].norm(dim=(-2, -1))).max()),
        "sum": float(((sum_of[-1] - sum_of[0]).norm(dim=(-2, -1)) / sum_of[0].norm(dim=(-2, -1)))[0].min()),
        "unsaid": float((off + unfitted - U2[0] @ V_end.mT).norm(dim=(-2, -1)).max() / norm),
        "unfitted": float(unfitted.norm(dim=(-2, -1)).max() / norm),
        "inside": float((reached[0] @ reached[1].mT - samples.least).norm(dim=(-2, -1)).max() / norm),
        "inside_orthogonal": float(samples.parts(inside)[1].norm(dim=(-2, -1)).min()),
        "unmoved": float((m / size[0, 0] - 1).abs()),
        "wide_off": _wide_off(samples, torch.tensor(scales, dtype=torch.float64).to(w), limits, rates, horizon),
        "start_off": float((squares_of_start - entries).abs() / (2 * entries) ** 0.5),
    }


def _wide_off(
    samples: Samples, scales: Tensor, limits: list[list[tuple[Tensor, Tensor]]], rates: Tensor, horizon: float
) -> float:
    """How far training from the starts that infinite width has in its limit ends from `wide_ends`, relative."""
    theta = scales.sqrt()[..., None, None] * wide_start(samples)
    U1, _, V = samples.parts(_trained(samples, theta, rates, horizon)[0][-1])
    off = [
        ((factor @ factor.mT - wanted).norm(dim=(-2, -1)) / wanted.norm(dim=(-2, -1))).max()
        for k, factor in enumerate((U1, V))
        for wanted in [torch.stack([torch.stack([one[k] for one in row]) for row in limits])]
    ]
    return float(torch.stack(off).max())


def _family(
    samples: Samples, imbalances: Sequence[float], horizon: float, generator: torch.Generator
) -> tuple[dict[str, Any], dict[str, float]]:
    """Starts with Λ = a² for every a²: their rates, measured and in closed form."""
    n, m = samples.y.shape
    w, x1 = samples.span.mT @ samples.least, samples.x @ samples.span
    rates = torch.stack([_slowest(kernel(x1, *ends(w, value))) for value in imbalances])
    start = torch.stack([one_sided(samples, value, generator) for value in imbalances])
    states, losses = _trained(samples, start, rates, horizon)
    U1, _, V = samples.parts(states)
    last = kernel(x1, U1[-1] @ U1[-1].mT, V[-1] @ V[-1].mT)
    slowest = torch.linalg.eigh(last).eigenvectors[..., 0]
    along = (samples.residual(states).flatten(-2) * slowest).sum(-1).abs()
    middle = _OUTPUTS // 2
    seen = (along[middle] / along[-1]).log() / (horizon * (1 - middle / (_OUTPUTS - 1))) * rates
    sigma = torch.linalg.matrix_norm(samples.x, ord=-2) ** 2
    c = rate_bound(imbalance(U1[0], V[0]), n, m)
    exponent = 2 * sigma * c / rates
    return {
        "rate": ("imbalance", seen / sigma),
        "rate_closed": ("imbalance", rates / sigma),
        "rate_bound": ("imbalance", c),
        "family_bound_over_fall": ("imbalance", _bound_over_fall(losses, exponent, horizon)),
        "loss": (("time", "imbalance"), losses / losses[0]),
        "bound_time": (
            ("time", "imbalance"),
            torch.linspace(0.0, horizon, _OUTPUTS, dtype=torch.float64).to(c).unsqueeze(-1) * exponent,
        ),
    }, {"kernel": float((_slowest(last) / rates - 1).abs().max())}


def _slowest(kernel: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(kernel)[..., 0]


def _bound_over_fall(losses: Tensor, rate: Tensor, horizon: float) -> Tensor:
    """rate · t over −log(L/L₀), the largest over all times after the first at which L is above the solver's error.

    NaN where it is at none.
    """
    times = torch.linspace(0.0, horizon, _OUTPUTS, dtype=torch.float64).to(losses)[1:]
    fall = -(losses[1:] / losses[0]).log()
    over = torch.where(fall > 0, rate * times.reshape(-1, *(1,) * rate.ndim) / fall, torch.inf)
    seen = losses[1:] > _SEEN * losses[0]
    return torch.where(seen.any(0), torch.where(seen, over, 0.0).amax(0), torch.nan)


def _in_width(dataset: xr.Dataset, exponent: float) -> tuple[float, float]:
    """The order of the distance in 1/width, and its standard error from those of the distances."""
    one = dataset.sel(exponent=exponent)
    weights = (one.distance / one.distance_error).values
    fit, covariance = np.polyfit(np.log(one.width), np.log(one.distance), 1, w=weights, cov="unscaled")
    return -float(fit[0]), float(covariance[0, 0] ** 0.5)


def _orders(dataset: xr.Dataset) -> tuple[Order, Order]:
    half, uneven = dataset.sel(exponent=0.5), dataset.isel(imbalance=slice(1, None))
    excess = (uneven.rate_closed / uneven.rate_bound - 1).values
    return (
        observed_order(half.width.values, half.moved.values, 0.0, half.moved_error.values)._replace(
            rule="‖V‖² at the end", expected=0.5, over="widths"
        ),
        observed_order(uneven.imbalance.values, excess, 1e-12)._replace(
            rule="rate over its bound", expected=2.0, over="imbalances"
        ),
    )


def _finding(dataset: xr.Dataset, title: str, numbers: dict[str, float]) -> Finding:
    (order, error), (control, _) = (_in_width(dataset, exponent) for exponent in EXPONENTS)
    moved, sharp = _orders(dataset)
    over = float(np.max([dataset[name].values.max() for name in ("bound_over_fall", "family_bound_over_fall")]))
    last = dataset.isel(exponent=0, width=-1)
    standard = abs(float((last.distance - last.distance_wide) / last.distance_error))
    return Finding(
        study="min_norm",
        problem=f"Min, Tarmoun, Vidal, Mallada 2021: two linear layers, {title}",
        status="ok",
        verdict=f"{_fall(over, _sharpest(dataset))} at an imbalance of {float(dataset['imbalance'][-1]):g}. The "
        f"distance from the solution of least norm falls at order {with_error(order, error)} in the width (at the "
        f"exponent ¼, {control:.3f}); at the largest it is {standard:.1f} standard errors from its limit in closed "
        "form.",
        claim=Claim(
            "the loss falls exponentially at a rate that the imbalance of the start bounds; at large width a random "
            "start ends near the solution of least norm",
            measured={"bound over fall": over, "order in width": order},
            figure="Min 2021",
        ),
        checks=_checks(dataset, numbers, over, order, control, standard),
        orders=(moved, sharp),
        numbers=numbers | {"order_in_width": order, "order_error": error, "order_at_a_quarter": control},
    )


def _sharpest(dataset: xr.Dataset) -> float:
    """By how much the rate of the slowest direction is above its bound at the largest imbalance, relative."""
    return float(dataset.rate[-1] / dataset.rate_bound[-1]) - 1


def _fall(over: float, sharpest: float) -> str:
    """What the rates say of the bound."""
    how, most = ("at least as fast as", "at most") if over <= 1 + _LEFT else ("slower than", "up to")
    fall = f"The loss falls {how} the imbalance of the start says, whose rate is {most} {over:.3f} of the measured one"
    if np.isnan(over):
        fall = (
            "Whether the loss falls as fast as the imbalance of the start says is not known, since of some start none "
            "after the first is above the error of the solver"
        )
    if abs(sharpest) <= _SHARP:
        return f"{fall}, and {sharpest:.1e} below it along the slowest direction"
    return f"{fall}; that along the slowest direction is off its bound by {abs(sharpest):.1e}"


def _checks(
    dataset: xr.Dataset, numbers: dict[str, float], over: float, order: float, control: float, standard: float
) -> tuple[Check, ...]:
    moved, sharp = _orders(dataset)
    rates = float(np.abs(dataset.rate / dataset.rate_closed - 1).values.max())  # NaN stays
    return (
        Check("rate of the bound over the fall of the loss", over, 1 + _LEFT, "largest over starts and time"),
        Check("imbalance Λ, by how much it moves", numbers["law"], _KEPT, "relative, sup over starts and time"),
        Check("UᵀU + VᵀV, by how much it moves, a control", numbers["sum"], _APART, "relative", least=True),
        Check("rate of the slowest direction from the closed kernel", rates, _RATE, "relative, all imbalances"),
        Check("slowest rate of the kernel where training ends, from closed", numbers["kernel"], _EXACT, "relative"),
        Check(
            "rate of the slowest direction beyond its bound, largest imbalance",
            abs(_sharpest(dataset)),
            _SHARP,
            "relative, on either side",
        ),
        Check("order in a² of the rate over its bound from 2", abs(sharp.value - 2), _ORDER),
        Check("c of the balanced start, a control", float(dataset.rate_bound[0]), _KEPT),
        Check("loss left of the balanced start, a control", float(dataset.loss[-1, 0]), _LEFT, "of the first"),
        Check("order in 1/width of the distance from ½", abs(order - 0.5), _DRAWN),
        Check("distance from its closed limit, largest width", standard, _ERRORS, "in standard errors"),
        Check("order of the distance at the exponent ¼, a control", abs(control), _DRAWN),
        Check("order in 1/width of ‖V‖² to its closed limit from ½", abs(moved.value - 0.5), 2 * _ORDER),
        Check(
            "‖V‖² if it did not move, from that limit, a control", numbers["unmoved"], _APART, "relative", least=True
        ),
        Check("distance that U₂Vᵀ and what is not fitted leave unsaid", numbers["unsaid"], _KEPT, "relative"),
        Check("distance from a start in the invariant set", numbers["inside"], _EXACT, "relative to the least norm"),
        Check("where a start of infinite width ends, from closed", numbers["wide_off"], _EXACT, "relative"),
        Check(
            "mean square of the entries of random starts off that of N(0, width^(−2α))",
            numbers["start_off"],
            _ERRORS,
            "in standard errors, all starts together",
        ),
        Check("U₂ of that start, a control", numbers["inside_orthogonal"], _APART, least=True),
    )


STUDIES.register("min_norm")(
    Study(
        run,
        question="How fast do two linear layers fit few samples, and how near do they come to the solution of least "
        "norm?",
    )
)
