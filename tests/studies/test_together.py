"""Studies in one process: what they integrate is gathered, and each has the numbers of a run alone."""

import threading

import numpy as np
import pytest
import torch
from cases import positive_matrix, randn, relaxed_profile

import neuralode_flow as nf
from neuralode_flow.flows.polar import _orthogonal
from neuralode_flow.studies import together as gathering
from neuralode_flow.studies.square import Reference, _Beside
from neuralode_flow.studies.together import together

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


def test_an_interruption_ends_all_threads(monkeypatch):
    def interrupted(calls):
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(gathering, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        together([work("finite", seed) for seed in range(3)])
    assert threading.active_count() == before


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
    reference, other = (
        Reference(nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(2))), list(randn(3, 16, 2, 2, seed=seed)), None, None)
        for seed in (1, 2)
    )
    nodes, weights = torch.tensor([0.1, 0.4, 0.9]), torch.full((3,), 1 / 3)
    plain = [_Beside(one, nodes, weights) for one in (reference, other)]
    looks = [one.keeping(torch.tensor([2, 0])) for one in plain]
    states = randn(2, 3, 2, 2, seed=3)
    seen = _Beside.together(looks, 1, states)
    for row, one, state in zip(seen, (reference, other), states, strict=True):
        limit = torch.stack([GRID.interpolate(one.states[1], float(s)) for s in nodes])
        assert float(row[0]) == pytest.approx(float((state - limit).square().sum((-2, -1)).mean().sqrt()), rel=1e-13)
        assert torch.equal(row[1:], state[[2, 0]].flatten())
    assert torch.equal(looks[1](1, states[1]), seen[1])
    with pytest.raises(ValueError, match="the same depths"):
        _Beside.together([looks[0], plain[1]], 1, states)
    assert torch.equal(_Beside.together(plain, 1, states), seen[:, :1])
