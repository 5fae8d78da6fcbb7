"""A sweep becomes one dataset and one table; runs are redrawn and laid over one another."""

import json
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

import neuralode_flow as nf
from neuralode_flow import results
from neuralode_flow.app import collect, plot

SWEEP = ("-m", "study=fake", "problem=teacher", "problem.dimension=2", "resume=sweep")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A function that gives the folder in which a sweep is kept for the next test."""
    return cache(lambda *settings: tmp_path_factory.mktemp("kept") / "sweep")


@pytest.fixture
def swept(command, kept):
    """A function that leaves a sweep over these settings in the current folder, which is run once for all tests."""

    def sweep(*settings):
        folder = kept(*settings)
        if not folder.exists():
            command(*SWEEP, *settings)
            shutil.copytree("sweep", folder)
        else:
            shutil.copytree(folder, "sweep")

    return sweep


def test_members_are_joined_along_the_settings_in_which_they_differ(swept, capfd):
    swept("problem.seed=0,3", "study.end=ok,raise")
    collect.main(["sweep"])
    assert "2 of 4 members have finished" in capfd.readouterr().out
    records = json.loads(Path("sweep/collected.json").read_text())
    assert [(r["problem.seed"], r["status"][:5]) for r in records if r["status"] == "ok"] == [(0, "ok"), (3, "ok")]
    assert "problem.dimension" not in records[0]  # the same in all, also in those that failed
    assert sum("the sky fell" in record["status"] for record in records) == 2
    dataset = nf.open("sweep")
    assert dataset["problem.seed"].values.tolist() == [0, 3]
    assert dataset.error_z.dims[0] == "member"
    single = nf.open("sweep/0")
    np.testing.assert_array_equal(dataset.error_z.isel(member=0), single.error_z)


def test_members_of_several_sizes_are_padded(command):
    for dimension in (2, 3):
        line = ("study=trajectory", "problem=teacher", f"problem.dimension={dimension}", f"resume=sizes/{dimension}")
        assert command(*line, "study.estimate=false", "time.samples=3", "depth.order=4", "figures=none").status == 0
    collect.main(["sizes"])
    dataset = nf.open("sizes")
    assert dataset.sizes["row"] == 3
    small, large = (dataset.z.sel({"member": name}) for name in ("2", "3"))
    assert np.isnan(small.isel(row=2)).all()
    np.testing.assert_array_equal(small.isel(row=[0, 1], column=[0, 1]).values, nf.open("sizes/2").z.values)
    assert np.isfinite(large).all()


def test_the_page_of_a_sweep_says_first_what_failed_and_how_it_goes_on(command):
    command(*SWEEP, "problem.seed=0,3", "study.end=ok,raise", "figures=png")
    collect.main(["sweep"])
    page = Path("sweep/report.html").read_text(encoding="utf-8")
    assert page.index("2 of 4 members have finished") < page.index("the sky fell") < page.index("All is well.")
    assert 'href="0/report.html"' in page
    assert "the others differ in problem.seed, study.end" in page
    assert "dimension: 2" in page
    assert "neuralode-flow -m study=fake problem=teacher problem.dimension=2" in page
    assert page.rindex("resume=sweep") > page.rindex("problem.seed=0,3")


def test_a_folder_without_members_is_refused(tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        collect.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "holds no member of a sweep" in capfd.readouterr().err


@pytest.fixture
def runs(command):
    for seed, figures in enumerate(("png", "none")):
        line = ("study=convergence", "problem=teacher", "problem.dimension=2", f"problem.seed={seed}", f"out=out{seed}")
        line += ("study.depths=[4,8]", "study.layers=[euler]", "time.samples=3", f"figures={figures}")
        assert command(*line).status == 0
    return [str(next(Path(f"out{seed}").glob("*/*"))) for seed in (0, 1)]


def test_runs_are_redrawn_from_their_dataset_and_laid_over_one_another(runs):
    before = (Path(runs[0]) / "figures" / "square.png").read_bytes()
    plot.main([runs[0], "--out", "again"])
    assert (Path("again") / "square.png").read_bytes() == before
    plot.main([*runs, "--out", "both"])
    assert {path.name for path in Path("both").iterdir()} >= {"error_z.png", "error_z.pdf", "loss_continuous.pdf"}
    origin = nf.open(runs[0]).attrs
    assert json.loads(origin["versions"])["torch"]
    assert "git_commit" in origin


UNDRAWN = [
    (["nowhere"], "nowhere does not exist"),
    (["sweep/0", "sweep/0"], "a run is named twice"),
    (["sweep/0"], "which has no figures"),
    (["sweep/0", "sweep/1"], "of different studies cannot be laid over one another: None, convergence"),
    (["sweep/1"], "sweep/1 cannot be drawn ("),
    (["sweep"], "sweep is a collected sweep; give its members, sweep/*"),
    (["sweep/2"], "sweep/2/config.yaml is a link, which is not followed"),
    (["sweep/3"], "sweep/3/results.nc is a named pipe"),
    (["sweep/4"], "sweep/4/figures is a link, which is not followed; choose a folder with --out"),
]


def test_what_cannot_be_drawn_is_refused(command, capfd):
    command(*SWEEP, "problem.seed=0,1,2,3,4")
    replaced(Path("sweep/1"), lambda d: d.assign_attrs(study="convergence").drop_vars("error_z"))
    Path("sweep/2/config.yaml").unlink()
    Path("sweep/2/config.yaml").symlink_to("../0/config.yaml")
    Path("sweep/3/results.nc").unlink()
    os.mkfifo("sweep/3/results.nc")
    Path("sweep/4/figures").symlink_to("../0")
    with suppress(SystemExit):  # two of them are damaged
        collect.main(["sweep"])
    for arguments, message in UNDRAWN:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            plot.main(arguments)
        assert stop.value.code == 2
        assert message in capfd.readouterr().err


def collected(folder) -> tuple[int, dict[str, dict]]:
    """The exit status of collecting a folder, and the records by member."""
    try:
        collect.main([str(folder)])
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, {record["member"]: record for record in json.loads(Path(folder, "collected.json").read_text())}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij")
)

# What a file of a member may have become, by what is said of it.
FILES = [
    ("summary.json", b"", "line 1 is no JSON"),
    ("summary.json", b'{"status": "o', "line 1 is no JSON"),
    ("summary.json", b"[]", "no status"),
    ("summary.json", b"{}", "no status"),
    ("summary.json", b'{"status": 3}', "no status"),
    ("summary.json", b'{"status": "ok", "verdict": ["x"]}', "verdict must be a text, got ['x']"),
    ("summary.json", b'{"status": "ok", "seconds": "x"}', "seconds must be a number, got 'x'"),
    ("summary.json", b'{"status": "ok", "seconds": true}', "seconds must be a number, got True"),
    ("summary.json", b'{"status": "ok", "study": {}}', "study must be a text, got {}"),
    ("summary.json", b'{"status": "ok", "loss": Infinity}', "not finite"),
    ("summary.json", b'{"status": "ok", "loss": -1e999}', "not finite"),
    ("summary.json", b'{"status": "ok", "loss": NaN}', "not finite"),
    ("summary.json", b'{"status": "ok", "loss": 1' + b"0" * 5000 + b"}", "more than 64 bits"),
    ("summary.json", b'{"status": "blown", "status": "ok"}', "a key twice"),
    ("summary.json", b'{"status": "ok", "a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
    ("summary.json", b"[" * 100_000, "nested too deeply"),
    ("summary.json", b'{"status": "\\ud800"}', "no Unicode"),
    ("summary.json", b"\x89PNG\r\n\xff\x00", "not UTF-8 from byte 0 on"),
    ("summary.json", b'{"status": "ok", "a": "' + b"x" * 2**22 + b'"}', "more than the 4194304 that are read"),
    ("summary.json", json.dumps({"status": "ok"} | {str(i): i for i in range(2000)}).encode(), "2001 entries"),
    ("config.yaml", b"a: [1", "is no YAML"),
    ("config.yaml", b"- 1\n- 2\n", "no config"),
    ("config.yaml", b"", "no config"),
    ("config.yaml", b"a: 1\na: 2\n", "a key is there twice"),
    ("config.yaml", b"a: !foo 1\n", "line 1 has a tag"),
    ("config.yaml", b"a: !!python/object/apply:os.system ['touch pwned']\n", "line 1 has a tag"),
    ("config.yaml", b"a: &a [*a]\n", "line 1 has an alias"),
    ("config.yaml", LAUGHS.encode(), "line 2 has an alias"),
    ("config.yaml", b"- " * 1000, "nested too deeply"),
    ("config.yaml", b"a: \x07\n", "is no YAML"),
    ("config.yaml", b"a: 1\n", "belongs to another run"),
    ("results.nc", b"", "not a whole file"),
    ("results.nc", b"CDF\x01", "not a whole file"),
]


def test_damaged_members_are_listed_with_their_reasons_and_the_others_are_joined(swept, capfd):
    swept("problem.seed=0,1")
    for i, (name, content, _) in enumerate(FILES):
        shutil.copytree("sweep/1", f"sweep/bad{i}")
        Path(f"sweep/bad{i}", name).write_bytes(content)
    status, records = collected("sweep")
    said = capfd.readouterr()
    assert status == 1
    assert "remove their folders and run the sweep again: bad0, bad1," in said.err
    told = f"2 of {len(FILES) + 2} members have finished, {len(FILES)} damaged"
    page = Path("sweep/report.html").read_text(encoding="utf-8")
    assert told in said.out
    assert told in page
    for i, (_, _, reason) in enumerate(FILES):
        found = records[f"bad{i}"]["status"]
        assert found.startswith("damaged: ")
        assert reason in found
        assert page.count(escape(found)) >= 2
    assert nf.open("sweep").member.values.tolist() == ["0", "1"]
    assert not Path("pwned").exists()


def spoil(path: Path, kind: str) -> None:
    """Puts something else into the place of a file."""
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(Path("sweep/0").resolve() / path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("flipped", "unreadable"):
        path.write_bytes(bytes([content[0] ^ 128]) + content[1:])
        path.chmod(0o644 if kind == "flipped" else 0)


def test_a_file_of_a_member_that_is_no_file_damages_that_member_alone(swept):
    swept("problem.seed=0,1")
    kinds = ["missing", "folder", "link", "pipe", "flipped", *(["unreadable"] if os.geteuid() else [])]
    cases = {f"{kind} {name}": name for kind in kinds for name in ("summary.json", "config.yaml", "results.nc")}
    for case, name in cases.items():
        shutil.copytree("sweep/1", Path("sweep") / case)
        spoil(Path("sweep") / case / name, case.split()[0])
    status, records = collected("sweep")
    assert status == 1
    assert records.pop("missing summary.json")["status"].startswith("unfinished: ")
    assert [records.pop(name)["status"] for name in "01"] == ["ok", "ok"]
    for case, record in records.items():
        assert record["status"].startswith(f"damaged: {cases[case]} ")
    assert nf.open("sweep").member.values.tolist() == ["0", "1"]


FAILURES = {
    "": "line 1 is no JSON",
    "[]": "it has no reason",
    '{"overrides": []}': "it has no reason",
    '{"overrides": [], "reason": null}': "it has no reason",
    '{"overrides": [], "reason": "ok"}': "it has no reason",
    '{"reason": "the sky fell"}': "it has no overrides",
    '{"reason": "the sky fell", "overrides": [3]}': "it has no overrides",
}


def test_a_damaged_failure_is_no_success(swept):
    swept("problem.seed=0,3", "study.end=ok,raise")
    for i, content in enumerate(FAILURES):
        Path(f"sweep/bad{i}").mkdir()
        Path(f"sweep/bad{i}/failed.json").write_text(content)
    status, records = collected("sweep")
    assert status == 1
    for i, reason in enumerate(FAILURES.values()):
        assert records[f"bad{i}"]["status"].startswith("damaged: failed.json ")
        assert reason in records[f"bad{i}"]["status"]
    assert [record["status"] for record in records.values()].count("ok") == 2


def test_a_copy_of_a_member_is_told(swept, capfd):
    swept("problem.seed=0,1")
    shutil.copytree("sweep/0", "sweep/0.bak")
    status, records = collected("sweep")
    assert status == 0
    assert len(records) == 3
    said = "0.bak has the settings of 0; remove its folder if it is a copy"
    assert f"counted twice: {said}" in capfd.readouterr().out
    assert said in Path("sweep/report.html").read_text()
    shutil.rmtree("sweep/0.bak")
    collected("sweep")
    assert "counted twice" not in capfd.readouterr().out


def test_a_member_that_succeeded_has_not_failed(swept, capfd):
    swept("problem.seed=0,1")
    Path("sweep/1/failed.json").write_text('{"reason": "in use", "overrides": []}')
    assert collected("sweep")[0] == 0
    assert "2 of 2 members have finished\n" in capfd.readouterr().out


def test_members_lie_at_any_depth_and_the_unfinished_are_counted(command, capfd):
    command(*SWEEP, "problem.seed=0,1,2", "figures=png")
    nested = Path("sweep/problem.x=/data/x.csv,a=1")
    nested.parent.mkdir(parents=True)
    Path("sweep/1").rename(nested)
    (nested / "figures").mkdir(exist_ok=True)
    (nested / "figures" / "summary.json").write_text("{}")  # not a member: it lies in one
    Path("sweep/2/summary.json").unlink()
    Path("sweep/2/results.nc").unlink()
    Path("sweep/2/checkpoints").mkdir()
    for name in (".submitit", "empty"):
        Path("sweep", name).mkdir()
    Path("sweep/.submitit/summary.json").write_text("{}")
    Path("sweep/members.json").write_text("[")
    status, records = collected("sweep")
    assert status == 0
    assert list(records) == ["0", "2", "problem.x=/data/x.csv,a=1"]
    assert records["2"]["status"].startswith("unfinished: ")
    assert "2 of 3 members have finished, 1 unfinished" in capfd.readouterr().out
    assert nf.open("sweep").member.values.tolist() == ["0", "problem.x=/data/x.csv,a=1"]
    assert 'href="problem.x%3D/data/x.csv%2Ca%3D1/report.html"' in Path("sweep/report.html").read_text()
    assert collect.members(Path("sweep")) == [Path("sweep") / name for name in records]


def test_links_are_not_followed(swept, tmp_path):
    swept("problem.seed=0,1")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "summary.json").write_text('{"status": "ok", "verdict": "top secret"}')
    (tmp_path / "secret" / "config.yaml").write_text("a: top secret\n")
    for name, target in {"again": "0", "loop": "loop", "out": tmp_path / "secret", "up": ".."}.items():
        Path("sweep", name).symlink_to(target)
    status, records = collected("sweep")
    assert status == 1
    assert list(records) == ["0", "1", "out", "loop"]
    assert all("it is a link, which is not followed" in records[name]["status"] for name in ("out", "loop"))
    assert not any("top secret" in path.read_text(errors="replace") for path in Path("sweep").glob("*.*"))


def test_what_is_written_replaces_a_link_and_a_pipe(swept, tmp_path):
    swept("problem.seed=0,1")
    (tmp_path / "mine").write_text("mine")
    for name in ("report.html", "collected.json"):
        Path("sweep", name).symlink_to(tmp_path / "mine")
    os.mkfifo("sweep/results.nc")
    assert collected("sweep")[0] == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert nf.open("sweep").sizes["member"] == 2


HOSTILE = [
    '<script>alert("1")</script>',
    "a\nb",
    "\x1b[31mred",
    "[/bold]",
    "javascript:alert(1)",
    "'\"&<b>",
    "$\\frac$",
]


def test_names_and_texts_are_shown_as_they_are(swept, capfd):
    swept("problem.seed=0,1")
    for i, text in enumerate(HOSTILE):
        name = os.fsencode(text.replace("/", "_")) + b"\xff"
        shutil.copytree("sweep/0", Path("sweep", os.fsdecode(name)))
        failed = {"overrides": [f"a.b={text}"], "reason": f"{text} [link=http://x]here[/link]"}
        Path(f"sweep/failed{i}").mkdir()
        Path(f"sweep/failed{i}/failed.json").write_text(json.dumps(failed))
    status, records = collected("sweep")
    said = capfd.readouterr().out
    assert status == 0
    assert len(records) == 2 + 2 * len(HOSTILE)
    assert "\x1b" not in said
    assert "[link=http://x]here[/link]" in said.replace("│", "").replace("\n", "").replace(" ", "")
    page = Path("sweep/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert 'href="javascript:' not in page
    assert nf.open("sweep").sizes["member"] == 2 + len(HOSTILE)


def replaced(member: Path, change) -> None:
    """Gives a member another dataset, as whole as the one that it had."""
    dataset = change(nf.open(member))
    results.write(member / "results.nc", dataset)


MISFITS = {
    "error_z has texts over": lambda d: d.assign(error_z=(d.error_z.dims, np.full(d.error_z.shape, "x"))),
    "error_z has numbers over (depth), in most": lambda d: d.assign(error_z=d.error_z.isel(rule=0, drop=True)),
    "depth has texts as a coordinate over (depth), in most numbers": lambda d: d.assign_coords(depth=["a", "b"]),
    "its axis depth has a value twice": lambda d: d.assign_coords(depth=[4, 4]),
    "it is of the study other, most are of": lambda d: d.assign_attrs(study="other"),
    "it has both member and own_member": lambda d: d.assign(member=("member", [1]), own_member=("own_member", [2])),
}


def test_results_that_do_not_fit_are_left_out_and_said(swept, capfd):
    swept("problem.seed=0,1")
    for i in range(len(MISFITS) + 1):
        shutil.copytree("sweep/1", f"sweep/good{i}")
    for i, change in enumerate(MISFITS.values()):
        shutil.copytree("sweep/1", f"sweep/odd{i}")
        replaced(Path(f"sweep/odd{i}"), change)
    status, records = collected("sweep")
    said, page = capfd.readouterr().out, Path("sweep/report.html").read_text(encoding="utf-8")
    assert status == 0
    assert {record["status"] for record in records.values()} == {"ok"}
    for i, reason in enumerate(MISFITS):
        assert f"not in results.nc: odd{i}: {reason}" in said
        assert f"odd{i}: {escape(reason)}" in page
    assert nf.open("sweep").member.values.tolist() == [name for name in records if "odd" not in name]


def test_axes_without_common_values_are_not_padded_without_bound(swept, capfd):
    swept("problem.seed=0,1")
    assert collected("sweep")[0] == 0
    for name, sizes in (("0", (3000, 1)), ("1", (1, 3000))):
        replaced(Path("sweep", name), lambda d, sizes=sizes: d.assign(a=(("u", "v"), np.zeros(sizes))))
    assert collected("sweep")[0] == 0
    said = capfd.readouterr().out
    assert "2 of 2 members have finished\n" in said
    assert "their axes have too few values in common (" in said
    assert not Path("sweep/results.nc").exists()  # that of the earlier call would be of other results


def test_an_axis_that_is_called_member_in_the_runs_is_kept(swept):
    swept("problem.seed=0,1")
    draws = np.arange(6.0).reshape(2, 3)
    for i in (0, 1):
        replaced(Path(f"sweep/{i}"), lambda d, i=i: d.assign(draws=("member", draws[i])))
    assert collected("sweep")[0] == 0
    joined = nf.open("sweep").draws
    assert joined.dims == ("member", "own_member")
    np.testing.assert_array_equal(joined, draws)


@pytest.mark.slow
def test_settings_of_any_kind_are_stored_and_shown(command):
    command(*SWEEP, "problem.seed=0,1", "study.depths=[4,8],[4,8,16]")
    for i, text in enumerate(["${oc.env:HOME}", '"a\\0b\\nc"', ".nan", "2024-01-01"]):
        member = Path("sweep") / str(i)
        config = (member / "config.yaml").read_text() + f"more:\n  x: {text}\n  y/z: {i}\nseconds: {text}\n"
        replaced(member, lambda d, config=config: d.assign_attrs(config=config))
        (member / "config.yaml").write_text(config)
    status, records = collected("sweep")
    assert status == 0
    assert [record["more.x"] for record in records.values()] == ["${oc.env:HOME}", "a\0b\nc", "nan", "2024-01-01"]
    assert records["3"]["study.depths"] == [4, 8, 16]
    dataset = nf.open("sweep")
    assert dataset["study.depths"].values.tolist() == ["[4, 8]", "[4, 8, 16]"] * 2
    assert "more.y/z" not in dataset.coords


def test_pictures_that_cannot_be_written_end_with_status_1(swept, capfd):
    swept("problem.seed=0,1")
    Path("file").touch()
    with pytest.raises(SystemExit) as stop:
        plot.main(["sweep/0", "sweep/1", "--out", "file"])
    assert stop.value.code == 1
    assert "the pictures cannot be written: File exists; choose another folder with --out" in capfd.readouterr().err


def test_a_dollar_sign_in_the_name_of_a_member_is_shown_as_it_is(command):
    command(*SWEEP, "problem.seed=0,3", "study.end=ok")
    Path("sweep/members.json").unlink()
    Path("sweep/0").rename("sweep/a$b")
    collect.main(["sweep"])
    page = Path("sweep/report.html").read_text(encoding="utf-8")
    assert '"name":"a$b: seed = 0"' in page
    figures = plot._figures([Path("sweep/a$b"), Path("sweep/1")], [nf.open("sweep/a$b"), nf.open("sweep/1")])
    (legend,) = figures["error_z"].legends
    assert legend.get_texts()[0].get_text() == r"a\$b"  # Matplotlib's way to write it
