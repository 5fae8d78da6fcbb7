"""Figures of one training flow: its singular values and its loss, with the measured errors of both."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..display import evenly
from . import style
from .base import FIGURES, Figures, FigureSet, Movie
from .weights import Model, singular_values, weights

_MOST_MODES = 12


@style.house()
def trajectory(dataset: xr.Dataset) -> Figures:
    """The figures of a trajectory study, drawn from its dataset alone; of several members the first is shown.

    Returns
    -------
    dict of str to Figure or Movie
        "path": singular values of z and the loss; "errors": what is known of the error of z; "weights": W(t, s) at each
        time, of a model with weights.
    """
    first = dataset.isel({name: 0 for name in dataset.dims if str(name).startswith("member_")})
    figures: dict[str, Figure | Movie] = {"path": _path(first), "errors": _errors(first)}
    return figures | ({"weights": _weights(first)} if "s" in first.coords else {})


def _path(dataset: xr.Dataset) -> Figure:
    sigma, times = dataset["singular_values"].transpose("time", "mode").values, dataset["time"].values
    limit = singular_values(dataset["z_limit"])
    shown = evenly(sigma.shape[1], _MOST_MODES)
    title = f"{style.problem(dataset)}\n{style.plain(dataset.attrs['how_it_ended'])}"
    figure, (left, right) = style.blank(title, panels=2)
    kernel = dataset.attrs.get("kernel", "logmean")
    model = style.plain(dataset.attrs["model"] + ("" if kernel == "logmean" else f", kernel {kernel}"))
    for i in shown:
        style.smooth(left, times, sigma[:, i], color=style.BLUE, label=model if i == shown[0] else None)
        label = style.limit(dataset) if i == shown[0] else None
        style.smooth(left, times, limit[:, i], color=style.BLACK, ls=(0, (4, 2)), lw=1.0, label=label)
    some = "" if len(shown) == sigma.shape[1] else f"\n{len(shown)} of {sigma.shape[1]}"
    left.set_ylabel(rf"singular values $\sigma_a(t)${some}")
    left.legend()
    held_out = dataset.get("loss_held_out")
    style.smooth(
        right, times, dataset["loss"].values, color=style.BLUE, label=None if held_out is None else "in training"
    )
    if held_out is not None:
        style.smooth(right, times, held_out.values, color=style.ORANGE, ls="--", label="rows held out")
        right.legend()
    right.set_ylabel(r"loss $f(z(t))$")
    for axes in (left, right):
        style.time_axis(axes, times)
    return figure


def _errors(dataset: xr.Dataset) -> Figure:
    measured = "time_error" in dataset and "rate" not in dataset.attrs
    curves = {
        "distance_from_limit": (f"distance from {style.limit(dataset)}", style.BLACK),
        "time_error": (
            "after one rounding of the start" if "rate" in dataset.attrs else "error in time, measured",
            style.VERMILION,
        ),
        "limit_error": (f"error in time of {style.limit(dataset)}", style.PURPLE),
        "depth_error": ("error in depth" if measured else "error in depth, estimated", style.BLUE),
        "drift": ("drift of the conservation law", style.GREEN),
    }
    times = dataset["time"].values
    figure, (axes,) = style.blank(f"{style.problem(dataset)}\nWhat is known of the error of $z$ (Frobenius norm)")
    for name, (label, colour) in curves.items():
        if name in dataset and np.isfinite(style.positive(dataset[name].values)).any():
            axes.plot(times, style.positive(dataset[name].values), color=colour, label=label)
            axes.set_yscale("log")
    axes.set_ylabel(f"error of $z$ {style.BETTER}")
    axes.legend()
    style.time_axis(axes, times)
    return figure


def _weights(dataset: xr.Dataset) -> Movie:
    W = dataset["W" if "W" in dataset else "W_singular_values"].transpose("time", "s", ...).values
    models = [
        Model(style.plain(dataset.attrs["model"]), {"color": style.BLUE}, W, singular_values(dataset["z"])),
        Model(
            style.limit(dataset),
            {"color": style.BLACK, "ls": (0, (4, 2)), "lw": 1.0},
            None,
            singular_values(dataset["z_limit"]),
            "x",
        ),
    ]
    title = f"{style.problem(dataset)}\nWeights and singular values"
    return weights(title, dataset["time"].values, dataset["s"].values, models)


FIGURES.register("trajectory")(
    FigureSet(
        trajectory,
        {
            "path": "Left: singular values of z along training, and those that z₀ decides in the limit. Right: the "
            "loss. " + style.CURVES,
            "errors": "What is known of the error of z along training.",
            "weights": "At one training time: entries of the weights W(t, s) over depth, and the singular values of z.",
        },
    )
)
