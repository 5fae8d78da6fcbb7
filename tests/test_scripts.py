"""The scripts that set the environment up, with an environment that is there already."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# Makes .venv as slowly as `release` comes: what the real one does takes minutes.
SLOW = """
. scripts/environment
install() {
    echo installing >&2
    while [ ! -e release ]; do sleep 0.05; done
    mkdir -p "$root/.venv/bin" && touch "$root/.venv/bin/neuralode-flow" && chmod +x "$root/.venv/bin/neuralode-flow"
    printf '%s\\n' "$2" >"$stamp"
}
ensure_environment
echo ready
"""


def copy_scripts(folder):
    for name in ("pyproject.toml", "setup.py", "scripts", ".ci", "neuralode_flow/depth/engine"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is missing")
def test_a_second_first_start_says_that_it_waits(tmp_path):
    copy_scripts(tmp_path)
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(["bash", "-euc", SLOW], **options, env=os.environ)
    assert first.stderr.readline() == "installing\n"
    second = subprocess.Popen(["bash", "-euc", SLOW], **options, env=os.environ)
    assert second.stderr.readline() == f"waiting for another process, which is making {tmp_path}/.venv\n"
    (tmp_path / "release").touch()
    assert first.communicate(timeout=60) == ("ready\n", "")
    assert second.communicate(timeout=60) == ("ready\n", "")  # the second one finds the work done


def test_an_environment_that_a_link_leads_to_is_left_alone(tmp_path):
    copy_scripts(tmp_path / "own")
    other = tmp_path / "other" / "bin"
    other.mkdir(parents=True)
    (other / "python").symlink_to(sys.executable)
    (tmp_path / "own" / ".venv").symlink_to(other.parent)
    ended = subprocess.run([tmp_path / "own/scripts/run", "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("is a link, and not an environment of this folder: remove the link and one is made\n")
    assert [path.name for path in other.iterdir()] == ["python"]


def test_a_commit_is_checked_as_scripts_test_does():
    script = (ROOT / "scripts/test").read_text()
    checks = [line.removeprefix("exec ") for line in script.splitlines() if '"$bin/' in line]
    commands = [re.sub(r'"\$bin/(\w+)"', r".venv/bin/\1", line).removesuffix(' "$@"') for line in checks]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands
    assert len(commands) == 4


# An environment that has been made, as scripts/environment sees it.
MADE = """
. scripts/environment
touch .venv/bin/neuralode-flow && chmod +x .venv/bin/neuralode-flow
fingerprint .venv/bin/python cpu >"$stamp"
"""


def documentation(folder, **environment):
    """The part of continuous integration, which can install nothing: its status, stdout and stderr."""
    (folder / "nothing").mkdir(exist_ok=True)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "nothing"), "PIP_CONFIG_FILE": os.devnull}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "NEURALODE"))}
    ended = subprocess.run(
        [folder / ".ci/documentation"], cwd=folder, env=own | offline | environment, capture_output=True, text=True
    )
    return ended.returncode, ended.stdout, ended.stderr


def make_environment(folder):
    """A new one, and its folder of packages, which is empty."""
    copy_scripts(folder)
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    subprocess.run(["bash", "-euc", MADE], cwd=folder, check=True)
    return folder / f".venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def test_documentation_that_cannot_be_built_for_want_of_packages_is_left_out(tmp_path):
    pip = pytest.importorskip("pip", reason="an environment with another installer")
    (make_environment(tmp_path) / "pip").symlink_to(Path(pip.__file__).parent)
    status, out, err = documentation(tmp_path)
    assert out == "what builds the documentation could not be installed: it is not built\n"
    assert "installing what 'docs' needs" in err
    assert "No matching distribution found" in err
    assert status == 0


def test_another_reason_not_to_build_the_documentation_is_a_failure(tmp_path):
    copy_scripts(tmp_path)
    status, out, err = documentation(tmp_path, PYTHON="/no/python")
    assert (status, out) == (1, "")
    assert "PYTHON=/no/python is not a Python" in err


@pytest.mark.slow  # .ci/run has installed Sphinx then
def test_documentation_with_a_mistake_is_a_failure(tmp_path):
    pytest.importorskip("sphinx", reason="./scripts/docs installs it")
    (make_environment(tmp_path) / "those_of_the_test.pth").write_text(
        "\n".join(path for path in sys.path if "-packages" in path)
    )
    page = tmp_path / "docs/index.md"
    page.parent.mkdir()
    (page.parent / "conf.py").write_text('extensions = ["myst_nb"]\n')
    page.write_text("# A page\n\nSee [another](another.md).\n")
    status, out, err = documentation(tmp_path)
    assert "index.md" in err
    assert "another.md" in err
    assert (status, out) == (1, "")
    page.write_text("# A page\n")
    assert documentation(tmp_path)[:2] == (0, "docs/_build/html/index.html\n")
