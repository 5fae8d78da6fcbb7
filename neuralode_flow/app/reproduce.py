"""All published figures and the claims of papers, and a table of what was claimed and what was measured.

`./scripts/reproduce [NAME …]` runs each experiment as a command of its own, as many at once as there are processors; a
row comes from its summary.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import complain
from .streams import results_told, standard_streams

# The figures of the papers, then our own, then the claims of docs/seeds.md.
EXPERIMENTS = (
    "f1_sander2022",
    "f2_marion2023",
    "f3_domine2025",
    "f4_tu2024",
    "f5_zhang2026",
    "f6_arora2019",
    "f7_cohen2023",
    "t1_marcotte2023",
    "square",
    "initialisations",
    "strong_imbalance",
    "perceptron",
    "minimax",
    "width",
    "curvature",
    "leaky_rank",
    "delta_rewrite",
    "interpolant",
    "unifying",
    "min_norm",
    "lcn",
    "identifiability",
    "spline_landscape",
    "leaves",
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    experiment: str
    figure: str
    claim: str
    measured: str
    verdict: str
    seconds: float


def main() -> None:
    """Runs the experiments that are named on the command line, or all; status 1 unless every row is verified."""
    with standard_streams():
        _main(sys.argv[1:] or list(EXPERIMENTS))


def _main(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        complain(f"unknown figure {unknown[0]!r} (valid: {', '.join(EXPERIMENTS)})")
        sys.exit(2)
    out = Path("runs") / "reproduce" / time.strftime("%Y-%m-%dT%H-%M-%S")
    started, told = time.perf_counter(), Console(stderr=True, highlight=False)

    def run(name: str) -> Row:
        told.print(f"{name} …")
        return reproduced(name, out / name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(run, names))
    with results_told(out):
        Console(highlight=False, width=max(100, Console().width)).print(table(rows, time.perf_counter() - started))
    sys.exit(0 if all(row.verdict == "verified" for row in rows) else 1)


def reproduced(name: str, out: Path) -> Row:
    """Runs one experiment into a folder; whatever goes wrong becomes its verdict."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "neuralode_flow", f"experiment={name}", f"out={out}"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    seconds = time.perf_counter() - started
    summaries = sorted(out.glob("*/*/summary.json"))
    if not summaries:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        return Row(name, "", "", "", f"failed: {reason}", seconds)
    return row(name, json.loads(summaries[-1].read_text(encoding="utf-8")), seconds)


def row(name: str, summary: Mapping[str, Any], seconds: float) -> Row:
    """The line of a run."""
    passed = summary.get("passed") and summary["status"] == "ok"
    return Row(
        experiment=name,
        figure=str(summary.get("figure", "")),
        claim=str(summary.get("claim", "")),
        measured=_measured(summary),
        verdict="verified" if passed else "NOT verified",
        seconds=seconds,
    )


def _measured(summary: Mapping[str, Any]) -> str:
    parts = []
    if summary.get("measured") is not None:
        parts.append(short(summary["measured"]))
    if summary.get("published") is not None:
        parts.append(f"published {short(summary['published'])}")
    if summary.get("error") is not None:
        parts.append(f"error {short(summary['error'])} (bound {short(summary['bound'])})")
    return "; ".join(parts)


def short(value: Any) -> str:
    """A number in three digits, of many the first and the last."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = [short(item) for item in value]
        return ", ".join(shown if len(shown) <= 5 else [*shown[:2], "…", *shown[-2:]])
    return f"{value:.3g}" if isinstance(value, float) else "undecided" if value is None else str(value)


def table(rows: Sequence[Row], seconds: float) -> Table:
    """The rows, with the time that all of them took together."""
    result = Table(title=f"{len(rows)} figures in {seconds:.0f} s", show_lines=True)
    for head in ("figure", "experiment", "claim", "measured", "verdict", "seconds"):
        result.add_column(head, justify="right" if head == "seconds" else "left", overflow="fold")
    for line in rows:
        style = "green" if line.verdict == "verified" else "bold red"
        cells = map(Text, (line.figure, line.experiment, line.claim, line.measured))
        result.add_row(*cells, Text(line.verdict, style=style), f"{line.seconds:.0f}")
    return result


if __name__ == "__main__":
    main()
