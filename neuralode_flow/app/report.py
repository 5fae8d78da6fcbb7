"""One self-contained page about a run: the verdict first, then what it rests on."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr

from ..figures import FIGURES
from ..files import atomic_write
from ..studies import STUDIES
from ..studies.orders import local_orders

# Each scalar of a convergence dataset: what it says.
REFERENCE_ERRORS = {
    "error_reference": "nested continuous solve against the intrinsic limit",
    "error_grid": "the same solve against a doubled depth grid",
    "error_time": "the same solve against a tighter time tolerance",
}

EDGES = {
    "error_richardson": "Richardson 2z_2L − z_L, Euler",
    "error_finite_square": "finite network – its intrinsic flow",
    "error_intrinsic_depth": "intrinsic flow of L layers – limit",
}

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --ink: #1a1a1a; --paper: #fff; --line: #d8d8d8; --soft: #f4f5f6; --good: #00704f; --bad: #b23b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #3a3d42; --soft: #212429; --good: #4cc9a0; --bad: #ff9a62; }
}
body { max-width: 52rem; margin: 0 auto; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; line-height: 1.3; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { border-left: .3rem solid var(--good); background: var(--soft); padding: .7rem 1rem; font-size: 1.1rem; }
.verdict.bad { border-color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; font-size: .92rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
small { opacity: .75; }
figure { margin: 1.2rem 0; } figcaption { font-size: .92rem; }
img { width: 100%; height: auto; background: #fff; border-radius: .3rem; }
pre { background: var(--soft); padding: .7rem 1rem; white-space: pre-wrap; font-size: .85rem; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="verdict $tone">$verdict</p>
<p>$question</p>
$sections
</body>
</html>
""")


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    dataset: xr.Dataset,
    config_yaml: str,
    command: str,
    figures: Sequence[Path],
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
    figures : sequence of Path
        Saved figures; the PNG and GIF files among them become part of the page.

    Returns
    -------
    Path of the page.
    """
    study, status = str(summary.get("study", "")), str(summary.get("status", "ok"))
    captions = FIGURES[study].captions if study in FIGURES else {}
    sections = {
        "Key numbers": _key_numbers(summary, dataset),
        "Criteria": f"<pre>{escape(dataset.attrs['evidence'])}</pre>" if "evidence" in dataset.attrs else "",
        "Errors by depth": _errors_by_depth(dataset, "error_z") if "rule" in dataset.coords else "",
        "The other edges of the square": _edges(dataset) if "rule" in dataset.coords else "",
        "Figures": "".join(_figure(path, captions) for path in figures if path.suffix in (".png", ".gif")),
        "Repeat this run": f"<pre>{escape(command)}</pre>",
        "Config": f"<pre>{escape(config_yaml)}</pre>",
        "Versions": _table([[name, str(value)] for name, value in (summary.get("versions") or {}).items()]),
    }
    page = PAGE.substitute(
        title=escape(f"{study.capitalize()}: {dataset.attrs.get('problem', '')}".strip(": ")),
        tone="" if status == "ok" else "bad",
        verdict=escape(_verdict(status, str(summary.get("verdict") or ""))),
        question=escape(STUDIES[study].question if study in STUDIES else ""),
        sections="\n".join(f"<h2>{escape(name)}</h2>\n{body}" for name, body in sections.items() if body),
    )
    path = folder / "report.html"
    atomic_write(path, page.encode())
    return path


def _verdict(status: str, verdict: str) -> str:
    """What was found; a run that did not end well says so first."""
    return verdict if status == "ok" or status in verdict else f"{status}. {verdict}"


def _key_numbers(summary: Mapping[str, Any], dataset: xr.Dataset) -> str:
    """Each number with its own error beside it."""
    rows = (
        [_order_row(dataset, rule) for rule in dataset["rule"].values.tolist()]
        if {"order", "rule"} <= set(dataset.variables)
        else []
    )
    for name, text in REFERENCE_ERRORS.items():
        if name in dataset:
            rows.append([f"reference: {text}", _number(float(dataset[name])), "sup over time, Frobenius norm"])
    checks: dict[str, float] = {}
    if "bound" in summary:
        checks = summary.get("errors") or {summary["check"]: summary["error"]}
        rows += [[what, _number(error), f"bound {summary['bound']:.0e}"] for what, error in checks.items()]
    if summary.get("law_drift") is not None and not any("drift" in what for what in checks):
        rows.append(["drift of the conserved quantity", _number(summary["law_drift"]), "0 in exact arithmetic"])
    if summary.get("seconds") is not None:
        rows.append(["seconds", f"{summary['seconds']:.1f}", ""])
    return _table(rows, head=["", "value", "error, norm"], numeric={1})


def _order_row(dataset: xr.Dataset, rule: str) -> list[str]:
    order, spread = (float(dataset[name].sel(rule=rule)) for name in ("order", "order_spread"))
    return [
        f"order of {rule} in 1/L",
        f"{order:.3f}" if math.isfinite(order) else "–",
        f"± {_number(spread)} over the straight part" if math.isfinite(spread) else "",
    ]


def _errors_by_depth(dataset: xr.Dataset, name: str) -> str:
    """A column for each rule; beside each error the local order from the depth before."""
    depths, rules = dataset["depth"].values, dataset["rule"].values.tolist()
    errors = dataset[name].transpose("depth", "rule").values
    note = "<p>Errors of z over training time, with the order from the depth before in small print.</p>"
    return note + _depth_table(depths, rules, errors, _floor(dataset))


def _edges(dataset: xr.Dataset) -> str:
    names = [name for name in EDGES if name in dataset]
    if not names:
        return ""
    errors = np.stack([dataset[name].values for name in names], axis=1)
    return _depth_table(dataset["depth"].values, [EDGES[name] for name in names], errors, _floor(dataset))


def _floor(dataset: xr.Dataset) -> float:
    return float(dataset.attrs.get("floor", 0.0))


def _depth_table(depths: np.ndarray, columns: list[str], errors: np.ndarray, floor: float) -> str:
    """`errors` is `(depth, column)`; there is no order where an error is only the solver's own."""
    orders = np.full(errors.shape, np.nan)
    for column in range(len(columns)):
        orders[1:, column] = local_orders(depths, errors[:, column])
    orders[errors <= floor] = np.nan
    rows = [
        [str(depth), *(_Html(_cell(e, p)) for e, p in zip(*line, strict=True))]
        for depth, *line in zip(depths.tolist(), errors, orders, strict=True)
    ]
    return _table(rows, head=["L", *columns], numeric=range(len(columns) + 1))


def _cell(error: float, order: float) -> str:
    return _number(error) + (f" <small>{order:.2f}</small>" if math.isfinite(order) else "")


class _Html(str):
    """Text that is markup already."""


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), numeric: Collection[int] = ()) -> str:
    body = "".join(_row(row, "td", numeric) for row in rows)
    return f'<div class="scroll"><table>{_row(head, "th", numeric) if head else ""}{body}</table></div>' if body else ""


def _row(cells: Sequence[str], tag: str, numeric: Collection[int]) -> str:
    texts = [cell if isinstance(cell, _Html) else escape(cell) for cell in cells]
    kinds = [' class="number"' if column in numeric else "" for column in range(len(cells))]
    return "<tr>" + "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True)) + "</tr>\n"


def _figure(path: Path, captions: Mapping[str, str]) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    caption = escape(captions.get(path.stem, path.stem.replace("_", " ")))
    picture = f'<img src="data:image/{path.suffix[1:]};base64,{image}" alt="{caption}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>\n"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2e}"
