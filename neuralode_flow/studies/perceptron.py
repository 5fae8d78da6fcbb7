"""Tyurin 2024, 2025: gradient descent on the logistic loss, and the perceptron that it becomes for large steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr

from ..finding import Check, Claim, Finding
from ..problems.handwritten import digit_pair
from ..signatures import Count, Positive, Seed, above, at_least, at_most, distinct, each, increasing
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study
from .homogeneous import Linear, Model, Separated, TwoLayer, descended, descent, deviation, perceptron, scale
from .margin import Margin, largest_margin

# Of γ·min|margin|: above the first the sigmoid is the indicator to 4e-18, and gradient descent is the perceptron;
# up to the second it is not, and between the third and the fourth it tends to it, above the floor of round-off.
THRESHOLD, _BELOW, _LOW, _HIGH = 40.0, 4.0, 12.0, 24.0

_ROUND_OFF, _APART, _RATE, _GAP, _BEYOND = 1e-12, 1e-8, 0.05, 1e-10, 2.0
_WRITTEN = 1e-6  # of a distance, and of its rate, by two routes, beyond their round-off
_PRODUCT = 1e-4  # round-off of a margin, up to 1e-13, over the least that is allowed
_NOISE = 0.1  # of the start of the two layers, around 1
_FAMILY_BOUND, _LARGE = 5.0, 40  # R²/μ² of the family: R² = 5/4 and μ = ½; the least n of the largest

LONG_NAMES = {
    "deviation": "largest distance of θ/c of gradient descent from θ̂ of the perceptron, over ‖θ̂‖",
    "deviation_written": "the same of gradient descent whose steps are written out",
    "scale": "c: step size of the linear model, scale of the start of the two layers",
    "least_margin": "margin nearest to 0 by which a step of the perceptron was decided",
    "product_off": "the product that c makes with that margin of the model that is trained, off the one asked for",
    "perceptron_steps": "steps of the perceptron until the classes are separated",
    "loss": "logistic loss of gradient descent, linear model",
    "mistakes": "share of samples on the wrong side, linear model",
    "perceptron_mistakes": "share of samples on the wrong side under the perceptron",
    "separated": "first step of gradient descent without a mistake",
    "family_steps": "steps until the family of n samples is separated, perceptron",
    "family_descent_steps": "the same, gradient descent",
    "family_expected": "the same, in closed form",
}


def _two(key: str, values: Sequence[int]) -> None:
    if len(values) != 2:
        raise ValueError(f"{key} must be two digits, got {values}; write {key}=[3,8]")


def _covers(key: str, values: Sequence[float]) -> None:
    between = [value for value in values if _LOW <= value <= _HIGH]
    if values[0] > _BELOW or values[-1] <= THRESHOLD or len(between) < 2:
        raise ValueError(
            f"{key} must have one of at most {_BELOW:g}, two from {_LOW:g} to {_HIGH:g} and one above {THRESHOLD:g}, "
            f"got {values}"
        )


def _untied(key: str, value: int) -> None:
    if (3 * value - 8) % 10 == 0:
        raise ValueError(f"{key} must not be 6, 16, 26, …, where a sample comes to the boundary itself, got {value}")


def _long(key: str, values: Sequence[int]) -> None:
    if values[-1] < _LARGE:
        raise ValueError(
            f"{key} must end at {_LARGE} or more, where the family needs over twice R²/μ² = {_FAMILY_BOUND:g} steps, "
            f"got {values}"
        )


Pair = Annotated[Sequence[int], distinct, each(at_least(0), at_most(9)), _two]
Products = Annotated[Sequence[float], distinct, each(above(0)), increasing, _covers]
Rates = Annotated[Sequence[float], distinct, each(above(0)), increasing]
Sizes = Annotated[Sequence[int], distinct, each(at_least(2), at_most(3000), _untied), increasing, _long]


def run(
    *,
    pair: Pair = (3, 8),
    products: Products = (0.4, 4.0, 12.0, 16.0, 20.0, 41.0, 400.0),
    step: Positive = 0.1,
    seed: Seed = 0,
    rates: Rates = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
    steps: Count = 1000,
    sizes: Sizes = (10, 30, 100, 300, 1000),
    progress: Progress | None = None,
) -> xr.Dataset:
    """Gradient descent on two handwritten digits against the perceptron, with the threshold at which they are one.

    Parameters
    ----------
    pair : sequence of int
        Two digits, the classes 1 and −1.
    products : sequence of float
        γ·min|margin| of the linear model, c²·min|margin| of the two layers, increasing: below and above 40.
    step : float
        Step of the perceptron of two layers.
    seed : int
        Of the start of two layers.
    rates : sequence of float
        Step sizes of gradient descent beside the perceptron, increasing.
    steps : int
        Steps of it.
    sizes : sequence of int
        Numbers of samples n of the family that needs about 3n/10 steps, increasing.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `deviation` over model and product; `loss` and `mistakes` over rate and step.

    Raises
    ------
    ValueError
        If the classes cannot be separated.
    RuntimeError
        If the perceptron separates them by its first step, or a sample comes to the boundary on its way.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    images, labels = digit_pair(*pair)
    signed = labels[:, None] * images
    margin = largest_margin(signed)
    models = _models(signed, seed)
    own = {"linear": 1.0, "two_layer": step}
    runs = {name: (model, perceptron(model, own[name]), own[name]) for name, model in models.items()}
    say(0.0, "gradient descent against the perceptron")
    variables = _limit(runs, products)
    say(0.4, "loss and mistakes at visible steps")
    variables |= _beside(models["linear"], runs["linear"][1], rates, steps)
    say(0.9, "the family of n samples")
    variables |= _family(sizes, products[-1])
    axes = [
        axis("model", list(models), "model"),
        axis("product", list(products), "c^p times the margin nearest to 0"),
        axis("rate", list(rates), "step size γ of gradient descent"),
        axis("step", np.arange(steps + 1), "step t"),
        axis("size", list(sizes), "samples n of the family"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    title = f"{len(signed)} handwritten digits, {pair[0]} against {pair[1]}"
    return _finding(dataset, title, signed, margin, perceptron(models["linear"], normalised=True)).attached(dataset)


def _models(signed: np.ndarray, seed: int) -> dict[str, Model]:
    d = signed.shape[1]
    start = 1 + _NOISE * np.random.default_rng(seed).standard_normal(2 * d)
    return {"linear": Linear(signed, np.zeros(d)), "two_layer": TwoLayer(signed, start)}


def _limit(runs: dict[str, tuple[Model, Separated, float]], products: Sequence[float]) -> dict[str, Any]:
    """Gradient descent against each model's perceptron, by the product that decides whether they are one."""
    scales = [[scale(model, found, product) for product in products] for model, found, _ in runs.values()]
    apart, written = (
        [
            [measure(model, found, c, step) for c in line]
            for (model, found, step), line in zip(runs.values(), scales, strict=True)
        ]
        for measure in (deviation, descended)
    )
    return {
        "deviation": (("model", "product"), apart),
        "deviation_written": (("model", "product"), written),
        "scale": (("model", "product"), scales),
        "least_margin": ("model", [found.least for _, found, _ in runs.values()]),
        "product_off": (
            "model",
            [
                float(np.abs(np.array(line) ** model.degree * _nearest(model, found) / np.array(products) - 1).max())
                for (model, found, _), line in zip(runs.values(), scales, strict=True)
            ],
        ),
        "perceptron_steps": ("model", [found.steps for _, found, _ in runs.values()]),
    }


def _nearest(model: Model, found: Separated) -> float:
    """`Separated.least` by the margins that gradient descent derives, along the path of the perceptron."""
    decided = [torch.as_tensor(theta) for theta in found.path[:-1] if theta.any()]
    return float(torch.stack([model.margins(theta) for theta in decided]).abs().min())


def _beside(model: Model, found: Separated, rates: Sequence[float], steps: int) -> dict[str, Any]:
    """Loss and mistakes of gradient descent at visible step sizes, and the mistakes of the perceptron."""
    paths = [descent(model, rate, steps) for rate in rates]
    mistakes = np.array([(path.z <= 0).double().mean(1).cpu().numpy() for path in paths])
    under = np.zeros(steps + 1)
    kept = found.mistakes[: steps + 1]
    under[: len(kept)] = kept
    return {
        "loss": (("rate", "step"), [path.loss.cpu().numpy() for path in paths]),
        "mistakes": (("rate", "step"), mistakes),
        "perceptron_mistakes": ("step", under),
        "separated": ("rate", [_first(line == 0) for line in mistakes]),
    }


def _first(holds: np.ndarray) -> float:
    """The first step at which something holds; NaN if at none."""
    return float(holds.argmax()) if holds.any() else np.nan


def _family(sizes: Sequence[int], product: float) -> dict[str, Any]:
    """Steps on one sample (½, −1) of class 1 and n − 1 samples (−½, −1) of class −1, which are of order n.

    The first step leads to (¼, (n − 2)/2n); each further one adds (½, −1)/n until the sample of class 1 is on its side,
    (3n − 8)/10 of them if that is no whole number, or the next one.
    """
    steps, expected, descents = [], [], []
    for n in sizes:
        model = Linear(np.vstack(([[0.5, -1.0]], np.tile([0.5, 1.0], (n - 1, 1)))), np.zeros(2))
        found = perceptron(model)
        c = scale(model, found, product) if found.steps > 1 else product
        path = descent(model, c, found.steps + 1, c)
        steps.append(found.steps)
        expected.append(1 + max(0, (3 * n - 8) // 10 + 1))
        descents.append(_first((path.z > 0).all(1).cpu().numpy()))
    return {
        "family_steps": ("size", steps),
        "family_expected": ("size", expected),
        "family_descent_steps": ("size", descents),
    }


def _decay(dataset: xr.Dataset) -> np.ndarray:
    """How fast log deviation falls with the product, (model,): at rate 1 if it is that of the nearest margin alone."""
    between = dataset.sel(product=slice(_LOW, _HIGH))
    return -np.polyfit(between["product"].values, np.log(between.deviation.values.T), 1)[0]


def _off_written(dataset: xr.Dataset, decay: np.ndarray) -> tuple[float, float]:
    """How far the distances between, and the rate at which they fall, are from those of steps written out, relatively.

    Beyond their round-off, which is what is left of the distance above the threshold. Below, a sample may come so near
    to the boundary that steps of both routes go apart.
    """
    between = dataset.sel(product=slice(_LOW, _HIGH))
    left = dataset.deviation.where(dataset["product"] > THRESHOLD, drop=True).max("product", skipna=False)
    written = between.deviation_written
    floor = 2 * left / written
    x = between["product"] - between["product"].mean()
    weights = x / (x**2).sum()
    rate = -(weights * np.log(written)).sum("product", skipna=False)
    apart = abs(between.deviation - written) / written - floor
    slower = abs(decay - rate) / abs(rate) - (abs(weights) * floor).sum("product", skipna=False)
    return largest_of(apart.clip(min=0)), largest_of(slower.clip(min=0))


def _finding(dataset: xr.Dataset, title: str, signed: np.ndarray, margin: Margin, normalised: Separated) -> Finding:
    above_it = largest_of(dataset.deviation.where(dataset["product"] > THRESHOLD, drop=True))
    below_it = least_of(dataset.deviation.where(dataset["product"] <= _BELOW, drop=True))
    decay, counts = _decay(dataset), dataset.perceptron_steps.values.tolist()
    bound = float((signed**2).sum(1).max()) / margin.upper**2  # R²/μ²
    family = dataset[["family_steps", "family_descent_steps"]].to_array() - dataset.family_expected
    least, nearest = dataset.least_margin.values, THRESHOLD / dataset.least_margin.values
    return Finding(
        study="perceptron",
        problem=f"Tyurin 2024, 2025: gradient descent as a perceptron, {title}",
        status="ok",
        verdict=f"Gradient descent takes the steps of the perceptron to {above_it:.1e} once γ·min|margin| is above "
        f"{THRESHOLD:g}: for the linear model γ above {nearest[0]:.1e}, for two layers a start above "
        f"{nearest[1] ** 0.5:.0f} times the plain one; at most {_BELOW:g} leaves {below_it:.1e} or more. Between, the "
        f"distance falls like exp(−{decay[0]:.3f} γ·min|margin|) and exp(−{decay[1]:.3f} …). "
        f"{counts[0]} and {counts[1]} steps separate the digits; nR²/μ² is {len(signed) * bound:.3g}. {_said(dataset)}",
        claim=Claim(
            "as its step (linear) or the scale of its start (two layers) grows, gradient descent on the logistic loss "
            "becomes the perceptron, which separates the classes within nR²/μ² steps",
            measured=above_it,
            published=0.0,
            figure="Tyurin 2024",
        ),
        checks=_checks(dataset, (above_it, below_it), decay, len(signed) * bound, largest_of(np.abs(family)))
        + (
            Check("steps of the normalised perceptron over R²/μ²", normalised.steps / bound, 1.0),
            Check("gap between the largest margin and its bound by the convex hull", margin.gap, _GAP, "relative"),
        ),
        numbers={
            "least_margin": least.tolist(),
            "perceptron_steps": counts,
            "normalised_steps": normalised.steps,
            "margin": margin.lower,
            "decay": decay.tolist(),
            "separated": dataset.separated.values.tolist(),
            "largest_loss": dataset.loss.max("step").values.tolist(),
        },
    )


def _checks(
    dataset: xr.Dataset, apart: tuple[float, float], decay: np.ndarray, bound: float, family: float
) -> tuple[Check, ...]:
    size, steps = int(dataset["size"][-1]), int(dataset.family_steps[-1])
    written = _off_written(dataset, decay)
    over = "sup over the steps and both models, over ‖θ̂‖"
    return (
        Check(f"gradient descent from the perceptron, γ·min|margin| above {THRESHOLD:g}", apart[0], _ROUND_OFF, over),
        Check(
            f"the same at most {_BELOW:g}, a control",
            apart[1],
            _APART,
            "the least of both models, over ‖θ̂‖",
            least=True,
        ),
        Check(
            "the rate at which it falls with γ·min|margin| from 1",
            float(np.abs(decay - 1).max()),
            _RATE,
            "largest of both models",
        ),
        Check(
            f"the distance, γ·min|margin| from {_LOW:g} to {_HIGH:g}, off that of steps written out",
            written[0],
            _WRITTEN,
            "relative, beyond round-off, largest of both models",
        ),
        Check(
            "the rate at which it falls off that of steps written out",
            written[1],
            _WRITTEN,
            "relative, beyond round-off, largest of both models",
        ),
        Check(
            "γ·min|margin| of the models that are trained off that of the perceptron",
            largest_of(dataset.product_off),
            _PRODUCT,
            "relative, the largest of both models",
        ),
        Check("steps of the perceptron over nR²/μ²", int(dataset.perceptron_steps[0]) / bound, 1.0),
        Check("steps on the family of n samples off their number", family, 0.0, "largest over n and both algorithms"),
        Check(
            f"steps on {size} of them over R²/μ² without n, a control",
            steps / _FAMILY_BOUND,
            _BEYOND,
            least=True,
        ),
    )


def _said(dataset: xr.Dataset) -> str:
    """When gradient descent at the largest and at the smallest step size separates the classes, and its loss."""
    separated, largest = dataset.separated.values, dataset.loss.max("step").values
    rates, last = dataset.rate.values, int(dataset.step[-1])
    told = []
    for i in dict.fromkeys((0, len(rates) - 1)):
        when = f"at step {separated[i]:.0f}" if np.isfinite(separated[i]) else f"not in {last} steps"
        told.append(f"γ = {rates[i]:g} separates them {when}, with losses up to {largest[i]:.3g}")
    return "; ".join(told) + "."


STUDIES.register("perceptron")(
    Study(
        run,
        question="Does gradient descent on the logistic loss take the steps of the perceptron once its steps, or its "
        "start, are large, where exactly, and how many steps then separate two classes?",
    )
)
