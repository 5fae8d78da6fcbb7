"""Tensors that a flow, a rule or an observer keeps, and puts the next numbers where the last ones were."""

import pytest
import torch
from cases import positive_matrix, randn
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.time.base import METHODS, fixed_steps, own_steps
from neuralode_flow.time.steprule import STEP_RULES, AlongGradient

LOSS, START = nf.Quadratic(positive_matrix(2, seed=3)), 0.3 * randn(2, 4, 2, 2, seed=1)


def keeps(value, buffers):
    """The value in a tensor that is there for its shape."""
    return buffers.setdefault(value.shape, torch.empty_like(value)).copy_(value.detach())


class Buffered(nf.FiniteFlow):
    """Of layers, with one place for all its velocities and one for all its maps."""

    def __init__(self, depth, loss):
        super().__init__(depth, loss)
        self.velocities, self.maps = {}, {}

    def velocity(self, state):
        velocity = super().velocity(state)
        return velocity if velocity.requires_grad else keeps(velocity, self.velocities)

    def product(self, state):
        return keeps(super().product(state), self.maps)


# All methods, and those that have steps of a member's own with these as well.
CONTROLS = [(name, "shared") for name in METHODS]
CONTROLS += [(name, "member") for name in METHODS if own_steps(METHODS[name]) is not None]


@pytest.mark.parametrize(("method", "control"), CONTROLS)
def test_a_flow_may_put_what_it_gives_where_the_last_one_was(method, control):
    options = {"rtol": 1e-4, "control": control, "step": 0.05 if fixed_steps(METHODS[method]) else None}
    options |= {"dense": control == "shared", "stop": {"loss": 0.1}}
    seen = torch.empty_like(START)
    known = nf.integrate(nf.FiniteFlow(4, LOSS), START, [0.0, 0.3, 1.0], method, **options)
    found = nf.integrate(
        Buffered(4, LOSS), START, [0.0, 0.3, 1.0], method, observe=lambda i, state: seen.copy_(state), **options
    )
    assert found.ending == known.ending == "loss"
    for name in ("times", "z", "loss", "state"):
        assert_close(getattr(found, name), getattr(known, name), rtol=1e-8, atol=1e-8)
    assert_close(found.observed[0], START, rtol=0, atol=0)
    if control == "shared":
        assert_close(found(0.2), known(0.2), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("method", "control"), CONTROLS)
def test_an_observer_may_write_into_what_it_is_given(method, control):
    options = {"rtol": 1e-4, "control": control, "step": 0.1 if fixed_steps(METHODS[method]) else None}
    flow, start, times = nf.FiniteFlow(4, LOSS), START.clone(), [0.0, 0.1, 0.3, 0.5]
    known = nf.integrate(flow, start, times, method, **options)
    found = nf.integrate(flow, start, times, method, observe=lambda i, state: state.zero_(), **options)
    assert torch.equal(start, START)
    for name in ("times", "z", "loss", "drift", "state"):
        assert torch.equal(getattr(found, name), getattr(known, name)), name


def test_an_observer_of_steps_may_write_into_what_it_is_given():
    start = START.clone()
    known = nf.descend(nf.FiniteFlow(4, LOSS), start, steps=6, rate=0.05, record=2)
    found = nf.descend(
        nf.FiniteFlow(4, LOSS), start, steps=6, rate=0.05, record=2, observe=lambda i, state: state.zero_()
    )
    assert torch.equal(start, START)
    assert torch.equal(found.z, known.z)


SHOWN = {
    "observe": lambda written: {"observe": lambda *_: written.fill_(0.1)},
    "progress": lambda written: {"progress": lambda *_: written.fill_(0.1)},
    "event": lambda written: {"stop": {"never": lambda *_: 1.0 + 0.0 * float(written.fill_(0.1).sum())}},
}


@pytest.mark.parametrize("method", ["DOP853", "Radau", "rk4"])
@pytest.mark.parametrize("shown", SHOWN)
def test_the_tensor_of_the_start_may_be_written_into_while_a_run_goes(method, shown):
    """The latest state, where the first one was: a run and its companion began there, and said ok."""
    flow, start, times = nf.FiniteFlow(4, LOSS), START.clone(), [0.0, 0.1, 0.3, 0.5]
    options = {"rtol": 1e-6, "estimate": True, "step": 0.1 if fixed_steps(METHODS[method]) else None}
    known = nf.integrate(flow, START, times, method, **SHOWN[shown](START.clone()), **options)
    found = nf.integrate(flow, start, times, method, **SHOWN[shown](start), **options)
    assert not torch.equal(start, START)
    for name in ("times", "z", "loss", "drift", "state", "time_error"):
        assert torch.equal(getattr(found, name), getattr(known, name)), name
    start = START.clone()
    known = nf.descend(flow, START, steps=6, rate=0.05)
    found = nf.descend(flow, start, steps=6, rate=0.05, **SHOWN[shown](start))
    assert not torch.equal(start, START)
    assert torch.equal(found.z, known.z)
    assert torch.equal(found.drift, known.drift)


class Drifting(nf.FiniteFlow):
    """Of weights that drift at a velocity of their own."""

    def velocity(self, state):
        return self.drift


class DriftingModel(nf.ContinuousFlow):
    """The same on a grid."""

    def velocity(self, state):
        return self.drift


@pytest.mark.parametrize("flow", [Drifting(4, LOSS), DriftingModel(nf.DepthGrid.gauss(1, 4), LOSS)])
@pytest.mark.parametrize("rule", ["gd", "heavy_ball"])
def test_a_velocity_that_a_flow_keeps_is_not_written_over(flow, rule):
    drift = randn(*START.shape, seed=2)
    flow.drift = drift.clone()
    path = nf.descend(flow, START, 10, rule, 0.01, **({} if rule == "gd" else {"momentum": 0.0}))
    assert_close(path.state, START + 0.1 * drift, rtol=1e-13, atol=1e-13)
    assert torch.equal(flow.drift, drift)


@pytest.mark.parametrize("flow", [nf.FiniteFlow(4, LOSS), nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), LOSS)])
def test_a_direction_that_lies_within_the_memory_of_a_rule_is_not_written_over(flow):
    class Pair(AlongGradient):
        """Momentum in one tensor with the number of steps."""

        def along(self, n, state):
            count, V = self.memory.get("pair", torch.zeros(2, *state.shape))
            self.memory["pair"] = torch.stack((count + 1, 0.9 * V + self.ground.velocity(state)))
            return self.memory["pair"][1]

    STEP_RULES.register("pair")(Pair)
    try:
        path = nf.descend(flow, START, 10, "pair", 0.02)
    finally:
        del STEP_RULES._entries["pair"]
    known = nf.descend(flow, START, 10, "heavy_ball", 0.02)
    assert_close(path.z, known.z, rtol=1e-12, atol=1e-12)
