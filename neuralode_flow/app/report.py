"""One self-contained page about a run: the verdict first, then what it rests on."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..figures import FIGURES, Movie, describe
from ..files import atomic_write
from ..finding import ErrorTable, Finding
from ..orders import Order, local_orders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"

_MOST_ORDERS = 12  # shown one by one
_PARTS = resources.files(__package__) / "page"


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure for a page.

    Attributes
    ----------
    figure : Figure or Movie or None
        What is shown as a chart, where it can be.
    picture : Path or None
        The saved PNG or GIF: for what a chart cannot show, and for readers without scripts.
    """

    figure: Figure | Movie | None = None
    picture: Path | None = None


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    dataset: xr.Dataset,
    config_yaml: str,
    command: str,
    figures: Mapping[str, Drawn],
) -> Path:
    """Writes `folder`/report.html, whole or not at all: one page that needs no other file and no network.

    Parameters
    ----------
    folder : Path
        The run folder.
    summary : mapping
        The flat record of the run; None stands for a number that is not known.
    dataset : xarray.Dataset
        The results; the tables of errors are left out for a study that has none.
    config_yaml, command : str
        The resolved config, and the command line that repeats the run.
    figures : mapping of str to Drawn
        By name.

    Returns
    -------
    Path of the page.
    """
    finding = Finding.of(dataset, summary)
    study, status = finding.study, finding.status
    captions = FIGURES[study].captions if study in FIGURES else {}
    sections = {
        "Key numbers": _key_numbers(summary, finding),
        **{title: f"<pre>{escape(note)}</pre>" for title, note in finding.notes.items()},
        "Figures": "".join(
            figure(drawn, captions.get(name, name.replace("_", " "))) for name, drawn in figures.items()
        ),
        **{table.title: _errors(table) for table in finding.tables},
        "Repeat this run": f"<pre>{escape(command)}</pre>",
        "Config": f"<pre>{escape(config_yaml)}</pre>",
        "Versions": table([[name, str(value)] for name, value in (summary.get("versions") or {}).items()]),
    }
    path = folder / REPORT
    title = f"{study.capitalize()}: {finding.problem}".strip(": ")
    verdict = _verdict(status, finding.verdict)
    atomic_write(path, page(title, verdict, status == "ok", question(study), sections))
    return path


def question(study: str) -> str:
    """What a study answers."""
    from ..studies import STUDIES  # which need torch: pages of sweeps do not

    return STUDIES[study].question if study in STUDIES else ""


def page(title: str, verdict: str, good: bool, question: str, sections: Mapping[str, str]) -> bytes:
    """A page whose sections are HTML already; those that are empty are left out."""
    return (
        Template(_part("page.html"))
        .substitute(
            style=_part("page.css"),
            script=_part("page.js"),
            title=escape(title),
            tone="" if good else "bad",
            verdict=escape(verdict),
            question=escape(question),
            sections="\n".join(f"<h2>{escape(name)}</h2>\n{body}" for name, body in sections.items() if body),
        )
        .encode(errors="backslashreplace")  # of names of files that are no Unicode
    )


@cache
def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8").strip()


def _verdict(status: str, verdict: str) -> str:
    """What was found; a run that did not end well says so first."""
    return verdict if status == "ok" or status in verdict else f"{status}. {verdict}"


def _key_numbers(summary: Mapping[str, Any], finding: Finding) -> str:
    """Each number with its own error beside it."""
    rows = [_order_row(order) for order in finding.orders[:_MOST_ORDERS]]
    if more := len(finding.orders) - len(rows):
        rows.append([f"{more} more orders", "", "in results.nc"])
    for check in finding.checks:
        rows.append([check.name, _number(check.error), "; ".join(filter(None, (check.said_bound, check.norm)))])
    rows += [["warning", "", text] for text in summary.get("warnings", ())]
    if summary.get("seconds") is not None:
        rows.append(["seconds", f"{summary['seconds']:.1f}", ""])
    return table(rows, head=["", "value", "error, norm"], numeric={1})


def _order_row(order: Order) -> list[str]:
    known = [f"± {_number(order.spread)} over the straight part"] if math.isfinite(order.spread) else []
    known += [f"expected {order.expected:g}"] if math.isfinite(order.expected) else []
    return [f"order of {order.rule}", f"{order.value:.3f}" if math.isfinite(order.value) else "–", ", ".join(known)]


def _errors(errors: ErrorTable) -> str:
    """A column for each label; beside each error the local order from the depth before, unless it is the solver's."""
    columns = []
    for column in errors.errors.values():
        values = np.array(column, dtype=float)  # None, as JSON has it for NaN, becomes that again
        orders = np.append(np.nan, local_orders(np.array(errors.depths), values))
        orders[values <= errors.floor] = np.nan
        columns.append([Html(_cell(*cell)) for cell in zip(values, orders, strict=True)])
    rows = [[str(depth), *cells] for depth, *cells in zip(errors.depths, *columns, strict=True)]
    note = f"<p>{escape(errors.what)}, with the order from the depth before in small print.</p>" if errors.what else ""
    return note + table(rows, head=["L", *errors.errors], numeric=range(len(columns) + 1))


def _cell(error: float, order: float) -> str:
    return _number(error) + (f" <small>{order:.2f}</small>" if math.isfinite(order) else "")


class Html(str):
    """Text that is markup already."""


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), numeric: Collection[int] = ()) -> str:
    body = "".join(_row(row, "td", numeric) for row in rows)
    return f'<div class="scroll"><table>{_row(head, "th", numeric) if head else ""}{body}</table></div>' if body else ""


def _row(cells: Sequence[str], tag: str, numeric: Collection[int]) -> str:
    texts = [cell if isinstance(cell, Html) else escape(cell) for cell in cells]
    kinds = [' class="number"' if column in numeric else "" for column in range(len(cells))]
    return "<tr>" + "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True)) + "</tr>\n"


def figure(drawn: Drawn, caption: str) -> str:
    """A chart, or the picture of what a chart cannot show, with its caption."""
    chart = describe(drawn.figure) if drawn.figure is not None else None
    caption = escape(caption)
    picture = "" if drawn.picture is None else _picture(drawn.picture, caption)
    shown = picture
    if chart is not None:
        numbers = json.dumps(chart, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        shown = f'<script type="application/json">{numbers}</script>'
        shown += f"<noscript>{picture}</noscript>" if picture else ""
    kind = ' class="chart"' if chart is not None else ""
    return f"<figure{kind}>{shown}<figcaption>{caption}</figcaption></figure>\n"


def _picture(path: Path, caption: str) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/{path.suffix[1:]};base64,{image}" alt="{caption}">'


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2e}"
