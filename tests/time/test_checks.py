"""Runs beside one that is measured: the same to the bit, without the law and the depth grid."""

import warnings

import pytest
import torch
from cases import positive_matrix, relaxed_profile

import neuralode_flow as nf
from neuralode_flow.studies.clock import Clock, Steps
from neuralode_flow.time.integrate import integrate

TIMES = torch.linspace(0.0, 1.0, 5)
LOSS = nf.Quadratic(positive_matrix(3, 50))
CONTINUOUS = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), LOSS)
FINITE = nf.FiniteFlow(6, LOSS, "cayley")


def start(flow, *seeds):
    states = [flow.sample(relaxed_profile(3, seed)[1]) for seed in seeds]
    return states[0] if len(states) == 1 else torch.stack(states)


class Unlawful(nf.FiniteFlow):
    """A flow whose law is not to be asked, nor told."""

    def law(self, state):
        raise AssertionError("the law was asked")


@pytest.mark.parametrize("flow", [CONTINUOUS, FINITE], ids=["continuous", "finite"])
@pytest.mark.parametrize("options", [{}, {"control": "member"}, {"dense": True}], ids=str)
def test_a_run_without_checks_has_the_same_numbers_but_for_what_they_measure(flow, options):
    begin = start(flow, 0, 1) if "control" in options else start(flow, 0)

    def run(**more):
        return nf.integrate(flow, begin, TIMES, "DOP853", observe=lambda i, state: state.sum(), **options, **more)

    measured, plain = run(), run(checks=False)
    for name in ("times", "z", "loss", "state", "observed"):
        assert torch.equal(getattr(plain, name), getattr(measured, name)), name
    assert (plain.status, plain.ending) == ("ok", "ok")
    for name in ("drift", "depth_error"):
        there, nothing = getattr(measured, name), getattr(plain, name)
        assert nothing.shape == there.shape
        assert bool(nothing.isnan().all())
        assert not bool(there.isnan().any())
    assert plain.stats["law_modes"] is None


def test_the_law_is_not_asked():
    flow = Unlawful(6, LOSS)
    assert nf.integrate(flow, start(flow, 0), TIMES, "DOP853", checks=False).status == "ok"
    with pytest.raises(AssertionError, match="the law was asked"):
        nf.integrate(flow, start(flow, 0), TIMES, "DOP853")


def test_the_status_says_nothing_of_a_grid_that_is_too_coarse():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 3), LOSS)
    state = torch.stack([relaxed_profile(3, 0)[1](float(s)) for s in flow.grid.nodes])
    assert nf.integrate(flow, state, TIMES, "DOP853").ending == "depth"
    assert nf.integrate(flow, state, TIMES, "DOP853", checks=False).ending == "ok"


def test_a_state_that_leaves_the_numbers_is_still_seen():
    flow = nf.FiniteFlow(6, nf.Quadratic(1e3 * positive_matrix(3, 0)))
    path = nf.integrate(flow, start(flow, 0), torch.arange(30.0), "euler", step=1.0, checks=False)
    assert path.ending == "not_finite"


@pytest.mark.parametrize("option", ["adapt", "estimate"])
def test_what_needs_the_depth_error_says_so(option):
    with pytest.raises(ValueError, match=rf"^{option}=True needs the error in depth, and checks=False measures none"):
        nf.integrate(CONTINUOUS, start(CONTINUOUS, 0), TIMES, "DOP853", checks=False, **{option: True})


def test_the_companion_that_measures_the_error_in_time_asks_no_law(monkeypatch):
    asked = []
    law = nf.FiniteFlow.law
    monkeypatch.setattr(nf.FiniteFlow, "law", lambda flow, state: asked.append(0) or law(flow, state))
    paths = []
    for estimate in (False, True):
        asked.clear()
        paths.append((nf.integrate(FINITE, start(FINITE, 0), TIMES, "DOP853", estimate=estimate), len(asked)))
    (alone, count), (estimated, with_companion) = paths
    assert count == with_companion == len(TIMES) + 1
    assert torch.equal(alone.drift, estimated.drift)
    assert float(estimated.time_error.max()) < 1e-6


def test_it_goes_on_from_a_checkpoint_of_its_kind_alone(tmp_path):
    begin, file = start(CONTINUOUS, 0), tmp_path / "run.npz"

    def run(times, **options):
        return nf.integrate(CONTINUOUS, begin, times, "DOP853", checkpoint=file, **options)

    run(TIMES[:3], checks=False)
    longer = run(TIMES, checks=False)
    assert bool(longer.drift.isnan().all())
    assert torch.equal(longer.z, nf.integrate(CONTINUOUS, begin, TIMES, "DOP853").z)
    with pytest.raises(ValueError, match="checks"):
        run(TIMES)


def test_tables_pictures_and_files_say_that_nothing_was_measured(tmp_path):
    path = nf.integrate(CONTINUOUS, start(CONTINUOUS, 0), TIMES, "DOP853", checks=False)
    assert path._repr_html_().count("not measured") == 3  # of the error in time, too
    path.save(tmp_path / "path.npz")
    assert bool(nf.load(tmp_path / "path.npz").depth_error.isnan().all())
    dataset = path.to_xarray()
    assert bool(dataset.drift.isnull().all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = path.plot()
    assert "in depth, estimated" not in [text.get_text() for axes in figure.axes for text in axes.texts]
    measured = nf.integrate(CONTINUOUS, start(CONTINUOUS, 0), TIMES, "DOP853")
    assert measured._repr_html_().count("not measured") == 1


def test_the_finer_clock_of_a_study_measures_what_is_not_known_yet():
    clock = Clock(times=TIMES, method="DOP853", rtol=1e-8, atol=1e-10)
    seen = []

    def carried_out(*given, **options):
        seen.append(options["checks"])
        return integrate(*given, **options)

    watched = Clock(times=TIMES, method="DOP853", rtol=1e-8, atol=1e-10, carried_out=carried_out)
    watched.run(CONTINUOUS, start(CONTINUOUS, 0), "wide")
    watched.tight().run(CONTINUOUS, start(CONTINUOUS, 0), "tight")
    assert seen == [True, False]
    wide, tight = (own.run(CONTINUOUS, start(CONTINUOUS, 0), "run") for own in (clock, clock.tight()))
    assert float(torch.linalg.matrix_norm(clock.time_error(wide.z, tight.z)).max()) < 1e-6
    steps = Steps(times=TIMES, rule="gd", rate=0.05)
    assert not bool(steps.run(FINITE, start(FINITE, 0), "steps", checks=False).drift.isnan().any())
