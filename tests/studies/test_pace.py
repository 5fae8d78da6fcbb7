"""What a command says when explicit steps crawl, and how its budgets end it."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from forked import forked

from neuralode_flow.studies import pace
from neuralode_flow.studies.pace import Pace
from neuralode_flow.time.progress import Progress


def told(method: str, speed: float, seconds: list[float]) -> list[str]:
    """What is said of a run to t = 100 that goes at a constant speed, at these seconds of wall time."""
    watch = Pace().watch(method)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for s in seconds if watch is not None else ():
            watch(Progress(t=speed * s, end=100.0, fraction=0.0, loss=1.0, step=0.1, evaluations=1, seconds=s))
    return [str(warning.message) for warning in said]


def test_a_crawl_is_told_once_and_by_its_length() -> None:
    (sentence,) = told("DOP853", 0.001, [0.2 * i for i in range(1, 200)])
    assert sentence.startswith("DOP853 has come to t = 0.0064 of 100 in 6 s and needs about 28 hours more at this pace")
    assert "time.method=auto" in sentence
    assert "time.max_seconds=" in sentence
    (sentence,) = told("RK45", 1e-30, [1.0, 7.0])
    assert "thousands of years" in sentence


def test_a_crawl_is_told_where_there_are_no_semaphores(monkeypatch) -> None:
    """As in a container whose /dev/shm cannot be written to: it was a refusal of every run."""

    def none(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", none)
    pace._lock.cache_clear()
    try:
        assert len(told("DOP853", 0.001, [0.2 * i for i in range(1, 200)])) == 1
    finally:
        pace._lock.cache_clear()


@pytest.mark.parametrize(
    ("method", "speed", "seconds"),
    [
        ("DOP853", 0.001, [1.0, 3.0]),  # too early
        ("DOP853", 0.2, [1.0, 10.0, 30.0]),  # done within minutes
        ("auto", 0.001, [1.0, 10.0]),
        ("rk4", 0.001, [1.0, 10.0]),
    ],
)
def test_nothing_is_told_of_others(method: str, speed: float, seconds: list[float]) -> None:
    assert told(method, speed, seconds) == []


def test_first_short_steps_are_no_crawl() -> None:
    watch = Pace().watch("DOP853")
    for s, t in ((0.1, 1e-9), (3.0, 1e-6), (6.1, 50.0)):
        watch(Progress(t=t, end=100.0, fraction=0.0, loss=1.0, step=0.1, evaluations=1, seconds=s))


def test_where_no_step_has_ended_nothing_is_told_of_a_pace() -> None:
    assert told("DOP853", 0.0, [1.0, 7.0, 15.0]) == []


def stiff(folder: Path) -> list[str]:
    """A regression on inputs of very different units, as a user's own file may have them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 3)) * [1.0, 30.0, 4000.0]
    np.savetxt(folder / "x.csv", x, delimiter=",")
    np.savetxt(folder / "y.csv", x[:, ::-1] + random.normal(size=x.shape), delimiter=",")
    return ["problem=file", "problem.x=x.csv", "problem.y=y.csv", "problem.standardise=false", "figures=none"]


def command(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return forked(folder, *stiff(folder), *settings)


def test_a_budget_ends_a_run_which_goes_on_with_another_one(tmp_path: Path) -> None:
    for budget, sentence in (
        ("max_evaluations=500", "the budget of 500 velocity evaluations was used up at t = "),
        ("max_seconds=1", "the budget of wall time was used up at t = "),
    ):
        ended = command(tmp_path, f"time.{budget}", "resume=here")
        assert ended.returncode == 1
        assert sentence in ended.stderr
        assert "the same command with resume=here goes on" in ended.stderr
        assert list(tmp_path.glob("here/checkpoints/*.npz"))


def test_a_study_that_shows_what_it_has_reached_says_that_it_goes_on(tmp_path: Path) -> None:
    settings = ("study=trajectory", "time.method=auto", "resume=here")
    ended = command(tmp_path, *settings, "time.max_evaluations=50")
    assert ended.returncode == 1
    assert "the same command with resume=here goes on" in ended.stderr
    assert "the study did not run whole: the budget of 50 velocity evaluations" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["study=initialisations", "study.draws=2", "study.depths=[2]"], "was used up at t = "),
        (["study=deep_completion", "study.matrices=1", "study.depths=[2,3]"], "was used up at t = "),
        (["study=conservation_laws", "study.networks=50"], "was used up after "),
    ],
)
def test_a_budget_ends_every_study_with_its_own_sentence(tmp_path: Path, settings: list[str], sentence: str) -> None:
    line = [sys.executable, "-m", "neuralode_flow", *settings, "time.max_seconds=0.02"]
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 1
    assert f"the budget of wall time {sentence}" in ended.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_stiff_problem_says_that_it_crawls_and_auto_does_not(tmp_path: Path) -> None:
    ended = command(tmp_path, "time.max_seconds=14")
    assert ended.returncode == 1
    assert ended.stderr.count("at this pace") == 1
    assert "DOP853 has come to t = " in ended.stderr
    quick = command(tmp_path, "time.method=auto", "study.depths=[4]", "study.layers=[euler]", "out=auto")
    assert "at this pace" not in quick.stderr
    assert "goes on" not in quick.stderr


def test_it_is_told_once_for_all_processes_of_a_study(monkeypatch) -> None:
    from neuralode_flow.parallel import side_by_side

    monkeypatch.setattr(pace, "PATIENCE", 0.0)
    shared = Pace()

    def crawl(key: int) -> int:
        watch = shared.watch("DOP853")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for s in (1.0, 2.0, 4.0):
                watch(Progress(t=1e-9 * s, end=1.0, fraction=0.0, loss=1.0, step=0.1, evaluations=1, seconds=s))
        return len(said)

    assert sum(count for _, count in side_by_side(crawl, range(6), workers=2)) == 1
