"""Achour, Kohn, Rauhut 2025: where the metric of a linear convolutional network is one of its composed filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..intrinsic.systems.base import ClosedFlow
from ..losses import Quadratic
from ..matrices import normal
from ..signatures import Positive, Seed, at_least, at_most
from ..time.integrate import integrate
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study, whole
from .filters import Factorisation, Filters, balanced, factorisations, projected


class Case(NamedTuple):
    """A kind of network, what is said of it, and on which side of the theorem it is."""

    network: Filters
    side: str
    text: str


INSIDE, BEYOND, EXCHANGED, EQUAL = "inside", "beyond", "exchanged", "equal norms"

CASES = {
    "strided": Case(Filters(((3,), (3,)), (2,)), INSIDE, "1D, 3 ∗ 3, stride 2"),
    "strided_deep": Case(Filters(((3,), (3,), (2,)), (2, 2)), INSIDE, "1D, 3 ∗ 3 ∗ 2, strides 2, 2"),
    "strided_wide": Case(Filters(((4,), (3,)), (3,)), INSIDE, "1D, 4 ∗ 3, stride 3"),
    "plane": Case(Filters(((2, 2), (2, 3)), (1,)), INSIDE, "2D, 2×2 ∗ 2×3"),
    "plane_deep": Case(Filters(((2, 2), (2, 3), (1, 2)), (1, 1)), INSIDE, "2D, 2×2 ∗ 2×3 ∗ 1×2"),
    "plane_strided": Case(Filters(((2, 2), (2, 2)), (2,)), INSIDE, "2D, 2×2 ∗ 2×2, stride 2"),
    "line": Case(Filters(((3,), (3,)), (1,)), BEYOND, "1D, 3 ∗ 3"),
    "line_deep": Case(Filters(((2,), (3,), (2,)), (1, 1)), BEYOND, "1D, 2 ∗ 3 ∗ 2"),
    "line_half": Case(Filters(((3,), (2,), (2,)), (2, 1)), BEYOND, "1D, 3 ∗ 2 ∗ 2, strides 2, 1"),
    "plane_equal": Case(Filters(((2, 2), (2, 2)), (1,)), EXCHANGED, "2D, 2×2 ∗ 2×2"),
    "plane_norms": Case(Filters(((2, 2), (2, 2)), (1,)), EQUAL, "2D, 2×2 ∗ 2×2, equal norms"),
}
FLOWS = ("strided", "plane", "line", "plane_equal")

_METRIC, _COMPOSED, _GAP, _CLOSED = 1e-9, 1e-12, 1e-6, 1e-6
_APART, _FLOWS_APART = 0.01, 0.01  # of ‖M‖ and ‖z₀‖: far above what passes on the other side
_RTOL, _ATOL, _POINTS, _SIGNAL = 1e-9, 1e-11, 31, 24

LONG_NAMES = {
    "apart": "largest distance of M of a factorisation of z from M of θ, over ‖M‖",
    "near": "least distance of M of a factorisation of z from M of θ, over ‖M‖",
    "number": "real factorisations of z",
    "accepted": "what divisors that are filters have besides",
    "rejected": "the least that divisors that are none have besides",
    "composed": "composed filter from the layers one after the other, over the largest output",
    "flow_apart": "distance of z of two flows that start with one z and one balance, over ‖z₀‖",
    "loss": "loss along the first of them",
}


def run(
    *,
    draws: Annotated[int, at_least(3), at_most(500)] = 20,
    starts: Annotated[int, at_least(1), at_most(50)] = 3,
    horizon: Positive = 2.0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Whether the composed filter and the balances of a linear convolutional network determine its metric.

    Parameters
    ----------
    draws : int
        Networks of each kind, with standard normal filters.
    starts : int
        How many of them are trained, of some kinds, for half the squared distance from another filter of their kind.
    horizon : float
        Where training ends.
    seed : int
        Of all draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `apart`, `near`, `number` over case and draw; `flow_apart` over flow, start and time.

    Raises
    ------
    ValueError
        If more networks are to be trained than are drawn.
    RuntimeError
        If a flow does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    if starts > draws:
        raise ValueError(f"study.starts must be at most study.draws = {draws}, got {starts}; choose fewer")
    random = torch.Generator().manual_seed(seed)
    thetas = {name: [_draw(case, random) for _ in range(draws)] for name, case in CASES.items()}
    measured = []
    for i, (name, case) in enumerate(CASES.items()):
        say(0.4 * i / len(CASES), f"all factorisations: {case.text}")
        measured.append(_metrics(case.network, thetas[name], random))
    times = np.linspace(0, horizon, _POINTS)
    flows = []
    for i, name in enumerate(FLOWS):
        say(0.4 + 0.6 * i / len(FLOWS), f"training: {CASES[name].text}")
        flows.append([_flows(CASES[name], theta, times, random) for theta in thetas[name][:starts]])
    over = {"apart": ("case", "draw"), "near": ("case", "draw"), "number": ("case", "draw")}
    variables: dict[str, Any] = {
        name: (over.get(name, "case"), np.array([found[name] for found in measured])) for name in measured[0]
    }
    for i, name in enumerate(("flow_apart", "loss")):
        variables[name] = (("flow", "start", "time"), np.array([[one[i] for one in line] for line in flows]))
    variables["side"] = ("case", [case.side for case in CASES.values()], "side of the theorem on which it is")
    variables["text"] = ("case", [case.text for case in CASES.values()], "what it is in words")
    axes = [
        axis("case", list(CASES), "kind of network"),
        axis("draw", np.arange(draws), "draw"),
        axis("flow", list(FLOWS), "kind of network that is trained"),
        axis("start", np.arange(len(flows[0])), "start"),
        axis("time", times, "training time t"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    return _finding(dataset).attached(dataset)


def _draw(case: Case, random: torch.Generator) -> Tensor:
    theta = normal(random, sum(case.network.sizes))
    if case.side == EQUAL:
        theta = torch.cat([w.flatten() / w.norm() for w in case.network.split(theta)])
    return theta


def _found(network: Filters, theta: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, the balances, and M by autograd."""
    J: Tensor = torch.autograd.functional.jacobian(network.phi, theta)
    z, h, M = network.phi(theta), network.laws(theta), J @ J.mT
    return z.cpu().numpy(), h.cpu().numpy(), M.cpu().numpy()


def _distances(network: Filters, theta: Tensor) -> tuple[list[Factorisation], np.ndarray, float]:
    """All factorisations of z of θ, how far M of each is from that of θ, and `Factorisations.rejected`."""
    z, h, M = _found(network, theta)
    found, rejected = factorisations(network, z)
    metrics = [network.metric(balanced(network, one.filters, z, h)) for one in found]
    return found, np.array([np.linalg.norm(one - M) / np.linalg.norm(M) for one in metrics]), rejected


def _metrics(network: Filters, thetas: list[Tensor], random: torch.Generator) -> dict[str, Any]:
    found = [_distances(network, theta) for theta in thetas]
    signal = normal(random, *[_SIGNAL] * len(network.kernels[0]))
    one, other = network.layers(thetas[0], signal), network.composed(thetas[0], signal)
    return {
        "apart": [distances.max(initial=0.0) for _, distances, _ in found],
        "near": [distances.min(initial=np.inf) for _, distances, _ in found],
        "number": [float(len(distances)) for _, distances, _ in found],
        "accepted": max((one.off for factors, _, _ in found for one in factors), default=0.0),
        "rejected": min(rejected for _, _, rejected in found),
        "composed": float((one - other).abs().max() / one.abs().max()),
    }


def _flows(case: Case, theta: Tensor, times: np.ndarray, random: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How far z of the flow of θ is from the other flow, and the loss along the first.

    The other one is that of z alone, whose metric comes from the roots of z, where the theorem has one; else training
    from the factorisation of the same z whose metric is farthest.
    """
    network = case.network
    loss = Quadratic(network.phi(normal(random, len(theta))))
    flow = FactorizationFlow(network.phi, loss, network.laws)
    path = _path(flow, theta, times, f"training of {case.text}")
    z, h, _ = _found(network, theta)
    if case.side == INSIDE:
        other = _path(ClosedFlow(loss, _closed(network, h)), torch.as_tensor(z).to(theta), times, "flow of z alone")
    else:
        found, distances, _ = _distances(network, theta)
        filters = balanced(network, found[int(distances.argmax())].filters, z, h)
        start = torch.as_tensor(np.concatenate([w.reshape(-1) for w in filters])).to(theta)
        other = _path(flow, start, times, f"training of {case.text} from another factorisation")
    apart = (path.z - other.z).norm(dim=-1) / path.z[0].norm()
    return apart.cpu().numpy(), path.loss.cpu().numpy()


def _path(flow: Any, start: Tensor, times: np.ndarray, what: str) -> Any:
    return whole(integrate(flow, start, times.tolist(), "DOP853", _RTOL, _ATOL), what)


def _closed(network: Filters, balances: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """ż = −M(z, balances) ∇f, M by the roots of z."""

    def formula(z: Tensor, G: Tensor) -> Tensor:
        entries = z.detach().cpu().numpy()
        filters = projected(network, entries, balances)
        return -torch.as_tensor(network.metric(filters)).to(G) @ G

    return formula


def _of(dataset: xr.Dataset, side: str, dimension: str = "case") -> xr.Dataset:
    names = [name for name in dataset[dimension].values if CASES[name].side == side]
    return dataset.sel({dimension: names})


def _finding(dataset: xr.Dataset) -> Finding:
    inside, beyond, exchanged, equal = (_of(dataset, side) for side in (INSIDE, BEYOND, EXCHANGED, EQUAL))
    one = "one factorisation" if (inside.number == 1).all() else f"up to {inside.number.max():.0f} factorisations"
    norms = "not at" if largest_of(equal.apart) <= _METRIC else f"by {largest_of(equal.apart):.1e} at"
    medians = dataset.apart.median("draw", skipna=False)
    closed = largest_of(_of(dataset, INSIDE, "flow").flow_apart)
    parted = {name: float(dataset.flow_apart.sel(flow=name).max("time").median()) for name in FLOWS}
    return Finding(
        study="lcn",
        problem=f"Achour, Kohn, Rauhut 2025: linear convolutional networks, {dataset.sizes['draw']} of each kind",
        status="ok",
        verdict=f"In two dimensions, and in one with strides above 1, z has {one}, and M of θ is found "
        f"from z and the balances alone to {largest_of(inside.apart):.1e}; in one dimension with a stride 1 z has "
        f"{beyond.number.min():.0f} to {beyond.number.max():.0f}, and M of the farthest is off by "
        f"{least_of(_of(medians, BEYOND)):.2g} or more (medians). Two filters of one shape in two dimensions can be "
        f"exchanged: M is then off by {float(medians.sel(case='plane_equal')):.2g}, and {norms} equal norms. Training "
        f"follows the flow of z alone to {closed:.1e} on the one side; on the other two starts with one z and one "
        f"balance come {parted['line']:.2g} of ‖z₀‖ apart.",
        claim=Claim(
            "for two or more dimensions, and for one if all strides are above one, z follows a Riemannian gradient "
            "flow whose metric the balances of the start determine",
            measured=largest_of(inside.apart),
            published=0.0,
            figure="Achour 2025",
        ),
        checks=_checks(dataset, inside, beyond, exchanged),
        numbers={
            "median_apart": dict(zip(dataset["case"].values.tolist(), medians.values.tolist(), strict=True)),
            "most_factorisations": dataset.number.max("draw").values.tolist(),
            "flows_apart": parted,
        },
    )


def _checks(dataset: xr.Dataset, inside: xr.Dataset, beyond: xr.Dataset, exchanged: xr.Dataset) -> tuple[Check, ...]:
    equal = _of(dataset, EQUAL)
    apart = dataset.flow_apart.max("time", skipna=False)
    over = "sup over kinds and draws, over ‖M‖"
    medians = "least of the medians of kinds, over ‖M‖"
    return (
        Check(
            "M from z and the balances alone against autograd, strides or two dimensions",
            largest_of(inside.apart),
            _METRIC,
            over,
        ),
        Check("factorisations there off one", largest_of(np.abs(inside.number - 1)), 0.0, "sup over kinds and draws"),
        Check("M of the factorisation that is θ against autograd, all kinds", largest_of(dataset.near), _METRIC, over),
        Check(
            "M of another factorisation, one dimension with a stride 1, a control",
            least_of(beyond.apart.median("draw", skipna=False)),
            _APART,
            medians,
            least=True,
        ),
        Check(
            "M of exchanged filters of one shape, two dimensions, a control",
            least_of(exchanged.apart.median("draw", skipna=False)),
            _APART,
            medians,
            least=True,
        ),
        Check("the same of equal norms", largest_of(equal.apart), _METRIC, over),
        Check("factorisations of equal norms off two", largest_of(np.abs(equal.number - 2)), 0.0, "sup over draws"),
        Check(
            "largest rest of a divisor that is a filter over the least of one that is none",
            largest_of(dataset.accepted) / least_of(dataset.rejected),
            _GAP,
        ),
        Check("composed filter from layer after layer", largest_of(dataset.composed), _COMPOSED, "sup over kinds"),
        Check(
            "training from the flow of z alone, strides or two dimensions",
            largest_of(_of(apart.to_dataset(), INSIDE, "flow").flow_apart),
            _CLOSED,
            "sup over time, starts and kinds, over ‖z₀‖",
        ),
        Check(
            "trainings with one z₀ and one balance, one dimension with stride 1 or exchanged filters, a control",
            least_of([apart.sel(flow=name).median(skipna=False) for name in FLOWS if CASES[name].side != INSIDE]),
            _FLOWS_APART,
            "least of the medians of kinds, sup over time, over ‖z₀‖",
            least=True,
        ),
    )


STUDIES.register("lcn")(
    Study(
        run,
        question="Do the composed filter and the balances of a linear convolutional network determine the metric of "
        "its training, and where not?",
    )
)
