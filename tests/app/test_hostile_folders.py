"""Folders of others: nothing outside of them is read or written, and no file costs more than it may.

Every folder is collected, and its member 1 is drawn, by the real commands in processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from processes import end_after

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.app import collect, plot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

SECRET = "the-secret-of-this-machine"
NAMES = ("config.yaml", "summary.json", "failed.json", "results.nc", "report.html")
SWEEP = ("study=trajectory", "problem=teacher", "problem.dimension=2", "problem.seed=0,1", "study.estimate=false",
         "figures=all")  # fmt: skip
LAUGHS = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}' if i else 'ha'] * 9)}]\n" for i in range(12))


class Ran(NamedTuple):
    """A process that has ended."""

    status: int
    said: str
    megabytes: float
    seconds: float


def ran(command: Callable[[list[str]], None], *arguments: str, folder: Path) -> Ran:
    """Runs a command in a process of its own; memory is the largest resident set, time that of the processor."""
    child = os.fork()
    if child == 0:
        with (folder / "said").open("w+b", buffering=0) as said:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
        end_after(lambda: _be_command(command, list(arguments), folder))
    _, status, usage = os.wait4(child, 0)
    megabytes = int((folder / "peak").read_text()) / 1024
    said = (folder / "said").read_text(errors="replace")
    return Ran(os.waitstatus_to_exitcode(status), said, megabytes, usage.ru_utime + usage.ru_stime)


def _be_command(command: Callable[[list[str]], None], arguments: list[str], folder: Path) -> None:
    try:
        os.chdir(folder)
        os.environ |= {"SECRET": SECRET, "COLUMNS": "200"}
        for name, handle in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(handle, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident set begins anew
        command(arguments)
    finally:
        peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
        (folder / "peak").write_text(peak)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory) -> Path:
    """A place with the folder S of a sweep of two members."""
    place = tmp_path_factory.mktemp("harmless")
    line = [sys.executable, "-m", "neuralode_flow", "-m", *SWEEP, "resume=S"]
    subprocess.run(line, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return place


@pytest.fixture(scope="module")
def usual(harmless) -> tuple[Ran, Ran]:
    """What the commands need for that sweep."""
    place = harmless.parent / "usual"
    shutil.copytree(harmless, place)
    return ran(collect.main, "S", folder=place), ran(plot.main, "S/1", folder=place)


def interpolations(sweep: Path, outside: Path) -> None:
    text = "${oc.env:SECRET}"
    (sweep / "multirun.yaml").write_text(f'hydra: {{overrides: {{task: ["a={text}", "{text}"]}}}}\nb: {text}\n')
    for name in "01":
        config = (sweep / name / "config.yaml").read_text() + f"more:\n  x: {text}\n  y{name}: {text}\n"
        (sweep / name / "config.yaml").write_text(config)
        results.write(sweep / name / "results.nc", nf_open_without_config(sweep / name).assign_attrs(config=config))
    (sweep / "2").mkdir()
    (sweep / "2" / "failed.json").write_text(json.dumps({"reason": text, "overrides": [f"a={text}", f"{text}=1"]}))


def nf_open_without_config(run: Path):
    """The dataset of a run whose config has been changed."""
    (run / "config.yaml").rename(run / "away")
    dataset = nf.open(run)
    (run / "away").rename(run / "config.yaml")
    return dataset


def tags(sweep: Path, outside: Path) -> None:
    call = f"!!python/object/apply:os.system ['touch {outside}/pwned']\n"
    for i, text in enumerate((f"a: {call}", "a: !foo 1\n", call, "a: !!python/name:os.getcwd\n", "a: !!binary aGE=\n")):
        shutil.copytree(sweep / "0", sweep / f"bad{i}")
        (sweep / f"bad{i}" / "config.yaml").write_text(text)
    (sweep / "multirun.yaml").write_text(f"hydra: {call}")
    (sweep / "1" / "config.yaml").write_text(call)


def nested(sweep: Path, outside: Path) -> None:
    for i, text in enumerate((LAUGHS, "[" * 100_000, "- " * 100_000, "{a: " * 50_000, "? " * 100_000, "a: &a [*a]")):
        for name in ("config.yaml", "summary.json", "failed.json"):
            shutil.copytree(sweep / "0", sweep / f"{i}{name}")
            (sweep / f"{i}{name}" / name).write_text(text)
    (sweep / "multirun.yaml").write_text(LAUGHS)
    (sweep / "1" / "config.yaml").write_text(LAUGHS)


def large(sweep: Path, outside: Path) -> None:
    for name in NAMES:
        shutil.copytree(sweep / "0", sweep / f"bad {name}")
        (sweep / f"bad {name}" / name).write_text("")
        os.truncate(sweep / f"bad {name}" / name, 10**11 if name != "results.nc" else 10**8)
    (sweep / "multirun.yaml").write_text("a: 1\n" * 2 * 10**7)
    (sweep / "1" / "config.yaml").write_text("a: 1\n" * 2 * 10**7)


def dense(sweep: Path, outside: Path) -> None:
    """As many values as go into a file of the size that is read."""
    values = {
        "summary.json": ("[{}" + ",{}" * 80_000 + "]", "{" + '"a":' * 60_000),
        "config.yaml": ("x: [a" + ",a" * 520_000 + "]",),
    }
    for name, texts in values.items():
        for i, text in enumerate(texts):
            shutil.copytree(sweep / "0", sweep / f"{i}{name}")
            (sweep / f"{i}{name}" / name).write_text(text)
    (sweep / "1" / "summary.json").write_text(json.dumps({"status": "ok"} | {str(i): i for i in range(20_000)}))


def many(sweep: Path, outside: Path) -> None:
    """Members that differ in as many settings as are read, with as many numbers."""
    for i in range(10):
        (sweep / f"m{i}").mkdir()
        shutil.copy(sweep / "0" / "summary.json", sweep / f"m{i}")
        numbers = {"status": "ok", "verdict": "x" * 5000} | {f"n{k}": k + i for k in range(900)}
        (sweep / f"m{i}" / "summary.json").write_text(json.dumps(numbers))
        config = "a:\n" + "".join(f"  s{k}: {k + i}\n" for k in range(900))
        (sweep / f"m{i}" / "config.yaml").write_text(config)
        dataset = nf_open_without_config(sweep / "0").assign_attrs(config=config)
        results.write(sweep / f"m{i}" / "results.nc", dataset)


def pipes(sweep: Path, outside: Path) -> None:
    for name in NAMES:
        shutil.copytree(sweep / "0", sweep / f"bad {name}")
        (sweep / f"bad {name}" / name).unlink(missing_ok=True)
        os.mkfifo(sweep / f"bad {name}" / name)
        (sweep / "1" / name).unlink(missing_ok=True)
        os.mkfifo(sweep / "1" / name)
    for name in ("multirun.yaml", "report.html", "collected.json", "results.nc", "members.json"):
        (sweep / name).unlink(missing_ok=True)
        os.mkfifo(sweep / name)


def links_to(target: Path | str):
    """A folder with links to `target` in the places of all files."""

    def hostile(sweep: Path, outside: Path) -> None:
        places = [sweep / name for name in ("multirun.yaml", "report.html", "collected.json", "results.nc", "figures")]
        for name in NAMES:
            shutil.copytree(sweep / "0", sweep / f"bad {name}")
            places += [sweep / f"bad {name}" / name, sweep / "1" / name]
        shutil.rmtree(sweep / "1" / "figures")
        for path in places:
            path.unlink(missing_ok=True)
            path.symlink_to(outside / target)
        (sweep / "1" / "figures").symlink_to(outside)

    return hostile


def linked_folders(sweep: Path, outside: Path) -> None:
    shutil.copytree(sweep / "0", outside / "run")
    (outside / "run" / "summary.json").write_text(json.dumps({"status": "ok", "verdict": SECRET}))
    shutil.rmtree(sweep / "1")
    for name, target in {
        "1": outside / "run",
        "loop": "loop",
        "up": "..",
        "here": ".",
        "root": "/",
        "gone": "gone2",
    }.items():
        (sweep / name).symlink_to(target)


def words(sweep: Path, outside: Path) -> None:
    texts = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "[link=file:///etc/passwd]x[/bold]",
             "$" + "{" * 5000 + "$", "\x1b]0;title\x07\x1b[2J", "javascript:alert(1)", "a\r\nb\u202egnp"]  # fmt: skip
    for i, text in enumerate(texts):
        member = sweep / f"{text.replace('/', '_')[:60]}"
        shutil.copytree(sweep / "0", member)
        (member / "summary.json").write_text(json.dumps({"status": "ok", "verdict": text, "study": text, text: i}))
        dataset = nf.open(member)
        dataset["loss"].attrs["long_name"] = text
        results.write(member / "results.nc", dataset.assign_attrs(problem=text.replace("\x07", "")))
        (sweep / f"failed{i}").mkdir()
        failed = {"reason": text, "overrides": [f"a.{text}={text}", f"member={text}"]}
        (sweep / f"failed{i}" / "failed.json").write_text(json.dumps(failed))
    (sweep / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": {"task": texts[:3]}}}))
    member = sweep / texts[0].replace("/", "_")
    shutil.rmtree(sweep / "1")
    shutil.copytree(member, sweep / "1")


def padding(sweep: Path, outside: Path) -> None:
    for name, sizes in (("0", (20_000, 1)), ("1", (1, 20_000))):
        dataset = nf.open(sweep / name).assign(a=(("u", "v"), np.zeros(sizes)))
        results.write(sweep / name / "results.nc", dataset)


def deep(sweep: Path, outside: Path) -> None:
    place = sweep
    for _ in range(300):
        place = place / "d"
    place.mkdir(parents=True)


FOLDERS = {
    "interpolations": interpolations, "tags": tags, "nested": nested, "large": large, "dense": dense, "many": many,
    "pipes": pipes, "links to a secret": links_to("secret"), "links to a device": links_to("/dev/zero"),
    "links to memory": links_to("/proc/kcore"), "linked folders": linked_folders, "words": words,
    "padding": padding, "deep": deep,
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_reads_nothing_else_and_costs_little(harmless, usual, tmp_path, name):
    shutil.copytree(harmless / "S", tmp_path / "S")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text(f"status: ok\nverdict: {SECRET}\n")
    FOLDERS[name](tmp_path / "S", outside)
    before = sorted(outside.rglob("*"))
    plotted = ran(plot.main, "S/1", folder=tmp_path)
    gathered = ran(collect.main, "S", folder=tmp_path)
    for ended, baseline in zip((gathered, plotted), usual, strict=True):
        assert "Traceback" not in ended.said
        assert SECRET not in ended.said
        assert "\x1b" not in ended.said
        assert ended.status in (0, 1, 2), ended.said
        assert ended.megabytes < baseline.megabytes + 200
        assert ended.seconds < baseline.seconds + 5
    assert sorted(outside.rglob("*")) == before
    assert (outside / "secret").read_text() == f"status: ok\nverdict: {SECRET}\n"
    for path in (tmp_path / "S").rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 10**7:
            assert SECRET not in path.read_text(errors="replace"), path
    if name == "deep":
        assert gathered.status == 2
        return
    assert gathered.status == (0 if name in ("interpolations", "many", "words", "padding") else 1), gathered.said
    records = {record["member"]: record for record in json.loads((tmp_path / "S" / "collected.json").read_text())}
    assert records["0"]["status"] == "ok"
    page = (tmp_path / "S" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'href="javascript:' not in page
