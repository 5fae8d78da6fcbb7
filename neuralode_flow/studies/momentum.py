"""Momentum: what its flow and heavy-ball steps keep at every depth, and how the steps tend to the flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..depth import DepthSolver
from ..depth.grid import DepthGrid, Profile
from ..finding import Check, Claim, Finding
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.momentum import MomentumFlow
from ..initial.random import smooth
from ..orders import LEAST_POINTS, Order, extrapolated, observed_order, said
from ..problems import Problem
from ..signatures import Count, Depths, Positive, Seed
from ..time.descend import descend
from ..time.integrate import integrate
from ..time.steprule import Fraction
from .axes import arranged, axis, largest_of, least_of, time
from .base import STUDIES, Clock, Progress, Study, check_matrices, whole
from .heavyball import drive_misses, flow_misses, size, step_misses, walk

STARTS = ("at rest", "moving")
RULES = ("heavy_ball", "nesterov", "gd")
SCHEMES = ("plain", "centred")  # how rate and momentum follow from the time h of a step, and their orders in h
_EXPECTED = (1.0, 2.0)

_LAW, _EULER, _ORDER = 1e-9, 1e-12, 0.1  # the largest distances from the laws, and from the orders
_APART = 5e-3  # of distances from the flow, by two routes
_SURE, _DOUBLED = 1e-3, 4  # of a distance: how well that limit is to be known; how often steps are halved for it
_VISIBLE, _CONTROL = 1e-3, 1e-3  # the least that must be seen of what is no law


def run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: Clock,
    *,
    depths: Depths = (2, 16),
    friction: Positive = 1.0,
    speed: Positive = 0.5,
    rate: Positive = 0.05,
    momentum: Fraction = 0.9,
    steps: Count = 100,
    refinements: Depths = (1, 2, 4, 8),
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The laws of momentum at infinite depth and in Euler networks, as a flow and in steps, at rest and moving.

    The flow is W_tt + αW_t = −∇f; heavy ball is V_{n+1} = βV_n − ηg_n, W_{n+1} = W_n + V_{n+1}.

    Parameters
    ----------
    problem : Problem
    initial : callable
        Profile W0(s).
    solver : DepthSolver
    clock : Clock
        Its output times must be equally far apart.
    depths : sequence of int
        L of the Euler networks, at least 2, increasing.
    friction : float
        α.
    speed : float
        Size of the random velocity of the moving start.
    rate : float
        η of the steps whose laws are measured.
    momentum : float
        β of them.
    steps : int
        How many of them.
    refinements : sequence of int
        Steps between two output times, where heavy ball is compared with the flow.
    seed : int
        Of the velocity.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    if min(depths) < 2:
        raise ValueError(f"study.depths must be at least 2, where layers have neighbours, got {min(depths)}")
    check_matrices(problem, "and what momentum keeps is the skew part of matrices")
    gaps = torch.diff(clock.times)
    if not torch.allclose(gaps, gaps[:1], rtol=1e-9, atol=0.0):
        raise ValueError("the output times of study=momentum must be equally far apart")
    if friction * float(gaps[0]) >= refinements[0]:
        raise ValueError(
            f"study.refinements must begin above friction times the output interval, {friction * float(gaps[0]):g}, "
            f"got {refinements[0]}; β = 1 − αh would not be above 0"
        )
    plan = _Plan(clock, friction, rate, momentum, steps, refinements)
    continuous = ContinuousFlow(solver.grid, problem.loss, solver)
    moving = smooth(problem.z0.shape[-1], speed, torch.Generator().manual_seed(seed))
    found = []
    for k, L in enumerate((0, *depths)):
        if progress is not None:
            progress(k / (1 + len(depths)), f"{L} layers" if L else "infinite depth")
        flow = FiniteFlow(L, problem.loss) if L else continuous
        W, V = flow.sample(initial), flow.sample(moving)
        found.append(_measured(plan, flow, torch.stack((W, W)), torch.stack((0 * V, V)), L))
    tight = plan.path(continuous, clock.tight(), found[0]["W"], found[0]["V"], "tight", clock.tight().times)
    error_time = float(torch.linalg.matrix_norm(clock.time_error(found[0]["z"], tight.z)).max())
    dataset = _dataset(plan, (0, *depths), found, error_time)
    # Heavy ball has no part in the error in time of the flow, in steps of a given size neither.
    return _finding(dataset, problem.title, clock.floor(error_time, error_time)).attached(dataset)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is done with each model."""

    clock: Clock
    friction: float
    rate: float
    momentum: float
    steps: int
    refinements: Sequence[int]

    def path(self, flow: Any, clock: Clock, W: Tensor, V: Tensor, name: str, times: Tensor) -> Any:
        """The momentum flow of a model, with all its pairs."""
        moving = MomentumFlow(flow, self.friction)
        options = clock.options(name)
        path = integrate(moving, moving.start(W, V), times, **options, observe=lambda i, state: state.clone())
        return whole(path, "momentum flow")

    @cached_property
    def gauss(self) -> DepthGrid:
        """A grid in time, on whose Gauss nodes integrals over time are as exact as those over depth."""
        return DepthGrid.gauss(max(8, math.ceil(4 * self.span)), 10)

    @property
    def span(self) -> float:
        """From the first output time to the last."""
        return float(self.clock.times[-1] - self.clock.times[0])


def _measured(plan: _Plan, flow: Any, W: Tensor, V: Tensor, L: int) -> dict[str, Any]:
    """One model, both starts side by side: W and V are `(2, …)`."""
    clock, friction = plan.clock, plan.friction
    if clock.used_up():
        raise RuntimeError(f"the budget of wall time was used up before the model of {L} layers")
    inner = clock.times[0] + plan.span * plan.gauss.nodes
    times, order = torch.cat((clock.times, inner)).sort()
    path = plan.path(flow, clock, W, V, f"flow-{L}", times)
    own = order.argsort()
    out, gauss = own[: len(clock.times)], own[len(clock.times) :]
    pairs = MomentumFlow(flow, friction)
    states, moves = pairs.position(path.observed), pairs.momentum(path.observed)
    last = plan.rate**0.5 * V
    trained = {}
    for rule in RULES[:2]:
        walked = list(walk(flow, rule, W, last, plan.steps, plan.rate, plan.momentum))
        states_n, steps_n = (torch.stack([pair[k] for pair in walked]) for k in range(2))
        trained[rule] = step_misses(flow, states_n, steps_n, plan.momentum)
    return {
        "W": W,
        "V": V,
        "z": path.z[out],
        "loss": path.loss[out],
        "flow": flow_misses(flow, times[out], states[out], moves[out], friction),
        "drive": drive_misses(flow, plan.gauss, plan.span, states[gauss], moves[gauss], friction),
        "steps": trained,
        "gd": _descent(plan, flow, W[0]),
        **_distances(plan, flow, W, V, path.z[out]),
    }


def _descent(plan: _Plan, flow: Any, W: Tensor) -> dict[str, Tensor]:
    """Gradient descent: how far the law is from where the steps take it, and how far it moves, `(n + 1,)`."""
    path = whole(descend(flow, W, plan.steps, "gd", plan.rate, observe=lambda i, state: flow.law(state)), "descent")
    law = path.observed
    assert law is not None
    largest = size(law).max()
    return {"law": path.drift / largest, "moved": size(law - law[0]) / largest}


def _distances(plan: _Plan, flow: Any, W: Tensor, V: Tensor, z: Tensor) -> dict[str, Tensor | np.ndarray]:
    """sup over t of ‖z_n − z(t_n)‖ of heavy ball, by scheme, start and steps in an output interval: `(2, 2, n)`.

    "extrapolated": the same with the limit of the steps themselves, extrapolated to h = 0, in the place of the flow;
    "unsure", `(2, 2)`: about how far that limit is from the true one. Where it is not known to a thousandth of the
    least distance, steps of half the size join in it, up to four times.

    plain: β = 1 − αh, η = h², from V_0 = hW_t. centred: β = (2 − αh)/(2 + αh), η = 2h²/(2 + αh), from the step before
    the start, V_0 = hW_t − h²W_tt/2: then (W_{n+1} − W_{n−1})/2h stands for W_t, and all is symmetric in time.
    """
    alpha, intervals = plan.friction, len(plan.clock.times) - 1
    curvature = flow.velocity(W) - alpha * V

    def walked(refinement: int) -> list[Tensor]:
        """z of both schemes at the output times."""
        h = plan.span / intervals / refinement
        schemes = (
            (1 - alpha * h, h**2, h * V),
            ((2 - alpha * h) / (2 + alpha * h), 2 * h**2 / (2 + alpha * h), h * V - h**2 / 2 * curvature),
        )
        seen = []
        for beta, eta, before in schemes:
            states = walk(flow, "heavy_ball", W, before, intervals * refinement, eta, beta)
            seen.append(
                torch.stack([flow.product(state) for n, (state, _) in enumerate(states) if n % refinement == 0])
            )
        return seen

    taken = list(plan.refinements)
    walks = [walked(refinement) for refinement in taken]
    distance = torch.stack([torch.stack([torch.linalg.matrix_norm(own - z).amax(0) for own in both]) for both in walks])
    own = len(taken)
    while True:
        extrapolations = [  # in powers of h, and of h²
            _extrapolation(taken, torch.stack([both[order - 1] for both in walks]).cpu().numpy(), order)
            for order in (1, 2)
        ]
        unsure = np.stack([left for _, left in extrapolations])
        known = unsure <= _SURE * distance.amin(0).cpu().numpy()
        if own < LEAST_POINTS or known.all() or len(taken) == own + _DOUBLED:
            break
        taken.append(2 * taken[-1])
        walks.append(walked(taken[-1]))
    return {
        "distance": distance.permute(1, 2, 0),
        "extrapolated": np.stack([errors[:own].T for errors, _ in extrapolations]),
        "unsure": unsure,
    }


def _extrapolation(refinements: Sequence[int], z: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """How far z `(n, T, members, d, d)` is from its limit, `(n, members)`, and the error of that, `(members,)`.

    That is the last change of the limit, when one more of the steps is used: more than the error where the limit gets
    better by each.
    """
    if len(refinements) < LEAST_POINTS:
        return np.full((len(z), z.shape[2]), np.nan), np.full(z.shape[2], np.nan)
    limit, without_one = (extrapolated(refinements[k:], z[k:], order) for k in range(2))
    return np.stack([_sup(walked - limit) for walked in z]), _sup(limit - without_one)


def _sup(gap: np.ndarray) -> np.ndarray:
    """The largest Frobenius norm over time of `(T, members, d, d)`."""
    return np.asarray(np.sqrt(np.square(gap).sum((-2, -1))).max(0))


def _dataset(plan: _Plan, models: Sequence[int], found: list[dict[str, Any]], error_time: float) -> xr.Dataset:
    intervals = len(plan.clock.times) - 1
    nothing = torch.full((plan.steps + 1,), float("nan")).double()

    def along(name: str) -> Tensor:
        """A quantity of the steps, `(model, rule, start, step)`."""
        own = [torch.stack([model["steps"][rule][name].mT for rule in RULES[:2]]) for model in found]
        gd = [torch.stack((model["gd"].get(name, nothing), nothing)) for model in found]
        return torch.stack([torch.cat((one, two[None])) for one, two in zip(own, gd, strict=True)])

    def in_time(name: str) -> Tensor:
        return torch.stack([model["flow"][name].mT for model in found])

    stepped, flowing = ("model", "rule", "start", "step"), ("model", "start", "time")
    return arranged(
        {
            "loss": (flowing, torch.stack([model["loss"].mT for model in found]), "loss of the momentum flow"),
            "flow_kept": (flowing, in_time("kept"), "change of exp(αt) skew N along the flow, relative"),
            "flow_skew": (flowing, in_time("skew"), "skew part of N along the flow, relative"),
            "flow_drive": (
                ("model", "start"),
                torch.stack([model["drive"] for model in found]),
                "distance of exp(αt) N from what drives it, sup over t, relative",
            ),
            "skew_error": (stepped, along("skew"), "distance of skew N from βⁿ skew N₀, relative"),
            "skew_size": (stepped, along("turning"), "skew part of N, relative"),
            "law_error": (stepped, along("law"), "distance of C from where the steps take it, relative"),
            "law_moved": (stepped, along("moved"), "distance of C from its start, relative"),
            "error_z": (
                ("model", "scheme", "start", "steps"),
                torch.stack([model["distance"] for model in found]),
                "sup over t of ‖z_n − z(t_n)‖, heavy ball against the momentum flow",
            ),
            "error_extrapolated": (
                ("model", "scheme", "start", "steps"),
                np.stack([model["extrapolated"] for model in found]),
                "the same against heavy ball extrapolated to steps of no length",
            ),
            "error_extrapolation": (
                ("model", "scheme", "start"),
                np.stack([model["unsure"] for model in found]),
                "error of that limit, estimated",
            ),
            "error_time": ((), error_time, "error in time of the flow of infinite depth"),
        },
        [
            axis("model", list(models), "layers L; 0 is infinite depth"),
            axis("rule", list(RULES), "step rule"),
            axis("start", list(STARTS), "start"),
            axis("scheme", list(SCHEMES), "how rate and momentum follow from the time of a step"),
            axis("step", list(range(plan.steps + 1)), "step n"),
            axis("steps", [intervals * k for k in plan.refinements], "steps of heavy ball up to the last time"),
            time(plan.clock.times),
        ],
    )


def _orders(dataset: xr.Dataset, floor: float) -> list[Order]:
    """The orders in the time of a step, of every scheme, model and start."""
    found = []
    for scheme, expected in zip(SCHEMES, _EXPECTED, strict=True):
        for L in dataset.model.values:
            for start in STARTS:
                errors = dataset.error_z.sel(scheme=scheme, model=L, start=start).values
                order = observed_order(dataset.steps.values, errors, floor)
                rule = f"{scheme}, {f'{L} layers' if L else 'infinite depth'}, {start}"
                found.append(order._replace(rule=rule, expected=expected))
    return found


def _finding(dataset: xr.Dataset, title: str, floor: float) -> Finding:
    orders = _orders(dataset, floor)
    checks = _checks(dataset, orders)
    kept, drive, skewed, law, euler, descent, moved, _turning, control, _off, _apart, error_time = (
        c.error for c in checks
    )
    plain, centred = (said([order for order in orders if order.expected == p]) for p in _EXPECTED)
    return Finding(
        study="momentum",
        problem=f"The laws of momentum: {title}",
        status="ok",
        verdict=f"exp(αt) skew N stays to {kept:.1e} along the momentum flow, at rest and moving, and N drives C as it "
        f"must to {drive:.1e}. Steps of heavy ball keep skew N/βⁿ to {skewed:.1e} and move C as they say to {law:.1e} "
        f"(Euler networks {euler:.1e}; gradient descent {descent:.1e}), while C moves by {moved:.2g} of its size at "
        f"least; Nesterov's miss that law by {control:.1e} at least. Heavy ball tends to the flow at order {plain} in "
        f"h with β = 1 − αh, η = h², and at order {centred} with β = (2 − αh)/(2 + αh), η = 2h²/(2 + αh).",
        claim=Claim(
            "momentum keeps exp(αt) skew N, and heavy-ball steps of any size keep skew N/βⁿ, at every depth",
            measured=largest_of([kept, skewed]),
        ),
        checks=checks,
        orders=tuple(orders),
        numbers={"reference_error": error_time},
    )


def _checks(dataset: xr.Dataset, orders: Sequence[Order]) -> tuple[Check, ...]:
    """What is held to the laws, what must be seen of what is none, and the orders; a NaN holds nothing."""
    ball, nesterov = dataset.sel(rule="heavy_ball"), dataset.sel(rule="nesterov")
    layers, descent = ball.sel(model=ball.model > 0), dataset.sel(rule="gd", start="at rest")
    moved = float(dataset.law_moved.max("step").min())
    turning = least_of(ball.skew_size.sel(start="moving").max("step", skipna=False))
    control = least_of(nesterov.skew_error.max("step", skipna=False))
    euler = largest_of([largest_of(layers.skew_error), largest_of(layers.law_error)])
    off = float(np.max([abs(order.value - order.expected) for order in orders]))
    unsure = dataset.error_extrapolation + dataset.error_time
    apart = (abs(dataset.error_extrapolated - dataset.error_z) - unsure).clip(min=0) / dataset.error_z
    along, norm = "sup over t, depth, models, starts, relative", "sup over steps, depth, models, starts, relative"
    return (
        Check("change of exp(αt) skew N along the momentum flow", largest_of(dataset.flow_kept), _LAW, along),
        Check("exp(αt) N against what drives it", largest_of(dataset.flow_drive), _LAW, along),
        Check("skew N of heavy-ball steps against βⁿ skew N₀", largest_of(ball.skew_error), _LAW, norm),
        Check("C of heavy-ball steps against where they take it", largest_of(ball.law_error), _LAW, norm),
        Check("both laws of heavy-ball steps in Euler networks", euler, _EULER, norm),
        Check("C of gradient descent against where its steps take it", largest_of(descent.law_error), _LAW, norm),
        Check("how far C moves", moved, _VISIBLE, "least over rules, models and starts, relative", least=True),
        Check("skew N at the moving start", turning, _VISIBLE, "least over models, relative to N", least=True),
        Check("Nesterov's steps against the law of heavy ball", control, _CONTROL, "least, relative", least=True),
        Check("the orders of heavy ball against 1 and 2", off, _ORDER, "largest over schemes, models and starts"),
        Check(
            "distance of heavy ball from the flow against that from its own limit",
            largest_of(apart),
            _APART,
            "largest over schemes, models, starts and steps, relative, beyond their errors",
        ),
        Check("error in time of the flow of infinite depth", float(dataset.error_time), norm="sup over t"),
    )


STUDIES.register("momentum")(
    Study(
        run,
        steps="study.rate, study.momentum",
        question="What do momentum and heavy-ball steps keep at every depth, and do the steps tend to the flow?",
    )
)
