"""The claims of the project, edge by edge of the square."""

import math

import pytest
import torch
from cases import all_losses, distance, generator, positive_matrix, randn, relaxed_profile, smooth_profile

import neuralode_flow as nf
from neuralode_flow.orders import local_orders

TIMES = torch.linspace(0, 2, 6)


def exactly(flow, state, rtol=1e-11):
    path = nf.integrate(flow, state, TIMES, "DOP853", rtol=rtol, atol=rtol / 100)
    assert path.status == "ok"
    return path


@pytest.mark.parametrize("d", [2, 3, 5, 8, 16])
def test_nested_continuous_solve_follows_the_intrinsic_limit(d):
    z0, W0 = relaxed_profile(d, seed=d)
    loss = nf.Quadratic(randn(d, d, seed=d + 100) * 2 / math.sqrt(d))
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), loss)
    path, limit = exactly(flow, flow.sample(W0)), exactly(nf.IntrinsicFlow(loss, nf.LogMean()), z0)
    assert distance(path.z, limit.z) < 1e-10
    assert float(path.loss[-1]) < 0.9 * float(path.loss[0])


@pytest.mark.parametrize("loss", ["regression", "completion", "custom"])
def test_the_limit_holds_for_every_loss(loss):
    z0, W0 = relaxed_profile(4, seed=20)
    f = all_losses(4, seed=21)[loss]
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), f)
    assert distance(exactly(flow, flow.sample(W0)).z, exactly(nf.IntrinsicFlow(f, nf.LogMean()), z0).z) < 1e-10


@pytest.mark.parametrize("case", range(8))
def test_finite_relaxed_balanced_networks_follow_their_divided_difference_flow(case):
    L, d = 2 + case % 7, 2 + case % 5
    steps = randn(L - 1, seed=case)
    steps[0] = -abs(steps[0])
    shifts = torch.cat((torch.zeros(1), torch.cumsum(steps, 0)))
    z0 = positive_matrix(d, seed=case, scale=1.0)
    loss = nf.Quadratic(positive_matrix(d, seed=case + 50, scale=1.0))
    state = nf.relaxed_balanced_layers(z0, shifts, generator(case))
    path = exactly(nf.FiniteFlow(L, loss), state)
    closed = exactly(nf.IntrinsicFlow(loss, nf.DividedDifference(shifts, time_scale=1 / L)), z0)
    assert distance(path.z, closed.z) < 1e-9


def errors_against_the_limit(layer, depths, W0, loss, sampling="midpoint"):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 10), loss)
    reference = exactly(flow, flow.sample(W0), 1e-10)
    nets = [nf.FiniteFlow(L, loss, layer, sampling) for L in depths]
    return [distance(exactly(net, net.sample(W0), 1e-10).z, reference.z) for net in nets]


@pytest.mark.parametrize("start", ["relaxed", "smooth"])
@pytest.mark.parametrize(("layer", "order"), [("euler", 1), ("rk2", 2), ("cayley", 2), ("exp", 2)])
def test_orders_with_midpoint_sampling(layer, order, start):
    W0 = relaxed_profile(3, seed=30)[1] if start == "relaxed" else smooth_profile(3, seed=31)
    depths = [32, 64, 128]
    slopes = local_orders(depths, errors_against_the_limit(layer, depths, W0, nf.Quadratic(randn(3, 3, seed=32))))
    assert list(slopes) == pytest.approx([order] * 2, abs=0.1)


@pytest.mark.parametrize("layer", ["rk2", "cayley", "exp"])
def test_left_nodes_give_order_one(layer):
    depths = [64, 128, 256]
    W0, loss = relaxed_profile(3, seed=30)[1], nf.Quadratic(randn(3, 3, seed=32))
    slopes = local_orders(depths, errors_against_the_limit(layer, depths, W0, loss, "left"))
    assert list(slopes) == pytest.approx([1, 1], abs=0.1)


def test_rough_layers_give_order_one_half():
    W0 = nf.Rough(relaxed_profile(3, seed=33)[1], noise=0.5, networks=64, seed=0)
    loss = nf.Quadratic(randn(3, 3, seed=34))
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), loss)
    reference, depths, errors = exactly(flow, flow.sample(W0), 1e-8), [32, 128, 512], []
    for L in depths:
        net = nf.FiniteFlow(L, loss, "cayley")
        path = nf.integrate(net, net.sample(W0), TIMES, "dopri5", rtol=1e-6, atol=1e-8)
        gaps = torch.linalg.matrix_norm(path.z - reference.z[:, None])
        errors.append(float(gaps.square().mean(1).sqrt().max()))
    assert list(local_orders(depths, errors)) == pytest.approx([0.5, 0.5], abs=0.1)


def test_richardson_lifts_euler_to_order_two():
    W0, loss = relaxed_profile(3, seed=35)[1], nf.Quadratic(randn(3, 3, seed=36))
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 10), loss)
    reference, paths = exactly(flow, flow.sample(W0)), {}
    for L in (32, 64, 128, 256):
        net = nf.FiniteFlow(L, loss)
        paths[L] = exactly(net, net.sample(W0)).z
    depths = [32, 64, 128]
    errors = [distance(2 * paths[2 * L] - paths[L], reference.z) for L in depths]
    assert list(local_orders(depths, errors)) == pytest.approx([2, 2], abs=0.1)


def test_the_intrinsic_flows_tend_to_the_limit_at_order_one():
    z0, loss, errors, depths = positive_matrix(4, seed=37), nf.Quadratic(randn(4, 4, seed=38)), [], [64, 128, 256, 4096]
    limit = exactly(nf.IntrinsicFlow(loss, nf.LogMean()), z0)
    for L in depths:
        s = torch.arange(1, L) / L
        shifts = torch.cat((torch.zeros(1), torch.cumsum(torch.cos(3 * s) / L**2, 0)))
        errors.append(
            distance(exactly(nf.IntrinsicFlow(loss, nf.DividedDifference(shifts, time_scale=1 / L)), z0).z, limit.z)
        )
    assert list(local_orders(depths, errors)) == pytest.approx([1, 1, 1], abs=0.05)


def test_strong_imbalance_has_another_limit():
    # λ_k = ℓ/L, ℓ = 1: the kernel tends to m·logmean with m = 1.0453 at order one.
    sigma = torch.tensor([1.5, 1.0, 0.4])
    ratios = []
    for L in (500, 1000):
        K = nf.DividedDifference(torch.arange(L) / L, time_scale=1 / L)(sigma)
        ratios.append(K / nf.LogMean()(sigma))
    extrapolated = 2 * ratios[1] - ratios[0]
    assert float((extrapolated - 1.0453).abs().max()) < 1e-4


def test_the_control_leaves_the_intrinsic_curve():
    z0 = positive_matrix(4, seed=39, scale=1.0)
    loss = nf.Quadratic(randn(4, 4, seed=40))
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), loss)
    path, limit = exactly(flow, flow.sample(nf.control(z0))), exactly(nf.IntrinsicFlow(loss, nf.LogMean()), z0)
    assert distance(path.z[:1], limit.z[:1]) < 1e-12
    assert distance(path.z, limit.z) > 0.01 * float(torch.linalg.matrix_norm(limit.z).max())


def test_the_loss_decays_at_least_at_the_rate_of_the_smallest_singular_value():
    # f is 1-PL: f(t) <= f(0) exp(−2 ∫ σ_min²).
    z0, loss = positive_matrix(3, seed=41), nf.Quadratic(positive_matrix(3, seed=42))
    path = exactly(nf.IntrinsicFlow(loss, nf.LogMean()), z0)
    smallest = torch.linalg.svdvals(path.z)[:, -1].min()
    assert bool((path.loss <= path.loss[0] * torch.exp(-2 * smallest**2 * TIMES) * (1 + 1e-9)).all())
