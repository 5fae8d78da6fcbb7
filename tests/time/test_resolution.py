"""What a run says of a start that its depth grid does not resolve."""

import math
import warnings

import pytest
import torch
from cases import relaxed_profile, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth.grid import sample
from neuralode_flow.time.resolution import round_off

LOSS = nf.Quadratic(torch.eye(2))
A, B = torch.tensor([[0.2, 0.9], [-0.6, 0.1]]), torch.tensor([[0.7, 0.5], [-0.4, 0.3]])
EXP = torch.linalg.matrix_exp


def jump(x):
    """A until depth x, A + B from there on, and its end-to-end map."""
    return (lambda s: A + B if s > x else A), EXP((1 - x) * (A + B)) @ EXP(x * A)


def bump(center, width, size):
    return lambda s: A + size * math.exp(-(((s - center) / width) ** 2)) * B


def true_map(W, pieces):
    """P(1,0) on panels of 16 nodes in each of `pieces`, on which W is smooth."""
    fine, z = nf.DepthGrid.gauss(8, 16), torch.eye(2)
    for a, b in pieces:
        values = torch.stack([(b - a) * W(a + (b - a) * s) for s in fine.nodes.tolist()])
        z = nf.Collocation(fine).product(values) @ z
    return z


def begun(grid, W, **options):
    return nf.integrate(nf.ContinuousFlow(nf.DepthGrid.gauss(*grid), LOSS), W, [0.0, 1e-3], "DOP853", **options)


@pytest.mark.parametrize("x", [0.137, 0.02, 0.26, 0.4987, 0.77, 0.999])
@pytest.mark.parametrize("grid", [(4, 6), (1, 4), (3, 5), (2, 12)])
def test_a_jump_inside_a_panel_is_measured_where_the_profile_is_known(grid, x):
    W, z = jump(x)
    path = begun(grid, W)
    true = float(torch.linalg.matrix_norm(path.z[0] - z))
    assert path.ending == "depth"
    assert true / 2 < float(path.depth_error[0]) < 3 * true + 2e-3


@pytest.mark.parametrize("x", [0.25, 0.5, 0.75])
def test_a_jump_at_the_edge_of_panels_is_resolved(x):
    W, z = jump(x)
    path = begun((4, 8), W)
    assert path.status == "ok"
    assert float(torch.linalg.matrix_norm(path.z[0] - z)) < 1e-11
    assert float(path.depth_error.max()) < 1e-10


@pytest.mark.parametrize(("center", "width", "size"), [(0.3137, 1e-3, 56.0), (0.71, 1.5e-3, -9.0), (0.0213, 3e-3, 4.0)])
@pytest.mark.parametrize("grid", [(4, 6), (1, 12)])
def test_a_bump_that_all_nodes_miss_is_measured(grid, center, width, size):
    W = bump(center, width, size)
    near = (center - 7 * width, center + 7 * width)
    z = true_map(W, [(0.0, near[0]), near, (near[1], 1.0)])
    path = begun(grid, W)
    true = float(torch.linalg.matrix_norm(path.z[0] - z))
    assert true > 0.005
    assert path.ending == "depth"
    assert true / 2 < float(path.depth_error[0]) < 2 * true


def test_an_adaptive_grid_follows_a_bump_and_says_what_is_left_of_it():
    W = bump(0.3137, 4e-3, 10.0)
    path = begun((1, 4), W, adapt=True, rtol=1e-6)
    assert path.status == "ok"
    assert path.stats["grid"][0] * path.stats["grid"][1] > 200
    z = true_map(W, [(0.0, 0.29), (0.29, 0.34), (0.34, 1.0)])
    assert float(torch.linalg.matrix_norm(path.z[0] - z)) < 1e-6
    assert begun((1, 4), bump(0.3137, 1e-4, 560.0), adapt=True).ending == "depth"


@pytest.mark.parametrize("W", [jump(0.137)[0], bump(0.3137, 1e-3, 56.0)])
@pytest.mark.parametrize("grid", [(4, 6), (2, 4)])
def test_a_state_that_cannot_tell_of_its_profile_is_said_when_it_is_sampled(W, grid):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(*grid), LOSS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state = flow.sample(W)
    told = flow.depth_error(state) > flow.misfit(state, W) / 10
    assert told or "z of the state is off by about" in str(said[0].message)
    path = nf.integrate(flow, state, [0.0, 1e-3], "DOP853")
    assert path.ending == "depth" or said


@pytest.mark.parametrize(
    ("grid", "x"), [((4, 6), 0.137), ((4, 6), 0.61), ((2, 8), 0.3), ((8, 12), 0.44), ((1, 16), 0.7)]
)
def test_the_state_of_a_jump_is_not_called_resolved(grid, x):
    W, z = jump(x)
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(*grid), LOSS)
    state = torch.stack([W(s) for s in flow.grid.nodes.tolist()])
    true = float(torch.linalg.matrix_norm(flow.product(state) - z))
    assert true / 10 < flow.depth_error(state) < 50 * true
    assert nf.integrate(flow, state, [0.0, 1e-3], "DOP853").ending == "depth"
    beside = torch.stack((smooth_profile(2, seed=0).at(flow.grid.nodes), state))
    assert flow.depth_error(beside) == flow.depth_error(state)


@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize("grid", [(1, 6), (4, 3), (4, 6), (8, 4), (16, 2)])
def test_smooth_starts_are_measured_to_a_fifth(grid, d):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(*grid), nf.Quadratic(torch.eye(d)))
    fine, smooth = nf.DepthGrid.gauss(16, 16), smooth_profile(d, seed=d, scale=2.0)
    relaxed = relaxed_profile(d, seed=d)
    for z, W in (relaxed, (nf.Collocation(fine).product(smooth.at(fine.nodes)), smooth)):
        state = W.at(flow.grid.nodes)
        true = float(torch.linalg.matrix_norm(flow.product(state) - z))
        assert 0.8 * true < flow.misfit(state, W) < 1.2 * true + 1e-14


@pytest.mark.parametrize("grid", [(1, 6), (4, 6), (8, 12)])
@pytest.mark.parametrize(
    "W", [jump(0.137)[0], bump(0.3137, 1e-2, 5.6), smooth_profile(2, seed=1), smooth_profile(2, 2, 9.0)]
)
def test_what_is_not_carried_through_depth_is_bounded(grid, W):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(*grid), LOSS)
    state = sample(W, flow.grid.nodes)
    assert flow.misfit(state, W) <= flow._misfit(state, W, enough=math.inf)
    assert flow._misfit(state, W, enough=flow.misfit(state, W) / 2) == flow.misfit(state, W)


def test_a_profile_whose_own_map_is_no_number_is_not_called_resolved():
    flow, W = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 6), LOSS), jump(0.5)[0]
    W.end_to_end = torch.full((2, 2), torch.nan)
    assert math.isnan(flow._misfit(sample(W, flow.grid.nodes), W, enough=math.inf))


def test_members_are_measured_each():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 6), LOSS)
    both = lambda s: torch.stack((A, jump(0.137)[0](s)))  # noqa: E731
    one = jump(0.137)[0]
    state = torch.stack([both(s) for s in flow.grid.nodes.tolist()], dim=1)
    assert flow.misfit(state, both) == pytest.approx(flow.misfit(state[1], one), rel=1e-9)


@pytest.mark.parametrize("layer", ["euler", "exp"])
def test_the_round_off_of_many_layers_in_single_precision_is_claimed(layer):
    target, L = torch.tensor([[1.5, 0.4], [-0.3, 1.2]]), 10_000
    paths = {}
    for dtype in (torch.float64, torch.float32):
        net = nf.FiniteFlow(L, nf.Quadratic(target.to(dtype)), layer)
        start = torch.tensor([[0.3, 0.8], [-0.5, 0.2]], dtype=dtype).expand(L, 2, 2)
        paths[dtype] = nf.integrate(net, start, [0.0, 0.2], "rk4", step=0.1, estimate=True)
    single = paths[torch.float32]
    true = float(torch.linalg.matrix_norm(single.z.double() - paths[torch.float64].z).max())
    assert true > 3e-5
    assert true < float(single.error.max()) < 100 * true


def test_a_run_whose_tolerance_the_round_off_exceeds_says_so():
    loss = nf.Quadratic(torch.eye(2, dtype=torch.float32))
    start = torch.full((3000, 2, 2), 0.4, dtype=torch.float32)
    path = nf.integrate(nf.FiniteFlow(3000, loss), start, [0.0, 1e-3], "dopri5", rtol=2e-5, atol=1e-6, estimate=True)
    assert path.ending == "accuracy"
    assert "round-off of torch.float32 in the product z; use float64" in path.status


def test_an_error_of_the_grid_is_not_blamed_on_the_steps_nor_on_round_off():
    """With a measured error in time beside it; smaller tolerances would help as little as another dtype."""
    coarse = begun((1, 4), lambda s: A + 3 * s * B, rtol=1e-8, atol=1e-10, estimate=True)
    assert coarse.ending == "depth"
    assert "use more nodes, or adapt=True; as a finer grid measures it, by up to" in coarse.status
    assert "time" not in coarse.status
    fine = begun((1, 8), lambda s: A + 3 * s * B, rtol=1e-13, atol=1e-13, estimate=True)
    assert fine.ending == "accuracy"
    assert fine.status.endswith("most of it is that of the depth grid; use more nodes, or larger tolerances")
    for adapted in (begun((4, 12), jump(0.37)[0], adapt=True, estimate=estimate) for estimate in (False, True)):
        assert adapted.ending == "depth"
        assert adapted.status.endswith("W is rough, or a larger tolerance is wanted")


def test_round_off_grows_with_the_number_of_factors():
    for L in (10, 1000, 100_000):
        net = nf.FiniteFlow(L, LOSS, "cayley")
        W = torch.tensor([[0.3, 0.8], [-0.5, 0.2]]).expand(L, 2, 2)
        z, single = net.product(W.float().double()), net.product(W.float()).double()
        assert float(torch.linalg.matrix_norm(single - z)) < round_off(net, torch.float32) * float(
            torch.linalg.matrix_norm(z)
        )
    assert round_off(nf.ContinuousFlow(nf.DepthGrid.gauss(64, 4), LOSS), torch.float64) < 1e-13
    assert round_off(nf.IntrinsicFlow(LOSS, nf.LogMean()), torch.float64) == 100 * torch.finfo(torch.float64).eps


def rough_beside_large():
    """A small z that the grid does not resolve, to an error that is nothing beside the large one; 10 nodes."""
    rough = 1e-7 * torch.randn(10, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    large = torch.full((10,), 100.0).log()[:, None, None] * torch.eye(2)
    return torch.stack((torch.eye(2), 100 * torch.eye(2))), torch.stack((rough, large)), 3e-4


def from_zero(*sizes):
    return torch.tensor(sizes)[:, None, None] * torch.eye(2), torch.zeros(len(sizes), 4, 2, 2), 1.0


@pytest.mark.parametrize(
    "given",
    [lambda: from_zero(1.0, 6.0, 12.0), lambda: from_zero(0.5, 1.0), lambda: from_zero(9.0, 12.0), rough_beside_large],
)
def test_each_member_is_told_whether_the_grid_resolves_it(given, tmp_path):
    targets, W, horizon = given()
    grid, times = nf.DepthGrid.gauss(1, W.shape[1]), [0.0, 0.3 * horizon, 0.7 * horizon, horizon]
    accuracy = "DOP853", 1e-9, 1e-12

    def flow(targets):
        return nf.ContinuousFlow(grid, nf.Quadratic(targets))

    alone = [nf.integrate(flow(target), start, times, *accuracy) for target, start in zip(targets, W, strict=True)]
    kept = {"control": "member", "checkpoint": tmp_path / "c.npz"}
    nf.integrate(flow(targets), W, times[:3], *accuracy, **kept)
    for path in (
        nf.integrate(flow(targets), W, times, *accuracy, **kept),
        nf.integrate(flow(targets), W, times, *accuracy, control="member"),
    ):
        assert path.stats["members"]["endings"] == [run.ending for run in alone]
        assert path.ending == ("depth" if "depth" in path.stats["members"]["endings"] else "ok")


def test_tolerances_hold_the_depth_grid_of_steps_of_a_given_size_too():
    """They are no settings without effect there: the steps are the same, the verdict and the grid are not."""
    flow, W = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 4), LOSS), smooth_profile(2, seed=0, scale=1.5)
    loose, tight, adapted = (
        nf.integrate(flow, W, [0.0, 0.5, 1.0], "rk4", rtol, rtol / 100, step=0.1, adapt=adapt)
        for rtol, adapt in ((1e-2, False), (1e-10, False), (1e-10, True))
    )
    assert torch.equal(loose.z, tight.z)
    assert (loose.ending, tight.ending, adapted.ending) == ("ok", "depth", "ok")
    assert adapted.stats["grid"][1] > 4


class Failing(nf.ContinuousFlow):
    """One whose error in depth cannot be estimated on a finer grid than the first."""

    def __init__(self, grid, loss):
        super().__init__(grid, loss)
        self.first = grid

    def polynomial_error(self, state):
        if self.grid is not self.first:
            raise torch.linalg.LinAlgError("the collocation equations are singular")
        return super().polynomial_error(state)


def test_a_failure_on_a_finer_grid_is_one_of_the_state_and_not_of_the_flow():
    flow = Failing(nf.DepthGrid.gauss(1, 4), nf.Quadratic(torch.tensor([[0.0, -9.0], [9.0, 0.0]])))
    path = nf.integrate(flow, lambda s: 0.1 * torch.eye(2), [0.0, 1.0], "dopri5", adapt=True)
    assert (path.ending, "could not be estimated" in path.status) == ("velocity", True), path.status
    assert "the collocation equations are singular" in path.status


def test_a_grid_that_was_left_is_the_one_that_is_named(tmp_path):
    def W(s):
        return torch.tensor([[0.0, 3 * s**3], [math.sin(9 * s), 1.0]])

    grid = nf.DepthGrid.gauss(1, 4)
    start = sample(W, grid.nodes)

    def run(times, **options):
        return nf.integrate(nf.ContinuousFlow(grid, LOSS), start, times, "DOP853", adapt=True, **options)

    path = run([0.0, 0.25, 0.5])
    assert path.stats["grid"] == [2, 16]
    assert path.ending == "depth"
    said = "the depth grid of 1 × 4 nodes, which was left for one of 2 × 16, did not resolve W: z is off by about "
    assert path.status.startswith(said)
    assert path.status.endswith("; start on more nodes")
    run([0.0, 0.25], checkpoint=tmp_path / "run.npz")
    longer = run([0.0, 0.25, 0.5], checkpoint=tmp_path / "run.npz")
    assert longer.status == path.status


def test_more_nodes_come_by_a_smaller_tolerance_where_one_has_chosen_the_grid():
    def W(s):
        return torch.tensor([[0.0, 3 * s**3], [math.sin(9 * s), 1.0]])

    grid = nf.DepthGrid.auto(W, 0.5)
    flow = nf.ContinuousFlow(grid, LOSS)
    assert (grid.panels, grid.order) == (1, 4)
    times = [0.0, 0.01]
    said = [
        nf.integrate(flow, W, times, "DOP853").status,
        nf.integrate(flow, W, times, "rk4", step=0.005).status,
        nf.descend(flow, W, 2, "gd", 0.005).status,
        nf.integrate(flow, sample(W, grid.nodes), times, "DOP853", adapt=True).status,
    ]
    with pytest.warns(RuntimeWarning, match="is off by about") as warned:
        flow.sample(jump(0.37)[0])  # of another start than the one that it was chosen for
    said.append(str(warned[0].message))
    ends = (
        "; use more nodes, by a smaller tol, or adapt=True",
        "; use more nodes, by a smaller tol, or adapt=True",
        "; use more nodes, by a smaller tol",
        "; start on more nodes, by a smaller tol",
        "; use more nodes, by a smaller tol, or W0 itself in integrate(flow, W0, times, adapt=True)",
    )
    for text, end in zip(said, ends, strict=True):
        assert text.endswith(end), text
    line = lambda s: A + 3 * s * B  # noqa: E731
    fine = nf.ContinuousFlow(nf.DepthGrid.auto(line, 1e-5), LOSS)
    exact = nf.integrate(fine, line, [0.0, 1e-3], "DOP853", rtol=1e-13, atol=1e-13, estimate=True)
    assert exact.status.endswith("use more nodes, by a smaller tol, or larger tolerances")


FAR = torch.tensor([[2.0, 1.0], [0.0, 1.0]])


def turning(twist):
    J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    return nf.relaxed_balanced(torch.eye(2), shift=lambda s: 0.5 * s, twist=lambda s: twist * s * J)


FOLLOWING = {
    "gradient": lambda flow: flow,
    "steps": lambda flow: nf.ModifiedFlow(flow, 0.2),
    "undamped": lambda flow: nf.MomentumFlow(flow, 0.0),
    "damped": lambda flow: nf.MomentumFlow(flow, 0.5),
}


@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
@pytest.mark.parametrize("twist", [0.0, 6.0])
@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_grid_that_follows_w_makes_no_more_of_the_error_than_the_steps_in_time(kind, twist, rtol):
    """What a coarse grid makes of the velocity stays in W, and what inertia makes of that grows, on any finer one."""
    start, loss, times = turning(twist), nf.Quadratic(FAR), [0.0, 0.1, 1.0, 3.0, 10.0]

    def z(panels, order, rtol, adapt=False):
        flow = FOLLOWING[kind](nf.ContinuousFlow(nf.DepthGrid.gauss(panels, order), loss))
        path = nf.integrate(flow, start, times, "DOP853", rtol, rtol / 100, adapt=adapt)
        assert path.status == "ok"
        return path.z

    true = z(4, 14, 1e-11)
    in_time, found = (torch.linalg.matrix_norm(one - true).max() for one in (z(4, 14, rtol), z(1, 4, rtol, adapt=True)))
    assert found <= 2 * in_time + rtol


@pytest.mark.parametrize("kind", ["gradient", "damped"])
def test_where_a_loss_has_its_zero_does_not_matter_to_a_grid_that_follows_w(kind):
    square, times = nf.Quadratic(FAR), [0.0, 0.1, 1.0, 3.0]
    flows = [
        FOLLOWING[kind](nf.ContinuousFlow(nf.DepthGrid.gauss(*size), loss))
        for size, loss in (((4, 14), square), ((1, 6), nf.Custom(lambda z: square(z) - 1.0)))
    ]
    true = nf.integrate(flows[0], turning(6.0), times, "DOP853", 1e-11, 1e-13).z
    path = nf.integrate(flows[1], turning(6.0), times, "DOP853", 1e-6, 1e-8, adapt=True)
    assert path.status == "ok"
    assert torch.linalg.matrix_norm(path.z - true).max() < 1e-6


class Singular(nf.Quadratic):
    def gradient(self, z):
        raise torch.linalg.LinAlgError("singular")


class Known(nf.ContinuousFlow):
    """One that knows by itself what its grid makes of the velocity."""

    def course_error(self, state, left=None):
        return 0.1 ** len(self.grid)


def test_a_velocity_that_cannot_be_computed_is_told_of_where_the_grid_follows_w():
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 6), Singular(torch.eye(2)))
    path = nf.integrate(flow, torch.zeros(6, 2, 2), [0.0, 0.1], "DOP853", adapt=True)
    assert path.status == "the velocity could not be computed at t = 0: singular"


@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_flow_of_ones_own_may_know_what_its_grid_makes_of_the_velocity(kind):
    flow = FOLLOWING[kind](Known(nf.DepthGrid.gauss(1, 4), nf.Quadratic(FAR)))
    path = nf.integrate(flow, turning(0.0), [0.0, 0.1], "DOP853", 1e-6, 1e-8, adapt=True)
    assert path.stats["grid"] == [1, 8]
