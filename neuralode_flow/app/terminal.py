"""What a person sees while a run goes on and when it ends: progress on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..time.progress import bar
from .streams import results_told

Report = Callable[[float, str], None]


@contextmanager
def progress() -> Iterator[Report]:
    """A function of (fraction done in [0, 1], what is being done) that shows it by a bar on stderr.

    A file or a pipe gets nothing.
    """
    with bar() as show:
        yield show or (lambda fraction, what: None)


def finished(folder: Path) -> None:
    """Says that there is nothing left to do."""
    with results_told(folder):
        Console().print(Text(f"this run is finished: {folder}"), soft_wrap=True)


def show(title: str, summary: Mapping[str, Any], folder: Path) -> None:
    """Prints the record of a run: errors by depth and rule with their orders, the checks, the verdict, the folder."""
    with results_told(folder):
        console = Console(highlight=False)
        console.print(Text(title, style="bold"))
        if summary.get("errors") and summary.get("depths"):
            console.print("error of the end-to-end map, sup over the output times:")
            console.print(_errors_table(summary))
        for name in ("reference_error", "law_drift"):
            if name in summary:
                console.print(f"{name.replace('_', ' ')}: {_number(summary[name])}")
        if summary.get("verdict"):
            console.print(Text(summary["verdict"], style="bold green" if summary["status"] == "ok" else "bold red"))
        # A path is printed as it is, on one line, to be copied.
        console.print(Text(f"{folder}"), soft_wrap=True)


def _errors_table(summary: Mapping[str, Any]) -> Table:
    errors, orders = summary["errors"], summary.get("orders", {})
    table = Table()
    table.add_column("depth L", justify="right")
    for rule in errors:
        table.add_column(Text(rule), justify="right")
    for i, depth in enumerate(summary["depths"]):
        table.add_row(str(depth), *(_number(values[i]) for values in errors.values()))
    table.add_section()
    table.add_row("order", *(_number(orders.get(rule), ".2f") for rule in errors))
    return table


def _number(value: float | None, form: str = ".2e") -> str:
    return "–" if value is None else format(value, form)
