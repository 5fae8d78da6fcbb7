"""What the README and the pages about Python show: run as it stands, block after block."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "docs/python.md", "docs/animate.md"]
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUND_OFF, SMALL = 1e-9, 1e-5  # a machine may differ in such numbers, and by a factor of 10 in those
GAP = re.compile(r"(?<=smallest non-zero )\d+\.\d+e-?\d+")  # it depends on the basis of the laws that LAPACK gives


def alike(printed: str, shown: str) -> bool:
    """Whether two texts are the same but for numbers that round-off, a solver's error or a choice of basis decides."""
    gaps = zip(map(float, GAP.findall(printed)), map(float, GAP.findall(shown)), strict=False)
    if not all(a / 2 < b < 2 * a for a, b in gaps):
        return False
    printed, shown = GAP.sub("#", printed), GAP.sub("#", shown)
    if NUMBER.sub("#", printed) != NUMBER.sub("#", shown):
        return False
    pairs = zip(map(float, NUMBER.findall(printed)), map(float, NUMBER.findall(shown)), strict=True)
    return all(
        math.isclose(a, b, rel_tol=1e-3) or max(a, b) < ROUND_OFF or (max(a, b) < SMALL and max(a, b) < 10 * min(a, b))
        for a, b in pairs
    )


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("2e-13 off", "5e-14 off", True),
        ("2e-08 off", "5e-08 off", True),
        ("2e-08 off", "5e-06 off", False),
        ("loss 0.12", "loss 0.13", False),
        ("[smallest non-zero 2.0e-01]", "[smallest non-zero 1.8e-01]", True),
        ("[smallest non-zero 2.0e-01]", "[smallest non-zero 2.0e-02]", False),
        ("[smallest non-zero 2.0e-01]", "[rank 2]", False),
        ("1 run", "1 walk", False),
    ],
)
def test_what_counts_as_the_same(printed: str, shown: str, same: bool) -> None:
    assert alike(printed, shown) == same


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_print_what_the_page_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_default_dtype()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    compared = 0
    try:
        for i, (language, text) in enumerate(blocks):
            if language != "python":
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, page, "exec"), names)
            if out.getvalue():
                assert blocks[i + 1][0] == ""
                assert alike(out.getvalue(), blocks[i + 1][1]), out.getvalue()
                compared += 1
    finally:
        torch.set_default_dtype(before)
    assert compared > 0


@pytest.mark.parametrize("name", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_the_readme_links_to_files_that_exist(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_readme_is_short() -> None:
    assert len(README) <= 8000
    assert len(README.splitlines()) <= 150
