"""Measures what docs/choosing-a-solver.md states, as the tables there: python benchmarks/solvers.py [nonstiff|stiff]

A third word keeps the cases whose name contains it, such as: python benchmarks/solvers.py stiff digits
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import neuralode_flow as nf
from neuralode_flow.flows.base import Flow
from neuralode_flow.initial import INITIALS
from neuralode_flow.losses import Loss
from neuralode_flow.problems import PROBLEMS

RTOLS = (1e-4, 1e-6, 1e-8, 1e-10)
STIFF_RTOL = 1e-6
MATRIX_FREE = ("auto", "DOP853", "RK45", "dopri5", "dopri8", "LSODA", "CVODE_Adams", "CVODE_BDF")
DENSE = ("Radau", "BDF")  # on states of at most 100 numbers
STIFF = ("auto", "CVODE_BDF", "DOP853", "RK45", "CVODE_Adams")  # dopri5 and dopri8 are explicit like RK45 and DOP853
FIXED = ("rk4", "implicit_midpoint")
STEPS = (0.05, 0.01)
SECONDS, AUTO_SECONDS = 60.0, 250.0
MET = 10.0  # an error of at most that many tolerances meets them


@dataclass(frozen=True)
class Case:
    name: str
    flow: Flow
    state: torch.Tensor
    times: torch.Tensor
    reference: torch.Tensor


@dataclass(frozen=True)
class Result:
    evaluations: float  # of a run that was cut: scaled up from the time reached to the last one
    error: float | None  # in tolerances, the largest over the output times; None for a run that was cut
    seconds: float
    ending: str
    t: float

    def __str__(self) -> str:
        if self.error is None:
            return f"≈ {self.evaluations:.2g} (cut at t = {self.t:.0f}) / — / {self.seconds:.0f} s"
        return f"{self.evaluations:.0f} / {self.error:.2g} / {self.seconds:.2f} s" + (
            "" if self.ending == "ok" else f" ({self.ending})"
        )


def cases(name: str, loss: Loss, z0: torch.Tensor, end: float, flows: Sequence[str]) -> list[Case]:
    """The flows of a problem; all are measured against the intrinsic limit at a tolerance far below theirs."""
    times = torch.linspace(0, end, 11, dtype=torch.float64)
    limit = nf.IntrinsicFlow(loss, nf.LogMean())
    method, rtol = ("DOP853", 3e-13) if end < 10 else ("auto", 1e-10)
    reference = nf.integrate(limit, z0, times, method, rtol=rtol, atol=rtol / 100, throw=True).z
    continuous = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), loss)
    starts = {"limit": (limit, z0), "continuous": (continuous, continuous.sample(INITIALS["relaxed_balanced"](z0)))}
    return [Case(f"{name}, {flow}", *starts[flow], times, reference) for flow in flows]


def synthetic(d: int = 8, condition: float = 1e6, n: int = 200) -> nf.Regression:
    """Inputs whose covariance has eigenvalues from 1 to 1/condition, evenly spaced in the logarithm; seed 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    axes, x = torch.linalg.qr(normal(d, d)).Q, normal(n, d)
    white = torch.linalg.qr(x - x.mean(0)).Q * n**0.5
    x = white * torch.logspace(0, -0.5, d, base=condition, dtype=torch.float64) @ axes.T
    target = torch.eye(d, dtype=torch.float64) + 0.5 * normal(d, d) / d**0.5
    return nf.Regression(x, x @ target.T)


def run(case: Case, method: str, rtol: float) -> Result:
    atol, limit = rtol / 100, AUTO_SECONDS if method == "auto" else SECONDS
    path = nf.integrate(case.flow, case.state, case.times, method, rtol, atol, max_evaluations=10**8, max_seconds=limit)
    evaluations, seconds, t = path.stats["evaluations"], path.stats["seconds"], float(path.times[-1])
    print(case.name, method, rtol, evaluations, path.stats["history"], path.status, file=sys.stderr, flush=True)
    if t < case.times[-1]:
        return Result(evaluations * float(case.times[-1]) / t, None, seconds, path.ending, t)
    allowed = atol + rtol * torch.linalg.matrix_norm(case.reference)
    error = float((torch.linalg.matrix_norm(path.z - case.reference) / allowed).max())
    return Result(evaluations, error, seconds, path.ending, t)


def methods(case: Case, stiff: bool) -> tuple[str, ...]:
    if case.state.numel() > 100:
        chosen = STIFF if stiff else MATRIX_FREE
        return ("auto",) if stiff and "continuous" in case.name else chosen
    return (*STIFF, "LSODA", *DENSE) if stiff else (*MATRIX_FREE, *DENSE)


def table(corner: str, chosen: Sequence[Case], rows: dict[str, list[str]]) -> None:
    print(f"| {corner} | " + " | ".join(case.name for case in chosen) + " |\n|---" + "|---" * len(chosen) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def measured(chosen: Sequence[Case], rtol: float, stiff: bool) -> list[dict[str, Result]]:
    """Runs and prints all methods at one tolerance."""
    if not chosen:
        sys.exit("no case has that in its name")
    found = [{name: run(case, name, rtol) for name in methods(case, stiff)} for case in chosen]
    print(f"\nt ≤ {chosen[0].times[-1]:g}, rtol {rtol:g}: evaluations / error in tolerances / seconds\n")
    names = dict.fromkeys(name for column in found for name in column)
    table("method", chosen, {name: [str(column.get(name, "")) for column in found] for name in names})
    return found


def fixed(case: Case, method: str, step: float) -> str:
    path = nf.integrate(case.flow, case.state, case.times, method, step=step, throw=True)
    error = torch.linalg.matrix_norm(path.z - case.reference) / torch.linalg.matrix_norm(case.reference)
    drift = f" / {float(path.drift.max()):.0e}" if "continuous" in case.name else ""
    return f"{path.stats['evaluations']} / {float(error.max()):.0e}{drift}"


def against_best(row: dict[str, Result]) -> str:
    """Evaluations of auto over those of the best single method that meets the tolerance."""
    single = {name: r.evaluations for name, r in row.items() if name != "auto" and (r.error or torch.inf) <= MET}
    best = min(single, key=lambda name: single[name])
    return f"{row['auto'].evaluations / single[best]:.2f} ({best})"


def nonstiff(word: str) -> None:
    problems = [PROBLEMS[name]() for name in ("teacher", "linnerud", "breast_cancer")]
    chosen = [c for p in problems for c in cases(p.name, p.loss, p.z0, 2.0, ("limit", "continuous")) if word in c.name]
    goals = {f"{rtol:g}": [against_best(row) for row in measured(chosen, rtol, stiff=False)] for rtol in RTOLS}
    print("\nFixed steps: evaluations / ‖error‖/‖z‖ / law drift of the continuous flow\n")
    rows = {f"{name}, {step:g}": [fixed(case, name, step) for case in chosen] for name in FIXED for step in STEPS}
    table("method, step", chosen, rows)
    print("\nEvaluations of auto over those of the best single method within ten tolerances (goal: at most 1.3)\n")
    table("rtol", chosen, goals)


def stiff(word: str) -> None:
    cancer, digits = PROBLEMS["breast_cancer"](), PROBLEMS["digits"]()
    problems = (
        ("breast_cancer", cancer.loss, cancer.z0, ("limit", "continuous")),
        ("synthetic", synthetic(), torch.eye(8, dtype=torch.float64), ("limit",)),
        ("digits", digits.loss, digits.z0, ("limit", "continuous")),
    )
    kept = [p for p in problems if any(word in f"{p[0]}, {flow}" for flow in p[3])]
    chosen = [c for n, loss, z0, flows in kept for c in cases(n, loss, z0, 1e4, flows) if word in c.name]
    found = measured(chosen, STIFF_RTOL, stiff=True)
    print("\nEvaluations of DOP853 over those of auto (goal: at least 5)\n")
    for case, row in zip(chosen, found):
        if "DOP853" in row:
            about = "≈ " if row["DOP853"].error is None else ""
            print(f"- {case.name}: {about}{row['DOP853'].evaluations / row['auto'].evaluations:.1f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, word = (*sys.argv[1:], "", "")[:2]
    if kind not in ("", "nonstiff", "stiff"):
        sys.exit(f"unknown kind {kind!r}: nonstiff or stiff")
    for name, measure in (("nonstiff", nonstiff), ("stiff", stiff)):
        if kind in ("", name):
            measure(word)
