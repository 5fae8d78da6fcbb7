"""The public names: what editors are told is what is imported at first use."""

import ast
from importlib.resources import files
from pathlib import Path

import pytest

import neuralode_flow as nf


def told():
    """The names in the block for type checkers, and their homes."""
    tree = ast.parse(Path(nf.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for line in block.body:
        (name,) = line.names
        assert name.name == name.asname
        found[name.name] = line.module or name.name
    return found


def test_type_checkers_are_told_of_all_names_and_their_homes():
    assert told() == nf._HOMES
    assert (files("neuralode_flow") / "py.typed").is_file()


@pytest.mark.parametrize("name", nf.__all__)
def test_every_public_name_is_there(name):
    assert getattr(nf, name) is not None
    assert name in dir(nf)
