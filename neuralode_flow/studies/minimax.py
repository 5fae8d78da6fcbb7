"""Zhu, Zhang, Wang, Yang, Chen 2024: mean-field networks that solve an equation by gradient descent and ascent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..matrices import normal
from ..orders import LEAST_POINTS, Order, local_orders, observed_order, said
from ..signatures import Members, Positive, Seed, above, at_least, at_most, below, distinct, each, increasing
from .axes import arranged, axis, largest_of
from .base import STUDIES, Progress, Study
from .meanfield import COARSE, LAWS, OUTPUTS, Averages, Setting, averages, by_alpha, by_steps, by_width, kernel_error
from .saddle import instruments, policy, stacked

EQUATIONS = ("instruments", "policy")
_POINTS, _HALF_WIDTH = 12, 1.5  # of the grid
_LONG = 3  # scales α that are also run for a long time, from the first on
_FIRST, _LEAST = 1.0, 5  # the first scale α, which is a control; how many there must be

_ORDER, _QUADRATURE, _KERNEL, _FAR, _COARSE = 0.1, 0.1, 1e-6, 0.05, 2.0
_IDENTITY, _BEYOND, _FLOOR, _BELOW, _SIZE = 1e-3, 1.2, 0.1, 0.5, 1e-12
_AVERAGE = 0.01  # of running averages, by two quadratures

LONG_NAMES = {
    "moved": "how far parameters move, root mean square over particles, sup over t",
    "distance": "distance of (f, g) from the limit α → ∞, sup over t",
    "quadrature_error": "distance of (f, g) of two quadratures of the law at the start, sup over t",
    "size": "norm of (f, g) of the limit α → ∞, sup over t",
    "kernel_error": "largest entry of the quadrature's kernel minus its closed form",
    "width_distance": "distance of (f, g) of N particles from that of all, root mean square over draws",
    "width_noise": "its relative standard error",
    "coarse_distance": "the same from too coarse a quadrature",
    "step_distance": "distance of (f, g) of stochastic steps from the flow, root mean square over draws",
    "step_noise": "its relative standard error",
    "exact_distance": "the same of steps with expectations in place of samples",
    "dual": "running average of E g(Z)²",
    "residual": "running average of E|E[Φ | Z]|²",
    "last_residual": "E|E[Φ | Z]|² at the last T",
    "average_error": "error of running averages, by more nodes and by half as many times, relative, sup over T",
    "last_residual_error": "error of last_residual, by more nodes, relative",
    "floor": "E|E[Φ | Z]|² of the saddle point",
    "floor_off": "how far its root is from that of E g(Z)² there, over ‖f*‖",
    "masses_off": "largest distance of the total probability of X or of Z from 1",
    "truth_off": "(E|E[Φ | Z]|²)^½ of f*, over 1 + its norm",
    "lost": "what the Lyapunov function of the limit α → ∞ loses up to the last T",
    "begun": "the Lyapunov function of the limit α → ∞ at the start, f = g = 0",
    "half_square": "½‖f*‖², in the space of the kernel",
    "truth": "f* with E[Φ | Z] = 0",
    "blind": "f of the least E[Φ²]",
    "apart": "distance of f of the least E[Φ²] from f*, over the norm of f*",
}


def _from_one(key: str, values: Sequence[float]) -> None:
    if values[0] > _FIRST or len(values) < _LEAST:
        raise ValueError(f"{key} must begin at {_FIRST:g} or below and have {_LEAST} or more items, got {values}")


def _three(key: str, values: Sequence[int]) -> None:
    if len(values) < LEAST_POINTS:
        raise ValueError(f"{key} must have {LEAST_POINTS} or more items, for an order, got {values}")


def _even(key: str, value: int) -> None:
    if value % 2:
        raise ValueError(f"{key} must be even, since particles come in pairs ±(a, b), got {value}")


def _whole(key: str, value: int) -> None:
    if value % OUTPUTS:
        raise ValueError(f"{key} must be a multiple of {OUTPUTS}, the number of comparisons in time, got {value}")


def _from_none(key: str, values: Sequence[float]) -> None:
    if values[0] != 0 or len(values) < 2:
        raise ValueError(f"{key} must begin with 0 and have one more, got {values}; write {key}=[0,0.1]")


Alphas = Annotated[Sequence[float], distinct, each(above(0)), increasing, _from_one]
Widths = Annotated[Sequence[int], distinct, each(at_least(2), at_most(100_000), _even), increasing, _three]
Steps = Annotated[Sequence[int], distinct, each(at_least(OUTPUTS), at_most(100_000), _whole), increasing, _three]
Penalties = Annotated[Sequence[float], distinct, each(at_least(0)), increasing, _from_none]
Nodes = Annotated[int, at_least(12), at_most(64)]
Draws = Annotated[Members, at_least(2)]
Discount = Annotated[float, at_least(0), below(1)]


def run(
    *,
    alphas: Alphas = (1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0),
    nodes: Nodes = 20,
    horizon: Positive = 8.0,
    alpha: Positive = 4.0,
    widths: Widths = (64, 256, 1024),
    steps: Steps = (80, 160, 320, 640),
    draws: Draws = 40,
    penalties: Penalties = (0.0, 0.01, 0.1),
    duration: Positive = 256.0,
    discount: Discount = 0.8,
    size: Positive = 2.0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Two networks of mean-field form that descend and ascend in a saddle problem, against their limits.

    Parameters
    ----------
    alphas : sequence of float
        Scales α of the networks, increasing from 1; the first three are also run up to `duration`.
    nodes : int
        Of the quadrature over each of both initial parameters.
    horizon : float
        Time up to which functions are compared.
    alpha : float
        Scale of networks of random particles.
    widths : sequence of int
        Numbers of particles N, even, increasing; stochastic steps take the first.
    steps : sequence of int
        Of stochastic gradient descent and ascent up to the horizon, multiples of 8, increasing.
    draws : int
        Of particles and samples.
    penalties : sequence of float
        λ, increasing from 0; all that is not run up to `duration` has the last.
    duration : float
        The last T of the running averages.
    discount : float
        γ of the chain that is evaluated.
    size : float
        Norm of the solution f* in the space of the kernel.
    seed : int
        Of f*, particles and samples.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `moved` and `distance` over law, equation and alpha; `dual` and `residual` over T, equation, penalty and scale.

    Raises
    ------
    RuntimeError
        If a flow does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-_HALF_WIDTH, _HALF_WIDTH, _POINTS, dtype=torch.float64)
    truth = _truth(grid, size, generator)
    answer = truth @ LAWS["symmetric"].kernel(grid)
    equations = stacked([instruments(grid, answer), policy(grid, answer, discount)])
    setting = Setting(grid, equations, penalties[-1], horizon, nodes)
    say(0.0, "all particles, by their scale")
    scaled = [by_alpha(setting, start, alphas) for start in LAWS.values()]
    say(0.3, "random particles, by their number")
    found = by_width(setting, alpha, widths, draws, generator)
    say(0.6, "stochastic steps")
    found |= by_steps(setting, alpha, widths[0], steps, draws, generator)
    say(0.8, "running averages")
    averaged = averages(setting, alphas[:_LONG], penalties, duration, truth)
    variables = _limits(scaled, found) | _averaged(averaged) | _solutions(setting, answer)
    variables |= {
        "kernel_error": ("law", [kernel_error(start, nodes, grid) for start in LAWS.values()]),
        "half_square": ((), size**2 / 2),
    }
    axes = [
        axis("law", list(LAWS), "law of the parameters at the start"),
        axis("equation", list(EQUATIONS), "equation"),
        axis("alpha", list(alphas), "scale α of the networks"),
        axis("function", ["f", "g"], "function"),
        axis("width", list(widths), "particles N"),
        axis("count", list(steps), "steps up to the horizon"),
        axis("penalty", list(penalties), "λ"),
        axis("scale", [*(f"{one:g}" for one in alphas[:_LONG]), "∞"], "scale α of the networks"),
        axis("horizon", averaged.horizons, "T of the running average"),
        axis("x", grid, "x"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    title = f"instruments and policy evaluation on {_POINTS} points, ‖f*‖ = {size:g} (seed {seed})"
    return _finding(dataset, title).attached(dataset)


def _truth(grid: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """y of a random f* = y·kernel, of the norm yᵀ·kernel·y = size²."""
    y = normal(generator, len(grid)).to(grid)
    return size * y / (y @ LAWS["symmetric"].kernel(grid) @ y).sqrt()


def _solutions(setting: Setting, answer: Tensor) -> dict[str, Any]:
    """f* beside the f of the least E[Φ²], which does not condition on Z."""
    problem, blind = setting.problem(), setting.equations.blind()
    primal, solved = problem.primal[:, 0], torch.stack((answer, torch.zeros_like(answer)))
    masses = torch.stack((problem.primal, problem.dual)).sum(-1)[..., 0]
    norm = (primal * answer.square()).sum(-1).sqrt()
    apart = ((primal * (blind - answer).square()).sum(-1) / (primal * answer.square()).sum(-1)).sqrt()
    return {
        "truth": ("x", answer),
        "blind": (("equation", "x"), blind),
        "apart": ("equation", apart),
        "masses_off": ("equation", (masses - 1).abs().amax(0)),
        "truth_off": ("equation", problem.residual(solved)[:, 0].sqrt() / (1 + norm)),
    }


def _limits(scaled: Sequence[dict[str, Tensor]], found: dict[str, Tensor]) -> dict[str, Any]:
    """Variables of the comparisons with limits."""
    dims = {"moved": ("alpha", "function"), "size": (), "distance": ("alpha",), "quadrature_error": ("alpha",)}
    over = {"width": "width", "coarse": "width", "step": "count", "exact": "count"}
    return {
        name: (("law", "equation", *rest), torch.stack([one[name] for one in scaled])) for name, rest in dims.items()
    } | {name: (("equation", over[name.split("_")[0]]), values) for name, values in found.items()}


def _averaged(found: Averages) -> dict[str, Any]:
    """Variables of the running averages."""
    axes = ("equation", "penalty", "scale")
    return {
        "dual": (("horizon", *axes), found.dual),
        "residual": (("horizon", *axes), found.residual),
        "last_residual": (axes, found.last),
        "average_error": (axes, found.error),
        "last_residual_error": (axes, found.last_error),
        "floor": (axes[:2], found.floor),
        # As roots: with a small penalty it is far below the squares that it is the mean of.
        "floor_off": (axes[:2], (found.floor.sqrt() - found.floor_by_dual.sqrt()).abs() / (2 * found.begun).sqrt()),
        "lost": (axes[:2], found.lost),
        "begun": (axes[:2], found.begun),
    }


def _orders(dataset: xr.Dataset) -> list[Order]:
    """In 1/α, in 1/N and in the step."""
    alphas, orders = dataset["alpha"].values, []
    for law, expected in (("symmetric", 2.0), ("skew", 1.0)):
        for equation in EQUATIONS:
            one = dataset.sel(law=law, equation=equation)
            for function in ("f", "g"):
                found = observed_order(alphas, one.moved.sel(function=function).values, 0.0)
                orders.append(_named(found, f"parameters of {function}, {law} law, {equation}", 1.0, "scales"))
            found = observed_order(alphas, one.distance.values, float(one.quadrature_error[-1]))
            orders.append(_named(found, f"(f, g), {law} law, {equation}", expected, "scales"))
    for equation in EQUATIONS:
        one = dataset.sel(equation=equation)
        widths, counts = one["width"].values, one["count"].values
        particles = observed_order(widths, one.width_distance.values, 0.0, one.width_noise.values)
        stochastic = observed_order(counts, one.step_distance.values, 0.0, one.step_noise.values)
        orders.append(_named(particles, f"random particles, {equation}", 0.5, "widths"))
        orders.append(_named(stochastic, f"stochastic steps, {equation}", 0.5, "steps"))
        exact = observed_order(counts, one.exact_distance.values, 0.0)
        orders.append(_named(exact, f"steps with expectations, {equation}", 1.0, "steps"))
    return orders


def _named(order: Order, rule: str, expected: float, over: str) -> Order:
    return order._replace(rule=rule, expected=expected, over=over)


def _rates(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Numbers of the running averages: over ½‖f*‖², and of the residual above the floor of its penalty."""
    unit, T, plain = dataset.half_square, dataset["horizon"].values, dataset.dual.isel(penalty=0)
    allowed = unit * (1 / dataset["horizon"] + 1 / dataset["scale"].str.replace("∞", "inf").astype(float))
    above = (dataset.residual - dataset.floor).isel(horizon=[-3, -1], scale=-1).values
    return {
        "over_bound": (plain / allowed).values,
        "over_first": (plain * dataset["horizon"] / unit).values,
        "identity": (plain.isel(horizon=-1, scale=-1) * T[-1] / dataset.lost.isel(penalty=0) - 1).values,
        "fitted": local_orders(T[[-3, -1]], np.moveaxis(above, 0, -1))[..., 0],
        "floors": (dataset.last_residual / dataset.floor).isel(penalty=-1, scale=slice(1, None)).values,
        "below": (dataset.last_residual.isel(penalty=0, scale=slice(1, None)) / dataset.floor.isel(penalty=-1)).values,
    }


def _unsure(dataset: xr.Dataset) -> float:
    """The relative error of running averages at the first α, whose flow no number of nodes settles for long."""
    return largest_of(dataset.average_error.isel(penalty=0, scale=0))


def _finding(dataset: xr.Dataset, title: str) -> Finding:
    orders, rates = _orders(dataset), _rates(dataset)
    told = {expected: said([one for one in orders if one.expected == expected]) for expected in (0.5, 1.0, 2.0)}
    fitted, first = rates["fitted"], rates["over_first"]
    return Finding(
        study="minimax",
        problem=f"Zhu, Zhang, Wang, Yang, Chen 2024: gradient descent and ascent of mean-field networks, {title}",
        status="ok",
        verdict=f"Parameters move, and a skew start comes to the linear limit, at orders {told[1.0]} in 1/α, as steps "
        f"with expectations do in the step; a symmetric start comes to it at {told[2.0]}. Random particles, in 1/N, "
        f"and stochastic steps, in the step, come to their limits at {told[0.5]}. The running average of E g² is at "
        f"most {rates['over_bound'].max():.3f} of ½‖f*‖²(1/T + 1/α); T times it is up to {first[..., 1:].max():.3f} of "
        f"½‖f*‖² from α = {dataset['scale'].values[1]} on, and {first[..., 0].max():.2g} at α = "
        f"{dataset['scale'].values[0]}, where averages are known to {_unsure(dataset):.0%}. The running average of "
        f"E|E[Φ|Z]|² falls like T to the power of −{fitted.min():.2f} to −{fitted.max():.2f} to the floor of its λ.",
        claim=Claim(
            "as particles become many and steps small, descent and ascent become a Wasserstein flow, which comes to a "
            "stationary point at the rate O(1/T + 1/α), while the representation moves by O(1/α)",
            measured=told[1.0],
            published="O(1/α)",
            figure="Zhu 2024",
        ),
        checks=_checks(dataset, orders, rates),
        orders=tuple(orders),
        numbers={
            "over_bound": float(rates["over_bound"].max()),
            "over_first_term": first.max(axis=0).tolist(),
            "average_error": dataset.average_error.values.tolist(),
            "residual_rates": fitted.tolist(),
            "floor": dataset.floor.values.tolist(),
            "last_residual": dataset.last_residual.values.tolist(),
            "apart": dataset.apart.values.tolist(),
            "particle_noise": dataset.width_noise.values.tolist(),
            "step_noise": dataset.step_noise.values.tolist(),
        },
    )


def _checks(dataset: xr.Dataset, orders: Sequence[Order], rates: dict[str, np.ndarray]) -> tuple[Check, ...]:
    def off(start: str) -> float:
        return float(np.max([abs(order.value - order.expected) for order in orders if order.rule.startswith(start)]))

    both, last = "larger of both equations", f"T = {float(dataset['horizon'][-1]):g}"
    quadrature = (dataset.quadrature_error / dataset.distance).isel(alpha=slice(1, None)).values.max()
    first = float((dataset.distance / dataset["size"]).isel(alpha=0).values.max())
    later = dataset.isel(scale=slice(1, None))
    coarse = float((dataset.coarse_distance / dataset.width_distance).isel(width=-1).values.min())
    return (
        Check("orders in 1/α of how far parameters move from 1", off("parameters"), _ORDER, "largest, sup over t"),
        Check("orders in 1/α of (f, g) to the linear limit from 2, symmetric law", off("(f, g), symm"), _ORDER, both),
        Check("orders in 1/α of (f, g) to the linear limit from 1, skew law", off("(f, g), skew"), _ORDER, both),
        Check("orders in 1/N of random particles from ½", off("random"), _ORDER, both),
        Check("orders in the step of stochastic steps from ½", off("stochastic"), _ORDER, both),
        Check("orders in the step of steps with expectations from 1", off("steps with"), _ORDER, both),
        Check(
            "error of the quadrature over the distance from the linear limit",
            float(quadrature),
            _QUADRATURE,
            "largest from the second α on",
        ),
        Check(
            "kernel of the quadrature from its closed form",
            float(dataset.kernel_error.values.max()),
            _KERNEL,
            "largest",
        ),
        Check(
            "total probabilities of X and Z from 1, and E[Φ|Z] of f* from 0",
            largest_of([largest_of(dataset.masses_off), largest_of(dataset.truth_off)]),
            _SIZE,
            "the larger, both equations",
        ),
        Check(
            "E|E[Φ|Z]|² of the saddle points from E g² there", largest_of(dataset.floor_off), _SIZE, "roots, over ‖f*‖"
        ),
        Check(
            "Lyapunov function of f = g = 0 from ½‖f*‖²",
            largest_of(np.abs(dataset.begun / dataset.half_square - 1)),
            _SIZE,
            "relative, α = ∞",
        ),
        Check(
            "running average of E g² over ½‖f*‖²(1/T + 1/α), λ = 0",
            float(rates["over_bound"].max()),
            1.0,
            "sup over T, α and both equations",
        ),
        Check(
            "running averages from those of more nodes, and of half as many times",
            largest_of([largest_of(later.average_error), largest_of(later.last_residual_error.isel(penalty=-1))]),
            _AVERAGE,
            "relative, largest from the second α on; of the last residual at the largest λ too",
        ),
        Check(
            f"T times that average over what the Lyapunov function loses, from 1, α = ∞, {last}",
            float(np.abs(rates["identity"]).max()),
            _IDENTITY,
            both,
        ),
        Check(
            f"E|E[Φ|Z]|² at {last} over that of the saddle point, from 1, the largest λ",
            float(np.abs(rates["floors"] - 1).max()),
            _FLOOR,
            "largest from the second α on",
        ),
        Check(f"the same at λ = 0 over that of the largest λ, {last}", float(rates["below"].max()), _BELOW, "largest"),
        Check(
            "distance from the linear limit over its size, the first α, a control",
            first,
            _FAR,
            "largest of laws and equations",
            least=True,
        ),
        Check(
            "T times the average of E g² over ½‖f*‖², the first α, a control",
            float(rates["over_first"][..., 0].max()),
            _BEYOND,
            "sup over T and both equations",
            least=True,
        ),
        Check(
            f"distance of the most particles from {COARSE} × {COARSE} nodes over that from all, a control",
            coarse,
            _COARSE,
            "smaller of both equations",
            least=True,
        ),
        Check(
            "f of the least E[Φ²] from f*, relative, a control",
            float(dataset.apart.values.min()),
            _FAR,
            "smaller of both equations",
            least=True,
        ),
    )


STUDIES.register("minimax")(
    Study(
        run,
        question="Do two networks of particles that descend and ascend in a saddle problem follow their limits, how "
        "fast in the scale, in the number of particles and in the step, and how fast do they solve the equation?",
    )
)
