"""Gradient descent at the edge of stability: where its sharpness comes to rest, and the limit of that in depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..curvature import sharpness
from ..depth import DepthSolver
from ..depth.grid import DepthGrid, Profile
from ..depth.rules import LAYERS
from ..finding import Check, Claim, ErrorTable, Finding
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..initial import balanced
from ..initial.base import INITIALS
from ..orders import ABOVE_FLOOR, Order, local_orders, observed_order
from ..parallel import side_by_side
from ..problems import Problem
from ..signatures import Count, Depths, Positive, Seed, Workers, above, below, known
from ..time.descend import descend
from . import settling
from .axes import arranged, axis, largest_of, time
from .base import STUDIES, Clock, Progress, Study, whole

# How far the last two local orders may be from that of the layers, and the largest part of the distance of gradient
# flow at which the central flow may be from gradient descent.
_ORDER, _NEARER = 0.15, 0.95

# How far the largest sharpness of the central flow may be from 2/η, and its velocity at the end from a projection.
_HELD, _PROJECTED = 0.02, 0.02

# Between the two routes to a sharpness: round-off, relatively, and in gradients of the loss what second derivatives of
# z add where the minimiser is not quite reached.
_ROUTES, _SECOND = 1e-9, 10.0

# Of steps: between the times, and the means of two iterates, by two routes; round-off.
_SAME = 1e-9

_FINER = 4  # nodes more on each panel, to measure the error of the grid
_DRAWS = 20  # starts for a case, of which the first that shows an edge is taken

_INFINITE = 0  # on the axis of depths

LONG_NAMES = {
    "sharpness_descent": "sharpness of gradient descent",
    "sharpness_flow": "sharpness of gradient flow, infinite depth",
    "sharpness_central": "sharpness of the central flow, infinite depth",
    "loss_descent": "loss of gradient descent",
    "loss_flow": "loss of gradient flow, infinite depth",
    "loss_central": "loss of the central flow, infinite depth",
    "apart_flow": "L² distance of W of gradient flow from the mean of two successive iterates, half a step later",
    "apart_central": "L² distance of W of the central flow from the mean of two successive iterates, half a step later",
    "apart_z_flow": "Frobenius distance of z of gradient flow from that of the mean of two successive iterates",
    "apart_z_central": "Frobenius distance of z of the central flow from that of the mean of two successive iterates",
    "final_sharpness": "sharpness where gradient descent has settled",
    "error": "distance of final_sharpness from that of infinite depth",
    "left": "about how far final_sharpness is from that at the minimiser itself",
    "settled_after": "steps until the gradient of the loss was small enough",
    "error_grid": "error of final_sharpness that the depth grid makes at infinite depth",
    "error_central": "distance of W of the central flow from that in steps twice as long, L² norm; second half",
    "unprojected": "|⟨V − v, V⟩| over ‖v‖², V and v the velocities of central and gradient flow; last central W",
    "times_off": "distance of output times of both flows from those of gradient descent and half a step, in steps",
    "means_off": "distance of the first mean from that of two iterates, over the step between them",
    "routes": "distance of final_sharpness at infinite depth from that by Lanczos' method",
    "end_routes": "distance of end_sharpness from that by Lanczos' method",
    "least_routes": "distance of least_sharpness from that by Lanczos' method, at balanced weights",
    "expected_order": "order of the layers in 1/L",
    "edge": "2/η",
    "rate": "learning rate η",
    "end_sharpness": "sharpness in which gradient flow ends, infinite depth",
    "least_sharpness": "sharpness of relaxed balanced weights with the z in which gradient flow ends",
    "case_flow": "largest apart_flow over the second half of the times",
    "case_central": "largest apart_central over the second half of the times",
    "case_ratio": "case_central over case_flow",
    "case_edge": "2/η of the case",
    "case_end": "sharpness in which gradient flow ends in the case",
    "case_times_off": "times_off of the case",
    "case_drawn": "starts that were drawn before, and show no edge",
}


@dataclass(frozen=True, eq=False)
class _Plan:
    """What all depths and cases share."""

    problem: Problem
    initial: Profile
    solver: DepthSolver
    clock: Clock
    layer: str
    between: float
    settled: float
    steps: int

    def flow(self, L: int) -> FiniteFlow | ContinuousFlow:
        """The network of L layers, or the continuous model."""
        if L:
            return FiniteFlow(L, self.problem.loss, self.layer)
        return ContinuousFlow(self.solver.grid, self.problem.loss, self.solver)

    def finer(self) -> ContinuousFlow:
        """The continuous model on more nodes."""
        grid = self.solver.grid
        kind, device = grid.nodes.dtype, grid.nodes.device
        fine = DepthGrid.gauss(grid.panels, grid.order + _FINER, dtype=kind, device=device)
        return ContinuousFlow(fine, self.problem.loss, self.solver.on(fine))


def run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: Clock,
    *,
    depths: Depths = (16, 32, 64, 128, 256, 512),
    layer: Annotated[str, known(LAYERS)] = "exp",
    between: Annotated[float, above(0), below(1)] = 0.4,
    settled: Positive = 1e-9,
    steps: Count = 100_000,
    cases: Count = 10,
    detour: Positive = 1.0,
    seed: Seed = 0,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Gradient descent that the edge of stability holds: its final sharpness by depth, and the central flow beside it.

    Parameters
    ----------
    problem : Problem
    initial : callable
        Profile W0(s), one that is not relaxed balanced.
    solver : DepthSolver
    clock : Clock
        Output times, moved to whole multiples of η.
    depths : sequence of int
        Numbers of layers L, increasing, three at least; infinite depth is always beside them.
    layer : str
        Layer rule.
    between : float
        Where 2/η lies from the least sharpness of minimisers, 0, to that in which gradient flow ends, 1.
    settled : float
        Training has settled where the gradient of the loss in z is at most that.
    steps : int
        Steps in which gradient descent must have settled.
    cases : int
        Drawn starts from which the central flow is compared with gradient flow.
    detour : float
        How far these are led astray from relaxed balanced ones.
    seed : int
        Of the drawn starts.
    workers : int, optional
        Trainings side by side; by default one per processor.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        depth 0 stands for infinite depth.

    Raises
    ------
    ValueError
        If the start shows no edge, or there are less than three depths.
    RuntimeError
        If one of the trainings did not settle.
    """
    if len(depths) < 3:
        raise ValueError(f"study.depths must be three or more, for two local orders, got {list(depths)}")
    plan = _Plan(problem, initial, solver, clock, layer, between, settled, steps)
    start = plan.flow(_INFINITE).sample(initial)
    if start.ndim != 3:
        raise ValueError("study=edge follows one start, and initial has several members: take another")
    at = settling.edge(clock, plan.flow(_INFINITE), start, between, settled, "infinite depth")
    if at.nothing_to_show:
        raise ValueError(f"initial: {at.nothing_to_show}")
    keys = [("depth", L) for L in sorted((*depths, _INFINITE), key=lambda L: L or len(solver.grid), reverse=True)]
    keys += [("finer", 0), ("coarse", 0), *(("case", i) for i in range(cases)), ("limit", 0)]

    def task(key: tuple[str, int]) -> Any:
        kind, number = key
        if kind == "case":
            seeds = [seed + number + cases * k for k in range(_DRAWS)]
            return _case(plan, [INITIALS["detour"](problem.z0, detour=detour, seed=s) for s in seeds], number)
        return _TASKS[kind](plan, at.rate, number)

    found: dict[tuple[str, int], Any] = {}
    for n, (key, result) in enumerate(side_by_side(task, keys, workers)):
        found[key] = result
        if progress is not None:
            progress((n + 1) / len(keys), f"{key[0]} {key[1]}")
    dataset = _dataset(plan, at, [*depths, _INFINITE], cases, found)
    return _finding(dataset, plan).attached(dataset)


def _named(L: int) -> str:
    return f"L = {L}" if L else "infinite depth"


def _descent(plan: _Plan, rate: float, L: int) -> dict[str, Any]:
    """Gradient descent at one depth: along the output times, and where it settles."""
    flow, name = plan.flow(L), _named(L)
    start = flow.sample(plan.initial)
    rest = settling.settle(plan.clock, flow, start, rate, plan.settled, plan.steps, name)
    path = settling.followed(plan.clock, flow, start, rate, name)
    found = {
        "times": path.times,
        "loss": path.loss,
        "sharpness": settling.sharpness_along(flow, path.W),
        "rest": (rest.sharpness, rest.left, rest.steps),
    }
    if L == _INFINITE:
        means = settling.means(flow, path.W, rate)
        next_one = whole(descend(flow, start, 1, "gd", rate), f"a step of {name}").state
        step = settling.apart(flow, next_one[None], start[None])
        found |= {"means_off": float(settling.apart(flow, means[:1], (start + next_one)[None] / 2) / step)}
        found |= {"means": means, "routes": abs(float(sharpness(flow, rest.state).value) - rest.sharpness)}
    return found


def _finer(plan: _Plan, rate: float, _: int) -> float:
    """The sharpness at which gradient descent settles on more nodes."""
    flow = plan.finer()
    start = flow.sample(plan.initial)
    name = "infinite depth on a finer grid"
    return settling.settle(plan.clock, flow, start, rate, plan.settled, plan.steps, name).sharpness


def _times(plan: _Plan, rate: float) -> Tensor:
    """The output times, whole multiples of the rate, each followed by that half a step later."""
    every, number = settling.between_records(plan.clock, rate), len(plan.clock.times)
    return settling.halves(rate * every * torch.arange(number, dtype=torch.float64), rate)


def _limit(plan: _Plan, rate: float, _: int) -> dict[str, Any]:
    """Gradient flow and the central flow at infinite depth."""
    flow, times = plan.flow(_INFINITE), _times(plan, rate)
    start, name = flow.sample(plan.initial), _named(_INFINITE)
    paths = {
        "flow": settling.flowed(plan.clock, flow, start, times, name),
        "central": settling.centred(plan.clock, flow, start, rate, times, name),
    }
    unprojected = settling.unprojected(flow, paths["central"].W[-1], rate)
    return {"unprojected": unprojected} | {
        of: {
            "loss": path.loss[::2],
            "sharpness": settling.sharpness_along(flow, path.W[::2]),
            "times": path.times,
            "W": path.W[1::2],
            "z": path.z[1::2],
        }
        for of, path in paths.items()
    }


def _may_be_longer(plan: _Plan, rate: float) -> bool:
    """Whether steps of a whole rate are taken: they end at outputs, half a rate apart where each step is one."""
    return settling.between_records(plan.clock, rate) > 1


def _coarse(plan: _Plan, rate: float, _: int) -> Tensor:
    """W of the central flow in steps twice as long, at infinite depth; half as long where outputs are too near."""
    flow = plan.flow(_INFINITE)
    start, name = flow.sample(plan.initial), _named(_INFINITE)
    cut = 1 if _may_be_longer(plan, rate) else 2 * settling.CUT
    return settling.centred(plan.clock, flow, start, rate, _times(plan, rate), name, cut).W[1::2]


def _case(plan: _Plan, profiles: Sequence[Profile], number: int) -> dict[str, float]:
    flow = plan.flow(_INFINITE)
    starts = [flow.sample(profile) for profile in profiles]
    return settling.case(plan.clock, flow, starts, plan.between, plan.settled, plan.steps, f"case {number}")


_TASKS = {"depth": _descent, "finer": _finer, "limit": _limit, "coarse": _coarse}


def _dataset(
    plan: _Plan, at: settling.Edge, depths: Sequence[int], cases: int, found: dict[tuple[str, int], Any]
) -> xr.Dataset:
    flow, limit, descent = plan.flow(_INFINITE), found["limit", 0], found["depth", _INFINITE]
    of = [found["depth", L] for L in depths]
    rest = np.array([entry["rest"] for entry in of])
    means = descent["means"]
    z = flow.product(means)
    drawn = [found["case", i] for i in range(cases)]
    late = len(means) // 2
    apart = settling.apart(flow, limit["central"]["W"], found["coarse", 0])
    times_off = [settling.times_off(limit[of]["times"], descent["times"], at.rate) for of in ("flow", "central")]
    variables: dict[str, Any] = {
        "sharpness_descent": (("depth", "time"), torch.stack([entry["sharpness"] for entry in of])),
        "loss_descent": (("depth", "time"), torch.stack([entry["loss"] for entry in of])),
        "final_sharpness": ("depth", rest[:, 0]),
        "error": ("depth", np.abs(rest[:, 0] - rest[-1, 0])),
        "left": ("depth", rest[:, 1]),
        "settled_after": ("depth", rest[:, 2].astype(int)),
        "error_grid": ((), abs(found["finer", 0] - rest[-1, 0])),
        # A method of order 2: half as long leaves a quarter.
        "error_central": ((), float(apart[late:].max()) * (1.0 if _may_be_longer(plan, at.rate) else 4 / 3)),
        "times_off": ((), largest_of(times_off)),
        "means_off": ((), descent["means_off"]),
        "routes": ((), descent["routes"]),
        **{name: ((), value) for name, value in _ends(plan, at).items()},
        "unprojected": ((), limit["unprojected"]),
        "expected_order": ((), float(LAYERS[plan.layer].order)),
        "edge": ((), at.value),
        "rate": ((), at.rate),
        "end_sharpness": ((), at.flow),
        "least_sharpness": ((), at.least),
        "case_ratio": ("case", [case["central"] / case["flow"] for case in drawn]),
    }
    for name in ("flow", "central"):
        path = limit[name]
        variables |= {
            f"sharpness_{name}": ("time", path["sharpness"]),
            f"loss_{name}": ("time", path["loss"]),
            f"apart_{name}": ("time", settling.apart(flow, path["W"], means)),
            f"apart_z_{name}": ("time", torch.linalg.matrix_norm(path["z"] - z)),
        }
    variables |= {f"case_{key}": ("case", [case[key] for case in drawn]) for key in drawn[0]}
    axes = [
        axis("depth", list(depths), "number of layers L; 0 is infinite depth"),
        time(descent["times"], "step number times the learning rate"),
        axis("case", range(cases), "drawn start"),
    ]
    return arranged(variables, axes, LONG_NAMES, {"rate": "flow time"})


def _ends(plan: _Plan, at: settling.Edge) -> dict[str, float]:
    """How far both sharpnesses between which 2/η lies are from those by Lanczos' method.

    The least one knows no grid, and is looked at on the finer one.
    """
    flow, fine = plan.flow(_INFINITE), plan.finer()
    least = fine.sample(balanced(flow.product(at.state)))
    return {
        "end_routes": abs(float(sharpness(flow, at.state).value) - at.flow),
        "least_routes": abs(float(sharpness(fine, least).value) - at.least),
    }


def _floor(dataset: xr.Dataset) -> float:
    """What the distances of final sharpness from infinite depth have of the grid and of minimisers not reached."""
    left = dataset.left.values
    return max(1e-14, float(dataset.error_grid), float(np.abs(left - left[-1]).max()))


def _last_orders(dataset: xr.Dataset) -> np.ndarray:
    """The last two local orders of errors that are well above the floor; NaN where there are less."""
    networks, errors = dataset.depth.values[:-1], dataset.error.values[:-1]
    trusted = errors > ABOVE_FLOOR * _floor(dataset)
    found = local_orders(networks[trusted], errors[trusted])
    return np.concatenate(([np.nan, np.nan], found))[-2:]


def _finding(dataset: xr.Dataset, plan: _Plan) -> Finding:
    networks, errors = dataset.depth.values[:-1].tolist(), dataset.error.values[:-1]
    floor, expected = _floor(dataset), float(dataset.expected_order)
    order = observed_order(np.array(networks), errors, floor)
    order = order._replace(rule=f"final sharpness, {plan.layer} layers", expected=expected)
    last, median = _last_orders(dataset), float(dataset.case_ratio.median())
    return Finding(
        study="edge",
        problem=plan.problem.title,
        status="ok",
        verdict=_verdict(dataset, order, last),
        claim=Claim(
            f"at the edge of stability the sharpness of gradient descent tends to that of infinite depth at order "
            f"{expected:g} in 1/L, and the central flow is nearer to gradient descent than gradient flow is",
            measured={"last_orders": last, "median_ratio": median},
        ),
        checks=_checks(dataset, last, expected, plan.settled),
        orders=(order,),
        tables=(
            ErrorTable(
                "Final sharpness by depth",
                networks,
                {order.rule: errors.tolist()},
                floor=floor,
                what="Distance of the sharpness at which gradient descent settles from that of infinite depth",
            ),
        ),
        numbers={
            **{name: float(dataset[name]) for name in ("rate", "edge", "least_sharpness", "end_sharpness")},
            "depths": networks,
            "layer": plan.layer,
            "settled": plan.settled,
            "final_sharpness": dataset.final_sharpness.values,
            "last_orders": last,
            "ratios": dataset.case_ratio.values,
            "median_ratio": median,
            "drawn_again": int(dataset.case_drawn.sum()),
            "reference_error": floor,
        },
    )


def _checks(dataset: xr.Dataset, last: np.ndarray, expected: float, settled: float) -> tuple[Check, ...]:
    final, where = dataset.final_sharpness.values, "final sharpness"
    routes = _ROUTES * final[-1] + _SECOND * settled
    held = abs(largest_of(dataset.sharpness_central) / float(dataset.edge) - 1)
    return (
        Check(f"the last two local orders from {expected:g}", _most(last - expected), _ORDER, f"{where}, in 1/L"),
        Check(
            "distance of the central flow from gradient descent over that of gradient flow",
            _most(dataset.case_ratio.values), _NEARER, "L² norm of W, sup over the second half, largest of the cases",
        ),
        Check(
            "times of the flows off those of gradient descent",
            largest_of([float(dataset.times_off), largest_of(dataset.case_times_off)]), _SAME,
            "in steps, largest of the start and of the cases",
        ),
        Check("mean of the first two iterates, by a velocity and by a step", float(dataset.means_off), _SAME,
              "over the step"),
        Check("largest sharpness of the central flow from 2/η", held, _HELD, "relative, infinite depth"),
        Check(
            "velocity of the central flow from a projection of that of gradient flow", float(dataset.unprojected),
            _PROJECTED, "inner product of what is taken out with what is left, relative, at the end",
        ),
        Check("final sharpness over 2/η", _most(final / float(dataset.edge)), 1.0, "largest over L and ∞"),
        Check("final sharpness − that by Lanczos' method", float(dataset.routes), routes, "infinite depth"),
        Check("sharpness in which gradient flow ends − that by Lanczos' method", float(dataset.end_routes),
              _ROUTES * float(dataset.end_sharpness) + _SECOND * settled, "infinite depth"),
        Check("least sharpness − that of balanced weights by Lanczos' method", float(dataset.least_routes),
              _ROUTES * float(dataset.least_sharpness) + _SECOND * settled, "infinite depth"),
        Check("error of the depth grid", float(dataset.error_grid), norm=f"{where}, infinite depth"),
        Check("what is left of training", _most(dataset.left.values), norm=f"{where}, largest over L and ∞"),
        Check("error in time of the central flow", float(dataset.error_central), norm="at most; L² norm, second half"),
    )  # fmt: skip


def _most(values: np.ndarray) -> float:
    """The largest modulus; NaN where there is one."""
    return largest_of(np.abs(values))


def _verdict(dataset: xr.Dataset, order: Order, last: np.ndarray) -> str:
    networks, ratio = dataset.depth.values[:-1], dataset.case_ratio.values
    again, cases = int(dataset.case_drawn.sum()), len(ratio)
    more = f" ({again} more were drawn, which show no edge)" if again else ""
    return (
        f"Gradient flow ends at sharpness {float(dataset.end_sharpness):.5g}; gradient descent with 2/η = "
        f"{float(dataset.edge):.5g} settles at {float(dataset.final_sharpness[-1]):.6g}, networks of L = {networks[0]} "
        f"to {networks[-1]} layers {float(dataset.error[0]):.2g} to {float(dataset.error[-2]):.2g} from it, at order "
        f"{order} in 1/L, the last two local orders {last[0]:.3f} and {last[1]:.3f}. From {cases} drawn starts{more} "
        f"the central flow is {ratio.min():.2g} to {ratio.max():.2g} times as far from gradient descent as gradient "
        f"flow is, in the median {np.median(ratio):.2g}."
    )


STUDIES.register("edge")(
    Study(
        run,
        question="Where does gradient descent settle that the edge of stability holds, does its sharpness have a limit "
        "in depth, and does the central flow tell where it goes?",
        own_axes={"time": ("problem", "initial")},  # in whole steps, of a rate that follows from the start
    )
)
