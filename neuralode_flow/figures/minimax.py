"""Figures of mean-field networks that descend and ascend in a saddle problem."""

from __future__ import annotations

from itertools import cycle

import xarray as xr
from matplotlib.figure import Figure

from . import style
from .base import FIGURES, FigureSet

_EQUATIONS = {"instruments": (style.BLUE, "instruments"), "policy": (style.VERMILION, "policy evaluation")}
_PENALTIES = (style.GREEN, style.PURPLE, style.ORANGE, style.SKY, style.BLACK)  # and again from the first
_LAWS = {"symmetric": "o-", "skew": "s--"}


@style.house()
def minimax(dataset: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, drawn from its dataset alone.

    Returns
    -------
    dict of str to Figure
        "scale": the limit of large α; "average": running averages up to T; "particles": the limits of many particles
        and of small steps.
    """
    return {"scale": _scale(dataset), "average": _average(dataset), "particles": _particles(dataset)}


def _scale(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    alphas = dataset["alpha"].values
    for equation, (colour, label) in _EQUATIONS.items():
        for law, look in _LAWS.items():
            one = dataset.sel(equation=equation, law=law)
            left.plot(alphas, one["moved"].sel(function="f").values, look, color=colour, label=f"{label}, {law} start")
            right.plot(alphas, one["distance"].values, look, color=colour)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(r"scale $\alpha$")
    left.set_ylabel(r"how far the parameters of $f$ move")
    right.set_ylabel(f"distance from the linear limit {style.BETTER}")
    style.legend_below(figure, columns=2)
    return figure


def _average(dataset: xr.Dataset) -> Figure:
    figure, panels = style.blank(style.problem(dataset), panels=2)
    horizons, scales = dataset["horizon"].values, dataset["scale"].values
    for axes, (equation, (_, label)) in zip(panels, _EQUATIONS.items(), strict=True):
        one = dataset.sel(equation=equation)
        for scale, colour in zip(scales, style.fade(len(scales)), strict=True):
            plain = one["dual"].isel(penalty=0).sel(scale=scale).values
            axes.plot(horizons, plain, "o-", color=colour, label=rf"$E g^2$, $\alpha$ = {scale}")
        for penalty, paint in zip(one["penalty"].values[1:], cycle(_PENALTIES), strict=False):
            last = one["residual"].sel(penalty=penalty).isel(scale=-1).values
            axes.plot(horizons, last, color=paint, label=rf"residual, $\lambda$ = {penalty:g}, $\alpha$ = ∞")
            axes.axhline(float(one["floor"].sel(penalty=penalty)), color=paint, ls=(0, (3, 1.5)), lw=0.8)
        bound = float(dataset["half_square"]) / horizons
        axes.plot(horizons, bound, color=style.BLACK, lw=0.8, label=r"$\frac{1}{2}\Vert f_*\Vert^2/T$")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"$T$, {label}")
        axes.set_ylabel("running average")
    handles, labels = panels[0].get_legend_handles_labels()
    style.legend_below(figure, *handles, columns=3)
    return figure


def _particles(dataset: xr.Dataset) -> Figure:
    figure, (left, right) = style.blank(style.problem(dataset), panels=2)
    for equation, (colour, label) in _EQUATIONS.items():
        one = dataset.sel(equation=equation)
        for axes, over, named, other in (
            (left, "width", "width", "coarse"),
            (right, "count", "step", "exact"),
        ):
            at, values = one[over].values, one[f"{named}_distance"].values
            error = values * one[f"{named}_noise"].values
            axes.errorbar(at, values, error, fmt="o-", capsize=2, color=colour, label=label if axes is left else None)
            axes.plot(at, one[f"{other}_distance"].values, "s--", color=colour, lw=0.9)
    left.plot([], [], "s--", color=style.GREY, label="left: from too coarse a quadrature; right: with expectations")
    for axes, over, what, of in (
        (left, "width", "particles $N$", "all particles"),
        (right, "count", "steps", "the flow"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(dataset[over].values, [f"{one:g}" for one in dataset[over].values])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(what)
        axes.set_ylabel(f"distance from {of} {style.BETTER}")
    style.legend_below(figure, columns=3)
    return figure


FIGURES.register("minimax")(
    FigureSet(
        minimax,
        {
            "scale": "Left: how far the parameters of f move, which is of order 1 in 1/α. Right: the distance of both "
            "functions from the limit α → ∞, a linear equation: of order 2 from a start that is symmetric, of order 1 "
            "from another one.",
            "average": "Running averages over [0, T]. Without a penalty that of E g² stays below ½‖f*‖²/T for large α "
            "(dark), and not for α = 1 (pale). With a penalty that of the residual E|E[Φ | Z]|² comes to a floor, that "
            "of the saddle point (dashed).",
            "particles": "Left: N random particles against all of them, and (dashed) against too coarse a quadrature. "
            "Right: stochastic steps against the flow, and (dashed) steps with expectations in place of samples. Bars "
            "are standard errors of the root mean square over draws.",
        },
    )
)
