"""Sahs et al. 2020: the loss surface of univariate ReLU networks as splines, and where their knots begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from scipy.special import kolmogorov

from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..intrinsic.systems.relu_spline import with_one
from ..intrinsic.systems.relu_two_layer import TwoLayer, network_flow
from ..matrices import normal
from ..signatures import Count, Positive, Seed, at_least, at_most
from ..time.descend import descend
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study, whole
from .splines import Spline, cauchy, uniform_ratio

LAWS = {"normal": cauchy, "uniform": uniform_ratio}

# Bounds: round-off of formulas and at critical points; an eigenvalue below this part of the largest counts as zero (the
# least that is none is 1e-6 of it); p-values of the right law and of the wrong one.
_ROUND_OFF, _ZERO, _LIKELY, _REJECTED = 1e-10, 1e-10, 1e-3, 1e-6
_MOVED = 1e-6  # the gradient where the fit has led a sample across a knot
_NEAR = 0.05  # of a critical point

_BINS = np.linspace(-4.0, 4.0, 65)
_GRID = np.linspace(-1.2, 1.2, 241)

LONG_NAMES = {
    "loss": "loss where training ended",
    "critical_loss": "loss at the critical point of the same pieces",
    "smooth": "whether that is a critical point: no sample has crossed a knot",
    "gradient": "norm of the gradient there, by autograd",
    "shift": "distance of θ from where training ended",
    "fitted": "least loss of lines on the same pieces",
    "zeros": "eigenvalues of the Hessian that vanish",
    "counted": "flat directions counted on the pieces",
    "lowest": "least eigenvalue over the largest",
    "silent": "negative eigenvalues with a silent neuron added; −1 where none fits",
    "knots": "density of knots at the start",
    "law": "the same in closed form",
    "p": "p-value of Kolmogorov and Smirnov of drawn knots (first axis) in a law (second)",
    "x": "samples", "y": "targets", "curve": "function of the lowest critical point",
}  # fmt: skip


Samples = Annotated[int, at_least(12), at_most(200)]
Width = Annotated[int, at_least(2), at_most(40)]
Noise = Annotated[float, at_least(0.001)]
Draws = Annotated[int, at_least(1000), at_most(10**7)]


def run(
    *,
    samples: Samples = 24,
    width: Width = 4,
    noise: Noise = 0.05,
    starts: Count = 32,
    steps: Count = 6000,
    rate: Positive = 0.2,
    networks: Count = 200,
    draws: Draws = 100000,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Univariate ReLU networks as splines: gradient, Hessian, flat directions, critical points and first knots.

    Parameters
    ----------
    samples : int
        n: points at equal distances on [−1, 1] of a line that is broken twice.
    width : int
        Neurons of the networks that are trained.
    noise : float
        Standard deviation of what is added to the samples.
    starts : int
        Networks that are trained.
    steps : int
        Steps of gradient descent.
    rate : float
        Their size.
    networks : int
        Random networks on which the formulas are compared with autograd.
    draws : int
        Knots of each law.
    seed : int
        Of the noise, the starts, the networks and the knots.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    RuntimeError
        If training does not reach its end, or meets no critical point.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    generator = torch.Generator().manual_seed(seed)
    x = np.linspace(-1, 1, samples)
    y = _broken(x) + noise * normal(generator, samples).cpu().numpy()
    say(0.0, "formulas on random networks")
    numbers = _formulas(x, y, networks, seed)
    say(0.2, "training")
    ends = _trained(x, y, width, starts, steps, rate, generator)
    say(0.8, "critical points")
    variables, lowest = _critical(ends)
    knots = {name: _knots(name, draws, seed) for name in LAWS}
    p = [[_p_value(drawn, law) for law in LAWS.values()] for drawn in knots.values()]
    middle = (_BINS[1:] + _BINS[:-1]) / 2
    size = np.diff(_BINS)
    variables |= {
        "knots": (("start", "bin"), [np.histogram(drawn, _BINS)[0] / size / draws for drawn in knots.values()]),
        "law": (("start", "bin"), [np.diff(law(_BINS)) / size for law in LAWS.values()]),
        "p": (("start", "other"), p),
        "x": ("sample", x),
        "y": ("sample", y),
        "curve": ("grid", lowest._replace(x=_GRID, y=np.zeros_like(_GRID)).residual()),
    }
    axes = [
        axis("network", np.arange(starts), "network"),
        axis("start", list(LAWS), "law of weights and biases"),
        axis("other", list(LAWS), "law that is tested"),
        axis("bin", middle, "knot"),
        axis("sample", np.arange(samples), "sample"),
        axis("grid", _GRID, "x"),
    ]
    title = f"{starts} networks of {width} neurons, {samples} samples of a line broken twice"
    dataset = arranged(variables, axes, LONG_NAMES)
    return _finding(dataset, title, numbers).attached(dataset)


def _broken(x: np.ndarray) -> np.ndarray:
    """A line whose slope changes in the middle between two samples, near a third and two thirds of them."""
    cuts = [len(x) // 3, 2 * len(x) // 3]
    first, second = ((x[cut] + x[cut - 1]) / 2 for cut in cuts)
    result: np.ndarray = -0.5 - x + 2 * np.maximum(x - first, 0) - 3 * np.maximum(x - second, 0)
    return result


def _network(x: np.ndarray, y: np.ndarray, width: int) -> tuple[TwoLayer, FactorizationFlow]:
    inputs = with_one(torch.as_tensor(x))
    network = TwoLayer(inputs, torch.as_tensor(y).unsqueeze(-1), width, 0.0, (width, 2))
    return network, network_flow(network.outputs, network.y, network.laws)


def _gradient(spline: Spline) -> np.ndarray:
    """Of the loss in θ, by autograd."""
    flow = _network(spline.x, spline.y, len(spline.u))[1]
    return -flow.velocity(torch.as_tensor(spline.theta)).cpu().numpy()


def _hessian(spline: Spline) -> np.ndarray:
    """Of the loss in θ, by autograd."""
    flow = _network(spline.x, spline.y, len(spline.u))[1]
    found = torch.autograd.functional.hessian(lambda at: flow.loss(flow.product(at)), torch.as_tensor(spline.theta))
    matrix: np.ndarray = found.cpu().numpy()
    return matrix


def _formulas(x: np.ndarray, y: np.ndarray, networks: int, seed: int) -> dict[str, float]:
    """Gradient, Hessian and rank on the pieces against autograd, on networks of all kinds of knots."""
    random = np.random.default_rng(seed)
    off: dict[str, list[float]] = {name: [] for name in ("gradient", "hessian", "rank", "plain", "neurons")}
    for i in range(networks):
        spline = _drawn(x, y, random, i)
        network, _ = _network(x, y, len(spline.u))
        slopes = torch.autograd.functional.jacobian(network.outputs, torch.as_tensor(spline.theta))
        H, J = _hessian(spline), slopes[:, 0].cpu().numpy()
        size = max(1.0, float(np.linalg.norm(H)))
        rank = np.linalg.matrix_rank(J, tol=1e-9)
        first, last = spline.active.T
        off["gradient"].append(float(np.linalg.norm(spline.gradient() - _gradient(spline)) / size))
        off["hessian"].append(float(np.linalg.norm(spline.hessian() - H) / size))
        off["plain"].append(float(np.linalg.norm(J.T @ J / len(x) - H) / size))
        off["rank"].append(float(rank != spline.rank()))
        off["neurons"].append(float(rank != min(len(x), 2 * int((first < last).sum()))))
    return {name: float(np.max(off[name])) for name in ("gradient", "hessian")} | {
        "plain": float(np.median(off["plain"])),
        "rank": float(np.sum(off["rank"])),
        "neurons": float(np.mean(off["neurons"])),
    }


def _drawn(x: np.ndarray, y: np.ndarray, random: np.random.Generator, number: int) -> Spline:
    """A random network: in turn with knots anywhere, all active to the right, and with knots in common gaps."""
    spline = Spline.of(x, y, random.standard_normal(3 * random.integers(1, 9)))
    knots = random.uniform(-1.4, 1.4, len(spline.u))
    if number % 3 == 1:
        spline = spline._replace(w=np.abs(spline.w))
    if number % 3 == 2:
        gap = x[1] - x[0]
        knots = x[0] + gap * (np.floor(knots / 3 / gap) + 0.5)
    return spline._replace(b=-spline.w * knots)


def _trained(
    x: np.ndarray, y: np.ndarray, width: int, starts: int, steps: int, rate: float, generator: torch.Generator
) -> list[Spline]:
    """Where gradient descent leads random networks with knots in [−1, 1]."""
    u, w = normal(generator, starts, width), normal(generator, starts, width).sign()
    knots = 2 * torch.rand(starts, width, generator=generator, dtype=torch.float64, device="cpu").to(u) - 1
    theta = torch.cat((u, torch.stack((w, -w * knots), dim=-1).flatten(-2)), dim=-1)
    path = whole(descend(_network(x, y, width)[1], theta, steps, "gd", rate, record=steps), "gradient descent")
    return [Spline.of(x, y, end) for end in path.state.cpu().numpy()]


def _critical(ends: list[Spline]) -> tuple[dict[str, Any], Spline]:
    """What is found at the critical point of the pieces in which each run has ended."""
    points = [end.settled() for end in ends]
    losses = [float(np.mean(point.residual() ** 2) / 2) for point in points]
    smooth = [bool((point.active == end.active).all()) for point, end in zip(points, ends, strict=True)]
    if not any(smooth):
        raise RuntimeError("no run has come near a critical point; choose more study.starts or a smaller study.width")
    values = [np.linalg.eigvalsh(_hessian(point)) for point in points]
    found = {
        "loss": [np.mean(end.residual() ** 2) / 2 for end in ends],
        "critical_loss": losses,
        "smooth": smooth,
        "gradient": [np.linalg.norm(_gradient(point)) for point in points],
        "shift": [np.linalg.norm(point.theta - end.theta) for point, end in zip(points, ends, strict=True)],
        "fitted": [point.fitted() for point in points],
        "zeros": [(np.abs(each) <= _ZERO * np.abs(each).max()).sum() for each in values],
        "counted": [3 * len(point.u) - point.rank() for point in points],
        "lowest": [each.min() / max(each.max(), 1e-300) for each in values],
        "silent": [_negative(point.silent()) if known else -1 for point, known in zip(points, smooth, strict=True)],
    }
    lowest = min((loss, i) for i, (loss, known) in enumerate(zip(losses, smooth, strict=True)) if known)[1]
    return {name: ("network", each) for name, each in found.items()}, points[lowest]


def _negative(spline: Spline | None) -> int:
    """How many eigenvalues of the Hessian are negative; −1 without a network."""
    if spline is None:
        return -1
    values = np.linalg.eigvalsh(_hessian(spline))
    return int((values < -_ZERO * np.abs(values).max()).sum())


def _knots(law: str, draws: int, seed: int) -> np.ndarray:
    """−b/w of standard normal numbers, or as torch.nn.Linear of one input makes them."""
    if law == "normal":
        w, b = normal(torch.Generator().manual_seed(seed), 2, draws)
        return (-b / w).cpu().numpy()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of GPUs, which would stay so
        layer = torch.nn.Linear(1, draws, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        return (-layer.bias / layer.weight[:, 0]).numpy()


def _p_value(drawn: np.ndarray, law: Callable[[np.ndarray], np.ndarray]) -> float:
    """Of the largest distance between the distribution of the draws and a law, for many draws."""
    expected, n = law(np.sort(drawn)), len(drawn)
    at = np.arange(n)
    return float(kolmogorov(n**0.5 * max((expected - at / n).max(), ((at + 1) / n - expected).max())))


def _finding(dataset: xr.Dataset, title: str, numbers: dict[str, float]) -> Finding:
    met = dataset.where(dataset.smooth, drop=True)
    negative = int((met.lowest < -_ZERO).sum())
    none = "none has" if not negative else f"{negative} of them have"
    counted = "those counted" if (met.zeros == met.counted).all() else "not all those counted"
    most, near = int(met.sizes["network"]), int((met["shift"] < _NEAR).sum())
    return Finding(
        study="spline_landscape",
        problem=f"Sahs et al. 2020: {title}",
        status="ok",
        verdict=f"Gradient and Hessian are sums over pieces, to {max(numbers['gradient'], numbers['hessian']):.1e}. Of "
        f"{dataset.sizes['network']} runs {most} end in pieces that hold a critical point, {near} of them within "
        f"{_NEAR:g} of it. Its loss, {least_of(met.critical_loss):.1e} to {largest_of(met.critical_loss):.1e}, is "
        f"that of lines fitted to the pieces, {none} a negative eigenvalue, and the {int(met.zeros.min())} to "
        f"{int(met.zeros.max())} flat directions are {counted}. The first knots have the laws of ratios "
        f"(p = {float(dataset.p[0, 0]):.2f} and {float(dataset.p[1, 1]):.2f}).",
        claim=Claim(
            "in the terms of splines critical points are least-squares fits on pieces, the Hessian is made of moments "
            "of pieces, and knots begin where ratios of biases and weights lie",
            measured={"critical points": most, "gradient and Hessian": [numbers["gradient"], numbers["hessian"]]},
            figure="Sahs 2020",
        ),
        checks=_checks(dataset, met, numbers),
        numbers=numbers | {"critical_points": most, "near": near},
    )


def _checks(dataset: xr.Dataset, met: xr.Dataset, numbers: dict[str, float]) -> tuple[Check, ...]:
    over = "over all critical points"
    others = dataset.gradient.where(~dataset.smooth, drop=True)
    added = met.silent.where(met.silent >= 0, drop=True)
    p = dataset.p.values
    fit = largest_of(np.abs(met.critical_loss / met.fitted - 1))
    return (
        Check("gradient by moments of residuals from autograd", numbers["gradient"], _ROUND_OFF, "relative"),
        Check("Hessian by moments of pieces from autograd", numbers["hessian"], _ROUND_OFF, "relative"),
        Check("Hessian without moments of residuals, a control", numbers["plain"], 1e-2, "median", least=True),
        Check("networks whose rank is not the one counted", numbers["rank"], 0.0),
        Check("share whose rank is not two for each neuron, a control", numbers["neurons"], 0.1, least=True),
        Check("gradient at critical points, by autograd", largest_of(met.gradient), _ROUND_OFF, over),
        Check(
            "gradient where a sample has crossed a knot, a control",
            float(others.median(skipna=False)) if others.size else np.nan,
            _MOVED,
            "median",
            least=True,
        ),
        Check("loss from that of lines fitted to the pieces", fit, 1e-8, "relative, " + over),
        Check("negative eigenvalues at critical points", largest_of(-met.lowest), _ZERO, "over the largest"),
        Check("flat directions from those counted", largest_of(np.abs(met.zeros - met.counted)), 0.0, over),
        Check(
            "negative eigenvalues from one, a silent neuron added",
            largest_of(np.abs(added - 1)) if added.size else np.nan,
            0.0,
            over,
        ),
        Check("p-value of the knots in their law", least_of([p[0, 0], p[1, 1]]), _LIKELY, "least of both", least=True),
        Check("p-value of the knots in the other law, a control", largest_of([p[0, 1], p[1, 0]]), _REJECTED),
    )


STUDIES.register("spline_landscape")(
    Study(
        run,
        question="What do gradient, Hessian and critical points of a univariate ReLU network say of its spline?",
    )
)
