"""Training flows of continuous-depth linear models, and their intrinsic dynamics."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see
    from . import curvature as curvature
    from . import exact as exact
    from . import intrinsic as intrinsic
    from . import laws as laws
    from .app.python import StudyRun as StudyRun
    from .app.python import run as run
    from .curvature.flow import CentralFlow as CentralFlow
    from .depth import DEPTH_SOLVERS as DEPTH_SOLVERS
    from .depth.collocation import Collocation as Collocation
    from .depth.grid import DepthGrid as DepthGrid
    from .depth.odeint import OdeintDepth as OdeintDepth
    from .depth.rules.base import LAYERS as LAYERS
    from .flows.continuous import ContinuousFlow as ContinuousFlow
    from .flows.factorization import FactorizationFlow as FactorizationFlow
    from .flows.finite import FiniteFlow as FiniteFlow
    from .flows.intrinsic import IntrinsicFlow as IntrinsicFlow
    from .flows.modified import ModifiedFlow as ModifiedFlow
    from .flows.momentum import MomentumFlow as MomentumFlow
    from .initial import INITIALS as INITIALS
    from .initial import Detour as Detour
    from .initial import Rough as Rough
    from .initial import balanced as balanced
    from .initial import control as control
    from .initial import identity as identity
    from .initial import relaxed_balanced as relaxed_balanced
    from .initial import relaxed_balanced_layers as relaxed_balanced_layers
    from .initial import smooth as smooth
    from .intrinsic.systems import SYSTEMS as SYSTEMS
    from .kernels import DividedDifference as DividedDifference
    from .kernels import LogMean as LogMean
    from .kernels import TwoLayer as TwoLayer
    from .losses import LOSSES as LOSSES
    from .losses import Completion as Completion
    from .losses import CrossEntropy as CrossEntropy
    from .losses import Custom as Custom
    from .losses import LeastSquares as LeastSquares
    from .losses import Logistic as Logistic
    from .losses import Quadratic as Quadratic
    from .losses import Regression as Regression
    from .losses import Separable as Separable
    from .problems import PROBLEMS as PROBLEMS
    from .problems import Problem as Problem
    from .results import open as open
    from .studies import STUDIES as STUDIES
    from .time.base import METHODS as METHODS
    from .time.descend import descend as descend
    from .time.endings import ENDINGS as ENDINGS
    from .time.events import EVENTS as EVENTS
    from .time.integrate import IntegrationError as IntegrationError
    from .time.integrate import integrate as integrate
    from .time.steprule import STEP_RULES as STEP_RULES
    from .time.trajectory import Trajectory as Trajectory
    from .time.trajectory import load as load

__version__ = "0.2.0"

# The public names and their homes; they are imported at first use, so that `import neuralode_flow` is light.
_HOMES = {
    "Quadratic": "losses",
    "Regression": "losses",
    "Completion": "losses",
    "LeastSquares": "losses",
    "Separable": "losses",
    "Logistic": "losses",
    "CrossEntropy": "losses",
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
    "ModifiedFlow": "flows.modified",
    "FactorizationFlow": "flows.factorization",
    "MomentumFlow": "flows.momentum",
    "CentralFlow": "curvature.flow",
    "LogMean": "kernels",
    "DividedDifference": "kernels",
    "TwoLayer": "kernels",
    "descend": "time.descend",
    "STEP_RULES": "time.steprule",
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
    "curvature": "curvature",
    "run": "app.python",
    "StudyRun": "app.python",
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
