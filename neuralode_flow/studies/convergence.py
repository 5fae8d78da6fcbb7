"""The main study: finite networks, the continuous model and their intrinsic dynamics, all four edges of the square.

           depth L → ∞
FiniteFlow ───────────▶ ContinuousFlow        top: error_z, error_profile
    │ product               │ product         left: error_finite_square
    ▼                       ▼                 right: error_reference
IntrinsicFlow(L) ─────▶ IntrinsicFlow(∞)      bottom: error_intrinsic_depth
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..depth.grid import DepthGrid
from ..depth.layers import LAYERS
from ..flows.base import Flow
from ..flows.continuous import ContinuousFlow
from ..flows.finite import SAMPLING_ORDERS, FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..initial import relaxed_balanced_layers
from ..kernels import DividedDifference, LogMean
from ..laws import depth_curvature, relaxed_balance_defect
from ..orders import Order, observed_order, relative_noise
from ..time.endings import REACHED
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import STUDIES, Progress, Setup, Study, whole
from .parallel import side_by_side
from .weights import MOST_NUMBERS, MOST_ROWS, kept, weights

DEPTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
RULES = ("euler", "rk2", "cayley", "exp")

# Relative to the size of W²: above it an initialisation is called not relaxed balanced.
UNBALANCED = 1e-4

# A relaxed balanced start cannot leave the intrinsic curve: above this relative gap the solve is at fault.
COARSE = 1e-2

# An observed order this far below the expected one contradicts it.
CONTRADICTS = 0.25


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


@dataclass(frozen=True, eq=False)
class _Reference:
    """The right edge of the square and its own errors."""

    flow: ContinuousFlow
    states: list[Tensor]
    path: Trajectory
    intrinsic: Trajectory
    error_grid: float = np.nan
    error_time: float = np.nan
    error_profile_grid: float = np.nan  # of W(s), which the grid holds less accurately between its nodes than z


def run(
    setup: Setup,
    *,
    depths: Sequence[int] = DEPTHS,
    layers: Sequence[str] = RULES,
    sampling: str = "midpoint",
    workers: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Errors of finite networks against the continuous model, and of all edges of the square.

    Parameters
    ----------
    setup : Setup
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
    depths = _check_depths(depths)
    for layer in layers:
        LAYERS[layer]
    workers = None if workers is None else count("workers", workers)
    flows = {(layer, L): FiniteFlow(L, setup.problem.loss, layer, sampling) for layer in layers for L in depths}
    squares = {("square", L): L for L in depths}
    nodes = len(setup.grid)
    checks = [("doubled", 2 * nodes), ("tight", nodes)]
    meter = _Meter(progress, (len(layers) + 1) * sum(depths) + 4 * nodes)
    reference = _reference(setup, meter)

    shown = "euler" if "euler" in layers else layers[0]
    fits = len(setup.times) * reference.states[0].numel() * len(depths) <= MOST_NUMBERS
    fits = fits and setup.problem.z0.shape[-1] <= MOST_ROWS

    def edge(key: tuple[str, int]) -> Any:
        if key in squares:
            return _side_edges(setup, reference, key[1])
        if key in checks:
            return _doubled(setup, reference) if key[0] == "doubled" else _tight(setup, reference)
        return _top_edge(setup, reference, f"{key[0]}-{key[1]}", flows[key], keep=fits and key[0] == shown)

    edges = {}
    # The checks first: without them nothing else counts.
    keys = [*checks, *sorted([*flows, *squares], key=lambda key: -key[1])]
    for key, result in side_by_side(edge, keys, workers):
        edges[key] = result
        meter.step(key[1], f"{key[0]}, L = {key[1]}")
    (error_grid, error_profile_grid), error_time = (edges.pop(key) for key in checks)
    reference = replace(reference, error_grid=error_grid, error_time=error_time, error_profile_grid=error_profile_grid)
    corners = np.array([edges[key] for key in squares])
    return _dataset(setup, reference, list(depths), list(layers), sampling, edges, corners)


class _Meter:
    """Turns the weights of finished work into a fraction; a network of depth L weighs L."""

    def __init__(self, progress: Progress | None, total: float) -> None:
        self.progress = progress
        self.total = total
        self.finished = 0.0

    def step(self, weight: float, what: str) -> None:
        self.finished += weight
        if self.progress is not None:
            self.progress(min(self.finished / self.total, 1.0), what)


def _check_depths(depths: Sequence[int]) -> list[int]:
    checked = [count("depths", L) for L in depths]
    if not checked or any(b <= a for a, b in zip(checked, checked[1:], strict=False)):
        raise ValueError(f"depths must be a non-empty increasing list of numbers of layers, got {list(depths)}")
    return checked


def _solve(
    setup: Setup, name: str, flow: Flow, state: Tensor, observe: Callable[[int, Tensor], Tensor] | None = None
) -> Trajectory:
    return integrate(flow, state, setup.times, **setup.options(name), observe=observe)


def _is_whole(path: Trajectory) -> bool:
    """Whether a path reached the last time with numbers to trust; its target may be out of reach."""
    return path.ending in REACHED


def _reference(setup: Setup, meter: _Meter) -> _Reference:
    flow = ContinuousFlow(setup.grid, setup.problem.loss, setup.depth)

    def keep(_: int, state: Tensor) -> Tensor:
        meter.step(len(setup.grid) / len(setup.times), "continuous model")
        return state

    path = whole(_solve(setup, "continuous", flow, flow.sample(setup.initial), keep), "continuous model")
    states = list(_observed(path))
    limit = IntrinsicFlow(setup.problem.loss, LogMean())
    intrinsic = whole(_solve(setup, "intrinsic", limit, path.z[0]), "intrinsic limit")
    return _Reference(flow, states, path, intrinsic)


def _doubled(setup: Setup, reference: _Reference) -> tuple[float, float]:
    """What the depth grid contributes to the reference: to z, and to W(s) between the nodes."""
    finer = DepthGrid.gauss(2 * setup.grid.panels, setup.grid.order)
    flow = ContinuousFlow(finer, setup.problem.loss, setup.depth)

    def compare(i: int, state: Tensor) -> Tensor:
        gap = state - setup.grid.interpolate(reference.states[i], finer.nodes)
        return (gap.square().sum((-2, -1)) * finer.weights.to(gap)).sum().sqrt()

    start = flow.sample(setup.initial)
    path = whole(_solve(setup, "doubled", flow, start, compare), "continuous model on a doubled grid")
    return _distance(path.z, reference.path.z), float(_observed(path).max())


def _tight(setup: Setup, reference: _Reference) -> float:
    """What the steps in time contribute to z of the reference."""
    path = whole(_solve(setup.tight(), "tight", reference.flow, reference.states[0]), "continuous model in finer steps")
    return float(torch.linalg.matrix_norm(setup.time_error(reference.path.z, path.z)).max())


def _distance(z: Tensor, other: Tensor) -> float:
    """sup over times of the Frobenius distance of `(T, d, d)` paths."""
    return float(torch.linalg.matrix_norm(z - other).max())


def _observed(path: Trajectory) -> Tensor:
    """What was observed at the output times."""
    assert path.observed is not None
    return path.observed


def _top_edge(setup: Setup, reference: _Reference, name: str, flow: FiniteFlow, *, keep: bool) -> dict[str, Any]:
    """One finite network against the continuous model; `keep` its layers, of the first member, at the depth nodes."""
    nodes, L = reference.flow.grid.nodes, len(flow.nodes)
    at_nodes = (nodes * L).floor().long().clamp(max=L - 1)

    def compare(i: int, state: Tensor) -> Tensor:
        limit = reference.flow.grid.interpolate(reference.states[i], flow.nodes.to(state.device))
        squares = (state - limit).square().sum((-2, -1)).mean(-1)
        error = squares.mean().sqrt()
        if not keep:
            return error.unsqueeze(0)
        first = state.reshape(-1, *state.shape[-3:])[0]
        return torch.cat((error.unsqueeze(0), first[at_nodes].flatten()))

    path = _solve(setup, name, flow, flow.sample(setup.initial), compare)
    members = path.z.reshape(len(path.z), -1, *path.z.shape[-2:])
    gaps = torch.linalg.matrix_norm(members - reference.path.z[: len(members), None])
    gap = gaps.square().mean(-1).sqrt()
    reached, seen = _is_whole(path), _observed(path)
    layers = seen[:, 1:].reshape(len(seen), 1, len(nodes), *path.z.shape[-2:]) if keep else None
    return {
        "layers": None if layers is None else _padded(layers, len(setup.times))[0],
        "z": _padded(members, len(setup.times)),
        "loss": _padded(path.loss.reshape(len(members), -1), len(setup.times)),
        "error_z": float(gap.max()) if reached else np.nan,
        "noise_z": relative_noise(gaps[int(gap.argmax())]),
        "error_profile": float(seen[:, 0].max()) if reached else np.nan,
        "drift": float(path.drift.max()),
        "evaluations": path.stats["evaluations"],
        "seconds": path.stats["seconds"],
        "status": path.status,
    }


def _padded(values: Tensor, length: int) -> np.ndarray:
    """`(t, members, …)` → `(members, T, …)`, with NaN after an early end."""
    result = np.full((values.shape[1], length, *values.shape[2:]), np.nan)
    result[:, : len(values)] = values.transpose(0, 1).cpu().numpy()
    return result


def _side_edges(setup: Setup, reference: _Reference, L: int) -> tuple[float, float]:
    """Left and bottom edge at depth L: an exactly relaxed balanced Euler network, its intrinsic flow, and the limit.

    The network has the λ_k = λ(s_k)/L² of the continuous model, s_k = k/L.
    """
    grid, z0, loss = reference.flow.grid, reference.path.z[0], setup.problem.loss
    lam = depth_curvature(grid, reference.states[0]).diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    between = torch.arange(1, L).to(z0) / L
    steps = grid.interpolate(lam, between).reshape(-1) / L**2 if L > 1 else between
    shifts = torch.cat((torch.zeros(1).to(z0), torch.cumsum(steps, 0)))
    network = _solve(setup, f"square-{L}-network", FiniteFlow(L, loss), relaxed_balanced_layers(z0, shifts))
    limit = IntrinsicFlow(loss, DividedDifference(shifts, time_scale=1 / L))
    closed = _solve(setup, f"square-{L}-intrinsic", limit, z0)
    if not (_is_whole(network) and _is_whole(closed)):
        return np.nan, np.nan
    return _distance(network.z, closed.z), _distance(closed.z, reference.intrinsic.z)


def _dataset(
    setup: Setup,
    reference: _Reference,
    depths: list[int],
    layers: list[str],
    sampling: str,
    edges: dict[tuple[str, int], dict[str, Any]],
    sides: np.ndarray,
) -> xr.Dataset:
    def table(key: str) -> np.ndarray:
        return np.array([[edges[layer, L][key] for L in depths] for layer in layers])

    L = np.array(depths)
    floor, floor_profile = (
        setup.floor(reference.error_time, error) for error in (reference.error_grid, reference.error_profile_grid)
    )
    z_finite, error_z, error_profile = table("z"), table("error_z"), table("error_profile")
    noise = table("noise_z")
    richardson = _richardson(reference, depths, layers, z_finite)
    orders = [observed_order(L, *line) for line in zip(error_z, repeat(floor), noise)]
    expected = {layer: expected_order(setup, layer, sampling) for layer in layers}
    profile_orders = [observed_order(L, errors, floor_profile) for errors in error_profile]
    path, intrinsic = reference.path, reference.intrinsic
    matrix = ("time", "row", "column")
    grid_edge = ("rule", "depth")
    dataset = xr.Dataset(
        {
            "z_finite": (("rule", "depth", "member", *matrix), z_finite),
            "z_continuous": (matrix, path.z.cpu().numpy()),
            "z_intrinsic": (matrix, intrinsic.z.cpu().numpy()),
            "error_z": (grid_edge, error_z),
            "error_profile": (grid_edge, error_profile),
            "error_richardson": ("depth", richardson),
            "error_finite_square": ("depth", sides[:, 0]),
            "error_intrinsic_depth": ("depth", sides[:, 1]),
            "error_reference": ((), _distance(path.z, intrinsic.z)),
            "error_grid": ((), reference.error_grid),
            "error_time": ((), reference.error_time),
            "error_profile_grid": ((), reference.error_profile_grid),
            "order": ("rule", [order.value for order in orders]),
            "order_spread": ("rule", [order.spread for order in orders]),
            "order_points": ("rule", [order.points for order in orders]),
            "order_expected": ("rule", list(expected.values())),
            "order_reason": ("rule", [order.reason for order in orders]),
            "order_profile": ("rule", [order.value for order in profile_orders]),
            "order_profile_spread": ("rule", [order.spread for order in profile_orders]),
            "order_richardson": ((), observed_order(L, richardson, floor).value),
            "order_intrinsic_depth": ((), observed_order(L, sides[:, 1], floor).value),
            "loss_continuous": ("time", path.loss.cpu().numpy()),
            "loss_finite": (("rule", "depth", "member", "time"), table("loss")),
            "drift_continuous": ("time", path.drift.cpu().numpy()),
            "drift_modes": ("law_mode", path.stats["law_modes"]["drift"]),
            "drift_bounds": ("law_mode", path.stats["law_modes"]["bound"]),
            "drift_finite": (grid_edge, table("drift")),
            "evaluations": (grid_edge, table("evaluations")),
            "seconds": (grid_edge, table("seconds"), {"units": "s"}),
        },
        coords={
            "rule": ("rule", layers, {"long_name": "layer rule"}),
            "depth": ("depth", depths, {"long_name": "number of layers L"}),
            "time": ("time", path.times.cpu().numpy(), {"long_name": "training time t", "units": "flow time"}),
        },
    )
    dataset = dataset.merge(_all_weights(reference, [edges[layer, n]["layers"] for layer in layers for n in depths]))
    statuses = {f"{layer}, L = {n}": edges[layer, n]["status"] for layer in layers for n in depths}
    for name, meaning in LONG_NAMES.items():
        if name in dataset:
            dataset[name].attrs["long_name"] = meaning
    broken = [f"{name}: {status}" for name, status in statuses.items() if status != "ok"]
    W0 = reference.states[0]
    dataset.attrs = {
        "study": "convergence",
        "status": "ok"
        if not broken
        else f"{len(broken)} of {len(statuses)} finite networks stopped early; {broken[0]}",
        "problem": setup.problem.title,
        "sampling": sampling,
        "depth_nodes": len(reference.flow.grid),
        "depth_solver": setup.depth,
        "method": setup.method,
        "rtol": setup.rtol,
        "atol": setup.atol,
        "floor": floor,
        "floor_profile": floor_profile,
        "relaxed_balance_defect": float(relaxed_balance_defect(reference.flow.grid, W0)),
        "defect_scale": 1 + float(torch.linalg.matrix_norm(W0).max()) ** 2,
        "intrinsic_gap": _distance(path.z, intrinsic.z) / float(torch.linalg.matrix_norm(intrinsic.z).max()),
    }
    if not broken and (contradiction := _contradiction(layers, orders, expected)):
        dataset.attrs["status"] = contradiction
    elif not broken and not _unbalanced(dataset) and not dataset.attrs["intrinsic_gap"] <= COARSE:
        dataset.attrs["status"] = (
            f"the solve is too coarse: the continuous model and the intrinsic limit, which must agree from a relaxed "
            f"balanced start, differ by {_distance(path.z, intrinsic.z):.2g}; take more depth nodes, more output times "
            f"(the steps of {setup.method} if it has no error control), or a smaller rtol"
        )
    dataset.attrs["verdict"] = _verdict(dataset, orders)
    return dataset


def _all_weights(reference: _Reference, layers: list[np.ndarray | None]) -> xr.Dataset:
    """W(t, s) of the continuous model and, where they were kept, the layers of networks of all depths beside it."""
    seen = [kept(len(reference.states), W) for W in reference.states]
    found = [values for values in seen if values is not None]
    if not found:
        return xr.Dataset()
    dataset, beside = weights(torch.stack(found), reference.flow.grid.nodes), [W for W in layers if W is not None]
    return dataset.assign(W_finite=(("depth", *dataset["W"].dims), np.stack(beside))) if beside else dataset


def _richardson(reference: _Reference, depths: list[int], layers: list[str], z_finite: np.ndarray) -> np.ndarray:
    """Error of 2 z_{2L} − z_L on Euler, filed under L; NaN where 2L was not run."""
    errors = np.full(len(depths), np.nan)
    if "euler" in layers:
        z = z_finite[layers.index("euler")]
        for i, L in enumerate(depths):
            if 2 * L in depths:
                gap = 2 * z[depths.index(2 * L)] - z[i] - reference.path.z.cpu().numpy()
                errors[i] = np.sqrt(np.square(gap).sum((-2, -1)).mean(0)).max()
    return errors


def _unbalanced(dataset: xr.Dataset) -> bool:
    return bool(dataset.attrs["relaxed_balance_defect"] > UNBALANCED * dataset.attrs["defect_scale"])


def expected_order(setup: Setup, layer: str, sampling: str) -> float:
    """The order in 1/L that the layer rule declares, as far as where W is sampled and what is sampled let it.

    An initialisation says by `order` how fast networks can tend to it; NaN for one that gives the layers itself and
    does not.
    """
    unknown = np.nan if hasattr(setup.initial, "layers") else np.inf
    most = float(getattr(setup.initial, "order", unknown))
    return most if np.isnan(most) else min(float(LAYERS[layer].order), SAMPLING_ORDERS[sampling], most)


def _contradiction(layers: list[str], orders: list[Order], expected: dict[str, float]) -> str:
    """What the first layer rule that converges more slowly than it declares has shown; "" if there is none.

    Faster convergence contradicts nothing: it can be owed to the problem.
    """
    for layer, order in zip(layers, orders, strict=True):
        if not order.falls and expected[layer] > 0:
            return f"layer rule {layer!r} does not converge as it declares (order {expected[layer]:g}): {order.reason}"
        highest = order.last if order.reason else order.value + order.spread
        if highest < expected[layer] - CONTRADICTS:
            found = f"local orders of {order.last:.2f} and less at the last depths" if order.reason else str(order)
            return (
                f"layer rule {layer!r} has the observed order {found} and not {expected[layer]:g}, as it declares: "
                f"check its layer and adjoint, or its order, or that W is as smooth in s as it needs"
            )
    return ""


def _verdict(dataset: xr.Dataset, orders: list[Order]) -> str:
    """What the study found, in one or two sentences; a departure from the theory is said first."""
    attrs = dataset.attrs
    reference = float(dataset.error_reference)
    if _unbalanced(dataset):
        finding = (
            f"The initialisation is not relaxed balanced (defect {attrs['relaxed_balance_defect']:.2g}), and its "
            f"end-to-end map leaves the intrinsic curve by {100 * attrs['intrinsic_gap']:.2g} % "
            f"(sup distance {reference:.2g}): the intrinsic limit does not describe it."
        )
    else:
        finding = (
            f"The continuous model follows the intrinsic limit to {reference:.1e} "
            f"(law drift {float(dataset.drift_continuous.max()):.1e}, {attrs['depth_nodes']} depth nodes)."
        )
    found = ", ".join(
        f"{rule} {order}" + (f" (expected {expected:g})" if np.isfinite(expected) else "")
        for rule, order, expected in zip(dataset.rule.values, orders, dataset.order_expected.values, strict=True)
    )
    verdict = f"{finding} Observed order of the finite networks in 1/L: {found}."
    return verdict if attrs["status"] == "ok" else f"{attrs['status']}. {verdict}"


def summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """The flat record of the study for summary.json."""
    by_rule = {str(rule): dataset.sel(rule=rule) for rule in dataset.rule.values}
    attrs = dataset.attrs
    return {
        "study": "convergence",
        "status": attrs["status"],
        "verdict": attrs["verdict"],
        "problem": attrs["problem"],
        "reference_error": float(dataset.error_reference),
        "reference_error_grid": float(dataset.error_grid),
        "reference_error_time": float(dataset.error_time),
        "reference_error_profile": float(dataset.error_profile_grid),
        "law_drift": float(dataset.drift_continuous.max()),
        "law_drift_modes": dataset.drift_modes.values.tolist(),
        "law_drift_bounds": dataset.drift_bounds.values.tolist(),
        "relaxed_balanced": not _unbalanced(dataset),
        "relaxed_balance_defect": attrs["relaxed_balance_defect"],
        "intrinsic_gap": attrs["intrinsic_gap"],
        "depths": dataset.depth.values.tolist(),
        "orders": {rule: float(part.order) for rule, part in by_rule.items()},
        "order_spreads": {rule: float(part.order_spread) for rule, part in by_rule.items()},
        "order_points": {rule: int(part.order_points) for rule, part in by_rule.items()},
        "order_reasons": {rule: str(part.order_reason.item()) for rule, part in by_rule.items()},
        "expected_orders": {rule: float(part.order_expected) for rule, part in by_rule.items()},
        "errors": {rule: part.error_z.values.tolist() for rule, part in by_rule.items()},
        "profile_orders": {rule: float(part.order_profile) for rule, part in by_rule.items()},
        "profile_errors": {rule: part.error_profile.values.tolist() for rule, part in by_rule.items()},
        "richardson_order": float(dataset.order_richardson),
        "richardson_errors": dataset.error_richardson.values.tolist(),
        "finite_square_errors": dataset.error_finite_square.values.tolist(),
        "intrinsic_depth_order": float(dataset.order_intrinsic_depth),
        "intrinsic_depth_errors": dataset.error_intrinsic_depth.values.tolist(),
        "law_drifts": {rule: part.drift_finite.values.tolist() for rule, part in by_rule.items()},
    }


STUDIES.register("convergence")(
    Study(
        run,
        summarise,
        question="Do the training flows of finite networks tend to that of the continuous-depth model, at "
        "which rate in the number of layers L, and does its end-to-end map z follow the explicit "
        "intrinsic dynamics of the limit?",
    )
)
