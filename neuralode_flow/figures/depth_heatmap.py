"""The heat map of weights of L layers against the limit along gradient descent."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet


@style.house()
def depth_heatmap(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone."""
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    distance = dataset["distance"].values[:, 1:]
    depths, steps = dataset["depth"].values, dataset["iteration"].values[1:]
    image = left.pcolormesh(steps, np.arange(len(depths)), np.log10(distance), cmap="viridis", shading="nearest")
    left.grid(False)
    left.set_yticks(np.arange(len(depths)), [str(depth) for depth in depths])
    left.set_xlabel("iteration")
    left.set_ylabel("layers $L$")
    figure.colorbar(image, ax=left, label=r"$\log_{10}$ of the error of $W$")
    shown = sorted({1, max(1, len(steps) // 2), len(steps)})
    for step, shade in zip(shown, style.fade(len(shown)), strict=True):
        right.plot(depths, distance[:, step - 1], "o-", color=shade, label=f"iteration {step}")
    right.set_yscale("log")
    style.order_triangle(right, depths, distance.T, -1.0, "1")
    style.floor(right, float(dataset["error_grid"]))
    style.depth_axis(right, depths.tolist())
    right.set_ylabel(f"error of $W$ {style.BETTER}\n" + r"$\|W^L - W\|_{L^2}$")
    style.legend_below(figure)
    return {"heatmap": figure}


FIGURES.register("depth_heatmap")(
    FigureSet(
        depth_heatmap,
        {
            "heatmap": "Distance of the weights of L layers from the continuous model, by depth and iteration.",
        },
    )
)
