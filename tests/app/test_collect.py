"""A sweep becomes one dataset and one table; runs are redrawn and laid over one another."""

import json
from pathlib import Path

import numpy as np
import pytest

import neuralode_flow as nf
from neuralode_flow.app import collect, plot

SWEEP = ("-m", "study=fake", "problem=teacher", "problem.dimension=2", "resume=sweep")


def test_members_are_joined_along_the_settings_in_which_they_differ(command, capfd):
    command(*SWEEP, "problem.seed=0,3", "study.end=ok,raise")
    collect.main(["sweep"])
    assert "2 of 4 members have finished" in capfd.readouterr().out
    records = json.loads(Path("sweep/collected.json").read_text())
    assert [(r["problem.seed"], r["status"][:5]) for r in records if r["status"] == "ok"] == [(0, "ok"), (3, "ok")]
    assert "problem.dimension" not in records[0]  # the same in all, also in those that failed
    assert sum("the sky fell" in record["status"] for record in records) == 2
    dataset = nf.open("sweep")
    assert dataset["problem.seed"].values.tolist() == [0, 3]
    assert dataset.error_z.dims[0] == "member"
    single = nf.open("sweep/0")
    np.testing.assert_array_equal(dataset.error_z.isel(member=0), single.error_z)


def test_members_of_several_sizes_are_padded(command):
    for dimension in (2, 3):
        line = ("study=trajectory", "problem=teacher", f"problem.dimension={dimension}", f"resume=sizes/{dimension}")
        assert command(*line, "study.estimate=false", "time.samples=3", "depth.order=4").status == 0
    collect.main(["sizes"])
    dataset = nf.open("sizes")
    assert dataset.sizes["row"] == 3
    small, large = (dataset.z.sel({"member": name}) for name in ("2", "3"))
    assert np.isnan(small.isel(row=2)).all()
    np.testing.assert_array_equal(small.isel(row=[0, 1], column=[0, 1]).values, nf.open("sizes/2").z.values)
    assert np.isfinite(large).all()


def test_the_page_of_a_sweep_says_first_what_failed_and_how_it_goes_on(command):
    command(*SWEEP, "problem.seed=0,3", "study.end=ok,raise")
    collect.main(["sweep"])
    page = Path("sweep/report.html").read_text(encoding="utf-8")
    assert page.index("2 of 4 members have finished") < page.index("the sky fell") < page.index("All is well.")
    assert 'href="0/report.html"' in page
    assert "the others differ in problem.seed, study.end" in page
    assert "dimension: 2" in page
    assert "neuralode-flow -m study=fake problem=teacher problem.dimension=2" in page
    assert page.rindex("resume=sweep") > page.rindex("problem.seed=0,3")


def test_a_folder_without_members_is_refused(tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        collect.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "holds no member of a sweep" in capfd.readouterr().err


@pytest.fixture
def runs(command):
    for seed in (0, 1):
        line = ("study=convergence", "problem=teacher", "problem.dimension=2", f"problem.seed={seed}", f"out=out{seed}")
        assert command(*line, "study.depths=[4,8]", "study.layers=[euler]", "time.samples=3").status == 0
    return [str(next(Path(f"out{seed}").glob("*/*"))) for seed in (0, 1)]


def test_runs_are_redrawn_from_their_dataset_and_laid_over_one_another(runs):
    before = (Path(runs[0]) / "figures" / "square.png").read_bytes()
    plot.main([runs[0], "--out", "again"])
    assert (Path("again") / "square.png").read_bytes() == before
    plot.main([*runs, "--out", "both"])
    assert {path.name for path in Path("both").iterdir()} >= {"error_z.png", "error_z.pdf", "loss_continuous.pdf"}
    origin = nf.open(runs[0]).attrs
    assert json.loads(origin["versions"])["torch"]
    assert "git_commit" in origin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere does not exist"), (["sweep/0", "sweep/0"], "a run is named twice")],
)
def test_what_cannot_be_drawn_is_refused(command, capfd, arguments, message):
    command(*SWEEP, "problem.seed=0,1")
    with pytest.raises(SystemExit) as stop:
        plot.main(arguments)
    assert stop.value.code == 2
    assert message in capfd.readouterr().err
