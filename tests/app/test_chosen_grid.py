"""The depth grid that a command chooses by `depth.tol`, from the start of the run."""

import json
import re

import pytest
import torch
from cases import slow
from hydra import compose, initialize_config_module

import neuralode_flow as nf
from neuralode_flow.app.errors import BadInput
from neuralode_flow.app.job import build
from neuralode_flow.app.schema import checked

SMALL = ("problem=teacher", "problem.dimension=3")


def job_of(*lines):
    with initialize_config_module("neuralode_flow.conf", version_base="1.3"):
        return checked(compose("config", list(lines)), lines)


def inputs(*lines):
    """Problem, start and depth grid of a command."""
    problem, initial, solver, _ = build(job_of(*lines)).values()
    return problem, initial, solver.grid


@pytest.mark.parametrize("solver", ["collocation", "torchdiffeq"])
@pytest.mark.parametrize("tol", [1e-6, 1e-10])
def test_the_velocity_at_the_start_is_right_to_what_was_asked(tol, solver):
    problem, initial, grid = inputs(*SMALL, f"depth={solver}", f"depth.tol={tol}")
    fine = nf.DepthGrid.gauss(8, 16)
    coarse, reference = (nf.ContinuousFlow(own, problem.loss) for own in (grid, fine))
    velocity = reference.velocity(reference.sample(initial))
    gap = coarse.velocity(coarse.sample(initial)) - fine.interpolate(velocity, grid.nodes)
    after, before, _ = nf.Collocation(fine).propagators(reference.sample(initial))
    slope = problem.loss.gradient(reference.product(reference.sample(initial)))
    size = (torch.linalg.matrix_norm(after) * torch.linalg.matrix_norm(before)).max() * torch.linalg.matrix_norm(slope)
    error = float(torch.linalg.matrix_norm(gap).max() / size)
    assert tol / 1000 < error <= tol
    assert len(grid) == len(nf.DepthGrid.auto(initial, tol)) < 48


def test_a_smaller_tolerance_takes_more_nodes_and_a_start_of_its_own_other_ones():
    few, more = (len(inputs(*SMALL, f"depth.tol={tol}")[-1]) for tol in (1e-4, 1e-12))
    assert few < more
    twisted = inputs(*SMALL, "initial.twist=30", "depth.tol=1e-4")[-1]
    assert len(twisted) > 2 * few


def test_a_run_has_the_grid_and_goes_on_with_it(command, workplace):
    lines = [*SMALL, "study=trajectory", "depth.tol=1e-8", "figures=none", "time.samples=3", "keep_checkpoints=true"]
    expected = len(nf.DepthGrid.auto(inputs(*lines)[1], 1e-8))

    def run(folder, *more):
        ended = command(*lines, f"resume={folder}", *more)
        assert (ended.status, ended.err) == (0, "")
        return nf.open(workplace / folder)

    whole = run("whole", "time.horizon=4", "time.samples=5")
    run("parts", "time.horizon=2")
    longer = run("parts", "time.horizon=4")
    assert longer.sizes["s"] == whole.sizes["s"] == expected
    torch.testing.assert_close(torch.tensor(longer.z.values[-1]), torch.tensor(whole.z.values[-1]), rtol=1e-9, atol=0)
    saved = (workplace / "whole" / "config.yaml").read_text()
    assert "  panels: null\n  order: null\n  tol: 1.0e-08\n" in saved  # none of the numbers that were not used


@pytest.mark.parametrize("study", ["trajectory", *slow("learning_rate")])
def test_the_grid_that_was_chosen_is_told(study, command, workplace):
    few = {"trajectory": ("time.samples=3",), "learning_rate": ("study.depths=[4,8]", "time.horizon=0.2")}
    ended = command(*SMALL, f"study={study}", *few[study], "depth.tol=1e-8", "-v", "figures=none", "resume=it")
    assert ended.status == 0, ended.err
    chosen = nf.DepthGrid.auto(inputs(*SMALL, "study=trajectory")[1], 1e-8)
    size = [chosen.panels, chosen.order]
    assert json.loads((workplace / "it" / "summary.json").read_text())["depth_grid"] == size
    assert nf.open(workplace / "it").attrs["depth_grid"].tolist() == size
    said = f"{size[0]} × {size[1]} nodes, chosen by depth.tol=1e-08"
    assert f"Depth grid: {said}" in ended.out
    assert said in (workplace / "it" / "report.html").read_text()


@pytest.mark.parametrize(
    ("lines", "remedy"),
    [
        (("depth.tol=0.5",), "use more nodes, by a smaller depth.tol, or adapt=True"),
        (("depth.panels=1", "depth.order=4"), "use more nodes, or adapt=True"),
    ],
)
def test_what_helps_against_a_coarse_grid_is_named_as_it_was_asked_for(lines, remedy, command):
    of = (*SMALL, "study=trajectory", "study.adapt=false", "study.estimate=false", "time.samples=3", "figures=none")
    ended = command(*of, *lines)
    assert ended.status == 1
    assert re.search(rf"the depth grid of 1 × \d nodes does not resolve W: .*; {remedy}$", ended.err.splitlines()[0])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("depth.tol=0",), "depth.tol must be above 0, got 0.0"),
        (("depth.tol=many",), "depth.tol must be a finite number, got 'many'"),
        (("depth.tol=1e-20",), "depth.tol: tol must be at least 2.2e-16, the round-off of float64, got 1e-20"),
        (("depth.tol=1e-8", "initial=smooth", "initial.scale=1e200"), "depth.tol: W is too large for torch.float64"),
        (("depth.tol=1e-8", "depth.panels=2"), "depth.panels=2 has no effect with depth.tol=1e-08"),
        (("depth.order=6", "depth.tol=1e-8"), "depth.order=6 has no effect with depth.tol=1e-08"),
        (("depth.panels=null",), "depth.panels must be an integer, got None; or set depth.tol"),
        (("depth.order=null",), "depth.order must be an integer, got None; or set depth.tol"),
        (("study=universality", "depth.tol=1e-8"), "and study=universality has its own; set depth.panels"),
        (("study=depth_heatmap", "depth.tol=1e-8"), "and study=depth_heatmap has its own; set depth.panels"),
        (("study=strong_imbalance", "depth.tol=1e-8"), "depth.tol=1e-08 has no effect: study=strong_imbalance uses no"),
        ((*SMALL, "members=3", "depth.tol=1e-8"), "run them as a sweep, -m problem.seed=0,1,2 initial.seed=0,1,2"),
        (("study=perceptron", "depth.tol=1e-8"), "depth.tol=1e-8 has no effect: study=perceptron uses no depth"),
    ],
)
def test_what_chooses_no_grid_is_refused(lines, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        build(job_of(*lines))


def test_an_experiment_that_has_a_grid_takes_the_one_that_is_asked_for():
    job = job_of("experiment=edge", "depth.tol=1e-6")
    assert (job.depth.panels, job.depth.order, job.depth.tol) == (None, None, 1e-6)
    assert job_of("experiment=edge").depth.panels == 2


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (None, "W must be a function of a float s"),
        (lambda s: {}[s], r"depth.tol: the start ends in KeyError: 0\."),
        (lambda s: torch.eye(3) / (1 // 0), "depth.tol: the start ends in ZeroDivisionError"),
        (lambda s: next(iter(())), "depth.tol: the start ends in StopIteration"),
    ],
)
def test_an_initialisation_that_is_no_start_is_refused(start, said):
    job = job_of(*SMALL, "depth.tol=1e-6")
    with pytest.MonkeyPatch.context() as changed:
        changed.setitem(nf.INITIALS._entries, job.initial.name, lambda z0, **settings: start)
        with pytest.raises(BadInput, match=said):
            build(job)
