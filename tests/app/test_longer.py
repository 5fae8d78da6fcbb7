"""A run that has ended goes on to a longer horizon by `resume=FOLDER`: its times stay, others follow, none is lost."""

import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr
from forked import forked

import neuralode_flow as nf
from neuralode_flow import archive
from neuralode_flow.app.errors import BadInput
from neuralode_flow.app.job import output_times
from neuralode_flow.app.schema import Time
from neuralode_flow.untrusted import parse_yaml, read_yaml

SMALL = [
    "problem=teacher", "problem.dimension=2", "study=trajectory", "study.model=finite", "study.network_depth=16",
    "time.method=dopri5", "time.samples=5", "time.rtol=1e-8", "figures=none",
]  # fmt: skip
SHORT, LONG = [*SMALL, "time.horizon=2"], [*SMALL, "time.horizon=3.3"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*arguments, **options):
    words = [sys.executable, "-m", "neuralode_flow", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, env=QUIET, timeout=200, **options)
    return done.returncode, done.stdout, done.stderr


def study(folder, *settings):
    """The same from Python, in this process."""
    lines = [line.split("=", 1) for line in (*SHORT, *settings)]
    return nf.run("trajectory", {key: parse_yaml(text) for key, text in lines if key != "study"}, folder=folder)


def digests(folder):
    return {
        p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."
    }


def assert_begins_with(longer, short):
    """The first times of one dataset are those of another, with the same numbers to the bit."""
    n = short.sizes["time"]
    compared = 0
    for name in short.data_vars:
        if "time" in short[name].dims and not name.startswith("error"):  # errors are of the whole run
            compared += 1
            xr.testing.assert_equal(longer[name].isel(time=slice(0, n)).drop_attrs(), short[name].drop_attrs())
    assert compared
    assert np.array_equal(longer.time[:n], short.time)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run that has ended, and its dataset; its checkpoints are kept."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert forked(folder.parent, *SHORT, "keep_checkpoints=true", f"resume={folder}").returncode == 0
    return folder, nf.open(folder)


@pytest.fixture
def run(short, tmp_path):
    """A copy of it."""
    subprocess.run(["cp", "-r", str(short[0]), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


def test_the_old_times_stay_and_new_ones_follow_at_the_same_distance(short, run, tmp_path):
    ended = forked(tmp_path, *LONG, f"resume={run}", "-v")
    assert (ended.returncode, ended.stderr) == (0, "")
    longer = nf.open(run)
    assert longer.time.values.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.3]
    assert_begins_with(longer, short[1])
    assert read_yaml(run / "config.yaml")["time"]["horizon"] == 3.3
    assert "time.extends=[2.0]" in (run / "report.html").read_text()

    # What the report says repeats it from the start, with the same numbers.
    assert forked(tmp_path, *LONG, "time.extends=[2.0]", f"resume={tmp_path / 'whole'}").returncode == 0
    whole = nf.open(tmp_path / "whole")
    assert_begins_with(whole, longer)
    assert json.loads((run / "summary.json").read_text())["status"] == "ok"


def test_the_same_command_again_finds_it_finished_and_a_longer_one_goes_on(run, capfd):
    longer = study(run, "time.horizon=3.3", "keep_checkpoints=true").dataset
    before = digests(run)
    again = study(run, "time.horizon=3.3")
    assert digests(run) == before
    xr.testing.assert_equal(again.dataset, longer)
    last = study(run, "time.horizon=4").dataset
    assert last.time.values.tolist() == pytest.approx([*longer.time.values, 3.8, 4.0], abs=1e-15)
    assert_begins_with(last, longer)
    assert capfd.readouterr().err == ""
    assert not (run / "checkpoints").exists()  # a short run keeps nothing unless it is asked to
    assert_begins_with(study(run, "time.horizon=5").dataset, last)
    said = "has kept no checkpoints: it is computed from the start again, with the old times"
    assert capfd.readouterr().err == f"neuralode-flow: {run} {said}\n"


def test_it_goes_on_from_the_kept_checkpoint_and_computes_nothing_again(short, run):
    path = run / "checkpoints" / "finite.npz"
    header, arrays = archive.read(path)
    arrays["z"] = arrays["z"] + 1.0  # of the times that are over
    archive.write(path, header, arrays)
    longer = study(run, "time.horizon=3.3").dataset
    kept = longer.z.isel(time=slice(0, 4))
    assert np.array_equal(kept, short[1].z.isel(time=slice(0, 4)) + 1.0)
    assert float(abs(longer.z[5] - longer.z[4] + 1.0).max()) < 0.5  # what comes after does not know of it


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["time.horizon=1"], "time.horizon was 2.0 and is 1.0"),
        (["time.horizon=3", "time.samples=7"], "time.samples was 5 and is 7"),
        (["time.horizon=3", "problem.seed=1"], "problem.seed was 0 and is 1"),
        (["time.horizon=3", "time.rtol=1e-9"], "time.rtol was 1e-08 and is 1e-09"),
        (["time.horizon=3", "time.extends=[1.0]"], "time.extends was None and is [1.0]"),
        (["time.horizon=3", "time.extends=[4]"], "time.extends must be horizons that grow"),
        (["time.horizon=1e7"], "time.horizon=10000000.0 is too far beyond 2.0"),
    ],
)
def test_anything_else_that_differs_is_refused_and_nothing_changes(run, settings, said):
    before = digests(run)
    with pytest.raises(ValueError, match=re.escape(said)):
        study(run, *settings)
    assert digests(run) == before


@pytest.mark.slow
def test_killed_on_the_way_it_keeps_the_old_results_and_goes_on(short, run, tmp_path):
    far = [*SMALL, "time.horizon=200", "save_every=0.01", f"resume={run}"]
    before = {path: text for path, text in digests(run).items() if "checkpoints" not in path.parts}
    words = [sys.executable, "-m", "neuralode_flow", *far]
    checkpoint = run / "checkpoints" / "finite.npz"
    for _ in range(3):
        was = checkpoint.stat().st_mtime_ns
        with subprocess.Popen(words, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            last = time.monotonic() + 60
            while checkpoint.stat().st_mtime_ns == was and child.poll() is None and time.monotonic() < last:
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
        now = digests(run)
        assert {path: now[path] for path in before} == before
        assert_begins_with(nf.load(checkpoint).to_xarray()[["z"]], short[1][["z"]])
    assert command(*SHORT, f"resume={run}")[1].startswith("this run is finished")
    assert command(*far)[0] == 0
    assert command(*SMALL, "time.horizon=200", "time.extends=[2.0]", f"resume={tmp_path / 'whole'}")[0] == 0
    assert_begins_with(nf.open(run), nf.open(tmp_path / "whole"))


@pytest.mark.slow
def test_where_the_longer_results_cannot_be_written_the_old_ones_are_whole(run):
    size = max(p.stat().st_size for p in run.rglob("*.npz")) + 2000
    assert size < (run / "results.nc").stat().st_size  # the checkpoints fit and the results do not
    before = {path: text for path, text in digests(run).items() if "checkpoints" not in path.parts}

    def little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    status, _, err = command(*LONG, f"resume={run}", preexec_fn=little_room)
    assert status == 1
    assert "could not be written" in err
    now = digests(run)
    assert {path: now[path] for path in before} == before
    assert command(*LONG, f"resume={run}")[0] == 0
    assert nf.open(run).sizes["time"] == 8


def killed_before(step, folder, *settings):
    """A run in a process that is killed just before its `step`-th change of a file of results; whether it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(change):
            def changed(path, *rest, **options):
                nonlocal count
                if "checkpoints" not in str(path):
                    count += 1
                    if count == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                return change(path, *rest, **options)

            return changed

        os.replace, pathlib.Path.unlink = dying(os.replace), dying(pathlib.Path.unlink)
        study(folder, *settings)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.slow
def test_killed_at_any_instant_no_summary_stands_beside_results_that_are_not_its_own(run, tmp_path):
    step, seen = 1, set()
    while True:
        copy = tmp_path / f"killed before {step}"
        subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
        killed = killed_before(step, copy, "time.horizon=3.3", "keep_checkpoints=true")
        with xr.open_dataset(copy / "results.nc", engine="h5netcdf") as dataset:  # `nf.open` says where configs differ
            end = float(dataset.time[-1])
        asked = read_yaml(copy / "config.yaml")["time"]["horizon"]
        finished = (copy / "summary.json").exists()
        seen.add((finished, end, asked))
        if finished:
            assert end == asked
        if not killed:
            assert (finished, end) == (True, 3.3)
            break
        assert study(copy, "time.horizon=3.3").dataset.sizes["time"] == 8  # whatever there is, it goes on
        assert nf.open(copy).sizes["time"] == 8
        step += 1
    assert {(True, 2.0, 2.0), (False, 2.0, 2.0), (False, 3.3, 2.0), (False, 3.3, 3.3), (True, 3.3, 3.3)} <= seen


def test_other_data_is_refused(tmp_path):
    table = tmp_path / "table.csv"
    rows = ["a,b", *(f"{i % 7},{(3 * i) % 5}" for i in range(20))]
    table.write_text("\n".join(rows))
    settings = {"problem": "file", "problem.table": str(table), "problem.x": ["a"], "problem.y": ["b"]}
    settings |= {"study.model": "intrinsic", "time.samples": 3, "figures": "none"}
    nf.run("trajectory", settings, folder=tmp_path / "run")
    table.write_text("\n".join([*rows, "1,1"]))
    before = digests(tmp_path / "run")
    with pytest.raises(ValueError, match=r"problem\.table have changed"):
        nf.run("trajectory", settings | {"time.horizon": 3}, folder=tmp_path / "run")
    assert digests(tmp_path / "run") == before


def test_in_python_the_config_and_the_command_say_it(run):
    longer = study(run, "time.horizon=3.3")
    assert longer.config["time"]["extends"] == [2.0]
    assert longer.command.endswith("'time.extends=[2.0]'")
    with pytest.raises(ValueError, match=r"time\.horizon was 3\.3 and is 2\.0"):
        study(run)


def test_output_times():
    times = output_times(Time(horizon=0.7, samples=8))
    longer = output_times(Time(horizon=1.0, samples=8, extends=(0.7,)))
    assert torch.equal(longer[:8], times)
    assert longer.tolist()[-1] == 1.0
    assert len(longer) == 11  # 0.8, 0.9, 1.0: round-off makes no fourth one
    assert torch.allclose(longer.diff(), torch.full((10,), 0.1, dtype=torch.float64), rtol=1e-12)
    tiny = output_times(Time(horizon=0.7 + 1e-14, samples=8, extends=(0.7,)))
    assert len(tiny) == 9
    with pytest.raises(BadInput, match="horizons that grow"):
        Time(horizon=1.0, extends=(1.0,))
