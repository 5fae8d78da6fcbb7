"""The pages on trust and on testing name tests that exist, and the endings and summaries that the program has."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
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


def test_the_table_of_planted_faults_is_that_of_the_program():
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \| (.*) \| `([\w/]+\.py)::\w+` \|$", page, re.MULTILINE)
    assert [(int(number), what) for number, what, _ in table] == list(enumerate((fault.what for fault in FAULTS), 1))
    for (_, _, file), fault in zip(table, FAULTS, strict=True):
        assert file in fault.tests.split(), fault.what
    assert f"{len(FAULTS)} of {len(FAULTS)} are noticed" in page


@cache
def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def rooms():
    """The rooms of docs/architecture.md from the highest to the lowest, as paths in the package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([a-z_/]+)`", cell) for cell in table]


def test_no_room_imports_from_one_below_it():
    order = {name: i for i, names in enumerate(rooms()) for name in names}
    package = ROOT / "neuralode_flow"

    def level(path):
        """How far down the room of a module stands."""
        found = [name for name in order if path == name or path.startswith(f"{name}/")]
        return order[max(found, key=len)] if found else None

    for file in package.rglob("*.py"):
        *parents, name = file.relative_to(package).with_suffix("").parts
        here = "/".join([*parents, name])
        if here in ("__init__", "__main__"):
            continue
        assert level(here) is not None, f"{here} is in no room of docs/architecture.md"
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ImportFrom) and node.level:
                home = resolve_name("." * node.level + (node.module or ""), ".".join(["neuralode_flow", *parents]))
                target = "/".join(home.split(".")[1:])
                for alias in node.names:
                    what = f"{target}/{alias.name}".lstrip("/")
                    own = name == "__init__" and what.startswith("/".join(parents))  # a folder has rooms within
                    assert own or level(what) is None or level(what) <= level(here), f"{here} imports {what}"


def imports(module, file, modules):
    """The modules of the package that one imports, inside functions as well; not what is there for types alone."""
    here, found = module if file.name == "__init__.py" else module.rpartition(".")[0], set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            home = resolve_name("." * node.level + (node.module or ""), here)
            found.update(name if (name := f"{home}.{alias.name}") in modules else home for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(file))
    return (found & set(modules)) - {module}


def test_no_module_imports_itself_through_others():
    modules = {}
    for file in (ROOT / "neuralode_flow").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {module: imports(module, file, modules) for module, file in modules.items()}
    assert len(graph) > 100
    assert sum(map(len, graph.values())) > 500
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_each_section_of_a_page_says_each_thing_once(page):
    """A merge may leave a paragraph beside the one that took its place, or below another heading."""
    text = re.sub(r"^```.*?^```$", "code", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"[^\n]\n(#+ .*)", text) == []
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        begun = re.findall(r"^\*\*(.*?)\*\*", section, re.MULTILINE)
        assert sorted(begun) == sorted(set(begun)), section.partition("\n")[0]
        assert re.findall(r"[.)] [A-Z]{5,}$", section, re.MULTILINE) == []  # what was to be filled in
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heads, line, *others = table.splitlines()
        assert set(line) <= set("|-: "), heads  # rows below a blank line are of no table
        claims = [row.split(" | ")[:2] for row in others]
        claims = [claim for claim in claims if len(claim[-1]) > 40]
        assert [claim for claim in claims if claims.count(claim) > 1] == []
