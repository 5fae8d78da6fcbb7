"""Figures of the convergence study: the errors on the edges of the square, and finite depths fading into the limit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..display import evenly
from . import style
from .base import FIGURES, Figures, FigureSet, Movie
from .weights import Model, singular_values, weights

COLOURS, MARKERS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION, style.BLACK), "os^Dv"
MOST_SINGULAR_VALUES = 12
CURVES = f" {style.CURVES}"
RMS = "root mean square over"


class Curve(NamedTuple):
    """One error against depth: `errors` (depth,), its measured order and spread (NaN where unknown), its look."""

    label: str
    errors: np.ndarray
    order: float
    spread: float
    colour: str
    marker: str
    dashes: str


@style.house()
def convergence(dataset: xr.Dataset) -> Figures:
    """The figures of a convergence study, drawn from its dataset alone.

    Parameters
    ----------
    dataset : xarray.Dataset
        What `studies.convergence.run` returns, or the same read back from results.nc. NaN and zero errors are left out.

    Returns
    -------
    dict of str to Figure or Movie
        "square" and "profile": errors against depth; "singular_values" and "loss": against training time; "weights":
        W(t, s) and the singular values of z at each time, where the dataset has weights.
    """
    figures: dict[str, Figure | Movie] = {
        "square": _square(dataset),
        "profile": _profile(dataset),
        "singular_values": _spectra(dataset),
        "loss": _loss(dataset),
    }
    return figures | ({"weights": _weights(dataset)} if "s" in dataset.coords else {})


# --- errors against depth -------------------------------------------------------------------------------------------


def _square(dataset: xr.Dataset) -> Figure:
    curves = [*_rule_curves(dataset, "error_z", "order"), *_edge_curves(dataset)]
    reference = float(dataset["error_reference"])
    figure, axes = _error_figure(
        dataset,
        curves,
        floor=float(dataset.attrs.get("floor", reference)),
        title=_title(dataset, f"Finite networks and their continuous limit{_members(dataset, RMS)}"),
        label=f"error of $z$ {style.BETTER}\n" + r"$\sup_t\ \|z_L(t) - z_\infty(t)\|_F$",
    )
    if reference > 0:
        label = f"nested solve – {style.limit(dataset)} ({reference:.0e})"
        axes.axhline(reference, color=style.BLACK, lw=1, ls=":", label=label)
    _legend(axes, "error, and its order in $1/L$")
    return figure


def _profile(dataset: xr.Dataset) -> Figure:
    figure, axes = _error_figure(
        dataset,
        list(_rule_curves(dataset, "error_profile", "order_profile")),
        # The grid holds W between its nodes less accurately than it holds z: this floor is another.
        floor=float(dataset.attrs.get("floor_profile", np.nan)),
        title=_title(dataset, f"Layers of finite networks and the continuous profile{_members(dataset, RMS)}"),
        label=f"error of $W$ {style.BETTER}\n" + r"$\sup_t\ \|W_L(t) - W(t)\|_{L^2[0,1]}$",
    )
    _legend(axes, "error, and its order in $1/L$")
    return figure


def _rule_curves(dataset: xr.Dataset, errors: str, order: str) -> Iterator[Curve]:
    rules = dataset["rule"].values.tolist()
    for rule, colour, marker in zip(rules, style.apart(COLOURS, len(rules)), cycle(MARKERS), strict=False):
        at = {"rule": rule}
        measured, spread = float(dataset[order].sel(at)), float(dataset[f"{order}_spread"].sel(at))
        label = _label(dataset, rule)
        yield Curve(label, dataset[errors].sel(at).values, measured, spread, colour, marker, "-")


def _edge_curves(dataset: xr.Dataset) -> Iterator[Curve]:
    closed = "other frames" if "rate" in dataset.attrs else "its intrinsic flow"
    edges = [
        ("Richardson $2z_{2L} - z_L$, Euler", "richardson", style.PURPLE, "P"),
        (f"{closed.removeprefix('its ')} of $L$ layers", "intrinsic_depth", style.SKY, "X"),
        (f"finite network – {closed}", "finite_square", style.GREY, "."),
    ]
    for label, name, colour, marker in edges:
        order = float(dataset.get(f"order_{name}", np.nan))
        yield Curve(label, dataset[f"error_{name}"].values, order, np.nan, colour, marker, "--")


def _error_figure(
    dataset: xr.Dataset, curves: list[Curve], floor: float, title: str, label: str
) -> tuple[Figure, Axes]:
    """Curves on logarithmic axes, over a shaded band where errors below `floor` (NaN: unknown) are not trusted."""
    depths = dataset["depth"].values
    figure, (axes,) = style.blank(title)
    axes.set_yscale("log")
    style.depth_axis(axes, depths.tolist())
    axes.set_ylabel(label)
    shown = [curve for curve in curves if np.isfinite(style.positive(curve.errors)).any()]
    for index, curve in enumerate(shown):
        axes.plot(
            depths,
            style.positive(curve.errors),
            curve.dashes,
            color=curve.colour,
            marker=curve.marker,
            **_size(index, curve),
            label=f"{curve.label}{_order_text(curve)}",
        )
    if not shown:
        axes.text(0.5, 0.5, "no error above zero to show", ha="center", transform=axes.transAxes)
    _triangles(axes, depths, shown, floor)
    style.floor(axes, floor)
    return figure, axes


def _size(index: int, curve: Curve) -> dict[str, Any]:
    """Rules are drawn thinner one after the other, so that those with equal errors do not hide each other."""
    if curve.dashes != "-":
        return {"lw": 1.1, "markersize": 4.5}
    return {"lw": max(2.2 - 0.4 * index, 1.0), "markersize": max(6.5 - index, 3.5)}


def _order_text(curve: Curve) -> str:
    if not np.isfinite(curve.order):
        return ""
    if not np.isfinite(curve.spread):
        return f": {curve.order:.2f}"
    digits = int(np.clip(np.ceil(-np.log10(max(curve.spread, 1e-3))), 1, 3))  # as many as the spread leaves
    return f": {curve.order:.{digits}f} ± {curve.spread:.{digits}f}"


def _triangles(axes: Axes, depths: np.ndarray, curves: list[Curve], floor: float) -> None:
    """One triangle for each round slope that was measured, under all the curves that have it."""
    for slope, text in ((0.5, "½"), (1.0, "1"), (2.0, "2")):
        parts = []
        for curve in curves:
            trusted = np.flatnonzero(style.positive(curve.errors) > (floor if floor > 0 else 0.0))
            if abs(curve.order - slope) < 0.25 and len(trusted) >= 3:
                parts.append((depths[trusted].astype(float), curve.errors[trusted]))
        if parts:
            lowest = min(float(errors[-1] * L[-1] ** slope) for L, errors in parts)
            deepest = max((L for L, _ in parts), key=lambda L: L[-1])
            style.triangle(axes, (deepest[-3], deepest[-1]), lowest / 2.5, -slope, text)


# --- training time --------------------------------------------------------------------------------------------------


def _spectra(dataset: xr.Dataset) -> Figure:
    rule = _shown_rule(dataset)
    finite = dataset["z_finite"].sel(rule=rule).isel(member=0).transpose("depth", "time", "row", "column").values
    limits = [dataset[name].values for name in ("z_continuous", "z_intrinsic")]
    d = limits[0].shape[-1]
    ranks = evenly(d, MOST_SINGULAR_VALUES)
    what = "Singular values of $z$" if len(ranks) == d else f"{len(ranks)} of the {d} singular values of $z$"
    which = _members(dataset, "first of")
    figure, (axes,) = style.blank(_title(dataset, f"{what}: {_label(dataset, rule)} networks{which}"))
    times = dataset["time"].values
    _fading(axes, dataset, [singular_values(z)[:, ranks] for z in finite])
    _lines(axes, times, singular_values(limits[0])[:, ranks], "continuous depth", color=style.ORANGE, lw=2.6)
    dashed = {"color": style.BLACK, "lw": 1.1, "ls": (0, (4, 2))}
    _lines(axes, times, singular_values(limits[1])[:, ranks], style.limit(dataset), **dashed)
    axes.set_xlabel("training time $t$")
    axes.set_ylabel(r"singular values $\sigma_a(t)$")
    _legend(axes)
    return figure


def _loss(dataset: xr.Dataset) -> Figure:
    rule = _shown_rule(dataset)
    finite = dataset["loss_finite"].sel(rule=rule).mean("member").transpose("depth", "time").values
    limit, times = dataset["loss_continuous"].values, dataset["time"].values
    which = _members(dataset, "mean over")
    title = _title(dataset, f"Loss along training: {_label(dataset, rule)} networks{which}")
    figure, (left, right) = style.blank(title, panels=2)
    look: dict[str, Any] = {"label": "continuous depth", "color": style.BLACK, "ls": (0, (4, 2))}
    _fading(left, dataset, list(finite))
    _lines(left, times, limit, **look)
    least = float(dataset.get("loss_infimum", np.nan))
    if np.isfinite(least):
        dotted: dict[str, Any] = {"label": f"infimum ({least:.3g})", "color": style.GREY, "ls": ":", "lw": 1.2}
        left.axhline(least, **dotted)
        right.plot([], [], **dotted)
    left.set_ylabel(r"loss $f(z(t))$")
    gaps = [style.positive(abs(loss - limit)) for loss in finite]
    _fading(right, dataset, gaps)
    right.set_ylabel(f"error of the loss {style.BETTER}\n" + r"$|f(z_L(t)) - f(z_\infty(t))|$")
    if np.isfinite(gaps).any():
        right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("training time $t$")
    right.plot([], [], **look)  # both panels share the legend beside the right one
    _legend(right)
    return figure


def _weights(dataset: xr.Dataset) -> Movie:
    rule = _shown_rule(dataset)
    depths = dataset["depth"].values.tolist()
    finite = dataset["z_finite"].sel(rule=rule).isel(member=0).transpose("depth", "time", "row", "column").values
    kept = dataset["W_finite"].transpose("depth", "time", "s", ...).values if "W_finite" in dataset else None
    models = [
        Model(
            f"$L = {depth}$",
            {"color": shade, "lw": 1},
            None if kept is None else kept[i],
            singular_values(finite[i]),
            layers=depth,
        )
        for i, (depth, shade) in enumerate(zip(depths, style.fade(len(depths)), strict=True))
    ]
    W = dataset["W" if "W" in dataset else "W_singular_values"].transpose("time", "s", ...).values
    limit = {"color": style.ORANGE, "lw": 2.0}
    models.append(Model("continuous depth", limit, W, singular_values(dataset["z_continuous"]), "s"))
    dashed = {"color": style.BLACK, "lw": 1.1, "ls": (0, (4, 2))}
    models.append(Model(style.limit(dataset), dashed, None, singular_values(dataset["z_intrinsic"]), "x"))
    title = _title(dataset, f"Weights and singular values: {_label(dataset, rule)} networks")
    return weights(title, dataset["time"].values, dataset["s"].values, models)


def _label(dataset: xr.Dataset, rule: str) -> str:
    """What a layer rule is called; in older results one that is not known here by its name."""
    if "rule_label" in dataset:
        return str(dataset["rule_label"].sel(rule=rule).item())
    from ..depth.rules import LAYERS, label  # with torch, which other pictures do not need

    return label(rule) if rule in LAYERS else style.plain(rule)


def _shown_rule(dataset: xr.Dataset) -> str:
    rules = dataset["rule"].values.tolist()
    return "euler" if "euler" in rules else rules[0]


def _fading(axes: Axes, dataset: xr.Dataset, series: list[np.ndarray]) -> None:
    """One colour for each depth, light to dark; `series` holds `(T,)` or `(T, lines)` for each depth."""
    depths = dataset["depth"].values.tolist()
    for depth, values, colour in zip(depths, series, style.fade(len(depths)), strict=True):
        _lines(axes, dataset["time"].values, values, f"$L = {depth}$", color=colour, lw=1)


def _lines(axes: Axes, times: np.ndarray, values: np.ndarray, label: str, **look: Any) -> None:
    """All columns of `values` in one look, with one entry in the legend."""
    first, *rest = style.smooth(axes, times, values, **look)
    first.set_label(label)
    for line in rest:
        line.set_label("_")


def _legend(axes: Axes, title: str | None = None) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, alignment="left", title=title)


def _title(dataset: xr.Dataset, what: str) -> str:
    problem = style.problem(dataset)
    return f"{what}\n{problem}" if problem else what


def _members(dataset: xr.Dataset, how: str) -> str:
    """How an ensemble is shown; nothing where there is one network of each kind."""
    members = dataset.sizes["member"]
    return f", {how} {members} members" if members > 1 else ""


FIGURES.register("convergence")(
    FigureSet(
        convergence,
        {
            "square": "Largest distance over training time between the end-to-end maps of L layers and of the "
            "limit, for each layer rule; dashed: Richardson extrapolation and the other edges of the "
            "square. Errors in the shaded band are those of the solver.",
            "profile": "Largest distance over training time between the layers W_k and the continuous profile W(t, "
            "s_k), in L² over depth.",
            "singular_values": "Singular values of z along training: networks from few layers (pale) to many (strong), "
            "the continuous model (orange) and what z₀ decides in the limit (dashed)." + CURVES,
            "weights": "At one training time: entries of the weights W(t, s) over depth, and the singular values of z. "
            "Layers are steps of width 1/L, as far as the depth nodes tell them apart.",
            "loss": "Left: the loss along training; dotted: its infimum over det z > 0, where it is known. Right: its "
            "distance from the loss of the continuous model." + CURVES,
        },
    )
)
