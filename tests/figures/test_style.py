"""Names that others have given are shown as they are, in pictures and in charts."""

import io

import pytest
import xarray as xr

import neuralode_flow as nf
from neuralode_flow.app.joined import joined
from neuralode_flow.figures import describe, save, style
from neuralode_flow.figures.overlay import overlay

NAMES = ("a$b", "$x$ costs $5", r"\$ \frac{", "_hidden", "x^2_{%", "<b>&", "\U0001f600", "two\nlines", "$" * 120)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_formula(name: str, tmp_path) -> None:
    runs = {name: xr.Dataset({"loss": ("time", [3.0, 2.0, 1.0])}, {"time": [0, 1, 2]}), "other": None}
    runs["other"] = runs[name]
    figure = overlay(runs)["loss"]
    figure.suptitle(style.blank(f"{style.plain(name)} and $z$")[0].get_suptitle())
    save(figure, tmp_path / "loss")
    record = describe(figure)
    shown = name.replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert record["legend"][0]["label"].strip() == shown
    assert record["title"].replace("\n", "") == f"{' ' * name.startswith('_')}{shown} and <i>z</i>".replace("\n", "")


def test_what_runs_mean_other_things_by_has_the_name_of_neither() -> None:
    """Such as a sweep over time=default,descent: in steps the distance is that from another run in the same steps."""
    short = {"time.horizon": 0.1, "time.samples": 2}
    flow = nf.run("trajectory", short).dataset
    steps = nf.run("trajectory", short, time="descent").dataset
    runs = {"flow": flow, "steps": steps}
    names = [str(run["distance_from_limit"].attrs["long_name"]) for run in runs.values()]
    assert names[0] != names[1]
    figures = overlay(runs)
    assert figures["distance_from_limit"].get_suptitle() == "Distance from limit"
    assert figures["loss"].get_suptitle() == "Loss"
    whole, apart = joined(runs, dict.fromkeys(runs, {}), dict.fromkeys(runs, "ok"))
    assert whole is not None
    assert not apart
    assert "long_name" not in whole["distance_from_limit"].attrs
    assert whole["loss"].attrs == flow["loss"].attrs


def test_users_settings_of_matplotlib_change_nothing() -> None:
    import matplotlib

    pictures = []
    for settings in ({}, {"font.size": 30, "lines.linewidth": 9, "axes.formatter.use_mathtext": True}):
        with matplotlib.rc_context(settings):
            run = xr.Dataset({"loss": ("time", [3e9, 2.0, 1.0])}, {"time": [0, 1, 2]})
            figure, picture = overlay({"one": run})["loss"], io.BytesIO()
            with style.house():
                figure.savefig(picture)
            pictures.append((picture.getvalue(), describe(figure)))
    assert pictures[0] == pictures[1]
