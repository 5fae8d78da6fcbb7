"""The files in conf/ and the registries say the same, and an installed package has them."""

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from cases import slow
from omegaconf import OmegaConf

from neuralode_flow.app.groups import text
from neuralode_flow.app.main import GROUPS
from neuralode_flow.app.schema import Depth, Machine, Time
from neuralode_flow.depth import DEPTH_SOLVERS
from neuralode_flow.initial import INITIALS
from neuralode_flow.intrinsic.systems import SYSTEMS
from neuralode_flow.problems import PROBLEMS
from neuralode_flow.signatures import settings
from neuralode_flow.studies import STUDIES

CONF = files("neuralode_flow.conf")
ROOT = Path(__file__).parents[2]


def names(group: str) -> set[str]:
    return {entry.name.removesuffix(".yaml") for entry in (CONF / group).iterdir() if entry.name.endswith(".yaml")}


def load(group: str, name: str):
    return OmegaConf.to_container(OmegaConf.create((CONF / group / f"{name}.yaml").read_text()))


REGISTERED = [
    *(("problem", name, builder) for name, builder in PROBLEMS.items()),
    *(("initial", name, builder) for name, builder in INITIALS.items()),
    *(("system", name, builder) for name, builder in SYSTEMS.items()),
    *(("study", name, study.run) for name, study in STUDIES.items()),
]


@pytest.mark.parametrize(("group", "name", "builder"), REGISTERED, ids=[f"{g}={n}" for g, n, _ in REGISTERED])
def test_every_registered_name_has_a_file_made_from_its_signature(group, name, builder):
    fields = {key: "???" if p.default is p.empty else p.default for key, p in settings(builder).items()}
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    assert load(group, name) == {"name": name, **defaults}
    written = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    assert written == text(group, name), "run .venv/bin/python -m neuralode_flow.app.groups"
    assert not written.startswith("# \n"), f"the builder of {group}={name} needs a docstring"


@pytest.mark.parametrize(
    ("group", "registry"),
    [
        ("problem", PROBLEMS),
        ("initial", INITIALS),
        ("system", SYSTEMS),
        ("study", STUDIES),
        ("depth", DEPTH_SOLVERS),
    ],
)
def test_every_file_is_of_a_registered_name(group, registry):
    assert names(group) == set(registry)


FIELDS = (
    "out", "device", "threads", "resume", "save_every", "keep_checkpoints", "figures", "verbosity", "plugins",
    "at_once",
)  # fmt: skip


def test_the_schema_has_the_defaults_of_the_files():
    assert Time(**load("time", "default")) == Time()
    assert Depth(**load("depth", "collocation")) == Depth()
    top = OmegaConf.to_container(OmegaConf.create((CONF / "config.yaml").read_text()), resolve=False)
    assert Machine(**{key: top[key] for key in FIELDS}) == Machine()
    assert top["members"] is None
    assert set(top) == {"defaults", "hydra", "members", *FIELDS}


def test_every_group_of_config_files_is_known_to_the_command():
    assert {entry.name for entry in CONF.iterdir() if entry.is_dir() and not entry.name.startswith("_")} == {
        *GROUPS,
        "hydra",
    }


# test_frozen.py composes and checks all of them; the command itself takes each of these kinds.
STARTED = {"quick", "relu_dag", "f1_sander2022", "t1_marcotte2023", "momentum", "teacher", "overnight", "perceptron"}


@pytest.mark.parametrize("name", [*sorted(STARTED), *slow(*sorted({*names("experiment")} - STARTED))])
def test_every_experiment_starts_with_its_command_and_is_valid(name, command):
    _, line, sentence, *_ = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert line == f"# neuralode-flow experiment={name}"
    assert re.fullmatch(r"# .+\.", sentence)
    ended = command(f"experiment={name}", "device=cuda:99")
    assert "device=cuda:99 cannot be used here" in ended.err  # the first complaint after the whole config was accepted


def test_help_is_there_without_torch(tmp_path):
    program = (
        "import sys; sys.argv = ['neuralode-flow', '--help', 'all']\n"
        "from neuralode_flow.app.main import command\n"
        "try: command()\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'xarray', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Usage: neuralode-flow" in ended.stdout
    assert re.search("experiment: .*control", ended.stdout)
    assert re.search(r"  single_neuron +A single linear neuron a u follows a warped mirror flow\.", ended.stdout)
    assert list(tmp_path.iterdir()) == []


def test_every_folder_of_the_package_is_installed():
    without_init = [
        folder.relative_to(ROOT)
        for folder in (ROOT / "neuralode_flow").rglob("*")
        if folder.is_dir() and list(folder.glob("*.py")) and not (folder / "__init__.py").exists()
    ]
    assert without_init == []


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "scripts" / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert {re.match(r"[\w.-]+", line)[0].lower() for line in wanted} <= {pin.lower() for pin in pins}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("problem=te", ["problem=teacher"]),
        ("time.h", ["time.horizon="]),
        ("experiment=f7", ["experiment=f7_cohen2023"]),
    ],
)
def test_the_shell_completes_groups_names_and_fields(typed, offered):
    line = f"neuralode-flow {typed}"
    ended = subprocess.run(
        [sys.executable, "-m", "neuralode_flow", "-sc", "query=bash"],
        env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == offered
