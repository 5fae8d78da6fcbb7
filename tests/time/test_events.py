"""Events are found where they happen: at the start, at a single output, inside a step and out of it again."""

import math

import pytest
import torch

import neuralode_flow as nf
from neuralode_flow.time.base import fixed_steps

LIMIT = nf.IntrinsicFlow(nf.Quadratic(torch.diag(torch.tensor([2.0, 0.5]))), nf.LogMean())


class Circle:
    """A state that goes round: z = diag(1.5 + cos t, 3), so that everything dips and comes back."""

    def __init__(self):
        self.loss = nf.Quadratic(torch.diag(torch.tensor([0.5, 3.0])))

    def check(self, state): ...

    def velocity(self, state):
        return torch.stack((-state[..., 1], state[..., 0]), -1)

    def product(self, state):
        return torch.diag_embed(torch.stack((1.5 + state[..., 0], torch.full_like(state[..., 0], 3.0)), -1))

    def law(self, state):
        return state.new_empty(*state.shape[:-1], 0, 2, 2)


class Counted(Circle):
    evaluations = 0

    def velocity(self, state):
        Counted.evaluations += 1
        return super().velocity(state)


def circle(method, stop, flow=None, end=6.0, outputs=2, **options):
    step = {"step": 0.7} if fixed_steps(nf.METHODS[method]) else {"rtol": 1e-5, "atol": 1e-7}
    times = torch.linspace(0, end, outputs)
    return nf.integrate(flow or Circle(), torch.tensor([1.0, 0.0]), times, method, stop=stop, **step, **options)


# Each dips below its bound for less than a step of 0.7, around π, or π/4, and is above it at both ends of most steps.
DIPS = {
    "mine": (lambda t, z, state: 0.985 + float(state[0]), math.acos(-0.985)),
    "sigma_min": (0.515, math.acos(-0.985)),
    "gradient": (0.015, math.acos(-0.985)),
    "steady": (0.8, math.acos(0.8)),
}


@pytest.mark.parametrize(
    "method", ["dopri5", "dopri8", "DOP853", "RK45", "Radau", "LSODA", "BDF", "CVODE_Adams", "auto"]
)
@pytest.mark.parametrize("name", DIPS)
def test_a_dip_inside_a_step_is_found_where_it_begins(method, name):
    bound, when = DIPS[name]
    path = circle(method, {name: bound})
    assert path.ending == ("event" if name == "mine" else name)
    assert float(path.times[-1]) == pytest.approx(when, abs=2e-3)


@pytest.mark.parametrize("method", ["rk4", "heun3", "implicit_midpoint", "midpoint"])
def test_a_dip_inside_a_fixed_step_is_found(method):
    path = circle(method, {"mine": lambda t, z, state: 0.9 + float(state[0])})
    assert path.ending == "event"
    assert float(path.times[-1]) == pytest.approx(math.acos(-0.9), abs=0.4)


def test_a_peak_of_the_norm_inside_a_step_is_found():
    back = Circle()
    back.product = lambda state: Circle.product(back, -state)
    bound = math.hypot(2.485, 3)  # 1.5 − cos t = 2.485
    path = circle("DOP853", {"norm": bound}, back)
    assert path.ending == "norm"
    assert float(path.times[-1]) == pytest.approx(math.acos(-0.985), abs=1e-4)


@pytest.mark.parametrize("start", torch.linspace(0, 1.5, 7).tolist())
def test_a_dip_is_found_wherever_in_a_step_it_lies(start):
    state = torch.tensor([math.cos(start), math.sin(start)])
    path = nf.integrate(Circle(), state, [0.0, 6.0], "DOP853", 1e-5, 1e-7, stop={"sigma_min": 0.51})
    assert path.ending == "sigma_min"
    assert float(path.times[-1]) == pytest.approx(math.acos(-0.99) - start, abs=1e-4)


@pytest.mark.parametrize("method", ["dopri5", "DOP853", "Radau", "CVODE_BDF", "auto", "rk4"])
def test_a_loss_that_oscillates_is_found_between_two_steps_though_it_fell_from_one_to_the_other(method):
    still = nf.FactorizationFlow(lambda theta: theta.reshape(1, 1), nf.Quadratic(torch.zeros(1, 1)))
    flow = nf.MomentumFlow(still, friction=0.0)  # x'' = -x, whose steps begin elsewhere for each phase
    step = {"step": 0.5} if fixed_steps(nf.METHODS[method]) else {}
    for phase in torch.linspace(0.3, 1.3, 11).tolist():
        state = flow.start(torch.tensor([math.cos(phase)]), torch.tensor([-math.sin(phase)]))
        path = nf.integrate(flow, state, [0.0, 10.0], method, 1e-6, 1e-8, stop={"loss": 1e-4}, **step)
        assert path.ending == "loss"
        assert float(path.times[-1]) == pytest.approx(math.acos(math.sqrt(2e-4)) - phase, abs=1e-3)


@pytest.mark.parametrize("start", [1e6, -1e9])
def test_an_event_is_located_as_closely_at_a_late_time(start):
    path = nf.integrate(LIMIT, torch.eye(2), [start, start + 9], "LSODA", 1e-9, 1e-11, stop={"loss": 0.1})
    assert path.ending == "loss"
    assert float(path.loss[-1]) == pytest.approx(0.1, abs=max(1e-9, 2e-16 * abs(start) * 4))


def test_what_only_nearly_happens_does_not_end_the_run():
    path = circle("DOP853", {"sigma_min": 0.4999, "mine": lambda t, z, state: 1.0001 + float(state[0])}, outputs=4)
    assert path.status == "ok"


def test_a_run_without_events_costs_no_evaluation_more_and_one_with_them_one_a_step_at_most():
    spent = {}
    for name, stop in (("none", None), ("loss", {"time": 50.0}), ("mine", {"sigma_min": 0.1})):
        Counted.evaluations = 0
        path = circle("rk4", stop, Counted())
        spent[name] = Counted.evaluations
        assert path.stats["evaluations"] == Counted.evaluations
    assert spent["none"] == spent["loss"] == 4 * path.stats["steps"]
    assert spent["mine"] == spent["none"] + path.stats["steps"] + 1
    # What a method knows of its slopes is not evaluated again.
    assert len({circle("DOP853", stop).stats["evaluations"] for stop in (None, {"sigma_min": 0.1})}) == 1


@pytest.mark.parametrize("times", [[0.0], [0.0, 1.0]])
@pytest.mark.parametrize(
    ("stop", "ending", "words"),
    [
        ({"loss": 100.0}, "loss", "the loss is at most 100, as was asked for, at t = 0, the start"),
        ({"gradient": 9.0}, "gradient", "the gradient of the loss is at most 9, as was asked for, at t = 0, the start"),
        ({"steady": 9.0}, "steady", "no entry of the state moves faster than 9, as was asked for, at t = 0, the start"),
        ({"norm": 0.1}, "norm", "the norm of z is at least 0.1 at t = 0, the start"),
        ({"sigma_min": 1.5}, "sigma_min", "the smallest singular value of z is at most 1.5 at t = 0, the start"),
        ({"mine": lambda t, z, state: -1}, "event", "the event 'mine' happened at t = 0, the start"),
    ],
)
def test_an_event_that_has_happened_at_the_start_is_said_there(times, stop, ending, words):
    path = nf.integrate(LIMIT, torch.eye(2), times, stop=stop)
    assert path.ending == ending
    assert path.status == words
    assert path.times.tolist() == [0.0]


def test_a_single_output_at_which_nothing_has_happened_is_ok():
    assert nf.integrate(LIMIT, torch.eye(2), [0.0], stop={"loss": 1e-3, "time": 1.0}).status == "ok"


def test_an_event_that_is_true_at_the_start_only_ends_the_run_there():
    path = nf.integrate(LIMIT, torch.eye(2), [0.0, 1.0], stop={"mine": lambda t, z, state: t})
    assert path.ending == "event"
    assert path.times.tolist() == [0.0]


def test_an_event_that_turns_nan_at_a_built_in_quantity_is_a_status():
    loss = nf.Custom(lambda z: torch.sqrt(z.trace() - 1.5).square() + z.square().sum())
    path = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(2), [0.0, 4.0], stop={"loss": 1e-3})
    assert path.ending in ("not_finite", "velocity")
    assert bool(torch.isfinite(path.loss).all())


def test_the_smallest_singular_value_says_nothing_of_a_boundary():
    path = nf.integrate(LIMIT, torch.eye(2), [0.0, 9.0], stop={"sigma_min": 0.9})
    assert path.ending == "sigma_min"
    assert path.status.startswith("the smallest singular value of z fell to 0.9 at t = ")
    assert "boundary" not in path.status
