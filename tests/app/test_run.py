"""A run leaves one whole folder, or says why not."""

import json
import multiprocessing
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from matplotlib.figure import Figure
from omegaconf import OmegaConf

import neuralode_flow.app.job as job_module
from neuralode_flow.app import child
from neuralode_flow.app.main import forced
from neuralode_flow.app.runfolder import quoted
from neuralode_flow.figures import FIGURES, FigureSet, save

FAKE = ("study=fake", "problem=teacher", "problem.dimension=2")


def only_folder(parent) -> Path:
    (folder,) = (Path.cwd() / parent).iterdir()
    return folder


def test_a_run_writes_a_whole_folder(command):
    ended = command(*FAKE, "time.samples=3")
    assert ended.status == 0, ended.err
    folder = only_folder("runs/fake")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "report.html", "results.nc", "summary.json"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "ok"
    assert summary["depths"] == [4, 8]
    assert summary["errors"] == {"euler": [0.25, 0.125]}
    assert summary["seconds"] > 0
    names = {"python", "torch", "torchdiffeq", "scipy", "numpy", "xarray", "hydra-core", "neuralode_flow"}
    assert set(summary["versions"]) == names
    with xr.open_dataset(folder / "results.nc") as dataset:
        np.testing.assert_array_equal(dataset.time, [0.0, 1.0, 2.0])
    assert "All is well." in ended.out
    assert str(folder.relative_to(Path.cwd())) in ended.out


def test_a_warning_is_said_once_and_kept_with_the_results(command):
    for _ in range(2):  # also by the second run of one process
        ended = command(*FAKE, "+study.end=warn", "out=there")
        assert ended.status == 0, ended.err
        assert ended.err.count("neuralode-flow: warning: z0 is missed by about 0.3") == 1
    for folder in (Path.cwd() / "there" / "fake").iterdir():
        assert json.loads((folder / "summary.json").read_text())["warnings"] == ["z0 is missed by about 0.3"]
        assert "z0 is missed by about 0.3" in (folder / "report.html").read_text()


def test_a_fast_twist_is_said_or_resolved_from_the_command_line(command):
    problem = ("problem=teacher", "problem.dimension=2", "initial=relaxed_balanced", "time.horizon=0.01")
    short = ("study.depths=[4]", "study.layers=[euler]", "time.samples=2", "time.rtol=1e-6")
    unresolved = command(*problem, *short, "initial.twist=400")
    assert unresolved.status == 1
    assert "does not resolve W: z is off by about" in unresolved.err
    refused = command(*problem, *short, "initial.twist=1e6")
    assert refused.status == 2
    assert "twist(s) is too fast" in refused.err


def test_numbers_that_json_does_not_have_become_null(command):
    command(*FAKE)
    summary = json.loads((only_folder("runs/fake") / "summary.json").read_text())
    assert summary["orders"] == {"euler": None}
    assert summary["law_drift"] is None


def test_the_saved_config_is_complete_and_can_be_read_back(command):
    command(*FAKE, "time.rtol=1e-7", "out=there")
    config = OmegaConf.load(only_folder("there/fake") / "config.yaml")
    assert config.time.rtol == 1e-7
    assert config.problem == {"name": "teacher", "dimension": 2, "seed": 0, "scale": 0.5}
    assert config.study == {"name": "fake", "end": "ok", "depths": [4, 8]}
    assert config.device == "cpu"


def test_progress_is_silent_where_stderr_is_no_terminal(command):
    assert command(*FAKE).err == ""


def test_a_study_that_raises_ends_with_1_and_leaves_no_folder(command):
    ended = command(*FAKE, "study.end=raise")
    assert ended.status == 1
    assert "neuralode-flow: the study stopped: RuntimeError: the sky fell" in ended.err
    assert list(Path.cwd().iterdir()) == []


def test_a_study_that_does_not_run_whole_ends_with_1_and_says_so_in_its_summary(command):
    ended = command(*FAKE, "study.end=half of it is missing")
    assert ended.status == 1
    assert "half of it is missing" in ended.err
    assert json.loads((only_folder("runs/fake") / "summary.json").read_text())["status"] == "half of it is missing"


def test_an_interrupted_run_ends_with_130_and_leaves_no_folder(command):
    ended = command(*FAKE, "study.end=interrupt")
    assert ended.status == 130
    assert "interrupted" in ended.err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("broken", ["write_report", "record"])
def test_a_folder_that_could_not_be_written_whole_has_no_summary(command, monkeypatch, broken):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job_module, broken, full)
    ended = command(*FAKE)
    assert ended.status == 1
    assert "No space left on device" in ended.err
    assert list(Path.cwd().rglob("summary.json")) == []
    assert [path.name for path in Path.cwd().rglob(".*")] == []


def test_figures_are_drawn_from_the_dataset_of_the_study(command, monkeypatch):
    figures = FigureSet(lambda dataset: {"square": Figure(), "loss": Figure()}, {"square": "A & B"})
    monkeypatch.setitem(FIGURES._entries, "fake", figures)
    assert command(*FAKE).status == 0
    names = {path.name for path in (only_folder("runs/fake") / "figures").iterdir()}
    assert names == {"square.png", "square.pdf", "loss.png", "loss.pdf"}
    assert "A &amp; B" in (only_folder("runs/fake") / "report.html").read_text()


def two_figures(dataset):
    """Two figures that take text, formulas and fonts."""
    figures = {name: Figure(layout="constrained") for name in ("square", "loss")}
    for name, figure in figures.items():
        axes = figure.subplots()
        axes.loglog([1, 10], [1e-3, 1], label=f"{name} $x^2$")
        axes.legend()
    return figures


@pytest.mark.slow
def test_figures_that_are_drawn_side_by_side_are_those_that_one_process_draws(command, monkeypatch, tmp_path):
    monkeypatch.setitem(FIGURES._entries, "fake", FigureSet(two_figures))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    assert command(*FAKE).status == 0
    folder = only_folder("runs/fake")
    for name, figure in two_figures(None).items():
        for path in save(figure, tmp_path / name):
            assert (folder / "figures" / path.name).read_bytes() == path.read_bytes()
    report = (folder / "report.html").read_text()
    assert 0 < report.find("figures/square.png") < report.find("figures/loss.png")
    assert multiprocessing.active_children() == []


def test_a_figure_that_cannot_be_saved_is_told_by_whichever_process_draws_it(command, monkeypatch):
    class Torn(Figure):
        def savefig(self, *_, **__):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(FIGURES._entries, "fake", FigureSet(lambda _: {"square": Figure(), "loss": Torn()}))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    ended = command(*FAKE)
    assert ended.status == 1
    assert "No space left on device" in ended.err
    assert list(Path.cwd().rglob("summary.json")) == []
    assert multiprocessing.active_children() == []


def test_the_report_has_the_command_that_repeats_the_run(command, monkeypatch, config_dir):
    commands = []
    monkeypatch.setattr(job_module, "write_report", lambda *arguments: commands.append(arguments[4]))
    command(*FAKE, "study.depths=[2,4]")
    expected = ["neuralode-flow", f"--config-dir={config_dir}", *FAKE, "study.depths=[2,4]"]
    assert shlex.split(commands[0]) == expected


@pytest.mark.parametrize("sweep", [False, True])
def test_the_command_that_repeats_a_run_names_the_config_that_it_is_made_of(sweep, command, monkeypatch, tmp_path):
    """It was that of another config."""
    commands = []
    monkeypatch.setattr(job_module, "write_report", lambda *arguments: commands.append(arguments[4]))
    # Members are not forked here, so that what they write is seen.
    monkeypatch.setattr(child, "_in_a_child", child._outcome)
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nsave_every: 7\n")
    lines = ["study=fake", "problem=teacher", "problem.seed=7"]
    own = [f"--config-dir={tmp_path}", "--config-name=mine"]
    ended = command(*own, *(["-m", "figures=png"] if sweep else []), *lines)
    assert ended.status == 0, ended.err
    assert shlex.split(commands[0])[:3] == ["neuralode-flow", *own]


def test_files_are_looked_for_from_the_current_folder(command, workplace):
    np.save("x.npy", np.arange(6.0).reshape(3, 2) ** 2)
    (workplace / "y.csv").write_text("a,b\n1,2\n3,5\n8,1\n")
    ended = command("study=fake", "problem=file", "problem.x=x.npy", "problem.y=y.csv")
    assert ended.status == 0, ended.err


def test_the_home_directory_is_known_in_values(command, workplace, monkeypatch):
    home = workplace / "o'neil's home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    np.save(home / "x.npy", np.arange(6.0).reshape(3, 2))
    np.save(home / "y~.npy", np.arange(6.0))
    files = ["problem=file", "problem.x=~/x.npy", "problem.y='~/x.npy'"]
    ended = command("study=fake", *files, "out=~/runs")
    assert (ended.status, ended.err) == (0, "")
    config = OmegaConf.load(only_folder("o'neil's home/runs/fake") / "config.yaml")
    assert config.problem.x == str(home / "x.npy")
    assert command("-m", "study=fake", *files, "problem.x=~/x.npy,~/y~.npy", "resume=~/S").status == 1
    failed = json.loads((home / "S" / "1" / "failed.json").read_text())  # the second has more rows
    assert "problem.x has 6 rows but problem.y has 3" in failed["reason"]
    assert (home / "S" / "0" / "summary.json").exists()
    assert not (workplace / "~").exists()


@pytest.mark.slow
def test_the_setting_decides_whether_a_table_has_names(command, workplace):
    (workplace / "x.csv").write_text("0,1\n5,3\n2,7\n")
    files = ["study=fake", "problem=file", "problem.x=x.csv", "problem.y=x.csv"]
    ended = command(*files)
    assert ended.status == 2
    assert "set problem.header=yes for the former, problem.header=no for the latter" in ended.err
    for header in ("yes", "no", "true", "false"):
        assert command(*files, f"problem.header={header}").status == 0


def test_an_experiment_of_the_users_own_folder_is_found(command, config_dir):
    (config_dir / "experiment").mkdir()
    defaults = "defaults:\n  - override /study: fake\n  - override /problem: linnerud\n"
    text = f"# @package _global_\n{defaults}time: {{samples: 2}}\n"
    (config_dir / "experiment" / "mine.yaml").write_text(text)
    assert command("experiment=mine").status == 0
    assert OmegaConf.load(only_folder("runs/fake") / "config.yaml").time.samples == 2


def test_a_sweep_has_a_folder_of_its_own_with_one_run_for_each_value(command):
    ended = command("-m", *FAKE, "problem.seed=0,1")
    assert ended.status == 0, ended.err
    sweep = only_folder("runs/sweeps")
    seeds = [OmegaConf.load(sweep / str(number) / "config.yaml").problem.seed for number in (0, 1)]
    assert seeds == [0, 1]
    assert all((sweep / str(number) / "summary.json").is_file() for number in (0, 1))


def test_a_failed_run_of_a_sweep_does_not_stop_the_others(command):
    ended = command("-m", *FAKE, "study.end=raise,ok")
    assert ended.status == 1
    assert "the sky fell" in ended.err
    sweep = only_folder("runs/sweeps")
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", "members.json", "multirun.yaml"]
    assert [path.name for path in (sweep / "0").iterdir()] == ["failed.json"]


def test_a_sweep_folder_that_exists_is_not_written_into(command):
    Path("taken").mkdir()
    ended = command("-m", *FAKE, "problem.seed=0,1", "hydra.sweep.dir=taken")
    assert ended.status == 2
    assert "taken exists already" in ended.err
    assert list(Path("taken").iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("time.rtol=1", "++time.rtol=1"),
        ("out=x=y", "++out=x=y"),
        ("problem=teacher", "problem=teacher"),
        ("+time.rtol=1", "+time.rtol=1"),
        ("~time.rtol", "~time.rtol"),
        ("hydra.mode=RUN", "hydra.mode=RUN"),
        ("hydra/launcher=basic", "hydra/launcher=basic"),
        ("--config-dir=a", "--config-dir=a"),
        ("-m", "-m"),
    ],
)
def test_only_plain_fields_are_forced(argument, expected):
    assert forced(argument) == expected


SAME_SECOND = """
import datetime
from types import SimpleNamespace
from neuralode_flow.app import main, runfolder
moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
runfolder.datetime = SimpleNamespace(now=lambda: moment)
main.main()
"""


@pytest.mark.slow
def test_four_starts_in_one_second_leave_four_whole_results(workplace):
    quick = [
        "problem=teacher",
        "problem.dimension=2",
        "study.depths=[2]",
        "study.layers=[exp]",
        "time.samples=2",
        "time.rtol=1e-3",
        "figures=none",
    ]
    line = [sys.executable, "-c", SAME_SECOND, *quick, "time.method=RK45", "time.atol=1e-3", "threads=1"]

    def start(_):
        return subprocess.run(line, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(start, range(4)))
    assert [run.returncode for run in ended] == [0] * 4, ended[0].stderr
    folders = sorted((workplace / "runs/convergence").iterdir())
    stamp = "2026-01-02T03-04-05"
    assert [folder.name for folder in folders] == [stamp, f"{stamp}-2", f"{stamp}-3", f"{stamp}-4"]
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["study"] == "convergence"
        assert summary["depths"] == [2]
        assert (folder / "report.html").stat().st_size > 0


def test_hydra_run_dir_is_the_folder_of_the_run(command):
    for again in (False, True):
        ended = command(*FAKE, "hydra.run.dir=mine/run", "hydra.output_subdir=.hydra")
        assert ended.status == 0, ended.err
        assert ("this run is finished" in ended.out) == again
    assert sorted(path.name for path in Path("mine/run").iterdir()) == [
        ".hydra", "config.yaml", "report.html", "results.nc", "summary.json",
    ]  # fmt: skip
    assert "study=fake" in yaml.safe_load(Path("mine/run/.hydra/overrides.yaml").read_text())
    assert [path.name for path in Path.cwd().iterdir()] == ["mine"]
    ended = command(*FAKE, "hydra.run.dir=mine/run", "problem.seed=7")
    assert ended.status == 2
    assert "mine/run was started with another config: problem.seed was 0 and is 7" in ended.err


def test_hydras_own_files_go_into_the_folder_of_the_run(command):
    assert command(*FAKE, "hydra.output_subdir=.hydra").status == 0
    assert (only_folder("runs/fake") / ".hydra" / "hydra.yaml").exists()
    assert not Path(".hydra").exists()


@pytest.mark.parametrize("end", ["ok", "blown"])
def test_another_config_on_a_finished_folder_is_refused(command, end):
    assert command(*FAKE, "resume=run", f"study.end={end}").status == (0 if end == "ok" else 1)
    before = Path("run/summary.json").stat().st_mtime_ns
    ended = command(*FAKE, "resume=run", f"study.end={end}", "problem.seed=3")
    assert ended.status == 2
    assert "run was started with another config: problem.seed was 0 and is 3" in ended.err
    ended = command(*FAKE, "resume=run", f"study.end={end}")
    assert "this run is finished: run" in ended.out
    assert ended.status == (0 if end == "ok" else 1)  # what did not run whole is not called so the second time
    assert ("the study did not run whole: blown" in ended.err) == (end == "blown")
    Path("run/config.yaml").unlink()
    ended = command(*FAKE, "resume=run", f"study.end={end}")
    assert ended.status == 2
    assert "holds a summary.json but no config.yaml" in ended.err
    assert Path("run/summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_other_data_on_a_finished_folder_is_refused(command):
    np.savetxt("x.csv", np.eye(2), delimiter=",", header="a,b", comments="")
    np.savetxt("y.csv", 2 * np.eye(2), delimiter=",", header="a,b", comments="")
    line = ("study=fake", "problem=file", "problem.x=x.csv", "problem.y=y.csv", "resume=run")
    for again in (False, True):
        ended = command(*line)
        assert ended.status == 0, ended.err
        assert ("this run is finished" in ended.out) == again
    np.savetxt("y.csv", 3 * np.eye(2), delimiter=",", header="a,b", comments="")
    ended = command(*line)
    assert ended.status == 2
    assert "run holds a run with other data: the contents of problem.y have changed since" in ended.err
    sweep = ("-m", *line[:-1], "resume=sweep")
    assert command(*sweep).status == 0
    np.savetxt("x.csv", 3 * np.eye(2), delimiter=",", header="a,b", comments="")
    swept = command(*sweep)
    assert swept.status == 1
    assert "was not run: sweep/0 holds a run with other data: the contents of problem.x" in swept.err
    Path("x.csv").unlink()  # what is gone says nothing against the results
    assert command(*sweep).status == 0


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda run: (run / "results.nc").unlink(), "sweep/1 holds a summary.json but no results.nc: it is damaged"),
        (lambda run: (run / "summary.json").write_text('{"status": "o'), "sweep/1/summary.json is damaged: line 1"),
    ],
)
def test_a_damaged_run_is_not_called_finished_and_the_advice_helps(command, spoil, sentence):
    line = ("-m", *FAKE, "problem.seed=0,1", "resume=sweep")
    assert command(*line).status == 0
    spoil(Path("sweep/1"))
    ended = command(*line)
    assert ended.status == 1
    assert ended.out.count("this run is finished") == 1
    assert sentence in ended.err
    assert "remove sweep/1 to run it again, or choose another folder" in ended.err
    assert "runs the others" not in ended.err
    single = command(*FAKE, "problem.seed=1", "hydra.run.dir=sweep/1")
    assert (single.status, sentence in single.err) == (2, True)
    shutil.rmtree("sweep/1")
    assert command(*line).status == 0


@pytest.mark.parametrize("folder", ["plain-1.5/a_b", "sw p%é", "it's", "a\\'b"])
def test_what_is_said_of_a_folder_can_be_copied_into_a_shell(command, folder):
    setting = shlex.quote(f"resume={quoted(folder)}")
    ended = command("-m", *FAKE, "study.end=once", *shlex.split(setting))
    (said,) = re.findall(r"the same command with (.*) runs the others", ended.err)
    assert said == setting or folder.startswith("plain")
    Path("mended").touch()
    assert command("-m", *FAKE, "study.end=once", *shlex.split(said)).status == 0
    assert Path(folder, "0", "summary.json").exists()


def test_bad_input_leaves_nothing_also_where_hydra_has_written(command):
    ended = command(*FAKE, "hydra.output_subdir=.hydra", "problem.scale=-1")
    assert ended.status == 2
    assert list(Path.cwd().iterdir()) == []


def test_two_folders_for_one_run_are_refused(command):
    ended = command(*FAKE, "hydra.run.dir=one", "resume=two")
    assert ended.status == 2
    assert "hydra.run.dir=one and resume=two are two folders for one run" in ended.err
    assert list(Path.cwd().iterdir()) == []
    assert command(*FAKE, "hydra.run.dir=one", "resume=one").status == 0


def test_names_of_others_are_no_markup_of_the_terminal(capsys):
    from neuralode_flow.app import terminal
    from neuralode_flow.finding import Finding

    errors = {"[/bold]": [1.0, 0.5], ":smile:": [1.0, 0.5]}
    record = {"errors": errors, "depths": [1, 2], "verdict": "[red]:smile: [/b]", "status": "ok"}
    terminal.show("a[b].csv → [/x]:smile:", Finding.from_record(record), Path("runs/[red]"))
    out = capsys.readouterr().out
    for text in ("a[b].csv → [/x]:smile:", "[/bold]", " :smile: ", "[red]:smile: [/b]", "runs/[red]"):
        assert text in out


@pytest.mark.parametrize(("choice", "suffixes"), [("png", {".png"}), ("none", set())])
def test_only_the_figures_that_are_asked_for_are_drawn(command, workplace, choice, suffixes):
    small = ["problem=teacher", "problem.dimension=2", "study=trajectory", "time.samples=3", "time.horizon=0.1"]
    assert command(*small, f"figures={choice}", "resume=run").status == 0
    assert {path.suffix for path in workplace.glob("run/figures/*")} == suffixes
    page = (workplace / "run" / "report.html").read_text(encoding="utf-8")
    assert ('<figure class="chart"><script' in page) == ("<h2>Figures</h2>" in page) == bool(suffixes)
    ended = command(*small, "figures=all", "resume=run")  # it is the same run, and has ended
    assert (ended.status, ended.out.count("finished")) == (0, 1)
    assert {path.suffix for path in workplace.glob("run/figures/*")} == suffixes
