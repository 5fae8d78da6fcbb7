"""Members with steps of their own are what they are alone: numbers, work, events, ends; and they can be taken up."""

import copy
import math

import pytest
import torch
from cases import Growing

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled
from neuralode_flow.time.methods.scipy import RUNGE_KUTTA
from neuralode_flow.time.methods.torchdiffeq import ADAPTIVE

TIMES = [0.0, 0.4, 1.0]


def targets(*shape, d=3, seed=0):
    """Targets whose sizes, and the stiffness with them, go from 0.3 to 10."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    sizes = torch.logspace(-0.5, 0.8, count)[torch.randperm(count, generator=generator)]
    noise = torch.randn(count, d, d, generator=generator, dtype=torch.float64)
    return (sizes[:, None, None] * (torch.eye(d) + 0.2 * noise)).reshape(*shape, d, d)


def layers(*shape, d=3):
    generator = torch.Generator().manual_seed(1)
    return 0.2 * torch.randn(*shape, 5, d, d, generator=generator, dtype=torch.float64)


def finite(target):
    return nf.FiniteFlow(depth=5, loss=nf.Quadratic(target), layer="euler")


class Counts(nf.FiniteFlow):
    """Counts the members whose velocities are computed."""

    computed = 0

    def velocity(self, state):
        Counts.computed += state.shape[:-3].numel()
        return super().velocity(state)


class ByStages(nf.FiniteFlow):
    """The same flow, whose velocity is asked for at every stage: it might have one of its own."""


class Breaks(nf.FiniteFlow):
    """Its velocity, or its z, cannot be computed where an entry of z is above a bound."""

    where = "velocity"

    def velocity(self, state):
        if self.where == "velocity" and bool((super().product(state)[..., 0, 0] > 3).any()):
            raise torch.linalg.LinAlgError("the factorisation did not converge")
        return super().velocity(state)

    def product(self, state):
        z = super().product(state)
        if self.where == "product" and bool((z[..., 0, 0] > 3).any()):
            raise FloatingPointError("no product")
        return z


def assert_alone(path, runs):
    """Every member is bit for bit the run of it alone, and took as many evaluations and steps."""
    members = path.stats["members"]
    z, loss, drift = (getattr(path, name).flatten(1, path.loss.ndim - 1) for name in ("z", "loss", "drift"))
    for i, run in enumerate(runs):
        n = len(run.times) if run.ending == "ok" else int((path.times < run.times[-1]).sum())
        for values, own in ((z, run.z), (loss, run.loss), (drift, run.drift)):
            assert torch.equal(values[:n, i], own[:n])
            assert bool((values[n:, i] == own[-1]).all())
        assert members["endings"][i] == run.ending
        assert members["times"][i] == float(run.times[-1])
        assert members["evaluations"][i] == run.stats["evaluations"]
        assert members["steps"][i] == run.stats["steps"]


def test_the_compiled_velocity_of_a_member_does_not_depend_on_the_others():
    grid, target = nf.DepthGrid.gauss(panels=2, order=4), targets(7)
    W = layers(7)[:, [0, 1, 2, 3, 4, 0, 1, 2]]
    if not compiled.takes(W):
        pytest.skip("the compiled engine is not there")
    for make, state in ((lambda loss: nf.ContinuousFlow(grid, loss), W), (lambda loss: finite(loss.target), layers(7))):
        velocity = make(nf.Quadratic(target)).velocity(state)
        for i in range(7):
            assert torch.equal(velocity[i], make(nf.Quadratic(target[i])).velocity(state[i]))


QUICK = ("DOP853", "RK45", "dopri5")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*RUNGE_KUTTA, *ADAPTIVE) if name not in QUICK]


@pytest.mark.parametrize("method", [*QUICK, *SLOW])
def test_every_member_is_bit_for_bit_what_it_is_alone(method):
    # Two axes of members, and a target for each of one of them.
    target, start = targets(2), layers(2, 2)
    tolerances = (1e-8, 1e-10) if method in ("DOP853", "RK45", "dopri5", "dopri8") else (1e-3, 1e-5)
    path = nf.integrate(finite(target), start, TIMES, method, *tolerances, control="member")
    runs = [
        nf.integrate(finite(target[j]), start[i, j], TIMES, method, *tolerances) for i in range(2) for j in range(2)
    ]
    assert path.status == "ok"
    assert path.state.shape == start.shape
    assert_alone(path, runs)
    assert len(set(path.stats["members"]["steps"])) > 1


def test_members_in_float32_are_what_they_are_alone():
    target, start = targets(4).float(), layers(4).float()
    for method in ("dopri5", "DOP853"):
        path = nf.integrate(finite(target), start, TIMES, method, 1e-4, 1e-5, control="member")
        runs = [nf.integrate(finite(T), W, TIMES, method, 1e-4, 1e-5) for T, W in zip(target, start, strict=True)]
        assert_alone(path, runs)


@pytest.mark.parametrize("control", ["shared", "member"])
def test_a_large_member_that_spoils_the_tolerance_of_a_small_one_is_said(control):
    def run(size, **options):
        target = torch.stack((torch.eye(2) * 2, size * torch.eye(2)))
        flow, start = nf.IntrinsicFlow(nf.Quadratic(target), nf.TwoLayer(0.5)), target - 0.5 * torch.eye(2)
        start[1] = target[1]  # at rest
        return nf.integrate(flow, start, [0.0, 1.0], "DOP853", control=control, **options).z[-1, 0]

    small, exact = run(10.0), run(10.0, rtol=1e-13, atol=1e-14)  # no word of it
    assert float((small - exact).norm()) < 1e-7
    with pytest.warns(RuntimeWarning, match=r"one atol, which the largest, .*e\+14, raises to 0\.022; the smallest, "):
        spoilt = run(1e14)
    assert float((spoilt - exact).norm()) > 1e-7
    run(1e14, rtol=0.1, atol=0.1)  # no more than was asked for


@pytest.mark.parametrize("method", ["DOP853", "dopri5", "rodas5p"])
def test_what_is_carried_in_logarithms_is_what_it_is_alone_to_round_off(method):
    target = targets(3)
    loss, start = nf.Quadratic(target), torch.eye(3).expand(3, 3, 3).clone()
    flow = nf.IntrinsicFlow(loss, nf.LogMean())
    path = nf.integrate(flow, start, TIMES, method, 1e-8, 1e-10, control="member", stop={"steady": 0.5})
    for i in range(3):
        alone = nf.IntrinsicFlow(nf.Quadratic(target[i]), nf.LogMean())
        run = nf.integrate(alone, start[i], TIMES, method, 1e-8, 1e-10, stop={"steady": 0.5})
        assert path.stats["members"]["endings"][i] == run.ending
        assert path.stats["members"]["times"][i] == pytest.approx(float(run.times[-1]), rel=1e-8)
        assert torch.allclose(path.z[-1, i], run.z[-1], atol=1e-7)
    assert "steady" in path.stats["members"]["endings"]


def test_only_members_that_run_cost_anything():
    target, start = targets(6), layers(6)
    flow = Counts(depth=5, loss=nf.Quadratic(target), layer="euler")
    Counts.computed = 0
    path = nf.integrate(flow, start, TIMES, "DOP853", control="member")
    looked_at = Counts.computed - sum(path.stats["members"]["evaluations"])
    assert 0 <= looked_at <= 6 + 1 + 5  # the look at the start: all, one taken out, and all but one
    most = max(path.stats["members"]["evaluations"])
    assert path.stats["evaluations"] == most
    assert sum(path.stats["members"]["evaluations"]) < 0.7 * 6 * most


EVENTS = {
    "loss": {"loss": 0.05},
    "norm": {"norm": 4.0},
    "own": {"trace": lambda t, z, state: 5.0 - z.diagonal().sum()},
    "two": {"loss": 0.05, "time": 0.7},
    "start": {"sigma_min": 0.9},
}


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
@pytest.mark.parametrize("event", EVENTS)
def test_members_meet_events_where_they_do_alone(method, event):
    target, start = targets(6), layers(6)
    path = nf.integrate(finite(target), start, TIMES, method, 1e-7, control="member", stop=EVENTS[event])
    runs = [
        nf.integrate(finite(T), W, TIMES, method, 1e-7, stop=EVENTS[event]) for T, W in zip(target, start, strict=True)
    ]
    assert_alone(path, runs)
    endings = set(path.stats["members"]["endings"])
    assert path.ending in endings - {"ok"}
    assert "of 6, " in path.status
    for code in endings - {"ok"}:
        assert nf.time.ENDINGS[code] in path.status


def test_members_that_run_out_of_wall_time_are_not_told_that_all_is_well():
    path = nf.integrate(finite(targets(3)), layers(3), TIMES, "DOP853", control="member", max_seconds=1e-9)
    assert path.ending == "seconds"
    assert path.stats["members"]["endings"] == ["seconds"] * 3


def test_a_member_that_blows_up_does_not_stop_the_others():
    c = torch.tensor([0.0, 0.0, 1.0, 0.0])
    start = torch.eye(2).expand(4, 2, 2).clone()
    for method in ("DOP853", "dopri5"):
        path = nf.integrate(nf.IntrinsicFlow(Growing(c), nf.LogMean()), start, TIMES, method, 1e-4, control="member")
        known = nf.integrate(nf.IntrinsicFlow(Growing(c[:2]), nf.LogMean()), start[:2], TIMES, method, 1e-4)
        assert path.stats["members"]["endings"] == ["ok", "ok", path.ending, "ok"]
        assert path.ending in ("not_finite", "underflow")
        assert "member 2 of 4, at t = 0." in path.status
        assert path.times.tolist() == TIMES
        assert torch.allclose(path.z[:, 0], known.z[:, 0], atol=1e-3)
        assert bool(torch.isfinite(path.z).all())


@pytest.mark.parametrize("where", ["velocity", "product"])
def test_a_member_at_which_a_function_raises_does_not_stop_the_others(where):
    target, start = targets(5), layers(5)
    flow = Breaks(depth=5, loss=nf.Quadratic(target), layer="euler")
    flow.where = where
    path = nf.integrate(flow, start, TIMES, "DOP853", control="member")
    known = ByStages(depth=5, loss=nf.Quadratic(target), layer="euler")
    known = nf.integrate(known, start, TIMES, "DOP853", control="member")
    broken = (known.z[..., 0, 0] > 3).any(0)
    assert 0 < int(broken.sum()) < 5
    assert path.stats["members"]["endings"] == ["velocity" if b else "ok" for b in broken.tolist()]
    assert torch.equal(path.z[:, ~broken], known.z[:, ~broken])


class Particular(nf.FiniteFlow):
    """z is NaN where it is large, of which its law wants to know nothing."""

    def product(self, state):
        z = super().product(state)
        return z.where(z[..., :1, :1] < 3, math.nan)

    def law(self, state):
        if not bool(torch.isfinite(self.product(state)).all()):
            raise ValueError("the law of NaN")
        return super().law(state)


def test_a_member_of_which_the_law_knows_nothing_does_not_stop_the_others():
    target, start = targets(5), layers(5)
    path = nf.integrate(Particular(5, nf.Quadratic(target)), start, TIMES, "DOP853", control="member")
    known = nf.integrate(finite(target), start, TIMES, "DOP853", control="member")
    lost = (known.z[..., 0, 0] >= 3).any(0)
    assert 0 < int(lost.sum()) < 5
    assert path.stats["members"]["endings"] == ["not_finite" if one else "ok" for one in lost.tolist()]
    assert torch.allclose(path.z[:, ~lost], known.z[:, ~lost], rtol=0, atol=1e-9)


def test_each_member_has_the_budget_of_a_run():
    target, start = targets(5), layers(5)
    free = nf.integrate(finite(target), start, TIMES, "DOP853", control="member")
    most = sorted(free.stats["members"]["evaluations"])[2]
    path = nf.integrate(finite(target), start, TIMES, "DOP853", control="member", max_evaluations=most)
    runs = [
        nf.integrate(finite(T), W, TIMES, "DOP853", max_evaluations=most) for T, W in zip(target, start, strict=True)
    ]
    assert_alone(path, runs)
    assert path.stats["members"]["endings"].count("evaluations") == 2
    with pytest.raises(nf.IntegrationError, match="the budget of velocity evaluations was used up: members"):
        nf.integrate(finite(target), start, TIMES, control="member", max_evaluations=20, throw=True)
    slow = nf.integrate(finite(target), start, TIMES, control="member", max_seconds=1e-9)
    assert slow.ending == "seconds"


def test_a_step_that_is_taken_back_is_none():
    # The search for the event asks for more velocities than are left.
    target, start = targets(5), layers(5)
    options = {"method": "DOP853", "stop": {"loss": 1.0}, "max_evaluations": 60}
    path = nf.integrate(finite(target), start, TIMES, control="member", **options)
    runs = [nf.integrate(finite(T), W, TIMES, **options) for T, W in zip(target, start, strict=True)]
    assert_alone(path, runs)
    assert "evaluations" in path.stats["members"]["endings"]


def balanced(*imbalances):
    """Two factors of a small map, with U₂ᵀU₂ − U₁U₁ᵀ a multiple of I: those with 0 cannot cross det z = 0."""
    small = torch.tensor([[0.1, 0.03], [-0.02, 0.12]])
    factors = [nf.relaxed_balanced_layers(small, torch.tensor([0.0, c])) / 2 + torch.eye(2) for c in imbalances]
    return torch.stack(factors)


def test_the_barrier_is_watched_at_the_steps_of_each_member():
    seen = nf.Completion(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[False, True], [True, True]]))
    start = 2 * (balanced(0.0, 0.5) - torch.eye(2))
    path = nf.integrate(nf.FiniteFlow(2, seen), start, [0.0, 300.0], "DOP853", control="member")
    assert bool((torch.linalg.det(path.z[-1]) < 0).all())
    assert path.ending == "escaped"


@pytest.mark.slow
def test_members_that_may_cross_are_left_alone():
    flow = nf.FactorizationFlow(
        lambda theta: theta[..., 1, :, :] @ theta[..., 0, :, :], nf.Quadratic(torch.diag(torch.tensor([1.0, -1.0])))
    )
    path = nf.integrate(flow, balanced(0.5, 1e-2), [0.0, 20.0, 60.0], "DOP853", control="member")
    assert torch.linalg.det(path.z[-1]).tolist() == pytest.approx([-1, -1], abs=1e-6)
    assert path.status == "ok"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["DOP853", "dopri5", pytest.param("rodas5p", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop", [None, {"loss": 0.05}])
def test_a_run_that_is_taken_up_gives_the_same_bits(method, stop, tmp_path):
    target, start, rtol = targets(5), layers(5), 1e-3 if method == "rodas5p" else 1e-8

    def run(**options):
        return nf.integrate(finite(target), start, TIMES, method, rtol, control="member", stop=stop, **options)

    whole, file, rounds = run(), tmp_path / "run.npz", 0

    def interrupt(progress):
        nonlocal rounds
        rounds += 1
        if rounds % 2 == 0:
            raise Interrupted

    for _ in range(1000):
        try:
            path = run(checkpoint=file, every=0, progress=interrupt)
            break
        except Interrupted:
            assert nf.load(file).ending == "interrupted"
    assert torch.equal(path.z, whole.z)
    assert torch.equal(path.state, whole.state)
    assert path.status == whole.status
    assert {**path.stats["members"]} == {**whole.stats["members"]}
    again = run(checkpoint=file)
    assert torch.equal(again.z, whole.z)
    with pytest.raises(ValueError, match="control"):
        nf.integrate(finite(target), start, TIMES, method, rtol, stop=stop, checkpoint=file)


def test_a_run_is_made_longer_by_the_members_that_have_met_no_event(tmp_path):
    target, start, file = targets(5), layers(5), tmp_path / "run.npz"

    def run(times, **options):
        return nf.integrate(finite(target), start, times, "DOP853", control="member", stop={"loss": 1e-3}, **options)

    first = run(TIMES, checkpoint=file)
    assert {"loss", "ok"} == set(first.stats["members"]["endings"])
    longer, whole = run([*TIMES, 20.0], checkpoint=file), run([*TIMES, 20.0])
    assert torch.equal(longer.z, whole.z)
    assert longer.stats["members"]["endings"] == ["loss"] * 5


def test_a_state_without_members_is_what_it_was():
    flow, start = finite(targets(1)[0]), layers()
    for method in ("DOP853", "dopri5"):
        path, known = (nf.integrate(flow, start, TIMES, method, control=c) for c in ("member", "shared"))
        assert torch.equal(path.z, known.z)
        assert path.stats | {"seconds": 0} == known.stats | {"seconds": 0}


class Unselected(Growing):
    select = None


def test_what_cannot_be_is_refused():
    flow, start = finite(targets(2)), layers(2)
    with pytest.raises(ValueError, match=r"control must be one of 'shared', 'member', got 'membr'; did you mean 'mem"):
        nf.integrate(flow, start, TIMES, control="membr")
    for method in ("rk4", "Radau", "BDF", "auto", "CVODE_BDF"):
        with pytest.raises(ValueError, match=f"control='member' is for .*DOP853.* dopri5.*and {method} has none"):
            nf.integrate(flow, start, TIMES, method, control="member")
    for name in ("adapt", "estimate", "dense"):
        with pytest.raises(ValueError, match=f"{name}=True goes with the shared steps"):
            nf.integrate(flow, start, TIMES, control="member", **{name: True})
    unknown = nf.IntrinsicFlow(Unselected(torch.zeros(3)), nf.LogMean())
    with pytest.raises(ValueError, match="give the loss select"):
        nf.integrate(unknown, torch.eye(2).expand(3, 2, 2).clone(), TIMES, control="member")


class Picked(Growing):
    """Takes the numbers of some members from `places` of them."""

    places = None

    def select(self, members, index):
        some = copy.copy(self)
        some.c = self.c[self.places(index)]
        return some


def of_the_first(index):
    return slice(len(index))


def of_the_last(index):
    return slice(-len(index), None)


def of_those_in_a_row(index):
    return slice(int(index[0]), int(index[0]) + len(index))


def of_one(index):
    return index[-1:].expand(len(index))


@pytest.mark.parametrize("places", [of_the_first, of_the_last, of_those_in_a_row, of_one])
def test_a_selection_of_other_members_is_refused(places):
    loss = Picked(torch.tensor([-0.5, -1.0, -2.0, -3.0]))
    start = torch.eye(2).expand(4, 2, 2).clone()

    def run():
        return nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), start, [0.0, 0.5], "DOP853", control="member")

    loss.places = lambda index: index
    assert run().status == "ok"
    loss.places = places
    with pytest.raises(ValueError, match=r"numbers of their own for them: with .* the velocity is another; give the"):
        run()


class Lifted(Growing):
    """With an offset of each member, which the gradient does not know of."""

    select = None

    def __init__(self, offset):
        super().__init__(torch.tensor(-1.0))
        self.offset = offset

    def __call__(self, z):
        return super().__call__(z) + self.offset


def test_a_loss_whose_values_alone_are_of_the_members_is_refused_without_a_selection():
    flow, start = nf.IntrinsicFlow(Lifted(torch.arange(3.0)), nf.LogMean()), torch.eye(2).expand(3, 2, 2).clone()
    with pytest.raises(ValueError, match=r"with the index \[2\] the loss has the shape \(3,\) .*; give the loss"):
        nf.integrate(flow, start, TIMES, "DOP853", control="member", stop={"loss": 1.0})


def test_a_flow_with_numbers_by_the_places_of_members_is_refused():
    class Paced(nf.FiniteFlow):
        def velocity(self, state):
            return super().velocity(state) * self.rates[: len(state), None, None, None]

    flow, start = Paced(depth=5, loss=nf.Quadratic(targets(1)[0]), layer="euler"), layers(4)
    flow.rates = torch.ones(4)
    assert nf.integrate(flow, start, [0.0, 0.1], "DOP853", control="member").status == "ok"
    flow.rates = torch.tensor([1.0, 5.0, 5.0, 1.0])
    with pytest.raises(ValueError, match="in Paced has numbers of their own for them: with an index of several"):
        nf.integrate(flow, start, [0.0, 0.1], "DOP853", control="member")


def test_a_selection_of_one_without_an_axis_is_asked_for_where_events_are():
    loss = Picked(torch.tensor([-0.5, -1.0]))
    loss.places = lambda index: torch.tensor([int(i) for i in index])
    flow, start = nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(2).expand(2, 2, 2).clone()
    assert nf.integrate(flow, start, [0.0, 0.5], "DOP853", control="member").status == "ok"
    with pytest.raises(ValueError, match="with the index 1 there is no velocity or loss .*0-d tensor"):
        nf.integrate(flow, start, [0.0, 0.5], "DOP853", control="member", stop={"norm": 9.0})


class Cancelling:
    """½⟨z A, z⟩ − ⟨B, z⟩ + ½‖y‖² with B = c A of the optimum c: large numbers cancel there."""

    dimension = None

    def __init__(self, c, A):
        self.c, self.A = c, A

    def __call__(self, z):
        squares = (z @ self.A * z).sum((-2, -1)) / 2 - (self.c @ self.A * z).sum((-2, -1))
        return squares + (self.c @ self.A * self.c).sum((-2, -1)) / 2

    def gradient(self, z):
        return (z - self.c) @ self.A


def test_members_at_the_optimum_of_a_loss_with_cancellation_can_be_taken_out():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(4, 40, generator=generator)
    c = 2e5 * (torch.eye(4) + 0.1 * torch.randn(4, 4, generator=generator))
    start = c.expand(96, 4, 4) * (1 + 1e-12 * torch.randn(96, 1, 1, generator=generator))
    flow = nf.IntrinsicFlow(Cancelling(c, A @ A.T), nf.LogMean())
    path = nf.integrate(flow, start, [0.0, 1e-12], "DOP853", control="member", stop={"norm": 1e9})
    assert path.status == "ok"


def test_a_flow_may_lend_the_place_where_its_z_is():
    class Lending(nf.IntrinsicFlow):
        def product(self, state):
            self.place[: len(state)] = state
            return self.place[: len(state)]

    class Corner(Growing):
        def __call__(self, z):
            return z[..., 0, 0]

        def gradient(self, z):
            return torch.eye(2).expand_as(z) * torch.tensor([1.0, 0.0])

        def select(self, members, index):
            return self

    flow = Lending(Corner(torch.tensor(0.0)), nf.LogMean())
    flow.place = torch.zeros(4, 2, 2)
    start = torch.eye(2) * torch.arange(1.0, 5.0)[:, None, None]
    path = nf.integrate(flow, start, [0.0, 0.1], "DOP853", control="member", checks=False)
    alone = nf.integrate(nf.IntrinsicFlow(flow.loss, nf.LogMean()), start, [0.0, 0.1], "DOP853", control="member")
    assert path.status == "ok"
    torch.testing.assert_close(path.z[-1], alone.z[-1], rtol=1e-7, atol=0)


def test_a_selection_of_one_without_an_axis_is_asked_for_where_det_z_is_watched_over():
    class Listed(Growing):
        def select(self, members, index):
            return Listed(self.c[torch.tensor([int(i) for i in index])])

    flow = nf.FactorizationFlow(lambda theta: theta[..., 0, :, :] @ theta[..., 1, :, :], Listed(torch.full((3,), -1.0)))
    start = torch.eye(2).expand(3, 2, 2, 2).clone()
    with pytest.raises(
        ValueError, match=r"select\(members, index\) of Listed must take an index without an axis .* 0-d"
    ):
        nf.integrate(flow, start, [0.0, 0.1], "DOP853", control="member")


def test_losses_of_some_members_are_those_of_all_at_their_places():
    target = targets(2, 3)
    mask = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    z, index = targets(2, 3, seed=5), torch.tensor([4, 0, 5])
    for loss in (
        nf.Quadratic(target),
        nf.Quadratic(target[1]),
        nf.Quadratic(target[0, 0]),
        nf.Completion(target, mask),
    ):
        some = loss.select((2, 3), index)
        assert torch.equal(some(z.flatten(0, 1)[index]), loss(z).flatten()[index])
        assert torch.equal(some.gradient(z.flatten(0, 1)[index]), loss.gradient(z).flatten(0, 1)[index])


class Reuses(nf.FiniteFlow):
    """Puts all its velocities into the same memory."""

    def velocity(self, state):
        value = super().velocity(state)
        room = self.__dict__.setdefault("room", torch.empty(10000))[: value.numel()].view(value.shape)
        return room.copy_(value)


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_a_velocity_in_memory_of_its_own_may_be_overwritten(method):
    target, start = targets(4), layers(4)
    options = {"rtol": 1e-8, "atol": 1e-10, "control": "member"}
    path, other = (
        nf.integrate(kind(depth=5, loss=nf.Quadratic(target), layer="euler"), start, TIMES, method, **options)
        for kind in (Reuses, ByStages)
    )
    assert path.status == other.status == "ok"
    assert torch.equal(path.z, other.z)
