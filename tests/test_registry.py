"""Registries: names, what stands behind them, and what is imported for that."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import neuralode_flow as nf
from neuralode_flow.figures import FIGURES
from neuralode_flow.garbage import uncollected
from neuralode_flow.studies import STUDIES

BASE = """
from neuralode_flow.registry import Registry

KINDS = Registry("kind", __package__)
"""


def one(*names: str) -> str:
    return "\n".join(["from .base import KINDS", *(f"KINDS.register({name!r})({name.upper()!r})" for name in names)])


FILES = {
    "__init__": "from .base import KINDS",
    "base": BASE,
    "zebra": one("zebra"),
    "ape": one("ape"),
    "several": one("cat", "dog"),
    "helper": "",
    "leaning": f"from . import zebra\n{one('leaning')}",
}


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    """A registry whose home is a package of its own, and what of the home is imported."""
    folder = tmp_path / "strangers_home"
    folder.mkdir()
    for name, text in FILES.items():
        folder.joinpath(f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("strangers_home").KINDS
    for name in imported(""):
        del sys.modules[f"strangers_home.{name}"]
    del sys.modules["strangers_home"]


def imported(*but: str) -> set[str]:
    """The modules of the home that are imported."""
    return {name.partition(".")[2] for name in sys.modules if name.startswith("strangers_home.")} - {*but}


ALL = ["ape", "cat", "dog", "leaning", "zebra"]


def test_a_name_imports_its_own_module_and_no_other(kinds):
    assert imported() == {"base"}
    assert kinds["zebra"] == "ZEBRA"
    assert "leaning" in kinds
    kinds.check("leaning")
    assert imported() == {"base", "zebra", "leaning"}


def test_a_name_without_a_module_of_its_own_is_found_among_all(kinds):
    assert kinds["dog"] == "DOG"
    assert imported() == set(FILES) - {"__init__"}


@pytest.mark.parametrize("first", [[], ["zebra", "ape"], ["ape", "zebra"], ["dog"]])
def test_a_listing_has_all_in_one_order_whatever_was_asked_for_before(kinds, first):
    for name in first:
        kinds[name]
    assert list(kinds) == ALL
    assert (len(kinds), dict(kinds)) == (5, {name: name.upper() for name in ALL})
    assert repr(kinds) == f"Registry(kind: {', '.join(ALL)})"
    assert [kinds._repr_html_().find(name) for name in ALL] == sorted(kinds._repr_html_().find(name) for name in ALL)


@pytest.mark.parametrize("ask", [len, repr, lambda kinds: kinds._repr_html_(), list])
def test_whatever_shows_all_imports_all(kinds, ask):
    ask(kinds)
    assert imported() == set(FILES) - {"__init__"}


@pytest.mark.parametrize("name", ["zebar", "helper", "base", "__init__", "a.b", ""])
def test_what_is_no_name_is_refused_with_all_that_are(kinds, name):
    assert name not in kinds
    near = "; did you mean 'zebra'?" if name == "zebar" else ""
    with pytest.raises(ValueError, match="unknown kind") as refused:
        kinds[name]
    assert str(refused.value).startswith(f"unknown kind {name!r}{near}")
    assert str(refused.value).endswith(f"(valid: {', '.join(ALL)})")


def test_what_cannot_be_a_name_is_none(kinds):
    assert None not in kinds
    assert 3 not in kinds
    assert imported() == {"base"}


def test_a_stranger_stands_among_them_and_takes_no_name_of_a_module_that_nobody_has_asked_for(kinds):
    kinds.register("bee")("BEE")
    assert kinds["bee"] == "BEE"
    with pytest.raises(ValueError, match="kind 'zebra' is registered already; choose another name"):
        kinds.register("zebra")("mine")
    assert imported() == {"base", "zebra"}
    assert kinds["zebra"] == "ZEBRA"
    assert list(kinds) == sorted([*ALL, "bee"])


CELL = """
from functools import partial

@kinds.register("function")
def mine(): return {number}

@kinds.register("class")
class Mine: number = {number}

def made(number): return number

kinds.register("partial")(partial(made, {number}))
kinds.register("study")(Study(made, question="{number}"))
"""


def test_a_cell_of_a_notebook_may_be_run_again(kinds):
    for number in (1, 2):
        exec(CELL.format(number=number), {"kinds": kinds, "Study": nf.studies.Study, "__name__": "cell"})
        assert (kinds["function"](), kinds["class"].number, kinds["partial"](), kinds["study"].question) == (
            number, number, number, str(number),
        )  # fmt: skip
    other = "def {}(): return 3\nkinds.register('function')({})"
    for module, name in (("other", "mine"), ("cell", "another"), ("cell", "(lambda: 3)")):
        text = other.format(name, name) if name.isidentifier() else f"kinds.register('function')({name})"
        with pytest.raises(ValueError, match="kind 'function' is registered already"):
            exec(text, {"kinds": kinds, "__name__": module})
    kinds.register("lambda")(lambda: 1)
    with pytest.raises(ValueError, match="kind 'lambda' is registered already"):
        kinds.register("lambda")(lambda: 2)


def test_a_broken_module_is_told_where_it_is_asked_for_and_each_time(kinds, tmp_path):
    tmp_path.joinpath("strangers_home", "broken.py").write_text("raise ImportError('no such part')", encoding="utf-8")
    importlib.invalidate_caches()
    assert kinds["ape"] == "APE"
    for _ in range(2):
        with pytest.raises(ImportError, match="no such part"):
            kinds["broken"]


@pytest.mark.parametrize("registry", [nf.STUDIES, FIGURES, nf.SYSTEMS], ids=["studies", "figures", "systems"])
def test_ours_have_modules_of_their_own_for_all_names(registry):
    """Else one name would import them all."""
    home = Path(str(sys.modules[registry._home].__file__)).parent
    assert [name for name in registry if not home.joinpath(f"{name}.py").exists()] == []
    assert list(registry) == sorted(registry)


WATCHED = """
import sys
from neuralode_flow.app.main import command

sys.argv = ["neuralode-flow", *sys.argv[1:]]
try:
    command()
finally:
    print("imported", *sys.modules)
"""


def test_a_run_imports_what_it_uses(tmp_path):
    settings = ["study=trajectory", "problem=teacher", "problem.dimension=2", "time=descent", "figures=none", "-q"]
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, *settings], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = set(ended.stdout.partition("imported ")[2].split())
    assert {"torch", "xarray", "neuralode_flow.studies.trajectory"} <= found
    heavy = {"matplotlib", "sklearn", "sympy", "torch._dynamo"}
    assert found & heavy == set()
    assert {name for name in nf.STUDIES if f"neuralode_flow.studies.{name}" in found} == {"trajectory"}
    assert {name for name in nf.SYSTEMS if f"neuralode_flow.intrinsic.systems.{name}" in found} == set()


@pytest.mark.slow
def test_the_criteria_of_a_system_need_no_compiler(tmp_path):
    """Which torch.func imports for derivatives, and torch.autograd.grad sympy beside a dual vector."""
    settings = ["study=closure", "system=scalar_chain", "time=closure", "time.samples=3", "figures=none", "-q"]
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, *settings], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = set(ended.stdout.partition("imported ")[2].split())
    assert "neuralode_flow.intrinsic.systems.scalar_chain" in found
    assert found & {"sympy", "torch._dynamo", "torch._decomp.decompositions_for_jvp", "matplotlib"} == set()


IN_WORKERS = """
import sys
from neuralode_flow.app.main import command
from neuralode_flow import parallel

call = parallel._call

def watched(key):
    before = {*sys.modules}
    result = call(key)
    print("imported", *{*sys.modules} - before, flush=True)
    return result

parallel._call = watched
sys.argv = ["neuralode-flow", *sys.argv[1:]]
command()
"""


@pytest.mark.slow
def test_processes_that_save_figures_import_nothing_that_the_first_could_have(tmp_path):
    settings = ["study=trajectory", "problem=teacher", "problem.dimension=2", "time.samples=3"]
    ended = subprocess.run(
        [sys.executable, "-c", IN_WORKERS, *settings], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("imported")]
    assert len(found) > 1
    heavy = ("matplotlib.backends.", "fontTools.subset", "scipy.", "PIL.")
    assert [name for names in found for name in names if name.startswith(heavy)] == []


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_are_not_collected_and_what_was_before_comes_back(enabled):
    seen = []

    @uncollected()
    def broken():
        seen.append(gc.isenabled())
        raise ImportError

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError):
            broken()
        seen.append(gc.isenabled())
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False, enabled]


def test_an_entry_of_another_class_is_refused_where_it_is_filed():
    def mine(problem): ...

    for registry, wanted in (
        (STUDIES, "study 'mine' must be a Study"),
        (FIGURES, "figure set 'mine' must be a FigureSet"),
    ):
        for entry, got in ((mine, "function"), (dict, "the class dict")):
            with pytest.raises(TypeError, match=rf"{wanted}\(\.\.\.\), got {got}$"):
                registry.register("mine")(entry)
        assert "mine" not in registry
