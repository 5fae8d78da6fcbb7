"""Tasks in processes beside each other."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

import neuralode_flow as nf
from neuralode_flow import parallel
from neuralode_flow.parallel import side_by_side


def test_an_interruption_that_wakes_nobody_is_noticed():
    """As one that comes where the main thread is just about to wait; the workers end with it."""
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    started = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(time.sleep, [60.0, 60.0], workers=2))
    timer.join()
    assert time.monotonic() < started + 30
    assert multiprocessing.active_children() == []


def test_tasks_of_two_threads_are_not_mixed():
    """Each worker has the task that it was forked for, also where the other thread has begun, or ended, since."""
    found = {}

    def call(factor):
        found[factor] = [dict(side_by_side(lambda key: factor * key, range(20), workers=2)) for _ in range(4)]

    threads = [threading.Thread(target=call, args=(factor,)) for factor in (1, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {factor: [{key: factor * key for key in range(20)}] * 4 for factor in (1, 100)}


def test_a_task_may_have_tasks_of_its_own():
    def outer(key):
        return sum(result for _, result in side_by_side(lambda inner: key + inner, range(3), workers=2))

    assert dict(side_by_side(outer, range(5), workers=2)) == {key: 3 * key + 3 for key in range(5)}


def test_a_task_that_fails_ends_no_process_of_the_users():
    own = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    own.start()
    try:
        with pytest.raises(ZeroDivisionError):
            list(side_by_side(lambda key: 1 / key, [0, 0], workers=2))
        assert own.is_alive()
        assert multiprocessing.active_children() == [own]
    finally:
        own.kill()
        own.join()


def test_a_worker_that_has_just_been_forked_ends_without_what_its_parent_would_do(monkeypatch):
    """A signal that comes before it has handlers of its own waits for them."""
    said, says = os.pipe()
    os.set_blocking(said, False)
    arrived = multiprocessing.get_context("fork").Value("i", 0)

    def late(number):
        with arrived:
            arrived.value += 1
            second = arrived.value == 2
        time.sleep(1.0 if second else 0.0)

    monkeypatch.setattr(parallel, "end_with_parent", late)
    handlers = {number: signal.signal(number, lambda *_: os.write(says, b"!")) for number in parallel._SIGNALS}
    try:
        with pytest.raises(ZeroDivisionError):
            list(side_by_side(lambda key: 1 / key, [0, 0], workers=2))
        with pytest.raises(BlockingIOError):
            os.read(said, 1)
        signal.raise_signal(signal.SIGTERM)  # this process listens as before
        assert os.read(said, 9) == b"!"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for worker in multiprocessing.active_children():
            worker.kill()
        os.close(said)
        os.close(says)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_ended_from_outside_is_told_in_a_sentence(number):
    def task(key):
        os.kill(os.getpid(), number)
        time.sleep(60)

    with pytest.raises(RuntimeError, match=r"^one of the 2 processes .* was ended from outside"):
        list(side_by_side(task, range(4), workers=2))
    assert multiprocessing.active_children() == []


def test_a_worker_whose_parent_is_killed_before_it_has_begun_ends_too(monkeypatch):
    """It asks for a signal at the end of a parent that has ended already."""
    told, tells = os.pipe()
    usual = parallel.end_with_parent

    def late(number):
        os.write(tells, f"{os.getpid()}\n".encode())
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(0.01)
        usual(number)

    monkeypatch.setattr(parallel, "end_with_parent", late)
    parent = multiprocessing.get_context("fork").Process(target=pairs, args=([-1, -2],))
    parent.start()
    parent.join(60)
    assert parent.exitcode == -signal.SIGKILL
    time.sleep(0.2)
    workers = [int(line) for line in os.read(told, 99).split()]
    os.close(told)
    os.close(tells)
    assert workers
    last = time.monotonic() + 20
    while (left := [worker for worker in workers if lives(worker)]) and time.monotonic() < last:
        time.sleep(0.05)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert left == []


def lives(process):
    """Whether a process runs: one that has ended, and that nobody has asked for, is still listed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_signal_that_comes_as_others_are_blocked_leaves_none_blocked(monkeypatch):
    """It acts where they are blocked, after they are: Python looks for signals then."""
    block, times = signal.pthread_sigmask, []

    def interrupted(how, numbers):
        before = block(how, numbers)
        if how == signal.SIG_BLOCK and numbers and not times:
            times.append(how)
            raise KeyboardInterrupt
        return before

    before = block(signal.SIG_BLOCK, ())
    monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(abs, [1, 2], workers=2))
    after = block(signal.SIG_SETMASK, before)
    assert times
    assert after == before


@pytest.mark.parametrize("part", ["fork", "thread", "semaphore"])
def test_where_the_system_has_no_room_for_all_processes_this_one_computes_and_none_is_left(monkeypatch, part):
    fork, start, forks = os.fork, threading.Thread.start, []

    def no_second():
        forks.append(1)
        if len(forks) == 2:
            raise BlockingIOError("no room")
        return fork()

    def no_semaphore(*arguments):
        raise OSError(errno.EROFS, "no room")

    def no_thread(self):
        if "Executor" in type(self).__name__:
            raise RuntimeError("no room")
        start(self)

    if part == "fork":
        monkeypatch.setattr(os, "fork", no_second)
    elif part == "thread":
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    else:
        monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", no_semaphore)
    with pytest.warns(RuntimeWarning, match=r"the 2 processes .* cannot be had \(no room\)"):
        found = dict(side_by_side(lambda key: (key, os.getpid()), [1, 2, 3], workers=2))
    assert found == {key: (key, os.getpid()) for key in (1, 2, 3)}
    assert multiprocessing.active_children() == []


def unreadable():
    raise ZeroDivisionError("cannot be read")


class Unreadable:
    def __reduce__(self):
        return unreadable, ()


def test_a_result_that_cannot_be_read_is_no_want_of_memory():
    with pytest.raises(BrokenProcessPool) as told:
        list(side_by_side(lambda key: Unreadable(), [1, 2], workers=2))
    assert "cannot be read" in str(told.value.__cause__)


def test_it_is_told_so_where_it_has_come_before_the_next_task_is_handed_in(monkeypatch):
    submit = ProcessPoolExecutor.submit

    def late(pool, *task):
        future = submit(pool, *task)
        wait([future], 60)
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", late)
    with pytest.raises(BrokenProcessPool) as told:
        list(side_by_side(lambda key: Unreadable(), [1, 2], workers=2))
    assert "cannot be read" in str(told.value.__cause__)
    assert multiprocessing.active_children() == []


def pairs(keys):
    return list(side_by_side(abs, keys, workers=2))


def test_a_worker_of_a_pool_may_have_no_processes_and_works_by_itself():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(pairs, ([-1, -2],)).get(60) == [(-1, 1), (-2, 2)]


class TwoWords(Exception):
    """It takes more than its message, so that pickle cannot make it anew."""

    def __init__(self, one, other):
        super().__init__(one)
        self.other = other


def test_an_error_that_cannot_go_to_another_process_is_told_by_its_name_and_words():
    """The pool takes a worker for ended whose error it cannot read, as if memory were short."""

    def fail(key):
        raise TwoWords(f"the {key} failed", "other")

    with pytest.raises(RuntimeError, match="^TwoWords: the key failed$"):
        list(side_by_side(fail, ["key", "key"], workers=2))
    assert multiprocessing.active_children() == []


def test_the_error_of_a_run_comes_from_a_worker_with_its_trajectory():
    flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), kernel=nf.LogMean())

    def short(budget):
        return nf.integrate(flow, torch.eye(2), [0.0, 1.0], max_evaluations=budget, dense=True, throw=True)

    with pytest.raises(nf.IntegrationError, match="the budget of 200 velocity") as caught:
        list(side_by_side(short, [200, 200], workers=2))
    with pytest.raises(nf.IntegrationError) as here:
        short(200)
    reached, alone = caught.value.trajectory, here.value.trajectory
    assert reached.ending == "evaluations"
    assert reached.status == alone.status == str(caught.value)
    assert torch.equal(reached.z, alone.z)
    assert len(reached.times) == 2
    assert torch.equal(reached(0.5 * reached.times[-1]), alone(0.5 * alone.times[-1]))
