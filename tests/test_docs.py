"""The pages on trust and on testing name tests that exist, and the endings and summaries that the program has."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from mutations import FAULTS

import neuralode_flow as nf

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


@cache
def functions_in(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def rows(page):
    return [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("page", ["trust.md", "testing.md"])
def test_every_test_that_a_page_names_is_there(page):
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert len(named) > 10
    for file, name in named:
        assert name in functions_in(ROOT / "tests" / file), f"{file}::{name}"


def test_every_row_of_the_page_on_trust_names_a_test():
    for row in rows("trust.md"):
        if set(row) > set("|- ") and "what it says" not in row:
            assert NAMED.search(row), row


def test_every_ending_of_a_run_has_a_row():
    page = (ROOT / "docs" / "trust.md").read_text()
    assert [code for code in nf.ENDINGS if f"`{code}`" not in page] == []


def test_every_planted_fault_still_has_its_place():
    for fault in FAULTS:
        assert (ROOT / "neuralode_flow" / fault.file).read_text().count(fault.old) == 1, fault.what
        for name in fault.tests.split():
            assert (ROOT / "tests" / name).exists(), fault.what
