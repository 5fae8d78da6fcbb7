"""Members that nobody looks at in between go on to an output in C, bit for bit as step by step."""

import time

import numpy as np
import pytest
import torch
from cases import Growing, Rated, Seen, Weighted, formula, randn, slow
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled, explicit
from neuralode_flow.flows.base import restricted
from neuralode_flow.time.ownsteps import OwnSteps

if compiled.library() is None:
    pytest.skip("the compiled engine is not there", allow_module_level=True)

GRID = nf.DepthGrid.gauss(panels=2, order=4)
TIMES = [0.0, 0.3, 1.0]
D, N = 3, 7
ROUND = OwnSteps._round


def flows(loss):
    yield "continuous", nf.ContinuousFlow(GRID, loss), torch.zeros(N, len(GRID), D, D)
    for rule in ("euler", "rk2", "cayley", "exp"):
        yield rule, nf.FiniteFlow(5, loss, rule), 0.2 * randn(N, 5, D, D, seed=2)
    yield "closed", nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(D).expand(N, D, D).clone()
    layers = nf.IntrinsicFlow(loss, nf.DividedDifference(torch.zeros(1)))
    layers.kernel = nf.DividedDifference.together([nf.DividedDifference(c, 1 / 4) for c in randn(N, 4, seed=7) / 4])
    yield "closed layers", layers, torch.eye(D) + 0.2 * randn(N, D, D, seed=6)


def losses():
    sizes = torch.logspace(-0.5, 0.7, N)[:, None, None]
    target = sizes * (torch.eye(D) + 0.2 * randn(N, D, D, seed=3))
    return (
        nf.Quadratic(target),
        Rated(target / 3, torch.logspace(-1, 1.5, N)),
        nf.Regression(randn(9, D, seed=4), randn(9, D, seed=5)),
        Weighted(nf.Quadratic(target / 3), torch.logspace(-1, 1.5, N)),
    )


class Falling:
    """f = −c log |det z|: all singular values of the closed flow grow as e^ct."""

    dimension = None

    def __init__(self, c):
        self.c = c

    def __call__(self, z):
        return -self.c * torch.linalg.slogdet(z)[1]

    def gradient(self, z):
        return -self.c[..., None, None] * torch.linalg.inv(z).mT

    def select(self, members, index):
        return Falling(self.c[index])


def step_by_step(monkeypatch, run):
    """What a run is without those of C, and how many rounds it has had."""
    with monkeypatch.context() as patch:
        patch.setattr(explicit, "runs", lambda *_, **more: None)
        return run()


def assert_same(path, known, said=None):
    said = None if said is None else f"{said}: {{}}".format
    assert path.status == known.status
    assert path.stats["members"] == known.stats["members"]
    for name in ("times", "z", "loss", "drift", "state"):
        assert_close(getattr(path, name), getattr(known, name), rtol=0, atol=0, equal_nan=True, msg=said)


@pytest.mark.parametrize("method", ["RK23", "DOP853", "dopri5", *slow("fehlberg2")])
def test_members_are_bit_for_bit_what_they_are_step_by_step(method, monkeypatch):
    rtol, single = 1e-7 if method in ("DOP853", "RK45", "dopri5") else 1e-3, []
    monkeypatch.setattr(OwnSteps, "_round", lambda own, *rest: single.append(1) or ROUND(own, *rest))
    for loss in losses():
        for name, flow, start in flows(loss):

            def run(flow=flow, start=start):
                return nf.integrate(flow, start, TIMES, method, rtol, control="member")

            single.clear()
            path = run()
            assert bool(single) == (formula(method).tableau.solution is not None)  # else all steps are those of C
            known = step_by_step(monkeypatch, run)
            assert len(single) > 3
            assert_same(path, known, f"{type(loss).__name__}, {name}")
            assert path.status == "ok"


@pytest.mark.parametrize("d", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("kind", ["continuous", "euler", "rk2", "cayley", "exp"])
def test_the_steps_tell_the_maps_that_the_flow_would_multiply(kind, d, monkeypatch):
    """To the bit, of steps that were accepted and of some that were tried again before, whoever knows the loss."""
    target = 4 * torch.linspace(0.5, 2, N)[:, None, None] * (torch.eye(d) + 0.2 * randn(N, d, d, seed=3))
    told, again = [], 0
    monkeypatch.setattr(
        explicit, "runs", lambda *given, runs=explicit.runs, **more: told.append(runs(*given, **more)) or told[-1]
    )
    for loss in (nf.Quadratic(target), Rated(target, torch.ones(N))):
        for L in (1, 5, 37):
            flow = nf.ContinuousFlow(GRID, loss) if kind == "continuous" else nf.FiniteFlow(L, loss, kind)
            start = 0.1 * randn(N, len(GRID) if kind == "continuous" else L, d, d, seed=2)
            told.clear()
            nf.integrate(flow, start, [0.0, 0.3], "DOP853", 1e-6, control="member")
            for ran in told:
                took = torch.from_numpy(ran.took > 0)
                assert torch.equal(ran.z[took], flow.product(ran.y)[took])
                again += int((ran.tried - ran.took).sum())
    assert again > 0


@pytest.mark.parametrize("kind", ["continuous", "finite"])
def test_somebody_who_multiplies_in_another_way_is_asked(kind, monkeypatch):
    loss = nf.Quadratic(torch.linspace(0.5, 2, N)[:, None, None] * torch.eye(D))

    def run(patch):
        flow = nf.ContinuousFlow(GRID, loss) if kind == "continuous" else nf.FiniteFlow(len(GRID), loss)
        patch(flow)
        return nf.integrate(flow, torch.zeros(N, len(GRID), D, D), TIMES, "DOP853", control="member", checks=False)

    def doubled(flow):
        product = flow.product
        flow.product = lambda state: 2 * product(state)

    plain, other = run(lambda flow: None), run(doubled)
    assert torch.equal(other.z, 2 * plain.z)
    asked = []
    library = nf.Collocation if kind == "continuous" else nf.FiniteFlow
    product = library.product
    monkeypatch.setattr(library, "product", lambda own, state: asked.append(0) or product(own, state))
    assert torch.equal(run(lambda flow: None).z, plain.z)
    assert len(asked) >= len(TIMES)


def test_steps_that_are_tried_again_are_among_them(monkeypatch):
    loss = nf.Quadratic(10 * torch.linspace(0.5, 2, N)[:, None, None] * (torch.eye(D) + 0.5 * randn(N, D, D, seed=3)))
    for method in ("DOP853", "RK45", "dopri5"):

        def run(method=method):
            return nf.integrate(nf.FiniteFlow(5, loss), torch.zeros(N, 5, D, D), [0.0, 1.0], method, control="member")

        path, stages = run(), len(formula(method).tableau.weights)
        members = path.stats["members"]
        again = [spent - 2 - stages * steps for spent, steps in zip(members["evaluations"], members["steps"])]
        assert all(number > stages for number in again)
        assert_same(path, step_by_step(monkeypatch, run))


@pytest.mark.parametrize("rounds", [1, 4])
def test_where_a_call_ends_does_not_matter(rounds, monkeypatch, tmp_path):
    loss = losses()[0]
    for name, flow, start in flows(loss):
        whole = nf.integrate(flow, start, TIMES, "DOP853", 1e-7, control="member")
        with monkeypatch.context() as patch:
            patch.setattr(explicit, "_ROUNDS", rounds)
            file = tmp_path / f"{name}.npz"
            for _ in range(200):  # each time it is taken up from a checkpoint, two calls later
                seen = []

                def stop(progress, seen=seen):
                    seen.append(progress)
                    if len(seen) == 2:
                        raise InterruptedError

                try:
                    path = nf.integrate(
                        flow, start, TIMES, "DOP853", 1e-7, control="member", checkpoint=file, every=0, progress=stop
                    )
                    break
                except InterruptedError:
                    continue
            assert_same(path, whole, name)


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_budgets_end_members_where_they_do_step_by_step(method, monkeypatch):
    for loss in losses()[:2]:
        for _, flow, start in flows(loss):
            for most in (30, 77, 150):

                def run(flow=flow, start=start, most=most):
                    return nf.integrate(flow, start, TIMES, method, 1e-7, control="member", max_evaluations=most)

                assert_same(run(), step_by_step(monkeypatch, run))
    assert nf.integrate(flow, start, TIMES, method, control="member", max_seconds=1e-9).ending == "seconds"


def test_members_that_fail_do_so_where_they_do_step_by_step(monkeypatch):
    """By z that leaves the range of numbers, and by a loss that raises."""
    growing = Growing(torch.tensor([0.0, 1.0, 0.0, 0.3, 0.0, 0.0, 0.0]))
    raising = Rated(torch.linspace(1, 90, N)[:, None, None] * torch.eye(D), torch.linspace(1, 6, N))
    for loss in (growing, raising):
        for name, flow, start in flows(loss):
            if name not in ("euler", "closed", "closed layers"):
                continue

            def run(flow=flow, start=start):
                return nf.integrate(flow, start, TIMES, "DOP853", 1e-4, control="member")

            path, known = run(), step_by_step(monkeypatch, run)
            assert_same(path, known, f"{type(loss).__name__}, {name}")
            assert {"ok"} < set(path.stats["members"]["endings"])


def test_the_closed_flow_ends_in_the_step_in_which_it_leaves_the_range_of_numbers(monkeypatch):
    flow = nf.IntrinsicFlow(Falling(torch.tensor([0.5, 1.0, 2.0])), nf.LogMean())
    start = torch.diag(torch.tensor([1.0, 0.3])).expand(3, 2, 2).clone()

    def run():
        return nf.integrate(flow, start, [0.0, 1.0, 150.0], "RK23", 1e-3, control="member")

    path = run()
    assert_same(path, step_by_step(monkeypatch, run))
    assert path.stats["members"]["endings"] == ["ok", "not_finite", "not_finite"]


def test_who_is_carried_across_the_barrier_is_told_of_at_that_step(monkeypatch):
    """A balanced pair of factors is held by det z = 0, and long steps carry it across; the other pair may cross."""
    small = torch.tensor([[0.1, 0.03], [-0.02, 0.12]])
    start = torch.stack([2 * nf.relaxed_balanced_layers(small, torch.tensor([0.0, c])) / 2 for c in (0.0, 0.5)])
    seen = nf.Completion(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[False, True], [True, True]]))
    for loss in (seen, nf.Quadratic(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))):

        def run(loss=loss):
            return nf.integrate(nf.FiniteFlow(2, loss), start, [0.0, 300.0], "DOP853", 1e-6, control="member")

        path, known = run(), step_by_step(monkeypatch, run)
        assert_same(path, known)
        assert path.ending == known.ending
    assert nf.integrate(nf.FiniteFlow(2, seen), start, [0.0, 300.0], "DOP853", control="member").ending == "escaped"


@pytest.mark.parametrize("d", [1, 2, 5, 8])
def test_the_sign_that_is_to_stay_is_that_of_the_determinant(d, monkeypatch):
    """Of a chain of one layer, whose z is what it holds: rows go on as long as it has the sign that it is given."""
    z = torch.linalg.qr(randn(40, d, d, seed=d)).Q @ torch.diag_embed(torch.logspace(0, -2, d)) @ randn(d, d, seed=9)
    z[0] = 0  # without a sign
    flow, made = nf.FiniteFlow(1, nf.Quadratic(torch.zeros(d, d))), formula("DOP853")
    states, slopes = (z - torch.eye(d))[:, None], -z[:, None]
    for sign in (-1.0, 1.0):
        zero, h = np.zeros(len(z)), np.full(len(z), 1e-3)
        legs = explicit.Legs(zero, h, h, zero > 0, zero + 10**6, 1e-2, made.pace, zero + sign)
        ran = flow.explicit_runs(states, slopes, legs, made.tableau)
        same = torch.linalg.slogdet(z)[0] == sign
        assert np.array_equal(ran.t == 1e-2, same.numpy())
        assert bool((ran.took[~same.numpy()] == 1).all())


def test_an_event_is_looked_for_at_each_step():
    loss = losses()[0]
    for _, flow, start in flows(loss):
        path = nf.integrate(flow, start, TIMES, "DOP853", 1e-7, control="member", stop={"loss": 1.0})
        assert "loss" in path.stats["members"]["endings"]
        reached = torch.tensor([ending == "loss" for ending in path.stats["members"]["endings"]])
        assert bool((path.loss[-1, reached] <= 1 + 1e-6).all())


def test_members_do_not_depend_on_each_other_nor_on_threads():
    loss = losses()[1]
    for _, flow, start in flows(loss):
        path = nf.integrate(flow, start, TIMES, "dopri5", 1e-7, control="member")
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert_same(nf.integrate(flow, start, TIMES, "dopri5", 1e-7, control="member"), path)
        finally:
            torch.set_num_threads(threads)
        some = [5, 0, 3]
        part = type(flow).__new__(type(flow))
        part.__dict__.update(vars(restricted(flow, (N,), torch.tensor(some))))
        few = nf.integrate(part, start[some], TIMES, "dopri5", 1e-7, control="member")
        assert torch.equal(few.z, path.z[:, some])


class Turning:
    """No gradient of f = −c log |det z| where w is not zero: the first member turns, the others grow."""

    dimension = None

    def __init__(self, w, c):
        self.w, self.c = w, c

    def __call__(self, z):
        return -self.c * torch.linalg.slogdet(z)[1]

    def gradient(self, z):
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        return -self.c[..., None, None] * torch.linalg.inv(z).mT - self.w[..., None, None] * (z @ turn)

    def select(self, members, index):
        return Turning(self.w[index], self.c[index])


def test_who_left_the_range_is_taken_back_to_where_it_was_itself(monkeypatch):
    """One takes its step in Python, since its Q is far off in a trial step, while others go on in C."""
    monkeypatch.setattr("neuralode_flow.time.arguments.check_derivatives", lambda *_: None)
    start = torch.stack([torch.eye(2), torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1e37, 1e30]))])
    loss = Turning(torch.tensor([2.5, 0.0, 0.0]), torch.tensor([0.0, 0.01, 0.2]))

    def run():
        flow = nf.IntrinsicFlow(loss, nf.LogMean())
        with pytest.warns(UserWarning, match="atol = 0.001 to"):
            return nf.integrate(flow, start, torch.arange(41.0), "RK23", 1e-3, 1e-3, control="member")

    path = run()
    assert_same(path, step_by_step(monkeypatch, run))
    assert path.stats["members"]["endings"][2] == "not_finite"
    assert float(path.z[-1, 2].max()) > 1e37


class Asked:
    """Half the squared distance, with a rate; counts z that its gradient was asked for, and raises where one says."""

    dimension = None
    number = 0

    def __init__(self, target, rate, bound=torch.inf, identity=True):
        self.target, self.rate, self.bound, self.identity = target, rate, bound, identity

    def __call__(self, z):
        return self.rate * (z - self.target).square().sum((-2, -1)) / 2

    def gradient(self, z):
        Asked.number += len(z)
        if bool((z[..., 0, 0] > self.bound).any()) or not (self.identity or bool((z[..., 0, 1] != 0).all())):
            raise torch.linalg.LinAlgError("did not converge")
        return self.rate[..., None, None] * (z - self.target)

    def select(self, members, index):
        return Asked(self.target[index], self.rate[index], self.bound, self.identity)


def asked(run):
    """A run, and of how many z it asked."""
    Asked.number = 0
    return run(), Asked.number


def test_members_that_rest_are_hardly_asked_for(monkeypatch):
    rate = torch.ones(60)
    rate[0] = 500.0
    loss = Asked(torch.linspace(1.5, 2, 60)[:, None, None] * torch.eye(2), rate)

    def run():
        times = [0.0, 1.0, 2.0, 3.0]
        return nf.integrate(nf.FiniteFlow(3, loss), torch.zeros(60, 3, 2, 2), times, "DOP853", 1e-6, control="member")

    (path, number), (known, before) = asked(run), step_by_step(monkeypatch, lambda: asked(run))
    assert_same(path, known)
    assert number < 1.3 * before, (number, before)


def test_what_a_loss_raises_costs_what_it_does_step_by_step(monkeypatch):
    """One member fails late; and a loss that fails at z = I, where nobody is, since all start elsewhere."""
    target = torch.linspace(2, 10, 4)[:, None, None] * torch.eye(2)
    late = Asked(target, torch.ones(4), bound=9.9)
    mixed = Asked(target + 0.5, torch.linspace(1, 5, 4), identity=False)
    for loss, start, ending in (
        (late, torch.zeros(4, 3, 2, 2), "velocity"),
        (mixed, 0.1 * torch.ones(4, 3, 2, 2), "ok"),
    ):

        def run(loss=loss, start=start):
            return nf.integrate(nf.FiniteFlow(3, loss), start, [0.0, 1.0, 20.0], "RK23", 1e-5, control="member")

        (path, number), (known, before) = asked(run), step_by_step(monkeypatch, lambda: asked(run))
        assert_same(path, known)
        assert path.ending == ending
        assert number < before + 4 * 4 * 3 * explicit._ROUNDS_ASKED  # that of four calls again


def test_somebody_looks_at_the_clock_between_gradients_that_take_long():
    class Slow(Asked):
        def gradient(self, z):
            time.sleep(0.002)
            return super().gradient(z)

        def select(self, members, index):
            return Slow(self.target[index], self.rate[index])

    flow = nf.FiniteFlow(3, Slow(5 * torch.eye(2).expand(4, 2, 2), torch.ones(4)))
    begun = time.monotonic()
    path = nf.integrate(flow, torch.zeros(4, 3, 2, 2), [0, 50.0], "RK23", 1e-9, control="member", max_seconds=0.3)
    assert path.ending == "seconds"
    assert time.monotonic() - begun < 5  # 256 steps without a look take far more gradients than these


def test_a_budget_may_be_larger_than_any_number_of_c():
    loss = losses()[0]
    for _, flow, start in flows(loss):
        path = nf.integrate(flow, start, TIMES, "DOP853", control="member", max_evaluations=10**30)
        assert_same(path, nf.integrate(flow, start, TIMES, "DOP853", control="member"))


def test_when_the_first_member_crossed_does_not_depend_on_how_many_steps_a_call_takes(monkeypatch):
    """One crosses late in few steps, one early in many."""
    flip, entries = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[100.0, 1.0], [1.0, 100.0]])

    class Weighted:
        dimension = None

        def __init__(self, weights):
            self.weights = weights

        def __call__(self, z):
            return (self.weights * (z - flip).square()).sum((-2, -1)) / 2

        def gradient(self, z):
            return self.weights * (z - flip)

        def select(self, members, index):
            return Weighted(self.weights[index])

    one = nf.relaxed_balanced_layers(torch.tensor([[0.1, 0.03], [-0.02, 0.12]]), torch.zeros(2))
    flow = nf.FiniteFlow(2, Weighted(torch.stack([0.1 * torch.ones(2, 2), 0.2 * entries])))

    def run():
        start = one.expand(2, 2, 2, 2)
        return nf.integrate(flow, start, [0.0, 900.0], "DOP853", 1e-3, control="member").status

    said = set()
    for rounds in (3, 256):
        monkeypatch.setattr(explicit, "_ROUNDS_ASKED", rounds)
        said.add(run())
    assert len(said) == 1
    assert "det z has changed its sign" in said.pop()


def test_a_flow_that_takes_single_steps_alone_keeps_them():
    class Other:
        """A stranger with the capability of whole steps."""

        calls = 0

        def __init__(self, flow):
            self.flow, self.loss = flow, flow.loss

        def explicit_steps(self, *given):
            Other.calls += 1
            return self.flow.explicit_steps(*given)

    for name in ("velocity", "product", "law", "check", "knows_steps"):
        setattr(Other, name, lambda self, state, name=name: getattr(self.flow, name)(state))
    flow = Other(nf.FiniteFlow(3, nf.Quadratic(2 * torch.eye(2))))
    path = nf.integrate(flow, torch.zeros(3, 2, 2), [0.0, 1.0], "DOP853")
    assert path.status == "ok"
    assert Other.calls >= path.stats["steps"] > 1


def test_a_member_of_several_z_ends_where_one_of_them_leaves_the_range(monkeypatch):
    class Summed(Falling):
        def __call__(self, z):
            return super().__call__(z).sum(-1)

        def select(self, members, index):
            return Summed(self.c[index])

    flow = nf.IntrinsicFlow(Summed(torch.tensor([[0.1, 0.2], [1.0, 0.1]])), nf.LogMean())
    start = torch.diag(torch.tensor([1.0, 0.3])).expand(2, 2, 2, 2).clone()

    def run():
        return nf.integrate(flow, start, [0.0, 1.0, 150.0], "RK23", 1e-3, control="member")

    path = run()
    assert_same(path, step_by_step(monkeypatch, run))
    assert path.stats["members"]["endings"] == ["ok", "not_finite"]


@pytest.mark.slow
def test_runs_in_modes_of_torch_are_the_same():
    loss = losses()[0]
    for name, flow, start in flows(loss):

        def run(flow=flow, start=start):
            return nf.integrate(flow, start, [0.0, 0.1, 0.3], "DOP853", 1e-7, control="member")

        path = run()
        with torch.inference_mode():
            assert_same(run(), path, name)
        with Seen() as seen:
            watched = run()
        assert watched.status == "ok"
        assert seen.operations > 1000  # each velocity is torch's own there
        assert_close(watched.z, path.z, rtol=0, atol=1e-6, msg=f"{name}: {{}}".format)
