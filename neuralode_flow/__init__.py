"""Training flows of continuous-depth linear models, and their intrinsic dynamics."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# The public names and their homes; they are imported at first use, so that `import neuralode_flow` is light.
_HOMES = {
    "Quadratic": "losses",
    "Regression": "losses",
    "Completion": "losses",
    "LeastSquares": "losses",
    "Separable": "losses",
    "LOSSES": "losses",
    "Custom": "losses",
    "DepthGrid": "depth.grid",
    "Collocation": "depth.collocation",
    "OdeintDepth": "depth.odeint",
    "DEPTH_SOLVERS": "depth",
    "LAYERS": "depth.rules.base",
    "relaxed_balanced": "initial",
    "relaxed_balanced_layers": "initial",
    "balanced": "initial",
    "identity": "initial",
    "control": "initial",
    "smooth": "initial",
    "Rough": "initial",
    "Detour": "initial",
    "INITIALS": "initial",
    "ContinuousFlow": "flows.continuous",
    "FiniteFlow": "flows.finite",
    "IntrinsicFlow": "flows.intrinsic",
    "FactorizationFlow": "flows.factorization",
    "LogMean": "kernels",
    "DividedDifference": "kernels",
    "TwoLayer": "kernels",
    "integrate": "time.integrate",
    "IntegrationError": "time.integrate",
    "Trajectory": "time.trajectory",
    "open": "results",
    "load": "time.trajectory",
    "ENDINGS": "time.endings",
    "EVENTS": "time.events",
    "METHODS": "time.base",
    "Problem": "problems",
    "PROBLEMS": "problems",
    "STUDIES": "studies",
    "intrinsic": "intrinsic",
    "SYSTEMS": "intrinsic.systems",
    "exact": "exact",
    "laws": "laws",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES[name]}", __name__)
    value = module if name == _HOMES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
