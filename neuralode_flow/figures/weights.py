"""The weights over depth and the singular values of the end-to-end map, at one training time after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..display import evenly
from . import style

MOST_ENTRIES = 6
MOST_FRAMES = 101


@dataclass(frozen=True, eq=False)
class Model:
    """One model in this figure.

    Attributes
    ----------
    label : str
    look : dict
        Colour and line of its curves.
    W : array (time, s, row, column) or (time, s, mode), or None
        Its weights, or their singular values.
    sigma : array (time, mode)
        Singular values of its end-to-end map.
    marker : str
    layers : int or None
        Of a network: their number. Its weights at the depth nodes are then those of the layer around each.
    """

    label: str
    look: dict[str, Any]
    W: np.ndarray | None
    sigma: np.ndarray
    marker: str = "o"
    layers: int | None = None


@style.house()
def weights(title: str, times: np.ndarray, s: np.ndarray, models: list[Model]) -> style.Movie:
    """Left: entries of W(t, s), those that vary most, over s. Right: singular values of z(t). The slider is over t.

    Parameters
    ----------
    title : str
    times : array (T,)
    s : array (N,)
        Depth nodes.
    models : list of Model
        The last with weights says which entries are shown.
    """
    figure, (left, right) = style.blank(title, panels=2)
    chosen = _chosen(_reference(models))
    drawn = [pair for model in models for pair in (*_profiles(left, s, model, chosen), _spectrum(right, model))]
    left.set_xlabel("depth $s$")
    left.set_ylabel("entries of $W(t, s)$" if isinstance(chosen[0], tuple) else "singular values of $W(t, s)$")
    left.set_xlim(0, 1)
    right.set_xlabel("number $a$ of the singular value")
    right.set_ylabel(r"$\sigma_a(z(t))$")
    right.set_xticks(np.arange(1, models[0].sigma.shape[1] + 1, max(1, models[0].sigma.shape[1] // 8)))
    for axes in (left, right):
        values = np.concatenate([values.ravel() for line, values in drawn if line.axes is axes])
        low, high = np.nanmin(values), np.nanmax(values)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-12, high + 0.05 * (high - low) + 1e-12)
    style.legend_below(figure, *(Line2D([], [], **model.look, label=model.label) for model in models), columns=6)

    shown = evenly(len(times), MOST_FRAMES)

    def frame(i: int) -> None:
        for line, values in drawn:
            line.set_ydata(values[shown[i]])

    some = "" if len(shown) == len(times) else f", {len(shown)} of {len(times)} outputs"
    return style.Movie(figure, frame, times[shown], f"training time $t${some}", film=False)


def _reference(models: list[Model]) -> np.ndarray:
    return [model.W for model in models if model.W is not None][-1]


def _chosen(W: np.ndarray) -> list[Any]:
    """The entries that vary most over depth and time; of singular values the largest."""
    if W.ndim == 3:
        return list(range(min(W.shape[-1], MOST_ENTRIES)))
    spread = np.nanmax(W, axis=(0, 1)) - np.nanmin(W, axis=(0, 1))
    return [divmod(int(k), W.shape[-1]) for k in np.argsort(-spread, axis=None)[:MOST_ENTRIES]]


def _profiles(axes: Axes, s: np.ndarray, model: Model, chosen: list[Any]) -> Iterator[tuple[Line2D, np.ndarray]]:
    if model.W is None:
        return
    edges, nodes = _steps(s, model.layers)
    for at in chosen:
        values = model.W[(..., *at)] if isinstance(at, tuple) else model.W[..., at]
        values = values[:, nodes]
        name = f"$W_{{{at[0] + 1}{at[1] + 1}}}$" if isinstance(at, tuple) else rf"$\sigma_{{{at + 1}}}(W)$"
        (line,) = axes.plot(edges, values[-1], **model.look)
        if edges is not s:
            line.set_drawstyle("steps-post")
        line.set_label(f"{name}, {model.label}")
        line.set_gid(model.label)
        yield line, values


def _steps(s: np.ndarray, layers: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The places of a profile, and the node of each: the edges k/L of the layers, if each of them has a node inside.

    Else, and without layers, the nodes themselves.
    """
    if layers is not None:
        at = np.minimum((s * layers).astype(int), layers - 1)
        owned, first = np.unique(at, return_index=True)
        if len(owned) == layers:
            return np.arange(layers + 1) / layers, np.append(first, first[-1])
    return s, np.arange(len(s))


def _spectrum(axes: Axes, model: Model) -> tuple[Line2D, np.ndarray]:
    number = np.arange(1, model.sigma.shape[1] + 1)
    (line,) = axes.plot(number, model.sigma[-1], **model.look, marker=model.marker)
    line.set_gid(model.label)
    return line, model.sigma


def singular_values(z: xr.DataArray | np.ndarray) -> np.ndarray:
    """Singular values of `(T, d, d)`, `(T, d)`, decreasing; NaN at the times where z is not finite."""
    z = np.asarray(z)
    whole = np.isfinite(z).all(axis=(-2, -1))
    sigma = np.full(z.shape[:-1], np.nan)
    sigma[whole] = np.linalg.svd(z[whole], compute_uv=False)
    return sigma
