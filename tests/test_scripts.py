"""The scripts that set the environment up, with an environment that is there already."""

import os
import re
import shutil
import subprocess
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


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is missing")
def test_a_second_first_start_says_that_it_waits(tmp_path):
    for name in ("pyproject.toml", "setup.py", "scripts", "neuralode_flow/depth/engine"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(["bash", "-euc", SLOW], **options, env=os.environ)
    assert first.stderr.readline() == "installing\n"
    second = subprocess.Popen(["bash", "-euc", SLOW], **options, env=os.environ)
    assert second.stderr.readline() == f"waiting for another process, which is making {tmp_path}/.venv\n"
    (tmp_path / "release").touch()
    assert first.communicate(timeout=60) == ("ready\n", "")
    assert second.communicate(timeout=60) == ("ready\n", "")  # the second one finds the work done


def test_a_commit_is_checked_as_scripts_test_does():
    script = (ROOT / "scripts/test").read_text()
    checks = [line.removeprefix("exec ") for line in script.splitlines() if '"$bin/' in line]
    commands = [re.sub(r'"\$bin/(\w+)"', r".venv/bin/\1", line).removesuffix(' "$@"') for line in checks]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands
    assert len(commands) == 4
