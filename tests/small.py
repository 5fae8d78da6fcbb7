"""Every study as small as its claim still holds; a study is run once for all workers of the tests that ask for it."""

import json
import os
import pickle
from functools import cache
from pathlib import Path

import torch

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES
from neuralode_flow.studies.base import Clock


def clock(horizon=2.0, samples=9, **changes):
    settings = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    return Clock(times=torch.linspace(0, horizon, samples), **(settings | changes))


def network(dimension, initial=None, solver=True, **changes):
    problem, solvers = nf.PROBLEMS["teacher"](dimension=dimension), {}
    if solver:
        solvers["solver"] = nf.Collocation(nf.DepthGrid.gauss(2, 10))
    initials = {} if initial is None else {"initial": nf.INITIALS[initial](problem.z0)}
    return {"problem": problem, "clock": clock(**changes), **initials, **solvers}


def at_the_edge():
    """A start that is led far astray, on a grid whose Hessian is small."""
    found = network(2, horizon=2.0, samples=3, rtol=1e-8, atol=1e-10)
    start = nf.INITIALS["detour"](found["problem"].z0, detour=1.0)
    return found | {"initial": start, "solver": nf.Collocation(nf.DepthGrid.gauss(1, 12))}


def system(name, **changes):
    return {"system": nf.SYSTEMS[name](), "clock": clock(**changes)}


def alone(*arguments, **changes):
    return {"clock": clock(*arguments, **changes)}


SMALL = {
    "residual_scaling": lambda: (alone(), {"targets": 3}),
    "depth_heatmap": lambda: (network(3), {"depths": [2, 8, 32, 128, 256], "iterations": 5}),
    "lazy_to_rich": lambda: (
        alone(rtol=1e-11, atol=1e-13),
        {"balances": [-20.0, -0.1, 0.0, 0.1, 20.0], "width": 3},
    ),
    "scalar_blocks": lambda: (alone(rtol=1e-11, atol=1e-13), {"depths": [16, 64, 256], "blocks": 4}),
    "volume_form": lambda: (alone(20.0), {"dimension": 4}),
    "strong_imbalance": lambda: (
        network(2, solver=False),
        {"depths": [16, 32, 64], "strengths": [0.0, 2.0], "network_depth": 4},
    ),
    "mixed_regime": lambda: (
        alone(3.0, rtol=1e-7, atol=1e-9),
        {"dimension": 6, "rank": 2, "products": [0.1, 1.0], "widths": [200, 800, 3200], "repeats": 6},
    ),
    "deep_completion": lambda: (
        alone(1e5, 3, method="auto", rtol=1e-7, atol=1e-9),
        {
            "dimension": 8,
            "rank": 1,
            "depths": [2, 3],
            "observations": [32],
            "matrices": 2,
            "draws": 1,
            "drawn_dimension": 3,
            "drawn_entries": 6,
            "seed": 34,
        },
    ),
    "conservation_laws": lambda: (alone(), {"networks": 2}),
    "closure": lambda: (system("single_neuron", horizon=1.0, samples=5), {}),
    "convergence": lambda: (network(2, "relaxed_balanced", samples=3), {"depths": [4, 8, 16], "workers": 1}),
    "learning_rate": lambda: (
        network(2, "relaxed_balanced", horizon=1.0, samples=5),
        {"depths": [4, 16], "steps": [4, 8, 16], "workers": 1},
    ),
    "edge": lambda: (
        at_the_edge(),
        {"depths": [16, 32, 64], "between": 0.4, "settled": 1e-6, "cases": 1, "detour": 1.0, "workers": 1},
    ),
    "initialisations": lambda: (network(2, horizon=0.5, samples=3), {"draws": 2, "depths": [2]}),
    "interpolant": lambda: (
        {"problem": nf.PROBLEMS["breast_cancer_white"](), "clock": clock(horizon=20.0, samples=3)},
        {"shapes": [0.0, 0.9]},
    ),
    "momentum": lambda: (
        network(3, "relaxed_balanced", horizon=1.0, samples=5, rtol=1e-12, atol=1e-13)
        | {"solver": nf.Collocation(nf.DepthGrid.gauss(4, 12))},
        {"depths": [2, 4], "refinements": [2, 4, 8], "steps": 60},
    ),
    "leaky_rank": lambda: (
        {},
        {
            "samples": 6,
            "width": 12,
            "positive": 4,
            "features": 1e6,
            "horizon": 640.0,
            "large_start": 300.0,
            "steps": 20,
        },
    ),
    "leaves": lambda: ({}, {"largest": 2, "starts": 6, "losses": 2, "zeros": 2}),
    "min_norm": lambda: (
        {"problem": nf.PROBLEMS["breast_cancer_white"]()},
        {
            "rows": 2,
            "outputs": 1,
            "widths": [16, 128, 1024],
            "draws": 32,
            "imbalances": [0.0, 4.0, 8.0, 16.0],
            "seed": 2,
        },
    ),
    "spline_landscape": lambda: (
        {},
        {"starts": 32, "steps": 1000, "rate": 0.3, "networks": 30, "draws": 20000},
    ),
    "curvature": lambda: (
        {},
        {
            "width": 48,
            "samples": 8,
            "layers": 3,
            "gains": [0.2],
            "deep": [3, 5],
            "draws": 2,
            "repeats": 5,
            "trained": 6,
            "trained_width": 6,
            "steps": 1000,
            "rules": ["euler"],
            "depths": [32, 64, 128],
        },
    ),
    "minimax": lambda: (
        {},
        {
            "alphas": [1.0, 16.0, 32.0, 64.0, 128.0],
            "nodes": 15,
            "horizon": 4.0,
            "widths": [16, 64, 256],
            "steps": [80, 160, 320],
            "draws": 24,
            "penalties": [0.0, 0.1],
            "duration": 128.0,
        },
    ),
    "identifiability": lambda: ({}, {"draws": 1, "samples": 600, "searches": 1, "fitted": 150}),
    "lcn": lambda: ({}, {"draws": 4, "starts": 1, "horizon": 0.1}),
    "width": lambda: (
        {},
        {
            "sizes": [16, 32, 64],
            "entries": 6e5,
            "certified": [4],
            "widths": [64, 128, 256],
            "draws": 3,
            "fitted": [4],
            "hidden": 32,
            "images": 12,
            "steps": 80,
        },
    ),
    "unifying": lambda: ({}, {"size": 1e5, "seed": 25}),
    "perceptron": lambda: ({}, {"pair": [4, 9], "rates": [0.01, 1.0, 100.0], "steps": 100, "sizes": [10, 30, 100]}),
    "delta_rewrite": lambda: (
        alone(100.0, 3, method="auto", rtol=1e-7, atol=1e-9),
        {"dimension": 3, "depths": [16, 32, 64, 128], "layers": 2, "draws": 2},
    ),
    "trajectory": lambda: (network(2, "relaxed_balanced", samples=3), {}),
    "universality": lambda: (
        {"problem": nf.PROBLEMS["linnerud"](), "solver": nf.Collocation(nf.DepthGrid.gauss(4, 8))},
        {"steps": 40, "starts": 3, "controls": 2, "depths": [2, 4]},
    ),
}


shared: Path | None = None  # a folder of all workers, where there are several


@cache
def dataset(name):
    path = None if shared is None else shared / f"{name}.pickle"
    if path is not None and path.exists():
        return pickle.loads(path.read_bytes())
    inputs, options = SMALL[name]()
    found = STUDIES[name].run(**inputs, **options)
    if path is not None:
        own = path.with_suffix(f".{os.getpid()}")
        own.write_bytes(pickle.dumps(found))
        own.replace(path)  # whole, whoever reads it meanwhile
    return found


def failing(found):
    """Names of the checks that a dataset does not pass."""
    return {check.name for check in Finding.of(found).checks if not check.holds}


PUBLISHED = [
    "residual_scaling", "depth_heatmap", "lazy_to_rich", "scalar_blocks", "volume_form", "strong_imbalance",
    "mixed_regime", "deep_completion", "perceptron", "interpolant", "delta_rewrite", "leaky_rank", "leaves",
    "min_norm", "spline_landscape", "curvature", "minimax", "lcn", "identifiability", "width", "unifying",
]  # fmt: skip
FROZEN = Path(__file__).with_name("frozen.json")


def names(study):
    """The names in what a study leaves, with the dimensions of arrays and the keys of tables."""
    found = dataset(study)
    summary = STUDIES[study].summarise(found)
    return {
        "summary": {key: sorted(value) if isinstance(value, dict) else None for key, value in summary.items()},
        "variables": {str(name): list(variable.dims) for name, variable in found.variables.items()},
    }


def assert_names_stay(study):
    """Whatever name a study has had, it has."""
    frozen, now = json.loads(FROZEN.read_text())["results"][study], names(study)
    for part, known in frozen.items():
        assert {key: now[part].get(key, "gone") for key in known} == known
