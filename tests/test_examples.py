"""The examples of the reference: every public name has one, each is run, and each stands on a page."""

from __future__ import annotations

import doctest
import inspect
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralode_flow as nf

PAGES = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
WRITTEN = "".join(page.read_text(encoding="utf-8") for page in PAGES)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def public() -> dict[str, Any]:
    """Public classes and functions by the name that they stand under on the pages."""
    found = {name: getattr(nf, name) for name in nf.__all__ if name != "__version__"}
    for module in ("exact", "laws", "curvature", "intrinsic"):
        home = found.pop(module)
        own = (name for name, value in vars(home).items() if getattr(value, "__module__", "").startswith(home.__name__))
        found |= {f"{module}.{name}": getattr(home, name) for name in own if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}


def run(text: str, name: str) -> int:
    """Runs the examples of a text in order; fails at the first that shows something else. How many there were."""
    names = {"nf": nf, "torch": torch, "math": math, "tempfile": tempfile}
    text = re.sub(r"^ *```.*$", "", text, flags=re.MULTILINE)  # what is shown ends before a fence
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        doctest.DebugRunner(optionflags=FLAGS).run(test)
    finally:
        torch.set_default_dtype(before)
    return len(test.examples)


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_on_a_page_with_an_example_that_holds(name: str) -> None:
    assert re.search(rf":: neuralode_flow\.{re.escape(name)}$", WRITTEN, re.MULTILINE)
    assert run(inspect.getdoc(public()[name]) or "", name) > 0


@pytest.mark.parametrize("name", [name for name in nf.__all__ if name.isupper()])
def test_every_registry_is_on_a_page(name: str) -> None:
    assert f"`nf.{name}`" in WRITTEN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_hold(page: Path) -> None:
    examples = run(page.read_text(encoding="utf-8"), page.stem)
    assert examples >= (10 if page.stem == "names" else 0)


def test_an_example_that_does_not_hold_is_found() -> None:
    with pytest.raises(doctest.DocTestFailure):
        run(">>> 1 + 1\n3\n", "wrong")
