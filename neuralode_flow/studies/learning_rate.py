"""Gradient descent of a visible step size, beside gradient flow and the modified flow, at finite and infinite depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..depth import DepthSolver
from ..depth.grid import DepthGrid, Profile
from ..depth.rules import LAYERS
from ..finding import Check, Claim, ErrorTable, Finding
from ..flows.base import Flow
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.modified import ModifiedFlow
from ..intrinsic.systems import ClosedFlow
from ..kernels import LogMean
from ..laws import defect_scale, relaxed_balance_defect
from ..losses import Loss
from ..modes import gradient
from ..orders import ABOVE_FLOOR, Order, observed_order, said
from ..parallel import side_by_side
from ..problems import Problem
from ..signatures import Depths, Workers, at_least, distinct, each, increasing, known
from ..time.descend import descend
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, time
from .base import STUDIES, Clock, Progress, Study, whole
from .realisation import forward_mode

Steps = Annotated[Sequence[int], distinct, each(at_least(1)), increasing]

# How far an order may be from its own; the largest of the control; the least at which the constants converge in 1/L.
_ORDER, _CONTROL, _UNIFORM, _OWN = 0.1, 1.5, 0.5, 0.01

# Relative to the size of W²: above it a start is not relaxed balanced, and no flow of z alone is near.
_UNBALANCED = 1e-4

_INFINITE = 0  # on the axis of depths

LONG_NAMES = {
    "gap_flow": "Frobenius distance of z of gradient descent from gradient flow",
    "gap_modified": "Frobenius distance of z of gradient descent from the modified flow",
    "gap_closed": "Frobenius distance of z of the modified flow from that closed on z, infinite depth",
    "error_flow": "sup over time of gap_flow",
    "error_modified": "sup over time of gap_modified",
    "closed_missed": "what closed on z misses at the start of the part of η in dz/dt of the modified flow, relative",
    "error_closed": "sup over time of gap_closed",
    "order_flow": "observed order of error_flow in the learning rate",
    "order_modified": "observed order of error_modified in the learning rate",
    "order_closed": "observed order of error_closed in the learning rate",
    "constant_flow": "error_flow at the smallest learning rate, over that rate",
    "constant_modified": "error_modified at the smallest learning rate, over the square of that rate",
    "error_time": "error in time of gradient flow, or of the modified flow at infinite depth if that is larger",
    "depth_error": "error of z that the depth grid makes, the largest along gradient flow",
}


@dataclass(frozen=True, eq=False)
class _Start:
    """A model and where its training starts."""

    flow: Flow
    state: Tensor
    name: str  # in words


def run(
    problem: Problem,
    initial: Profile,
    solver: DepthSolver,
    clock: Clock,
    *,
    depths: Depths = (4, 16, 64),
    steps: Steps = (2, 4, 8, 16),
    layer: Annotated[str, known(LAYERS)] = "euler",
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Gradient descent against W' = −∇f and against W' = −∇(f + η/4 ‖∇f‖²): orders 1 and 2 in η, uniform in L.

    Parameters
    ----------
    problem : Problem
    initial : callable
        Profile W0(s).
    solver : DepthSolver
    clock : Clock
        Output times, evenly spaced.
    depths : sequence of int
        Numbers of layers L, increasing; infinite depth is always beside them.
    steps : sequence of int
        Steps between two output times, increasing: the learning rates η are that interval over these.
    layer : str
        Layer rule.
    workers : int, optional
        Trainings side by side; by default one per processor.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        depth 0 stands for infinite depth. Errors are suprema over the output times of Frobenius norms of z.

    Raises
    ------
    ValueError
        If the output times are not evenly spaced.
    RuntimeError
        If one of the trainings did not come to its end.
    """
    models = _models(problem, initial, solver, depths, layer)
    ticks = _ticks(clock.times)
    rates = [float(clock.times[1]) / k for k in steps]
    keys = [(L, k) for L in sorted(models, key=lambda L: L or len(solver.grid), reverse=True) for k in (*steps, 0)]

    def task(key: tuple[int, int]) -> Any:
        L, k = key
        if k == 0:
            return _flow(clock, models[L], L, rates[-1])
        return _paths(clock, models[L], L, k, ticks, closed=L == _INFINITE)

    found = {}
    for n, (key, result) in enumerate(side_by_side(task, keys, workers)):
        found[key] = result
        if progress is not None:
            progress((n + 1) / len(keys), f"{models[key[0]].name}, {key[1]} steps" if key[1] else models[key[0]].name)
    balanced = _is_balanced(solver.grid, models[_INFINITE].state)
    dataset = _dataset(clock, [*depths, _INFINITE], steps, rates, found, balanced)
    return _finding(dataset, problem.title, layer, balanced).attached(dataset)


def _models(
    problem: Problem, initial: Profile, solver: DepthSolver, depths: Sequence[int], layer: str
) -> dict[int, _Start]:
    """Networks of all depths and the continuous model, from one profile."""
    limit = ContinuousFlow(solver.grid, problem.loss, solver)
    networks = {L: FiniteFlow(L, problem.loss, layer) for L in depths}
    found = {L: _Start(flow, flow.sample(initial), f"L = {L}") for L, flow in networks.items()}
    return found | {_INFINITE: _Start(limit, limit.sample(initial), "infinite depth")}


def _ticks(times: Tensor) -> Tensor:
    """The output times in units of the first interval, which must be whole numbers."""
    ticks = times / times[1]
    if not bool((ticks - ticks.round()).abs().max() < 1e-9 * ticks[-1]):
        raise ValueError(
            f"time: gradient descent comes to whole multiples of its learning rate, and the output times "
            f"{times.tolist()} are not evenly spaced; make time.horizon a multiple of their interval"
        )
    return ticks.round().long()


def _flow(clock: Clock, start: _Start, L: int, rate: float) -> dict[str, Any]:
    """z of gradient flow, and in finer steps, at infinite depth with the modified flow; and the error of the grid."""
    path = _integrated(clock, start.flow, start, f"flow-{L}")
    flows = {"flow": start.flow} | ({"modified": ModifiedFlow(start.flow, rate)} if L == _INFINITE else {})
    tight = {name: _integrated(clock.tight(), flow, start, f"{name}-{L}-tight").z for name, flow in flows.items()}
    return {"z": path.z, "tight": tight, "depth_error": float(path.depth_error.max())}


def _integrated(clock: Clock, flow: Flow, start: _Start, name: str) -> Trajectory:
    path = integrate(flow, start.state, clock.times, **clock.options(name))
    return whole(path, f"{type(flow).__name__} of {start.name}")


def _paths(clock: Clock, start: _Start, L: int, k: int, ticks: Tensor, *, closed: bool) -> dict[str, Tensor]:
    """z of gradient descent of k steps in an output interval, of its modified flow, and of that closed on z."""
    rate = float(clock.times[1]) / k
    kept = ("checkpoint", "every", "max_seconds")
    options = {name: value for name, value in clock.options(f"descent-{L}-{k}").items() if name in kept}
    path = descend(start.flow, start.state, int(ticks[-1]) * k, "gd", rate, record=k, **options)
    descent = whole(path, f"gradient descent of {start.name} with η = {rate:g} (study.steps = {k})").z[ticks]
    modified = _integrated(clock, ModifiedFlow(start.flow, rate), start, f"modified-{L}-{k}").z
    if not closed:
        return {"descent": descent, "modified": modified}
    z = replace(start, state=descent[0], name="z alone")
    of_z = _integrated(clock, closed_on_z(start.flow.loss, rate), z, f"closed-{k}").z
    return {"descent": descent, "modified": modified, "closed": of_z, "missed": _missed(start, rate)}


def _missed(start: _Start, rate: float) -> Tensor:
    """What `closed_on_z` misses at the start of the part of η in dz/dt of the modified flow, over that part."""
    flow, W = start.flow, start.state
    moved = (ModifiedFlow(flow, rate).velocity(W), flow.velocity(W))
    with forward_mode():
        modified, plain = (torch.func.jvp(flow.product, (W,), (one,))[1] for one in moved)
    gap = torch.linalg.matrix_norm(closed_on_z(flow.loss, rate).velocity(flow.product(W)) - modified)
    return (gap / torch.linalg.matrix_norm(modified - plain)).max()


def closed_on_z(loss: Loss, rate: float) -> ClosedFlow:
    """ż = −K_z[∇(f + η/4 ⟨∇f, K_z ∇f⟩)], K_z the metric of infinite depth: what the modified flow would be in z alone.

    On relaxed balance ⟨∇f, K_z ∇f⟩ is ‖∇f‖² over depth, and this is how z moves there (docs/math.md). The modified flow
    leaves relaxed balance by O(η), which z cannot tell: it is a control.
    """
    depth = DepthGrid.gauss(2, 12)
    s, weights = depth.nodes[:, None, None], depth.weights[:, None, None]
    second = getattr(loss, "hessian", None) or (lambda z, along: gradient(loss.gradient, z, lambda _: along))

    def formula(z: Tensor, G: Tensor) -> Tensor:
        U, sigma, Vh = torch.linalg.svd(z)
        K, E, log_x = LogMean()(sigma), U.mT @ G @ Vh.mT, 2 * torch.log(sigma)

        def divided(p: Tensor) -> Tensor:
            """(x_a^p − x_b^p)/(x_a − x_b), x = σ², at each depth."""
            r = (log_x[..., :, None] - log_x[..., None, :])[..., None, :, :] / 2
            ratio = torch.where(r == 0, p, torch.sinh(p * r) / torch.sinh(r))
            middle = (log_x[..., :, None] + log_x[..., None, :])[..., None, :, :] / 2
            return torch.exp((p - 1) * middle) * ratio

        x = torch.exp(s * log_x[..., None, None, :]), torch.exp((1 - s) * log_x[..., None, None, :])
        along, size, e = weights.to(z), sigma[..., None, :], E[..., None, :, :]
        left = (along * divided(1 - s) * ((e * x[0]) @ e.mT)).sum(-3) * size
        right = size.mT * (along * divided(s) * ((e.mT * x[1]) @ e)).sum(-3)
        bent = 2 * (U @ (left + right) @ Vh + second(z, U @ (K * E) @ Vh))
        return -U @ (K * (U.mT @ (G + rate / 4 * bent) @ Vh.mT)) @ Vh

    return ClosedFlow(loss, formula)


def _is_balanced(grid: DepthGrid, W: Tensor) -> bool:
    return float(relaxed_balance_defect(grid, W).max()) <= _UNBALANCED * defect_scale(W)


def _apart(z: Tensor, other: Tensor) -> Tensor:
    """Frobenius distance at each time, (T,): the largest of a batch."""
    return torch.linalg.matrix_norm(z - other).reshape(len(z), -1).amax(1)


def _error_time(clock: Clock, z: Tensor, tight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(clock.time_error(z, tight)).max())


def _dataset(
    clock: Clock,
    depths: Sequence[int],
    steps: Sequence[int],
    rates: Sequence[float],
    found: dict[tuple[int, int], dict[str, Any]],
    balanced: bool,
) -> xr.Dataset:
    def gaps(L: int, name: str) -> Tensor:
        """Of (rate, time), the largest of a batch."""
        if name == "flow":
            return torch.stack([_apart(found[L, k]["descent"], found[L, 0]["z"]) for k in steps])
        other = "descent" if name == "modified" else "modified"
        return torch.stack([_apart(found[L, k][other], found[L, k][name]) for k in steps])

    gap = {name: torch.stack([gaps(L, name) for L in depths]).cpu().numpy() for name in ("flow", "modified")}
    closed = gaps(_INFINITE, "closed").cpu().numpy() if balanced else np.full(gap["flow"].shape[1:], np.nan)
    limit, last = found[_INFINITE, 0], found[_INFINITE, steps[-1]]
    of_modified = _error_time(clock, last["modified"], limit["tight"]["modified"])
    error_time = np.array([
        max(_error_time(clock, found[L, 0]["z"], found[L, 0]["tight"]["flow"]), of_modified) for L in depths
    ])  # fmt: skip
    of, smallest = ("depth", "rate"), rates[-1]
    variables: dict[str, Any] = {f"gap_{name}": ((*of, "time"), gap[name]) for name in gap}
    variables |= {"gap_closed": (("rate", "time"), closed), "error_closed": ("rate", closed.max(-1))}
    missed = [float(found[_INFINITE, k]["missed"]) if balanced else np.nan for k in steps]
    variables |= {"closed_missed": ("rate", missed)}
    for power, (name, values) in enumerate(gap.items(), start=1):
        errors = values.max(-1)
        orders = [_order(rates, line, floor).value for line, floor in zip(errors, error_time, strict=True)]
        variables |= {
            f"error_{name}": (of, errors),
            f"order_{name}": ("depth", orders),
            f"constant_{name}": ("depth", errors[:, -1] / smallest**power),
        }
    variables |= {
        "order_closed": ((), _order(rates, closed.max(-1), error_time[-1]).value),
        "error_time": ("depth", error_time),
        "depth_error": ((), limit["depth_error"]),
    }
    axes = [
        axis("depth", list(depths), "number of layers L; 0 is infinite depth"),
        axis("rate", list(rates), "learning rate η", "flow time"),
        time(clock.times),
    ]
    return arranged(variables, axes, LONG_NAMES)


def _order(rates: Sequence[float], errors: np.ndarray, floor: float) -> Order:
    """The order in η; that of an error in 1/L with 1/η in the place of L."""
    found = observed_order(1 / np.array(rates), errors, max(1e-14, floor))
    return found._replace(over="learning rates")


def _misses(dataset: xr.Dataset) -> bool:
    """Whether the flow closed on z misses anything of the modified one: where z decides W it does not, as in d = 1."""
    return not bool(dataset.error_closed.values.max() <= ABOVE_FLOOR * dataset.error_time[-1])


def _finding(dataset: xr.Dataset, title: str, layer: str, balanced: bool) -> Finding:
    names = {L: f"L = {L}" if L else "L = ∞" for L in dataset.depth.values.tolist()}
    rates, floors = dataset.rate.values, dataset.error_time.values
    orders = {
        name: [
            _order(rates, line, floor)._replace(rule=f"{what} in η, {at}", expected=power)
            for line, floor, at in zip(dataset[f"error_{name}"].values, floors, names.values(), strict=True)
        ]
        for name, what, power in (("flow", "|GD − flow|", 1.0), ("modified", "|GD − modified flow|", 2.0))
    }
    control: Order | None = None
    if balanced and _misses(dataset):
        control = _order(rates, dataset.error_closed.values, floors[-1])
        control = control._replace(rule="|modified flow − closed on z| in η")
    missed = float(dataset.closed_missed.values.max()) if balanced else None
    off = {name: float(np.max([abs(order.value - order.expected) for order in orders[name]])) for name in orders}
    constants = {name: dataset[f"constant_{name}"].values for name in orders}
    away = {name: np.abs(line[:-1] / line[-1] - 1) for name, line in constants.items()}
    error_time, networks = float(floors.max()), dataset.depth.values[:-1].tolist()
    return Finding(
        study="learning_rate",
        problem=title,
        status="ok",
        verdict=_verdict(dataset, orders, control, balanced),
        claim=Claim(
            "gradient descent follows gradient flow to order 1 in η and W' = −∇(f + η/4 ‖∇f‖²) to order 2"
            f"{', uniformly in the number of layers' if len(networks) > 1 else ''}",
            measured={name: dataset[f"order_{name}"].values for name in orders},
        ),
        checks=(
            Check("the order of |GD − flow| from 1", off["flow"], _ORDER, "largest over L and ∞"),
            Check("the order of |GD − modified flow| from 2", off["modified"], _ORDER, "largest over L and ∞"),
            *_further(networks, away, control, missed),
            Check("error in time of both flows", error_time, norm="sup over t and L, Frobenius norm"),
            Check("error of the depth grid", float(dataset.depth_error), norm="sup over t, Frobenius norm"),
        ),
        orders=(*orders["flow"], *orders["modified"], *([control] if control else [])),
        tables=(
            ErrorTable(
                "Constants by depth",
                networks,
                {"|GD − flow|/η": away["flow"].tolist(), "|GD − modified flow|/η²": away["modified"].tolist()},
                what=f"Relative distance of the constants at η = {rates[-1]:g} from those of infinite depth, "
                f"{layer} layers",
            ),
        ),
        numbers={
            "rates": rates,
            "depths": networks,
            "layer": layer,
            "constants": constants,
            "reference_error": error_time,
        },
    )


def _further(
    networks: Sequence[int], away: dict[str, np.ndarray], control: Order | None, missed: float | None
) -> list[Check]:
    """Those that take several depths, a relaxed balanced start, or one whose z does not decide W."""
    found = []
    if control is not None:
        name = "the order of |modified flow − closed on z|, a control"
        found.append(Check(name, control.value, _CONTROL, "in η, infinite depth"))
    if missed is not None:
        name = "part of η in dz/dt that closed on z misses at the start"
        found.append(Check(name, missed, _OWN, "relative, largest over η"))
    if len(networks) > 1:
        ratio = np.log(networks[-1] / networks[0])
        least = float(np.min([np.log(line[0] / line[-1]) / ratio for line in away.values()]))
        name = "the order at which both constants tend to those of infinite depth"
        found.append(Check(name, least, _UNIFORM, f"in 1/L, from L = {networks[0]} to {networks[-1]}", least=True))
    return found


def _verdict(dataset: xr.Dataset, orders: dict[str, list[Order]], control: Order | None, balanced: bool) -> str:
    rates, networks = dataset.rate.values, dataset.depth.values[:-1].tolist()
    flow, modified = (dataset[f"constant_{name}"].values for name in orders)
    layers = ", ".join(map(str, networks))
    alone = " A flow closed on z misses nothing of the modified flow here, and is no control of it." if balanced else ""
    if control is not None:
        missed = float(dataset.error_closed[-1]) / rates[-1]
        alone = f" A flow closed on z misses the modified flow by {missed:.2g} η (order {_said([control])})."
    return (
        f"With η = {rates[0]:g} … {rates[-1]:g}, at L = {layers} and at infinite depth, gradient descent tends to "
        f"gradient flow at order {_said(orders['flow'])} in η and to the modified flow at order "
        f"{_said(orders['modified'])}. Constants, and those of infinite depth: |GD − flow|/η is "
        f"{', '.join(f'{c:.4g}' for c in flow[:-1])} → {flow[-1]:.4g}, |GD − modified flow|/η² is "
        f"{', '.join(f'{c:.4g}' for c in modified[:-1])} → {modified[-1]:.4g}.{alone}"
    )


def _said(orders: Sequence[Order]) -> str:
    """The range of orders that are all decided, as one number where it is one; else why they are not."""
    if any(order.reason for order in orders):
        return said(orders)
    values = [order.value for order in orders]
    return " to ".join(dict.fromkeys(f"{end:.2f}" for end in (min(values), max(values))))


STUDIES.register("learning_rate")(
    Study(
        run,
        steps="study.steps",
        question="How far is gradient descent with a visible step size from gradient flow, does the modified flow "
        "account for it, and does any of it depend on the number of layers?",
    )
)
