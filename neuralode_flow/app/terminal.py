"""What a person sees while a run goes on and when it ends: progress on stderr, results on stdout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..display import number_said, shortened
from ..finding import DATA, ErrorTable, Finding
from ..orders import Order
from ..time.progress import bar
from .streams import results_told

Report = Callable[[float, str], None]

_MOST_ORDERS, _LONGEST_VERDICT = 6, 201  # in the line of a member


@contextmanager
def progress(verbosity: str = "normal") -> Iterator[Report]:
    """A function of (fraction done in [0, 1], what is being done) that shows it by a bar on stderr.

    A file or a pipe gets nothing, and who wants quiet neither.
    """
    if verbosity == "quiet":
        yield lambda fraction, what: None
        return
    with bar() as show:
        yield show or (lambda fraction, what: None)


def finished(folder: Path, verbosity: str = "normal") -> None:
    """Says that there is nothing left to do; who wants quiet gets the folder alone."""
    with results_told(folder):
        Console().print(
            Text(f"{folder}" if verbosity == "quiet" else f"this run is finished: {folder}"), soft_wrap=True
        )


def show(
    title: str, finding: Finding, folder: Path, verbosity: str = "normal", more: Mapping[str, object] | None = None
) -> None:
    """Prints what a run has found: its tables of errors with their orders, the checks, the verdict, the folder.

    Parameters
    ----------
    title : str
    finding : Finding
    folder : Path
    verbosity : {"quiet", "normal", "verbose"}
        The folder alone; the first table, checks and verdict; all of it.
    more : mapping, optional
        What else is known, by its name: for those who want all.
    """
    with results_told(folder):
        console = Console(highlight=False)
        if verbosity != "quiet":
            _found(console, title, finding, verbosity == "verbose", more or {})
        # A path is printed as it is, on one line, to be copied.
        console.print(Text(f"{folder}"), soft_wrap=True)


def _found(console: Console, title: str, finding: Finding, everything: bool, more: Mapping[str, object]) -> None:
    console.print(Text(title, style="bold"))
    if DATA in finding.notes:
        console.print(Text("data: " + finding.notes[DATA].replace("\n", "; ")), soft_wrap=True)
    for table in finding.tables if everything else finding.tables[:1]:  # the report has all of them
        console.print(f"{table.what or table.title}:")
        console.print(_errors(table, finding.orders))
    for check in finding.checks:
        norm = f", {check.norm}" if everything and check.norm else ""
        bound = "" if check.bound is None else f" ({check.said_bound})"
        console.print(Text(f"{check.name}: {number_said(check.error)}{bound}{norm}"))
    if everything:
        for name, value in {**finding.notes, **more}.items():
            if name != DATA:  # said above
                console.print(Text(f"{name}: {value}"))
    if finding.verdict:
        console.print(Text(finding.verdict, style="bold green" if finding.passed else "bold red"))


def show_member(member: str, finding: Finding, folder: Path, seconds: float) -> None:
    """Prints what a member of a sweep has found, in one line: its orders, its checks, or else its verdict."""
    orders = [f"{order.rule} {number_said(order.value, '.2f')}" for order in finding.orders[:_MOST_ORDERS]]
    broken = [check for check in finding.checks if not check.holds][:1]
    parts = [f"orders {', '.join(orders)}" if orders else "", finding.said_checks]
    parts += [f"not {check.name} {number_said(check.error)} ({check.said_bound})" for check in broken]
    first_sentence = re.split(r"\.\s", finding.verdict, maxsplit=1)[0].rstrip(".")
    found = "; ".join(filter(None, parts)) or shortened(first_sentence, _LONGEST_VERDICT)
    with results_told(folder):
        line = Text(f"{member}: ").append(finding.status, style="green" if finding.status == "ok" else "red")
        Console(highlight=False).print(line.append(f"; {found}; {seconds:.1f} s"), soft_wrap=True)


def _errors(errors: ErrorTable, orders: Sequence[Order]) -> Table:
    table, found = Table(), {order.rule: order.value for order in orders}
    table.add_column("depth L", justify="right")
    for label in errors.errors:
        table.add_column(Text(label), justify="right")
    for i, depth in enumerate(errors.depths):
        table.add_row(str(depth), *(number_said(column[i]) for column in errors.errors.values()))
    table.add_section()
    table.add_row("order", *(number_said(found.get(label), ".2f") for label in errors.errors))
    return table
