"""The derivative of the closed equation, against differences and autograd, and how implicit methods take it."""

from functools import cache

import pytest
import torch
from cases import NoHessian, all_losses, distance, positive_matrix, randn

import neuralode_flow as nf

IN_LOGARITHMS = {
    "limit": nf.LogMean(),
    "two layers": nf.TwoLayer(0.0),
    "mixed": nf.DividedDifference(torch.tensor([0.0, -0.3, 0.9, -0.3, -0.3]), time_scale=0.2),
}
IN_Z = {
    "limit": nf.LogMean(),
    "two layers": nf.TwoLayer(0.7),
    "mixed": nf.DividedDifference(torch.tensor([0.0, -0.3, 0.9]), time_scale=0.3),
    "deep": nf.DividedDifference(torch.arange(70) / 70),
}
# Apart; equal; nearer than any threshold, and about as near; all equal; tiny.
SIGMA = (
    [2, 0.7, 0.3],
    [1.3, 1.3, 0.4],
    [1.3, 1.3 + 1e-6, 0.4],
    [1.3, 1.3 + 4e-6, 1.3 + 2e-5],
    [1, 1, 1],
    [1, 2e-8, 1e-8],
)


def with_sigma(sigma):
    left, right = (torch.linalg.qr(randn(3, 3, seed=seed)).Q for seed in (1, 2))
    return left @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right.mT


def difference(function, h=3e-4):
    """The derivative at 0, of order 6."""
    ends = [(function(k * h) - function(-k * h)) / (2 * k * h) for k in (1, 2, 3)]
    return (15 * ends[0] - 6 * ends[1] + ends[2]) / 10


@pytest.mark.parametrize("name", IN_Z)
@pytest.mark.parametrize("sigma", SIGMA, ids=str)
@torch.no_grad()
def test_jacobian_in_z_is_the_derivative_also_at_equal_singular_values(name, sigma):
    if sigma[-1] < 1e-6 and name in ("limit", "deep"):
        return  # differences would cross det z = 0, or what K does over a distance of 1e-20
    z = with_sigma(sigma)
    for loss in all_losses(3, seed=1).values():
        flow = nf.IntrinsicFlow(loss, IN_Z[name])
        J = flow.jacobian(z)
        H = randn(3, 3, seed=3) / 3
        known = difference(lambda h, flow=flow, H=H: flow.velocity(z + h * H))
        assert distance((J @ H.reshape(-1)).reshape(3, 3), known) < 1e-9 * (1 + float(known.norm()))


@pytest.mark.parametrize("name", IN_LOGARITHMS)
@pytest.mark.parametrize("sigma", [*SIGMA, [1, 1e-3, 1e-200]], ids=str)
@torch.no_grad()
def test_jacobian_in_logarithms_is_the_derivative_also_at_equal_singular_values(name, sigma):
    for loss in all_losses(3, seed=1).values():
        flow = nf.IntrinsicFlow(loss, IN_LOGARITHMS[name]).carrier()
        state = flow.enter(with_sigma(sigma))
        J = flow.jacobian(state)
        H = randn(2, 3, 3, seed=3) / 3  # off the orthogonal and the symmetric matrices too
        known = difference(lambda h, flow=flow, H=H, state=state: flow.velocity(state + h * H))
        assert distance((J @ H.reshape(-1)).reshape(2, 3, 3), known) < 1e-9 * (1 + float(known.norm()))


@pytest.mark.parametrize("name", IN_Z)
def test_jacobian_in_z_is_that_of_autograd_where_singular_values_differ(name):
    flow, z = nf.IntrinsicFlow(all_losses(3, seed=2)["regression"], IN_Z[name]), with_sigma([2, 0.7, 0.3])
    known = torch.autograd.functional.jacobian(flow.velocity, z).reshape(9, 9)
    assert float((flow.jacobian(z) - known).abs().max()) < 1e-11 * (1 + float(known.abs().max()))


def test_members_of_a_batch_have_their_own_blocks():
    z = torch.stack([positive_matrix(2, seed=1), positive_matrix(2, seed=2)])
    loss = nf.Quadratic(randn(2, 2, 2, seed=3))
    for flow in (nf.IntrinsicFlow(loss, nf.TwoLayer(0.4)), nf.IntrinsicFlow(loss, nf.LogMean()).carrier()):
        state = flow.enter(z) if hasattr(flow, "enter") else z
        n = state[0].numel()
        J = flow.jacobian(state).reshape(2, n, 2, n)
        for k in range(2):
            alone = type(flow)(nf.Quadratic(loss.target[k]), flow.kernel, *([None] if hasattr(flow, "enter") else []))
            assert float((J[k, :, k] - alone.jacobian(state[k])).abs().max()) < 1e-13
            assert not J[k, :, 1 - k].any()


class NoSlope:
    """σ_a σ_b, of a stranger who knows no slope."""

    positive_determinant = True

    def __call__(self, sigma):
        return sigma.unsqueeze(-1) * sigma.unsqueeze(-2)


class Slower(nf.IntrinsicFlow):
    def velocity(self, state):
        return super().velocity(state) / 2


def test_what_is_not_known_is_not_said():
    loss, z = nf.Quadratic(torch.eye(2)), 2 * torch.eye(2)
    for flow in (
        nf.IntrinsicFlow(loss, NoSlope()),
        nf.IntrinsicFlow(NoHessian(), nf.LogMean()),
        Slower(loss, nf.LogMean()),
    ):
        assert flow.linearised(z) is None
        assert not flow.knows_jacobian(z)
        with pytest.raises(ValueError, match="derivative is not known"):
            flow.jacobian(z)
        assert nf.integrate(flow, z, [0.0, 0.5], "CVODE_BDF").stats["products"] == 0
    flow = nf.IntrinsicFlow(loss, nf.LogMean())
    assert flow.knows_jacobian(z)
    assert not flow.knows_jacobian(z.clone().requires_grad_())
    assert not torch.func.vmap(lambda z: torch.tensor(flow.knows_jacobian(z)))(z.unsqueeze(0))[0]


def test_a_velocity_is_the_same_by_numpy_and_by_torch():
    z = positive_matrix(3, seed=5)
    for kernel in IN_LOGARITHMS.values():
        for loss in all_losses(3, seed=1).values():
            flow = nf.IntrinsicFlow(loss, kernel).carrier()
            state = flow.enter(z)
            known = flow.velocity(state)
            for other in (
                flow.velocity(state.clone().requires_grad_()),
                flow.velocity(state.expand(400, 2, 3, 3))[7],
            ):
                assert float((other - known).detach().abs().max()) < 1e-13 * (1 + float(known.abs().max()))


def test_a_target_is_derived_for_through_the_velocity():
    z, target = positive_matrix(3, seed=5), randn(3, 3, seed=6).requires_grad_()
    flow = nf.IntrinsicFlow(nf.Quadratic(target), nf.LogMean()).carrier()
    state = flow.enter(z)
    (slope,) = torch.autograd.grad(flow.velocity(state).square().sum(), target)
    H = randn(3, 3, seed=7)

    def value(h):
        moved = nf.IntrinsicFlow(nf.Quadratic(target.detach() + h * H), nf.LogMean()).carrier()
        return moved.velocity(state).square().sum()

    assert float((slope * H).sum()) == pytest.approx(float(difference(value)), rel=1e-9)


def ill_conditioned(condition=1e4):
    x = randn(50, 3, seed=1) * torch.logspace(0, -0.5, 3, base=condition)
    return nf.Regression(x, x @ (torch.eye(3) + 0.3 * randn(3, 3, seed=2)).mT)


@cache
def reference(kernel, *times):
    """By an explicit method, which has no Jacobian."""
    return nf.integrate(nf.IntrinsicFlow(ill_conditioned(), kernel), torch.eye(3), times, "DOP853", 1e-9, 1e-11)


@pytest.mark.parametrize("method", ["CVODE_BDF", "BDF", "Radau", "LSODA"])
@pytest.mark.parametrize("kernel", [nf.LogMean(), nf.TwoLayer(0.7)], ids=["logarithms", "z"])
def test_implicit_methods_take_it_and_meet_their_tolerance(method, kernel):
    loss, times, asked = ill_conditioned(), [0.0, 10.0, 300.0], []
    known = reference(kernel, *times)
    flow = nf.IntrinsicFlow(loss, kernel)
    moving = flow.carrier() or flow
    whole = moving.jacobian
    moving.jacobian = lambda state: asked.append(state) or whole(state)
    if moving is not flow:
        flow.carrier = lambda: moving
    path = nf.integrate(flow, torch.eye(3), times, method, 1e-6, 1e-8)
    assert path.status == "ok"
    assert len(asked) == path.stats["products"] > 0
    assert distance(path.z, known.z) < 1e-6 * (1 + float(known.z.norm()))


@pytest.mark.slow
@pytest.mark.parametrize("rtol", [1e-6, 1e-8, 1e-10])
def test_auto_meets_its_tolerance_on_stiff_data(rtol):
    problem = nf.PROBLEMS["breast_cancer"]()
    flow, times = nf.IntrinsicFlow(problem.loss, nf.LogMean()), [0.0, *torch.logspace(0, 4, 9).tolist()]
    known = nf.integrate(flow, problem.z0, times, "BDF", 1e-12, 1e-14)
    path = nf.integrate(flow, problem.z0, times, "auto", rtol, rtol / 100)
    assert path.stats["history"]
    allowed = rtol / 100 + rtol * torch.linalg.matrix_norm(known.z)
    assert float((torch.linalg.matrix_norm(path.z - known.z) / allowed).max()) < 1


def test_a_run_goes_on_to_the_bit_with_its_jacobian(tmp_path):
    flow, run = nf.IntrinsicFlow(ill_conditioned(), nf.LogMean()), (torch.eye(3), [0.0, 30.0, 300.0], "Radau", 1e-6)
    whole = nf.integrate(flow, *run)
    file = tmp_path / "run.npz"
    cut = nf.integrate(flow, *run, checkpoint=file, max_evaluations=whole.stats["evaluations"] // 2)
    assert cut.ending == "evaluations"
    again = nf.integrate(flow, *run, checkpoint=file)
    assert torch.equal(again.z, whole.z)
    assert again.stats["products"] >= whole.stats["products"] > 0


def test_a_jacobian_that_is_not_finite_is_a_status():
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.eye(2)), nf.TwoLayer(1.0))
    flow.jacobian = lambda state: torch.full((4, 4), torch.nan)
    path = nf.integrate(flow, 2 * torch.eye(2), [0.0, 1.0], "CVODE_BDF")
    assert path.ending == "not_finite"
