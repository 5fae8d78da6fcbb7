"""docs/tutorial.md, run from beginning to end in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"

# The commands as modules: their scripts need not be on the path.
COMMANDS = {
    "python": [],
    "neuralode-flow": ["-m", "neuralode_flow"],
    "neuralode-flow-collect": ["-m", "neuralode_flow.app.collect"],
    "neuralode-flow-plot": ["-m", "neuralode_flow.app.plot"],
}


@pytest.mark.slow
def test_every_file_and_command_of_the_tutorial_works(tmp_path):
    text = TUTORIAL.read_text(encoding="utf-8")
    steps = re.findall(r"(?:`(\w+\.py)`:\n\n)?```(python|sh)\n(.*?)```", text, re.DOTALL)
    assert len(steps) >= 10
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, language, body in steps:
        if language == "python":
            (tmp_path / name).write_text(body, encoding="utf-8")
            continue
        for line in body.splitlines():
            word, *rest = shlex.split(line)
            ended = subprocess.run(
                [sys.executable, *COMMANDS[word], *rest],
                cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
    assert (tmp_path / "errors.png").stat().st_size > 1000
    assert (tmp_path / "overlay" / "error_z.pdf").exists()
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == 3
