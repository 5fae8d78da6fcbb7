"""Does the training flow of a factorisation z = φ(θ) close on z?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..flows.base import Flow
from ..flows.factorization import FactorizationFlow
from ..intrinsic import Rank, RecoveredFlow, Report, count_laws, report
from ..intrinsic.systems import System
from ..intrinsic.systems.base import check_system, closed_velocity_error
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import STUDIES, Progress, Study, SystemSetup

# A control must be left by this part of ‖z‖.
_LEFT = 0.01

# At about so many points of the path the velocity of a closed flow is compared with that of z.
_COMPARED = 10
VELOCITY = "the closed flow is the velocity of z"

# What z of the parameter flow is compared with.
FORMULA = "the closed flow of z by its formula"
RECOVERED = "the flow of z with θ recovered from (z, h) by Newton's method"
NONE = "nothing: no flow in z alone is known"


def run(setup: SystemSetup, *, progress: Progress | None = None) -> xr.Dataset:
    """Trains θ, runs the flow that is closed on z beside it, and measures criteria, laws and identities at θ₀.

    Parameters
    ----------
    setup : SystemSetup
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        Status "ok" if both flows ran to the last time, or to where the comparison must end.
    """
    system = setup.system

    def tell(fraction: float, what: str) -> None:
        if progress is not None:
            progress(fraction, what)

    tell(0.0, "criteria")
    check_system(system)
    verdicts = report(system.phi, system.theta, system.laws)
    generic = count_laws(system.phi, len(system.theta))
    tell(0.3, "training flow of θ")
    flow = system.flow or FactorizationFlow(system.phi, system.loss, system.laws)
    stop = None if system.until is None else {"end": system.until}
    path = integrate(flow, system.theta, setup.times, **setup.options("parameters"), stop=stop, observe=_kept)
    theta = path.observed
    assert theta is not None
    if len(path.times) > len(theta):  # it ended between two output times
        theta = torch.cat((theta, path.state.unsqueeze(0)))
    z = system.phi(theta)
    tell(0.6, "flow of z")
    route, closed = _closed(system, verdicts)
    end = _from(closed, z[0], path.times, setup, "closed")
    control = _from(system.control, z[0], path.times, setup, "control")
    tell(0.9, "identities")
    checks = {name: check(path.times, theta) for name, check in system.checks.items()}
    if system.closed is not None:
        some = theta[:: max(1, len(theta) // _COMPARED)]
        checks[VELOCITY] = closed_velocity_error(system, flow, some)
    return _dataset(setup, path, theta, z, route, end, control, verdicts, generic, checks)


def _kept(i: int, theta: Tensor) -> Tensor:
    return theta.clone()


def _closed(system: System, verdicts: Report) -> tuple[str, Flow | None]:
    if system.closed is not None:
        return FORMULA, system.closed
    if system.control is not None:
        return NONE, None
    if verdicts.recoverable is True:
        return RECOVERED, RecoveredFlow(system.phi, system.laws, system.theta, system.loss)
    return NONE, None


def _from(flow: Flow | None, z0: Tensor, times: Tensor, setup: SystemSetup, name: str) -> Trajectory | None:
    if flow is None:
        return None
    return integrate(flow, z0, times, **setup.options(name))


def _dataset(
    setup: SystemSetup,
    path: Trajectory,
    theta: Tensor,
    z: Tensor,
    route: str,
    closed: Trajectory | None,
    control: Trajectory | None,
    verdicts: Report,
    generic: Rank,
    checks: dict[str, float],
) -> xr.Dataset:
    system, T = setup.system, len(path.times)
    flat = z.reshape(T, -1)
    values: dict[str, Any] = {
        "theta": (("time", "parameter"), theta),
        "z": (("time", "component"), flat),
        "loss": ("time", path.loss),
        "law_drift": ("time", path.drift),
    }
    for name, other in (("closed", closed), ("control", control)):
        if other is not None:
            there = flat.new_full(flat.shape, torch.nan)
            there[: len(other.z)] = other.z.reshape(len(other.z), -1)
            values[f"z_{name}"] = (("time", "component"), there)
            values[f"distance_{name}"] = ("time", torch.linalg.vector_norm(there - flat, dim=1))
    for name, quantity in system.observe.items():
        seen = torch.stack([quantity(point) for point in theta])
        values[name] = (("time", *(f"{name}_{i}" for i in range(seen.ndim - 1))), seen)
    for name, fact in system.facts.items():
        if isinstance(fact, Tensor):
            values[name] = (tuple(f"{name}_{i}" for i in range(fact.ndim)), fact)
    dataset = xr.Dataset(
        {name: (axes, value.detach().cpu().numpy()) for name, (axes, value) in values.items()},
        coords={"time": ("time", path.times.cpu().numpy(), {"long_name": "training time t", "units": "flow time"})},
    )
    for name in map(str, dataset.data_vars):
        dataset[name].attrs["long_name"] = LONG_NAMES.get(name, name)  # a system's own quantities say what they are
    stopped = [other.status for other in (closed, control) if other is not None and other.ending != "ok"]
    if path.ending not in ("ok", "event"):
        stopped.insert(0, path.status)
    dataset.attrs = {
        "study": "closure",
        "problem": system.title,
        "system": system.name,
        "source": system.source,
        "status": stopped[0] if stopped else "ok",
        "route": route,
        "bound": system.bound,
        "ended_by": system.until_what if path.ending == "event" else "",
        "checks": list(checks),
        "check_errors": np.array(list(checks.values())),
        "dimension": verdicts.dimension,
        **{name: str(getattr(verdicts, name)) for name in ("rank", "recoverable", "metric", "laws")},
        "laws_generic": str(generic.verdict),
        "metric_change": verdicts.metric_relative,
        "evidence": f"{verdicts}\nlaws at a random θ  {generic}",
        **{f"expected_{name}": str(expected) for name, expected in _expected(system).items() if expected is not None},
    }
    dataset.attrs["verdict"] = _verdict(dataset)
    return dataset


def _expected(system: System) -> dict[str, Any]:
    return {"laws_generic": system.independent, "recoverable": system.recoverable, "metric": system.metric}


LONG_NAMES = {
    "theta": "parameters",
    "z": "z = φ(θ) along the training flow of θ",
    "z_closed": "z by the flow in z alone",
    "z_control": "z by the flow that should not fit",
    "distance_closed": "Euclidean distance of the flow in z alone",
    "distance_control": "Euclidean distance of the flow that should not fit",
    "loss": "loss",
    "law_drift": "drift of the conservation laws",
}


def _errors(dataset: xr.Dataset) -> dict[str, float]:
    """What must stay below the bound: the distance of the closed flow, the drift of the laws, further identities."""
    errors = {}
    if "distance_closed" in dataset:
        errors[f"z against {dataset.attrs['route']}"] = float(dataset.distance_closed.max())
    errors["drift of the conservation laws"] = float(dataset.law_drift.max())
    return errors | dict(zip(dataset.attrs["checks"], map(float, dataset.attrs["check_errors"]), strict=True))


def _contradictions(dataset: xr.Dataset) -> list[str]:
    """Where theory and measurement differ."""
    attrs = dataset.attrs
    return [
        f"{name} is {attrs[name]} where theory says {attrs[f'expected_{name}']}"
        for name in ("laws_generic", "recoverable", "metric")
        if attrs.get(f"expected_{name}", attrs[name]) != attrs[name]
    ]


def _passed(dataset: xr.Dataset) -> bool:
    within = all(error <= dataset.attrs["bound"] for error in _errors(dataset).values())
    left = _control_left(dataset)
    return (
        dataset.attrs["status"] == "ok" and within and (left is None or left >= _LEFT) and not _contradictions(dataset)
    )


def _control_left(dataset: xr.Dataset) -> float | None:
    """By which part of ‖z‖ the control is left."""
    if "distance_control" not in dataset:
        return None
    return float(dataset.distance_control.max()) / float(np.linalg.norm(dataset.z, axis=1).max())


def _verdict(dataset: xr.Dataset) -> str:
    attrs, errors = dataset.attrs, _errors(dataset)
    check = next(iter(errors))
    last = float(dataset.time[-1])
    until = f" (then comes {attrs['ended_by']})" if attrs["ended_by"] else ""
    sentences = [
        f"{check[0].upper()}{check[1:]}: {errors[check]:.1e} over t in [0, {last:.3g}]{until} (bound "
        f"{attrs['bound']:.0e}).",
        f"A (recoverable): {attrs['recoverable']}; B (metric property): {attrs['metric']}; {attrs['laws']} "
        f"independent laws, rank {attrs['rank']} of {attrs['dimension']} parameters.",
    ]
    left = _control_left(dataset)
    if left is not None:
        sentences.append(f"The flow of relaxed balanced layers is left by {100 * left:.2g} % of ‖z‖ (at least 1 %).")
    if len(errors) > 1:
        worst = max(errors, key=lambda name: errors[name] if name != check else -1.0)
        sentences.append(f"Of the other identities the worst is: {worst}, {errors[worst]:.1e}.")
    sentences += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in _contradictions(dataset)]
    return f"{'' if _passed(dataset) else 'NOT as theory says. '}{' '.join(sentences)}"


def summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """The flat record of the study for summary.json."""
    attrs, errors = dataset.attrs, _errors(dataset)
    check = next(iter(errors))
    verdicts = {name: _plain(attrs[name]) for name in ("rank", "recoverable", "metric", "laws", "laws_generic")}
    expected = {name: _plain(attrs[name]) for name in attrs if name.startswith("expected_")}
    return {
        "study": "closure",
        "status": attrs["status"],
        "verdict": attrs["verdict"],
        "problem": attrs["problem"],
        "system": attrs["system"],
        "source": attrs["source"],
        "check": check,
        "error": errors[check],
        "bound": attrs["bound"],
        "passed": _passed(dataset),
        "errors": errors,
        "law_drift": float(dataset.law_drift.max()),
        "control_left": _control_left(dataset),
        "reached_time": float(dataset.time[-1]),
        "ended_by": attrs["ended_by"],
        "loss": float(dataset.loss[-1]),
        "dimension": attrs["dimension"],
        **verdicts,
        **expected,
        "metric_change": attrs["metric_change"],
    }


def _plain(text: str) -> Any:
    """True, False or a number where the text is one."""
    return {"True": True, "False": False}.get(text, int(text) if text.isdigit() else text)


STUDIES.register("closure")(
    Study(
        run,
        summarise,
        SystemSetup,
        question="Does the training flow of this factorisation z = φ(θ) close on z, which laws does it obey, "
        "and does the closed flow give the z of the training flow?",
    )
)
