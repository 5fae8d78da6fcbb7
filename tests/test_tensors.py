"""Tensors that are no plain memory, NumPy's answers to floating-point errors, and what a caller writes later."""

import pickle

import numpy as np
import pytest
import torch
from cases import positive_matrix, randn

import neuralode_flow as nf
from neuralode_flow.flows.base import Flow
from neuralode_flow.time.base import METHODS, fixed_steps

LOSS, START = nf.Quadratic(positive_matrix(3, seed=3)), 0.3 * randn(4, 3, 3, seed=1)
FLOWS: dict[str, tuple[Flow, torch.Tensor]] = {
    "finite": (nf.FiniteFlow(4, LOSS), START),
    "two layers": (nf.IntrinsicFlow(LOSS, kernel=nf.TwoLayer(0.5)), torch.eye(3) + 0.1 * START[0]),
    "factorization": (nf.FactorizationFlow(lambda theta: theta[..., 0, :, :] @ theta[..., 1, :, :], LOSS), START),
}
RUNS = [("finite", method) for method in METHODS] + [(name, "DOP853") for name in FLOWS if name != "finite"]
NUMPY = {"divide": "raise", "over": "raise", "under": "raise", "invalid": "raise"}
TIMES = [0.0, 0.1, 0.3]


def run(name: str, method: str, state: torch.Tensor | None = None) -> nf.Trajectory:
    flow, start = FLOWS[name]
    step = 0.05 if fixed_steps(METHODS[method]) else None
    return nf.integrate(
        flow, start if state is None else state, TIMES, method, rtol=1e-4, atol=1e-6, step=step, dense=True
    )


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_a_state_whose_numbers_are_kept_up_to_a_sign(name: str, method: str) -> None:
    expected = run(name, method)
    found = run(name, method, torch._neg_view(-FLOWS[name][1]))
    assert found.status == expected.status == "ok"
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.state, expected.state)


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_errors_of_numpy_are_looked_at_by_the_run(name: str, method: str) -> None:
    expected = run(name, method)
    with np.errstate(all="raise"):
        found = run(name, method)
        assert torch.equal(found([0.07, 0.2]), expected([0.07, 0.2]))
        assert np.geterr() == NUMPY
    assert torch.equal(found.z, expected.z)


def test_what_numpy_is_told_to_leave_unsaid_stays_so_in_a_run() -> None:
    seen = []
    flow, start = FLOWS["finite"]
    with np.errstate(divide="raise", over="ignore", under="warn", invalid="raise"):
        nf.integrate(flow, start, TIMES, observe=lambda i, state: seen.append(np.geterr()))
        nf.descend(flow, start, rate=0.01, steps=1, observe=lambda i, state: seen.append(np.geterr()))
    assert seen == [{"divide": "warn", "over": "ignore", "under": "ignore", "invalid": "warn"}] * len(seen)
    assert len(seen) >= len(TIMES) + 1


def test_the_default_device_is_asked_neither_by_the_central_flow_nor_by_quadratic_laws() -> None:
    flow, start = FLOWS["finite"]

    def product(theta: torch.Tensor) -> torch.Tensor:
        return theta[:2] * theta[2:]

    velocity = nf.curvature.central_velocity(flow, start, 0.01).velocity
    path = nf.integrate(nf.CentralFlow(flow, 0.01), start, TIMES, "rk4")
    laws = nf.intrinsic.quadratic_laws(product, 4)
    with torch.device("meta"):
        assert torch.equal(nf.curvature.central_velocity(flow, start, 0.01).velocity, velocity)
        assert torch.equal(nf.integrate(nf.CentralFlow(flow, 0.01), start, TIMES, "rk4").z, path.z)
        found = nf.intrinsic.quadratic_laws(product, 4)
    assert path.status == "ok"
    assert torch.equal(found.A, laws.A)


@pytest.mark.parametrize(
    "call",
    [
        lambda flow, start: nf.integrate(flow, start, [0.0]),
        lambda flow, start: nf.integrate(flow, start, TIMES, stop={"loss": 1e6}),
        lambda flow, start: nf.descend(flow, start, rate=0.01, steps=3, stop={"loss": 1e6}),
    ],
)
@pytest.mark.parametrize("name", FLOWS)
def test_a_run_without_a_step_does_not_end_in_the_memory_of_its_start(name: str, call) -> None:
    flow, state = FLOWS[name]
    start = state.clone()
    path = call(flow, start)
    assert torch.allclose(path.state, state, rtol=1e-12)
    assert path.stats["steps"] == 0
    kept = path.state.clone()
    start.fill_(7.0)
    assert torch.equal(path.state, kept)


def test_the_samples_of_a_regression_are_those_of_its_value() -> None:
    x, y, z = randn(5, 3, seed=4), randn(5, 3, seed=5), torch.eye(3)
    loss = nf.Regression(x, y)
    before = loss(z)
    x.zero_(), y.zero_()
    assert float(before) > 0.1
    assert torch.equal(loss(z), before)
    assert torch.allclose(loss.part()(z), before, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(nf.LOSSES))
def test_losses_of_the_library_can_be_sent_to_another_process(name: str) -> None:
    x, z = randn(5, 3, seed=4), torch.eye(3) + 0.1 * START[0]
    y = torch.eye(3)[torch.tensor([0, 1, 2, 1, 0])] if name in ("cross_entropy", "logistic") else randn(5, 3, seed=5)
    loss = nf.LOSSES[name](x, y, None, None)
    again = pickle.loads(pickle.dumps(loss))
    assert torch.equal(again(z), loss(z))
    assert torch.equal(again.gradient(z), loss.gradient(z))


@pytest.mark.parametrize("kind", ["to_sparse", "to_mkldnn"])
def test_only_dense_tensors_are_taken(kind: str) -> None:
    flow, start = FLOWS["finite"]
    other = getattr(start.float(), kind)()
    for call in (flow.velocity, flow.product, lambda state: nf.integrate(flow, state, TIMES)):
        with pytest.raises(TypeError, match=r"state must be a dense tensor, got layout .*; use state.to_dense\(\)"):
            call(other)
    with pytest.raises(TypeError, match=r"x must be a dense tensor"):
        nf.Regression(getattr(torch.ones(3, 3).float(), kind)(), torch.ones(3, 3))
