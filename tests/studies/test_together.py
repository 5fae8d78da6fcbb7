"""Studies in one process: what they integrate is gathered, and each has the numbers of a run alone."""

import math
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import positive_matrix, randn, relaxed_profile
from small import clock

import neuralode_flow as nf
from neuralode_flow.flows.polar import _orthogonal
from neuralode_flow.studies import together as gathering
from neuralode_flow.studies.clock import Steps
from neuralode_flow.studies.square import _Beside
from neuralode_flow.studies.together import Call, Paths, raise_any, together
from neuralode_flow.time.resolution import allowed

TIMES = torch.linspace(0.0, 1.0, 4)
ACCURATE = {"method": "DOP853", "rtol": 1e-9, "atol": 1e-11}
GRID = nf.DepthGrid.gauss(2, 8)


def flow_of(kind, loss, seed):
    """A flow with numbers of its own for a member, and a start."""
    if kind == "continuous":
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), loss)
    elif kind == "finite":
        flow = nf.FiniteFlow(6, loss, "cayley")
    elif kind == "limit":
        return nf.IntrinsicFlow(loss, nf.LogMean()), positive_matrix(3, seed)
    else:
        shifts = 0.3 * randn(5, seed=seed)
        return nf.IntrinsicFlow(loss, nf.DividedDifference(shifts, time_scale=0.2)), positive_matrix(3, seed)
    return flow, flow.sample(relaxed_profile(3, seed)[1])


def work(kind, seed, **options):
    loss = nf.Quadratic(positive_matrix(3, seed + 50))

    def observe(i, state):
        return (i + seed) * state.sum()

    def run(integrate):
        flow, start = flow_of(kind, loss, seed)
        return integrate(flow, start, TIMES, **ACCURATE, observe=observe, **options)

    return run


@pytest.fixture
def sizes(monkeypatch):
    """How many members went into each batch."""
    seen, gathered = [], gathering._gathered

    def counted(calls):
        seen.append(len(calls))
        return gathered(calls)

    monkeypatch.setattr(gathering, "_gathered", counted)
    return seen


@pytest.mark.parametrize("kind", ["continuous", "finite", "limit", "layers"])
def test_a_gathered_integration_is_that_alone(kind, sizes):
    works = [work(kind, seed) for seed in range(3)]
    paths = together(works)
    assert sizes == [3]
    for one, path in zip(works, paths, strict=True):
        alone = one(nf.integrate)
        same = torch.allclose if kind == "limit" else torch.equal
        for name in ("times", "z", "loss", "drift", "state", "observed"):
            assert same(getattr(path, name), getattr(alone, name)), name
        assert path.status == alone.status == "ok"
        assert path.stats.keys() == alone.stats.keys()
        for name in ("evaluations", "steps", "law_modes", "grid", "rtol"):
            assert path.stats[name] == alone.stats[name], name


@pytest.mark.parametrize("kind", ["continuous", "finite", "limit", "layers"])
def test_integrations_that_are_not_measured_are_gathered_by_themselves(kind, sizes):
    works = [work(kind, seed, checks=seed > 1) for seed in range(4)]
    paths = together(works)
    assert sizes == [2, 2]
    for seed, (one, path) in enumerate(zip(works, paths, strict=True)):
        alone = one(nf.integrate)
        same = torch.allclose if kind == "limit" else torch.equal
        assert same(path.z, alone.z)
        for name in ("drift", "depth_error"):
            assert bool(getattr(path, name).isnan().all()) == bool(getattr(alone, name).isnan().all()) == (seed < 2)
        assert path.status == alone.status == "ok"


@pytest.mark.parametrize("kind", ["limit", "layers"])
def test_who_else_is_in_the_batch_makes_no_difference(kind):
    works = [work(kind, seed) for seed in range(5)]
    whole = together(works)
    parts = [path for part in ([0, 1, 2], [3], [4]) for path in together([works[i] for i in part])]
    assert all(torch.equal(path.z, other.z) for path, other in zip(whole, parts, strict=True))


def test_a_member_that_ends_early_ends_as_it_would_alone(sizes):
    kinds = [work("finite", seed) for seed in range(3)]
    enough = max(one(nf.integrate).stats["evaluations"] for one in kinds)

    def stiff(integrate):
        flow = nf.FiniteFlow(6, nf.Quadratic(40 * positive_matrix(3, 9)), "cayley")
        start = flow.sample(relaxed_profile(3, 9)[1])
        return integrate(flow, start, TIMES, **ACCURATE, observe=lambda i, s: s.sum(), max_evaluations=enough)

    found = together([stiff, *(work("finite", seed, max_evaluations=enough) for seed in range(3))])
    assert sizes == [4, 3]  # once more without it
    assert [path.ending for path in found] == ["evaluations", "ok", "ok", "ok"]
    alone = stiff(nf.integrate)
    assert found[0].status == alone.status
    assert torch.equal(found[0].z, alone.z)
    assert all(torch.equal(path.z, one(nf.integrate).z) for path, one in zip(found[1:], kinds, strict=True))


def test_members_may_ask_for_different_things_and_raise(sizes):
    def raises(integrate):
        work("finite", 0)(integrate)
        raise RuntimeError("this one is bad")

    def asks_twice(integrate):
        return work("limit", 1)(integrate), work("finite", 1)(integrate)

    found = together([raises, asks_twice, work("finite", 2), lambda integrate: "nothing"])
    assert str(found[0]) == "this one is bad"
    assert found[1][1].status == found[2].status == "ok"
    assert found[3] == "nothing"
    assert sizes[0] == 2  # those that are at a finite network at the same time
    bad = together([lambda integrate: integrate(nf.FiniteFlow(2, nf.Quadratic(torch.eye(2))), torch.eye(2), TIMES)])
    assert isinstance(bad[0], ValueError)


def test_what_cannot_be_gathered_is_integrated_alone(sizes):
    works = [work("finite", seed, stop={"time": 0.5}) for seed in range(2)]
    assert [float(path.times[-1]) for path in together(works)] == [0.5, 0.5]
    assert sizes == []


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "works",
    [
        [work("finite", seed) for seed in range(3)],
        [lambda company: company.solved(interrupted, None, "kind")] * 3,
    ],
    ids=["integrations", "posed"],
)
def test_an_interruption_ends_all_threads(works, monkeypatch):
    before = threading.active_count()
    monkeypatch.setattr(gathering, "_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        together(works)
    assert threading.active_count() == before


@pytest.mark.parametrize("wakes", [True, False], ids=["wakes", "does not wake"])
def test_an_interruption_ends_what_is_computed_without_asking(wakes):
    """Also one that the main thread does not wake up by, as it does not where it was just about to wait."""
    before, started = threading.active_count(), time.monotonic()

    def busy(company):
        signal.pthread_kill(threading.main_thread().ident if wakes else threading.get_ident(), signal.SIGINT)
        while time.monotonic() < started + 60:
            pass

    with pytest.raises(KeyboardInterrupt):
        together([busy])
    assert time.monotonic() < started + 30
    assert threading.active_count() == before


def test_an_interruption_ends_those_who_wait_without_a_word(monkeypatch):
    """One that has not begun, and one that has asked: nothing is raised in them from outside."""
    said, asks = [], work("finite", 0)
    monkeypatch.setattr(threading, "excepthook", said.append)

    def busy(company):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        while time.monotonic() < started + 60:
            pass

    before, started = threading.active_count(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        together([asks, busy, asks, asks])
    assert threading.active_count() == before
    assert said == []


def test_wall_time_is_that_of_all_who_share_it(sizes, monkeypatch):
    """Those whose batch has used it up have none left to run alone."""
    gathered, looked = gathering._gathered, time.monotonic
    spent = [0.0]

    def slow(calls):
        path = gathered(calls)
        spent[0] = 100.0
        return path

    monkeypatch.setattr(gathering, "_gathered", slow)
    monkeypatch.setattr(gathering.time, "monotonic", lambda: looked() + spent[0])
    paths = together([work("finite", seed, max_seconds=60.0, max_evaluations=15) for seed in range(3)])
    assert sizes == [3]
    assert [path.ending for path in paths] == ["seconds"] * 3


class Squared:
    """Solves a list of numbers at once, unless one of several is not finite or too large."""

    def __init__(self):
        self.sizes = []

    def __call__(self, numbers):
        self.sizes.append(len(numbers))
        if len(numbers) > 1 and not all(number < 100 for number in numbers):
            raise ValueError("some of them are too large")
        return [number**2 for number in numbers]


def posed(solve, number, kind="all"):
    """As a study does it: what nobody solves beside others is solved here."""

    def run(company):
        found = company.solved(solve, number, kind)
        return found if found is not None else ("alone", number)

    return run


def test_what_members_pose_is_solved_for_all_of_a_kind_at_once():
    solve = Squared()
    kinds = ["one", "other", "one", "other", "one", "third"]
    found = together([posed(solve, number, kind) for number, kind in enumerate(kinds)])
    assert found == [0, 1, 4, 9, 16, ("alone", 5)]
    assert solve.sizes == [3, 2]
    other = Squared()
    found = together([posed(one, number) for number, one in enumerate((solve, solve, other, other))])
    assert found == [0, 1, 4, 9]
    assert other.sizes == [2]


@pytest.mark.parametrize("bad", [{0}, {4}, {3, 6}, set(range(7))], ids=str)
def test_what_fails_beside_others_is_solved_alone_and_the_others_beside_each_other(bad):
    solve = Squared()
    found = together([posed(solve, 1000 if i in bad else i) for i in range(7)])
    alone = {i for i, value in enumerate(found) if isinstance(value, tuple)}
    assert bad <= alone
    assert all(found[i] == i**2 for i in range(7) if i not in alone)
    assert len(alone - bad) <= len(bad)  # in halves, at most one other is left over by each
    assert 1 not in solve.sizes


@pytest.mark.parametrize("error", [KeyError, MemoryError, AssertionError])
def test_whatever_one_member_fails_by_the_others_do_not(error):
    def value(z):
        if float(z.detach().abs().max()) > 3:
            raise error("too large")
        return (z - torch.eye(2)).square().sum()

    def solve(starts):
        if max(starts) > 3:
            raise error("too large")
        return starts

    loss = nf.Custom(value)

    def run(company, size):
        found = company.solved(solve, size, "all")
        path = company(nf.FiniteFlow(2, loss), torch.full((2, 2, 2), size), TIMES, **ACCURATE)
        return found, path.status

    found = together([lambda company, size=size: run(company, size) for size in (0.1, 5.0, 0.2, 0.3)])
    assert isinstance(found[1], error)
    assert found[0] == (None, "ok")  # its half had one that failed
    assert found[2:] == [(0.2, "ok"), (0.3, "ok")]


def test_who_is_known_to_fail_is_not_asked_again():
    """A solve that says which members fail, and by what, is asked once more, for the others."""
    solve = Squared()

    def told(numbers):
        raise_any({i: KeyError(number) for i, number in enumerate(numbers) if number > 100}, len(numbers))
        return solve(numbers)

    found = together([posed(told, number) for number in (1, 1000, 2, 3, 2000)])
    assert [found[0], found[2], found[3]] == [1, 4, 9]
    assert [str(found[1]), str(found[4])] == ["1000", "2000"]
    assert solve.sizes == [3]
    assert isinstance(together([posed(told, 1000), posed(told, 1)])[0], KeyError)
    with pytest.raises(KeyError):
        told([1000])


def test_a_solve_may_run_what_it_is_given_one_by_one():
    """It is not in the thread of a member, which waits for it."""
    times = clock(1.0, 3)

    def solve(members):
        runs = [own.run(nf.FiniteFlow(2, nf.Quadratic(torch.eye(2))), state, "run") for state, own in members]
        assert all(own.solved(lambda posed: posed, 5, "inner") == 5 for _, own in members)
        return [run.z[-1] for run in runs]

    def study(company, seed):
        own = replace(times, carried_out=company)
        state = 0.1 * randn(2, 2, 2, seed=seed)
        return own.solved(solve, (state, own), "all"), solve([(state, times)])[0]

    for found, alone in together([lambda company, seed=seed: study(company, seed) for seed in range(3)]):
        assert torch.equal(found, alone)


@pytest.mark.parametrize("results", [1, 4])
def test_a_solve_with_another_number_of_results_is_said(results):
    def solve(numbers):
        return [0] * results

    found = together([posed(solve, number) for number in range(3)])
    assert {str(error) for error in found} == {f"solve must give a result for each of 3 members, got {results}"}


def test_a_kind_that_cannot_be_compared_is_said():
    found = together([posed(Squared(), 1, kind=["list"]), posed(Squared(), 2)])
    assert str(found[0]) == "kind must be hashable, to be compared with that of other members, got ['list']"
    assert found[1] == ("alone", 2)


@pytest.mark.parametrize("kind", ["gathered", "saved", "steps"])
def test_runs_beside_each_other_are_those_alone(kind, tmp_path):
    given = clock(1.0, 3)
    if kind == "saved":
        given = replace(given, checkpoints=tmp_path)
    if kind == "steps":
        given = Steps(times=given.times, rule="gd", rate=0.1)
    flows, starts = zip(*(flow_of("finite", nf.Quadratic(positive_matrix(3, seed)), seed) for seed in range(3)))
    paths = given.beside(flows, torch.stack(starts), "name", observe=[lambda i, state: state.sum()] * 3)
    assert paths.column("observed").shape == (3, 3)
    for i, (flow, start) in enumerate(zip(flows, starts, strict=True)):
        alone = given.run(flow, start, f"alone-{i}")
        assert torch.equal(paths.column("z")[:, i], alone.z)
    some = torch.tensor([0.0, 0.5, 1.0, 1.5])
    later = given.beside(flows, torch.stack(starts), "later", times=some)
    assert later.column("loss").shape == (4, 3)
    with pytest.raises(ValueError, match="at least one flow, got none"):
        given.beside([], torch.stack(starts), "none")
    (single,) = given.beside(flows[:1], starts[0].unsqueeze(0), "single").each
    assert torch.equal(single.z, paths.column("z")[:, 0])


def test_an_error_of_its_own_is_raised_in_the_member_that_has_it():
    def solve(numbers):
        return [ValueError("mine") if number == 1 else number for number in numbers]

    found = together([posed(solve, number) for number in range(3)])
    assert [found[0], found[2]] == [0, 2]
    assert str(found[1]) == "mine"


def calls_of(kind, seeds, **options):
    calls = []
    for seed in seeds:
        flow, start = flow_of(kind, nf.Quadratic(positive_matrix(3, seed + 50)), seed)
        calls.append(Call(flow, start, TIMES, {**ACCURATE, "observe": lambda i, state: state.flatten(), **options}))
    return calls


def assert_beside(paths, alone):
    """Everything that `Paths` says is what the trajectories say."""
    for i, (own, one) in enumerate(zip(paths.each, alone, strict=True)):
        end = int(torch.isin(one.times, TIMES).sum())
        for name in ("z", "loss", "drift", "observed"):
            column = paths.column(name)[:, i]
            assert len(column) == len(TIMES)
            assert torch.equal(column[:end], getattr(one, name)[:end]), name
            assert bool(column[end:].isnan().all())
            assert torch.equal(getattr(own, name), getattr(one, name)), name
        assert float(paths.largest("drift")[i]) == float(one.drift.max())
        assert paths.evaluations[i] == one.stats["evaluations"]
        assert paths.statuses[i] == own.status == one.status
        assert paths.reached[i] == (one.ending == "ok")
        assert paths.seconds[i] > 0


@pytest.mark.parametrize("kind", ["finite", "continuous"])
def test_paths_are_those_of_every_member(kind, sizes):
    calls = calls_of(kind, range(4))
    alone = [call.alone() for call in calls]
    assert_beside(Paths(calls), alone)
    assert sizes == [4]
    assert_beside(Paths(calls[:1]), alone[:1])
    assert_beside(Paths.of(alone[2:3], TIMES), alone[2:3])


def test_paths_of_which_some_end_early_are_filled_up(sizes):
    needs = sorted(call.alone().stats["evaluations"] for call in calls_of("finite", range(4)))
    calls = calls_of("finite", range(4), max_evaluations=needs[1])
    alone = [call.alone() for call in calls]
    early = sum(path.ending == "evaluations" for path in alone)
    assert 0 < early < 3
    assert_beside(Paths(calls), alone)
    assert sizes == [4, 4 - early]


def test_paths_of_several_kinds_are_integrated_one_by_one(sizes):
    calls = [*calls_of("finite", [0]), *calls_of("finite", [1], checks=False)]
    paths = Paths(calls)
    assert sizes == []
    assert torch.equal(paths.column("z")[:, 1], calls[1].alone().z)
    broken = Paths([*calls, Call(calls[0].flow, torch.eye(3), TIMES, ACCURATE)])
    assert isinstance(broken.errors[2], ValueError)
    with pytest.raises(ValueError, match="state"):
        broken.column("z")
    with pytest.raises(ValueError, match="at least one run, got none"):
        Paths([])


@pytest.mark.parametrize("bump", [0.3, 30.0], ids=["resolved", "not resolved"])
def test_the_depth_error_of_each_is_held_to_what_is_allowed_for_it(bump, sizes):
    """That of a batch is its worst: a member with a smaller z is looked at alone, and told what it is told alone."""
    grid, calls = nf.DepthGrid.gauss(1, 6), []
    for size, own in [(3.0, 0.3), (-1.5, bump)]:
        wave = torch.sin(5 * grid.nodes)[:, None, None] * randn(2, 2, seed=1)
        flow = nf.ContinuousFlow(grid, nf.Quadratic(torch.eye(2) * math.exp(size)))
        options = {"method": "DOP853", "rtol": 1e-5, "atol": 1e-12, "observe": lambda i, state: state.flatten()}
        calls.append(Call(flow, size * torch.eye(2) + own * wave, TIMES, options))
    alone = [call.alone() for call in calls]
    assert [path.status == "ok" for path in alone] == [True, bump < 1]
    sizes_of_z = [float(torch.linalg.matrix_norm(path.z[-1])) for path in alone]
    assert float(alone[0].depth_error[-1]) > allowed(sizes_of_z[1], 1e-5, 1e-12)
    paths = Paths(calls)
    assert_beside(paths, alone)
    assert sizes == [2]


def test_divided_differences_of_an_ensemble_are_those_of_its_members():
    shifts, sigma = 0.4 * randn(4, 70, seed=1), 0.2 + randn(4, 3, seed=2).abs()
    shifts[2] *= 1e-6
    sigma[3] *= 1e-3  # members that need more Newton steps than others
    kernels = [nf.DividedDifference(own, time_scale=0.5) for own in shifts]
    many = nf.DividedDifference.together(kernels)
    for i, alone in enumerate(kernels):
        torch.testing.assert_close(many(sigma)[i], alone(sigma[i]), rtol=1e-14, atol=0)
        assert torch.equal(many.select((4,), torch.tensor([i]))(sigma[i : i + 1])[0], many(sigma)[i])
    assert not many.keeps_sign


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_each_member_is_made_orthogonal_as_it_would_be_alone(library):
    Q = torch.linalg.qr(randn(4, 3, 3, seed=3))[0]
    Q = Q + torch.tensor([0.0, 1e-9, 1e-2, 2.0])[:, None, None] * randn(4, 3, 3, seed=4)
    if library == "numpy":
        Q = Q.numpy()
    for i, one in enumerate(_orthogonal(Q)):
        alone = _orthogonal(Q[i])
        assert abs(one - alone).max() == 0 or library == "torch"
        assert abs(one - alone).max() < 1e-15
        assert abs(np.asarray(one @ one.T) - np.eye(3)).max() < 1e-14


class Sees:
    """An observer that looks at the states of many members at once, where they are to be taken in the same way."""

    def __init__(self, factor, power=1):
        self.factor, self.power = factor, power

    def __call__(self, i, state):
        return self.together([self], i, state.unsqueeze(0))[0]

    calls = 0

    @staticmethod
    def together(observers, i, states):
        Sees.calls += 1
        if len({own.power for own in observers}) > 1:
            raise ValueError("they look at it in several ways")
        return torch.stack([own.factor for own in observers]) * (states ** observers[0].power).flatten(1).sum(1)


@pytest.mark.parametrize("powers", [(2, 2, 2), (1, 2, 2)], ids=["alike", "not alike"])
def test_an_observer_looks_at_all_members_at_once(powers):
    looks = [Sees(torch.tensor(float(seed)), power) for seed, power in enumerate(powers)]

    def observed(seed, integrate):
        flow, start = flow_of("finite", nf.Quadratic(positive_matrix(3, seed + 50)), seed)
        return integrate(flow, start, TIMES, **ACCURATE, observe=looks[seed])

    Sees.calls = 0
    found = together([lambda integrate, seed=seed: observed(seed, integrate) for seed in range(3)])
    assert Sees.calls == (len(TIMES) if len(set(powers)) == 1 else 1 + 3 * len(TIMES))
    for seed, path in enumerate(found):
        alone = observed(seed, nf.integrate)
        assert torch.equal(path.z, alone.z)
        assert torch.equal(path.observed, alone.observed)


def test_observers_of_other_kinds_are_asked_one_by_one():
    def observed(seed, integrate):
        flow, start = flow_of("finite", nf.Quadratic(positive_matrix(3, seed + 50)), seed)
        look = Sees(torch.tensor(3.0)) if seed else lambda i, state: 3.0 * state.flatten().sum()
        return integrate(flow, start, TIMES, **ACCURATE, observe=look)

    found = together([lambda integrate, seed=seed: observed(seed, integrate) for seed in range(2)])
    for seed, path in enumerate(found):
        assert torch.allclose(path.observed, observed(seed, nf.integrate).observed, rtol=1e-13)


def test_networks_are_held_to_their_own_reference_in_a_batch():
    references = randn(3, 2, 16, 2, 2, seed=1)
    nodes, weights = torch.tensor([0.1, 0.4, 0.9]), torch.full((3,), 1 / 3)
    plain = _Beside(references, GRID, nodes, weights)
    looks = plain.keeping(torch.tensor([2, 0])).each()
    states = randn(2, 3, 2, 2, seed=3)
    seen = _Beside.together(looks, 1, states)
    for row, reference, state in zip(seen, references[1], states, strict=True):
        limit = torch.stack([GRID.interpolate(reference, float(s)) for s in nodes])
        assert float(row[0]) == pytest.approx(float((state - limit).square().sum((-2, -1)).mean().sqrt()), rel=1e-13)
        assert torch.equal(row[1:], state[[2, 0]].flatten())
    assert torch.equal(looks[1](1, states[1]), seen[1])
    assert torch.equal(_Beside.together(looks[::-1], 1, states.flip(0)), seen.flip(0))
    assert torch.equal(_Beside.together(plain.each(), 1, states), seen[:, :1])
    other = _Beside(references[:, 1:], GRID, nodes, weights)  # of a square that is solved for itself
    assert torch.equal(_Beside.together([plain.each()[0], other], 1, states), seen[:, :1])
    elsewhere = [
        looks[1], other.keeping(torch.tensor([1, 0])), _Beside(references, GRID, nodes + 0.01, weights),
        _Beside(references, nf.DepthGrid.gauss(4, 4), nodes, weights),
    ]  # fmt: skip
    for one in elsewhere:
        with pytest.raises(ValueError, match="the same depths"):
            _Beside.together([other, one], 1, states)
    several = torch.stack((states, states + 0.5), 1)  # two networks of each member: their mean, the layers of the first
    both = _Beside.together(looks, 1, several)
    shifted = _Beside.together(plain.each(), 1, several[:, 1])
    assert torch.allclose(both[:, 0], (seen[:, 0].square() + shifted[:, 0].square()).div(2).sqrt(), rtol=1e-13)
    assert torch.equal(both[:, 1:], seen[:, 1:])
