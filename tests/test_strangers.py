"""Files of a stranger's own, put beside ours with no other file touched, are found by name on the command line.

The files and their commands are those of CONTRIBUTING.md, each tried alone in a copy of the package.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
KINDS = re.findall(r"^\| ([a-z ]+?)(?:, and its figure)? \| `", TEXT, flags=re.MULTILINE)


def template(kind):
    """The files and the command under the heading of a kind."""
    part = re.split(r"^### An? ", TEXT, flags=re.MULTILINE)
    (mine,) = [text for text in part[1:] if re.match(rf"{kind}\b", text)]
    files = dict(re.findall(r"^`neuralode_flow/(\S+)`\n\n```python\n(.*?)```", mine, flags=re.MULTILINE | re.DOTALL))
    (line,) = re.findall(r"^    neuralode-flow (.*)$", mine, flags=re.MULTILINE)
    return files, shlex.split(line)


# What the report must show of each, and what summary.json must have.
SHOWN = {
    "layer rule": ("order of third", "third Taylor"),
    "time method": ("ralston",),
    "step rule": ("under rules that turn with the gradient", "‖z‖ under clipped"),
    "loss": ("Linnerud", "pseudo_huber"),
    "kernel": ("intrinsic, kernel geometric",),
    "problem": ("Rotation: reach a turn of 0.3 radians",),
    "initialisation": ("drift of the conservation law", "initial=swing"),
    "study": ("How fast does the loss fall?", "The loss along training.", "at least 0.001"),
    "system": ("Exponentials of 3 numbers", "Kivinen and Warmuth 1997"),
}


def test_every_kind_has_a_template_and_a_test():
    assert set(KINDS) == set(SHOWN)
    assert len(KINDS) == 9


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHOWN)
def test_a_file_of_ones_own_is_found_by_name_and_in_the_report(kind, tmp_path):
    files, settings = template(kind)
    home = tmp_path / "home"
    # With what Python has compiled of it, which goes by the time and the size of a source and is as good there.
    shutil.copytree(ROOT / "neuralode_flow", home / "neuralode_flow")
    shutil.copytree(ROOT / "conf", home / "neuralode_flow" / "conf")
    for name, text in files.items():
        assert not (ROOT / "neuralode_flow" / name).exists()
        (home / "neuralode_flow" / name).write_text(text, encoding="utf-8")
    few = [] if kind == "step rule" else ["time.samples=3"]  # of a study that takes steps and no clock
    line = [sys.executable, "-m", "neuralode_flow", *settings, "resume=run", *few]
    environment = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert [what for what in SHOWN[kind] if what not in report] == []
    record = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert record["status"] == "ok"
    if kind == "layer rule":
        assert abs(record["orders"]["third"] - record["expected_orders"]["third"]) < 0.1
    if kind in ("study", "system", "step rule"):
        assert record["passed"]
