"""Zhang, Liu, Wang, Gu 2026, Deep Delta Learning: the limit in depth, what training reaches, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..losses import Quadratic
from ..orders import LEAST_POINTS, Order, observed_order, said_each
from ..signatures import Seed, at_least, at_most, distinct, each, increasing
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, depth, largest_of, least_of, time
from .base import STUDIES, Clock, Progress, Reads, Study, whole
from .deltalayers import DEPTH_GATES, Gate, Profiles, age, gate, limit_gate, shortcut, unit

# The gate as a function of b/L, where a layer samples, and the order in 1/L.
RULES = {
    "euler": ("euler", 0.5, 1.0),
    "cayley": ("cayley", 0.5, 2.0),
    "exp": ("exp", 0.5, 2.0),
    "exp_left": ("exp", 0.0, 1.0),
}
# What one block I − βkkᵀ is trained towards, k of length 1: these times the reflection or the block of β = 3/2.
TARGETS = {"reflection": (1.0, 2.0), "partial": (1.0, 1.5), "beyond": (1.2, 2.0)}
GATES: dict[str, Gate] = {"sigmoid": lambda c: gate(c), "limit": lambda c: limit_gate(c)}

_LEAST_TIME, _LATE, _SAMPLES = 100.0, 30.0, 13  # the shortest training, and from where the key is that of the target
_ORDER, _OFF, _APART = 0.05, 0.5, 0.05  # of orders; what a control leaves of them; what it leaves of X
_LAW, _FAR, _NORM, _ACROSS, _STALL = 1e-4, 0.2, 1e-12, -0.5, 0.5 - 1e-12

LONG_NAMES = {
    "error_x": "‖X_L − X(1)‖ over ‖X(1)‖",
    "error_det": "|det of the product of the shortcuts − exp(−∫b)|",
    "error_unscaled": "‖X_L − X(1)‖ over ‖X(1)‖ with gates 1 − exp(−b), without 1/L",
    "loss": "loss of one block",
    "norm": "largest singular value of one block",
    "infimum": "½Σ(σ_i(T) − 1)₊², the least loss under ‖z‖ ≤ 1",
    "error_loss": "error in time of the loss of one block, from the same in finer steps",
    "loss_layers": "loss of several blocks towards a reflection",
    "det_layers": "det z of several blocks towards a reflection",
    "drift": "drift of ‖k‖² of every key of several blocks",
}


def _enough(key: str, values: Sequence[int]) -> None:
    if len(values) < LEAST_POINTS:
        raise ValueError(f"{key} must be at least three numbers of layers, for an order, got {list(values)}")


# With b at most 5/4 strength every gate b/L of the limit in depth is below 2.
Strength = Annotated[float, at_least(1), at_most(4)]
Layers = Annotated[Sequence[int], distinct, each(at_least(4), at_most(4096)), increasing, _enough]


def run(
    clock: Annotated[
        Clock, Reads(("horizon", "extends", "method", "rtol", "atol", "step", "max_evaluations", "max_seconds"))
    ],
    *,
    dimension: Annotated[int, at_least(2), at_most(64)] = 4,
    columns: Annotated[int, at_least(1), at_most(64)] = 2,
    strength: Strength = 1.0,
    depths: Layers = (16, 32, 64, 128, 256),
    layers: Annotated[int, at_least(2), at_most(64)] = 3,
    draws: Annotated[int, at_least(1), at_most(64)] = 4,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Layers X + β k(vᵀ − kᵀX) with ‖k‖ = 1 and a gate β: their limit in depth, and blocks I − β k kᵀ in training.

    Parameters
    ----------
    clock : Clock
        Its output times are not taken: they are geometric, from 1 to the last of them.
    dimension : int
        d.
    columns : int
        Of X and of the values.
    strength : float
        ∫b of the limit, b(s) = strength (5 − 3s²)/4.
    depths : sequence of int
        L of the limit in depth, increasing, at least three from 4 on.
    layers : int
        Blocks that are trained towards a reflection.
    draws : int
        Starts and targets of each training.
    seed : int
        Of keys, values, starts and targets.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ValueError
        If the last time is below 100.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    last = float(clock.times[-1])
    if last < _LEAST_TIME:
        raise ValueError(f"time.horizon must be at least {_LEAST_TIME:g} for an algebraic law, got {last:g}")
    clock = replace(clock, times=clock.times.new_tensor([0.0, *np.geomspace(1.0, last, _SAMPLES)]))
    say(0.0, "the limit in depth")
    variables = _depth(Profiles.random(dimension, columns, strength, seed), depths)
    random = torch.Generator().manual_seed(seed)
    k = unit(torch.randn(draws, dimension, generator=random, dtype=torch.float64, device="cpu"))
    variables |= _one(clock, k, random, say)
    variables |= _several(clock, k, layers, random, say)
    axes = [
        axis("rule", list(RULES), "gate and nodes"),
        depth(depths),
        axis("target", list(TARGETS), "target"),
        axis("gate", list(GATES), "gate"),
        time(clock.times),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    return _finding(dataset, dimension, layers, draws).attached(dataset)


def _depth(profiles: Profiles, depths: Sequence[int]) -> dict[str, Any]:
    """How far layers are from the limit, by rule, and those whose gates know no 1/L."""
    limit = profiles.limit()
    size, determinant = np.linalg.norm(limit), np.exp(-profiles.strength)
    x, det = np.zeros((2, len(RULES), len(depths)))
    unscaled = []
    for j, L in enumerate(depths):
        for i, (name, at, _) in enumerate(RULES.values()):
            X, found = profiles.layers(L, at, DEPTH_GATES[name])
            x[i, j], det[i, j] = np.linalg.norm(X - limit) / size, abs(found - determinant)
        unscaled.append(np.linalg.norm(_unscaled(profiles, L) - limit) / size)
    return {
        "error_x": (("rule", "depth"), x),
        "error_det": (("rule", "depth"), det),
        "error_unscaled": ("depth", unscaled),
    }


def _unscaled(profiles: Profiles, L: int) -> np.ndarray:
    """X after L layers of which each goes as far as the limit does in all its depth."""
    return profiles.layers(L, 0.5, lambda h: DEPTH_GATES["exp"](L * h))[0]


def _one(clock: Clock, k: Tensor, random: torch.Generator, say: Callable[[float, str], None]) -> dict[str, Any]:
    """One block with the gate 2σ(c) towards every target, from random keys and gates."""
    say(0.1, "one block")
    targets = torch.stack([size * _block(k, beta) for size, beta in TARGETS.values()])
    theta = _start(len(k), 1, k.shape[-1], random).expand(len(TARGETS), -1, -1).clone()
    path = _trained(clock, targets, theta, GATES["sigmoid"], "one")
    say(0.4, "one block in finer steps")
    tight = _trained(clock.tight(), targets, theta, GATES["sigmoid"], "tight")
    over = (torch.linalg.svdvals(targets) - 1).clamp(min=0)
    return {
        "loss": (("time", "target", "draw"), path.loss),
        "norm": (("time", "target", "draw"), torch.linalg.matrix_norm(path.z, 2)),
        "infimum": (("target", "draw"), over.square().sum(-1) / 2),
        "error_loss": ((), clock.time_error(path.loss, tight.loss).abs().max()),
    }


def _several(
    clock: Clock, k: Tensor, layers: int, random: torch.Generator, say: Callable[[float, str], None]
) -> dict[str, Any]:
    """Several blocks towards a reflection from det z > 0, with the gate 2σ(c) and with that of the limit in depth."""
    theta, paths = _start(len(k), layers, k.shape[-1], random), []
    for number, (name, beta) in enumerate(GATES.items()):
        say(0.6 + 0.2 * number, f"{layers} blocks, {name}")
        paths.append(_trained(clock, _block(k, 2.0), theta, beta, name))
    over = ("gate", "time", "draw")
    return {
        "loss_layers": (over, torch.stack([path.loss for path in paths])),
        "det_layers": (over, torch.stack([torch.linalg.det(path.z) for path in paths])),
        "drift": ((), float(np.max([path.drift.max() for path in paths]))),
    }


def _block(k: Tensor, beta: float) -> Tensor:
    """I − β k kᵀ, `(..., d, d)`."""
    return torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - beta * k.unsqueeze(-1) * k.unsqueeze(-2)


def _start(draws: int, layers: int, d: int, random: torch.Generator) -> Tensor:
    """θ `(draws, layers (d + 1))`: random unit keys, and c < 0, so that every gate is below 1 and det z above 0."""
    theta = torch.randn(draws, layers, d + 1, generator=random, dtype=torch.float64, device="cpu")
    return torch.cat((-theta[..., :1].abs(), unit(theta[..., 1:])), dim=-1).flatten(-2)


def _trained(clock: Clock, target: Tensor, theta: Tensor, beta: Gate, name: str) -> Trajectory:
    d = target.shape[-1]

    def laws(theta: Tensor) -> Tensor:
        """‖k‖², since the map does not depend on the length of a key."""
        return theta.unflatten(-1, (-1, d + 1))[..., 1:].square().sum(-1)

    flow = FactorizationFlow(shortcut(d, beta), Quadratic(target), laws)
    return whole(integrate(flow, theta, clock.times, **clock.options(name)), f"flow of {name}")


def _orders(dataset: xr.Dataset) -> list[Order]:
    """Of X and of the determinant, by rule."""
    found = []
    for what, errors in (("X", dataset.error_x), ("det", dataset.error_det)):
        for (name, (_, _, expected)), line in zip(RULES.items(), errors.values, strict=True):
            order = observed_order(dataset.depth.values, line, 1e-14)
            found.append(order._replace(rule=f"{what} in 1/L, {name}", expected=expected))
    return found


def _pace(dataset: xr.Dataset) -> float:
    """How far the age of 2 − β = √(2 loss) grows from how time does, relative, once the key is that of the target."""
    late = dataset.loss.sel(target="reflection", time=slice(_LATE, None))
    grown = np.diff(age(np.sqrt(2 * late.values)), axis=0)
    return float(np.abs(grown / np.diff(late.time.values)[:, None] - 1).max())


def _finding(dataset: xr.Dataset, d: int, layers: int, draws: int) -> Finding:
    orders, pace = _orders(dataset), _pace(dataset)
    end = dataset.isel(time=-1)
    T = float(end.time)
    products = T * end.loss.sel(target="reflection").values
    crossed = end.det_layers.sel(gate="sigmoid").values
    stalled = least_of(dataset.loss_layers.sel(gate="limit"))
    values = said_each(dict(zip(RULES, orders[: len(RULES)], strict=True)))
    return Finding(
        study="delta_rewrite",
        problem=f"Deep Delta Learning, d = {d}: layers X + βk(vᵀ − kᵀX), and {layers} blocks I − βkkᵀ in training",
        status="ok",
        verdict=f"Layers tend to dX/ds = b k(vᵀ − kᵀX) at orders {values}. One block comes to a "
        f"reflection algebraically: t·loss is {products.min():.4f} to {products.max():.4f} at t = {T:g}, to tend to ¼. "
        f"{layers} blocks from det z > 0 end at {crossed.min():.3f} to {crossed.max():.3f} in {draws} draws; with the "
        f"gates of the limit, which keep det z > 0, no loss is below {stalled:.4f}.",
        claim=Claim(
            "one gate in (0, 2) takes a block from the identity over the projection to the reflection, which it only "
            "tends to, and no target with a singular value above 1 is reached",
            measured=pace,
            published=0.0,
            figure="Deep Delta Learning",
        ),
        checks=_checks(dataset, orders, pace),
        orders=tuple(orders),
        numbers={
            "reference_error": float(dataset.error_loss),
            "law_drift": float(dataset.drift),
            "t_loss": products.tolist(),
            "det": crossed.tolist(),
            "over_infimum": (end.loss / end.infimum).sel(target="beyond").values.tolist(),
        },
    )


def _checks(dataset: xr.Dataset, orders: Sequence[Order], pace: float) -> tuple[Check, ...]:
    end, T = dataset.isel(time=-1), float(dataset.time[-1])
    quarter = np.abs(T * end.loss - 0.25)
    reflection, partial = largest_of(quarter.sel(target="reflection")), least_of(quarter.sel(target="partial"))
    off = float(np.max([abs(order.value - order.expected) for order in orders]))  # NaN where one is undecided
    left = float(np.min([abs(order.value - 2) for order in orders if "left" in order.rule]))
    unscaled = float(dataset.error_unscaled[-1])
    from_above = least_of(dataset.det_layers.isel(time=0)) > 0
    crossed = largest_of(end.det_layers.sel(gate="sigmoid")) if from_above else np.nan
    stalled = least_of(dataset.loss_layers.sel(gate="limit"))
    beyond = least_of((dataset.loss / dataset.infimum).sel(target="beyond"))
    draws, least = "largest over the draws", "least over t and the draws"
    return (
        Check(f"age of 2 − β at a reflection against time, from t = {_LATE:g}", pace, _LAW, f"relative, {draws}"),
        Check("t·loss at a reflection from ¼, at the end", reflection, T**-0.5, draws),
        Check("the same at the block of β = 3/2, a control", partial, _FAR, "least over the draws", least=True),
        Check("orders of X and det z in 1/L from 1 and 2", off, _ORDER, "largest over the rules"),
        Check("the order at left nodes from 2, a control", left, _OFF, "least of X and det z", least=True),
        Check("distance of X with gates without 1/L, a control", unscaled, _APART, "at the finest depth", least=True),
        Check("det z of several blocks at the end, from above 0", crossed, _ACROSS, draws),
        Check("loss of several blocks with the gates of the limit, a control", stalled, _STALL, least, least=True),
        Check("largest singular value of one block over 1", largest_of(dataset.norm) - 1, _NORM, "sup over t"),
        Check("loss of a target out of reach over ½Σ(σ − 1)₊², a control", beyond, 1 - _NORM, least, least=True),
        Check("error in time of the loss of one block", float(dataset.error_loss), norm="sup over t"),
        Check("drift of ‖k‖²", float(dataset.drift), norm="sup over t"),
    )


STUDIES.register("delta_rewrite")(
    Study(
        run,
        question="What do layers that rewrite along one key tend to in depth, which maps do they reach in training, "
        "and how fast do they come to a reflection?",
    )
)
