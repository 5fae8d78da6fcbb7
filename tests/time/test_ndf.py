"""The implicit phase of `auto` where the flow solves Newton's systems itself."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow.time.base import Control, Start
from neuralode_flow.time.methods.ndf import NdfStepper

TIMES = [0.0, 3.0, 10.0, 100.0, 300.0]


def ill_conditioned(condition=1e4):
    x = randn(50, 3, seed=1) * torch.logspace(0, -0.5, 3, base=condition)
    return nf.Regression(x, x @ (torch.eye(3) + 0.3 * randn(3, 3, seed=2)).mT)


def closed(kernel):
    return nf.IntrinsicFlow(ill_conditioned(), kernel), torch.eye(3)


def continuous():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 6), ill_conditioned())
    return flow, flow.sample(nf.identity(3))


CASES = {
    "logarithms": lambda: closed(nf.LogMean()),
    "z": lambda: closed(nf.TwoLayer(0.7)),
    "continuous": continuous,
}


@cache
def reference(case):
    """By an explicit method, which has no Jacobian."""
    flow, state = CASES["logarithms" if case == "continuous" else case]()
    return nf.integrate(flow, state, TIMES, "DOP853", 1e-11, 1e-13).z


def worst(path, known):
    allowed = path.stats["atol"] + path.stats["rtol"] * torch.linalg.matrix_norm(known)
    return float((torch.linalg.matrix_norm(path.z - known) / allowed).max())


@pytest.mark.parametrize("case", CASES)
def test_auto_meets_its_tolerance_and_says_who_went_on(case):
    for rtol in (1e-5, 1e-8):
        flow, state = CASES[case]()
        path = nf.integrate(flow, state, TIMES, "auto", rtol, rtol / 100)
        assert path.status == "ok"
        said = "stiff from t = 0 on: whole steps of NDF" if case == "logarithms" else "from LSODA (Adams) to NDF"
        assert path.stats["history"][0].endswith(said)
        assert 0 < path.stats["products"] < 60
        assert worst(path, reference(case)) < 1


def test_the_continuous_flow_takes_about_as_many_evaluations_as_the_closed_one():
    spent = {case: nf.integrate(*CASES[case](), TIMES, "auto", 1e-6, 1e-8).stats["evaluations"] for case in CASES}
    assert spent["continuous"] < 1.5 * spent["logarithms"]


class Linear:
    """A velocity y' = −(y − cos t) λ − sin t with the solution cos t, and its resolvent, which may be off."""

    def __init__(self, rates, off=1.0):
        self.rates, self.off = rates, off
        self.evaluations = self.resolvents = 0

    def __call__(self, t, y):
        self.evaluations += 1
        return -(y - np.cos(t)) * self.rates - np.sin(t)

    def implicit_steps(self, state, formulas):
        return None

    def resolvent(self, t, y):
        self.resolvents += 1
        return lambda gamma: lambda r: r / (1 + gamma * self.off * self.rates)


def moved(rtol, rates, off=1.0, end=10.0):
    """All places at which the method stands, and the velocity."""
    velocity = Linear(torch.tensor(rates), off)
    start = Start(velocity, 0.0, torch.ones(len(rates)), end, Control(rtol, rtol, None), {})
    stepper, places = NdfStepper(start), []
    while stepper.t < end:
        before = stepper.t
        stepper.advance(end)
        places += [(t, stepper.at(t)) for t in np.linspace(before, stepper.t, 4)]
    assert stepper.t == end
    return places, velocity


@pytest.mark.parametrize("off", [1.0, 1.3])
def test_the_formulas_on_a_known_solution_with_rates_up_to_a_million(off):
    evaluations = []
    for rtol in (1e-4, 1e-6, 1e-8, 1e-10):
        places, velocity = moved(rtol, [1.0, 30.0, 1e3, 1e6], off)
        assert max(float((y - np.cos(t)).abs().max()) for t, y in places) < 30 * rtol
        evaluations.append(velocity.evaluations)
        assert velocity.resolvents < velocity.evaluations / 10
    # Order 5: a hundred times smaller tolerances take 100^(1/6) = 2.2 times the steps.
    assert all(later < 2.8 * before for before, later in zip(evaluations, evaluations[1:], strict=False))


def test_a_resolvent_that_is_wrong_costs_steps_and_no_accuracy():
    """As that of a flow does whose gradient is large."""
    (exact, right), (places, wrong) = (moved(1e-6, [1.0, 30.0], off) for off in (1.0, 0.4))
    assert max(float((y - np.cos(t)).abs().max()) for t, y in places) < 5e-6
    assert right.evaluations < wrong.evaluations < 1e4
    assert len(exact) < len(places)


def test_a_stiff_run_goes_on_from_its_checkpoint(tmp_path):
    for case in ("logarithms", "continuous"):
        flow, state = CASES[case]()
        run = (flow, state, TIMES, "auto", 1e-6, 1e-8)
        whole = nf.integrate(*run)
        file = tmp_path / f"{case}.npz"
        cut = nf.integrate(*run, checkpoint=file, max_evaluations=whole.stats["evaluations"] - 30)
        assert cut.ending == "evaluations"
        assert cut.stats["history"]
        again = nf.integrate(*run, checkpoint=file)
        assert again.status == "ok"
        assert again.stats["history"] == cut.stats["history"]
        assert worst(again, reference(case)) < 1


def test_events_and_dense_output_lie_on_its_polynomial():
    flow, state = CASES["logarithms"]()
    path = nf.integrate(flow, state, TIMES, "auto", 1e-8, 1e-10, dense=True)
    assert worst(replace(path, z=path(torch.tensor(TIMES))), reference("logarithms")) < 1
    middle = float(path.loss[2])
    stopped = nf.integrate(flow, state, TIMES, "auto", 1e-8, 1e-10, stop={"loss": middle})
    assert stopped.ending == "loss"
    assert float(stopped.times[-1]) == pytest.approx(10.0, rel=1e-5)


def test_a_grid_that_changes_in_the_stiff_phase_changes_the_method_with_it():
    loss = ill_conditioned()
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 3), loss)
    path = nf.integrate(flow, nf.identity(3), TIMES, "auto", 1e-6, 1e-8, adapt=True)
    assert path.status == "ok"
    assert any("NDF" in line for line in path.stats["history"])
    assert worst(path, reference("continuous")) < 1


class Decay:
    """A stranger's flow θ' = −aθ with rates a far apart, that solves Newton's systems itself."""

    loss = nf.Quadratic(torch.zeros(2, 2))
    rates = torch.tensor([[1.0, 1e2], [1e3, 1e4]])

    def check(self, state): ...

    def velocity(self, state):
        return -self.rates * state

    def product(self, state):
        return state

    def law(self, state):
        return state.new_empty(*state.shape[:-2], 0, 2, 2)

    def knows_resolvent(self, state):
        return True

    def resolvent(self, state):
        return lambda gamma: lambda r: r / (1 + gamma * self.rates)


def test_a_strangers_flow_that_solves_newtons_systems_goes_on_by_them():
    path = nf.integrate(Decay(), torch.ones(2, 2), [0.0, 0.5, 3.0], "auto", 1e-8, 1e-10)
    assert path.stats["history"][0].endswith("NDF")
    assert path.stats["evaluations"] < 1000
    assert float((path.z - torch.exp(-path.times[:, None, None] * Decay.rates)).abs().max()) < 1e-8


def test_members_of_a_batch_go_on_by_cvode():
    flow = nf.IntrinsicFlow(ill_conditioned(), nf.LogMean())
    path = nf.integrate(flow, torch.stack((torch.eye(3), 2 * torch.eye(3))), TIMES, "auto", 1e-6, 1e-8)
    assert path.stats["history"][0].endswith("CVODE (BDF)")
    assert worst(replace(path, z=path.z[:, 0]), reference("logarithms")) < 1


def test_a_resolvent_without_numbers_is_a_status():
    flow, state = CASES["z"]()
    flow.resolvent = lambda state: lambda gamma: lambda r: torch.full_like(r, torch.nan)
    path = nf.integrate(flow, state, TIMES, "auto", 1e-6, 1e-8)
    assert path.ending == "underflow"
