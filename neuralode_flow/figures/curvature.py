"""Figures of the blocks of the Hessian: by layer, by depth and gain, in training, and as layers become a flow."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_KINDS = {"linear": (style.BLACK, "o-"), "relu": (style.BLUE, "s-"), "tanh": (style.VERMILION, "^-")}
_CALLED = {"linear": "linear", "relu": "ReLU", "tanh": "tanh"}


@style.house()
def curvature(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "layers": blocks against those of the chain rule;
        "growth": how the first one grows with the number of layers;
        "training": blocks along gradient descent, and its stable step sizes;
        "depth": blocks of networks that become a flow.
    """
    return {
        "layers": _layers(dataset),
        "growth": _growth(dataset),
        "training": _training(dataset),
        "depth": _depth(dataset),
    }


def _layers(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    layer, cases = dataset["layer"].values, dataset["case"].values
    shades = style.fade(len(cases) - 2)
    for case, colour in zip(cases, (style.BLACK, style.GREEN, *shades), strict=True):
        kind, gain = case.split()
        one = dataset.sel(case=case).mean("draw")
        label = f"{_CALLED[kind]}, gain {gain}"
        left.plot(layer, one["exact"].values, "o-", color=colour, label=label)
        left.plot(layer, one["kept"].values, "--", color=colour, lw=0.9, gid=f"{label}\nchain rule")
    left.plot([], [], "--", color=style.GREY, lw=0.9, label="chain rule")
    left.set_yscale("log")
    left.set_xlabel("layer $k$")
    left.set_xticks(layer)
    left.set_ylabel(r"norm of the block, $\|H_k\|$")
    expected, power = dataset["power_expected"].values, dataset["power"].values
    for i, (L, colour) in enumerate(zip(dataset["deep"].values, style.fade(len(power)), strict=True)):
        size = 10 - 8 * i / max(4, len(power) - 1)  # they lie over one another
        right.plot(expected[i], power[i], "o", color=colour, ms=size, fillstyle="none", label=f"$L$ = {L}")
    ends = [np.nanmin(expected), np.nanmax(expected)]
    right.plot(ends, ends, color=style.BLACK, lw=0.6, gid="of no entry")
    right.set_xlabel("$2k-L$")
    right.set_ylabel("power of a small gain in dropped over kept")
    style.legend_below(figure, columns=4)
    return figure


def _growth(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    number = dataset["number"].values
    for kind in dataset["homogeneous"].values:
        (colour, look), one = _KINDS[kind], dataset.sel(homogeneous=kind)
        logs = one["log_norm"].values
        left.errorbar(
            number, logs.mean(-1), logs.std(-1), fmt=look[0], color=colour, capsize=2, label=f"{_CALLED[kind]}, norm"
        )
        style.smooth(left, number, one["log_edge"].values, color=colour, label=f"{_CALLED[kind]}, infinite width")
        left.plot(number, one["log_trace"].values.mean(-1), ":", color=colour, label=f"{_CALLED[kind]}, trace")
    left.set_xlabel("number of layers $L$")
    left.set_ylabel(r"$\log\|H_1\|$ at the critical gain")
    factors, real = dataset["gain_factor"].values, dataset["deep"].values
    for kind in dataset["kind"].values:
        colour, look = _KINDS[kind]
        slopes = np.polyfit(real, dataset["log_real"].sel(kind=kind).mean("draw").values.T, 1)[0]
        right.plot(factors, slopes, look, color=colour, label=f"{_CALLED[kind]}, digits")
    right.plot(factors, 2 * np.log(factors), color=style.GREY, lw=0.8, label="2 log of the factor")
    right.axhline(0.0, color=style.BLACK, lw=0.5)
    right.set_xlabel("gain over the critical one")
    right.set_ylabel(r"growth of $\log\|H_1\|$ per layer")
    style.legend_below(figure, columns=4)
    return figure


def _training(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    steps = dataset["mark"].values + 1
    left.plot(steps, dataset["sharpness"].values, "o-", color=style.VERMILION, label=r"$\lambda_{\max}$ of all")
    for layer, colour in zip(dataset["inner"].values, style.fade(dataset.sizes["inner"]), strict=True):
        left.plot(steps, dataset["trained"].sel(inner=layer).values, "o-", color=colour, label=f"$\\|H_{layer}\\|$")
    left.plot(steps, dataset["trained_dropped"].max("inner").values, "--", color=style.GREY, label="dropped over kept")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("1 + steps of gradient descent")
    left.set_ylabel("norm of the block")
    ratio = dataset["ratio"].values
    line = np.linspace(ratio[0], ratio[-1], 41)
    right.plot(line, 2 * line - 1, color=style.BLACK, lw=0.8, label=r"$|1-\eta\lambda|$")
    right.plot(ratio, dataset["factor"].values, "o", color=style.VERMILION, label="two runs apart")
    right.axhline(1.0, color=style.GREY, lw=0.6)
    right.set_xlabel(r"step size $\eta$ over $2/\lambda_{\max}$")
    right.set_ylabel("growth of a disturbance in a step")
    style.legend_below(figure, columns=4)
    return figure


def _depth(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    for kind, look in zip(dataset["limit"].values, ("-", "--"), strict=True):
        left.plot(dataset["s"].values, dataset["curve"].sel(limit=kind).values, look, color=style.BLACK, label=kind)
    depths = dataset["depth"].values
    palette = (style.BLUE, style.VERMILION, style.GREEN, style.PURPLE, style.ORANGE, style.SKY)
    rules = dataset["rule"].values
    for rule, colour in zip(rules, style.apart(palette, len(rules)), strict=True):
        one = dataset.sel(rule=rule)
        _blocks(left, one, int(depths[0]), colour, "o", f"{rule}, $L$ = {depths[0]}")
        _blocks(left, one, int(depths[-1]), colour, "x", f"{rule}, $L$ = {depths[-1]}")
        right.plot(depths, one["error"].values, "o-", color=colour, label=rule)
    left.set_xlabel("depth $s$")
    left.set_ylabel(r"$L^2\,\|\partial^2f/\partial W_k^2\|$")
    right.set_yscale("log")
    style.depth_axis(right, depths.tolist())
    style.order_triangle(right, depths, dataset["error"].values, -1.0, "order 1")
    right.set_ylabel(f"distance from the limit {style.BETTER}")
    style.legend_below(figure, columns=4)
    return figure


def _blocks(axes: Axes, one: xr.Dataset, depth: int, colour: str, mark: str, label: str) -> None:
    at = one.sel(depth=depth)
    axes.plot(at["at_depth"].values, at["block"].values, mark, color=colour, ms=4, label=label)


FIGURES.register("curvature")(
    FigureSet(
        curvature,
        {
            "layers": "Left: norms of the blocks of the Hessian, exact (solid) and by the chain rule (dashed), means "
            "over draws; for linear and ReLU networks they are one. Right: the power of a small gain in what the chain "
            "rule drops over what it keeps, tanh.",
            "growth": "Left: the first block at the critical gain, one sample, squared loss: its norm tends to that "
            "of infinite width, which grows like the number of layers, and its trace does not grow. "
            + style.CURVES
            + " Right: growth per layer on digits with "
            "cross-entropy; where outputs saturate it is less than twice the logarithm.",
            "training": "Left: norms of the blocks along gradient descent, tanh, squared loss. What the chain rule "
            "drops goes with the residuals. Right: by what the distance of two runs grows in a step, from where "
            "training ends.",
            "depth": "Left: blocks of linear networks of L layers and the limit of layers without and with a second "
            "derivative in W. Right: the largest relative distance from the limit of the rule's own kind.",
        },
    )
)
