"""Relaxed balanced starts share a curve, others do not, and criterion B tells them apart."""

from dataclasses import replace

import pytest
import torch
from small import SMALL, clock, failing

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES, save
from neuralode_flow.studies import STUDIES, initialisations
from neuralode_flow.studies.base import Clock

STUDY = STUDIES["initialisations"]


@pytest.fixture(scope="module")
def dataset():
    problem, solver = nf.PROBLEMS["teacher"](dimension=2, seed=1), nf.Collocation(nf.DepthGrid.gauss(4, 12))
    return STUDY.run(problem, solver, clock(1.0, 4), draws=3, depths=[2, 4, 100])


def test_relaxed_balanced_starts_fall_together_and_others_fan_out(dataset):
    spread = dataset.spread.max("time")
    assert float(spread.sel(family="one_shift").max()) < 1e-11
    assert float(spread.sel(family="any_shift", depth=0)) < 1e-11
    own = spread.sel(family="any_shift", depth=[2, 4, 100]).values
    assert own[0] > own[1] > own[2] > 1e-7
    assert float(spread.sel(family="detour").min()) > 0.02


def test_each_relaxed_balanced_start_follows_its_own_closed_flow(dataset):
    assert float(dataset.distance_closed.sel(family=["one_shift", "any_shift"]).max()) < 1e-9
    assert bool(dataset.distance_closed.sel(family="detour").isnull().all())


def test_criterion_b_tells_the_families_apart(dataset):
    verdicts = {name: set(dataset.metric.sel(family=name).values.ravel()) for name in dataset.family.values}
    assert (
        verdicts["one_shift"] == verdicts["any_shift"] == {"True", "not asked"}
    )  # 100 layers have too many parameters
    assert verdicts["detour"] == {"False", "not asked"}


def test_all_starts_have_one_z0(dataset):
    start = dataset.z.isel(time=0)
    assert float(abs(start - start.isel(family=0, depth=0, start=0)).max()) < 1e-12


@pytest.mark.parametrize("family", ["_profiles", "_networks"])
def test_starts_led_astray_from_another_z0_tell_nothing(family, monkeypatch):
    """Those that are not relaxed balanced would fan out whatever they did."""
    made = getattr(initialisations, family)

    def off(*arguments):
        families = made(*arguments)
        detour = families["detour"]
        return families | {"detour": replace(detour, states=1.01 * detour.states)}

    monkeypatch.setattr(initialisations, family, off)
    inputs, options = SMALL["initialisations"]()
    assert failing(STUDY.run(**inputs, **options)) == {"z of each start from z₀"}


def test_the_summary_and_the_figures_tell_it(dataset, tmp_path):
    summary = STUDY.summarise(dataset)
    assert summary["status"] == "ok"
    assert summary["error"] <= summary["bound"]
    assert "Criterion B says True and True of the relaxed balanced, False of the others" in summary["verdict"]
    figures = FIGURES["initialisations"](dataset)
    assert set(figures) == {"fan", "spread"}
    for name, figure in figures.items():
        assert all(path.stat().st_size > 1000 for path in save(figure, tmp_path / name))


@pytest.mark.parametrize(("options", "message"), [({"draws": 1}, "draws"), ({"depths": [1]}, "depths")])
def test_too_few_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message} must be at least 2"):
        STUDY.run(None, None, clock(), **options)


def test_one_number_has_one_curve():
    with pytest.raises(ValueError, match="z of one number, whose curve all starts share; take d = 2 or more"):
        nf.run("initialisations", {"problem": "teacher", "problem.dimension": 1, "debug": "quick"})


def test_a_wrong_number_of_laws_is_told(monkeypatch):
    from neuralode_flow.studies import conservation_laws

    monkeypatch.setattr(conservation_laws, "independent_laws", lambda widths: 1000)
    clock = Clock(times=torch.linspace(0, 1, 2), method="DOP853", rtol=1e-8, atol=1e-8)
    summary = STUDIES["conservation_laws"].summarise(conservation_laws.run(clock, networks=1))
    assert summary["error"] == 1
    assert not summary["passed"]
    assert "linear: 0 of 1" in summary["verdict"]
