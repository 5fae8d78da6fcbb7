"""A balanced network that its steps carry across det z = 0 says so; one that may cross is left alone."""

import math

import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow.time import barrier
from neuralode_flow.time.base import METHODS, Control

SMALL = torch.tensor([[0.1, 0.03], [-0.02, 0.12]])
SEEN = nf.Completion(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[False, True], [True, True]]))
ACROSS = nf.Quadratic(torch.diag(torch.tensor([1.0, -1.0])))


def euler(factors):
    """Factors U_k as a state of Euler layers."""
    return len(factors) * (factors - torch.eye(factors.shape[-1]))


def product(theta):
    return theta[..., 1, :, :] @ theta[..., 0, :, :]


def factors_of(z, imbalance):
    """Two factors with U₂ᵀU₂ − U₁U₁ᵀ = `imbalance` times I."""
    return nf.relaxed_balanced_layers(z, torch.tensor([0.0, imbalance])) / 2 + torch.eye(2)


@pytest.mark.parametrize("method", ["auto", "DOP853", "dopri5", pytest.param("rk4", marks=pytest.mark.slow)])
def test_two_balanced_layers_say_when_their_steps_have_crossed(method):
    theta = factors_of(SMALL, 0.0)
    step = {"step": 0.05} if method == "rk4" else {"rtol": 1e-8}
    for flow, state, end in (
        (nf.FiniteFlow(2, SEEN), euler(theta), 300.0), (nf.FactorizationFlow(product, SEEN), theta, 150.0),
    ):  # fmt: skip
        path = nf.integrate(flow, state, torch.linspace(0, end, 7), method, **step)
        assert float(torch.linalg.det(path.z[-1])) < 0, "the case is of use only if it crosses"
        assert path.ending == "escaped"
        assert "det z has changed its sign by t = " in path.status


def test_one_balanced_member_of_a_batch_is_enough():
    theta = torch.stack((factors_of(SMALL, 0.0), factors_of(SMALL, 0.5)))
    path = nf.integrate(nf.FiniteFlow(2, SEEN), 2 * (theta - torch.eye(2)), [0.0, 300.0], "auto")
    assert path.ending == "escaped"
    assert nf.FiniteFlow(2, SEEN).keeps_sign(2 * (theta - torch.eye(2))).tolist() == [True, False]


def test_the_member_that_was_carried_across_is_told_so_also_when_it_is_taken_up(tmp_path):
    theta = torch.stack((factors_of(SMALL, 0.5), factors_of(SMALL, 0.0)))
    flow, states, times = nf.FiniteFlow(2, SEEN), 2 * (theta - torch.eye(2)), torch.linspace(0, 300, 7)
    alone = [nf.integrate(flow, state, times, "DOP853", 1e-8).ending for state in states]
    assert alone == ["ok", "escaped"]
    kept = {"control": "member", "checkpoint": tmp_path / "c.npz"}
    early = nf.integrate(flow, states, times[:6], "DOP853", 1e-8, **kept)
    path = nf.integrate(flow, states, times, "DOP853", 1e-8, **kept)
    whole = nf.integrate(flow, states, times, "DOP853", 1e-8, control="member")
    for found in (early, path, whole):
        assert (found.ending, found.stats["members"]["endings"]) == ("escaped", alone)
    assert path.status == whole.status


@pytest.mark.parametrize("imbalance", [0.5, -0.5, 1e-2])
def test_layers_that_may_cross_are_left_alone(imbalance):
    theta = factors_of(SMALL, imbalance)
    for flow, state in ((nf.FiniteFlow(2, ACROSS), euler(theta)), (nf.FactorizationFlow(product, ACROSS), theta)):
        path = nf.integrate(flow, state, [0.0, 20.0, 60.0], "DOP853")
        assert float(torch.linalg.det(path.z[-1])) == pytest.approx(-1, abs=1e-6)
        assert path.status == "ok"


def test_random_factors_cross_freely():
    theta = randn(2, 2, 2, seed=5)
    target = -torch.sign(torch.linalg.det(product(theta))) * torch.diag(torch.tensor([1.0, 2.0]))
    target[0, 0] = 1.0
    path = nf.integrate(nf.FactorizationFlow(product, nf.Quadratic(target)), theta, [0.0, 60.0], "dopri5", 1e-4)
    assert float(torch.linalg.det(path.z[0]) * torch.linalg.det(path.z[-1])) < 0
    assert path.status == "ok"


def test_which_starts_keep_the_sign():
    z = torch.tensor([[1.0, 0.4], [-0.2, 0.8]])
    twice = nf.relaxed_balanced_layers(z, torch.tensor([0.0, 0.3, 0.0, 0.7]), torch.Generator().manual_seed(0))
    once = nf.relaxed_balanced_layers(z, torch.tensor([0.0, 0.3, 0.1, 0.7]), torch.Generator().manual_seed(0))
    flow = nf.FiniteFlow(4, ACROSS)
    assert bool(flow.keeps_sign(twice))
    assert not bool(flow.keeps_sign(once))
    assert not bool(nf.FiniteFlow(4, ACROSS, "exp").keeps_sign(twice))
    assert not bool(flow.keeps_sign(flow.sample(nf.balanced(z))))  # layers of a profile are balanced to O(1/L) only
    assert not bool(nf.FiniteFlow(1, ACROSS).keeps_sign(z[None]))


def test_what_was_seen_goes_through_a_checkpoint(tmp_path):
    flow, state = nf.FactorizationFlow(product, SEEN), factors_of(SMALL, 0.0)
    run = {"times": [0.0, 50.0, 100.0, 150.0], "method": "dopri5"}
    whole = nf.integrate(flow, state, **run)
    cut = int(0.8 * whole.stats["evaluations"])
    short = nf.integrate(flow, state, **run, max_evaluations=cut, checkpoint=tmp_path / "run.npz")
    again = nf.integrate(flow, state, **run, checkpoint=tmp_path / "run.npz")
    assert short.ending == "escaped"
    assert "the budget of" in short.status
    assert again.status == whole.status
    assert torch.equal(again.z, whole.z)
    assert math.isfinite(float(whole.loss[-1]))


def test_what_a_checkpoint_holds_is_taken_up_whatever_the_default_dtype_is():
    flow, state = nf.FactorizationFlow(product, SEEN), factors_of(SMALL, 0.0)
    seen, control = torch.tensor(1 / 3), Control(1e-8, 1e-10, None)
    before, after = (barrier.barrier_of(flow, state, control, METHODS["dopri5"]) for _ in range(2))
    before.least = seen
    torch.set_default_dtype(torch.float32)
    after.resume(barrier.written(before.memory()))
    torch.set_default_dtype(torch.float64)
    assert torch.equal(after.least, seen)


def test_a_factorisation_that_leaves_the_numbers_in_one_step_ends_with_a_status():
    theta = factors_of(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]), 0.0)
    path = nf.integrate(nf.FactorizationFlow(product, nf.Quadratic(-3 * torch.eye(2))), theta, [0.0, 1e200], "euler")
    assert path.ending == "not_finite"
    assert torch.equal(path.state, theta)


def test_the_sign_of_a_determinant_is_trusted_as_singular_values_say():
    draws = torch.Generator().manual_seed(0)
    for d in (1, 2, 5, 12):
        for least in (0.0, 1e-16, 1e-14, 1e-11, 1e-3, 1.0):
            U, V = (torch.linalg.qr(torch.randn(d, d, generator=draws)).Q for _ in range(2))
            z = U @ torch.diag(torch.linspace(1, least, d) if d > 1 else torch.tensor([least])) @ V
            sign, resolved = barrier._signs(z)
            sigma = torch.linalg.svdvals(z)
            assert bool(resolved) == bool(sigma[-1] > barrier._RESOLVED * d * 2.0**-52 * sigma[0])
            if resolved:
                assert sign == torch.linalg.slogdet(U)[0] * torch.linalg.slogdet(V)[0]
