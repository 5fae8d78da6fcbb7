"""The command `neuralode-flow-collect SWEEP`: the members of a sweep as one dataset, one table and one page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__, results
from ..files import atomic_write
from ..untrusted import printable
from .collected import Collected, collected
from .errors import BadInput, complain
from .memberfolder import members
from .report import REPORT
from .streams import results_told, standard_streams
from .sweeppage import MOST_SHOWN, cells, outcome, sweep_page

__all__ = ["Collected", "collected", "main", "members", "sweep_page"]

RECORDS = "collected.json"
LONGEST_OUTCOME = 300  # in the terminal; the page has more


def main(arguments: Sequence[str] | None = None) -> None:
    """Collects the sweep that the command line names; status 2 if it is none, 1 if a member is damaged."""
    with standard_streams():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="neuralode-flow-collect", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("sweep", type=Path, help="folder of a sweep, runs/sweeps/<time>")
    folder = parser.parse_args(arguments).sweep
    try:
        sweep = _with_results(folder, collected(folder))
        text = json.dumps(sweep.records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(folder / RECORDS, text.encode())
        atomic_write(folder / REPORT, sweep_page(folder, sweep))
    except BadInput as error:
        complain(error)
        raise SystemExit(error.status) from None
    except OSError as error:
        complain(f"{printable(folder)} cannot be written to: {error.strerror or error}")
        raise SystemExit(1) from None
    with results_told(folder):
        show(folder, sweep)
    if sweep.damaged:
        names = ", ".join(record["member"] for record in sweep.damaged)
        complain(printable(f"damaged members are left out; remove their folders and run the sweep again: {names}"))
        raise SystemExit(1)


def _with_results(folder: Path, sweep: Collected) -> Collected:
    """Writes the joined dataset, or removes the one of an earlier call, and says where it cannot be written."""
    if sweep.joined is not None:
        try:
            results.write(folder / results.FILE, sweep.joined)
            return sweep
        except OSError:
            raise
        except Exception as error:  # what netCDF cannot hold, such as names that are no Unicode
            reason = f"the joined dataset cannot be written: {error}"
            sweep = sweep._replace(joined=None, apart=dict.fromkeys(sweep.datasets, reason) | dict(sweep.apart))
    (folder / results.FILE).unlink(missing_ok=True)
    return sweep


def show(folder: Path, sweep: Collected) -> None:
    """Prints a table with one row for each member, and what became of them."""
    console = Console(highlight=False)
    settings = _fitting(sweep, console.width)
    table = Table()
    for key in ("member", *settings, "outcome"):
        table.add_column(Text(printable(key, 40)), overflow="fold")
    for record in sweep.records:
        texts = [record["member"], *cells(record, settings), outcome(record, LONGEST_OUTCOME)]
        table.add_row(*map(Text, texts))
    console.print(table)
    if len(settings) < len(sweep.settings):
        others = len(sweep.settings) - len(settings)
        console.print(f"the members differ in {others} more settings, which are in {RECORDS}")
    console.print(sweep.told())
    for line in sweep.left_out():
        console.print(f"not in {results.FILE}: {line}", soft_wrap=True, markup=False)
    for line in sweep.doubled():
        console.print(f"counted twice: {printable(line)}", soft_wrap=True, markup=False)
    written = [RECORDS, REPORT, *([results.FILE] if sweep.joined is not None else [])]
    console.print(Text(f"{printable(folder)}: {', '.join(written)}"), soft_wrap=True)


def _fitting(sweep: Collected, width: int) -> list[str]:
    """The first settings, as far as they leave half of the width for the member and its outcome; at least one."""
    fitting: list[str] = []
    room = width // 2
    for key in sweep.settings[:MOST_SHOWN]:
        values = (cell for record in sweep.records for cell in cells(record, [key]))
        room -= 3 + max(map(len, (key, *values)))
        if fitting and room < 0:
            break
        fitting.append(key)
    return fitting


if __name__ == "__main__":
    main()
