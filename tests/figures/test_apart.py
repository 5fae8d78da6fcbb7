"""Curves that a reader is to tell apart look apart, and belong to their own entry of a legend."""

import re

import numpy as np
import pytest
import torch
import xarray as xr
from small import SMALL, dataset

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES, describe
from neuralode_flow.figures.overlay import overlay
from neuralode_flow.figures.weights import Model, weights
from neuralode_flow.finding import MEMBERS
from neuralode_flow.studies import STUDIES


def looks(axes):
    """What a reader tells labelled curves by."""
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    return [(str(line.get_color()), str(line._dash_pattern), line.get_marker()) for line in named]


def grown(data, dim, count):
    """A dataset with `count` items along a dimension, none alike."""
    many = data.isel({dim: np.arange(count) % data.sizes[dim]})
    return many.assign_coords({dim: np.linspace(0.1, 2.7, count)})


@pytest.mark.parametrize("count", [2, 5, 6, 11])
@pytest.mark.parametrize(("study", "dim"), [("mixed_regime", "product"), ("strong_imbalance", "strength")])
def test_each_of_many_settings_has_a_colour_of_its_own(study, dim, count):
    (figure,) = FIGURES[study](grown(dataset(study), dim, count)).values()
    found = looks(figure.axes[0])
    assert len(found) >= count
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("count", [2, 7, 8, 28, 29, 60])
def test_each_of_many_runs_has_a_look_of_its_own(count):
    run = xr.Dataset({"loss": ("time", [2.0, 1.0])}, {"time": [0.0, 1.0]})
    found = looks(overlay({f"run {i}": run + 0 * i for i in range(count)})["loss"].axes[0])
    assert len(set(found)) == len(found) == count


def test_each_of_many_rules_has_a_look_of_its_own():
    data = dataset("convergence")
    many = data.isel(rule=np.arange(9) % data.sizes["rule"]).assign_coords(rule=[f"rule {i}" for i in range(9)])
    found = looks(FIGURES["convergence"](many)["profile"].axes[0])
    assert len(set(found)) == len(found) == 9


@pytest.mark.slow
def test_points_of_all_depths_are_seen():
    inputs, options = SMALL["curvature"]()
    figure = FIGURES["curvature"](STUDIES["curvature"].run(**inputs, **options | {"deep": [*range(3, 11)]}))["layers"]
    sizes = [line.get_markersize() for line in figure.axes[1].get_lines() if line.get_marker() == "o"]
    assert len(sizes) == 8
    assert min(sizes) >= 2
    assert sorted(sizes, reverse=True) == sizes
    assert len(set(sizes)) == 8


def test_curves_of_all_draws_belong_to_the_entry_of_their_own_panel():
    record = describe(FIGURES["delta_rewrite"](dataset("delta_rewrite"))["training"])
    left, right = (
        {record["legend"][i]["label"] for mark in panel["marks"] for i in mark["entries"]} for panel in record["panels"]
    )
    assert (len(left), len(right)) == (4, 2)
    assert not left & right


def test_bars_belong_to_the_entry_that_is_filled_as_they_are():
    data = dataset("leaves")
    record = describe(FIGURES["leaves"](data)["leaves"])
    fills = [entry["fill"] for entry in record["legend"]]
    assert len(set(fills)) == len(fills) >= 3
    for mark in record["panels"][0]["marks"]:
        (entry,) = mark["entries"]
        assert fills[entry] == mark["fill"]
        assert mark["width"] == 0  # the picture draws no edge


def test_what_has_no_panel_is_said():
    places = {"depth": [4, 16], "seed": [0, 1]}
    found = {f"error_{i}": (("seed", "depth"), [[1.0, 0.5], [2.0, 0.6 + i]]) for i in range(5)}
    numbers = {f"order_{i}": ("seed", [1.0, 2.0 + i]) for i in range(6)}
    figures = FIGURES[MEMBERS](xr.Dataset(found | numbers, places, {MEMBERS: 2, "problem": "one"}))
    assert figures["bands"].get_suptitle().splitlines()[-1] == "4 of 5 errors; results.nc has all"
    said = "4 of 6 numbers that differ between members; results.nc has all"
    assert figures["histograms"].get_suptitle().splitlines()[-1] == said


@pytest.mark.parametrize(("size", "said"), [(2, ""), (12, ""), (13, "\n12 of 13"), (64, "\n12 of 64")])
def test_singular_values_that_have_no_room_are_counted(size, said):
    data = dataset("trajectory").isel(row=[0] * size, column=[0] * size, mode=[0] * size).drop_dims("s")
    axes = FIGURES["trajectory"](data)["path"].axes[0]
    assert len(axes.get_lines()) == 2 * min(size, 12)
    assert axes.get_ylabel() == rf"singular values $\sigma_a(t)${said}"
    flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(size)), nf.LogMean())
    axes = nf.integrate(flow, torch.eye(size), [0.0, 0.1]).plot().axes[0]
    assert len(axes.get_lines()) == min(size, 12)
    assert axes.get_ylabel() == rf"singular values $\sigma_a(z(t))${said}"


def test_no_line_goes_over_a_place_where_no_member_has_a_number():
    losses = np.array([[1.0, 0.0, 0.2], [2.0, 0.0, 0.1]])
    data = xr.Dataset({"loss": (("seed", "time"), losses)}, {"time": [0.0, 1.0, 2.0]}, {MEMBERS: 2, "problem": "one"})
    (axes,) = FIGURES[MEMBERS](data)["losses"].axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.5, np.nan, 0.15000000000000002])


@pytest.mark.parametrize(("outputs", "said"), [(101, ""), (251, ", 101 of 251 outputs")])
def test_a_slider_says_how_many_of_many_outputs_it_has(outputs, said):
    times, rng = np.linspace(0, 5, outputs), np.random.default_rng(0)
    W, sigma = rng.normal(size=(outputs, 4, 2, 2)), rng.normal(size=(outputs, 2))
    movie = weights("", times, np.linspace(0.1, 0.9, 4), [Model("one", {"color": "#000000"}, W, sigma)])
    slider = describe(movie)["slider"]
    assert re.sub("<.*?>", "", slider["label"]) == f"training time t{said}"
    assert len(slider["values"]) == 101
    assert [slider["values"][i] for i in (0, -1)] == [0, 5]
