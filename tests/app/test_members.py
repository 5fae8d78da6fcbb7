"""Members of one run: each is the run with its seeds alone, however they are cut, interrupted and joined."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from cases import slow

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.app import ensemble
from neuralode_flow.app.collect import collected
from neuralode_flow.app.errors import BadInput
from neuralode_flow.app.report import _stated
from neuralode_flow.app.schema import checked
from neuralode_flow.app.statistics import _common, agreed
from neuralode_flow.figures import figure_set
from neuralode_flow.finding import Check, ErrorTable, Finding
from neuralode_flow.orders import Order
from neuralode_flow.problems import Problem
from neuralode_flow.studies import STUDIES, Clock, Study, square, together

COMMAND = [sys.executable, "-m", "neuralode_flow"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = {"study.depths": (4, 8, 16), "study.layers": ["euler"], "study.workers": 1, "time.horizon": 0.5}
TEACHER = {"problem": {"name": "teacher", "dimension": 2}, "debug": "quick"}
LINE = [
    "problem=teacher", "problem.dimension=2", "debug=quick", "study.depths=[4,8]", "study.layers=[euler]",
    "time.horizon=0.5", "figures=none",
]  # fmt: skip

# What rests on intrinsic flows, whose products are rounded in another way in a batch.
ROUNDED = {
    "z_intrinsic", "error_finite_square", "error_intrinsic_depth", "error_reference", "order_intrinsic_depth",
}  # fmt: skip


def unlike(one, other):
    """The variables in which datasets differ, but for the seconds that they took."""
    assert set(one.variables) == set(other.variables)
    return {
        str(name)
        for name in one.variables
        if name != "seconds" and not np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f")
    }


def test_a_member_is_the_run_with_both_seeds():
    found = nf.run("convergence", SMALL | {"members": 3}, **TEACHER)
    assert found.dataset.sizes["seed"] == found.dataset.attrs["members"] == 3
    assert found.dataset.seed.values.tolist() == [0, 1, 2]
    for seed in (0, 2):
        alone = nf.run("convergence", SMALL | {"problem.seed": seed, "initial.seed": seed}, **TEACHER).dataset
        member = found.dataset.isel(seed=seed)
        assert set(alone.variables) <= set(member.variables)
        assert all(alone[name].dims == member[name].dims for name in alone.variables)
        own = member[list(alone.data_vars)]
        assert unlike(alone, own.drop_vars("seed")) <= ROUNDED
        for name in ROUNDED:
            np.testing.assert_allclose(own[name], alone[name], rtol=1e-8, atol=1e-12)
    assert set(found.figures) == {"histograms", "bands", "losses"}


def test_members_of_a_problem_without_a_seed_train_on_one_loss_and_are_gathered(monkeypatch):
    gathered, sizes = together._gathered, []
    monkeypatch.setattr(together, "_gathered", lambda calls: (sizes.append(len(calls)), gathered(calls))[1])
    given = {"problem": "linnerud", "debug": "quick"}
    found = nf.run("convergence", SMALL | {"members.initial.seed": [3, 5]}, **given).dataset
    assert set(sizes) == {2}
    for i, seed in enumerate((3, 5)):
        alone = nf.run("convergence", SMALL | {"initial.seed": seed}, **given).dataset
        assert unlike(alone, found.isel(seed=i)[list(alone.data_vars)].drop_vars("seed")) <= ROUNDED


@pytest.fixture
def squares(monkeypatch):
    """How many squares were solved at once."""
    solve, sizes = square._squares, []
    monkeypatch.setattr(square, "_squares", lambda posed: (sizes.append(len(posed)), solve(posed))[1])
    return sizes


@pytest.mark.parametrize(
    ("problem", "networks", "budget", "endings"),
    [
        pytest.param("teacher", 1, 260, {"failed", "early", "whole"}, marks=pytest.mark.slow),
        ("teacher", 3, 260, {"failed", "early", "whole"}),
        pytest.param("linnerud", 3, 10_000, {"whole"}, marks=pytest.mark.slow),
    ],
)
def test_squares_are_solved_side_by_side_and_end_as_alone(squares, problem, networks, budget, endings):
    """Several networks of one member share their steps; a budget ends some networks, and some references."""
    settings = {
        "study.depths": (2, 4), "study.layers": ["euler"], "study.workers": 1, "time.horizon": 1, "time.samples": 5,
        "initial.noise": 2.0, "initial.networks": networks, "time.max_evaluations": budget,
    }  # fmt: skip
    where = {"problem": TEACHER["problem"] if problem == "teacher" else problem, "initial": "rough", "debug": "quick"}
    found = nf.run("convergence", settings | {"members": 6}, **where).dataset
    assert squares[0] == 6
    seen = set()
    for seed in range(6):
        own = {"initial.seed": seed} | ({"problem.seed": seed} if problem == "teacher" else {})
        member = found.isel(seed=seed)
        if np.isnan(member.z_finite).all():
            seen.add("failed")
            with pytest.raises(RuntimeError) as error:
                nf.run("convergence", settings | own, **where)
            assert str(error.value) in str(member.member_status.values)
            continue
        alone = nf.run("convergence", settings | own, **where).dataset
        seen.add("early" if np.isnan(alone.z_finite).any() else "whole")
        assert unlike(alone, member[list(alone.data_vars)].drop_vars("seed")) <= ROUNDED
    assert seen == endings


def test_members_in_implicit_steps_are_gathered_and_are_what_they_are_alone(monkeypatch):
    gathered, sizes = together._gathered, []
    monkeypatch.setattr(together, "_gathered", lambda calls: (sizes.append(len(calls)), gathered(calls))[1])
    study = {"model": "finite", "network_depth": 3, "estimate": False}
    implicit = {"method": "rodas5p", "rtol": 1e-6, "horizon": 0.5, "samples": 3}
    given = {"problem": TEACHER["problem"], "study": study, "time": implicit}
    found = nf.run("trajectory", {"members": 3, "at_once": 3}, **given).dataset
    assert set(sizes) == {3}
    for seed in range(3):
        alone = nf.run("trajectory", {"problem.seed": seed, "initial.seed": seed}, **given).dataset
        np.testing.assert_allclose(found.z.isel(seed=seed), alone.z, rtol=0, atol=1e-12)


def test_the_numbers_of_all_members_are_summed_up():
    found = nf.run("convergence", SMALL | {"members": 4}, **TEACHER)
    orders, record = found.dataset.order.sel(rule="euler").values, found.finding.record()
    told = record["statistics"]["observed order of euler"]
    assert told["members"] == record["members"] == 4
    assert told["mean"] == pytest.approx(orders.mean(), rel=1e-14) == record["orders"]["euler"]
    assert told["deviation"] == pytest.approx(orders.std(ddof=1), rel=1e-12) == found.finding.orders[0].spread
    assert told["error"] == pytest.approx(orders.std(ddof=1) / 2, rel=1e-12)
    assert (told["least"], told["most"]) == (orders.min(), orders.max())
    # Beside it, and not to be taken for it: the spreads of the members' own fits.
    assert record["observed_orders"][0]["spread_of"] == "4 members, standard deviation"
    own = found.dataset.order_spread.sel(rule="euler").values
    assert record["order_spreads"]["euler"] == pytest.approx(own.mean(), rel=1e-13)
    assert record["order_spreads_of"] == "the straight part of each fit"
    errors = found.dataset.error_z.sel(rule="euler")
    assert found.finding.tables[0].errors["euler"] == pytest.approx(errors.mean("seed").values, rel=1e-13)
    worst = found.finding.checks[0]
    assert worst.error == found.dataset.error_reference.max()
    assert worst.bound == 1e-8
    passed = found.dataset.member_passed.values
    assert record["verified"] == passed.sum()
    assert found.finding.passed == record["passed"] == passed.all()
    assert found.finding.verdict.startswith(f"{passed.sum()} of 4 members verified")
    assert "euler, L = 16" in found.finding.notes["Members"]


def killed_after_a_part(*arguments):
    """The command, killed once it has saved a part of the members."""
    child = subprocess.Popen([*COMMAND, *arguments], env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    last = time.monotonic() + 60
    while not list(Path("k/checkpoints").glob("members-*")) and child.poll() is None and time.monotonic() < last:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_in_other_parts_and_processes(workplace):
    line = [*LINE, "members=9"]
    subprocess.run([*COMMAND, *line, "at_once=5", "study.workers=2", "resume=w"], check=True, env=QUIET)
    killed_after_a_part(*line, "at_once=1", "study.workers=1", "resume=k")
    assert not Path("k/summary.json").exists()
    again = subprocess.run([*COMMAND, *line, "at_once=4", "study.workers=2", "resume=k"], env=QUIET)
    assert again.returncode == 0
    assert unlike(nf.open("w"), nf.open("k")) == set()
    assert not Path("k/checkpoints").exists()


@pytest.mark.slow
def test_a_damaged_part_and_one_of_a_shorter_run_are_computed_again(command, monkeypatch):
    from neuralode_flow.app import ensemble

    line = [*LINE, "study.workers=1", "at_once=1", "members=2"]
    joined = ensemble._joined

    def cut_off(job, parts):
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(ensemble, "_joined", cut_off)
    assert command(*line, "resume=k").status == 1
    parts = sorted(Path("k/checkpoints").glob("members-*"))
    assert [part.name for part in parts] == ["members-000000-000001.nc", "members-000001-000002.nc"]
    parts[0].write_bytes(parts[0].read_bytes()[:-9])
    monkeypatch.setattr(ensemble, "_joined", joined)
    assert command(*line, "resume=k").status == 0
    assert command(*line, "resume=w").status == 0
    assert unlike(nf.open("w"), nf.open("k")) == set()
    assert command(*line, "time.horizon=1", "resume=k").status == 0
    assert nf.open("k").time.values[-1] == 1
    assert unlike(nf.open("k").sel(time=slice(0, 0.5))[["z_continuous"]], nf.open("w")[["z_continuous"]]) == set()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A function that gives the folder in which what is asked for is kept for the next test."""
    return cache(lambda *what: tmp_path_factory.mktemp("kept") / "run")


@pytest.fixture
def ran(command, kept):
    """Runs a command whole, once for all tests, and gives what it has found; what is read is not written in it."""

    def whole(*line, read=""):
        folder = kept("whole", *line, read)
        if not folder.exists():
            assert command(*line, "resume=w").status == 0
            shutil.copytree("w", folder)
        return nf.open(folder)

    return whole


@pytest.fixture
def cut_off(command, kept, monkeypatch):
    """Runs a command that ends when all of its parts lie in its folder, which is given; once for all tests."""

    def dark(job, parts):
        raise RuntimeError("the lights went out")

    def started(*line):
        folder, saved = Path(line[-1].removeprefix("resume=")), kept("cut off", *line)
        if saved.exists():
            shutil.copytree(saved, folder)
        else:
            with monkeypatch.context() as patched:
                patched.setattr(ensemble, "_joined", dark)
                assert command(*line).status == 1
            shutil.copytree(folder, saved)
        return sorted(folder.glob("checkpoints/members-*"))

    return started


FEW = [
    "problem=teacher", "problem.dimension=2", "study=trajectory", "study.estimate=false", "time.samples=3",
    "figures=none", "members=3", "depth.order=4",
]  # fmt: skip


def test_a_part_under_the_name_of_another_is_computed_again(command, cut_off, ran):
    """The numbers of the seed 0 were those of the seed 1 as well."""
    parts = cut_off(*FEW, "at_once=1", "resume=k")
    parts[1].write_bytes(parts[0].read_bytes())
    assert command(*FEW, "at_once=1", "resume=k").status == 0
    assert unlike(ran(*FEW, "at_once=1"), nf.open("k")) == set()


def test_a_part_that_shares_members_with_another_is_left_aside(command, cut_off, ran):
    """The run was refused, however often it was started: parts of it were lost, or damaged."""
    parts = cut_off(*FEW, "at_once=1", "resume=k")
    wider = cut_off(*FEW, "at_once=2", "resume=o")[0]
    assert wider.name == "members-000000-000002.nc"
    parts[0].with_name(wider.name).write_bytes(wider.read_bytes())
    assert command(*FEW, "at_once=1", "resume=k").status == 0
    assert unlike(ran(*FEW, "at_once=1"), nf.open("k")) == set()


@pytest.mark.parametrize("name", ["members-000000-000001.nc", "members-old.nc", ".members-0.writing-0"])
def test_a_folder_in_the_place_of_a_part_is_named(name, command, cut_off):
    part = cut_off(*FEW, "at_once=1", "resume=k")[0]
    part.unlink()
    part.with_name(name).mkdir()
    ended = command(*FEW, "at_once=1", "resume=k")
    assert ended.status == 1
    assert f"k/checkpoints/{name} is a folder, where a part of the members is to lie; move it away" in ended.err
    part.with_name(name).rmdir()
    assert command(*FEW, "at_once=1", "resume=k").status == 0


@pytest.mark.slow
def test_parts_of_a_table_that_has_changed_are_computed_again(command, monkeypatch):
    def cut_off(job, parts):
        raise RuntimeError("the lights went out")

    line = [
        "study=trajectory", "problem=file", "problem.table=t.csv", "problem.x=[a]", "problem.y=[b]", "time.samples=3",
        "figures=none", "members.initial.seed=[0,1]", "at_once=1", "study.estimate=false",
    ]  # fmt: skip
    table = Path("t.csv")
    table.write_text("a,b\n1.5,2.5\n2.5,3.5\n3.5,-1.5\n")
    with monkeypatch.context() as dark:
        dark.setattr(ensemble, "_joined", cut_off)
        assert command(*line, "resume=k").status == 1
    assert len([*Path("k/checkpoints").glob("members-*.nc")]) == 2
    table.write_text("a,b\n1.5,2.5\n2.5,-3.5\n3.5,1.5\n")
    assert command(*line, "resume=k").status == command(*line, "resume=w").status == 0
    assert unlike(nf.open("w"), nf.open("k")) == set()


@pytest.mark.parametrize("workers", [1, 2])  # of two, each is forked and looks for itself
def test_a_table_that_changes_while_members_are_computed_ends_them_and_all_are_of_one_table(
    command, ran, monkeypatch, workers
):
    """Each member reads it for itself: those of both tables were joined, under the digest of the first."""
    line = [
        "study=trajectory", "problem=file", "problem.table=t.csv", "problem.x=[a]", "problem.y=[b]", "time.samples=3",
        "figures=none", "members.initial.seed=[0,1,2]", "at_once=1", "study.estimate=false", "depth.order=4",
    ]  # fmt: skip
    tables = ["a,b\n1.5,2.5\n2.5,3.5\n3.5,-1.5\n", "a,b\n1.5,2.5\n2.5,-3.5\n3.5,1.5\n"]
    table, computed = Path("t.csv"), ensemble._computed
    table.write_text(tables[0])

    def changed_after_the_first(job, one, members, *others):
        found = computed(job, one, members, *others)
        if members.start == 1:
            table.write_text(tables[1])
        return found

    monkeypatch.setattr(ensemble, "processors", lambda: workers)
    monkeypatch.setattr(ensemble, "_computed", changed_after_the_first)
    ended = command(*line, "resume=k")
    assert ended.status == 1
    assert "a file that its problem is read from has changed since" in ended.err
    assert not Path("k/results.nc").exists()
    assert command(*line, "resume=k").status == 0
    assert unlike(ran(*line, read=tables[1]), nf.open("k")) == set()


def test_what_a_killed_process_had_begun_to_write_does_not_stay_beside_parts(tmp_path):
    """It stayed until the run was whole, and on a full disk each start left more of it."""
    left = tmp_path / ".members-000001-000002.writing-0123.nc"
    for path in (left, tmp_path / "members-000000-000001.nc", tmp_path / "members-old.nc"):
        path.touch()
    assert [*ensemble._names(tmp_path)] == [(0, 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["members-000000-000001.nc"]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (range(10, 20), "10 … 19"), ([10, 20, 30], "10 … 30"), (range(100, 200), "100 … 199"), ([0, 100], "0 … 100"),
        ([7], "7"), ([7, 7], "7"), ([1.25, 1.75], "1.25 … 1.75"),
    ],
)  # fmt: skip
def test_the_problem_of_all_names_the_first_and_the_last_seed_whole(seeds, said):
    assert _common([f"a map (seed {seed})" for seed in seeds]) == f"a map (seed {said})"


@pytest.mark.slow
def test_lists_of_seeds_by_section(command):
    ended = command(
        *LINE, "members.problem.seed=range(3,5)", "members.initial.seed=[7,7]", "study.workers=1", "resume=k"
    )
    assert (ended.status, ended.err) == (0, "")
    dataset = nf.open("k")
    assert dataset["problem.seed"].values.tolist() == [3, 4]
    assert dataset["initial.seed"].values.tolist() == [7, 7]
    alone = nf.run("convergence", {"problem.seed": 4, "initial.seed": 7}, study={"depths": [4, 8], "layers": ["euler"]},
                   time={"horizon": 0.5}, **TEACHER).dataset  # fmt: skip
    assert np.array_equal(dataset.z_finite[1], alone.z_finite)
    same = nf.run("convergence", SMALL, members={"problem": {"seed": range(3, 5)}}, **TEACHER)
    assert same.dataset.seed.values.tolist() == [3, 4]
    assert same.config["members"] == {"problem": {"seed": "range(3,5,1)"}}


PLAIN = {
    "problem": {"name": "teacher", "seed": 0}, "initial": {"name": "relaxed_balanced"}, "depth": {"panels": 2},
    "time": {"horizon": 1.0}, "study": {"name": "convergence"},
}  # fmt: skip
TABLE = {"name": "file", "table": "t.csv", "x": ["a"], "y": ["b"]}
UNREAD = {"initial": None, "depth": None}
UNSEEDED = {"problem": {"name": "linnerud"}, "initial": {"name": "balanced"}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"members": 0}, "members must be at least 1, got 0"),
        ({"members": 1.5}, "members must be an integer, got 1.5"),
        ({"members": {}}, "members must be a number, or seeds, got {}; set members=N"),
        ({"members": 3, **UNSEEDED}, "members=3 has nothing to vary: none of problem=linnerud, initial=balanced"),
        ({"members": {"problem": {"seed": [1]}}, "problem": {"name": "linnerud"}}, "this problem has no seed"),
        ({"members": {"initial": {"seed": [2, 5, 2]}}}, "members must differ, got seed 2 twice; give each"),
        (
            {"members": {"problem": {"seed": [1, 1, 1]}, "initial": {"seed": [2, 1, 2]}}},
            "members must differ, got problem.seed=1 initial.seed=2 twice",
        ),
        ({"members": {"problem": {"seed": [1]}}, "problem": TABLE}, "this problem has no seed that changes it"),
        (
            {"members": 3, "problem": TABLE, "initial": {"name": "detour", "twist": 0.0, "shift": 0.0, "detour": 0.0}},
            "an effect with problem.held_out=0.0 and initial.twist=0.0 and initial.shift=0.0 and initial.detour=0.0",
        ),
        ({"members": {"problem": {"scale": [1]}}}, "members differ in their seeds alone"),
        ({"members": {"problem": {"seed": [-1]}}}, r"members.problem.seed\[0\] must be at least 0"),
        ({"members": {"problem": {"seed": []}}}, "members.problem.seed must have from 1 to 1000000 seeds, got 0"),
        ({"members": {"problem": {"seed": "0-9"}}}, r"must be a list of seeds or range\(START,STOP\), got '0-9'"),
        (
            {"members": {"problem": {"seed": [1, 2]}, "initial": {"seed": [1]}}},
            "got 2 in members.problem.seed and 1 in members.initial.seed; make the lists equally long",
        ),
        (
            {"members": 4, "study": {"name": "interpolant"}, "problem": {"name": "linnerud"}} | UNREAD,
            r"members of study=interpolant have no one axis scale, which follows from study\.seed; run them as a "
            "sweep, -m study.seed=0,1,2,…$",
        ),
        (
            {"members": {"problem": {"seed": [3, 3]}, "initial": {"seed": [1, 2]}}, "study": {"name": "edge"}},
            r"study=edge have no one axis time, which follows from initial\.seed; run them as a sweep, "
            "-m problem.seed=3,3 initial.seed=1,2$",
        ),
    ],
)
def test_members_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(Exception, match=sentence):
        checked(PLAIN | changes)


def test_a_seed_that_members_have_of_their_own_is_refused_beside_them(command):
    """It was accepted and changed nothing: a sweep over it had copies of one run, and counted them as draws."""
    line = ["study=trajectory", "problem=teacher", "problem.dimension=2", "time.samples=3", "figures=none"]
    line += ["study.estimate=false", "depth.order=4"]
    said = "problem.seed=5 has no effect: members have seeds of their own; leave it out, or list them, members.problem."
    for sweep, seeds in (((), "5"), (("-m",), "5,6")):
        ended = command(*sweep, *line, "members=2", f"problem.seed={seeds}")
        assert ended.status == 2
        assert said in ended.err
    with pytest.raises(ValueError, match=re.escape(said)):
        nf.run("trajectory", {"members": 2, "problem.seed": 5, "time.samples": 3}, problem=TEACHER["problem"])
    assert command(*line, "members.initial.seed=[1,2]", "problem.seed=5", "resume=one").status == 0  # all have it
    own = {"initial.seed": 2, "problem.seed": 5, "time.samples": 3, "study.estimate": False, "depth.order": 4}
    alone = nf.run("trajectory", own, problem=TEACHER["problem"])
    np.testing.assert_array_equal(nf.open("one").loss[1], alone.dataset.loss)
    assert command("-m", *line, "members=2,null", "problem.seed=5", "resume=s").status == 0  # one of the points has it


def test_members_that_share_what_an_axis_follows_from_are_one_run():
    seeds = {"problem": {"seed": [3, 3]}, "study": {"seed": [1, 2]}}
    assert len(checked(PLAIN | {"study": {"name": "edge"}, "members": seeds}).ensemble) == 2
    assert len(checked(PLAIN | {"study": {"name": "edge"}, "members": 1}).ensemble) == 1


def test_the_seed_of_rows_that_are_held_out_is_varied_only_where_some_are():
    job = checked(PLAIN | {"problem": TABLE, "members": 2})
    assert job.ensemble.settings == {"initial.seed": range(2)}
    said = dict(_stated(job.to_yaml()))
    assert "seed = 0," in said["problem"]
    assert said["start"].endswith("seed = 0 … 1")
    job = checked(PLAIN | {"problem": TABLE | {"held_out": 0.2}, "members": 2})
    assert job.ensemble.settings == {"problem.seed": range(2), "initial.seed": range(2)}


def test_where_problem_and_start_have_no_seed_that_of_the_study_is_varied():
    job = checked({"study": {"name": "perceptron"}, "time": {"horizon": 1.0}, "members": 2})
    assert job.ensemble.settings == {"study.seed": range(2)}
    budget = ["time.max_seconds=60"]  # which they share
    checked({"study": {"name": "perceptron"}, "time": {"horizon": 1.0}, "members": 2}, budget)
    with pytest.raises(BadInput, match="has no effect: study=perceptron uses no time"):
        checked({"study": {"name": "perceptron"}, "time": {"horizon": 1.0}}, budget)
    assert job.member(1).study.parameters["seed"] == 1


def picky(
    problem: Problem, clock: Clock, *, failing: int = -1, uneven: int = -1, early: int = -1, progress: object = None
) -> xr.Dataset:
    """Fails, has another shape, or ends early, at some seeds."""
    seed = int(problem.title.split("seed ")[1].rstrip(")"))
    if seed == failing:
        raise RuntimeError("this seed is bad")
    dataset = xr.Dataset({"number": ("k", [seed] * (2 if seed == uneven else 1)), "word": ((), f"n{seed}")})
    check, table = Check("seed", float(seed), 3.5), ErrorTable("Seeds", [4], {"own": [float(seed)]})
    status = "it got tired" if seed == early else "ok"
    found = Finding(study="picky", problem=problem.title, status=status, verdict="", checks=(check,), tables=(table,))
    return found.attached(dataset.assign_attrs(size=4, seed=seed))


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setitem(STUDIES._entries, "picky", Study(picky))
    return {"study": "picky", "problem": {"name": "teacher", "dimension": 2}, "experiment": None}


@pytest.mark.parametrize("size", [1, 3, 6])
def test_members_that_fail_are_counted_and_named(study, workplace, size):
    found = nf.run("picky", {"members": 6, "study.failing": 2, "at_once": size}, problem=study["problem"])
    assert found.finding.status.startswith(
        "1 of 6 members did not run whole (seed 2); seed 2: it could not be computed"
    )
    assert found.finding.verdict.startswith("3 of 6 members verified (not seed 2, seed 4, seed 5).")
    assert not found.finding.passed
    assert found.finding.checks[0] == Check("seed", 5.0, 3.5, "largest of 5 members")
    assert found.finding.record()["statistics"]["seed"]["hold"] == 3
    assert found.finding.tables[0].what == "errors, mean over 5 members"
    assert found.dataset.attrs["size"] == 4
    np.testing.assert_array_equal(found.dataset.number[:, 0], [0, 1, np.nan, 3, 4, 5])
    assert found.dataset.word.values.tolist() == ["n0", "n1", "", "n3", "n4", "n5"]


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("failing", [-1, 2])
def test_integers_that_are_no_floats_keep_their_digits_beside_a_member_that_failed(monkeypatch, size, failing):
    """They are texts there, as numbers beside texts are; float64 made 2⁵³ of 2⁵³ + 1."""

    def counting(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        seed = int(problem.title.split("seed ")[1].rstrip(")"))
        if seed == failing:
            raise RuntimeError("this seed is bad")
        kinds = {"large": 2**53 + 1 if seed == 3 else seed, "unsigned": np.uint64(2**64 - 1 - seed), "small": 2**60}
        dataset = xr.Dataset({name: ("k", np.array([value])) for name, value in kinds.items()})
        dataset["mixed"] = (), 2**53 + 1 if seed == 3 else float(seed)
        return Finding(study="counting", problem=problem.title, status="ok", verdict="").attached(dataset)

    monkeypatch.setitem(STUDIES._entries, "counting", Study(counting))
    found = nf.run("counting", {"members": 4, "at_once": size}, problem=TEACHER["problem"]).dataset
    ran = [seed for seed in range(4) if seed != failing]
    large, unsigned = found.large[:, 0].values.tolist(), found.unsigned[:, 0].values.tolist()
    assert [int(large[seed]) for seed in ran] == [2**53 + 1 if seed == 3 else seed for seed in ran]
    assert [int(unsigned[seed]) for seed in ran] == [2**64 - 1 - seed for seed in ran]
    assert found.mixed.values.tolist() == [
        "" if seed == failing else str(2**53 + 1 if seed == 3 else seed) for seed in range(4)
    ]
    assert found.small.dtype.kind == ("f" if failing >= 0 else "i")
    if failing >= 0:
        assert (large, unsigned[failing]) == (["0", "1", "", str(2**53 + 1)], "")


@pytest.mark.parametrize("uneven", [-1, 1])
@pytest.mark.parametrize("size", [1, *slow(2), 4])
def test_members_that_ended_early_are_in_no_mean_and_hold_nothing(study, workplace, size, uneven):
    """Where their arrays have other shapes there is NaN in the place of all that they have."""
    given = {"members": 4, "study.early": 1, "study.uneven": uneven, "at_once": size}
    found = nf.run("picky", given, problem=study["problem"])
    assert found.finding.status == "1 of 4 members did not run whole (seed 1); seed 1: it got tired"
    assert found.finding.verdict.startswith("3 of 4 members verified (not seed 1).")
    assert found.dataset.member_passed.values.tolist() == [True, False, True, True]
    told = found.finding.record()["statistics"]["seed"]
    assert (told["mean"], told["members"], told["hold"]) == (5 / 3, 3, 3)
    assert found.finding.tables[0].what == "errors, mean over 3 members"
    assert "over the 3 of 4 members that ran whole" in found.finding.notes["Members"]
    np.testing.assert_array_equal(found.dataset.number[:, 0], [0, 1 if uneven < 0 else np.nan, 2, 3])


@pytest.mark.slow
def test_where_no_member_ran_whole_nothing_holds():
    given = {"study": {"draws": 2, "depths": [2]}, "time": {"samples": 3, "max_evaluations": 100}}
    found = nf.run("initialisations", {"members": 2}, problem=TEACHER["problem"], **given).finding
    assert found.verdict.startswith("0 of 2 members verified (not seed 0, seed 1).")
    assert [check.said_outcome for check in found.checks][:3] == [
        "bound 1e-08: fails", "bound 1e-08: fails", "at least 1e-08: fails"
    ]  # fmt: skip
    assert all(np.isnan(check.error) for check in found.checks)
    assert (found.passed, found.record()["verified"]) == (False, 0)


def test_where_no_check_has_a_bound_no_member_is_verified():
    found = nf.run("trajectory", {"members": 2, "time.samples": 3, "study.estimate": False}, problem=TEACHER["problem"])
    assert found.finding.verdict == "2 of 2 members ran whole; none of their checks has a bound."
    assert {"verified", "not_verified", "passed"}.isdisjoint(found.finding.record())
    assert "member_passed" not in found.dataset


@pytest.mark.slow
def test_members_that_run_out_of_a_budget_have_nan_at_the_times_that_they_have_not_come_to(workplace):
    """What they have ended with between two output times is in the row of neither."""
    given = {"time.samples": 5, "time.max_evaluations": 190, "study.estimate": False}
    where = {"problem": TEACHER["problem"]}
    whole = {name: value for name, value in given.items() if name != "time.max_evaluations"}
    all_alone = [
        nf.run("trajectory", whole | {"problem.seed": i, "initial.seed": i}, **where).dataset for i in range(5)
    ]
    for size in (1, 5):
        found = nf.run("trajectory", given | {"members": 5, "at_once": size}, **where).dataset
        endings = found.ending.values.tolist()
        assert {*endings} == {"ok", "evaluations"}
        np.testing.assert_array_equal(found.time, all_alone[0].time)
        for member, alone, ending in zip(found.loss.values, all_alone, endings, strict=True):
            reached = int(np.isfinite(member).sum())
            assert (reached < 5) == (ending == "evaluations")
            assert not np.isfinite(member[reached:]).any()
            np.testing.assert_array_equal(member[:reached], alone.loss[:reached])


def test_members_that_meet_an_event_are_whole_and_have_nan_after_it():
    given = {"members": 3, "time.samples": 5, "study.stop_loss": 1e-2}
    found = nf.run("trajectory", given, problem=TEACHER["problem"])
    assert found.finding.status == "ok"
    assert found.dataset.ending.values.tolist() == ["loss", "loss", "ok"]
    assert np.isfinite(found.dataset.loss).sum("time").values.tolist() == [2, 2, 5]
    assert found.finding.record()["statistics"]["drift of the conservation law"]["members"] == 3


@pytest.mark.parametrize("size", [1, 3])
def test_a_study_that_records_the_first_output_times_alone_has_no_others(size, monkeypatch):
    """It was taken for one that had ended early, and NaN stood at times of which it says nothing."""

    def beginning(problem: Problem, clock: Clock, *, ends: str = "", progress: object = None) -> xr.Dataset:
        """Looks at the first three output times, or ends there."""
        dataset = xr.Dataset({"z": ("time", [1.0, 2.0, 3.0])}, {"time": clock.times[:3].numpy()})
        ended = Finding(study="beginning", problem=problem.title, status="ok", verdict="")
        return ended.attached(dataset.assign_attrs({"ending": ends} if ends else {}))

    monkeypatch.setitem(STUDIES._entries, "beginning", Study(beginning))
    given = {"members": 3, "at_once": size, "time.samples": 5}
    found = nf.run("beginning", given, problem=TEACHER["problem"]).dataset
    assert found.z.values.tolist() == [[1, 2, 3]] * 3
    assert len(found.time) == 3
    found = nf.run("beginning", given | {"study.ends": "loss"}, problem=TEACHER["problem"]).dataset
    np.testing.assert_array_equal(found.z, [[1, 2, 3, np.nan, np.nan]] * 3)


@pytest.mark.slow
def test_texts_that_members_differ_in_do_not_stand_for_all(workplace):
    given = {"problem": {**TEACHER["problem"], "scale": 2}, "time": {"horizon": 200, "samples": 3, "method": "auto"}}
    alone = [
        nf.run("trajectory", {"problem.seed": i, "initial.seed": i}, **given).dataset.attrs["history"] for i in range(3)
    ]
    assert len({*alone}) == 3
    for size in (1, 3):
        found = nf.run("trajectory", {"members": 3, "at_once": size}, **given)
        assert "history" not in found.finding.record()
        assert "history" not in found.dataset.attrs
        assert found.dataset.history.values.tolist() == alone
        assert found.finding.record()["ending"] == found.dataset.attrs["ending"] == "ok"


@pytest.mark.slow
def test_an_order_that_some_members_have_is_theirs_alone(workplace):
    """Seed 5 has no order of exp."""
    settings = {"study.depths": [4, 8, 16], "study.layers": ["exp"], "study.workers": 1, "time.samples": 3}
    seeds = {"members.problem.seed": [5, 0, 1], "members.initial.seed": [5, 0, 1]}
    for size in (1, 3):
        found = nf.run("convergence", settings | seeds | {"at_once": size}, problem=TEACHER["problem"])
        (order,), record = found.finding.orders, found.finding.record()
        assert np.isfinite(found.dataset.order[:, 0]).values.tolist() == [False, True, True]
        assert str(order).endswith("over 3 depths in 2 of 3 members (± over 2 members, standard deviation)")
        assert order.spread == pytest.approx(float(np.nanstd(found.dataset.order[:, 0], ddof=1)), rel=1e-12)
        assert (order.points, record["order_points"], record["order_reasons"]) == (3, {"exp": 3}, {})
        assert "over 2 of 3 members (" in found.finding.verdict


def uneven(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
    """The seed 0 has nothing to check of z, no order of euler, and a table of its own."""
    seed = int(problem.title.split("seed ")[1].rstrip(")"))
    checks = [Check("z", float(seed), 1.5), Check("law", 10.0 + seed, 12.5)]
    orders = [Order(1.0 + seed, 0.0, 3, rule="euler"), Order(20.0 + seed, 0.0, 3, rule="cayley")]
    own = slice(1 if seed == 0 else 0, None)
    table = ErrorTable("Errors", [4, 8][own], {"own": [4.0 + seed, 8.0 + seed][own]})
    found = Finding(
        study="uneven", problem="", status="ok", verdict="", checks=tuple(checks[own]), orders=tuple(orders[own]),
        tables=(table,),
    )  # fmt: skip
    return found.attached(xr.Dataset())


@pytest.mark.parametrize("size", [1, *slow(2), 3])
def test_what_members_have_is_joined_by_its_name_where_one_of_them_has_less(size, monkeypatch):
    monkeypatch.setitem(STUDIES._entries, "uneven", Study(uneven))
    found = nf.run("uneven", {"members": 3, "at_once": size}, problem=TEACHER["problem"])
    told = {
        name: (own["mean"], own["least"], own["most"], own["members"], own["hold"])
        for name, own in found.finding.record()["statistics"].items()
    }
    assert told == {
        "z": (1.5, 1, 2, 2, 1),
        "law": (11, 10, 12, 3, 3),
        "observed order of euler": (2.5, 2, 3, 2, None),
        "observed order of cayley": (21, 20, 22, 3, None),
        "Errors: own, L = 4": (5.5, 5, 6, 2, None),
        "Errors: own, L = 8": (9, 8, 10, 3, None),
    }
    assert {*found.finding.checks} == {
        Check("z", 2.0, 1.5, "largest of 2 members"), Check("law", 12.0, 12.5, "largest of 3 members")
    }  # fmt: skip
    assert {(order.rule, order.value, order.over) for order in found.finding.orders} == {
        ("euler", 2.5, "depths in 2 of 3 members"), ("cayley", 21.0, "depths")
    }  # fmt: skip
    assert found.dataset.member_passed.values.tolist() == [True, True, False]
    whole = nf.run("uneven", {"members.problem.seed": [0, 1], "at_once": size}, problem=TEACHER["problem"]).finding
    assert whole.passed


@pytest.mark.parametrize("size", [1, 3])
def test_a_dot_in_a_name_is_none_between_names(size, monkeypatch):
    """The mean of "a.b" stood for that of b in a as well."""

    def dotted(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Has numbers by names that are paths of others."""
        seed = int(problem.title.split("seed ")[1].rstrip(")"))
        numbers = {"a.b": 1 + seed, "a": {"b": 11 + seed}, r"a\x": {"b": 21 + seed}, r"a\.b": 31 + seed}
        table = ErrorTable("t = 0.5", [4], {"w.0": [41.0 + seed], "w": [51.0 + seed]})
        checks = (Check("z at 0.5", 61.0 + seed, 100.0),)
        ended = Finding(
            study="dotted", problem="", status="ok", verdict="", checks=checks, tables=(table,), numbers=numbers
        )
        return ended.attached(xr.Dataset())

    monkeypatch.setitem(STUDIES._entries, "dotted", Study(dotted))
    found = nf.run("dotted", {"members": 3, "at_once": size}, problem=TEACHER["problem"]).finding
    means = {name: found.numbers[name] for name in ("a.b", "a", r"a\x", r"a\.b")}
    assert means == {"a.b": 2, "a": {"b": 12}, r"a\x": {"b": 22}, r"a\.b": 32}
    assert found.tables[0].errors == {"w.0": [42], "w": [52]}
    assert found.checks[0].error == 63


@pytest.mark.parametrize("size", [1, 3])
def test_what_has_the_name_of_another_has_statistics_of_its_own(size, monkeypatch):
    """The last of one name stood for all; entries of two tables of one title were taken for twice as many members."""

    def alike(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Has names that are taken."""
        seed = int(problem.title.split("seed ")[1].rstrip(")"))
        checks = (Check("z", seed), Check("z", 10.0 + seed, 12.0), Check("order", 20.0 + seed))
        orders = (Order(30.0 + seed, 0.0, 3, rule="exp"), Order(40.0 + seed, 0.0, 3, rule="exp"))
        first = ErrorTable("Errors", [4, 8], {"own": [50.0 + seed, 60.0 + seed]})
        second = ErrorTable("Errors", [8, 16], {"own": [70.0 + seed, 80.0 + seed]})
        third = ErrorTable("Errors", [4, 8], {"own": [90.0 + seed, 100.0 + seed]})
        ended = Finding(
            study="alike", problem="", status="ok", verdict="", checks=(*checks, Check("observed order of exp", seed)),
            orders=orders, tables=(first, second, third),
        )  # fmt: skip
        return ended.attached(xr.Dataset())

    monkeypatch.setitem(STUDIES._entries, "alike", Study(alike))
    found = nf.run("alike", {"members": 3, "at_once": size}, problem=TEACHER["problem"]).finding
    told = {
        name: (own["mean"], own["deviation"], own["members"], own["hold"])
        for name, own in found.numbers["statistics"].items()
    }
    assert told == {
        "observed order of exp": (31, 1, 3, None), "observed order of exp (2)": (41, 1, 3, None),
        "z": (1, 1, 3, None), "z (2)": (11, 1, 3, 3), "order": (21, 1, 3, None),
        "observed order of exp (3)": (1, 1, 3, None),
        "Errors: own, L = 4": (51, 1, 3, None), "Errors: own, L = 4 (2)": (91, 1, 3, None),
        "Errors: own, L = 8": (61, 1, 3, None), "Errors: own, L = 8 (2)": (71, 1, 3, None),
        "Errors: own, L = 8 (3)": (101, 1, 3, None), "Errors: own, L = 16": (81, 1, 3, None),
    }  # fmt: skip
    assert "observed order of exp: 31.0000" in found.verdict
    assert "observed order of exp (2): 41.0000" in found.verdict


@pytest.mark.parametrize("size", [1, 3])
def test_what_has_the_name_of_something_said_of_all_has_one_of_its_own(size, monkeypatch):
    """Attributes that differ were left out where a variable has their name; numbers of such names were lost."""

    def bold(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Has names that those of all members have."""
        seed = int(problem.title.split("seed ")[1].rstrip(")"))
        numbers = {
            "members": 1 + seed,
            "verified": 11 + seed,
            "not_verified": 21 + seed,
            "statistics": {"a": 31 + seed},
        }
        ended = Finding(
            study="bold", problem="", status="ok", verdict="", checks=(Check("z", 0.0, 1.0),),
            notes={"Members": "mine"}, numbers=numbers,
        )  # fmt: skip
        variables = {"loss": ("time", [0.0, 1.0]), "member_status": 41 + seed, "attribute.q": 51 + seed}
        attributes = {
            "loss": 61 + seed, "time": 71 + seed, "members": 5, "left_out": "nothing", "of": f"s{seed}", "seed": seed
        }  # fmt: skip
        return ended.attached(xr.Dataset(variables, {"time": [0.0, 1.0]}, attributes))

    monkeypatch.setitem(STUDIES._entries, "bold", Study(bold))
    found = nf.run("bold", {"members": 3, "at_once": size}, problem=TEACHER["problem"])
    own = {
        str(name): variable.values.tolist() for name, variable in found.dataset.items() if variable.dims == ("seed",)
    }
    assert own == {
        "member_status": ["ok"] * 3, "member_passed": [True] * 3, "own_member_status": [41, 42, 43],
        "own_attribute.q": [51, 52, 53], "own_loss": [61, 62, 63], "own_time": [71, 72, 73],
        "own_of": ["s0", "s1", "s2"],
    }  # fmt: skip
    told = {name: found.dataset.attrs[name] for name in ("own_members", "own_left_out", "members", "left_out")}
    assert told == {"own_members": 5, "own_left_out": "nothing", "members": 3, "left_out": ""}
    numbers = dict(found.finding.numbers)
    assert numbers.pop("statistics")["z"]["members"] == 3
    assert numbers == {
        "own_members": 2, "own_verified": 12, "own_not_verified": 22, "own_statistics": {"a": 32}, "members": 3,
        "verified": 3, "not_verified": [],
    }  # fmt: skip
    assert found.finding.notes["own_Members"] == "mine"
    assert "computed" in found.finding.notes["Members"]


def test_a_study_that_counts_members_of_its_own_is_no_run_of_members(monkeypatch, tmp_path):
    """It was summed up as one, and had the figure of one in the place of its own."""

    def counting(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Has an attribute and a variable of such names."""
        return xr.Dataset({"member_status": 1.0}, {"time": [0.0]}, {"members": 5, "status": "ok", "verdict": "Five."})

    monkeypatch.setitem(
        STUDIES._entries, "counting", Study(counting, lambda found: {"study": "counting", **found.attrs})
    )
    found = nf.run("counting", {"figures": "none"}, problem=TEACHER["problem"], folder=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["members"] == 5
    assert figure_set("counting", found.dataset) == "counting"


def test_what_members_agree_in_is_the_same_in_whatever_parts_they_are():
    said = [
        {
            "checks": [{"name": f"the worst of {rule}, sup", "error": i}],
            "numbers": {"a": 1, "why": why, "rules": ["x", rule]},
        }
        for i, (rule, why) in enumerate([("sign", ""), ("sign", ""), ("muon", "lost"), ("gd", "")])
    ]
    assert agreed(said[:2]) == said[0]
    for cut in (1, 2, 3):
        common = agreed([agreed(said[:cut]), agreed(said[cut:])])
        assert common == {"checks": [{"name": "the worst of …, sup", "error": 0}], "numbers": {"a": 1}}
    assert agreed([{"numbers": {}}, {"numbers": {"why": "lost"}}]) == {"numbers": {}}


@pytest.mark.parametrize("size", [1, 3])
def test_an_attribute_that_is_a_text_in_one_member_is_one_in_all(size, monkeypatch):
    def mixed(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Has an order but for the seed 1, where Python is asked to end at the seed 2."""
        if "seed 2)" in problem.title:
            raise SystemExit(3)
        order = "undecided" if "seed 1)" in problem.title else 1.5
        ended = Finding(study="mixed", problem=problem.title, status="ok", verdict="")
        return ended.attached(xr.Dataset(attrs={"order": order}))

    monkeypatch.setitem(STUDIES._entries, "mixed", Study(mixed))
    found = nf.run("mixed", {"members": 4, "at_once": size}, problem=TEACHER["problem"]).dataset
    assert found.order.values.tolist() == ["1.5", "undecided", "", "1.5"]
    assert found.member_status.values[2].endswith("it asked Python to end (3)")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_list_of_one_member_does_not_stand_for_all(size, monkeypatch):
    def telling(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Has lists as attributes, some of which differ between members."""
        seed = int(problem.title.split("seed ")[1].rstrip(")"))
        lists = {"own": [1.0, seed], "last": [seed // 2, 0], "words": ["a", f"b{seed}"], "rates": [0.5, np.nan]}
        ended = Finding(study="telling", problem=problem.title, status="ok", verdict="")
        return ended.attached(xr.Dataset({"number": seed}, attrs=lists | {"names": ["x", "y"]}))

    monkeypatch.setitem(STUDIES._entries, "telling", Study(telling))
    attributes = nf.run("telling", {"members": 3, "at_once": size}, problem=TEACHER["problem"]).dataset.attrs
    assert {"own", "last", "words"}.isdisjoint(attributes)
    np.testing.assert_array_equal(attributes["rates"], [0.5, np.nan])
    assert list(attributes["names"]) == ["x", "y"]


@pytest.mark.slow
def test_parts_of_another_format_are_computed_again(command, monkeypatch):
    """They may lack what others have: mixed in silence they would say so of their members."""
    computed, first = ensemble._computed, []

    def counted(job, one, members, *others):
        first.append(members[0])
        return computed(job, one, members, *others)

    def cut_off(job, parts):
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(ensemble, "_computed", counted)
    monkeypatch.setattr(ensemble, "_joined", cut_off)
    line = [*LINE, "members=2", "at_once=1", "study.workers=1", "resume=r"]
    for form, again in ((1, [0, 1]), (2, [0, 1]), (2, [])):
        monkeypatch.setattr(ensemble, "_FORMAT", form)
        first.clear()
        assert command(*line).status == 1
        assert first == again


def test_what_one_member_says_at_length_is_not_room_for_all(monkeypatch):
    def long(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        """Says much at the seed 1."""
        status = "x" * 10_000 if "seed 1)" in problem.title else "ok"
        return Finding(study="long", problem=problem.title, status=status, verdict="").attached(xr.Dataset())

    monkeypatch.setattr(results, "_MOST_TEXT", 2**16)
    monkeypatch.setitem(STUDIES._entries, "long", Study(long))
    found = nf.run("long", {"members": 8}, problem=TEACHER["problem"]).dataset
    assert found.member_status.dtype == object
    assert [*map(len, found.member_status.values)] == [2, 10_000, *[2] * 6]


def test_a_member_whose_input_is_bad_says_so_without_a_name_of_a_class(monkeypatch):
    def refuse(problem: Problem, clock: Clock) -> xr.Dataset:
        raise BadInput("this seed is bad")

    monkeypatch.setitem(STUDIES._entries, "refuse", Study(refuse))
    with pytest.raises(RuntimeError, match="seed 0: it could not be computed: this seed is bad"):
        nf.run("refuse", {"members": 2}, problem=TEACHER["problem"])


def test_one_member_that_fails_ends_the_command_with_1_and_all_with_a_sentence(study, command):
    line = ["study=picky", "problem=teacher", "problem.dimension=2", "figures=none"]
    ended = command(*line, "members=3", "study.failing=1", "resume=k")
    assert ended.status == 1
    assert "1 of 3 members did not run whole (seed 1)" in ended.err
    assert nf.open("k").sizes["seed"] == 3
    ended = command(*line, "members=1", "study.failing=0", "resume=none")
    assert ended.status == 1
    assert "no member could be computed; seed 0: it could not be computed: RuntimeError: this seed is" in ended.err


def test_a_sweep_of_members_does_not_offer_to_compute_again_what_has_ended(study, command):
    line = ["-m", "study=picky", "problem=teacher", "problem.dimension=2", "members=3", "resume=s", "problem.scale=1,2"]
    for _ in range(2):
        ended = command(*line, "study.failing=1")
        assert ended.status == 1
        assert ended.err.rstrip().endswith("0 of 2 members have finished in s")


@pytest.mark.parametrize("size", [1, 4])
def test_members_of_several_shapes_are_sent_to_a_sweep(study, size):
    with pytest.raises(
        ValueError, match=r"members of one run must have one shape, but number has shape .*-m problem.seed=0,1,2,…"
    ):
        nf.run("picky", {"members": 4, "study.uneven": 2, "at_once": size}, problem=study["problem"])


def test_the_largest_variables_are_left_out_where_they_would_fill_the_memory(monkeypatch):
    from neuralode_flow.app import ensemble

    monkeypatch.setattr(ensemble, "_MOST_JOINED", 2 * 30_000)
    found = nf.run("convergence", SMALL | {"members": 2}, **TEACHER)
    assert found.dataset.attrs["left_out"] == "W_finite"
    assert {"W_finite"}.isdisjoint(found.dataset.variables)
    assert "W" in found.dataset
    assert "left out, since they would fill the memory: W_finite" in found.finding.notes["Members"]


@pytest.mark.slow
def test_all_parts_leave_out_the_same_variables_however_long_their_texts_are(study, monkeypatch):
    """The word of the first member has two signs in one part and three in the other."""
    for most in range(100, 500, 50):
        monkeypatch.setattr(ensemble, "_MOST_JOINED", most)
        found = nf.run("picky", {"members": 20, "at_once": 10}, problem=study["problem"])
        assert found.dataset.sizes["seed"] == 20


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_budget_of_wall_time_is_that_of_all_members(at_once, command):
    line = [*LINE, "members=2", f"at_once={at_once}", "study.workers=1", "resume=k"]
    ended = command(*line, "time.max_seconds=1e-3")
    assert ended.status == 1
    assert "the budget of wall time was used up" in ended.err
    assert command(*line).status == 0


@pytest.mark.slow
def test_members_in_a_sweep_and_in_steps(command):
    line = [*LINE, "members=2", "study.workers=1"]
    assert command("-m", *line, "initial.twist=0.5,1.0", "resume=s").status == 0
    sweep = collected(Path("s"))
    assert sweep.told() == "2 of 2 members have finished"
    assert dict(sweep.joined.sizes)["seed"] == dict(sweep.joined.sizes)["member"] == 2
    assert command(*line, "time=descent", "time.rate=0.05", "time.samples=3", "resume=d").status == 0
    assert nf.open("d").sizes["seed"] == 2
    summary = json.loads(Path("d/summary.json").read_text())
    assert (summary["members"], summary["status"]) == (2, "ok")


@pytest.mark.parametrize(
    ("members", "problem", "initial"),
    [
        ("5", "0 … 4", "0 … 4"),
        ("1", "0", "0"),
        ("{problem: {seed: [9, 4, 7]}}", "9 … 7", "3"),
        ("{problem: {seed: 'range(2,40)'}, initial: {seed: [5]}}", "range(2,40)", "5"),
    ],
)
def test_the_page_says_which_seeds_the_members_have(members, problem, initial):
    parts = "problem: {name: teacher, seed: 2}\ninitial: {name: relaxed_balanced, seed: 3}\n"
    said = dict(_stated(f"{parts}members: {members}\n"))
    assert said["problem"].endswith(f"seed = {problem}")
    assert said["start"].endswith(f"seed = {initial}")
    assert dict(_stated(parts))["problem"].endswith("seed = 2")


def test_the_page_says_no_other_seeds_than_those_that_differ():
    parts = "problem: {name: teacher, seed: 2}\ntime: {rule: sgd, seed: 7}\nmembers: 5\n"
    said = dict(_stated(parts))
    assert said["problem"].endswith("seed = 0 … 4")
    assert said["steps"].endswith("seed = 7")


@pytest.mark.slow
def test_the_page_has_the_statistics_and_the_figures(command):
    line = [part for part in LINE if part != "figures=none"]
    assert command(*line, "members=3", "study.workers=1", "figures=png", "resume=k").status == 0
    page = Path("k/report.html").read_text()
    assert "of 3 members verified" in page
    assert "euler, L = 8" in page
    assert {path.name for path in Path("k/figures").iterdir()} == {"histograms.png", "bands.png", "losses.png"}


@pytest.mark.parametrize(
    ("members", "workers", "nodes", "size"),
    [(640, 2, 48, 160), (512, 2, 48, 256), (3, 8, 48, 1), (1000, 1, 48, 250), (100, 2, 10**9, 1)],
)
def test_processes_have_equally_many_members_and_no_more_than_fit(members, workers, nodes, size):
    job = SimpleNamespace(
        machine=SimpleNamespace(at_once=None),
        depth=SimpleNamespace(panels=1, order=nodes),
        time=SimpleNamespace(samples=21),
        member=lambda _: SimpleNamespace(problem=None),
        ensemble=range(members),
    )
    assert ensemble.at_once(job, workers) == size


def test_parts_of_a_plugin_that_has_changed_are_computed_again(tmp_path):
    """Members of both were joined, in silence."""
    text = """
import os
import torch
from neuralode_flow.losses import Quadratic
from neuralode_flow.problems.base import PROBLEMS, Problem, identity

@PROBLEMS.register("scaled")
def scaled(seed: int = 0) -> Problem:
    if seed == 2 and os.environ.get("STOPS"):
        os._exit(7)
    target = SIZE * torch.tensor([[2.0, 0.1 * seed], [0.0, 1.0]], dtype=torch.float64)
    return Problem("scaled", "Scaled", Quadratic(target), identity(2))
"""
    plugin = tmp_path / "sizes.py"
    line = [
        *COMMAND, "plugins=[sizes]", "study=trajectory", "problem=scaled", "members=3", "at_once=1", "time.samples=3",
        "figures=none", "study.estimate=false", "depth.order=4", "resume=run", "verbosity=quiet",
    ]  # fmt: skip
    alone = partial(os.sched_setaffinity, 0, [min(os.sched_getaffinity(0))])  # parts are computed one after the other

    def status(**more):
        environment = QUIET | {"PYTHONDONTWRITEBYTECODE": "1"} | more
        return subprocess.run(line, cwd=tmp_path, env=environment, check=False, preexec_fn=alone).returncode

    plugin.write_text("SIZE = 1.0" + text)
    assert status(STOPS="1") == 7
    assert len([*(tmp_path / "run" / "checkpoints").glob("members-*.nc")]) == 2
    plugin.write_text("SIZE = 3.0" + text)
    assert status() == 0
    expected = [((6.0 - 1.0) ** 2 + (0.3 * seed) ** 2 + (3.0 - 1.0) ** 2) / 2 for seed in range(3)]
    np.testing.assert_allclose(nf.open(tmp_path / "run").loss.values[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_dates_of_a_member_that_failed_are_none(size, monkeypatch):
    """They were the first of January 1970, and lengths of time were 0."""

    def dated(problem: Problem, clock: Clock, *, progress: object = None) -> xr.Dataset:
        if problem.name == "teacher" and "seed 1" in problem.title:
            raise ValueError("it is not to be computed")
        day, span = np.datetime64("2020-02-01", "ns"), np.timedelta64(5, "s")
        finding = Finding(study="dated", problem=problem.title, status="ok", verdict="told")
        return finding.attached(xr.Dataset({"day": ((), day), "span": ((), span)}))

    monkeypatch.setitem(STUDIES._entries, "dated", Study(dated))
    found = nf.run("dated", {"members": 3, "at_once": size}, problem={"name": "teacher", "dimension": 2})
    for name in ("day", "span"):
        assert np.isnat(found.dataset[name].values).tolist() == [False, True, False]
