"""Pictures of one trajectory, of any flow: `Trajectory.plot` and `Trajectory.animate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..display import evenly
from . import style
from .weights import MOST_FRAMES

MOST_CURVES, MOST_MEMBERS = 12, 6


@style.house()
def plot(dataset: xr.Dataset) -> Figure:
    """Singular values of z or its entries, the loss, and the error where it was measured.

    Parameters
    ----------
    dataset : xarray.Dataset
        Of `Trajectory.to_xarray`.
    """
    times, measured = dataset["time"].values, "time_error" in dataset
    curves, name = _curves(dataset)
    members, chosen = curves.shape[1], evenly(curves.shape[1], MOST_MEMBERS)
    shown = evenly(curves.shape[2], MOST_CURVES)
    figure, panels = style.blank(_title(dataset, len(chosen), members), panels=3 if measured else 2)
    loss = dataset["loss"].values.reshape(len(times), -1)
    colours = style.fade(len(chosen)) if members > 1 else [style.BLUE]
    for member, colour in zip(chosen, colours, strict=True):
        for i in shown:
            panels[0].plot(times, curves[:, member, i], color=colour)
        panels[1].plot(times, loss[:, member], color=colour)
    panels[0].set_ylabel(name if len(shown) == curves.shape[2] else f"{name}\n{len(shown)} of {curves.shape[2]}")
    panels[1].set_ylabel("loss $f(z(t))$")
    if measured:
        _errors(panels[2], dataset)
        style.legend_below(figure)
    for axes in panels:
        style.time_axis(axes, times)
    return figure


@style.house()
def movie(dataset: xr.Dataset, path: Path | None = None) -> style.Movie:
    """z at one time after the other, of the first member; saved as a GIF where a path is given.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    curves, name = _curves(dataset)
    matrix = "singular_values" in dataset
    figure, panels = style.blank(_title(dataset, 1, curves.shape[1]), panels=2 if matrix else 1)
    drawn = [_spectrum(panels[-1], curves[:, 0], name)]
    if matrix:
        z = dataset["z"].values
        drawn.append(_picture(panels[0], z.reshape(len(z), -1, *z.shape[-2:])[:, 0]))
    times = dataset["time"].values
    shown = evenly(len(times), MOST_FRAMES)
    clock = panels[-1].text(0.99, 0.97, "", transform=panels[-1].transAxes, ha="right", va="top")

    def frame(i: int) -> None:
        for draw in drawn:
            draw(int(shown[i]))
        clock.set_text(f"$t = {times[shown[i]]:.4g}$")

    frame(0)
    result = style.Movie(figure, frame, times[shown])
    if path is not None:
        try:
            style.save(result, path.with_suffix(""))
        except OSError as error:
            raise type(error)(f"path={path} cannot be written: {error.strerror or error}") from error
    return result


def _curves(dataset: xr.Dataset) -> tuple[np.ndarray, str]:
    """What is drawn of z, (time, member, curve), and its name."""
    name = "singular_values" if "singular_values" in dataset else "z"
    values, members = dataset[name].values, int(np.prod(dataset["loss"].shape[1:]))
    label = r"singular values $\sigma_a(z(t))$" if name == "singular_values" else "entries of $z(t)$"
    return values.reshape(len(values), members, -1), label


def _title(dataset: xr.Dataset, shown: int, members: int) -> str:
    status = dataset.attrs["status"]
    ended = "the last time was reached" if status == "ok" else status
    some = f"{shown} of {members} members; " if shown < members else ""
    control = "rate" if "rate" in dataset.attrs else "rtol"
    return style.plain(f"{dataset.attrs['method']}, {control} {dataset.attrs[control]:g}; {some}{ended}")


def _errors(axes: Axes, dataset: xr.Dataset) -> None:
    times = dataset["time"].values
    measured = "rate" not in dataset.attrs and np.isfinite(dataset["time_error"].values).any()
    for name, label, colour in (
        ("time_error", "in time, measured", style.VERMILION),
        ("depth_error", "in depth" if measured else "in depth, estimated", style.BLUE),
    ):
        values = style.positive(dataset[name].values)
        if np.isfinite(values).any():
            axes.plot(times, values, color=colour, label=label)
            axes.set_yscale("log")
    axes.set_ylabel("error of $z$ (Frobenius norm)")


def _spectrum(axes: Axes, values: np.ndarray, name: str) -> Callable[[int], None]:
    """Singular values or entries over their number; what draws them at a time."""
    number = np.arange(1, values.shape[1] + 1)
    (line,) = axes.plot(number, values[0], color=style.BLUE, marker="o")
    low, high = np.nanmin(values), np.nanmax(values)
    axes.set_ylim(low - 0.05 * (high - low) - 1e-12, high + 0.05 * (high - low) + 1e-12)
    axes.set_xticks(number[:: max(1, len(number) // 8)])
    axes.set_xlabel("number $a$ of the singular value" if "sigma" in name else "number of the entry")
    axes.set_ylabel(name)
    return lambda i: line.set_ydata(values[i])


def _picture(axes: Axes, z: np.ndarray) -> Callable[[int], None]:
    """A matrix in colours, zero in white; what draws it at a time."""
    largest = float(np.nanmax(np.abs(z))) or 1.0
    image = axes.imshow(z[0], cmap="RdBu_r", vmin=-largest, vmax=largest)
    axes.grid(visible=False)
    axes.set_xlabel("column of $z$")
    axes.set_ylabel("row of $z$")
    for axis, size in ((axes.xaxis, z.shape[2]), (axes.yaxis, z.shape[1])):
        ticks = np.arange(0, size, max(1, size // 8))
        axis.set_ticks(ticks, [str(tick + 1) for tick in ticks])
    colours = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    colours.set_label("entries of $z(t)$")
    return lambda i: image.set_data(z[i])
