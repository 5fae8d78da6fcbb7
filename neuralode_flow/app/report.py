"""One self-contained page about a run: the verdict first, then what it rests on."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..figures import FIGURES, Movie, describe, thinned
from ..files import atomic_write
from ..finding import ErrorTable, Finding
from ..orders import Order, local_orders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"

_MOST_ORDERS = 12  # shown one by one
_MOST_OF_CHARTS = 750_000  # bytes of all charts of a page; Plotly takes 1.5 MB, and a page less than 2.5 MB
_WIDTH = 680  # pixels of a picture that stands in for a chart


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure for a page.

    Attributes
    ----------
    figure : Figure or Movie or None
        What is shown as a chart, where it can be.
    picture : Path or None
        The saved PNG or GIF: for what a chart cannot show, and, in a small copy, for readers without scripts.
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
    study = finding.study
    captions = FIGURES[study].captions if study in FIGURES else {}
    shown = all_shown([(drawn, captions.get(name, name.replace("_", " "))) for name, drawn in figures.items()])
    path = folder / REPORT
    written = page(
        "report.html",
        title=f"{study.capitalize()}: {finding.problem}".strip(": "),
        verdict=_verdict(finding.status, finding.verdict),
        good=finding.status == "ok",
        question=question(study),
        finding=finding,
        numbers=_key_numbers(summary, finding),
        shown=shown,
        rows=_error_rows,
        command=command,
        config=config_yaml,
        versions=[*(summary.get("versions") or {}).items()],
    )
    atomic_write(path, written)
    return path


def question(study: str) -> str:
    """What a study answers."""
    from ..studies import STUDIES  # which need torch: pages of sweeps do not

    return STUDIES[study].question if study in STUDIES else ""


def page(template: str, **parts: Any) -> bytes:
    """The page that a template in the folder `page` makes of its parts; texts are escaped there."""
    text = _templates().get_template(template).render(parts)
    return text.encode(errors="backslashreplace")  # of names of files that are no Unicode


@cache
def _templates() -> Environment:
    loader = PackageLoader(__package__, "page")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False, "allow_nan": False, "separators": (",", ":")
    }  # fmt: skip
    templates.globals["file"] = lambda name: Markup(loader.get_source(templates, name)[0].strip())
    return templates


def _verdict(status: str, verdict: str) -> str:
    """What was found; a run that did not end well says so first."""
    return verdict if status == "ok" or status in verdict else f"{status}. {verdict}"


def _key_numbers(summary: Mapping[str, Any], finding: Finding) -> list[list[str]]:
    """Each number with its own error beside it."""
    rows = [_order_row(order) for order in finding.orders[:_MOST_ORDERS]]
    if more := len(finding.orders) - len(rows):
        rows.append([f"{more} more orders", "", "in results.nc"])
    rows += [
        [check.name, _number(check.error), "; ".join(filter(None, (check.said_bound, check.norm)))]
        for check in finding.checks
    ]
    rows += [["warning", "", text] for text in summary.get("warnings", ())]
    if summary.get("seconds") is not None:
        rows.append(["seconds", f"{summary['seconds']:.1f}", ""])
    return rows


def _order_row(order: Order) -> list[str]:
    known = [f"± {_number(order.spread)} over the straight part"] if math.isfinite(order.spread) else []
    known += [f"expected {order.expected:g}"] if math.isfinite(order.expected) else []
    return [f"order of {order.rule}", f"{order.value:.3f}" if math.isfinite(order.value) else "–", ", ".join(known)]


def _error_rows(table: ErrorTable) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Of each depth its errors, with the local order from the depth before unless an error is the solver's."""
    columns = []
    for column in table.errors.values():
        errors = np.array(column, dtype=float)  # None, as JSON has it for NaN, becomes that again
        orders = np.append(np.nan, local_orders(np.array(table.depths), errors))
        orders[errors <= table.floor] = np.nan
        said = ["" if math.isnan(order) else f"{order:.2f}" for order in orders]
        columns.append([*zip(map(_number, errors), said, strict=True)])
    for depth, *cells in zip(table.depths, *columns, strict=True):
        yield depth, cells


class Shown(NamedTuple):
    """A figure as templates take it.

    Attributes
    ----------
    chart : dict or None
        The description of a chart.
    picture : str
        The address of a picture, which holds all of it; empty where there is none.
    caption : str
    """

    chart: dict[str, Any] | None
    picture: str
    caption: str


def all_shown(figures: Sequence[tuple[Drawn, str]]) -> list[Shown]:
    """The figures of a page, each with its caption."""
    described = [None if drawn.figure is None else describe(drawn.figure) for drawn, _ in figures]
    charts = thinned(described, _MOST_OF_CHARTS)
    return [
        Shown(
            chart,
            _picture(drawn.picture, stands_in=chart is not None),
            f"{caption} {(chart or {}).get('note', '')}".strip(),
        )
        for chart, (drawn, caption) in zip(charts, figures, strict=True)
    ]


def _picture(path: Path | None, stands_in: bool) -> str:
    """The address of a picture that holds all of it: as it is saved, or a small one that stands in for a chart."""
    if path is None:
        return ""
    content, kind = path.read_bytes(), path.suffix[1:]
    if stands_in:
        content, kind = _small(content), "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _small(content: bytes) -> bytes:
    """The picture, or the last moment of a film, in few pixels and few colours."""
    with Image.open(io.BytesIO(content)) as image:
        image.seek(getattr(image, "n_frames", 1) - 1)
        still = image.convert("RGB")
    still.thumbnail((_WIDTH, _WIDTH))
    result = io.BytesIO()
    still.quantize(32).save(result, format="png", optimize=True)
    return result.getvalue()


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2e}"
