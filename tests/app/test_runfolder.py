"""Folders belong to one run, and files are written whole or not at all."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from neuralode_flow.app.errors import BadInput
from neuralode_flow.app.runfolder import claim, differences, discard_if_empty, held, in_use, saved_config
from neuralode_flow.files import InUse, atomic_path, atomic_write, locked


def test_every_claim_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claim(tmp_path / "runs"), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


def test_a_file_stands_where_the_parent_folder_should_be(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="runs"):
        claim(tmp_path / "runs")


def test_a_folder_with_something_in_it_is_kept(tmp_path):
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "a").write_text("")
    discard_if_empty(empty)
    discard_if_empty(full)
    assert not empty.exists()
    assert full.exists()


def test_a_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "summary.json"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.nc"
    path.write_bytes(b"old")

    def half_written():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_written()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_of_the_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "results.nc"
    path.write_bytes(b"old")

    def fails(*_):
        raise OSError("disk failure")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="disk failure"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_reach_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        steps.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def noted_replace(source, target):
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    atomic_write(tmp_path / "a.json", b"1")
    assert [step if step == "replace" else os.path.dirname(step) for step in steps] == [
        str(tmp_path),
        "replace",
        str(tmp_path.parent),
    ]


def test_a_folder_is_taken_up_again_whose_run_was_killed_while_it_wrote_a_file(tmp_path):
    remains = (".config.writing-0123.yaml", ".results.writing-0123.nc")
    for name in (*remains, ".lock"):
        (tmp_path / name).write_text("a:")
    with held(tmp_path, "a: 1\n"):
        assert (tmp_path / "config.yaml").read_text() == "a: 1\n"
        assert not [name for name in remains if (tmp_path / name).exists()]


def test_a_config_that_lists_the_seeds_of_many_members_is_read_again_and_one_that_would_not_be_is_refused(tmp_path):
    config = "members:\n  problem:\n    seed:\n" + "".join(f"    - {seed}\n" for seed in range(10**5, 10**5 + 30_000))
    with held(tmp_path, config):
        (tmp_path / "checkpoints" / "members.nc").touch()
    with held(tmp_path, config):
        assert saved_config(tmp_path)["members"]["problem"]["seed"][-1] == 10**5 + 29_999
    with pytest.raises(BadInput) as refused, held(tmp_path, config.replace("seed:\n", "seed:\n    - 7\n")):
        pass
    assert "members.problem.seed was [100000, 100001, " in str(refused.value)
    assert len(str(refused.value)) < 1000
    with pytest.raises(BadInput, match="more than the 1048576 that are read again"), held(tmp_path, config * 4):
        pass


def test_a_lock_that_its_holder_has_removed_is_none(tmp_path, monkeypatch):
    path, opened = tmp_path / ".lock", []

    def open_and_remove(*arguments):  # what a holder that ends does between the opening and the locking of another
        opened.append(os_open(*arguments))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    os_open = os.open
    monkeypatch.setattr(os, "open", open_and_remove)
    with locked(path):
        assert len(opened) == 2
        with pytest.raises(InUse), locked(path, patience=0.0):
            pass


def test_a_run_from_before_a_setting_was_added_goes_on_unless_that_changes_it():
    before = {"study": {"name": "trajectory", "model": "intrinsic"}}
    same = {"study": {"name": "trajectory", "model": "intrinsic", "kernel": "logmean"}, "figures": "none"}
    other = {"study": {"name": "trajectory", "model": "intrinsic", "kernel": "two_layer"}}
    assert differences(before, same) == []
    assert differences(before, other) == ["study.kernel was None and is two_layer"]


def held_by(path):
    """A process that holds a lock and has a child, both of which sleep: their numbers."""
    receive, send = os.pipe()
    if not (holder := os.fork()):
        try:
            with locked(path):
                child = os.fork()
                if child:
                    os.write(send, str(child).encode())
                time.sleep(60)
        finally:
            os._exit(0)
    child = int(os.read(receive, 20))
    os.close(receive)
    os.close(send)
    return holder, child


def test_a_lock_ends_with_its_process_and_the_children_of_that_when_they_are_killed(tmp_path):
    holder, child = held_by(tmp_path / ".lock")
    assert in_use(tmp_path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert in_use(tmp_path)  # a worker of a run that was killed
    os.kill(child, signal.SIGKILL)
    with locked(tmp_path / ".lock"):  # once it has ended
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


def test_a_lock_does_not_make_a_folder_that_was_removed_anew(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone" / ".lock"):
        pass
    assert not (tmp_path / "gone").exists()
