"""What the reader's machine measures is set beside what is published, and said to differ only where it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def compare():
    pytest.importorskip("torchdiffeq")
    sys.path.insert(0, str(HERE))
    try:
        import compare
    finally:
        sys.path.remove(str(HERE))
    return compare


def ratios(median, width=0.1):
    return {"median": median, "lower": median * (1 - width), "upper": median * (1 + width), "rounds": 7}


@pytest.mark.parametrize(
    ("here", "published", "said"),
    [
        (ratios(2.0), ratios(2.1), "as published"),
        (ratios(2.0), ratios(2.9), "as published"),  # less than half as much again is the noise of machines
        (ratios(9.0), ratios(3.0), "3 times the published one"),
        (ratios(1.0), ratios(4.0), "0.25 times the published one"),
        (ratios(9.0, width=0.9), ratios(3.0), "as published"),  # its own quartiles reach that far
        (ratios(9.0), None, "not published"),
    ],
)
def test_what_differs_is_said_and_nothing_else(compare, here, published, said):
    assert compare.Compared("case", "a / b", here, published).verdict == said


def test_ratios_are_found_by_section_case_and_name(compare):
    published = json.loads((HERE / "results" / "speed.json").read_text(encoding="utf-8"))
    lines = [*compare.compared("velocity", published["velocity"], published)]
    assert lines
    assert all(line.here is line.published and line.verdict == "as published" for line in lines)
    changed = {"rows": [{"case": "d = 8", "ratios": {"ours / floor": ratios(1e3), "ours / moon": ratios(1.0)}}]}
    far, unknown = compare.compared("velocity", changed, published)
    assert far.verdict.endswith("times the published one")
    assert unknown.verdict == "not published"


@pytest.mark.slow
def test_the_command_measures_and_says_where(compare):
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import compare, speed; "
    code += "compare.SECTIONS = {'kernels': speed.Size(kernels=(16,), rounds=3, budget=1.0)}; compare.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LogMean / svd" in ended.stdout
    assert "of 3 ratios as published, in" in ended.stdout
    assert "here: " in ended.stdout
