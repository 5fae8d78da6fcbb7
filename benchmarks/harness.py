"""How speed is measured: alternated rounds, contests at a bar, records and their tables."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

PACKAGES = ("torch", "torchdiffeq", "scipy", "numpy", "jax", "diffrax", "neuralode_flow")
SPAN = 0.02  # seconds that a timed block of a fast call lasts at least
REST = 0.02  # seconds after which idle threads of the side before no longer spin


class Effort(Protocol):
    """How long is measured: rounds at most, and the seconds after which three of them are enough."""

    @property
    def rounds(self) -> int: ...

    @property
    def budget(self) -> float: ...


@dataclass(frozen=True)
class Row:
    """One row of a table: samples by name, the pairs of names that make its ratios, and what else is to be kept."""

    case: str
    samples: Mapping[str, np.ndarray]
    pairs: Sequence[tuple[str, str]] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    unit: str = "s"

    def record(self) -> dict[str, Any]:
        ratios = {f"{a} / {b}": self.samples[a] / self.samples[b] for a, b in self.pairs}
        return {
            "case": self.case,
            "unit": self.unit,
            "values": {name: quartiles(values) for name, values in self.samples.items()},
            "ratios": {name: quartiles(values) for name, values in ratios.items()},
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Section:
    """The rows of a table, and what is said about them."""

    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)


def quartiles(values: np.ndarray) -> dict[str, float]:
    lower, median, upper = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "lower": float(lower), "upper": float(upper), "rounds": len(values)}


def seconds(call: Callable[[], Any], number: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, the mean of `number` in a row."""
    start = clock()
    for _ in range(number):
        call()
    return (clock() - start) / number


def alternated(
    sides: Mapping[str, Callable[[], Any]], effort: Effort, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Seconds of a call of each side, by round: one block of calls of each in turn."""
    seconds_of = {name: seconds(call) for name, call in sides.items()}
    # The first call may compile or load something.
    seconds_of = {name: once if once > 1 else seconds(sides[name]) for name, once in seconds_of.items()}
    numbers = {name: math.ceil(SPAN / once) for name, once in seconds_of.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    for done in range(effort.rounds):
        if done >= 3 and time.perf_counter() - start > effort.budget:
            break
        for name, call in sides.items():
            if numbers[name] * seconds_of[name] < 1:
                time.sleep(REST)
                seconds(call, numbers[name])  # takes the caches, and wakes the threads
            samples[name].append(seconds(call, numbers[name], clock))
    return {name: np.array(values) for name, values in samples.items()}


@dataclass(frozen=True)
class Winner:
    """The fastest variant of a contestant at the loosest tolerance that meets the bar."""

    variant: Hashable
    tolerance: float
    error: float
    seconds: float
    first_call: float
    call: Callable[[], Any]

    @property
    def note(self) -> dict[str, Any]:
        """What is kept of it; the first call of a compiled function is its compilation."""
        return {
            "variant": str(self.variant),
            "tolerance": self.tolerance,
            "error": self.error,
            "first call, s": self.first_call,
        }


def trial(call: Callable[[], Any], fresh: bool) -> tuple[Any, float, float]:
    """The result of a call, None if it fails; the seconds of the first call, and the least of those after it.

    A long call is made once, unless it is `fresh`: the first of a function, which may be its compilation.
    """
    results: list[Any] = []
    try:
        first = seconds(lambda: results.append(call()))
        again = seconds(call) if fresh or first < 1 else first
        return results[0], first, again if again > 1 else min(again, seconds(call))
    except (AssertionError, RuntimeError) as error:  # of torchdiffeq, of integrate
        print(f"failed: {error}", file=sys.stderr)
        return None, math.inf, math.inf


def contest(
    variants: Mapping[Hashable, Callable[[float], Any]],
    error: Callable[[Any], float],
    bar: float,
    tolerances: Sequence[float],
    longest: float,
) -> Winner | None:
    """The winner among functions of a tolerance; None if none of them meets the bar in calls of `longest` seconds."""
    best: Winner | None = None
    for variant, run in variants.items():
        compilation: float | None = None
        for tolerance in tolerances:
            call = partial(run, tolerance)
            result, first, taken = trial(call, fresh=compilation is None)
            wrong = math.inf if result is None else error(result)
            print(f"{variant}, {tolerance:g}: error {wrong:.1e}, {taken:.2g} s", file=sys.stderr, flush=True)
            compilation = first if compilation is None else compilation
            if wrong <= bar:
                if best is None or taken < best.seconds:
                    best = Winner(variant, tolerance, wrong, taken, compilation, call)
                break
            if taken > (longest if best is None else best.seconds):
                break  # tighter tolerances take longer
    return best


def needed(winner: Winner | None, what: str) -> Winner:
    if winner is None:
        raise RuntimeError(f"{what} did not meet the bar at any tolerance")
    return winner


def table(record: Mapping[str, Any]) -> str:
    """A section as a Markdown table, its facts and the variants of the peers below."""
    rows = record["rows"]
    columns = [dict.fromkeys(name for row in rows for name in row[kind]) for kind in ("values", "ratios")]
    lines = [
        "| case | " + " | ".join([*columns[0], *columns[1]]) + " |",
        "|---" * (1 + len(columns[0]) + len(columns[1])) + "|",
    ]
    for row in rows:
        cells = [cell(row["values"].get(name), row["unit"]) for name in columns[0]]
        cells += [cell(row["ratios"].get(name)) for name in columns[1]]
        lines.append(f"| {row['case']} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"- {name}: {value}" for name, value in record["facts"].items() if not isinstance(value, dict)]
    lines += [f"- {row['case']}, {name}: {note(value)}" for row in rows for name, value in row["notes"].items()]
    return "\n".join(lines)


def amount(value: float, unit: str) -> str:
    """A value with three digits, seconds in a unit that suits them."""
    if unit == "s":
        value, unit = next(
            (value * k, name) for k, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if value * k >= 1 or k == 1e6
        )
    return f"{value:.3g}{unit and ' '}{unit}"


def cell(values: Mapping[str, float] | None, unit: str = "") -> str:
    if values is None:
        return "—"
    if values["rounds"] == 1:
        return amount(values["median"], unit)
    lower, upper = (amount(values[key], unit) for key in ("lower", "upper"))
    return f"{amount(values['median'], unit)} ({lower} – {upper})"


def note(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {note(entry)}" for key, entry in value.items())
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "platform": platform.platform(),
        "cpu": next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
