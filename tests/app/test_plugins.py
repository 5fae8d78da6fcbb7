"""Layer rules, losses and systems of a user's own package are found by name."""

import json
import os
import subprocess
import sys

import pytest
from cases import slow
from forked import forked

from neuralode_flow import results
from neuralode_flow.app import plot

OWN = """
import torch

import neuralode_flow as nf
from neuralode_flow.depth.rules import LAYERS
from neuralode_flow.losses import LOSSES, Separable


class Leapfrog:
    order = 1
    quadratic_law = True

    def layer(self, A):
        return torch.eye(A.shape[-1], dtype=A.dtype) + A, None

    def adjoint(self, A, saved, M):
        return M


LAYERS.register("own_euler")(Leapfrog())


@LOSSES.register("pseudo_huber")
def pseudo_huber(x, y, readin=None, readout=None):
    return Separable(lambda r: torch.sqrt(1 + r.square()) - 1, x, y, readin, readout)
"""

RUN = [
    "problem=linnerud", "problem.loss=pseudo_huber", "study.layers=[own_euler]", "study.depths=[4,8,16]",
    "time.horizon=0.5", "time.samples=4",
]  # fmt: skip


def neuralode_flow(folder, *arguments, path=""):
    paths = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-m", "neuralode_flow", *arguments],
        capture_output=True, text=True, check=False, cwd=folder, env=environment,
    )  # fmt: skip


def test_a_module_in_the_current_folder_is_found_by_its_name(tmp_path):
    (tmp_path / "own_rules.py").write_text(OWN)
    ended = forked(tmp_path, *RUN, "plugins=[own_rules]", "figures=none")
    assert ended.returncode == 0, ended.stderr
    (path,) = tmp_path.glob("runs/convergence/*/summary.json")
    assert abs(json.loads(path.read_text())["orders"]["own_euler"] - 1) < 0.1


@pytest.mark.slow
def test_what_a_plugin_sets_for_its_process_changes_no_number(tmp_path):
    sets = """
import warnings

import numpy as np
import torch

print("loaded")
torch.set_default_dtype(torch.float32)
torch.set_default_device("meta")
torch.set_num_threads(2)
torch.set_grad_enabled(False)
np.seterr(all="raise")
"""
    (tmp_path / "loud.py").write_text(sets)
    line = ("study=trajectory", "problem=linnerud", "time.horizon=0.5", "time.samples=4", "figures=none")
    for start, folder, more in ((forked, "plain", ()), (neuralode_flow, "loud", ("plugins=[loud]",))):
        ended = start(tmp_path, *line, *more, f"resume={folder}")
        assert ended.returncode == 0, ended.stderr
    plain, loud = (results.open(tmp_path / folder) for folder in ("plain", "loud"))
    assert all(loud[name].identical(plain[name]) for name in plain.data_vars if name != "seconds")


@pytest.mark.slow
def test_an_installed_package_is_found_without_being_named(tmp_path):
    site = tmp_path / "site"
    (site / "own_package").mkdir(parents=True)
    (site / "own_package" / "__init__.py").write_text(OWN)
    info = site / "own_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[neuralode_flow]\nown = own_package\n")
    ended = neuralode_flow(tmp_path, *RUN, path=site)
    assert ended.returncode == 0, ended.stderr
    assert neuralode_flow(tmp_path, *RUN).returncode == 2  # not without the package


@pytest.mark.parametrize(
    ("text", "reason"),
    [("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"), ("1 / 0", "ZeroDivisionError: division by")],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_the_reason(tmp_path, text, reason):
    (tmp_path / "broken.py").write_text(text)
    ended = forked(tmp_path, "plugins=[broken]")
    assert ended.returncode == 2
    assert f"the plugin broken named in plugins cannot be imported: {reason}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("code", ["0", "[1]", *slow("", "3")])
def test_a_plugin_that_asks_python_to_end_is_no_run_that_went_well(tmp_path, code):
    """A script without a guard ends so: with 0 nothing was said, and the status was that of a run that is whole."""
    (tmp_path / "script.py").write_text(f"import sys\n\nsys.exit({code})\n")
    for sweep in ((), ("-m",)):
        ended = forked(tmp_path, *sweep, "plugins=[script]")
        assert ended.returncode == 2
        assert f"the plugin script named in plugins asked Python to end ({code})" in ended.stderr
    quits = (
        "from neuralode_flow.studies import STUDIES, Clock, Study\nfrom neuralode_flow.problems import Problem\n\n\n"
    )
    quits += f"def quits(problem: Problem, clock: Clock):\n    raise SystemExit({code})\n\n\n"
    (tmp_path / "quits.py").write_text(quits + 'STUDIES.register("quits")(Study(quits))\n')
    line = ["study=quits", "plugins=[quits]", "problem=teacher", "problem.dimension=2"]
    ended = forked(tmp_path, *line)
    assert ended.returncode == 1
    assert f"it asked Python to end ({code})" in ended.stderr
    ended = forked(tmp_path, "-m", *line, "resume=s")
    assert ended.returncode == 1
    assert f"failed: the study did not run whole: it asked Python to end ({code})" in ended.stderr


def test_a_missing_plugin_and_an_unknown_loss_are_refused(tmp_path):
    assert "the plugin mine named in plugins cannot be imported" in forked(tmp_path, "plugins=[mine]").stderr
    unknown = forked(tmp_path, "problem.loss=quadrtic").stderr
    assert "problem.loss: unknown loss 'quadrtic'; did you mean 'quadratic'?" in unknown


SPOILT = """
import torch

from neuralode_flow.depth.layers import LAYERS, Cayley


class Spoilt(Cayley):
    {body}


LAYERS.register("spoilt")(Spoilt())
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("adjoint = lambda self, A, saved, M: saved @ M @ saved.mT", "layer rule 'spoilt' has an adjoint that is not"),
        ("order = 3", "layer rule 'spoilt' must have an order above 0 and at most 2, got 3"),
        ("quadratic_law = True", "layer rule 'spoilt' declares quadratic_law = True"),
        (
            "layer = lambda self, A: (Cayley.layer(self, A)[0] + A @ A, None); adjoint = property()",
            "layer rule 'spoilt' has the observed order",
        ),
    ],
)
def test_a_rule_that_does_not_do_what_it_declares_ends_with_status_1_and_its_name(tmp_path, body, words):
    (tmp_path / "spoilt.py").write_text(SPOILT.format(body=body))
    arguments = ["problem.dimension=2", "study.layers=[spoilt]", "study.depths=[16,32,64]", "time.samples=3"]
    ended = forked(tmp_path, "problem=teacher", *arguments, "plugins=[spoilt]", "figures=none")
    assert ended.returncode == 1
    assert words in ended.stderr


@pytest.mark.slow
def test_a_study_of_a_plugin_is_chosen_as_a_group_alone_in_a_sweep_and_in_workers(tmp_path):
    (tmp_path / "mine.py").write_text(
        """
import xarray as xr
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, Clock, Study

def run(clock: Clock, *, seed: int = 0, progress: object = None):
    return Finding(study="mine", problem="p", status="ok", verdict="v", numbers={"seed": seed}).attached(xr.Dataset())

STUDIES.register("mine")(Study(run))
"""
    )
    ended = neuralode_flow(tmp_path, "study=mine", "plugins=[mine]", "resume=one")
    assert ended.returncode == 0, ended.stderr
    line = ["-m", "study=mine", "study.seed=1,2", "plugins=[mine]", "hydra/launcher=joblib", "resume=two"]
    ended = neuralode_flow(tmp_path, *line)
    assert ended.returncode == 0, ended.stderr
    records = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two/0", "two/1")]
    assert [record["seed"] for record in records] == [0, 1, 2]
    ended = neuralode_flow(tmp_path, "study=mien", "plugins=[mine]")
    assert ended.returncode == 2
    assert "did you mean 'mine'?" in ended.stderr


def test_a_figure_that_raises_costs_nothing_that_was_computed_and_is_drawn_later(tmp_path):
    module = tmp_path / "mine.py"
    module.write_text(
        """
import xarray as xr
from matplotlib.figure import Figure
from neuralode_flow.figures import FIGURES, FigureSet
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, Study

def run(*, seed: int = 0):
    finding = Finding(study="mine", problem="p", status="ok", verdict="v", numbers={"seed": seed})
    return finding.attached(xr.Dataset({"x": ("i", [1.0, 2.0])}))

def line(values):
    figure = Figure()
    figure.subplots().plot(values)
    return figure

STUDIES.register("mine")(Study(run))
FIGURES.register("mine")(FigureSet(lambda dataset: {"one": line(dataset.x), "two": line(dataset.y)}, {}))
"""
    )
    command = ["study=mine", "study.seed=3", "plugins=[mine]", "resume=out"]
    ended = forked(tmp_path, *command)
    assert ended.returncode == 1
    assert "the results are whole, in out, but a figure could not be drawn: AttributeError" in ended.stderr
    assert "mend it, and run neuralode-flow-plot --plugins mine out" in ended.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["seed"], summary["status"]) == (3, "ok")
    assert "a figure could not be drawn" in summary["warnings"][0]
    assert "a figure could not be drawn" in (tmp_path / "out/report.html").read_text()
    assert forked(tmp_path, *command).returncode == 0  # it has ended

    def drawn(*arguments):
        return forked(tmp_path, *arguments, program=lambda: plot.main(list(arguments)))

    for arguments, words in ((("out",), "--plugins names modules of your own"), (("--plugins", "mine", "out"), "'y'")):
        ended = drawn(*arguments)
        assert ended.returncode == 2
        assert words in ended.stderr
    module.write_text(module.read_text().replace("dataset.y", "-dataset.x"))
    ended = drawn("--plugins", "mine", "out")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == {"one.png", "one.pdf", "two.png", "two.pdf"}


@pytest.mark.parametrize(
    ("returned", "words", "kept"),
    [
        ("xr.Dataset({'x': ('i', [1.0, 2.0])})", "the dataset states no finding", [1.0, 2.0]),
        ("xr.Dataset({'x': ('i', [{1}, 2.0])})", "the dataset states no finding", ["{1}", "2.0"]),
        (
            "Finding(study='mine', problem='', status='ok', verdict='', numbers={'n': [*range(300_000)]})"
            ".attached(xr.Dataset({'x': ('i', [1.0, 2.0])}))",
            "its summary would have",
            [1.0, 2.0],
        ),
    ],
)
def test_what_a_study_returns_without_a_finding_is_saved(tmp_path, returned, words, kept):
    imports = "import xarray as xr; from neuralode_flow.finding import Finding"
    module = f"{imports}; from neuralode_flow.studies import STUDIES, Study\ndef run():\n    return {returned}\n"
    (tmp_path / "mine.py").write_text(f'{module}STUDIES.register("mine")(Study(run))\n')
    ended = forked(tmp_path, "study=mine", "plugins=[mine]", "resume=out")
    assert ended.returncode == 1
    assert "study=mine has ended, but cannot be summed up: " in ended.stderr
    assert words in ended.stderr
    assert "its dataset is in out/results.nc" in ended.stderr
    assert results.open(tmp_path / "out/results.nc").x.values.tolist() == kept
    assert not (tmp_path / "out/summary.json").exists()


def test_a_figure_that_raises_is_told_of_a_member_too(tmp_path):
    """The member was "ok", the sweep had status 0, and the figure was not there."""
    text = ODD.replace("def line(dataset):", "def line(dataset):\n    assert dataset.a_b[1] != 8, 'not of eight'")
    (tmp_path / "odd.py").write_text(text)
    line = ["-m", "study=odd", "plugins=[odd]", "resume=S"]
    ended = forked(tmp_path, *line, "figures=png", "study.seed=7,8")
    assert ended.returncode == 1
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("neuralode-flow: member 1 (")
    assert "study.seed=8): the results are whole, in S/1, but a figure could not be drawn: AssertionError: not" in said
    assert (tmp_path / "S/0/figures/one.png").exists()
    assert not (tmp_path / "S/1/failed.json").exists()
    for settings in (["figures=png", "study.seed=7,8"], ["figures=none", "study.seed=9"]):
        ended = forked(tmp_path, *line, *settings)  # as with a single run
        assert ended.returncode == 0, ended.stderr


SIZED = """
import xarray as xr
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, Study

def run(*, seed: int = 0):
    from {helper} import SIZE
    finding = Finding(study="sized", problem="p", status="ok", verdict="v", numbers={{"size": SIZE}})
    return finding.attached(xr.Dataset({{"x": ("i", [SIZE, float(seed)])}}))

STUDIES.register("sized")(Study(run))
"""


def test_a_finished_run_whose_plugin_has_changed_is_refused_as_with_a_changed_table(tmp_path):
    module = tmp_path / "sized.py"
    line = ["study=sized", "plugins=[sized]", "figures=none"]
    commands = [
        [*line, "resume=one"],
        [*line, "members=2", "resume=members"],
        ["-m", *line, "study.seed=1", "resume=S"],
    ]
    module.write_text("class here: SIZE = 1.0\nimport sys; sys.modules['here'] = here\n" + SIZED.format(helper="here"))
    for command in commands:
        for again in (False, True):
            ended = forked(tmp_path, *command)
            assert ended.returncode == 0, ended.stderr
            assert ("this run is finished" in ended.stdout) == again
    module.write_text(module.read_text().replace("1.0", "3.0"))
    words = "holds a run of other code: the plugin sized or modules imported there have changed since; choose another"
    for command, status in zip(commands, (2, 2, 1), strict=True):
        ended = forked(tmp_path, *command)
        assert ended.returncode == status
        assert words in ended.stderr
        assert "this run is finished" not in ended.stdout
    assert "0 of 1 members have finished in S" in ended.stderr


@pytest.mark.parametrize("helper", ["helper", "deep.helper", "whole.part", "deep.whole.part"])
def test_what_a_plugin_imports_from_its_own_folder_is_of_it(tmp_path, helper):
    file = tmp_path.joinpath(*helper.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    if helper.endswith("whole.part"):
        (file.parent / "__init__.py").write_text("")
    file.write_text("from further import SIZE")
    (tmp_path / "further.py").write_text("import numpy\nSIZE = 1.0")
    (tmp_path / "another.py").write_text("")
    (tmp_path / "numpy.py").write_text("raise ImportError")  # there is another module of this name
    (tmp_path / "sized.py").write_text(SIZED.format(helper=helper))
    command = ["study=sized", "plugins=[sized]", "figures=none", "resume=one"]
    assert forked(tmp_path, *command).returncode == 0
    for name in ("another.py", "numpy.py"):
        (tmp_path / name).write_text("pass")
        assert forked(tmp_path, *command).returncode == 0
    (tmp_path / "further.py").write_text("SIZE = 3.0")
    ended = forked(tmp_path, *command)
    assert ended.returncode == 2
    assert "the plugin sized or modules imported there have changed since" in ended.stderr


ODD = """
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from neuralode_flow.figures import FIGURES, FigureSet
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, Study

def run(*, seed: int = 0):
    mixed = np.array([seed, {"third": np.array([1 / 3])}], dtype=object)
    found = xr.Dataset({"mixed": ("i", mixed), "a/b": ("i", [1 / 3, seed])}, attrs={"told": {"a": np.array([1 / 3])}})
    return Finding(study="odd", problem="p", status="ok", verdict="v").attached(found)

def line(dataset):
    figure = Figure()
    figure.subplots().plot(dataset.a_b)
    return figure

STUDIES.register("odd")(Study(run))
FIGURES.register("odd")(FigureSet(lambda dataset: {"one": line(dataset)}, {}))
"""


def test_a_dataset_that_netcdf_cannot_hold_is_kept_all_the_same_and_the_run_says_how(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    command = ["study=odd", "plugins=[odd]", "figures=png"]
    ended = forked(tmp_path, *command, "study.seed=5", "resume=one")
    assert ended.returncode == 0, ended.stderr
    words = "a/b is called a_b; mixed has texts in place of values that netCDF has no kind for"
    assert words in ended.stderr
    assert any(words in text for text in json.loads((tmp_path / "one/summary.json").read_text())["warnings"])
    assert "a/b is called a_b" in (tmp_path / "one/report.html").read_text()
    dataset = results.open(tmp_path / "one")
    assert dataset.a_b.values.tolist() == [1 / 3, 5]
    assert dataset.mixed.values.tolist() == ["5", "{'third': [0.3333333333333333]}"]
    assert dataset.attrs["told"] == "{'a': [0.3333333333333333]}"

    ended = forked(tmp_path, *command, "members=3", "resume=members")
    assert ended.returncode == 0, ended.stderr
    assert words in ended.stderr
    assert results.open(tmp_path / "members").a_b.values.tolist() == [[1 / 3, 0], [1 / 3, 1], [1 / 3, 2]]

    ended = forked(tmp_path, "-m", *command, "study.seed=7,8", "resume=sweep")
    assert ended.returncode == 0, ended.stderr
    assert [results.open(tmp_path / f"sweep/{i}").a_b.values[1] for i in (0, 1)] == [7, 8]


STUDY = """
import xarray as xr
from neuralode_flow.finding import Finding
from neuralode_flow.initial import INITIALS
from neuralode_flow.studies import STUDIES, Clock, Study

FOUND = Finding(study="mine", problem="p", status="ok", verdict="v", numbers={{}})

def run(clock: Clock, *, {parameters}):
    return {returned}

STUDIES.register("mine")(Study(run))

@INITIALS.register("bare")
def bare(z0):
    return lambda s: z0
"""


@pytest.mark.parametrize(
    ("parameters", "returned", "status", "words"),
    [
        ("seed: int = 0", "FOUND.attached(xr.Dataset())", 0, ""),  # it need not tell how far it is
        ("progress: object = None", "FOUND", 1, "study=mine gave Finding in place of an xarray.Dataset"),
        (
            "progress=None",
            "FOUND",
            2,
            "its parameter progress is; write an annotation, progress: Callable[[float, str], None] | None",
        ),
    ],
)
def test_a_study_of_ones_own_says_what_it_lacks(tmp_path, parameters, returned, status, words):
    (tmp_path / "mine.py").write_text(STUDY.format(parameters=parameters, returned=returned))
    ended = forked(tmp_path, "study=mine", "plugins=[mine]", "figures=none")
    assert ended.returncode == status, ended.stderr
    assert words in ended.stderr


def test_an_initialisation_is_told_that_z0_is_no_setting_of_it(tmp_path):
    (tmp_path / "mine.py").write_text(STUDY.format(parameters="seed: int = 0", returned="FOUND"))
    ended = forked(tmp_path, "initial=bare", "plugins=[mine]")
    assert ended.returncode == 2
    assert "z0: Tensor, z0: Problem of what the program gives" in ended.stderr
