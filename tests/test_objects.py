"""Objects that speak: what they say in one line, in a notebook, as a dataset, a picture and a film."""

import copy
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import neuralode_flow as nf
from neuralode_flow.app.terminal import show_member
from neuralode_flow.finding import Check, ErrorTable, Finding
from neuralode_flow.orders import Order
from neuralode_flow.registry import Registry

TARGET = torch.tensor([[1.5, 0.2], [-0.3, 0.8]], dtype=torch.float64)
THREE = torch.stack((TARGET, TARGET + 0.1, TARGET.mT.contiguous()))
SAMPLES = torch.arange(12, dtype=torch.float64).reshape(6, 2).sin()
GRID = nf.DepthGrid.gauss(2, 6)


def product(theta):
    return theta[..., 0] * theta[..., 1]


def balance(theta):
    return (theta[..., :1] ** 2 - theta[..., 1:] ** 2) / 2


class Scaled:
    """A rule of the user's with a number and a tensor."""

    order, quadratic_law = 1, False

    def __init__(self, factor):
        self.factor, self.shift = factor, torch.zeros(1)

    def layer(self, A):
        return torch.eye(A.shape[-1]) + self.factor * A + self.shift, A


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_the_layers_of_a_copied_network_keep_their_name(again, monkeypatch):
    """It was that of the class: "Cayley layers" of a copy of one with "cayley layers"."""
    for name, rule in (("once", Scaled(1.0)), ("twice", Scaled(2.0)), ("thrice", Scaled(3.0))):
        monkeypatch.setitem(nf.LAYERS._entries, name, rule)
    for name in nf.LAYERS:
        flow = nf.FiniteFlow(4, nf.Quadratic(TARGET), name)
        assert f"4 {name} layers" in repr(flow)
        assert repr(again(flow)) == repr(flow)
    assert "4 Scaled layers" in repr(nf.FiniteFlow(4, nf.Quadratic(TARGET), Scaled(4.0)))


SAID = {
    "ContinuousFlow(d=2, 2×6 nodes, Quadratic)": lambda: nf.ContinuousFlow(GRID, nf.Quadratic(TARGET)),
    "ContinuousFlow(d=2, 2×6 nodes, OdeintDepth, Quadratic, 3 members)": lambda: nf.ContinuousFlow(
        GRID, nf.Quadratic(THREE), "torchdiffeq"
    ),
    "ContinuousFlow(2×6 nodes, Custom)": lambda: nf.ContinuousFlow(GRID, nf.Custom(product)),
    "FiniteFlow(d=2, 16 euler layers, Regression)": lambda: nf.FiniteFlow(16, nf.Regression(SAMPLES, SAMPLES)),
    "FiniteFlow(d=2, 1 exp layer, left nodes, Quadratic)": lambda: nf.FiniteFlow(
        1, nf.Quadratic(TARGET), "exp", "left"
    ),
    "IntrinsicFlow(d=2, LogMean, Quadratic)": lambda: nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean()),
    "IntrinsicFlow(d=2, TwoLayer(shift=0.5), Quadratic, 3×1 members)": lambda: nf.IntrinsicFlow(
        nf.Quadratic(THREE[:, None]), nf.TwoLayer(0.5)
    ),
    "FactorizationFlow(z a number, phi=product, laws=balance, Quadratic, 2 members)": lambda: nf.FactorizationFlow(
        product, nf.Quadratic(TARGET[0], axes=0), balance
    ),
    "DepthGrid(2×6 nodes)": lambda: GRID,
    "DepthGrid(1×4 nodes, float32)": lambda: nf.DepthGrid.gauss(1, 4, dtype=torch.float32),
    "Collocation(2×6 nodes)": lambda: nf.Collocation(GRID),
    "Quadratic(z of 2×3)": lambda: nf.Quadratic(torch.ones(2, 3, dtype=torch.float64)),
    "Completion(d=2, 3 of 4 entries, 3 members)": lambda: nf.Completion(THREE, TARGET > 0),
    "Completion(d=2, 9 of 12 entries, 3 members)": lambda: nf.Completion(TARGET, (TARGET > 0).expand(3, 2, 2)),
    "LeastSquares(z of 2, 6 observations)": lambda: nf.LeastSquares(SAMPLES, SAMPLES[:, 0]),
    "Separable(d=2, 6 samples, rho=balance)": lambda: nf.Separable(balance, SAMPLES, SAMPLES),
    "Custom(d=2, product)": lambda: nf.Custom(product, 2),
    "LogMean()": nf.LogMean,
    "TwoLayer()": nf.TwoLayer,
    "DividedDifference(3 layers, time_scale=0.5)": lambda: nf.DividedDifference(TARGET.new_zeros(3), 0.5),
    "Problem('linnerud', d=3, Regression)": lambda: nf.PROBLEMS["linnerud"](),
    "Registry(depth solver: collocation, torchdiffeq)": lambda: nf.DEPTH_SOLVERS,
    "Check(drift 2e-12, bound 1e-09: holds)": lambda: Check("drift", 2e-12, 1e-9),
    "Check(gain 0.5, at least 2: fails)": lambda: Check("gain", 0.5, 2.0, least=True),
    "Check(size 0.5)": lambda: Check("size", 0.5),
    "Check(order –, bound 0.1: fails)": lambda: Check("order", float("nan"), 0.1),
    "Order(exp: 2.00 ± 0.01 over 5 depths, expected 2)": lambda: Order(2.0, 0.01, 5, rule="exp", expected=2.0),
    "Finding(square, ran whole, 1 of 2 checks hold, 1 orders)": lambda: Finding(
        study="square",
        problem="",
        status="ok",
        verdict="",
        checks=(Check("a", 1.0, 2.0), Check("b", float("nan"), 2.0), Check("c", 1.0)),
        orders=(Order(2.0, 0.01, 5),),
    ),
    "Report(n=2, rank 1, 1 law, A recoverable: True, B metric: True)": lambda: nf.intrinsic.report(
        product, TARGET[0] + 0.1
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_repr_is_one_line(said):
    assert repr(SAID[said]()) == said


@pytest.mark.parametrize(
    ("verdict", "told"),
    [("It  closes.\nThe rest is for the report.", "It closes"), ("word " * 60, "word " * 39 + "word…")],
)
def test_a_member_without_checks_tells_the_first_sentence_of_its_verdict(verdict, told, tmp_path, capsys):
    show_member("3", Finding(study="square", problem="", status="ok", verdict=verdict), tmp_path, 1.0)
    assert capsys.readouterr().out == f"3: ok; {told}; 1.0 s\n"


def run(members=False, **options):
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(THREE if members else TARGET))
    start = torch.zeros(3, len(GRID), 2, 2, dtype=torch.float64)
    return nf.integrate(flow, start if members else start[0], torch.linspace(0, 2, 9), "DOP853", **options)


def theta_run(members=False, **options):
    """A z that is a number."""
    theta = torch.tensor([[0.5, 0.1], [0.2, 0.4], [0.3, 0.3], [1.0, 0.2]], dtype=torch.float64)
    flow = nf.FactorizationFlow(product, nf.Quadratic(theta.new_tensor(2.0), axes=0), balance)
    return nf.integrate(flow, theta if members else theta[0], torch.linspace(0, 1, 5), **options)


def test_a_trajectory_says_how_it_went():
    path = run(estimate=True, rtol=1e-10)
    first, last, error = float(path.loss[0]), float(path.loss[-1]), float(path.error.max())
    assert repr(path) == f"Trajectory(9 times, ok, loss {first:.4g} → {last:.4g}, error {error:.2g})"
    assert 0 < error < 1e-8


def test_a_trajectory_that_was_not_measured_claims_no_error_and_an_event_is_told_in_short():
    path = run(stop={"loss": 0.1})
    assert path.ending == "loss"
    assert re.fullmatch(r"Trajectory\(\d+ times, .{1,40}, loss [\d.]+ → 0\.1\)", repr(path))
    long = repr(replace(path, status="word " * 100))
    assert "…" in long
    assert len(long) < 120


def test_members_are_counted_and_their_losses_span():
    path = run(members=True)
    low, high = path.loss[0].min(), path.loss[0].max()
    assert f"9 times, 3 members, ok, loss {low:.4g} … {high:.4g} → " in repr(path)


def test_an_error_that_is_known_for_a_part_of_the_run_says_up_to_when():
    path = run(estimate=True)
    path.time_error[5:] = torch.nan
    assert repr(path).endswith(f"error {float(path.error[:5].max()):.2g} up to t = 1)")
    path.time_error[:] = torch.nan
    assert "error" not in repr(path)


class Cells(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.tags, self.styles = [], set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.styles += "".join(f";{value};" for _, value in attrs)
        if tag in ("td", "th"):
            self.found.append("")

    def handle_data(self, data):
        self.found[-1] += data


def test_tables_of_notebooks_escape_everything_and_take_the_colours_of_the_page():
    evil = "<script>alert('&')</script>"
    kinds = Registry("kind")
    kinds.register(evil)(type("Kind", (), {"__doc__": f"{evil} first.\n\nSecond."}))
    finding = Finding(study=evil, problem=evil, status=evil, verdict=evil, checks=(Check(evil, 1.0, 2.0),))
    for shown in (kinds, finding, replace(run(), status=evil), nf.intrinsic.report(product, TARGET[0] + 0.1)):
        cells = Cells(shown._repr_html_())
        assert cells.tags == {"table", "tr", "td", "th"}
        assert "#" not in cells.styles
        colours = re.findall(r"(?:^|;) *(?:color|background): (\w+)", cells.styles)
        assert set(colours) == {"inherit", "none"}
        assert (evil in " ".join(cells.found)) != isinstance(shown, nf.intrinsic.Report)
    assert Cells(kinds._repr_html_()).found[1:] == [evil, f"{evil} first."]


@pytest.mark.parametrize("registry", ["LAYERS", "METHODS", "LOSSES", "PROBLEMS", "INITIALS", "SYSTEMS", "STUDIES"])
def test_a_registry_shows_every_name_with_a_sentence(registry):
    cells = Cells(getattr(nf, registry)._repr_html_()).found[1:]
    assert cells[::2] == list(getattr(nf, registry))
    assert all(len(sentence) > 4 and "partial" not in sentence for sentence in cells[1::2])
    assert nf.STUDIES["trajectory"].question in nf.STUDIES._repr_html_()


def test_the_table_of_a_trajectory_says_what_was_not_measured():
    assert "not measured" in run()._repr_html_()
    path = run(members=True, estimate=True)
    cells = Cells(path._repr_html_()).found[1:]
    said = dict(zip(cells[::2], cells[1::2], strict=True))
    assert said["members"] == "3 members"
    assert said["times"] == "9 from t = 0 to 2"
    assert said["error of z"] == f"{float(path.error.max()):.2g}"


@pytest.mark.parametrize("members", [False, True])
def test_a_dataset_comes_back_from_its_file_as_it_was(tmp_path, members):
    path = run(members, estimate=True, observe=lambda i, state: state.mean(-3))
    made = path.to_xarray()
    made.to_netcdf(tmp_path / "path.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "path.nc", engine="h5netcdf") as found:
        xr.testing.assert_identical(found.load(), made)
    leading = ("member_0",) if members else ()
    assert made.z.dims == ("time", *leading, "row", "column")
    assert made.singular_values.dims == ("time", *leading, "mode")
    assert made.time.attrs == {"long_name": "training time t", "units": "flow time"}
    assert all(made[name].attrs["long_name"] for name in made)
    for name in ("z", "loss", "drift", "depth_error", "time_error", "error", "observed"):
        np.testing.assert_array_equal(made[name], getattr(path, name))
    assert made.attrs["method"] == "DOP853"
    assert made.attrs["grid"] == "2×6"


def test_a_dataset_has_what_was_carried_and_nothing_that_was_not_measured():
    flow = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())
    made = nf.integrate(flow, torch.eye(2, dtype=torch.float64), [0.0, 1.0]).to_xarray()
    assert made.log_sigma.dims == ("time", "mode")
    np.testing.assert_allclose(np.exp(made.log_sigma), made.singular_values, rtol=1e-12)
    assert not {"error", "time_error", "observed"} & set(made)


def test_what_is_not_observed_between_two_outputs_is_nan():
    path = run(stop={"time": 1.1}, observe=lambda i, state: state[0])
    observed = path.to_xarray().observed
    assert len(observed) == len(path.times) == len(path.observed) + 1
    assert bool(np.isnan(observed[-1]).all())
    assert not bool(np.isnan(observed[:-1]).any())


@pytest.mark.parametrize("members", [False, True])
def test_a_z_that_is_no_matrix_has_its_own_axes(members):
    made = theta_run(members).to_xarray()
    assert made.z.dims == (("time", "member_0") if members else ("time",))
    assert "singular_values" not in made


def test_the_plot_has_the_curves_of_the_data_and_the_error_where_it_was_measured(tmp_path):
    path = run(estimate=True)
    figure = path.plot()
    modes, loss, error = figure.axes
    np.testing.assert_array_equal(modes.lines[1].get_ydata(), path.to_xarray().singular_values[:, 1])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), path.loss)
    np.testing.assert_array_equal(error.lines[0].get_ydata(), path.time_error)
    assert error.get_yscale() == "log"
    assert len(run().plot().axes) == 2
    figure.savefig(tmp_path / "path.png")
    with Image.open(tmp_path / "path.png") as picture:
        assert picture.size[0] > 500


def test_the_plot_shows_members_and_entries():
    assert [len(axes.lines) for axes in run(members=True).plot().axes] == [6, 3]
    path = theta_run(members=True)
    entries, loss = path.plot().axes
    np.testing.assert_array_equal([line.get_ydata() for line in entries.lines], path.z.mT)
    assert "entries" in entries.get_ylabel()


def test_a_movie_is_saved_as_a_gif_of_all_times(tmp_path):
    path = run()
    movie = path.animate(tmp_path / "path.of.z.gif")
    assert [file.name for file in tmp_path.iterdir()] == ["path.of.z.gif"]
    with Image.open(tmp_path / "path.of.z.gif") as film:
        assert (film.format, film.n_frames) == ("GIF", movie.frames)
    assert movie.frames == len(path.times)
    movie.frame(4)
    np.testing.assert_array_equal(movie.figure.axes[0].images[0].get_array(), path.z[4])
    np.testing.assert_array_equal(movie.figure.axes[1].lines[0].get_ydata(), torch.linalg.svdvals(path.z[4]))


def test_a_movie_of_members_shows_the_first_and_says_so():
    path = theta_run(members=True)
    movie = path.animate()
    movie.frame(2)
    np.testing.assert_array_equal(movie.figure.axes[0].lines[0].get_ydata(), path.z[2, :1])
    assert "1 of 4 members" in movie.figure.get_suptitle()


def test_another_format_is_refused_by_a_sentence_and_a_missing_folder_too(tmp_path):
    path = run()
    with pytest.raises(ValueError, match=r"path must end in \.gif, .* got .*film\.mp4"):
        path.animate(tmp_path / "film.mp4")
    with pytest.raises(OSError, match=r"path=.*nowhere.*cannot be written"):
        path.animate(tmp_path / "nowhere" / "film.gif")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_known_is_not_said():
    assert str(Order(2.0, 0.01, 5)) == "2.00 ± 0.01 over 5 depths"
    assert str(Order(2.0, float("nan"), 5)) == "2.00 over 5 depths"


def test_numbers_of_a_finding_do_not_overrule_what_it_states():
    stated = {"study": "s", "problem": "p", "status": "the budget was used up", "verdict": "v"}
    numbers = {"status": "ok", "passed": True, "error": 0.1, "problem": "p", "more": 3}
    record = Finding(**stated, checks=(Check("c", 2.0, 1.0),), numbers=numbers).record()
    assert [record[name] for name in ("status", "passed", "error", "more")] == ["the budget was used up", False, 2.0, 3]
    assert [record[f"own_{name}"] for name in ("status", "passed", "error")] == ["ok", True, 0.1]
    assert "own_problem" not in record


def test_a_table_of_a_finding_has_an_error_for_each_depth():
    table = ErrorTable("Errors", [2, 4], {"euler": [0.1, 0.05], "exp": [0.1]})
    with pytest.raises(ValueError, match=r"errors of 'exp' in the table 'Errors' .* each of 2 depths, .* got 1"):
        Finding(study="s", problem="p", status="ok", verdict="v", tables=(table,)).attached(xr.Dataset())
