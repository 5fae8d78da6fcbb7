"""Points of a sweep are what Hydra composes, without Hydra composing each; members start from a warm parent."""

import sys
from functools import partial
from pathlib import Path

import pytest
import xarray as xr
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import neuralode_flow as nf
from neuralode_flow.app import child, local
from neuralode_flow.app.points import Points, composed, own
from neuralode_flow.app.runfolder import computing, flat
from neuralode_flow.app.schema import Job, checked
from neuralode_flow.untrusted import parse_yaml

SMALL = ("-m", "study=trajectory", "problem=teacher", "problem.dimension=2", "time.samples=3", "depth.order=4")

POINTS = [
    ("++problem.dimension=3", "problem=teacher"),
    ("problem=teacher", "initial=detour", "++initial.seed=3", "++time.rtol=1e-8", "++out='a b'"),
    ("experiment=control",),
    ("experiment=diagonal", "++study.workers=1", "++time.rtol=1e-8"),
    ("system=null", "debug=quick", "++study.depths=[4,8]", "++study.depths=[2]"),
    ("study=trajectory", "time=descent", "++time.rule=heavy_ball", "++time.momentum=0.3", "++time.horizon=2"),
    ("++figures=none", "++verbosity=quiet", "++plugins=[]", "++keep_checkpoints=true", "++threads=null"),
    # What is left to Hydra: a mapping, a deleted field, a field that depends on another, a group in a folder.
    ("++problem={name:teacher,dimension:2}",),
    ("problem=teacher", "++problem.dimension=5", "~problem.dimension"),
    ("++out=x", "++time.horizon=${time.samples}"),
    ("+problem.bogus=1",),
    ("++problem.whiten.deep=1",),
]


@pytest.fixture(scope="module")
def found():
    """What is found once for all tests."""
    return {}


@pytest.fixture
def compared(command, found, monkeypatch):
    """Each point with what is made of it here, and by Hydra, within a sweep."""
    if found:
        return found

    def compare(config, _sweep, _members):
        points = Points(config)
        for point in POINTS:
            found[point] = outcome(partial(points, point)), outcome(lambda p=point: own(composed(config, p)))

    monkeypatch.setattr(local, "run_members", compare)
    command(*SMALL, "resume=sweep")
    return found


def outcome(make):
    """The job of a config, or what is said of it."""
    try:
        return checked(make())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_a_point_is_what_hydra_makes_of_it(compared):
    assert [*compared] == POINTS
    for point, (found, expected) in compared.items():
        assert found == expected, point


def test_a_member_is_known_by_what_its_saved_config_says(compared):
    """In the ledger, and where the ledger is lost and made from the configs of the members."""
    jobs = [job for job, _ in compared.values() if isinstance(job, Job)]
    assert len(jobs) > 5
    for job in jobs:
        saved = parse_yaml(job.to_yaml())
        assert job.plain == saved
        assert computing(flat(job.plain)) == computing(flat(saved))
        assert "time.extends" not in computing(flat(job.plain))


def test_hydra_composes_a_sweep_once_for_each_choice_of_groups(command, monkeypatch):
    composing, load = [], ConfigLoaderImpl.load_sweep_config

    def counted(self, config, overrides):
        composing.append(overrides)
        return load(self, config, overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    monkeypatch.setattr(local, "run_members", lambda *_: None)
    command("-m", "study=fake", "problem=teacher,reflection", "++problem.dimension=2", "problem.seed=range(20)")
    assert len(composing) == 2


def test_members_have_the_numbers_of_a_run_alone_and_figures_where_they_are_asked_for(command):
    assert command(*SMALL, "initial.seed=1,2", "resume=plain").status == 0
    assert command(*SMALL, "initial.seed=1", "resume=drawn", "figures=png").status == 0
    assert command(*SMALL[1:], "initial.seed=2", "resume=alone").status == 0
    plain = {path.name for path in Path("plain/1").iterdir()}
    assert plain == {"config.yaml", "results.nc", "summary.json"}
    assert sum(path.stat().st_size for path in Path("plain/1").iterdir()) < 100_000
    assert {"report.html", "figures"} <= {path.name for path in Path("drawn/0").iterdir()}
    assert {"report.html", "figures"} <= {path.name for path in Path("alone").iterdir()}
    xr.testing.assert_equal(nf.open("plain/1"), nf.open("alone"))


def test_what_hydras_launcher_does_besides_is_left_to_it(command, monkeypatch):
    """Variables of the environment that the config sets are there in a member."""
    monkeypatch.delenv("OF_A_MEMBER", raising=False)
    line = ("-m", "study=fake", "problem=teacher", "problem.dimension=2", "problem.seed=0,1")
    ran = []
    monkeypatch.setattr(local, "run_members", lambda *_: ran.append("here"))
    assert command(*line, "resume=a", "+hydra.job.env_set.OF_A_MEMBER=1").status == 0
    assert not ran
    command(*line, "resume=b")
    assert ran == ["here"]


def test_what_one_member_has_imported_the_next_need_not(tmp_path, monkeypatch):
    (tmp_path / "heavy_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = []

    def work():
        found.append("heavy_module" in sys.modules)
        (tmp_path / f"seen-{len(list(tmp_path.glob('seen-*')))}-{found[-1]}").touch()
        import heavy_module

        assert heavy_module

    try:
        for _ in range(3):
            child.run_member(work, tmp_path / "member", [])
    finally:
        sys.modules.pop("heavy_module", None)
    assert sorted(path.name for path in tmp_path.glob("seen-*")) == ["seen-0-False", "seen-1-True", "seen-2-True"]
