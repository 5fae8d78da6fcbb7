"""The measured error in time is the true one, whatever the method, the distance of the outputs and the tolerance."""

import math
from functools import cache

import pytest
import scipy.integrate
import torch
from cases import distance, generator, randn

import neuralode_flow as nf
from neuralode_flow import exact
from neuralode_flow.time.base import fixed_steps, one_step
from neuralode_flow.time.resolution import unwarned

TARGET = torch.tensor([2.0, 0.5])
BEGIN = torch.tensor([1.3, 0.8])
LIMIT = nf.IntrinsicFlow(nf.Quadratic(torch.diag(TARGET)), nf.LogMean())
FIXED = [name for name in nf.METHODS if fixed_steps(nf.METHODS[name])]
ADAPTIVE = [name for name in nf.METHODS if name not in FIXED]
ITERATED = (
    "implicit_adams",
    "fixed_adams",
    "implicit_midpoint",
)  # whose sweeps do not converge at large steps: they say so


def run(method, times, **options):
    return nf.integrate(LIMIT, torch.diag(BEGIN), times, method, estimate=True, **options)


def check(path):
    """The estimate holds to a factor of three from below, and is not idle from above."""
    truth = torch.diag_embed(exact.aligned_limit(path.times, BEGIN, TARGET))
    true = distance(path.z, truth)
    assert true <= 3 * float(path.time_error.max())
    assert float(path.time_error.max()) <= 100 * true + 1e-12


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize(("end", "outputs"), [(1.0, 3), (0.3, 31), (1e-3, 2)])
def test_the_error_of_adaptive_methods_is_measured_at_all_distances_of_outputs(method, end, outputs):
    for rtol in (1e-2, 1e-5):
        path = run(method, torch.linspace(0, end, outputs), rtol=rtol, atol=rtol / 100)
        assert path.ending in ("ok", "accuracy")
        check(path)
        # "ok" is said of what is within the tolerance.
        allowed = 10 * (rtol / 100 + rtol * torch.linalg.matrix_norm(path.z))
        assert (path.ending == "ok") == bool((path.error <= allowed).all())


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("step", [None, 0.05])
def test_the_error_of_fixed_steps_is_measured_at_all_distances_of_outputs(method, step):
    for end, outputs in ((1.0, 3), (0.3, 31), (1e-3, 2)):
        if method in ITERATED and end == 1.0:
            continue
        path = run(method, torch.linspace(0, end, outputs), step=step)
        assert path.status == "ok"  # there is no tolerance to miss
        check(path)


@cache
def unknown_run(seed):
    """A flow with its start, and z of an accurate run, which is the same for all methods."""
    target = torch.eye(3) + 0.5 * randn(3, 3, seed=seed)
    flow = nf.IntrinsicFlow(nf.Quadratic(target), [nf.LogMean(), nf.TwoLayer(0.5)][seed % 2])
    start = torch.eye(3) + 0.2 * randn(3, 3, seed=100 + seed)
    return flow, start, nf.integrate(flow, start, [0.0, 0.5, 1.0], "DOP853", rtol=1e-12, atol=1e-14).z


BOUNDED = ["Radau", "rodas5p", "DOP853", "RK23", "dopri5", "LSODA", "BDF", "CVODE_BDF", "CVODE_Adams", "auto"]


@pytest.mark.parametrize("method", BOUNDED)
def test_the_error_is_bounded_by_what_is_said(method):
    """Also where equations are solved, which a companion of the same tolerances solves as badly."""
    for seed in range(12 if method != "Radau" else 24):
        (flow, start, truth), rtol = unknown_run(seed), 10.0 ** -(3 + seed % 5)
        path = nf.integrate(flow, start, [0.0, 0.5, 1.0], method, rtol=rtol, atol=rtol / 100, estimate=True)
        true = torch.linalg.matrix_norm(path.z - truth)
        assert (true <= 1.02 * path.time_error + 1e-11).all()


@pytest.mark.parametrize(("seed", "outputs", "rtol"), [(1, 11, 1e-3), (19, 40, 1e-5)])
def test_what_radau_leaves_of_its_equations_is_a_part_of_its_error_and_not_of_that_of_its_companion(
    seed, outputs, rtol
):
    """Steps of half the size, solved to the same, or a thirtieth of it, were up to 2.5 times the stated error off."""
    d = 2 + seed % 3
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 8), nf.Quadratic(torch.eye(d) + 0.5 * randn(d, d, seed=seed)))
    start, times = flow.sample(nf.smooth(d, 1.0, generator(seed))), torch.linspace(0, 1, outputs)
    truth = nf.integrate(flow, start, times, "DOP853", rtol=1e-12, atol=1e-14).z
    path = nf.integrate(flow, start, times, "Radau", rtol=rtol, atol=rtol / 100, estimate=True)
    assert (torch.linalg.matrix_norm(path.z - truth) <= 1.02 * path.time_error + 1e-11).all()


@pytest.mark.parametrize("method", ["Radau", "BDF"])
def test_equations_are_solved_well_within_the_tolerance_where_that_is_an_absolute_one(method, monkeypatch):
    """Flows in logarithms have the least rtol, of which SciPy makes a tenth of the tolerance."""
    kind, seen = getattr(scipy.integrate, method), set()
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda self: seen.add(self.newton_tol) or step(self))
    flow, start, _ = unknown_run(0)
    nf.integrate(flow, start, [0.0, 0.5], method, rtol=1e-6, atol=1e-8)
    assert max(seen) <= 1e-3
    seen.clear()
    plain = nf.FactorizationFlow(lambda theta: theta.reshape(2, 2), nf.Quadratic(torch.eye(2)))
    nf.integrate(plain, torch.zeros(4) + 0.1, [0.0, 0.5], method, rtol=1e-6, atol=1e-8)
    assert seen == {1e-3}  # SciPy's own


def test_an_iteration_that_the_companion_cannot_solve_leaves_the_error_unknown_and_says_so():
    path = run("implicit_adams", torch.linspace(0, 1, 3))
    assert path.ending == "accuracy"
    assert "known up to t = 0.5 only: implicit_adams" in path.status
    assert path.time_error.isnan().tolist() == [False, False, True]


def test_outputs_closer_than_half_a_step_do_not_make_euler_exact():
    path = run("euler", torch.linspace(0, 1, 101), step=0.05)
    truth = torch.diag_embed(exact.aligned_limit(path.times, BEGIN, TARGET))
    assert float(path.time_error.max()) == pytest.approx(distance(path.z, truth), rel=0.1)


@pytest.mark.parametrize(
    ("method", "times", "budget"),
    [
        ("dopri5", [0.0, 0.5], 52),
        ("dopri5", [0.0, 1.0, 9.0], 400),
        ("DOP853", [0.0, 2.0], 250),
        ("auto", [0.0, 30.0], 150),
    ],
)
def test_a_companion_that_ends_early_leaves_the_last_error_unknown_and_says_so(method, times, budget):
    # The budget lets the run end, and not its companion.
    whole = run(method, times, rtol=1e-9, atol=1e-11)
    spent = whole.stats["evaluations"]
    for budget_now in sorted({budget, spent, spent + 1, (spent + whole.stats["estimate_evaluations"]) // 2}):
        path = run(method, times, rtol=1e-9, atol=1e-11, max_evaluations=budget_now)
        known = ~path.time_error.isnan()
        truth = torch.diag_embed(exact.aligned_limit(path.times, BEGIN, TARGET))
        true = torch.linalg.matrix_norm(path.z - truth)
        assert bool((true[known] <= 3 * path.time_error[known]).all())
        assert path.ending == ("accuracy" if budget_now >= spent else "evaluations")
        if path.ending == "accuracy":
            assert not known[-1]
        if not known.all():
            assert f"is known up to t = {float(path.times[known][-1]):.6g} only: the budget of" in path.status
    with pytest.raises(nf.IntegrationError, match="known up to"):
        run(method, times, rtol=1e-9, atol=1e-11, max_evaluations=spent, throw=True)


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "DOP853", "LSODA"])
def test_the_error_at_an_event_is_that_of_its_very_time(method):
    step = {"step": 0.02} if method in FIXED else {"rtol": 1e-4, "atol": 1e-6}
    path = run(method, [0.0, 3.0], stop={"loss": 0.05}, **step)
    assert path.ending == "loss"
    assert not path.time_error.isnan().any()
    check(path)


def test_an_error_above_the_tolerance_is_also_said_of_a_run_that_an_event_ended():
    steep = nf.IntrinsicFlow(nf.Quadratic(20 * torch.eye(2)), nf.LogMean())
    times = torch.linspace(0, 6, 25)
    path = nf.integrate(
        steep, 0.01 * torch.eye(2), times, "bosh3", 1e-3, 1e-3, estimate=True, stop={"time": 5.0}
    )  # fmt: skip
    assert path.ending == "time"
    assert "the error of z was measured as" in path.status
    assert path.status.endswith("use smaller tolerances than rtol = 0.001, atol = 0.001")


def test_the_member_of_a_batch_with_the_largest_error_is_named():
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.stack([torch.eye(2), 20 * torch.eye(2)])), nf.LogMean())
    start = torch.stack([torch.eye(2), 0.01 * torch.eye(2)])
    path = nf.integrate(flow, start, torch.linspace(0, 6, 25), "bosh3", 1e-3, 1e-3, estimate=True)
    assert path.ending == "accuracy"
    assert "the error of z of member 1 of 2 was measured as" in path.status


@pytest.mark.parametrize("method", ["dopri5", "DOP853", "rk4", "auto"])
def test_an_estimate_is_the_same_after_a_resumption(method, tmp_path):
    times, file = torch.linspace(0, 2, 4), tmp_path / "run.npz"
    options = {"step": 0.05} if method in FIXED else {"rtol": 1e-6, "atol": 1e-8}
    whole = run(method, times, **options)
    short = run(method, times, **options, checkpoint=file, max_evaluations=whole.stats["evaluations"] // 2)
    assert short.ending == "evaluations"
    again = run(method, times, **options, checkpoint=file)
    read = run(method, times, **options, checkpoint=file)
    assert again.status == "ok"
    if one_step(nf.METHODS[method]):
        assert torch.equal(again.time_error, whole.time_error)
    check(again)
    assert torch.equal(read.time_error, again.time_error)


def test_the_error_on_a_depth_grid_that_follows_W_is_measured():
    z0 = torch.tensor([[1.2, 0.4], [-0.3, 0.9]])
    loss, times = nf.Quadratic(torch.diag(TARGET) + 0.3 * randn(2, 2, seed=1)), torch.linspace(0, 1, 21)
    truth = nf.integrate(nf.IntrinsicFlow(loss, nf.LogMean()), z0, times, "DOP853", 1e-12, 1e-13)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), loss)
    path = nf.integrate(flow, nf.relaxed_balanced(z0), times, "dopri5", 1e-4, 1e-6, adapt=True, estimate=True)
    assert path.status == "ok"
    assert distance(path.z, truth.z) <= 3 * float(path.error.max())
    assert math.isfinite(float(path.time_error.max()))


def coarse(seed, panels=2, order=4, d=2):
    """A flow on a coarse grid, what it starts from, and the truth at given times."""
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(panels, order), nf.Quadratic(1.5 * randn(d, d, seed=seed)))
    start = nf.smooth(d, 2.0, generator(seed))
    fine = flow.on(nf.DepthGrid.gauss(4, 16))
    return flow, start, lambda times: nf.integrate(fine, start, times, "DOP853", rtol=1e-12, atol=1e-14).z


@pytest.mark.parametrize("adapt", [False, True])
def test_the_error_of_a_coarse_grid_is_measured_with_all_that_it_did_on_the_way(adapt):
    """What the grid makes of the last W is a part of it: of one that stays the guess is short, what is measured not."""
    short, times = 0, torch.linspace(0, 1, 3)
    for seed in range(8):
        flow, start, truth = coarse(seed, 2, 3 + seed // 2 % 2)
        rtol = 1e-4 if adapt else 1e-7
        options = {"method": "DOP853", "rtol": rtol, "atol": rtol / 10, "adapt": adapt}
        guessed, path = (nf.integrate(flow, start, times, **options, estimate=say) for say in (False, True))
        true = torch.linalg.matrix_norm(path.z - truth(times))
        assert torch.equal(path.z, guessed.z)
        assert (true <= path.error).all()
        assert (path.error <= 3 * true.cummax(0).values + 2 * path.time_error).all()
        short += bool((true > 2 * guessed.depth_error + path.time_error).any())
    assert (short == 0) == adapt


@pytest.mark.parametrize("method", ["euler", "rk4", "LSODA", "auto", "Radau", "CVODE_BDF"])
def test_the_error_of_a_coarse_grid_is_measured_by_all_methods_and_for_a_batch(method):
    flow, start, truth = coarse(3, 1, 4)
    options = {"step": 0.02} if method in FIXED else {"rtol": 1e-4, "atol": 1e-6}
    times = [0.0, 0.5, 1.0]
    path = nf.integrate(flow, start, times, method, estimate=True, **options)
    assert (torch.linalg.matrix_norm(path.z - truth(times)) <= 1.1 * path.error).all()
    state = flow.sample(start)  # of which W alone is known, a polynomial on each panel
    one, both = (
        nf.integrate(flow, states, times, method, estimate=True, **options)
        for states in (state, torch.stack([0.1 * state, state]))
    )
    assert float(both.depth_error[-1]) == pytest.approx(float(one.depth_error[-1]), rel=0.1)


def test_a_trajectory_says_whether_its_error_in_depth_is_a_guess():
    flow, start, _ = coarse(3, 1, 4)
    guessed, path = (nf.integrate(flow, start, [0.0, 0.5], estimate=say)._repr_html_() for say in (False, True))
    assert "estimated" in guessed
    assert "of it in depth" in path
    assert "estimated" not in path


def test_a_grid_that_resolves_W_costs_no_further_run():
    flow, start, _ = coarse(1, 4, 12)
    path = nf.integrate(flow, start, [0.0, 1.0], "DOP853", estimate=True)
    assert path.status == "ok"
    assert path.stats["estimate_evaluations"] < 3 * path.stats["evaluations"]
    coarser = nf.integrate(flow.on(nf.DepthGrid.gauss(1, 4)), start, [0.0, 1.0], "DOP853", estimate=True)
    assert coarser.stats["estimate_evaluations"] > 2.5 * coarser.stats["evaluations"]


def test_a_coarse_grid_is_the_reason_where_it_makes_most_of_the_error():
    """The guess is below ten tolerances, and what was measured is not."""
    flow, start, truth = coarse(2, 2, 4)
    options = {"method": "DOP853", "rtol": 1e-6, "atol": 1.5e-5}
    times = torch.linspace(0, 1, 3)
    assert nf.integrate(flow, start, times, **options).status == "ok"
    path = nf.integrate(flow, start, times, **options, estimate=True)
    assert (
        torch.linalg.matrix_norm(path.z - truth(times)) > 10 * (1.5e-5 + 1e-6 * torch.linalg.matrix_norm(path.z))
    ).any()
    assert path.ending == "accuracy"
    assert path.status.endswith("most of it is that of the depth grid; use more nodes, or larger tolerances")


def test_a_status_that_guesses_what_a_grid_makes_has_what_was_measured_beside_it():
    flow, start, _ = coarse(2, 2, 4)
    path = nf.integrate(flow, start, [0.0, 0.5, 1.0], "DOP853", estimate=True)
    assert path.ending == "depth"
    assert path.status.endswith(f"; as a finer grid measures it, by up to {float(path.depth_error.max()):.2g}")


def test_what_a_coarse_grid_makes_is_the_same_after_a_resumption(tmp_path):
    flow, start, _ = coarse(3, 1, 4)
    file, times = tmp_path / "run.npz", [0.0, 1.0, 2.0]
    whole = nf.integrate(flow, start, times, "DOP853", estimate=True)
    budget = whole.stats["evaluations"] - 20
    early = nf.integrate(flow, start, times, "DOP853", estimate=True, checkpoint=file, max_evaluations=budget)
    assert early.ending == "evaluations"
    for _ in range(2):  # the second one reads all
        again = nf.integrate(flow, start, times, "DOP853", estimate=True, checkpoint=file)
        assert torch.equal(again.depth_error, whole.depth_error)
        assert torch.equal(again.time_error, whole.time_error)
    assert {path.name for path in tmp_path.glob("*.npz")} > {"run.fine.npz", "run.npz", "run.tight.npz"}


def test_a_finer_grid_that_does_not_get_there_leaves_the_guess_and_says_so(monkeypatch):
    flow, start, _ = coarse(3, 1, 4)
    velocity = nf.ContinuousFlow.velocity
    monkeypatch.setattr(nf.ContinuousFlow, "velocity", lambda self, W: velocity(self, W) / (len(self.grid) < 8))
    path = nf.integrate(flow, start, [0.0, 1.0], "DOP853", 0.1, estimate=True)
    assert path.ending == "accuracy"
    assert "the error in depth is measured, and not guessed, up to t = 0 only: " in path.status
    assert path.depth_error.isfinite().all()


class Decaying(nf.ContinuousFlow):
    """Weights decay, at a rate of its own."""

    def __init__(self, grid, loss, *, rate):
        super().__init__(grid, loss)
        self.decay = rate

    def velocity(self, state):
        return super().velocity(state) - self.decay * state

    def law(self, state):
        return state.new_empty(0, 2, 2)


class Driven(nf.MomentumFlow):
    """Inertia, and a push of its own."""

    def velocity(self, state):
        return super().velocity(state) + 0.3 * torch.ones_like(state)


class Doubled(nf.ModifiedFlow):
    """Another flow of steps, whose rate has a default."""

    def __init__(self, flow, scale=1.0):
        super().__init__(flow, 0.02)
        self.scale = scale

    def velocity(self, state):
        return self.scale * super().velocity(state)


OWN = {"plain": lambda flow: flow, "momentum": lambda flow: Driven(flow, 0.5), "steps": lambda flow: Doubled(flow, 2.0)}


def decaying(own, *size):
    return OWN[own](Decaying(nf.DepthGrid.gauss(*size), nf.Quadratic(1.5 * randn(2, 2, seed=3)), rate=0.5))


@cache
def on_many_nodes(own):
    return nf.integrate(decaying(own, 4, 16), coarse(3)[1], [0.0, 0.5, 1.0], "DOP853", 1e-12, 1e-14).z


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("own", OWN)
def test_a_flow_of_ones_own_class_stays_itself_on_another_grid(own, adapt):
    """A grid that follows W, and the one that measures another, go on with the velocity of that class."""
    few = decaying(own, 1, 6)
    assert type(few.on(nf.DepthGrid.gauss(2, 8))) is type(few)
    path = nf.integrate(few, coarse(3)[1], [0.0, 0.5, 1.0], "DOP853", 1e-6, 1e-8, adapt=adapt, estimate=True)
    true = torch.linalg.matrix_norm(path.z - on_many_nodes(own))
    assert (true <= path.error).all()
    assert (path.error <= 3 * true.cummax(0).values + 2 * path.time_error + 1e-12).all()


def test_a_flow_that_is_for_its_own_grid_alone_keeps_the_guess():
    class Weighted(nf.ContinuousFlow):
        def __init__(self, grid, loss):
            super().__init__(grid, loss)
            self.weight = 1 + 0.1 * grid.nodes[:, None, None]

        def velocity(self, W):
            return self.weight * super().velocity(W)

    flow, start, _ = coarse(2, 2, 4)
    own = Weighted(flow.grid, flow.loss)
    guessed, path = (nf.integrate(own, start, [0.0, 1.0], "DOP853", estimate=say) for say in (False, True))
    assert torch.equal(path.depth_error, guessed.depth_error)
    assert path.time_error.isfinite().all()


class Pulled(nf.ContinuousFlow):
    """A flow with a term that pulls W to values on its nodes."""

    def __init__(self, grid, loss, target):
        super().__init__(grid, loss)
        self.target = target

    def velocity(self, state):
        return super().velocity(state) - 0.1 * (state - self.target)


class Moving(Pulled):
    """One that takes these values to another grid."""

    def on(self, grid):
        moved = super().on(grid)
        moved.target = self.transfer(self.target, grid)
        return moved


class Bounded(nf.Quadratic):
    """A loss that says no to what is far from the map of a coarse grid."""

    def __init__(self, target, most):
        super().__init__(target)
        self.most = most

    def gradient(self, z):
        if float(torch.linalg.det(z)) > self.most:
            raise ValueError("det z is above what the data allow")
        return super().gradient(z)


def test_a_loss_that_refuses_z_on_a_finer_grid_says_so_itself():
    def start(s):  # the nodes of the coarse grid see little of the peak
        return torch.diag(torch.tensor([6 * math.exp(-(((s - 0.5) / 0.05) ** 2)), 0.1]))

    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), Bounded(torch.eye(2), 1.5))
    assert float(torch.linalg.det(flow.product(unwarned(flow, start)))) < 1.5
    with pytest.raises(ValueError, match=r"\Adet z is above what the data allow"):
        nf.integrate(flow, start, [0.0, 0.1], adapt=True)


@pytest.mark.parametrize("own", [lambda flow: flow, lambda flow: nf.MomentumFlow(flow, 1.0)], ids=["flow", "momentum"])
@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_flow_that_is_for_its_own_grid_alone_is_told_so_where_the_grid_is_to_follow(own, rough, sampled):
    """It ended in torch's sentence on sizes of tensors, at the start or where the grid was first coarsened."""

    def start(s):
        return torch.tensor([[0.0, 3 * s**3], [torch.sin(torch.tensor(9 * s)), 1.0]]) if rough else 0.1 * torch.eye(2)

    grid, loss = nf.DepthGrid.gauss(1, 4 if rough else 16), nf.Quadratic(2 * torch.eye(2))
    target = torch.ones(len(grid), 2, 2)
    flow, same = (own(kind(grid, loss, target)) for kind in (Pulled, Moving))
    first = start if sampled else unwarned(flow, start)
    said = (
        r"adapt=True puts \w+ on other depth grids, and what it holds is for its own of 1 × 1?[46] nodes alone \(.*\)"
    )
    with pytest.raises(ValueError, match=said):
        nf.integrate(flow, first, [0.0, 1.0, 2.0], "dopri5", adapt=True)
    path = nf.integrate(same, first, [0.0, 1.0, 2.0], "dopri5", adapt=True)
    assert [*path.stats["grid"]] != [grid.panels, grid.order]
    assert path.z.isfinite().all()
