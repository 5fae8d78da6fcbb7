"""Frei, Vardi, Bartlett, Srebro, Hu 2022: leaky ReLU networks on high-dimensional data become networks of low rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..matrices import normal, wishart_factor
from ..orders import Order, observed_order
from ..signatures import Count, Positive, Seed, above, at_least, at_most, below, distinct, each, increasing
from ..time.descend import descend
from ..time.integrate import integrate
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study, whole
from .homogeneous import MeanLogistic
from .leaky import LOSSES, Limit, Network, apart, correlated, deviation, digits, limit, stable_rank, stationarity

# Scales of the start, over that at which it and the first step are of one size: up to the first the step alone is left,
# from the second on the start is.
_SMALL, _LARGE = 0.1, 10.0

CASES = ("orthogonal", "correlated", "large_start")
_PARTS, _STEP, _POINTS = (8, 4, 2, 1), 0.8, 20000  # of the horizon; of the flow; points of the boundary
_FIRST = 16  # steps of the flow while a neuron of the start moves by its size, and in each time that doubles it
_ORDER, _ROUND_OFF, _PROGRAM, _APART, _FAR, _RANK, _EARLY = 0.1, 1e-12, 1e-8, 0.1, 0.1, 2.0, 0.05

LONG_NAMES = {
    "deviation": "distance of the direction of W from that of the closed limit",
    "spread": "largest minus smallest margin, over their mean",
    "third": "third singular value of W over the first",
    "early_error": "what first steps twice as long change in that or in the direction at the end, relative",
    "stable_rank": "stable rank of W",
    "rank_off": "its relative distance from that by singular values",
    "beyond": "share of random points that are not on their side of the limit's hyperplane",
    "near": "least squared norm over R²n times the largest product of two samples",
    "stationarity": "distance of the closed limit from the conditions of Karush, Kuhn and Tucker",
    "dual": "λ of the closed limit",
    "digits_near": "near orthogonality of digits 3 and 8, as above",
    "digits_stationarity": "the same distance of their closed limit",
    "digits_dual": "its λ",
    "step_rank": "stable rank after each step of gradient descent",
    "step_rank_off": "its largest relative distance from that by singular values",
    "start": "standard deviation of the entries of W at the start",
}


def _both(key: str, values: Sequence[float]) -> None:
    if values[0] > _SMALL or values[-1] < _LARGE:
        raise ValueError(f"{key} must begin at {_SMALL:g} or below and end at {_LARGE:g} or above, got {values}")


Scales = Annotated[Sequence[float], distinct, each(above(0)), increasing, _both]
Samples = Annotated[int, at_least(3), at_most(200)]
Width = Annotated[int, at_least(3), at_most(500)]
Features = Annotated[float, at_least(1000), at_most(1e14)]
Slope = Annotated[float, above(0), below(1)]
Correlation = Annotated[float, at_least(0), below(1)]


class Setting(NamedTuple):
    """What a run of the study is made of: samples in the coordinates of their span, and where its flows begin."""

    networks: dict[str, Network]
    limits: dict[str, Limit]
    starts: Tensor

    @property
    def whole(self) -> Network:
        """All cases side by side, their rows (3, n, n)."""
        networks = list(self.networks.values())
        return networks[0]._replace(rows=np.stack([network.rows for network in networks]))


def run(
    *,
    samples: Samples = 20,
    slope: Slope = 0.5,
    features: Features = 1e7,
    width: Width = 32,
    positive: Count = 8,
    start: Positive = 1e-3,
    horizon: Positive = 1280.0,
    correlation: Correlation = 0.5,
    large_start: Positive = 100.0,
    scales: Scales = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
    rate: Positive = 0.02,
    steps: Count = 200,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Leaky ReLU networks on nearly orthogonal data against the network of largest margin, whose rank is 2.

    Parameters
    ----------
    samples : int
        n: Gaussian, of mean square norm 1, their classes in turn 1 and −1.
    slope : float
        γ of φ(p) = max(γp, p).
    features : float
        Dimension of the data; only their products are made, so that it costs nothing.
    width : int
        Neurons.
    positive : int
        Neurons whose output weight is positive.
    start : float
        Standard deviation of W at the start of the gradient flow.
    horizon : float
        Where the gradient flow ends, in the time in which its loss is log Σ loss.
    correlation : float
        Of the data that are a control.
    large_start : float
        `start` of another control.
    scales : sequence of float
        Of the start of gradient descent, √(n · width · features) / rate times its standard deviation; increasing.
    rate : float
        Its step size, on the mean logistic loss.
    steps : int
        Its steps.
    seed : int
        Of data and starts.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `deviation`, `spread`, `third` over loss, case and time; `step_rank` over scale and step.

    Raises
    ------
    ValueError
        If `positive` leaves no neuron with a negative output weight, or the data have no limit.
    RuntimeError
        If a run does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    if positive >= width:
        raise ValueError(f"study.positive must be below study.width = {width}, got {positive}; choose fewer")
    generator = torch.Generator().manual_seed(seed)
    rows = wishart_factor(samples, features, generator).numpy() / features**0.5
    signs = np.where(np.arange(width) < positive, 1.0, -1.0)
    network = Network(rows, np.where(np.arange(samples) % 2, -1.0, 1.0), signs, slope)
    setting = _setting(network, (start, start, large_start), correlation, generator)
    times = horizon / np.array(_PARTS)
    images = digits(network)
    variables = _closed(setting.networks, setting.limits, "case")
    variables |= _closed(images, {name: limit(one) for name, one in images.items()}, "pixels", "digits_")
    for i, name in enumerate(LOSSES):
        say(0.4 * i, f"gradient flow of the {name} loss")
        _joined(variables, _flow(setting, name, times, seed))
    say(0.8, "gradient descent from starts of other scales")
    deviations = np.array(scales) * rate / (samples * width * features) ** 0.5
    unit = (normal(generator, width, samples), wishart_factor(width, features - samples, generator).numpy())
    ranks = [_descent(network, one * unit[0], one * unit[1], rate, steps) for one in deviations]
    variables |= {
        "step_rank": (("scale", "step"), [rank for rank, _ in ranks]),
        "step_rank_off": ("scale", [off for _, off in ranks]),
        "start": ("scale", deviations),
    }
    axes = [
        axis("loss", list(LOSSES), "loss"),
        axis("case", list(CASES), "case"),
        axis("pixels", list(images), "pixels of digits"),
        axis("time", times, "training time t, in which the loss is log Σ loss"),
        axis("sample", np.arange(samples), "sample"),
        axis("scale", list(scales), "standard deviation of the start times √(n·width·features)/rate"),
        axis("step", np.arange(steps + 1), "step"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    title = f"{samples} samples in dimension {features:g}, {width} neurons, slope {slope:g}"
    return _finding(dataset, title, slope, apart(network, setting.limits["orthogonal"])).attached(dataset)


def _setting(network: Network, starts: Sequence[float], correlation: float, generator: torch.Generator) -> Setting:
    """The claim's case and its two controls."""
    other = network._replace(rows=correlated(network.rows, correlation))
    networks = dict(zip(CASES, (network, other, network), strict=True))
    W = normal(generator, len(network.signs), len(network.labels))
    scaled = torch.stack([start * W for start in starts])
    return Setting(networks, {name: limit(one) for name, one in networks.items()}, scaled)


def _closed(networks: dict[str, Network], limits: dict[str, Limit], over: str, of: str = "") -> dict[str, Any]:
    """What the closed limits are, by `over`; names begin with `of`."""
    pairs = [(network, limits[name]) for name, network in networks.items()]
    return {
        f"{of}near": (over, [network.near for network, _ in pairs]),
        f"{of}stationarity": (over, [stationarity(*pair) for pair in pairs]),
        f"{of}dual": ((over, f"{of}sample"), [closed.dual for _, closed in pairs]),
    }


def _joined(variables: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    """Puts what was found of one more loss beside the others."""
    for name, values in found.items():
        variables.setdefault(name, (("loss", "case", "time")[: 1 + values.ndim], []))[1].append(values)


def _begun(flow: FactorizationFlow, state: Tensor, times: Sequence[float], steps: int) -> Tensor:
    """Where the flow is at the last of `times` from 0 on, in as many steps between any two."""
    for begin, end in itertools.pairwise(times):
        path = integrate(flow, state, [begin, end], "midpoint", step=(end - begin) / steps, checks=False)
        state = whole(path, "gradient flow at its start").state
    return state


def _doubling(flow: FactorizationFlow, state: Tensor, last: float) -> list[float]:
    """Times from 0 in which steps grow to those of the flow: the first is that in which a neuron moves by its size.

    A small start turns in it, and what is left of the third singular value is decided; each next time is twice it.
    """
    sizes, speeds = (torch.linalg.vector_norm(of, dim=-1) for of in (state, flow.velocity(state)))
    last = min(last, _FIRST * _STEP)
    times, following = [0.0], max(float((sizes / speeds).min()), last * 2.0**-60)
    while times[-1] < last:
        times.append(min(following, last))
        following *= 2
    return times


def _early_error(begun: Tensor, coarse: Tensor, last: np.ndarray, distance: float) -> np.ndarray:
    """What the first steps do to σ₃ and to the `distance` in direction of W at the `last` time, relative.

    Estimated from W after them, and after those that are twice as long. What is between these does not grow once no
    sample changes its side of a neuron: the loss is convex there, and trains a part of W whose rank is two.
    """
    third = torch.linalg.svdvals(torch.stack((begun, coarse)))[:, 2].cpu().numpy()
    moved = float(torch.linalg.norm(coarse - begun)) / (np.linalg.norm(last) * distance)
    return np.maximum(abs(third[1] / third[0] - 1), moved)


def _flow(setting: Setting, loss: str, times: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The gradient flow of all cases at once, each number (case, time)."""
    flow = FactorizationFlow(setting.whole.margins, LOSSES[loss]())
    early = _doubling(flow, setting.starts, float(times[0]) / 2)
    begun, coarse = (_begun(flow, setting.starts, early, steps) for steps in (_FIRST, _FIRST // 2))
    path = integrate(
        flow,
        begun,
        [early[-1], *times.tolist()],
        "midpoint",
        step=early[-1] / _FIRST,
        observe=lambda _, state: state.clone(),
    )
    kept = whole(path, f"gradient flow of the {loss} loss").observed
    assert kept is not None
    W, margins = kept[1:].cpu().numpy().swapaxes(0, 1), path.z[1:].cpu().numpy().swapaxes(0, 1)
    values = np.linalg.svd(W, compute_uv=False)
    points = np.random.default_rng(seed).standard_normal((_POINTS, W.shape[-1]))
    rank = stable_rank(W @ W.swapaxes(-2, -1))
    cases = list(zip(setting.networks.values(), setting.limits.values(), W, strict=True))
    away = np.array([deviation(one, closed.weights(network)) for network, closed, one in cases])
    return {
        "deviation": away,
        "spread": np.ptp(margins, axis=-1) / margins.mean(-1),
        "third": values[..., 2] / values[..., 0],
        "early_error": _early_error(begun[0], coarse[0], W[0, -1], away[0, -1]),
        "stable_rank": rank,
        "rank_off": _off(rank, values),
        "beyond": np.array([[_beyond(network, closed, at, points) for at in one] for network, closed, one in cases]),
    }


def _beyond(network: Network, closed: Limit, W: np.ndarray, points: np.ndarray) -> float:
    """The share of points that f of W has on the other side than the closed limit's hyperplane."""
    outputs = network.outputs(torch.as_tensor(W), points).cpu().numpy()
    return float((outputs * (points @ closed.normal(network)) <= 0).mean())


def _descent(network: Network, within: Tensor, beside: np.ndarray, rate: float, steps: int) -> tuple[np.ndarray, float]:
    """Stable rank before and after each step of gradient descent, (steps + 1,), in all dimensions of the data.

    Beside it the largest relative distance from that by singular values.

    Of W at the start, `within` is the part in the span of the samples; the rest stays, and `beside` (m, m) has the
    products of its rows.
    """
    flow = FactorizationFlow(network.margins, MeanLogistic())
    path = descend(flow, within, steps, "gd", rate, observe=lambda _, state: state.clone())
    kept = whole(path, "gradient descent").observed
    assert kept is not None
    W = kept.cpu().numpy()
    rank = stable_rank(W @ W.swapaxes(-2, -1) + beside @ beside.T)
    whole_of = np.concatenate((W, np.broadcast_to(beside, (len(W), *beside.shape))), axis=-1)
    return rank, largest_of(_off(rank, np.linalg.svd(whole_of, compute_uv=False)))


def _off(rank: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How far a stable rank is from Σσ²/σ₁², relative, (...)."""
    gap: np.ndarray = abs(rank / ((values / values[..., :1]) ** 2).sum(-1) - 1)
    return gap


def _orders(dataset: xr.Dataset) -> list[Order]:
    """How the direction, the margins and the third singular value tend to their limits, in 1/time."""
    words = {"deviation": "direction", "spread": "margins", "third": "third singular value"}
    times = dataset["time"].values
    return [
        observed_order(times, dataset[name].sel(loss=loss, case="orthogonal").values, _ROUND_OFF)._replace(
            rule=f"{word}, {loss} loss", expected=1.0, over="times"
        )
        for name, word in words.items()
        for loss in dataset["loss"].values
    ]


def _finding(dataset: xr.Dataset, title: str, slope: float, program: float) -> Finding:
    orders, last = _orders(dataset), dataset.isel(time=-1)
    found = {name: last[name].sel(case="orthogonal").values for name in ("deviation", "third", "stable_rank", "beyond")}
    small, large = _ranks(dataset)
    values = [order.value for order in orders]
    rates = f"tend to it at orders {least_of(values):.2f} to {largest_of(values):.2f} in 1/t"
    if np.isnan(values).any():
        rates = "do not all tend to it at an order that is decided"
    return Finding(
        study="leaky_rank",
        problem=f"Frei, Vardi, Bartlett, Srebro, Hu 2022: leaky ReLU networks, {title}",
        status="ok",
        verdict=f"The gradient flow comes within {found['deviation'].max():.1e} of the direction of the closed network "
        f"of largest margin at t = {float(last['time']):g}, with {found['third'].max():.1e} left of the third singular "
        f"value and a stable rank of {found['stable_rank'].max():.2f}; direction, margins and rank {rates}. "
        f"{found['beyond'].max():.1e} of random points are not "
        f"on their side of a hyperplane. From small starts the stable rank of gradient descent is at most {small:.2f} "
        f"from the first step on, from large ones {large:.1f} after it ({float(dataset.step_rank[-1, 0]):.1f} before).",
        claim=Claim(
            "on nearly orthogonal data the gradient flow tends in direction to a network of largest margin and rank at "
            "most two, with a linear boundary; from a small start one step of gradient descent brings the stable rank "
            "down to a constant",
            measured=float(np.abs(np.array(values) - 1).max()),
            published=None,
            figure="Frei 2022",
        ),
        checks=_checks(dataset, values, program, 3 / slope**3),
        orders=tuple(orders),
        numbers={
            "near": dataset.near.values.tolist(),
            "near_wanted": 3 / slope**3,
            "last_deviation": last.deviation.values.tolist(),
            "rank_after_one_step": dataset.step_rank[:, min(1, dataset.sizes["step"] - 1)].values.tolist(),
            "dual_range": [float(dataset.dual[0].min()), float(dataset.dual[0].max())],
        },
    )


def _ranks(dataset: xr.Dataset) -> tuple[float, float]:
    """The largest stable rank from the first step on of small starts, and the least after one step of large ones."""
    small = dataset.step_rank.where(dataset["scale"] <= _SMALL, drop=True).isel(step=slice(1, None))
    large = dataset.step_rank.where(dataset["scale"] >= _LARGE, drop=True).isel(step=1)
    return largest_of(small), least_of(large)


def _checks(dataset: xr.Dataset, orders: Sequence[float], program: float, wanted: float) -> tuple[Check, ...]:
    last, (small, large) = dataset.isel(time=-1), _ranks(dataset)
    over = "largest of both losses"
    near, stationary = dataset.near.values, dataset.stationarity.values
    beyond = (last.beyond / last.deviation).sel(case="orthogonal")
    pixels = "of raw and centred pixels"
    return (
        Check(
            "orders in 1/t of direction, margins and third singular value from 1",
            float(np.abs(np.array(orders) - 1).max()),
            _ORDER,
            over,
        ),
        Check(
            "direction and third singular value from those in first steps twice as long",
            largest_of(dataset.early_error),
            _EARLY,
            f"relative, {over}",
        ),
        Check("near orthogonality over 3/γ³, as the theorem asks", near[0] / wanted, 1.0, least=True),
        Check("the closed limit from the conditions of Karush, Kuhn and Tucker", stationary[0], _ROUND_OFF),
        Check("the closed limit from the quadratic program", program, _PROGRAM, "of directions"),
        Check("points beyond the hyperplane over the distance from the limit", largest_of(beyond), 1.0, over),
        Check(
            "stable rank from that by singular values",
            largest_of([largest_of(dataset.rank_off), largest_of(dataset.step_rank_off)]),
            _ROUND_OFF,
            "relative, of all flows and steps",
        ),
        Check("stable rank from the first step on, small starts", small, _RANK, "sup over steps and starts"),
        Check(
            "stable rank after one step over that before, large starts, a control",
            large / float(dataset.step_rank[-1, 0]),
            0.5,
            "the least of all starts",
            least=True,
        ),
        Check(
            "distance from the closed form on correlated data, a control",
            least_of(last.deviation.sel(case="correlated")),
            _APART,
            "the least of both losses",
            least=True,
        ),
        Check("conditions of Karush, Kuhn and Tucker on correlated data, a control", stationary[1], _APART, least=True),
        Check(
            "near orthogonality of digits over 3/γ³, a control", largest_of(dataset.digits_near) / wanted, _FAR, pixels
        ),
        Check(
            "conditions of Karush, Kuhn and Tucker on digits, a control",
            least_of(dataset.digits_stationarity),
            _APART,
            pixels,
            least=True,
        ),
        Check(
            "distance from the closed limit at the same time, large start, a control",
            least_of(last.deviation.sel(case="large_start")),
            _APART,
            "the least of both losses",
            least=True,
        ),
        Check(
            "points beyond the hyperplane, large start, a control",
            least_of(last.beyond.sel(case="large_start")),
            _FAR,
            "the least of both losses",
            least=True,
        ),
    )


STUDIES.register("leaky_rank")(
    Study(
        run,
        question="Do leaky ReLU networks on nearly orthogonal data tend to the network of largest margin whose rank is "
        "at most two, how fast, and how small must a start be for one step to bring the rank down?",
    )
)
