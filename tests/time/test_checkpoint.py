"""A run on disk: interrupted anywhere it goes on to the same numbers, and nothing but itself is taken up."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from cases import carried, randn, relaxed_profile, slow, smooth_profile
from processes import end_after

import neuralode_flow as nf
from neuralode_flow import archive
from neuralode_flow.files import InUse, locked
from neuralode_flow.interrupt import postponed
from neuralode_flow.time.base import fixed_steps
from neuralode_flow.time.checkpoint import description

TARGET = torch.diag(torch.tensor([2.0, 0.5, 1.5]))
LIMIT = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.LogMean())
START = torch.eye(3) + 0.1 * randn(3, 3, seed=1)
TIMES = torch.linspace(0, 3, 7)
ONE_STEP = ["dopri5", "dopri8", "RK45", "DOP853", "Radau", "rk4", "implicit_midpoint", "carpenter_kennedy"]
MULTISTEP = ["BDF", "LSODA", "CVODE_BDF", "CVODE_Adams", "auto", "explicit_adams"]


class Cut(Exception):
    """Stands for whatever ends a process in the middle of a velocity."""


class Fragile(nf.IntrinsicFlow):
    """A flow that breaks down at its n-th velocity evaluation, in the coordinates in which it is integrated."""

    def __init__(self, loss, kernel, last):
        super().__init__(loss, kernel)
        left = [last]

        def before():
            left[0] -= 1
            if left[0] < 0:
                raise Cut

        self.carrier = carried(loss, kernel, before)


def solve(flow, method, **options):
    step = {"step": 0.05} if fixed_steps(nf.METHODS[method]) else {}
    return nf.integrate(flow, START, TIMES, method, 1e-7, 1e-9, **step, **options)


def resumed_after(method, last, path):
    """The path of a run that was cut at its n-th evaluation, having saved after every step, and then resumed."""
    with pytest.raises(Cut):
        solve(Fragile(LIMIT.loss, LIMIT.kernel, last), method, checkpoint=path, every=0)
    return solve(Fragile(LIMIT.loss, LIMIT.kernel, 10**9), method, checkpoint=path, every=0)


@pytest.mark.parametrize("method", [*ONE_STEP, *slow("bosh3", "euler", "heun3")])
def test_a_resumed_run_of_a_one_step_method_equals_the_uninterrupted_one_to_the_bit(method, tmp_path):
    whole = solve(Fragile(LIMIT.loss, LIMIT.kernel, 10**9), method, observe=lambda i, state: state.trace())
    evaluations = whole.stats["evaluations"]
    for cut in (evaluations // 3, evaluations - 2):
        path = tmp_path / f"{cut}.npz"
        again = resumed_after(method, cut, path)
        assert again.status == "ok"
        for name in ("times", "z", "loss", "drift", "state", "depth_error"):
            assert torch.equal(getattr(again, name), getattr(whole, name)), name
        assert again.stats["steps"] == whole.stats["steps"]


@pytest.mark.parametrize("method", ["dopri5", "RK23", "DOP853", "Radau", "rodas5p", "rk4"])
def test_so_it_does_in_float32_whose_states_have_fewer_digits_than_the_solver(method, tmp_path):
    loss, start = nf.Quadratic(TARGET.float()), START.float()
    flow = nf.IntrinsicFlow(loss, nf.DividedDifference(torch.zeros(5, dtype=torch.float32)))
    step = {"step": 0.05} if fixed_steps(nf.METHODS[method]) else {}

    def run(last, **options):
        return nf.integrate(flow, start, TIMES[:last], method, 2e-5, 1e-6, **step, **options)

    whole = run(7)
    for last in (3, 5, 7):
        again = run(last, checkpoint=tmp_path / "run.npz")
        for name in ("times", "z", "loss", "drift"):
            assert torch.equal(getattr(again, name), getattr(whole, name)[:last]), name
    assert torch.equal(again.state, whole.state)
    assert again.stats["steps"] == whole.stats["steps"]


@pytest.mark.parametrize(("control", "times"), [("member", torch.linspace(0, 1.5, 16)), ("shared", [0, 0.1, 0.2, 9])])
def test_what_has_no_finite_loss_ends_where_it_was_last_also_after_a_resumption(control, times, tmp_path):
    """A run that was resumed put it back to the start of the run."""
    target = torch.diag(torch.tensor([3.0, 2.0]))

    def falls(z):
        far = torch.linalg.matrix_norm(z.detach()) > 2.5
        return (z - target).square().sum((-1, -2)) / 2 + torch.where(far, torch.inf, 0.0)

    flow = nf.IntrinsicFlow(nf.Custom(falls), nf.DividedDifference(torch.zeros(2)))
    start = torch.stack((0.5 * torch.eye(2), torch.eye(2)))

    def run(last, **options):
        return nf.integrate(flow, start, times[:last], "DOP853", control=control, max_evaluations=100, **options)

    whole = run(16)
    assert whole.ending == {"member": "not_finite", "shared": "evaluations"}[control]
    assert float(whole.times[-1]) > 0
    for last in (3, 16, 16):
        again = run(last, checkpoint=tmp_path / "run.npz")
    for name in ("times", "z", "loss", "drift", "state"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.stats.get("members") == whole.stats.get("members")
    assert torch.equal(flow.product(again.state), again.z[-1])


@pytest.mark.parametrize("method", MULTISTEP)
def test_a_resumed_run_of_a_multistep_method_stays_within_the_tolerance(method, tmp_path):
    whole = solve(LIMIT, method)
    again = resumed_after(method, whole.stats["evaluations"] // 2, tmp_path / "run.npz")
    assert again.status == "ok"
    assert float(torch.linalg.matrix_norm(again.z - whole.z).max()) < 1e-5


def test_what_was_observed_comes_back_through_a_checkpoint(tmp_path):
    whole = solve(Fragile(LIMIT.loss, LIMIT.kernel, 10**9), "DOP853", observe=lambda i, state: state.trace())
    with pytest.raises(Cut):
        solve(
            Fragile(LIMIT.loss, LIMIT.kernel, 60), "DOP853", observe=lambda i, state: state.trace(),
            checkpoint=tmp_path / "run.npz", every=0,
        )  # fmt: skip
    seen = []
    again = solve(
        Fragile(LIMIT.loss, LIMIT.kernel, 10**9), "DOP853", checkpoint=tmp_path / "run.npz",
        observe=lambda i, state: (seen.append(i), state.trace())[1],
    )  # fmt: skip
    assert torch.equal(again.observed, whole.observed)
    assert seen[0] > 0
    assert seen[-1] == len(TIMES) - 1


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    first = solve(LIMIT, "DOP853", checkpoint=tmp_path / "run.npz")
    again = solve(LIMIT, "DOP853", checkpoint=tmp_path / "run.npz")
    assert torch.equal(first.z, again.z)
    assert again.stats["seconds"] == first.stats["seconds"]
    assert nf.load(tmp_path / "run.npz").status == "ok"


def test_a_run_that_used_up_its_budget_goes_on_with_a_larger_one(tmp_path):
    whole = solve(LIMIT, "DOP853")
    short = solve(LIMIT, "DOP853", checkpoint=tmp_path / "run.npz", max_evaluations=50)
    assert short.ending == "evaluations"
    again = solve(LIMIT, "DOP853", checkpoint=tmp_path / "run.npz")
    assert again.status == "ok"
    assert torch.equal(again.z, whole.z)


def test_a_grid_that_was_refined_is_taken_up(tmp_path):
    z0, W0 = relaxed_profile(3, seed=3, twist=4.0)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), nf.Quadratic(TARGET))
    state = flow.sample(W0)
    run = {"method": "DOP853", "rtol": 1e-7, "atol": 1e-9, "adapt": True}
    whole = nf.integrate(flow, state, TIMES, **run)
    assert whole.stats["history"]
    path = tmp_path / "run.npz"
    short = nf.integrate(flow, state, TIMES, **run, checkpoint=path, every=0, max_evaluations=100)
    assert short.ending == "evaluations"
    again = nf.integrate(flow, state, TIMES, **run, checkpoint=path)
    assert again.stats["grid"] == whole.stats["grid"]
    assert torch.equal(again.z, whole.z)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "dopri5"}, "method = 'DOP853', now it is 'dopri5'"),
        ({"rtol": 1e-6}, "rtol = 1e-07, now it is 1e-06"),
        ({"times": torch.linspace(0, 3, 8)}, "times = '7 from 0 to 3 .*', now it is '8 from 0 to 3"),
        ({"state": torch.eye(3)}, r"state = 'torch.float64 \(3, 3\)"),
        ({"stop": {"loss": 1e-3}}, "stop.loss = None, now it is 0.001"),
        ({"flow": nf.IntrinsicFlow(nf.Quadratic(2 * TARGET), nf.LogMean())}, "flow.loss.target = "),
        ({"flow": nf.IntrinsicFlow(LIMIT.loss, nf.TwoLayer())}, "flow.kernel.kind = 'LogMean', now it is 'TwoLayer'"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(change, words, tmp_path):
    run = {"flow": LIMIT, "state": START, "times": TIMES, "method": "DOP853", "rtol": 1e-7, "atol": 1e-9}
    nf.integrate(**run, checkpoint=tmp_path / "run.npz", max_evaluations=50)
    before = (tmp_path / "run.npz").read_bytes()
    with pytest.raises(ValueError, match=words):
        nf.integrate(**(run | change), checkpoint=tmp_path / "run.npz")
    assert (tmp_path / "run.npz").read_bytes() == before


def test_a_checkpoint_in_use_is_refused(tmp_path):
    with locked(tmp_path / ".run.npz.lock"), pytest.raises(InUse, match="in use by another run"):
        solve(LIMIT, "DOP853", checkpoint=tmp_path / "run.npz")


def test_a_folder_that_is_missing_or_cannot_be_written_is_an_error_before_any_work(tmp_path):
    with pytest.raises(OSError, match="cannot be written"):
        solve(Fragile(LIMIT.loss, LIMIT.kernel, 0), "DOP853", checkpoint=tmp_path / "missing" / "run.npz")


def test_a_disk_that_is_full_ends_the_run_with_a_sentence_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    solve(LIMIT, "DOP853", checkpoint=path, max_evaluations=50)
    before = path.read_bytes()

    def write(*arguments, **options):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    real, room = archive.atomic_write, [0]
    monkeypatch.setattr(archive, "atomic_write", write)
    full = solve(LIMIT, "DOP853", checkpoint=path, every=0)
    assert full.ending == "checkpoint"
    assert "No space left on device" in full.status
    assert path.read_bytes() == before
    room[0] = 2
    assert solve(LIMIT, "DOP853", checkpoint=path, every=0).ending == "checkpoint"
    assert nf.load(path).ending == "interrupted"
    monkeypatch.setattr(archive, "atomic_write", real)
    assert torch.equal(solve(LIMIT, "DOP853", checkpoint=path).z, solve(LIMIT, "DOP853").z)


PROGRAM = """
import sys, torch
import neuralode_flow as nf
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
flow = nf.FiniteFlow(24, nf.Quadratic(torch.randn(4, 4, generator=generator)))
start = torch.randn(24, 4, 4, generator=generator)
print("started", flush=True)
path = nf.integrate(
    flow, start, torch.linspace(0, 6, 13), "dopri5", 1e-8, 1e-10, checkpoint=sys.argv[1] or None, every=0.002
)
print(path.status, path.z.numpy().tobytes().hex())
"""


# Members with steps of their own, which the engine takes in a row.
APART = """
flows = {"finite": flow, "continuous": nf.ContinuousFlow(nf.DepthGrid.gauss(2, 12), flow.loss)}
for name, flow in flows.items():
    start = torch.randn(16, 1, 4, 4, generator=generator).repeat(1, 24, 1, 1) / 2
    checkpoint = f"{sys.argv[1]}-{name}.npz" if sys.argv[1] else None
    times, own = torch.linspace(0, 60, 25), dict(control="member", checkpoint=checkpoint, every=0.002)
    path = nf.integrate(flow, start, times, "DOP853", 1e-9, 1e-11, **own)
    print(path.status, path.z.numpy().tobytes().hex())
"""


KILLS = int(os.environ.get("NEURALODE_FLOW_KILLS", "4"))


def program(path):
    return subprocess.Popen([sys.executable, "-c", PROGRAM + APART, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_at_random_instants_and_resumed_the_results_are_equal(tmp_path):
    expected = program("").communicate(timeout=120)[0]
    assert expected.count("\nok ") == 3
    draws, kills = random.Random(0), 0
    for run in range(KILLS // 4):
        path = tmp_path / f"{run}.npz"
        while True:
            child = program(path)
            child.stdout.readline()
            time.sleep(draws.uniform(0.0, 0.8))
            if child.poll() is None and kills < 4 * (run + 1):  # four kills for each result
                child.send_signal(signal.SIGKILL)
                child.communicate()
                kills += 1
                saved = [path.with_name(name) for name in os.listdir(tmp_path) if name.endswith(".npz")]
                assert all(nf.load(one).ending in ("interrupted", "ok") for one in saved)
                continue
            assert "started\n" + child.communicate(timeout=120)[0] == expected
            break
        assert [name for name in os.listdir(tmp_path) if "writing" in name] == []


def started(code, path):
    """A program in a process that is forked from this one, and what it prints."""
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where pytest has threads
        child = os.fork()
    if child == 0:

        def work():
            signal.alarm(100)  # its end, where it hangs
            os.dup2(into, 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.argv[1:] = [str(path)]
            exec(code, {"__name__": "__main__"})

        end_after(work)
    os.close(into)
    return child, open(out)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_saves_and_then_acts_as_ever(number, status, tmp_path):
    path = tmp_path / "run.npz"
    said = "every=1000, observe=lambda i, state: print(i, flush=True)"  # from the start on, when signals are kept
    code = PROGRAM.replace("every=0.002", said).replace("linspace(0, 6, 13", "linspace(0, 600, 601")
    child, out = started(code, path)
    with out:
        while (line := out.readline()) != "1\n":
            assert line  # else it has ended
        os.kill(child, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (status, 1)  # Python itself ends with a traceback on Ctrl-C
    reached = nf.load(path)
    assert reached.ending == "interrupted"
    assert reached.stats["steps"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_goes_on_where_the_handler_of_a_signal_returns(number, tmp_path):
    path, seen = tmp_path / "run.npz", []

    def signals(i, state):
        if i in (1, 2):
            signal.raise_signal(number)

    def note(number, frame):
        seen.append((number, nf.load(path).ending))

    before = signal.signal(number, note)
    try:
        reached = solve(LIMIT, "DOP853", checkpoint=path, every=1000, observe=signals)
        assert signal.getsignal(number) is note
    finally:
        signal.signal(number, before)
    assert seen == 2 * [(number, "interrupted")]  # saved before the handler is called
    whole = solve(LIMIT, "DOP853")
    assert reached.ending == "ok"
    assert torch.equal(reached.z, whole.z)
    assert nf.load(path).ending == "ok"


def test_only_ctrl_c_twice_does_not_wait_for_the_step(tmp_path):
    acted = []
    before = signal.signal(signal.SIGTERM, lambda *_: acted.append("terminated"))
    try:
        with postponed(True) as request:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert request.signal == signal.SIGTERM
            assert acted == []
            request.act()
            assert acted == ["terminated"]
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_fuzzed_files_are_refused_with_a_sentence(tmp_path):
    path = tmp_path / "run.npz"
    solve(LIMIT, "DOP853", checkpoint=path, max_evaluations=50)
    sound, draws = path.read_bytes(), random.Random(1)
    damaged = [sound[: draws.randrange(len(sound))] for _ in range(20)]
    for _ in range(60):
        flipped = bytearray(sound)
        flipped[draws.randrange(len(sound))] ^= 1 << draws.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [b"", b"\x80\x04\x95", sound.replace(b"archive 2 ", b"archive 3 "), sound + b"x"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|not a file of neuralode_flow|format version"):
            solve(LIMIT, "DOP853", checkpoint=path)
        with pytest.raises(ValueError, match="run.npz"):
            nf.load(path)
    path.write_bytes(sound)
    assert solve(LIMIT, "DOP853", checkpoint=path).status == "ok"


def test_pickled_objects_are_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    import hashlib
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, header=np.array([Evil()], dtype=object), allow_pickle=True)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    path = tmp_path / "run.npz"
    path.write_bytes(b"neuralode_flow archive 1\n" + digest + b"\n" + buffer.getvalue())
    with pytest.raises(ValueError, match="not a file that neuralode_flow wrote"):
        nf.load(path)


def test_a_trajectory_is_saved_and_loaded(tmp_path):
    flow = nf.FiniteFlow(3, LIMIT.loss, "cayley")
    path = nf.integrate(flow, flow.sample(smooth_profile(3, seed=1)), TIMES, estimate=True)
    path.save(tmp_path / "path.npz")
    again = nf.load(tmp_path / "path.npz")
    for name in ("times", "z", "loss", "drift", "state", "depth_error", "time_error", "error"):
        assert torch.equal(getattr(again, name), getattr(path, name))
    assert again.stats == path.stats
    with pytest.raises(ValueError, match="not a run that can go on"):
        nf.integrate(flow, flow.sample(smooth_profile(3, seed=1)), TIMES, checkpoint=tmp_path / "path.npz")


def test_how_a_grid_was_chosen_is_no_part_of_a_run(tmp_path):
    """A checkpoint of before this was known of a grid was refused, with `chosen_by = None, now it is ''`."""
    file, loss = tmp_path / "run", nf.Quadratic(2 * torch.eye(2))
    W0 = nf.balanced(torch.tensor([[1.0, 0.3], [0.0, 0.8]]))
    chosen = nf.DepthGrid.auto(W0, 1e-6)
    given = nf.DepthGrid.gauss(chosen.panels, chosen.order)
    begun, again = nf.ContinuousFlow(chosen, loss), nf.ContinuousFlow(given, loss)
    assert "chosen_by" not in str(description(begun))
    state = begun.sample(W0)
    nf.integrate(begun, state, [0.0, 2.0], "DOP853", max_evaluations=30, checkpoint=file)
    path = nf.integrate(again, state, [0.0, 2.0], "DOP853", checkpoint=file)
    assert torch.equal(path.z, nf.integrate(again, state, [0.0, 2.0], "DOP853").z)
