"""Whether the training flow of a factorisation z = φ(θ) closes on z."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..finding import Check, Finding, sentence
from ..flows.base import Flow
from ..flows.factorization import FactorizationFlow
from ..intrinsic import Rank, RecoveredFlow, Report, count_laws, report
from ..intrinsic.systems import System
from ..intrinsic.systems.base import check_system, closed_velocity_error
from ..time.endings import REACHED
from ..time.integrate import integrate
from ..time.trajectory import Trajectory, at_times, stopped
from .axes import arranged, largest_of, time
from .base import STUDIES, Clock, Progress, Study

# A control must be left by this part of ‖z‖.
_LEFT = 0.01

# z must move by so many times the bound of the errors: a closed flow that is off by 1 % of its velocity shows then.
_TELLING = 100.0
_MOVES = "how far z moves"

# At about so many points of the path the velocity of a closed flow is compared with that of z.
_COMPARED = 10
VELOCITY = "the closed flow is the velocity of z"

# What z of the parameter flow is compared with.
FORMULA = "the closed flow of z by its formula"
RECOVERED = "the flow of z with θ recovered from (z, h) by Newton's method"
NONE = "nothing: no flow in z alone is known"


def run(system: System, clock: Clock, *, progress: Progress | None = None) -> xr.Dataset:
    """Trains θ, runs the flow that is closed on z beside it, and measures criteria, laws and identities at θ₀.

    Parameters
    ----------
    system : System
    clock : Clock
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        Status "ok" if both flows ran to the last time, or to where the comparison must end.
    """

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
    path = integrate(flow, system.theta, clock.times, **clock.options("parameters"), stop=stop, observe=_kept)
    theta = path.observed
    assert theta is not None
    if len(path.times) > len(theta):  # it ended between two output times
        theta = torch.cat((theta, path.state.unsqueeze(0)))
    z = system.phi(theta)
    tell(0.6, "flow of z")
    route, closed = _closed(system, verdicts)
    beside = {
        name: integrate(other, z[0], path.times, **clock.options(name))
        for name, other in (("closed", closed), ("control", system.control))
        if other is not None
    }
    tell(0.9, "identities")
    checks = {name: check(path.times, theta) for name, check in system.checks.items()}
    if system.closed is not None:
        some = theta[:: max(1, len(theta) // _COMPARED)]
        checks[VELOCITY] = closed_velocity_error(system, flow, some)
    named = {"system": system.name, "source": system.source, "bound": system.bound, "route": route}
    dataset = _dataset(system, path, theta, z, beside).assign_attrs(named)
    criteria = _Criteria(verdicts, generic)
    return _finding(system, dataset, path, beside, criteria, checks).attached(dataset)


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


def _dataset(
    system: System, path: Trajectory, theta: Tensor, z: Tensor, beside: Mapping[str, Trajectory]
) -> xr.Dataset:
    flat = z.reshape(len(path.times), -1)
    variables: dict[str, tuple[Any, ...]] = {
        "theta": (("time", "parameter"), theta),
        "z": (("time", "component"), flat),
        "loss": ("time", path.loss),
        "law_drift": ("time", path.drift),
    }
    for name, other in beside.items():
        there = at_times(other, path.times).reshape(flat.shape)
        variables[f"z_{name}"] = (("time", "component"), there)
        variables[f"distance_{name}"] = ("time", torch.linalg.vector_norm(there - flat, dim=1))
    for name, quantity in system.observe.items():
        seen = torch.stack([quantity(point) for point in theta])
        variables[name] = (("time", *(f"{name}_{i}" for i in range(seen.ndim - 1))), seen, name)
    for name, fact in system.facts.items():
        if isinstance(fact, Tensor):
            variables[name] = (tuple(f"{name}_{i}" for i in range(fact.ndim)), fact, name)
    return arranged(variables, [time(path.times)], LONG_NAMES)


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


class _Criteria(NamedTuple):
    """What was measured at θ₀, and the laws at a random θ."""

    found: Report
    generic: Rank

    def told(self) -> dict[str, Any]:
        """What is compared with theory, and the rank."""
        found = self.found
        return {
            "rank": found.rank, "recoverable": found.recoverable, "metric": found.metric, "laws": found.laws,
            "laws_generic": self.generic.verdict,
        }  # fmt: skip


def _expected(system: System) -> dict[str, Any]:
    """What theory says of the criteria, where it says something."""
    known = {"laws_generic": system.independent, "recoverable": system.recoverable, "metric": system.metric}
    return {name: value for name, value in known.items() if value is not None}


def _contradictions(system: System, told: Mapping[str, Any]) -> list[str]:
    """Where theory and measurement differ."""
    return [
        f"{name} is {told[name]} where theory says {value}"
        for name, value in _expected(system).items()
        if str(told[name]) != str(value)
    ]


def _errors(dataset: xr.Dataset, checks: Mapping[str, float]) -> dict[str, float]:
    """What must stay below the bound: the distance of the closed flow, the drift of the laws, further identities."""
    errors = {}
    if "distance_closed" in dataset:
        errors[f"z against {dataset.attrs['route']}"] = largest_of(dataset.distance_closed)
    return errors | {"drift of the conservation laws": largest_of(dataset.law_drift)} | dict(checks)


def _moved(dataset: xr.Dataset) -> float:
    """The largest distance of z from where it began."""
    return float(np.linalg.norm(dataset.z - dataset.z[0], axis=1).max())


def _compared(dataset: xr.Dataset) -> float:
    """Until when there are all flows that are compared."""
    distances = [dataset[name].values for name in dataset.data_vars if str(name).startswith("distance_")]
    there = np.all(np.isfinite([np.zeros(len(dataset.time)), *distances]), axis=0)
    return float(dataset.time[there][-1])


def _control_left(dataset: xr.Dataset) -> float | None:
    """By which part of ‖z‖ the control is left."""
    if "distance_control" not in dataset:
        return None
    return largest_of(dataset.distance_control) / float(np.linalg.norm(dataset.z, axis=1).max())


def _status(path: Trajectory, beside: Mapping[str, Trajectory]) -> str:
    """Why the first flow did not run to the last time, or to where the comparison must end; "ok" if all did."""
    if path.ending not in (*REACHED, "event"):
        return path.status
    early = (f"z of the {name} flow: {other.status}" for name, other in beside.items() if other.ending not in REACHED)
    return next(early, "ok")


def _finding(
    system: System,
    dataset: xr.Dataset,
    path: Trajectory,
    beside: Mapping[str, Trajectory],
    criteria: _Criteria,
    checks: Mapping[str, float],
) -> Finding:
    told, left = criteria.told(), _control_left(dataset)
    wrong, errors = _contradictions(system, told), _errors(dataset, checks)
    until = system.until_what if path.ending == "event" else ""
    tested = [Check(name, error, system.bound) for name, error in errors.items()]
    tested.append(Check(_MOVES, _moved(dataset), _TELLING * system.bound, "Euclidean norm", least=True))
    if left is not None:
        tested.append(Check("part of ‖z‖ by which the control is left", left, _LEFT, least=True))
    tested.append(Check("criteria of which theory says otherwise", float(len(wrong)), 0.0))
    finding = Finding(
        study="closure",
        problem=system.title,
        status=_status(path, beside),
        verdict="",
        checks=tuple(tested),
        notes={"Criteria": f"{criteria.found}\nlaws at a random θ  {criteria.generic}"},
        numbers={
            "system": system.name,
            "source": system.source,
            "errors": errors,
            "law_drift": largest_of(dataset.law_drift),
            "control_left": left,
            "reached_time": float(dataset.time[-1]),
            "compared_time": _compared(dataset),
            "ended_by": until,
            "ending": stopped([path, *beside.values()]),
            "loss": float(dataset.loss[-1]),
            "dimension": criteria.found.dimension,
            **{name: _plain(str(value)) for name, value in told.items()},
            **{f"expected_{name}": _plain(str(value)) for name, value in _expected(system).items()},
            "metric_change": criteria.found.metric_relative,
        },
    )
    return replace(finding, verdict=_verdict(finding, wrong))


def _verdict(finding: Finding, wrong: list[str]) -> str:
    numbers, errors = finding.numbers, finding.numbers["errors"]
    check, last = next(iter(errors)), numbers["compared_time"]
    until = f" (then comes {numbers['ended_by']})" if numbers["ended_by"] else ""
    sentences = [
        f"{sentence(check)}: {errors[check]:.1e} over t in [0, {last:.3g}]{until} ({finding.checks[0].said_bound}).",
        f"A (recoverable): {numbers['recoverable']}; B (metric property): {numbers['metric']}; {numbers['laws']} "
        f"independent laws, rank {numbers['rank']} of {numbers['dimension']} parameters.",
    ]
    left = numbers["control_left"]
    if left is not None:
        sentences.append(f"The flow of relaxed balanced layers is left by {100 * left:.2g} % of ‖z‖ (at least 1 %).")
    if len(errors) > 1:
        worst = max(errors, key=lambda name: errors[name] if name != check else -1.0)
        sentences.append(f"Of the other identities the worst is: {worst}, {errors[worst]:.1e}.")
    sentences += [f"{sentence(words)}." for words in wrong]
    if finding.status != "ok":
        sentences.insert(0, f"{sentence(finding.status)}.")
    elif not all(check.holds for check in finding.checks if check.name == _MOVES):
        sentences.insert(0, "z moves by too little to tell.")
    elif not finding.passed:
        sentences.insert(0, "NOT as theory says.")
    return " ".join(sentences)


def _plain(text: str) -> Any:
    """True, False or a number where the text is one."""
    return {"True": True, "False": False}.get(text, int(text) if text.isdigit() else text)


STUDIES.register("closure")(
    Study(
        run,
        question="Does the training flow of this factorisation z = φ(θ) close on z, which laws does it obey, "
        "and does the closed flow give the z of the training flow?",
    )
)
