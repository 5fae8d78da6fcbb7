"""Song et al. 2021: the width from which two layers provably fit their samples, and what training does beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..matrices import slogdet
from ..signatures import Count, Seed, above, at_least, at_most, distinct, each, increasing
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study, whole
from .scaled_layers import SCALES, trained
from .wide import (
    Network,
    certified_start,
    closed_width,
    decayed,
    problem,
    searched_width,
    start,
    width_by_roots,
)

# Dimensions of the samples that are a control: few, so that the kernel of many samples is nearly singular.
_FEW = 4

_DATA, _NARROW, _FITS, _MOST_FITTED = 4, 32, 3, 8  # draws of samples; of narrow networks; of networks that fit; neurons
_HORIZON, _PARTS, _EVALUATIONS = 8.0, 8, 50_000  # in 1/λ_min of the kernel at the start; outputs; a budget
_BEGUN, _OFTEN = 0.01, 128  # in 1/λ_max; outputs from there on of narrow networks, whose σ_min may be least anywhere
_LONG, _FIT = 100.0, 1e-4  # time in which a network fits, and the part of the loss that is left then
_SLOPE, _ORDER, _CLOSE, _LINEAR, _RATE, _HALF, _TRAINED = 0.15, 0.3, 0.1, 0.05, 1e-3, 0.5, 0.9
_TWO, _MISSES, _ROOT, _TIMES = 2.0, 1e-2, 1e-8, 0.05

LONG_NAMES = {
    "certified": "certified width, closed, geometric mean of draws of the samples",
    "searched": "certified width of one draw, by growing a network, over the closed one",
    "enough": "least width at which most networks fit",
    "eigenvalue": "least eigenvalue of the limit of FᵀF/width",
    "routes": "closed certified width and eigenvalue off those of a second route, n dimensions, least n",
    "movement": "‖W − W₀‖ at the end of training",
    "linear_movement": "the same of the network linearised at the start",
    "kernel_change": "relative distance of the tangent kernel at the end from that at the start",
    "least": "least σ_min(F) in training over that at the start",
    "rate": "late rate at which the loss falls",
    "rate_of_the_end": "the same under the tangent kernel at the end",
    "rate_of_the_start": "the same under the tangent kernel at the start",
    "twice_eigenvalue": "twice the least eigenvalue of the tangent kernel at the end",
    "certificate": "certificate of the start, at most 1 where it holds",
    "certified_start": "certificate of a start where it holds",
    "certified_neurons": "neurons of that start",
    "certified_bounds": "what is certified over what training has",
    "narrow": "least σ_min(F) in training over that at the start, as many neurons as samples; 0 where det F has been 0",
    "narrow_error": "what half as many times change in that",
    "accuracy": "share of images that have the teacher's class",
    "loss_left": "part of the loss that is left",
}


def _long(key: str, values: Sequence[int]) -> None:
    if len(values) < 3:
        raise ValueError(f"{key} must have three values or more for a slope, got {values}; add one")


Sizes = Annotated[Sequence[int], distinct, each(at_least(4), at_most(512)), increasing, _long]
Certified = Annotated[Sequence[int], distinct, each(at_least(2), at_most(64)), increasing]
Widths = Annotated[Sequence[int], distinct, each(at_least(16), at_most(10**5)), increasing, _long]
Features = Annotated[int, at_least(2), at_most(512)]
Entries = Annotated[float, above(0), at_most(1e10)]
Draws = Annotated[int, at_least(2), at_most(100)]
Images = Annotated[int, at_least(10), at_most(898)]
Hidden = Annotated[int, at_least(1), at_most(4096)]


def run(
    *,
    sizes: Sizes = (16, 32, 64, 128, 256),
    features: Features = 16,
    entries: Entries = 1e8,
    certified: Certified = (4, 6, 8),
    samples: Annotated[int, at_least(2), at_most(64)] = 8,
    widths: Widths = (64, 128, 256, 512, 1024, 2048),
    draws: Draws = 6,
    fitted: Certified = (16, 32),
    hidden: Hidden = 256,
    images: Images = 400,
    steps: Count = 200,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Networks v·tanh(Wx) from a standard start: their certified width by the number of samples, and their training.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of samples n whose certified width is looked for, increasing.
    features : int
        Dimension of samples that stays the same as n grows.
    entries : float
        The certified width is searched with networks, too, where width times n stays below it.
    certified : sequence of int
        Numbers of samples whose network is trained at its certified width.
    samples : int
        Of the networks whose width grows.
    widths : sequence of int
        Of them, increasing.
    draws : int
        Networks of each width.
    fitted : sequence of int
        Numbers of samples for which the width that is enough is looked for.
    hidden : int
        Hidden units of the networks that are trained on handwritten digits.
    images : int
        Images that they are trained on, and others that they are tested on.
    steps : int
        Of their training.
    seed : int
        Of all that is drawn.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `certified` over family and size; `movement`, `kernel_change` over width and draw; `accuracy` over scale.

    Raises
    ------
    ValueError
        If a network has fewer neurons than samples, or the samples of a control or of a certified network are too
        many for their dimension.
    RuntimeError
        If a flow does not reach its end.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    if widths[0] < samples:
        raise ValueError(
            f"study.widths must begin at study.samples = {samples} or above, got {widths}; raise the first"
        )
    generator = torch.Generator().manual_seed(seed)
    say(0.0, "certified widths")
    variables = _certificates(sizes, features, entries, generator)
    say(0.15, "training at the certified width")
    variables |= _held(certified, features, generator)
    say(0.3, "training at growing widths")
    variables |= _growing(samples, features, widths, draws, generator)
    say(0.5, "the width that is enough")
    variables |= {"enough": ("fitted", [_enough(problem(n, features, generator), generator) for n in fitted])}
    say(0.7, "layers of other scales on handwritten digits")
    accuracy, loss = trained(SCALES, hidden, images, steps, seed)
    variables |= {"accuracy": (("scale", "part", "when"), accuracy), "loss_left": ("scale", loss)}
    axes = [
        axis("family", ["equal", "fixed", "few"], f"dimension of the samples: n, {features}, {_FEW}"),
        axis("size", list(sizes), "samples n"),
        axis("trained", list(certified), "samples n of a certified network"),
        axis("bound", ["rate", "movement", "least"], "what is bounded"),
        axis("width", list(widths), "neurons m"),
        axis("draw", np.arange(draws), "draw of a network"),
        axis("narrow_draw", np.arange(_NARROW), "draw of a narrow network"),
        axis("fitted", list(fitted), "samples n of networks that fit"),
        axis("scale", np.array(SCALES), "ω₂ over that of He et al."),
        axis("part", ["train", "test"], "images"),
        axis("when", ["before", "after"], "training"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES)
    title = f"two layers of tanh, up to {sizes[-1]} samples; {images} handwritten digits"
    return _finding(dataset, title).attached(dataset)


def _certificates(sizes: Sequence[int], features: int, entries: float, generator: torch.Generator) -> dict[str, Any]:
    """Certified widths (family, size) in closed form, and those of growing networks where they are affordable."""
    found: dict[str, list[list[float]]] = {"certified": [], "searched": [], "eigenvalue": []}
    second: list[tuple[float, float]] = []
    for family in ("equal", "fixed", "few"):
        line: dict[str, list[float]] = {name: [] for name in found}
        for n in sizes:
            d = {"equal": n, "fixed": features, "few": _FEW}[family]
            networks = [problem(n, d, generator) for _ in range(_DATA)]
            widths = [closed_width(network) for network in networks]
            second = second or [width_by_roots(network) for network in networks]  # of the first n, in n dimensions
            line["certified"].append(float(np.exp(np.mean(np.log(widths)))))
            line["eigenvalue"].append(float(np.mean([network.eigenvalue for network in networks])))
            line["searched"].append(_ratio(networks[0], generator) if widths[0] * n < entries else np.nan)
        for name, values in line.items():
            found[name].append(values)
    widths, values = np.array(second).T
    again = {"certified": np.exp(np.log(widths).mean()), "eigenvalue": values.mean()}
    return {name: (("family", "size"), values) for name, values in found.items()} | {
        "routes": ((), float(np.max([abs(found[name][0][0] / value - 1) for name, value in again.items()])))
    }


def _ratio(network: Network, generator: torch.Generator) -> float:
    """The certified width of a growing network over the closed one of the same residual."""
    width, residual = searched_width(network, generator)
    return width / closed_width(network, residual)


def _path(network: Network, theta: Tensor, often: int = 0) -> tuple[Trajectory, Tensor]:
    """The gradient flow up to a few times 1/λ_min of its kernel, and its states (time, ..., m, d + 1).

    At even times, or as many as are asked for, which begin early and grow in proportion.
    """
    rates = torch.linalg.eigvalsh(network.kernel(theta))
    first, last = _BEGUN / float(rates[..., -1].max()), _HORIZON / float(rates[..., 0].min())
    times = torch.linspace(0, last, _PARTS + 1, dtype=torch.float64)
    if often:
        times = torch.as_tensor(np.append(0.0, np.geomspace(first, last, often)))
    path = integrate(
        network.flow(),
        theta,
        times,
        "DOP853",
        rtol=1e-9,
        atol=1e-13,
        max_evaluations=_EVALUATIONS,
        observe=lambda _, state: state.clone(),
    )
    kept = whole(path, f"gradient flow of {theta.shape[-2]} neurons").observed
    assert kept is not None
    return path, kept


def _moved(states: Tensor) -> Tensor:
    """‖W − W₀‖ at each time, (time, ...)."""
    return torch.linalg.matrix_norm((states - states[0])[..., :-1])


def _held(certified: Sequence[int], features: int, generator: torch.Generator) -> dict[str, Any]:
    """Training at the certified width: its bounds over what happens, at most 1 each."""
    found = []
    for n in certified:
        network = problem(n, features, generator)
        theta = certified_start(network, generator)
        bounds, (path, states) = network.bounds(theta), _path(network, theta)
        rates = torch.log(path.loss[0] / path.loss[1:]) / path.times[1:].to(path.loss)
        slack = (
            bounds.rate / float(rates.min()),
            float(_moved(states).max()) / bounds.movement,
            bounds.singular_value / float(network.least(states).min()),
        )
        found.append((bounds.certificate, len(theta), slack))
    certificates, neurons, slack = zip(*found, strict=True)
    return {
        "certified_start": ("trained", list(certificates)),
        "certified_neurons": ("trained", list(neurons)),
        "certified_bounds": (("trained", "bound"), list(slack)),
    }


def _growing(
    samples: int, features: int, widths: Sequence[int], draws: int, generator: torch.Generator
) -> dict[str, Any]:
    """Training of wider and wider networks, each number (width, draw), and of narrow ones."""
    network = problem(samples, features, generator)
    rows = [_measured(network, start(generator, features, draws, width)) for width in widths]
    _, states = _path(network, start(generator, features, _NARROW, samples), _OFTEN)
    narrow, coarse = _least(network, states), _least(network, states[::2])
    return {name: (("width", "draw"), np.stack([row[name] for row in rows])) for name in rows[0]} | {
        "narrow": ("narrow_draw", narrow.cpu().numpy()),
        "narrow_error": ("narrow_draw", (coarse - narrow).abs().cpu().numpy()),
    }


def _least(network: Network, states: Tensor) -> Tensor:
    """The least σ_min(F) over that at the start, of states (time, draw, n, d + 1) of as many neurons as samples.

    F is square: where det F changes its sign between two of the times, σ_min(F) has been 0.
    """
    sigma, sign = network.least(states), slogdet(network.hidden(states))[0]
    return torch.where((sign == sign[0]).all(0), sigma.amin(0) / sigma[0], 0.0)


def _measured(network: Network, theta: Tensor) -> dict[str, np.ndarray]:
    """What training does to networks (draw, m, d + 1) of one width, each (draw,)."""
    path, states = _path(network, theta)
    before, after, sigma = network.kernel(theta), network.kernel(states[-1]), network.least(states)
    gone, residual = float(path.times[-1] - path.times[-2]), path.z[-2] - network.y

    def rate(last: Tensor) -> Tensor:
        return 2 * torch.log(torch.linalg.vector_norm(residual, dim=-1) / torch.linalg.vector_norm(last, dim=-1)) / gone

    found = {
        "movement": _moved(states)[-1],
        "linear_movement": network.linear_movement(theta),
        "kernel_change": torch.linalg.matrix_norm(after - before) / torch.linalg.matrix_norm(before),
        "least": sigma.amin(0) / sigma[0],
        "rate": rate(path.z[-1] - network.y),
        "rate_of_the_end": rate(decayed(after, residual, gone)),
        "rate_of_the_start": rate(decayed(before, residual, gone)),
        "twice_eigenvalue": 2 * torch.linalg.eigvalsh(after)[..., 0],
        "certificate": torch.tensor([network.bounds(one).certificate for one in theta], dtype=torch.float64),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def _enough(network: Network, generator: torch.Generator) -> float:
    """The least width at which most of a few networks fit; NaN if none does.

    Narrow networks are wide ones whose other neurons have w = v = 0, and keep them.
    """
    d, most = len(network.X), _MOST_FITTED
    theta = network.X.new_zeros(most, _FITS, most, d + 1)
    for width in range(1, most + 1):
        theta[width - 1, :, :width] = start(generator, d, _FITS, width)
    path = whole(
        integrate(network.flow(), theta, [0.0, _LONG], "CVODE_BDF", rtol=1e-5, atol=1e-7), "flow of few neurons"
    )
    fits = ((path.loss[-1] < _FIT * path.loss[0]).double().mean(-1) > _HALF).cpu().numpy()
    return float(fits.argmax() + 1) if fits.any() else np.nan


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """The exponent of y in x, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _order(dataset: xr.Dataset, name: str) -> float:
    """At which the geometric mean over the draws falls in 1/width, from the second width on."""
    mean = np.exp(np.log(dataset[name].values).mean(-1))
    return -_slope(dataset["width"].values[1:], mean[1:])


def _off(dataset: xr.Dataset, name: str, other: str) -> xr.DataArray:
    """The largest relative distance of one number from another, by width."""
    return abs(dataset[name] / dataset[other] - 1).max("draw", skipna=False)


def _finding(dataset: xr.Dataset, title: str) -> Finding:
    sizes = dataset["size"].values.astype(float)
    slopes = {name: _slope(sizes, dataset.certified.sel(family=name).values) for name in dataset["family"].values}
    orders = {name: _order(dataset, name) for name in ("movement", "kernel_change")}
    last = np.diff(np.log(dataset.certified.values[:, -2:]))[:, 0] / np.diff(np.log(sizes[-2:]))[0]
    slack, after = dataset.certified_bounds.values, dataset.accuracy.sel(when="after")
    keeps = "keeps its bounds" if slack.max() <= 1 else "does not keep all of its bounds"
    test, narrow = after.sel(part="test").values, dataset.narrow.values
    return Finding(
        study="width",
        problem=f"Song et al. 2021: subquadratic overparameterisation, {title}",
        status="ok",
        verdict=f"The width from which a standard start certifies its training grows like n^{slopes['equal']:.2f} for "
        f"samples in n dimensions and like n^{slopes['fixed']:.2f} in a fixed dimension, n^{last[1]:.2f} at last; in "
        f"{_FEW} dimensions it is n^{slopes['few']:.1f}. At that width training {keeps}, with factors of "
        f"{1 / slack[:, 0].max():.1f}, {1 / slack[:, 1].max():.0f} and {1 / slack[:, 2].max():.1f} to spare in rate, "
        f"movement and σ_min. {_gaps(dataset)} As the width grows W moves less at order {orders['movement']:.2f}, the "
        f"kernel at {orders['kernel_change']:.2f}. On handwritten digits the scale of the layers leaves the accuracy "
        f"on other images at {test.min():.3f} to {test.max():.3f}.",
        claim=Claim(
            "a width that is subquadratic in the number of samples is enough for training from a standard start to fit "
            "them",
            measured=slopes,
            figure="Song 2021",
        ),
        checks=_checks(dataset, slopes, orders),
        numbers={
            "last_exponents": dict(zip(dataset["family"].values.tolist(), last.tolist(), strict=True)),
            "certified": dataset.certified.values.tolist(),
            "eigenvalue": dataset.eigenvalue.values.tolist(),
            "enough": dataset.enough.values.tolist(),
            "certified_neurons": dataset.certified_neurons.values.tolist(),
            "certified_bounds": slack.tolist(),
            "narrow_below_half": int((narrow < _HALF).sum()),
            "orders": orders,
            "train_accuracy": after.sel(part="train").values.tolist(),
            "test_accuracy": test.tolist(),
        },
    )


def _gaps(dataset: xr.Dataset) -> str:
    """What is certified beside what is enough, in words; where both are known."""
    both = [n for n in dataset["fitted"].values.tolist() if n in dataset["size"].values]
    certified, enough = dataset.certified.sel(family="fixed"), dataset.enough
    told = [
        f"{_fits(float(enough.sel(fitted=n)))} {n} samples, {float(certified.sel(size=n)):.1e} is certified"
        for n in both
    ]
    return "; ".join(told) + "." if told else ""


def _fits(width: float) -> str:
    return f"no width up to {_MOST_FITTED} fits" if np.isnan(width) else f"a width of {width:g} fits"


def _checks(dataset: xr.Dataset, slopes: dict[str, float], orders: dict[str, float]) -> tuple[Check, ...]:
    bounds, widest = dataset.certified_bounds.max("trained", skipna=False), dataset.isel(width=-1)
    over = "the largest of the certified networks"
    return (
        Check("exponent of the certified width in n, n dimensions, from 1", abs(slopes["equal"] - 1), _SLOPE),
        Check("exponent of the certified width in n, fixed dimension", slopes["fixed"], _TWO),
        Check("the same in few dimensions, a control", slopes["few"], _TWO, least=True),
        Check(
            "certified width of growing networks from the closed one",
            float(abs(dataset.searched - 1).max()),
            _CLOSE,
            "relative, the largest of those that are affordable",
        ),
        Check(
            "closed certified width from that by its roots",
            float(dataset.routes),
            _ROOT,
            "relative, and its least eigenvalue by the trapezoidal rule, n dimensions, the least n",
        ),
        Check("certified rate over that of the loss", float(bounds.sel(bound="rate")), 1.0, over),
        Check("movement of W over its bound", float(bounds.sel(bound="movement")), 1.0, over),
        Check("certified σ_min(F) over the least in training", float(bounds.sel(bound="least")), 1.0, over),
        Check(
            "least σ_min(F) of narrow networks over that at the start, a control",
            least_of(dataset.narrow),
            _HALF,
            f"the least of {_NARROW} draws",
        ),
        Check(
            "the same from half as many times",
            largest_of(dataset.narrow_error),
            _TIMES,
            f"absolute, the largest of {_NARROW} draws",
        ),
        Check("order of the movement of W in 1/width from 1", abs(orders["movement"] - 1), _ORDER),
        Check("order of the change of the kernel in 1/width from 2", abs(orders["kernel_change"] - 2), _ORDER),
        Check(
            "movement of W from that of the linearised network",
            float(_off(dataset, "movement", "linear_movement")[-1]),
            _LINEAR,
            f"relative, the largest at {int(widest['width'])} neurons",
        ),
        Check(
            "late rate from that under the kernel at the end",
            largest_of(_off(dataset, "rate", "rate_of_the_end")),
            _RATE,
            "relative, the largest of all networks",
        ),
        Check(
            "late rate from that under the kernel at the start, narrowest, a control",
            float(_off(dataset, "rate", "rate_of_the_start")[0]),
            _MISSES,
            "relative, the largest of its draws",
            least=True,
        ),
        Check(
            "digits that training fits",
            least_of(dataset.accuracy.sel(part="train", when="after")),
            _TRAINED,
            "share, the least over the scales of the start",
            least=True,
        ),
    )


STUDIES.register("width")(
    Study(
        run,
        question="From which width do two layers provably fit their samples from a standard start, how does it grow "
        "with their number, how slack is it, and what does training do to the weights and the kernel as width grows?",
    )
)
