"""Stock and Gribonval 2021: what the realisation of a ReLU network on samples says of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Claim, Finding
from ..intrinsic.paths import ReluDag
from ..matrices import normal
from ..signatures import Seed, above, at_least, at_most
from .axes import arranged, axis, largest_of, least_of
from .base import STUDIES, Progress, Study
from .realisation import Layers, drawn, from_paths, jacobian, path_slopes, rank, recovered, seen

NETWORKS: dict[str, tuple[int, ...]] = {
    "-".join(map(str, widths)): widths
    for widths in ((2, 4, 2), (3, 5, 1), (3, 5, 4, 2), (4, 6, 6, 1), (3, 6, 5, 4, 2), (4, 5, 5, 5, 5, 3))
}
KINDS = ("plain", "dead", "twin", "unadapted")

FITTED = 1e-10  # up to this the outputs are found

_ROUND_OFF, _GAP, _RECOVERED = 1e-11, 1e6, 1e-7
_APART, _ELSEWHERE, _SHARE, _ATTAINED = 1e-2, 1e-4, 0.5, 0.95
_FACTORS, _SMALL = 3.0, 1e-9  # of rescaling; of a change that switches nothing

LONG_NAMES = {
    "rank": "rank of the derivative of the outputs at the samples",
    "predicted": "parameters that some sample sees − neurons that are active there − what twins share",
    "missing": "parameters − hidden neurons − rank",
    "kept": "smallest singular value that counts, over the largest",
    "dropped": "largest singular value that does not count, over the largest",
    "path_missing": "parameters − hidden neurons − rank of the derivative of Φ",
    "rescaled": "change of Φ under rescaling, over ‖Φ‖",
    "other": "change of Φ where only what enters the neurons is multiplied, over ‖Φ‖",
    "linear": "outputs from A Φ of another θ of the same activations, over the largest",
    "switched": "the same of a θ that has switched some",
    "search_missing": "parameters − hidden neurons − rank at the samples of the search",
    "twin_search_missing": "the same with twins",
    "fitted": "outputs of the recovered network from the given ones, over the largest",
    "recovered": "distance of the recovered θ from θ, both rescaled to neurons of norm 1",
    "start": "the same of the start of the search",
    "twin_start": "the same of the start of the search, with twins",
    "twin_fitted": "outputs of a recovered network with twins from the given ones",
    "twin_recovered": "distance of the recovered θ with twins",
    "from_paths": "distance of the θ that Φ and the signs of θ give",
    "from_paths_alone": "change of the outputs with the signs of one neuron turned, which Φ does not see",
}


def run(
    *,
    draws: Annotated[int, at_least(1), at_most(200)] = 10,
    samples: Annotated[int, at_least(100), at_most(20000)] = 2000,
    searches: Annotated[int, at_least(1), at_most(100)] = 3,
    fitted: Annotated[int, at_least(100), at_most(5000)] = 300,
    start: Annotated[float, above(0), at_most(0.1)] = 0.01,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """What the outputs of ReLU networks at samples, and the products of weights along paths, say of the parameters.

    Parameters
    ----------
    draws : int
        Networks of each kind and architecture.
    samples : int
        Standard normal inputs at which outputs are derived.
    searches : int
        Networks of each architecture, with and without twins, whose θ is searched for.
    fitted : int
        Samples of a search.
    start : float
        Relative distance from θ at which the search starts.
    seed : int
        Of all draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `rank`, `predicted`, `kept`, `dropped` over network, kind and draw; `recovered` over network and search.
    """
    say: Callable[[float, str], None] = progress or (lambda fraction, what: None)
    random = torch.Generator().manual_seed(seed)
    variables: dict[str, Any] = {}
    for i, (name, widths) in enumerate(NETWORKS.items()):
        say(i / len(NETWORKS), f"networks {name}")
        dag = ReluDag.layered(widths)
        ranks = [[_rank(dag, widths, kind, samples, random) for _ in range(draws)] for kind in KINDS]
        others = [_one(dag, widths, normal(random, fitted, widths[0]), random) for _ in range(draws)]
        for key in ranks[0][0]:
            values = [[one[key] for one in line] for line in ranks]
            variables.setdefault(key, (("network", "kind", "draw"), []))[1].append(values)
        for key in others[0]:
            variables.setdefault(key, (("network", "draw"), []))[1].append([one[key] for one in others])
        found = [_searched(dag, widths, fitted, start, random) for _ in range(searches)]
        for key in found[0]:
            variables.setdefault(key, (("network", "search"), []))[1].append([one[key] for one in found])
    variables["parameters"] = ("network", [ReluDag.layered(w).parameters for w in NETWORKS.values()], "parameters")
    variables["hidden"] = ("network", [sum(w[1:-1]) for w in NETWORKS.values()], "hidden neurons")
    axes = [
        axis("network", list(NETWORKS), "widths of the layers"),
        axis("kind", list(KINDS), "kind of draw"),
        axis("draw", np.arange(draws), "draw"),
        axis("search", np.arange(searches), "search"),
    ]
    dataset = arranged(variables, axes, LONG_NAMES).assign_attrs(fitted_up_to=FITTED)
    return _finding(dataset, samples).attached(dataset)


def _rank(dag: ReluDag, widths: Sequence[int], kind: str, samples: int, random: torch.Generator) -> dict[str, float]:
    """The rank at a network of a kind, and what activations predict."""
    x = normal(random, samples, widths[0])
    theta = drawn(random, widths, x, kind)
    found, counted = rank(jacobian(dag, theta, x)), seen(dag, widths, theta, x)
    return {
        "rank": found.rank,
        "predicted": counted.bound - (counted.shared if kind == "twin" else 0),
        "missing": dag.parameters - dag.hidden - found.rank,
        "kept": found.smallest_nonzero,
        "dropped": found.largest_zero,
    }


def _one(dag: ReluDag, widths: Sequence[int], x: Tensor, random: torch.Generator) -> dict[str, float]:
    """Φ, and the way back from it, at one network."""
    theta = drawn(random, widths, x)
    return {
        "path_missing": dag.parameters - dag.hidden - rank(path_slopes(dag, theta)).rank,
        **_embedding(dag, theta, x, random),
        "from_paths": _apart(widths, from_paths(dag, theta), theta),
        "from_paths_alone": _off(dag.forward(_turned(dag, theta), x), dag.forward(theta, x)),
    }


def _searched(
    dag: ReluDag, widths: Sequence[int], fitted: int, start: float, random: torch.Generator
) -> dict[str, float]:
    """How well searches near θ find the outputs of θ, and θ itself, without and with twins."""
    x, noise = normal(random, fitted, widths[0]), normal(random, dag.parameters)
    found: dict[str, float] = {}
    for prefix, kind in (("", "plain"), ("twin_", "twin")):
        theta = drawn(random, widths, x, kind)
        found[f"{prefix}search_missing"] = dag.parameters - dag.hidden - rank(jacobian(dag, theta, x)).rank
        outputs, begin = dag.forward(theta, x), theta * (1 + start * noise)
        back = recovered(dag, x, outputs, begin)
        found[f"{prefix}fitted"] = _off(dag.forward(back, x), outputs)
        found[f"{prefix}recovered"] = _apart(widths, back, theta)
        found[f"{prefix}start"] = _apart(widths, begin, theta)
    return found


def _embedding(dag: ReluDag, theta: Tensor, x: Tensor, random: torch.Generator) -> dict[str, float]:
    """Φ under rescaling and another change, and the outputs as A Φ."""
    paths, factors = dag.lifting(theta), _FACTORS ** normal(random, dag.hidden)
    into = (dag.incidence > 0).double()
    rescaled = theta * (dag.incidence.to(theta) @ factors.log()).exp()
    other = theta * (into.to(theta) @ factors.log()).exp()
    design = dag.design(theta, x)
    moved = [theta * (1 + size * normal(random, dag.parameters)) for size in (_SMALL, 1.0)]
    linear = [_off(design @ dag.lifting(point), dag.forward(point, x).flatten()) for point in moved]
    return {
        "rescaled": _off(dag.lifting(rescaled), paths),
        "other": _off(dag.lifting(other), paths),
        "linear": linear[0],
        "switched": linear[1],
    }


def _turned(dag: ReluDag, theta: Tensor) -> Tensor:
    """θ with all signs at the first hidden neuron turned."""
    return torch.where(dag.incidence[:, 0].to(theta) != 0, -theta, theta)


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _apart(widths: Sequence[int], found: Tensor, wanted: Tensor) -> float:
    """The distance of two θ up to rescaling, relative."""
    one, other = (Layers.of(theta, widths).normalised().theta for theta in (found, wanted))
    return float((one - other).norm() / other.norm())


def _finding(dataset: xr.Dataset, samples: int) -> Finding:
    plain, free = dataset.sel(kind="plain"), dataset.sel(kind="unadapted")
    full, free_full = (float((one.missing == 0).mean()) for one in (plain, free))
    told = dataset.sel(kind=["plain", "dead", "twin"])
    dead, twins = (int(dataset.missing.sel(kind=kind).min()) for kind in ("dead", "twin"))
    misses = int((told["rank"] != told.predicted).sum())
    found = _found(dataset, "")
    searches = f"In {int(found.notnull().sum())} of {found.size} searches the outputs are found"
    if found.notnull().any():
        away = float(dataset.start.where(found.notnull()).max())
        searches += f", from up to {away:.1e} away, and θ up to rescaling to {float(found.max()):.1e}"
    return Finding(
        study="identifiability",
        problem=f"Stock and Gribonval 2021: identifiability of ReLU networks, {dataset.sizes['draw']} draws of each "
        f"kind, {samples} samples",
        status="ok",
        verdict=f"The rank of the outputs' derivative is parameters − hidden neurons in {full:.0%} of the networks "
        f"whose neurons switch within the samples, and what the samples see less the neurons in all but {misses} of "
        f"{told['rank'].size}; with a dead neuron it is at least {dead} less, with twins {twins}. Of networks with "
        f"normal biases {free_full:.0%} have the full rank. {searches}; from Φ and signs θ is "
        f"recovered to {largest_of(dataset.from_paths):.1e}.",
        claim=Claim(
            "a ReLU network is locally identifiable, up to rescaling, from its outputs at finitely many samples; an "
            "embedding that rescaling leaves as it is represents them linearly",
            measured=float(told.missing.sel(kind="plain").mean()),
            published=0.0,
            figure="Stock 2021",
        ),
        checks=_checks(dataset, told, full),
        numbers={
            "missing": {kind: dataset.missing.sel(kind=kind).max("draw").values.tolist() for kind in KINDS},
            "share_full": {kind: float((dataset.missing.sel(kind=kind) == 0).mean()) for kind in KINDS},
            "missed_by_prediction": {
                kind: int((one["rank"] != one.predicted).sum()) for kind in KINDS for one in [dataset.sel(kind=kind)]
            },
        },
    )


def _found(dataset: xr.Dataset, prefix: str) -> xr.DataArray:
    """How far θ is where a search has found the outputs; without twins, where the rank at its samples is full."""
    there = dataset[f"{prefix}fitted"] <= FITTED
    if not prefix:
        there &= dataset.search_missing == 0
    return dataset[f"{prefix}recovered"].where(there)


def _checks(dataset: xr.Dataset, told: xr.Dataset, full: float) -> tuple[Check, ...]:
    over = "sup over networks and draws"
    least, medians = "the least of all", "the least of the networks' medians"
    return (
        Check(
            "rank above the parameters that samples see minus active neurons",
            largest_of(told["rank"] - told.predicted),
            0.0,
            f"{over}, dead and twin neurons too",
        ),
        Check(
            "share of ranks that are this count",
            float((told["rank"] == told.predicted).mean()),
            _ATTAINED,
            "dead and twin neurons too",
            least=True,
        ),
        Check("share of ranks that are parameters minus hidden neurons", full, _SHARE, least=True),
        Check(
            "smallest singular value kept over the largest dropped",
            least_of(told.kept / told.dropped),
            _GAP,
            least,
            least=True,
        ),
        Check(
            "what a dead neuron takes from the rank, a control",
            least_of(dataset.missing.sel(kind="dead")),
            1.0,
            least,
            least=True,
        ),
        Check(
            "what twins take from the rank, a control",
            least_of(dataset.missing.sel(kind="twin")),
            1.0,
            least,
            least=True,
        ),
        Check(
            "rank of the derivative of Φ off parameters minus hidden neurons",
            largest_of(np.abs(dataset.path_missing)),
            0.0,
            over,
        ),
        Check("Φ under rescaling", largest_of(dataset.rescaled), _ROUND_OFF, over),
        Check(
            "Φ where only incoming weights are multiplied, a control",
            least_of(dataset.other.median("draw", skipna=False)),
            _APART,
            medians,
            least=True,
        ),
        Check("outputs from A Φ at the same activations", largest_of(dataset.linear), _ROUND_OFF, over),
        Check(
            "outputs from A Φ at other activations, a control",
            least_of(dataset.switched.median("draw", skipna=False)),
            _APART,
            medians,
            least=True,
        ),
        Check(
            "share of searches that find the outputs, of full rank",
            float(_found(dataset, "").notnull().mean()),
            _SHARE,
            least=True,
        ),
        Check(
            "θ where the outputs are found and the rank is full, up to rescaling",
            float(_found(dataset, "").max()),
            _RECOVERED,
            over,
        ),
        Check(
            "θ with twins where the outputs are found, a control",
            float(_found(dataset, "twin_").min()),
            _ELSEWHERE,
            least,
            least=True,
        ),
        Check("θ from Φ and its signs, up to rescaling", largest_of(dataset.from_paths), _ROUND_OFF, over),
        Check(
            "outputs with the signs of a neuron turned, which Φ does not see, a control",
            least_of(dataset.from_paths_alone.median("draw", skipna=False)),
            _APART,
            medians,
            least=True,
        ),
    )


STUDIES.register("identifiability")(
    Study(
        run,
        question="Do the outputs of a ReLU network at finitely many samples determine its parameters up to rescaling, "
        "and what do the products of weights along paths say?",
    )
)
