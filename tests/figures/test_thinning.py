"""Charts with fewer numbers: what is left out is said, and no peak is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from reported import write_page

from neuralode_flow.app.report import Drawn
from neuralode_flow.figures import Movie, describe, style, thinned


def curves(*ys: np.ndarray) -> Figure:
    figure, (axes,) = style.blank("Curves")
    for i, y in enumerate(ys):
        axes.plot(np.arange(len(y)) / 7, y, label=f"curve {i}" if i < 5 else None)
    style.legend_below(figure)
    return figure


def film(points: int, moments: int) -> Movie:
    figure, (axes,) = style.blank("Film")
    (line,) = axes.plot(np.linspace(0, 1, points), np.zeros(points))

    def frame(i: int) -> None:
        line.set_ydata(np.sin(np.linspace(0, 1, points) * i) / 3)

    return Movie(figure, frame, np.arange(moments) / 10, film=False)


def test_small_charts_stay_as_they_are() -> None:
    charts = [describe(curves(np.arange(50.0))), None, describe(film(20, 5))]
    assert thinned(charts, len(json.dumps(charts, separators=(",", ":")))) == charts


def test_a_long_curve_keeps_its_ends_its_peaks_and_its_gaps() -> None:
    y = np.sin(np.arange(10_001) / 500)
    y[3456], y[8000], y[5000:5003] = 40.0, -30.0, np.nan
    short = np.arange(10.0)
    (chart,) = thinned([describe(curves(y, short))], 10_000)
    assert chart is not None
    (panel,) = chart["panels"]
    long, kept = panel["marks"]
    assert kept["y"] == [*short]
    assert 150 < len(long["x"]) == len(long["y"]) < 600
    assert len(json.dumps(chart)) < 10_500
    assert {40.0, -30.0, None} < {*long["y"]}
    assert (long["x"][0], long["x"][-1]) == (0.0, pytest.approx(10_000 / 7, rel=1e-6))
    assert long["x"] == sorted(long["x"])
    expected = np.interp(long["x"], np.arange(len(y)) / 7, np.where(np.isnan(y), 0, y))
    given = [np.isfinite(np.array(v, dtype=float)) for v in long["y"]]
    assert np.allclose(np.array(long["y"], dtype=float)[given], expected[given], rtol=0.02, atol=0.02)
    assert "the ends and the extreme values" in chart["note"]


def test_a_film_leaves_moments_out_and_none_of_its_ends() -> None:
    whole = describe(film(100, 40))
    assert whole is not None
    (chart,) = thinned([whole], 12_000)
    assert chart is not None
    slider = chart["slider"]
    shown = len(slider["values"])
    assert 5 < shown == len(slider["changes"][0]["y"]) < 15
    assert [slider["values"][i] for i in (0, -1)] == [whole["slider"]["values"][i] for i in (0, -1)]
    for value, y in zip(slider["values"], slider["changes"][0]["y"], strict=True):
        assert y == whole["slider"]["changes"][0]["y"][whole["slider"]["values"].index(value)]
    assert chart["note"] == f"The slider has {shown} of 40 moments."
    assert thinned([whole], 2_000) == [None]  # which its picture stands for


@pytest.mark.slow
def test_a_page_stays_small_whatever_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = curves(*rng.standard_normal((3, 60_000)))
    drawn = {
        "noise": noise,
        "film": film(2_000, 300),
        "again": curves(*rng.standard_normal((100, 900))),
        "few": curves(np.arange(9.0)),
    }
    pictures = {}
    for name, figure in drawn.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(style.save(figure, tmp_path / name, ("png",))[0].read_bytes())
        pictures[name] = Drawn(figure, path)
    page = write_page(tmp_path, {"study": "convergence"}, xr.Dataset(), "", "", pictures).read_text(encoding="utf-8")
    assert len(page.encode()) < 2.5e6
    charts = [json.loads(part.partition("</script>")[0]) for part in page.split('<script type="application/json">')[1:]]
    assert len(charts) == 4
    assert ["note" in chart for chart in charts] == [True, True, True, False]
    assert page.count("the results have all.</figcaption>") == 2
