"""The main study: finite networks, the continuous model and their intrinsic dynamics, all four edges of the square.

           depth L → ∞
FiniteFlow ───────────▶ ContinuousFlow        top: error_z, error_profile
    │ product               │ product         left: error_finite_square
    ▼                       ▼                 right: error_reference
IntrinsicFlow(L) ─────▶ IntrinsicFlow(∞)      bottom: error_intrinsic_depth
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from ..checks import count
from ..depth import DEPTH_SOLVERS, DepthSolver
from ..depth.grid import Profile
from ..depth.rules import LAYERS, label
from ..finding import ERRORS_OF_Z, Check, Claim, ErrorTable, Finding
from ..flows.continuous import ContinuousFlow
from ..flows.finite import SAMPLING_ORDERS, SAMPLINGS
from ..laws import defect_scale, relaxed_balance_defect
from ..orders import STRAIGHT_PART, Order, observed_order
from ..problems import Problem
from ..signatures import Depths, Workers, distinct, each, known
from . import infimum
from .axes import Axis, arranged, axis, depth, largest_of, time
from .base import STUDIES, AnyClock, Progress, Start, Study, summarise
from .heldout import LONG_NAME, along, numbers, verdict
from .square import Reference, Square, check_depths, distance, solve_square
from .weights import kept, weights_and_depth

__all__ = ["expected_order", "run", "summarise"]

DEPTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
RULES = ("euler", "rk2", "cayley", "exp")

# Relative to the size of W²: above it an initialisation is called not relaxed balanced.
UNBALANCED = 1e-4

# A relaxed balanced start cannot leave the intrinsic curve: above this relative gap the solve is at fault.
COARSE = 1e-2

# An observed order this far below the expected one contradicts it.
CONTRADICTS = 0.25

# What the claim must hold to: orders in 1/L, and the limit.
ORDER, LIMIT = 0.05, 1e-8

EDGES = {
    "error_richardson": "Richardson 2z_2L − z_L, Euler",
    "error_finite_square": "finite network – its intrinsic flow",
    "error_intrinsic_depth": "intrinsic flow of L layers – limit",
}

LONG_NAMES = {
    "W_finite": "layers of the first network of each depth, at the depth nodes",
    "z_finite": "end-to-end map of the finite network",
    "z_continuous": "end-to-end map of the continuous model",
    "z_intrinsic": "solution of the intrinsic limit",
    "error_z": "sup over time of the Frobenius distance of z from the continuous model",
    "error_profile": "sup over time of the L2 distance over depth of the layers from W(t, s)",
    "error_richardson": "error of 2 z_2L - z_L, Euler layers",
    "error_finite_square": "relaxed balanced Euler network minus its intrinsic flow of L layers",
    "error_intrinsic_depth": "intrinsic flow of L layers minus intrinsic limit",
    "error_reference": "continuous model minus intrinsic limit",
    "error_grid": "continuous model minus the same on a doubled depth grid",
    "error_time": "error in time of the continuous model, from the same in finer steps",
    "error_profile_grid": "W(s) between the depth nodes minus the same on a doubled depth grid",
    "rule_label": "what figures call the layer rule",
    "order": "observed order of error_z in 1/L",
    "order_profile": "observed order of error_profile in 1/L",
    "order_spread": "spread of the order over the straight part",
    "order_points": "number of depths that the order rests on",
    "order_expected": "order that the layer rule declares, as far as sampling and initialisation let it",
    "order_reason": "why the order is undecided",
    "order_profile_spread": "spread of order_profile over the straight part",
    "order_richardson": "observed order of error_richardson in 1/L",
    "order_intrinsic_depth": "observed order of error_intrinsic_depth in 1/L",
    "loss_finite": "loss of the finite network",
    "loss_continuous": "loss of the continuous model",
    "drift_finite": "largest drift of the conservation law between layers",
    "drift_continuous": "drift of the conservation law, beyond what the grid accounts for",
    "drift_modes": "change of the conservation law at the end, by Legendre mode of a panel",
    "drift_bounds": "what of it the grid accounts for",
    "evaluations": "velocity evaluations",
    "seconds": "wall time of the integration",
}


# What else these names stand for in steps, and what stands for the intrinsic flow there.
IN_STEPS = {
    "z_intrinsic": "z of infinite depth from the balanced start with the same map, in the same steps",
    "error_finite_square": "relaxed balanced Euler network minus the same with frames at random",
    "error_intrinsic_depth": "that network minus infinite depth from the balanced start",
    "error_reference": "continuous model minus the same from the balanced start",
    "error_time": "continuous model minus the same from a start that is one rounding away",
    "drift_continuous": "change of the conservation law, beyond that by the steps where it is known",
    "drift_finite": "largest change of the conservation law, beyond that by the steps where it is known",
}
EDGES_IN_STEPS = {
    "error_finite_square": "balanced network – with other frames",
    "error_intrinsic_depth": "other frames – balanced start at infinite depth",
}
STANDS_FOR = {False: "the intrinsic limit", True: "the balanced start with the same z₀ in the same steps"}


class _Orders(NamedTuple):
    """Observed orders of all rules, and the floors of the errors that they are of."""

    z: list[Order]
    profile: list[Order]
    floor: float
    floor_profile: float


def run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: AnyClock,
    *,
    depths: Depths = DEPTHS,
    layers: Annotated[Sequence[str], distinct, each(known(LAYERS))] = RULES,
    sampling: Annotated[str, known(SAMPLINGS, "sampling")] = "midpoint",
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Errors of finite networks against the continuous model, and of all edges of the square.

    Parameters
    ----------
    problem : Problem
    initial : callable
        Profile W0(s).
    solver : DepthSolver
    clock : Clock or Steps
        Along the flows, or in steps.
    depths : sequence of int
        Numbers of layers L, increasing.
    layers : sequence of str
        Layer rules.
    sampling : {"midpoint", "left"}
    workers : int, optional
        Networks that are trained side by side; by default one per processor. See `side_by_side`.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        Errors are suprema over the output times of Frobenius norms (root mean square over members, where there are
        several), except `error_profile`, whose norm is L² over depth.

    Raises
    ------
    TypeError, ValueError
        For bad arguments.
    RuntimeError
        If the reference itself could not be computed.
    """
    for layer in layers:
        LAYERS.check(layer)
    workers = None if workers is None else count("workers", workers)
    square = solve_square(
        ContinuousFlow(solver.grid, problem.loss, solver),
        initial,
        clock,
        check_depths(depths),
        list(layers),
        sampling,
        workers,
        progress,
    )
    orders = _orders(square, sampling, initial, clock)
    dataset = _dataset(square, orders, clock)
    if problem.held_out is not None:
        dataset = dataset.assign(
            loss_held_out=("time", along(problem.held_out, square.reference.path.z), {"long_name": LONG_NAME}),
            loss_finite_held_out=(
                dataset.loss_finite.dims,
                along(problem.held_out, dataset.z_finite.values),
                {"long_name": f"{LONG_NAME}, of the finite network"},
            ),
        )
    dataset.attrs.update(_attributes(square, orders, sampling, clock))
    return _finding(dataset, problem.title, square, orders).attached(dataset)


def trained(problem: Problem, initial: Profile, solver: DepthSolver, clock: AnyClock, **_: Any) -> Start:
    """What `run` trains first, and from where, of the same arguments."""
    return ContinuousFlow(solver.grid, problem.loss, solver), initial


def _orders(square: Square, sampling: str, initial: Profile, clock: AnyClock) -> _Orders:
    L, reference = np.array(square.depths), square.reference
    floor, floor_profile = (
        clock.floor(reference.error_time, error) for error in (reference.error_grid, reference.error_profile_grid)
    )
    errors, noise, profiles = (square.table(name) for name in ("error_z", "noise_z", "error_profile"))
    found = [observed_order(L, line, floor, unsure) for line, unsure in zip(errors, noise, strict=True)]
    return _Orders(
        [
            order._replace(rule=layer, expected=expected_order(initial, layer, sampling))
            for order, layer in zip(found, square.layers, strict=True)
        ],
        [observed_order(L, line, floor_profile) for line in profiles],
        floor,
        floor_profile,
    )


def _dataset(square: Square, orders: _Orders, clock: AnyClock) -> xr.Dataset:
    reference, L = square.reference, np.array(square.depths)
    path, modes = reference.path, reference.path.stats["law_modes"] or {"drift": [], "bound": []}
    left, bottom = square.sides.T
    richardson, doubled = _richardson(square), np.isin(2 * L, L)
    matrix, edge = ("time", "row", "column"), ("rule", "depth")
    variables = {
        "z_finite": ((*edge, "member", *matrix), square.table("z")),
        "z_continuous": (matrix, path.z),
        "z_intrinsic": (matrix, reference.intrinsic.z),
        "error_z": (edge, square.table("error_z")),
        "error_profile": (edge, square.table("error_profile")),
        "error_richardson": ("depth", richardson),
        "error_finite_square": ("depth", left),
        "error_intrinsic_depth": ("depth", bottom),
        "error_reference": ((), distance(path.z, reference.intrinsic.z)),
        "error_grid": ((), reference.error_grid),
        "error_time": ((), reference.error_time),
        "error_profile_grid": ((), reference.error_profile_grid),
        "rule_label": ("rule", [label(rule) for rule in square.layers]),
        "order": ("rule", [order.value for order in orders.z]),
        "order_spread": ("rule", [order.spread for order in orders.z]),
        "order_points": ("rule", [order.points for order in orders.z]),
        "order_expected": ("rule", [order.expected for order in orders.z]),
        "order_reason": ("rule", [order.reason for order in orders.z]),
        "order_profile": ("rule", [order.value for order in orders.profile]),
        "order_profile_spread": ("rule", [order.spread for order in orders.profile]),
        "order_richardson": ((), observed_order(L[doubled], richardson[doubled], orders.floor).value),
        "order_intrinsic_depth": ((), observed_order(L, bottom, orders.floor).value),
        "loss_continuous": ("time", path.loss),
        "loss_finite": ((*edge, "member", "time"), square.table("loss")),
        "drift_continuous": ("time", path.drift),
        "drift_modes": ("law_mode", modes["drift"]),
        "drift_bounds": ("law_mode", modes["bound"]),
        "drift_finite": (edge, square.table("drift")),
        "evaluations": (edge, square.table("evaluations")),
        "seconds": (edge, square.table("seconds")),
    }
    seen, places = _all_weights(reference, [network.layers for network in square.networks.values()])
    axes = [axis("rule", square.layers, "layer rule"), depth(square.depths), time(path.times), *places]
    names = LONG_NAMES | (IN_STEPS if clock.in_steps else {})
    everything = {**variables, **seen, **infimum.variable(reference.flow.loss)}
    return arranged(everything, axes, names, units={"seconds": "s"})


def _all_weights(reference: Reference, layers: list[np.ndarray | None]) -> tuple[dict[str, Any], list[Axis]]:
    """W(t, s) of the continuous model and, where they were kept, the layers of networks of all depths beside it.

    Variables and axes, for `arranged`.
    """
    seen = [kept(len(reference.states), W) for W in reference.states]
    found = [values for values in seen if values is not None]
    if not found:
        return {}, []
    variables, place = weights_and_depth(torch.stack(found), reference.flow.grid.nodes)
    beside = [W for W in layers if W is not None]
    if beside:
        variables["W_finite"] = (("depth", *variables["W"][0]), np.stack(beside), LONG_NAMES["W_finite"])
    return variables, [place]


def _richardson(square: Square) -> np.ndarray:
    """Error of 2 z_{2L} − z_L on Euler, filed under L; NaN where 2L was not run."""
    errors = np.full(len(square.depths), np.nan)
    if "euler" in square.layers:
        limit = square.reference.path.z.cpu().numpy()
        for i, L in enumerate(square.depths):
            if 2 * L in square.depths:
                gap = 2 * square.networks["euler", 2 * L].z - square.networks["euler", L].z - limit
                errors[i] = np.sqrt(np.square(gap).sum((-2, -1)).mean(0)).max()
    return errors


def _attributes(square: Square, orders: _Orders, sampling: str, clock: AnyClock) -> dict[str, Any]:
    """How it was computed, and how far the initialisation is from the relaxed balanced ones."""
    reference, W0 = square.reference, square.reference.states[0]
    z, limit = reference.path.z, reference.intrinsic.z
    return {
        "sampling": sampling,
        "depth_nodes": len(reference.flow.grid),
        "depth_solver": _named(reference.flow.depth),
        **clock.control,
        "decided": int(clock.decided),
        "law_holds": int(reference.path.stats.get("law_in_steps", True)),
        "floor": orders.floor,
        "floor_profile": orders.floor_profile,
        "relaxed_balance_defect": float(relaxed_balance_defect(reference.flow.grid, W0)),
        "defect_scale": defect_scale(W0),
        "intrinsic_gap": distance(z, limit) / float(torch.linalg.matrix_norm(limit).max()),
    }


def _named(solver: DepthSolver) -> str:
    """The name that a depth solver is chosen by."""
    kind = type(solver)
    return next((name for name, maker in DEPTH_SOLVERS.items() if maker is kind), kind.__name__)


def _stands_for(dataset: xr.Dataset) -> str:
    return STANDS_FOR["rate" in dataset.attrs]


def _unbalanced(dataset: xr.Dataset) -> bool:
    return bool(dataset.attrs["relaxed_balance_defect"] > UNBALANCED * dataset.attrs["defect_scale"])


def expected_order(initial: Profile, layer: str, sampling: str) -> float:
    """The order in 1/L that the layer rule declares, as far as where W is sampled and what is sampled let it.

    An initialisation says by `order` how fast networks can tend to it; NaN for one that gives the layers itself and
    does not.
    """
    unknown = np.nan if hasattr(initial, "layers") else np.inf
    most = float(getattr(initial, "order", unknown))
    return most if np.isnan(most) else min(float(LAYERS[layer].order), SAMPLING_ORDERS[sampling], most)


def _status(dataset: xr.Dataset, square: Square, orders: Sequence[Order]) -> str:
    """Why the numbers are not those of networks that were trained to the end and tend to their limit, or "ok"."""
    statuses = [(f"{layer}, L = {L}", network.status) for (layer, L), network in square.networks.items()]
    broken = [f"{name}: {status}" for name, status in statuses if status != "ok"]
    if broken:
        return f"{len(broken)} of {len(statuses)} finite networks stopped early; {broken[0]}"
    if square.broken:
        L, status = next(iter(square.broken.items()))
        return (
            f"{len(square.broken)} of {len(square.depths)} exactly relaxed balanced networks, or their intrinsic "
            f"flows, stopped early; L = {L}: {status}"
        )
    if contradiction := _contradiction(orders):
        return contradiction
    if _unbalanced(dataset) or not dataset.attrs["decided"] or dataset.attrs["intrinsic_gap"] <= COARSE:
        return "ok"
    if "rate" in dataset.attrs:
        return (
            f"z₀ does not decide these steps as it should: two relaxed balanced starts come to differ by "
            f"{float(dataset.error_reference):.2g}, and one rounding of the start grows to "
            f"{float(dataset.error_time):.2g}; take a smaller rate, or more depth nodes"
        )
    return (
        f"the solve is too coarse: the continuous model and the intrinsic limit, which must agree from a relaxed "
        f"balanced start, differ by {float(dataset.error_reference):.2g}; take more depth nodes, more output times "
        f"(the steps of {dataset.attrs['method']} if it has no error control), or a smaller rtol"
    )


def _contradiction(orders: Sequence[Order]) -> str:
    """What the first layer rule that converges more slowly than it declares has shown; "" if there is none.

    Faster convergence contradicts nothing: it can be owed to the problem.
    """
    for order in orders:
        if not order.falls and order.expected > 0:
            return (
                f"layer rule {order.rule!r} does not converge as it declares (order {order.expected:g}): {order.reason}"
            )
        highest = order.last if order.reason else order.value + order.spread
        if highest < order.expected - CONTRADICTS:
            found = f"local orders of {order.last:.2f} and less at the last depths" if order.reason else str(order)
            return (
                f"layer rule {order.rule!r} has the observed order {found} and not {order.expected:g}, as it declares: "
                f"check its layer and adjoint, or its order, or that W is as smooth in s as it needs"
            )
    return ""


def _finding(dataset: xr.Dataset, title: str, square: Square, orders: _Orders) -> Finding:
    status = _status(dataset, square, orders.z)
    verdict = _verdict(dataset, orders.z)
    return Finding(
        study="convergence",
        problem=title,
        status=status,
        verdict=verdict if status == "ok" else f"{status}. {verdict}",
        claim=Claim(
            f"networks tend to the continuous model at order 1 (Euler) or 2, and z follows {_stands_for(dataset)}",
            measured={order.rule: order.value for order in orders.z},
        ),
        checks=_checks(dataset, orders.z),
        orders=tuple(orders.z),
        tables=_tables(dataset, orders.floor),
        numbers=_numbers(dataset),
    )


def _checks(dataset: xr.Dataset, orders: Sequence[Order]) -> tuple[Check, ...]:
    sup, found = "sup over time, Frobenius norm", dataset.variables
    errors = {name: float(found[name]) for name in ("error_reference", "error_grid", "error_time")}
    bounds = {"error_reference": LIMIT} if dataset.attrs["decided"] else {}
    of_reference = [
        Check(f"reference: {found[name].attrs['long_name']}", error, bounds.get(name), sup)
        for name, error in errors.items()
    ]
    left, over = found["error_finite_square"], f"{sup}, largest over L"
    of_networks = Check(left.attrs["long_name"], largest_of(left.values), bounds.get("error_reference"), over)
    law = "0 in exact arithmetic" if dataset.attrs["law_holds"] else "which steps of this rule move"
    drift = Check("drift of the conserved quantity", float(found["drift_continuous"].values.max()), norm=law)
    of_orders = [
        Check(f"order of {order.rule} from {order.expected:g}", abs(order.value - order.expected), ORDER)
        for order in orders
    ]
    return (*of_reference, of_networks, drift, *of_orders)


def _tables(dataset: xr.Dataset, floor: float) -> tuple[ErrorTable, ...]:
    found = dataset.variables
    depths = found["depth"].values.tolist()
    by_rule = dict(zip(found["rule"].values.tolist(), found["error_z"].values.tolist(), strict=True))
    labels = EDGES | (EDGES_IN_STEPS if "rate" in dataset.attrs else {})
    edges = {label: found[name].values.tolist() for name, label in labels.items()}
    return (
        ErrorTable("Errors by depth", depths, by_rule, floor, ERRORS_OF_Z),
        ErrorTable("The other edges of the square", depths, edges, floor),
    )


def _verdict(dataset: xr.Dataset, orders: Sequence[Order]) -> str:
    """What the study found, in one or two sentences; a departure from the theory is said first."""
    attrs, found = dataset.attrs, dataset.variables
    reference = float(found["error_reference"])
    if _unbalanced(dataset):
        curve = "that of the balanced start with the same z₀" if "rate" in attrs else "the intrinsic curve"
        finding = (
            f"The initialisation is not relaxed balanced (defect {attrs['relaxed_balance_defect']:.2g}), and its "
            f"end-to-end map leaves {curve} by {100 * attrs['intrinsic_gap']:.2g} % "
            f"(sup distance {reference:.2g}): {'z₀ alone' if 'rate' in attrs else 'the intrinsic limit'} does not "
            f"describe it."
        )
    elif not attrs["decided"]:
        finding = (
            f"{attrs['method']} does not turn with the gradient: the continuous model leaves {_stands_for(dataset)} by "
            f"{reference:.2g}."
        )
    else:
        finding = (
            f"The continuous model follows {_stands_for(dataset)} to {reference:.1e} "
            f"({'law drift' if attrs['law_holds'] else 'law moved by'} "
            f"{float(found['drift_continuous'].values.max()):.1e}, {attrs['depth_nodes']} depth nodes)."
        )
    said = ", ".join(
        f"{order.rule} {order}" + (f" (expected {order.expected:g})" if np.isfinite(order.expected) else "")
        for order in orders
    )
    training = infimum.verdict(dataset, "loss_continuous") + verdict(dataset, "loss_continuous")
    return f"{finding} Observed order of the finite networks in 1/L: {said}.{training}"


def _numbers(dataset: xr.Dataset) -> dict[str, object]:
    """The further entries of summary.json."""
    found, attrs = dataset.variables, dataset.attrs
    rules = found["rule"].values.tolist()

    def by_rule(name: str) -> dict[str, Any]:
        return dict(zip(rules, found[name].values, strict=True))

    return {
        "reference_error": float(found["error_reference"]),
        "reference_error_grid": float(found["error_grid"]),
        "reference_error_time": float(found["error_time"]),
        "reference_error_profile": float(found["error_profile_grid"]),
        "law_drift": float(found["drift_continuous"].values.max()),
        "law_drift_modes": found["drift_modes"].values,
        "law_drift_bounds": found["drift_bounds"].values,
        "relaxed_balanced": not _unbalanced(dataset),
        "relaxed_balance_defect": attrs["relaxed_balance_defect"],
        "intrinsic_gap": attrs["intrinsic_gap"],
        "depths": found["depth"].values,
        "orders": by_rule("order"),
        "order_spreads": by_rule("order_spread"),
        "order_spreads_of": f"{STRAIGHT_PART} of each fit",  # of many members their mean, which is no spread over them
        "order_points": {rule: points or None for rule, points in by_rule("order_points").items()},
        "order_reasons": by_rule("order_reason"),
        "expected_orders": by_rule("order_expected"),
        "errors": by_rule("error_z"),
        "profile_orders": by_rule("order_profile"),
        "profile_errors": by_rule("error_profile"),
        "richardson_order": float(found["order_richardson"]),
        "richardson_errors": found["error_richardson"].values,
        "finite_square_errors": found["error_finite_square"].values,
        "intrinsic_depth_order": float(found["order_intrinsic_depth"]),
        "intrinsic_depth_errors": found["error_intrinsic_depth"].values,
        "law_drifts": by_rule("drift_finite"),
        **infimum.numbers(dataset, "loss_continuous"),
        **numbers(dataset, "loss_continuous"),
    }


STUDIES.register("convergence")(
    Study(
        run,
        question="Do the training flows of finite networks tend to that of the continuous-depth model, at "
        "which rate in the number of layers L, and does its end-to-end map z follow the explicit "
        "intrinsic dynamics of the limit?",
        trained=trained,
    )
)
