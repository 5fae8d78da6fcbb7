"""Every command and example of docs/own-data.md, run as it is printed, ends as the page says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(?P<code>.*?)```|^(?P<lines>(?:    [^\n]*\n)+)", re.M | re.S)


@pytest.mark.slow
def test_the_page_on_own_data_does_what_it_says(tmp_path):
    printed, ran = "", 0
    for block in BLOCK.finditer(PAGE):
        line = (block["lines"] or "").strip()
        if line and not re.match(r"neuralode-flow \w+=", line):
            assert all(" ".join(part.split()) in printed for part in line.splitlines()), line
            continue
        words = ["-c", block["code"]] if block["code"] else ["-m", "neuralode_flow", *shlex.split(line)[1:]]
        ended = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        printed, ran = " ".join((ended.stdout + ended.stderr).split()), ran + 1
        assert ended.returncode == (2 if "cell is empty" in printed else 0), printed
    assert ran == 5
