"""The ratios of the table of speed on this machine, beside those that are published: ./scripts/benchmark --quick

The sections of speed.py at a few sizes, in about three minutes; what differs from benchmarks/results/speed.json by more
than the quartiles of both is said. Nothing is written. A peer that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import speed
import torch
from harness import machine
from rich.console import Console
from rich.table import Table

PEERS = tuple(name for name in ("torchdiffeq", "diffrax") if importlib.util.find_spec(name))
BRIEF = {"rounds": 7, "budget": 8.0, "longest": 3.0, "scipy": 0, "peers": PEERS}
SECTIONS = {
    "imports": speed.Size(**BRIEF),
    "steps": speed.Size(dimensions=(32,), **BRIEF),
    "velocity": speed.Size(dimensions=(8, 32), **BRIEF),
    "finite": speed.Size(autograd=(1024,), depths=(256, 1024), **BRIEF),
    "kernels": speed.Size(kernels=(16, 64), **BRIEF),
}
_WIDE = 1.5  # a ratio that is so many times another one differs from it, whatever the quartiles


class Compared(NamedTuple):
    """A ratio as it was measured here, and as it is published (None where it is not)."""

    case: str
    ratio: str
    here: Mapping[str, float]
    published: Mapping[str, float] | None

    @property
    def verdict(self) -> str:
        """How the one compares with the other."""
        if self.published is None:
            return "not published"
        times = self.here["median"] / self.published["median"]
        apart = self.here["lower"] > self.published["upper"] or self.here["upper"] < self.published["lower"]
        if apart and not 1 / _WIDE < times < _WIDE:
            return f"{times:.2g} times the published one"
        return "as published"


def compared(name: str, here: Mapping[str, Any], published: Mapping[str, Any]) -> Iterator[Compared]:
    """All ratios of a section."""
    rows = {row["case"]: row["ratios"] for row in published.get(name, {"rows": []})["rows"]}
    for row in here["rows"]:
        for ratio, values in row["ratios"].items():
            yield Compared(f"{name}, {row['case']}", ratio, values, rows.get(row["case"], {}).get(ratio))


def processor(record: Mapping[str, Any]) -> str:
    """The processor of a record, and how many threads were used."""
    where = record["machine"]
    return f"{where['cpu']}, {where['threads']} threads"


def main() -> None:
    start, published = time.perf_counter(), json.loads(speed.RESULTS.read_text(encoding="utf-8"))
    speed.limit_threads(len(os.sched_getaffinity(0)))
    torch.set_default_dtype(torch.float64)
    lines = []
    for name, size in SECTIONS.items():
        print(f"measuring {name}", file=sys.stderr)
        lines += compared(name, speed.measured(name, size), published)
    table = Table("case", "ratio of times", "here (quartiles)", "published", "how it compares")
    for line in lines:
        here = f"{line.here['median']:.3g} ({line.here['lower']:.3g} – {line.here['upper']:.3g})"
        there = "—" if line.published is None else f"{line.published['median']:.3g}"
        table.add_row(line.case, line.ratio, here, there, line.verdict)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    same = sum(line.verdict == "as published" for line in lines)
    places = ", ".join(sorted({processor(published[name]) for name in SECTIONS if name in published}))
    print(f"{same} of {len(lines)} ratios as published, in {time.perf_counter() - start:.0f} s")
    print(f"here: {processor({'machine': machine()})}; published: {places}")
    missing = sorted({"torchdiffeq", "diffrax"} - {*PEERS})
    if missing:
        print(f"not measured, since it is not installed: {', '.join(missing)}")


if __name__ == "__main__":
    main()
