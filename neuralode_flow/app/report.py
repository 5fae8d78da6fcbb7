"""One self-contained page about a run: the verdict first, then what it rests on."""

from __future__ import annotations

import base64
import io
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..display import number_said
from ..files import CONFIG, RESULTS, atomic_write
from ..finding import ErrorTable, Finding, sentence
from ..orders import Order, local_orders
from ..untrusted import parse_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..figures import Movie

REPORT = "report.html"

_MOST_ORDERS = 12  # shown one by one
_MOST_OF_CHARTS = 750_000  # bytes of all charts of a page; Plotly takes 1.5 MB, and a page less than 2.5 MB
_HASH = 16  # digits of a commit; results.nc has all
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

    def described(self) -> Described:
        """What a page takes of it."""
        from ..figures import describe

        chart = None if self.figure is None else describe(self.figure)
        return Described(chart, self.picture, _picture(self.picture, stands_in=True) if chart else "")


class Described(NamedTuple):
    """A figure without Matplotlib: a chart, the saved picture, and the address of a small one; any may be missing."""

    chart: dict[str, Any] | None
    picture: Path | None
    small: str


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    dataset: xr.Dataset,
    config_yaml: str,
    command: str,
    shown: Sequence[Shown],
) -> Path:
    """Writes `folder`/report.html, whole or not at all: one page that needs no other file and no network.

    Parameters
    ----------
    folder : Path
        The run folder.
    summary : mapping
        The flat record of the run; None stands for a number that is not known.
    dataset : xarray.Dataset
        The results; the tables of errors are left out for a study that has none. Its attribute `git_commit`, if it
        has one, is shown.
    config_yaml, command : str
        The resolved config, and the command line that repeats the run.
    shown : sequence of Shown
        The figures.

    Returns
    -------
    Path of the page.
    """
    finding = Finding.of(dataset, summary)
    study = finding.study
    path = folder / REPORT
    written = page(
        "report.html",
        title=f"{sentence(study.replace('_', ' '))}: {finding.problem}".strip(": "),
        verdict=_verdict(finding.status, finding.verdict),
        good=finding.passed,
        question=question(study),
        finding=finding,
        facts=[*_stated(config_yaml), *_where(dataset), *_device(summary)],
        files=[File.of(name) for name in (RESULTS, CONFIG) if (folder / name).is_file()],
        numbers=_key_numbers(summary, finding),
        shown=shown,
        rows=_error_rows,
        command=command,
        config=config_yaml,
        versions=[*(summary.get("versions") or {}).items()],
    )
    atomic_write(path, written)
    return path


def all_drawn(folder: Path, said: str, captions: Mapping[str, str], figures: Mapping[str, Described]) -> list[Shown]:
    """The figures of a run, for a page that has said something before."""
    return all_shown(
        [(described, captions.get(name, name.replace("_", " "))) for name, described in figures.items()],
        said=said,
        files=[_saved(folder, name) for name in figures],
    )


def _stated(config_yaml: str) -> Iterator[list[str]]:
    """What was run, as the config names it: of each part the first line of its documentation, and its settings."""
    from ..time.steprule import STEP_RULES
    from .groups import registries  # with torch, which pages of sweeps do not need

    config, registered = parse_yaml(config_yaml), registries() | {"time": STEP_RULES}
    labels = {"problem": "problem", "system": "system", "initial": "start", "time": "steps"}
    for group, label in labels.items():
        own = dict(config.get(group) or {}) if isinstance(config, dict) else {}
        if "seed" in own and config.get("members") is not None:
            own["seed"] = _seeds_said(config, group)
        name = own.pop("rule" if group == "time" else "name", None)
        if name in registered[group]:
            said = (registered[group][name].__doc__ or "").strip().partition("\n")[0]
            settings = ", ".join(f"{key} = {value}" for key, value in own.items())
            yield [label, f"{said} {settings}".strip()]


def _seeds_said(config: Mapping[str, Any], group: str) -> Any:
    """The seeds of a part over the members of a run, or that which all of them have."""
    from .schema import Choice, has_seed, varied

    members, alone = config["members"], config[group]["seed"]
    if not isinstance(members, Mapping):
        chosen = {
            name: Choice(own["name"], {key: value for key, value in own.items() if key != "name"})
            for name, own in config.items()
            if isinstance(own, Mapping) and "name" in own
        }
        if group not in varied([name for name, choice in chosen.items() if has_seed(name, choice)]):
            return alone
        return f"0 … {members - 1}" if members > 1 else 0
    given = members.get(group)
    if not isinstance(given, Mapping):
        return alone
    seeds = given["seed"]
    if not isinstance(seeds, list):
        return seeds
    return f"{seeds[0]} … {seeds[-1]}" if len(seeds) > 1 else seeds[0]


def _device(summary: Mapping[str, Any]) -> list[list[str]]:
    return [["device", str(summary["device"])]] if summary.get("device") else []


def _where(dataset: xr.Dataset) -> list[list[str]]:
    """When and where it was run, and by which version of the program."""
    commit = str(dataset.attrs.get("git_commit", ""))
    changed = ", with changes that are not committed" if commit.endswith("+") else ""
    return [
        ["date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z").strip()],
        ["host", f"{platform.node()}: {platform.system()} {platform.machine()}, {os.cpu_count()} processors"],
        *([["commit", commit.rstrip("+")[:_HASH] + changed]] if commit else []),
    ]


class File(NamedTuple):
    """A file beside a page: its name, and its address as the page has it."""

    name: str
    address: str

    @classmethod
    def of(cls, name: str) -> File:
        """That of `name`, which may have parts."""
        return cls(name, quote(name))


def _saved(folder: Path, figure: str) -> list[File]:
    """The pictures of a figure that lie beside the page."""
    return [File.of(f"figures/{path.name}") for path in sorted(folder.glob(f"figures/{figure}.*"))]


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
        [check.name, number_said(check.error), "; ".join(filter(None, (check.said_bound, check.norm)))]
        for check in finding.checks
    ]
    rows += [["warning", "", text] for text in summary.get("warnings", ())]
    if summary.get("seconds") is not None:
        rows.append(["seconds", f"{summary['seconds']:.1f}", ""])
    return rows


def _order_row(order: Order) -> list[str]:
    known = [f"± {number_said(order.spread)} over {order.spread_of}"] if math.isfinite(order.spread) else []
    known += [f"expected {order.expected:g}"] if math.isfinite(order.expected) else []
    return [f"order of {order.rule}", number_said(order.value, ".3f"), ", ".join(known)]


def _error_rows(table: ErrorTable) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Of each depth its errors, with the local order from the depth before unless one of both is the solver's."""
    columns = []
    for column in table.errors.values():
        errors = np.array(column, dtype=float)  # None, as JSON has it for NaN, becomes that again
        orders = np.append(np.nan, local_orders(np.array(table.depths), errors))
        solvers = errors <= table.floor
        orders[solvers | np.append(False, solvers[:-1])] = np.nan
        said = ["" if math.isnan(order) else f"{order:.2f}" for order in orders]
        columns.append([*zip(map(number_said, errors), said, strict=True)])
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
    files : sequence of File
        The same as pictures beside the page.
    """

    chart: dict[str, Any] | None
    picture: str
    caption: str
    files: Sequence[File] = ()


def all_shown(
    figures: Sequence[tuple[Described, str]], said: str = "", files: Sequence[Sequence[File]] | None = None
) -> list[Shown]:
    """The figures of a page, each with its caption.

    Parameters
    ----------
    figures : sequence of (Described, str)
    said : str
        What the page has said before; a chart has it in its title no more.
    files : sequence of sequence of File, optional
        Of each figure the pictures beside the page.
    """
    from ..figures import thinned
    from ..figures.markup import to_html
    from ..figures.style import plain

    charts = thinned([described.chart for described, _ in figures], _MOST_OF_CHARTS)
    return [
        Shown(
            chart and chart | {"heading": _without(chart["title"], to_html(plain(said)))},
            _picture(described.picture, stands_in=False) if chart is None else described.small,
            f"{caption} {(chart or {}).get('note', '')}".strip(),
            beside,
        )
        for chart, (described, caption), beside in zip(charts, figures, files or [()] * len(charts), strict=True)
    ]


def _without(title: str, said: str) -> str:
    """The lines of a title without those that say what the page says, however it is broken into lines there."""
    lines, wanted = title.split("\n"), "".join(said.split())
    for first in range(len(lines)):
        for last in range(first + 1, len(lines) + 1):
            if wanted and "".join("".join(lines[first:last]).split()) == wanted:
                return "\n".join(lines[:first] + lines[last:])
    return title


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
    # An octree keeps the few colours of curves; the median cut, which is Pillow's own choice, mixes them.
    still.quantize(64, Image.Quantize.FASTOCTREE).save(result, format="png")
    return result.getvalue()
