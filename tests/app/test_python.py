"""`neuralode_flow.run`: what the command does, called from Python."""

import asyncio
import json
import re
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from forked import forked
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

import neuralode_flow as nf
from neuralode_flow.depth.grid import Profile
from neuralode_flow.finding import Finding
from neuralode_flow.problems import Problem
from neuralode_flow.studies import STUDIES, Clock, Study

SMALL = {"study.depths": (4, 8, 16), "study.workers": 1}
SHORT = {"horizon": 0.5, "samples": 3}
BIN = Path(sys.executable).parent


def data(dataset):
    """Without what tells of the folder and the machine."""
    return dataset.drop_vars("seconds").assign_attrs(dict.fromkeys(("config", "versions", "git_commit"), ""))


def test_it_is_what_the_command_computes_to_the_bit(workplace):
    found = nf.run("quick", SMALL, time=SHORT)
    assert list(workplace.iterdir()) == []
    assert found.command.startswith("neuralode-flow experiment=quick ")
    line = shlex.split(found.command)
    subprocess.run([BIN / line[0], *line[1:], "figures=none"], check=True, capture_output=True, timeout=120)
    (folder,) = (workplace / "runs" / "convergence").iterdir()
    xr.testing.assert_identical(data(nf.open(folder)), data(found.dataset))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"] == found.finding.verdict
    assert summary["passed"] == found.finding.passed
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert found.config | {"figures": "none"} == saved
    assert found.config["time"] | SHORT == found.config["time"]
    assert found.config["problem"]["name"] == "linnerud"


@pytest.mark.parametrize(
    ("which", "problem", "rtol"),
    [({}, "breast_cancer_white", 1e-10), ({"experiment": "momentum"}, "breast_cancer", 1e-12)],
)
def test_a_name_of_a_study_and_an_experiment_is_the_study_unless_the_experiment_is_asked_for(which, problem, rtol):
    small = {"study.depths": [2], "study.refinements": [1, 2, 4], "study.steps": 2, "depth.panels": 1}
    found = nf.run("momentum", small, time={"horizon": 0.5, "samples": 3}, **which)
    assert (found.finding.study, found.config["problem"]["name"], found.config["time"]["rtol"]) == (
        "momentum",
        problem,
        rtol,
    )


def test_a_run_says_what_it_is_and_draws_its_figures():
    found = nf.run("trajectory", problem={"name": "teacher", "dimension": 2}, time=SHORT)
    assert repr(found) == "StudyRun(trajectory, ran whole, 1 of 1 checks hold, problem=teacher)"
    html = found._repr_html_()
    assert found.finding.verdict in html
    assert "problem=teacher problem.dimension=2 time.horizon=0.5 time.samples=3" in html
    assert set(found.figures) == {"path", "errors", "weights"}
    assert found.config["problem"]["dimension"] == 2
    assert len(found.dataset.time) == 3


def state():
    """What Hydra and torch keep for a whole process."""
    kept = {kind.__name__: id(value) for kind, value in Singleton._instances.items()}
    threads = torch.get_num_threads()
    return kept, dict(BaseContainer._resolvers), torch.get_default_dtype(), torch.get_default_device(), threads


def test_nothing_is_left_of_it_and_a_program_of_the_users_with_hydra_goes_on(tmp_path, fake):
    (tmp_path / "own.yaml").write_text("answer: 42\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float32)
    try:
        with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
            assert hydra.compose("own").answer == 42
            before = state()
            for _ in range(2):
                assert nf.run("fake", time=SHORT).dataset.time.dtype == np.float64
                with pytest.raises(ValueError, match="unknown experiment"):
                    nf.run("no_such")
                with pytest.raises(RuntimeError, match="the sky fell"):
                    nf.run("fake", study={"end": "raise"})
            assert state() == before
            assert hydra.compose("own") == OmegaConf.create({"answer": 42})
    finally:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_it_runs_beside_a_loop_of_events_and_without_a_main_file(workplace, fake):
    async def cell():
        return nf.run("fake", time=SHORT)

    assert asyncio.run(cell()).finding.status == "ok"
    code = "import neuralode_flow as nf\nprint(repr(nf.run('quick', {'study.depths': [4, 8]}, time={'samples': 3})))"
    ended = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.startswith("StudyRun(convergence, ran whole")
    assert list(workplace.iterdir()) == []


@pytest.mark.slow
def test_runs_of_several_threads_are_those_that_each_is_alone(tmp_path, capsys):
    """And torch is afterwards as it was; what another thread prints meanwhile is printed."""
    settings = [{**SMALL, "problem": "teacher", "problem.dimension": 2, "problem.seed": seed} for seed in range(3)]
    alone = [data(nf.run("quick", each, time=SHORT).dataset) for each in settings]
    over = threading.Event()

    def talk():
        while not over.wait(0.01):
            print("said")

    def one(n):
        folder = tmp_path / str(n) if n < 3 else None
        return data(nf.run("quick", settings[n % 3], folder=folder, time=SHORT, figures="none").dataset)

    torch.set_default_dtype(torch.float32)
    talker = threading.Thread(target=talk)
    talker.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(one, range(6)))
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float64)
        over.set()
        talker.join()
    for n, found in enumerate(together):
        xr.testing.assert_identical(found, alone[n % 3])
    assert set(capsys.readouterr().out.split()) == {"said"}


def test_a_study_may_call_run_also_among_many_members(fake, monkeypatch):
    def run(clock: Clock, *, seed: int = 0):
        inner = nf.run("fake", time=SHORT)
        numbers = {"inner": float(inner.finding.status == "ok"), "seed": seed}
        return Finding(study="nested", problem="p", status="ok", verdict="v", numbers=numbers).attached(xr.Dataset())

    monkeypatch.setitem(STUDIES._entries, "nested", Study(run))
    assert nf.run("nested", time=SHORT).finding.numbers["inner"] == 1
    assert nf.run("nested", time=SHORT, members=3, at_once=3).finding.status == "ok"


def test_settings_of_torch_and_numpy_that_are_the_users_change_nothing():
    settings = {**SMALL, "problem": "teacher", "problem.dimension": 2}
    alone = data(nf.run("quick", settings, time=SHORT).dataset)
    torch.set_default_device("meta")
    try:
        with np.errstate(all="raise"):
            xr.testing.assert_identical(data(nf.run("quick", settings, time=SHORT).dataset), alone)
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    with torch.device("meta"):
        xr.testing.assert_identical(data(nf.run("quick", settings, time=SHORT).dataset), alone)
        assert torch.empty(1).device.type == "meta"


WRONG = {
    "experiment=quik": lambda: nf.run("quik"),
    "study=trajectry": lambda: nf.run("trajectry"),
    "study=fake problem=digit": lambda: nf.run("fake", problem="digit"),
    "study=fake study.depth=[4]": lambda: nf.run("fake", {"study.depth": [4]}),
    "study=fake study.depths=[4,eight]": lambda: nf.run("fake", study={"depths": [4, "eight"]}),
    "study=fake time.rtol=-1.0": lambda: nf.run("fake", {"time.rtol": -1.0}),
    "study=fake time.method=DOP": lambda: nf.run("fake", time={"method": "DOP"}),
    "study=fake problem=null": lambda: nf.run("fake", problem=None),
    "study=fake problem=teacher problem.dimension=two": lambda: nf.run(
        "fake", problem={"name": "teacher", "dimension": "two"}
    ),
    "study=fake problem=file problem.x=no.csv problem.y=no.csv": lambda: nf.run(
        "fake", problem={"name": "file", "x": "no.csv", "y": "no.csv"}
    ),
    "study=minimax time.horizon=3.0": lambda: nf.run("minimax", time={"horizon": 3.0}),
    "study=fake device=tpu": lambda: nf.run("fake", device="tpu"),
    "study=fake foo=1": lambda: nf.run("fake", foo=1),
    "study=fake plugins=[no_such_module]": lambda: nf.run("fake", plugins=["no_such_module"]),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said_as_the_command_says_it(command, line, left_behind):
    said = command(*line.split())
    assert said.status == 2
    sentence = said.err.removeprefix("neuralode-flow: ").removesuffix("\n")
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        WRONG[line]()
    assert left_behind() == []


PLUGIN = """
import xarray as xr
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, Clock, Study

def run(clock: Clock, *, seed: int = 0, progress: object = None):
    return Finding(study="mine", problem="p", status="ok", verdict="v", numbers={"seed": seed}).attached(xr.Dataset())

STUDIES.register("mine")(Study(run))
"""


def test_a_plugin_that_failed_after_it_registered_can_be_mended(workplace):
    """In one process, as in a notebook: it fails with its own error each time, and then is what it has become."""
    file = workplace / "mine.py"
    file.write_text(f"{PLUGIN}\nraise RuntimeError('not yet')")
    for _ in range(2):
        with pytest.raises(ValueError, match="plugin mine .* cannot be imported: RuntimeError: not yet"):
            nf.run("mine", plugins=["mine"], time=SHORT)
    file.write_text(PLUGIN.replace('verdict="v"', 'verdict="mended"'))
    try:
        assert nf.run("mine", plugins=["mine"], time=SHORT).finding.verdict == "mended"
    finally:
        STUDIES._entries.pop("mine")
        sys.modules.pop("mine", None)


@pytest.mark.slow
def test_a_study_of_a_plugin_is_found_by_its_name_alone(workplace):
    """In a process of its own, where nothing has imported it; the command that is told finds it, too."""
    (workplace / "mine.py").write_text(PLUGIN)
    code = "import neuralode_flow as nf\nprint(nf.run('mine', plugins=['mine'], study={'seed': 3}).command)"
    ended = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "neuralode-flow study=mine 'plugins=[mine]' study.seed=3\n", ended.stderr
    assert forked(workplace, *shlex.split(ended.stdout)[1:]).returncode == 0
    with pytest.raises(ValueError, match=re.escape("plugins must be a list, got 'mine'; write plugins=[mine]")):
        nf.run("mine", plugins="mine")


def test_what_python_alone_can_get_wrong_is_refused(fake):
    with pytest.raises(TypeError, match="name must be that of an experiment or a study, got 3"):
        nf.run(3)
    with pytest.raises(TypeError, match="overrides must be a mapping"):
        nf.run("fake", ["time.rtol=1e-8"])
    with pytest.raises(ValueError, match=r"study\.end must be a number, text, .* got builtin_function_or_method"):
        nf.run("fake", {"study.end": print})
    with pytest.raises(ValueError, match="a setting must have a name such as study.depths, got 'a=b'"):
        nf.run("fake", {"a=b": 1})
    with pytest.raises(ValueError, match="resume=here is for the command line; give folder=FOLDER"):
        nf.run("fake", resume="here")


def test_texts_of_all_kinds_arrive_as_they_are(fake):
    odd = ["it's", 'a "b"', "${time.rtol}", "a,b", "null", "1e3", "x=y", "back\\slash", "ü ☃", "[a]", "~", "a: b", ""]
    seen = []
    for text in odd:
        found = nf.run("fake", {"study.end": text}, time=SHORT)
        seen.append(found.config["study"]["end"])
        assert found.finding.status == text
    assert seen == odd


def test_numbers_of_numpy_and_torch_are_settings(fake):
    found = nf.run(
        "fake", time={"horizon": np.float64(0.5), "samples": torch.tensor(3)}, study={"depths": np.arange(2, 5)}
    )
    assert found.config["study"]["depths"] == [2, 3, 4]
    assert found.config["time"] | SHORT == found.config["time"]


def test_a_study_that_did_not_run_whole_is_given_back_with_its_status(fake, workplace):
    found = nf.run("fake", {"study.end": "it got tired"})
    assert (found.finding.status, found.finding.passed) == ("it got tired", False)
    again = nf.run("fake", {"study.end": "it got tired"}, folder="tired")
    assert (again.finding.status, again.folder) == ("it got tired", Path("tired"))


def test_a_folder_gets_what_the_command_writes_and_is_read_again(fake, workplace, capsys):
    found = nf.run("fake", time=SHORT, folder="a/b")
    assert {path.name for path in Path("a/b").iterdir()} == {"config.yaml", "report.html", "results.nc", "summary.json"}
    assert capsys.readouterr().out == ""
    changed = Path("a/b/results.nc").stat().st_mtime_ns
    again = nf.run("fake", time=SHORT, folder=Path("a/b"))
    assert Path("a/b/results.nc").stat().st_mtime_ns == changed
    xr.testing.assert_identical(again.dataset, found.dataset)
    assert "neuralode-flow study=fake time.horizon=0.5" in Path("a/b/report.html").read_text()
    with pytest.raises(ValueError, match=r"a/b was started with another config: time\.samples was 3 and is 4"):
        nf.run("fake", time={"horizon": 0.5, "samples": 4}, folder="a/b")


def test_a_folder_that_cannot_be_made_or_a_study_that_fails_leaves_nothing(fake, workplace):
    Path("file").touch()
    with pytest.raises(ValueError, match="folder=file/below cannot hold results"):
        nf.run("fake", folder="file/below")
    with pytest.raises(RuntimeError, match="the study stopped: RuntimeError: the sky fell"):
        nf.run("fake", {"study.end": "raise"}, folder="new")
    assert [path.name for path in workplace.iterdir()] == ["file"]


def test_what_a_user_registers_in_a_notebook_is_chosen_by_name(fake, monkeypatch):
    made = nf.PROBLEMS["teacher"](dimension=2)

    def mine(scale: float = 1.0) -> nf.Problem:
        """Mine."""
        return nf.Problem("mine", "Mine.", nf.Quadratic(scale * made.loss.target), made.z0)

    monkeypatch.setitem(nf.PROBLEMS._entries, "mine", mine)
    found = nf.run("trajectory", problem={"name": "mine", "scale": 1.0}, time=SHORT)
    whole = nf.run("trajectory", problem={"name": "teacher", "dimension": 2}, time=SHORT)
    np.testing.assert_array_equal(found.dataset.z, whole.dataset.z)


def test_a_start_that_writes_into_z0_leaves_that_of_the_problem(monkeypatch):
    def moved(z0: torch.Tensor) -> Profile:
        z0 += 0.1
        return nf.balanced(z0)

    def looking(problem: Problem, initial: Profile, clock: Clock) -> xr.Dataset:
        finding = Finding(study="looking", problem=problem.title, status="ok", verdict="told")
        return finding.attached(xr.Dataset({"z0": (("i", "j"), problem.z0.numpy())}))

    monkeypatch.setitem(nf.INITIALS._entries, "moved", moved)
    monkeypatch.setitem(STUDIES._entries, "looking", Study(looking))
    found = nf.run("looking", problem={"name": "teacher", "dimension": 2}, initial="moved")
    assert found.dataset.z0.values.tolist() == [[1.0, 0.0], [0.0, 1.0]]
