"""Run folders that are left in the middle: they go on to the same results, and nothing else may use them."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import xarray as xr
from forked import begun, forked

import neuralode_flow as nf
from neuralode_flow.files import locked

SMALL = [
    "problem=teacher", "problem.dimension=3", "study=trajectory", "study.model=finite", "study.network_depth=24",
    "time.method=dopri5", "time.horizon=6", "time.samples=7", "time.rtol=1e-9", "save_every=0.01", "figures=png",
]  # fmt: skip
LONG = [*SMALL, "time.horizon=6000"]  # does not end before it is killed, however late this process is told to go on
COMMAND = [sys.executable, "-m", "neuralode_flow"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments, **options):
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET, **options
    )


def finish(*arguments, cwd="."):
    ended = forked(cwd, *arguments)
    return ended.returncode, ended.stdout, ended.stderr


def saved(folder):
    """The checkpoints in a run folder, without one that is being written under another name."""
    return list(Path(folder, "checkpoints").glob("[!.]*.npz"))


def wait_for_a_checkpoint(child, folder):
    last = time.monotonic() + 60
    while not saved(folder) and child.poll() is None and time.monotonic() < last:
        time.sleep(0.02)


def numbers(folder):
    """What a run computed, without the seconds that it took."""
    summary = json.loads(Path(folder, "summary.json").read_text())
    summary.pop("seconds")
    dataset = nf.open(folder)
    dataset.attrs.pop("config")
    return summary, dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = finish(*SMALL, f"resume={folder}")
    assert (status, err) == (0, "")
    return folder


def test_an_empty_folder_is_started_and_a_finished_one_is_left_alone(whole, tmp_path):
    assert sorted(path.name for path in whole.iterdir()) == [
        "config.yaml", "figures", "report.html", "results.nc", "summary.json",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    status, out, _ = finish(*SMALL, f"resume={whole}")
    assert status == 0
    assert "finished" in out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_numbers(whole, tmp_path):
    draws, folder = random.Random(0), tmp_path / "run"
    for _ in range(4):
        child = start(*SMALL, f"resume={folder}")
        wait_for_a_checkpoint(child, folder)
        time.sleep(draws.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        for path in saved(folder):
            nf.load(path)
    status, _, err = finish(*SMALL, f"resume={folder}")
    assert (status, err) == (0, "")
    summary, dataset = numbers(folder)
    expected, truth = numbers(whole)
    assert summary == expected
    xr.testing.assert_identical(dataset, truth)
    assert [path.name for path in folder.rglob(".*")] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_go_on(whole, number, status, tmp_path):
    folder = tmp_path / "run"
    long = [*SMALL, "save_every=1000"]
    child = start(*long, f"resume={folder}")
    last = time.monotonic() + 60
    while not (folder / "checkpoints").is_dir() and time.monotonic() < last:
        time.sleep(0.02)
    time.sleep(0.3)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == status
    assert f"the same command with resume={folder} goes on" in err
    assert "Traceback" not in err
    reached = [nf.load(path) for path in saved(folder)]
    assert reached
    assert finish(*long, f"resume={folder}")[0] == 0
    xr.testing.assert_identical(numbers(folder)[1], numbers(whole)[1])


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_run_that_goes_on(whole, tmp_path):
    folder, (ours, theirs) = tmp_path / "run", os.openpty()
    line = [*COMMAND, *SMALL, "save_every=1000", f"resume={folder}"]
    child = subprocess.Popen(
        line, stdin=theirs, stdout=theirs, stderr=theirs, env=QUIET, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    last = time.monotonic() + 60
    while not (folder / "checkpoints").is_dir() and time.monotonic() < last:
        time.sleep(0.02)
    time.sleep(0.3)
    os.close(ours)
    assert child.wait(timeout=60) == 129
    assert saved(folder)
    assert finish(*line[3:])[0] == 0
    xr.testing.assert_identical(numbers(folder)[1], numbers(whole)[1])


@pytest.mark.slow
def test_nohup_lets_a_run_go_on_without_its_terminal(whole, tmp_path):
    folder = tmp_path / "run"
    child = start(*SMALL, f"resume={folder}", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_a_checkpoint(child, folder)
    child.send_signal(signal.SIGHUP)
    child.communicate(timeout=100)
    assert child.returncode == 0
    xr.testing.assert_identical(numbers(folder)[1], numbers(whole)[1])


@pytest.mark.slow
def test_resume_true_finds_the_unfinished_run_of_the_same_config(whole, tmp_path):
    place = next(filter(left_in_the_middle, (tmp_path / str(attempt) for attempt in range(20))))
    status, out, _ = finish(*SMALL, "resume=true", cwd=place)
    folders = list(place.glob("runs/trajectory/*"))
    assert status == 0
    assert len(folders) == 1
    xr.testing.assert_identical(numbers(folders[0])[1], numbers(whole)[1])
    assert finish(*SMALL, "resume=true", "problem.seed=1", cwd=place)[0] == 0  # nothing to go on with: a new one
    assert len(list(place.glob("runs/trajectory/*"))) == 2


@pytest.mark.slow
def test_a_signal_while_figures_are_drawn_says_how_to_go_on(whole, tmp_path):
    folder = tmp_path / "run"
    child = start(*SMALL, f"resume={folder}")
    while not (folder / "figures").is_dir() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert f"the same command with resume={folder} goes on" in err
    assert not (folder / "summary.json").exists()
    assert finish(*SMALL, f"resume={folder}")[0] == 0
    xr.testing.assert_identical(numbers(folder)[1], numbers(whole)[1])


@pytest.mark.slow
def test_a_folder_that_is_removed_during_the_run_is_no_bad_input(tmp_path):
    folder = tmp_path / "run"
    child = start(*LONG, f"resume={folder}")
    wait_for_a_checkpoint(child, folder)
    child.send_signal(signal.SIGSTOP)  # else it writes into what is being removed, and the removal fails
    shutil.rmtree(folder)
    child.send_signal(signal.SIGCONT)
    _, err = child.communicate(timeout=100)
    assert child.returncode == 1
    assert "Traceback" not in err
    assert re.search(f"{folder}.*: No such file or directory", err)


@pytest.mark.slow
def test_a_run_that_has_used_up_a_budget_goes_on_with_another(whole, tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):  # the second time there is nothing left of it
        status, out, err = finish(*SMALL, f"resume={folder}", "time.max_evaluations=100")
        assert status == 1
        assert "the budget of 100 velocity evaluations was used up" in err
        assert "finished" not in out
        assert json.loads((folder / "summary.json").read_text())["ending"] == "evaluations"
        assert saved(folder)
    status, _, err = finish(*SMALL, f"resume={folder}")
    assert (status, err) == (0, "")
    xr.testing.assert_equal(numbers(folder)[1], numbers(whole)[1])  # the evaluations of the cut steps count as well
    assert not saved(folder)


@pytest.mark.slow
def test_memory_that_runs_out_is_no_bad_input(tmp_path):
    code = (
        "import resource, sys, torch; from neuralode_flow.app.main import main; import neuralode_flow.app.job;"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1));"
        "sys.argv = ['neuralode-flow', *sys.argv[1:]]; main()"
    )
    line = ["problem=teacher", "problem.dimension=2000", "study.depths=[4]", f"out={tmp_path}"]
    child = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, env=QUIET, timeout=200)
    assert child.returncode == 1, child.stderr
    assert "memory ran out" in child.stderr
    assert "Traceback" not in child.stderr
    assert not list(tmp_path.rglob("*.*"))


def left_in_the_middle(place):
    """Starts a run in a new folder and kills it after its first checkpoint; whether it was still at work."""
    place.mkdir()
    child = start(*SMALL, cwd=place)
    while not list(place.glob("runs/trajectory/*/checkpoints/[!.]*.npz")) and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return not list(place.glob("runs/trajectory/*/summary.json"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a run that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    child, last = begun(folder.parent, *LONG, f"resume={folder}"), time.monotonic() + 60
    while not saved(folder) and time.monotonic() < last:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it goes on
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return folder


@pytest.fixture
def folder(killed, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed, tmp_path / "run")


def test_another_config_is_refused_and_what_changed_is_named(folder):
    before = [path.read_bytes() for path in saved(folder)]
    status, _, err = finish(*LONG, f"resume={folder}", "time.rtol=1e-8", "problem.seed=5", "threads=2")
    assert status == 2
    assert "problem.seed was 0 and is 5; time.rtol was 1e-09 and is 1e-08" in err
    assert "threads" not in err
    assert [path.read_bytes() for path in saved(folder)] == before


def test_a_second_run_on_a_folder_is_refused(folder):
    with locked(folder / ".lock"):
        status, _, err = finish(*LONG, f"resume={folder}")
    assert status == 2
    assert "is in use by another run" in err
    assert saved(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    status, _, err = finish(*SMALL, f"resume={tmp_path}")
    assert status == 2
    assert "is not the folder of a run" in err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_users_empty_folder_stays_when_nothing_comes_of_the_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    status, _, err = finish(*SMALL, f"resume={folder}", "time.method=rk4", "time.step=1e-9")
    assert status == 1
    assert "step = 1e-09" in err
    assert list(folder.iterdir()) == []


def test_a_damaged_checkpoint_is_refused_with_a_sentence(folder):
    path = folder / "checkpoints" / "finite.npz"  # the run that measures the error may have begun its own
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    status, _, err = finish(*LONG, f"resume={folder}")
    assert status == 1
    assert f"{path} is damaged" in err
    assert "Traceback" not in err
    assert path.read_bytes() == content


@pytest.mark.slow
def test_a_small_disk_ends_the_run_with_a_sentence(tmp_path):
    # A limit on the size of files stands for a disk that is full.
    code = (
        "import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); sys.argv = ['neuralode-flow', *sys.argv[1:]];"
        "runpy.run_module('neuralode_flow', run_name='__main__')"
    )
    folder = tmp_path / "run"
    without_coverage = {name: value for name, value in QUIET.items() if not name.startswith("COVERAGE")}
    child = subprocess.run(
        [sys.executable, "-c", code, *SMALL, f"resume={folder}"], capture_output=True, text=True, env=without_coverage
    )
    assert child.returncode == 1
    assert "could not be written to" in child.stderr
    assert "File too large" in child.stderr
    assert "Traceback" not in child.stderr
    assert list(tmp_path.rglob("summary.json")) == []


def test_results_files_that_are_damaged_or_foreign_are_refused(whole, tmp_path):
    sound, draws = (whole / "results.nc").read_bytes(), random.Random(2)
    path = tmp_path / "results.nc"
    damaged = [sound[: draws.randrange(len(sound))] for _ in range(30)] + [sound + b"x", b""]
    for _ in range(100):
        flipped = bytearray(sound)
        flipped[draws.randrange(len(sound))] ^= 1 << draws.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"results.nc (is damaged|is not a whole file|has format version)"):
            nf.open(path)
    path.write_bytes(sound.replace(b"flow results 1 ", b"flow results 2 "))
    with pytest.raises(ValueError, match="has format version 2 and this program reads version 1"):
        nf.open(path)
    path.write_bytes(sound)
    xr.testing.assert_identical(nf.open(path), nf.open(whole))
    xr.testing.assert_identical(xr.open_dataset(path, engine="h5netcdf").load(), nf.open(whole))
    (tmp_path / "config.yaml").write_text("problem: another")
    with pytest.raises(ValueError, match="belongs to another run"):
        nf.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        nf.open(tmp_path / "nothing")
