"""Conservation laws under the flows, and their signatures under time steppers."""

import pytest
import torch
from cases import all_losses, generator, positive_matrix, randn, relaxed_profile, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled
from neuralode_flow.laws import depth_curvature, drift, euler_law, symmetric_law

TIMES = torch.linspace(0, 2, 5)


@pytest.fixture(params=[0, 1, 2])
def level(request):
    if compiled.library() is None:
        pytest.skip("no compiler was found at installation")
    compiled.set_level(request.param)
    yield
    compiled.set_level(2)


@pytest.mark.parametrize("loss", ["quadratic", "regression", "completion", "custom"])
def test_the_continuous_law_holds_for_every_loss_and_start(loss):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 12), all_losses(4, seed=0)[loss])
    for W0 in (relaxed_profile(4, seed=1)[1], smooth_profile(4, seed=2)):
        path = nf.integrate(flow, flow.sample(W0), TIMES, "dopri8", rtol=1e-10, atol=1e-12)
        assert path.status == "ok"
        assert float(path.drift.max()) < 1e-9
        moved = float((path.state - flow.sample(W0)).abs().max())
        assert moved > 0.01  # the law says something only if W moves


@pytest.mark.parametrize("L", [2, 5, 64])
def test_the_euler_law_holds(L):
    flow = nf.FiniteFlow(L, all_losses(4, seed=3)["quadratic"])
    path = nf.integrate(flow, flow.sample(smooth_profile(4, seed=4)), TIMES, "dopri5", rtol=1e-10, atol=1e-12)
    assert float(path.drift.max()) < 1e-9


@pytest.mark.parametrize("layer", ["rk2", "cayley", "exp"])
def test_the_symmetric_law_drifts_at_order_two(layer):
    drifts = []
    for L in (64, 128, 256):
        flow = nf.FiniteFlow(L, all_losses(3, seed=5)["quadratic"], layer)
        path = nf.integrate(flow, flow.sample(smooth_profile(3, seed=6)), TIMES, "DOP853", rtol=1e-9, atol=1e-11)
        drifts.append(float(path.drift.max()))
    assert [a / b for a, b in zip(drifts, drifts[1:], strict=False)] == pytest.approx([4, 4], rel=0.07)


class Pushed(nf.ContinuousFlow):
    """A velocity that is wrong by `extra`."""

    extra: torch.Tensor

    def velocity(self, state):
        return super().velocity(state) + self.extra


def pushed_path(grid, extra, d=3):
    flow = Pushed(grid, nf.Quadratic(randn(d, d, seed=20)))
    flow.extra = extra
    return nf.integrate(flow, flow.sample(smooth_profile(d, seed=21)), [0.0, 1.0], "DOP853", rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("panels", "order"), [(4, 12), (4, 6), (3, 8)])
def test_a_wrong_velocity_shows_in_the_drift_whatever_its_mode(panels, order):
    grid, symmetric = nf.DepthGrid.gauss(panels, order), randn(3, 3, seed=22)
    symmetric = (symmetric + symmetric.mT) / torch.linalg.matrix_norm(symmetric + symmetric.mT)
    honest = float(pushed_path(grid, torch.zeros(3, 3)).drift.max())
    assert honest < {12: 1e-9, 6: 1e-5, 8: 1e-7}[order]
    for mode in range(order):
        coefficients = torch.zeros(panels, order, 1, 1)
        coefficients[mode % panels, mode] = 0.05
        for shape in (torch.eye(3) / 3**0.5, symmetric):
            path = pushed_path(grid, grid.from_legendre(coefficients) * shape)
            assert float(path.drift[-1]) > 0.02, mode
            assert path.stats["law_modes"]["drift"][mode] > 0.04


def test_waves_that_average_out_on_each_panel_show_in_full():
    grid = nf.DepthGrid.gauss(4, 12)
    path = pushed_path(grid, 0.1 * torch.cos(8 * torch.pi * grid.nodes)[:, None, None] * torch.eye(3))
    assert float(path.drift[-1]) > 0.2


def test_the_law_does_not_see_what_is_the_same_at_all_depths():
    # C = S' + [Wᵀ, W] of a W that a constant multiple of I has been added to is the same.
    grid = nf.DepthGrid.gauss(4, 12)
    assert float(pushed_path(grid, 0.1 * torch.eye(3)).drift[-1]) < 1e-9
    state = grid.interpolate(randn(4 * 12, 3, 3, seed=23), grid.nodes)
    shifted = state + 0.3 * torch.eye(3)
    assert torch.allclose(depth_curvature(grid, shifted), depth_curvature(grid, state), atol=1e-10)


@pytest.mark.parametrize(("panels", "order", "d"), [(4, 6, 8), (8, 4, 2), (2, 8, 4), (1, 16, 3), (1, 4, 3)])
def test_every_mode_stays_within_its_bound_and_the_bound_is_no_more_than_that(panels, order, d):
    grid = nf.DepthGrid.gauss(panels, order)
    path = pushed_path(grid, torch.zeros(d, d), d)
    moved, bound = (torch.tensor(path.stats["law_modes"][name]) for name in ("drift", "bound"))
    seen = bound > 1e-8  # the others are errors in time
    assert bool(seen.any())
    assert bool((moved < bound)[seen].all())
    assert float((bound / moved)[seen].max()) < 50


def test_a_depth_solver_of_ones_own_that_is_wrong_shows_in_the_drift():
    class Wrong(nf.Collocation):
        def gradient(self, W, outer):
            wave = torch.cos(40 * torch.pi * self.grid.nodes)[:, None, None]
            return super().gradient(W, outer) + 0.1 * wave * torch.eye(W.shape[-1])

    grid, loss = nf.DepthGrid.gauss(4, 12), nf.Quadratic(randn(3, 3, seed=24))
    start = smooth_profile(3, seed=25).at(grid.nodes)
    drifts = [
        float(nf.integrate(nf.ContinuousFlow(grid, loss, solver), start, [0.0, 1.0], "DOP853").drift[-1])
        for solver in ("collocation", Wrong(grid))
    ]
    assert drifts[0] < 1e-6
    assert drifts[1] > 0.1


def test_the_members_of_a_batch_have_their_own_bounds():
    grid, loss = nf.DepthGrid.gauss(2, 6), nf.Quadratic(randn(3, 3, seed=26))
    flow = nf.ContinuousFlow(grid, loss)
    states = torch.stack([smooth_profile(3, seed=s).at(grid.nodes) for s in (27, 28)])
    moved = states + 0.1 * randn(*states.shape, seed=29)
    together = flow.law_changes(states)(moved)
    for k in range(2):
        alone = flow.law_changes(states[k])(moved[k])
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.allclose(one, all_of_them[k], rtol=1e-6, atol=1e-13)


def test_on_a_grid_that_has_changed_the_law_is_compared_with_that_of_the_start_there():
    coarse = nf.ContinuousFlow(nf.DepthGrid.gauss(2, 8), nf.Quadratic(randn(3, 3, seed=30)))
    start = smooth_profile(3, seed=31).at(coarse.grid.nodes)
    path = nf.integrate(coarse, start, [0.0, 0.5], "DOP853", rtol=1e-11, atol=1e-12, adapt=True)
    assert "depth grid at t = " in path.stats["history"][0]
    fine = coarse.on(nf.DepthGrid.gauss(*path.stats["grid"]))
    change = nf.laws.law_change(fine.grid, path.state, coarse.transfer(start, fine.grid))
    assert float(path.drift[-1]) == pytest.approx(float(change.drift), rel=1e-6)
    assert path.stats["law_modes"]["bound"] == pytest.approx(change.bounds.tolist(), rel=1e-6)


def step_drifts(method, steps):
    """Drift of the quadratic law of Euler layers at the end, with one step per output interval."""
    flow = nf.FiniteFlow(6, nf.Quadratic(randn(3, 3, seed=7)))
    start = flow.sample(smooth_profile(3, seed=8))
    return [float(nf.integrate(flow, start, torch.linspace(0, 1, n + 1), method).drift[-1]) for n in steps]


@pytest.mark.parametrize(("method", "ratio"), [("euler", 2), ("midpoint", 4), ("rk4", 16)])
def test_explicit_steppers_lose_the_quadratic_law_at_their_order(method, ratio):
    drifts = step_drifts(method, (64, 128, 256))
    assert [a / b for a, b in zip(drifts, drifts[1:], strict=False)] == pytest.approx([ratio, ratio], rel=0.1)
    assert drifts[-1] > 1e-12


def test_implicit_midpoint_keeps_the_quadratic_law_to_round_off_with_large_steps():
    assert max(step_drifts("implicit_midpoint", (10, 20, 40))) < 1e-13


def test_expanded_euler_law_is_its_definition():
    W = randn(2, 5, 3, 3, seed=9)
    U = torch.eye(3) + W / 5
    law = 25 * (U[:, 1:].mT @ U[:, 1:] - U[:, :-1] @ U[:, :-1].mT)
    assert torch.allclose(euler_law(W), law, atol=1e-12)
    assert symmetric_law(W).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("d", range(1, 10))
def test_laws_of_layers_are_what_they_are_by_definition_in_every_instruction_set(d, level):
    for batch, L in (((), 2), ((3,), 5), ((2, 3), 67), ((), 131), ((0,), 3), ((2,), 1)):
        W = randn(*batch, L, d, d, seed=d + L)
        for matrices in (W, W.mT):  # as they lie in memory, and otherwise
            for law, quadratic in ((euler_law, False), (symmetric_law, True)):
                found = law(matrices)
                torch.testing.assert_close(found, _by_definition(matrices, mean=quadratic), rtol=0, atol=1e-13 * L)
                if batch == (2, 3):  # each is what it is alone, to the bit
                    assert torch.equal(found[1, 2], law(matrices[1, 2]))


def _by_definition(W, *, mean):
    S, inner, outer = W + W.mT, W.mT @ W, W @ W.mT
    linear = W.shape[-3] * (S[..., 1:, :, :] - S[..., :-1, :, :])
    if not mean:
        return linear + inner[..., 1:, :, :] - outer[..., :-1, :, :]
    C = inner - outer
    return linear + (C[..., 1:, :, :] + C[..., :-1, :, :]) / 2


@pytest.mark.parametrize("law", [euler_law, symmetric_law])
def test_a_number_that_is_none_is_seen_in_the_laws_of_its_layer_and_no_other(law):
    W = randn(2, 6, 4, 4, seed=3)
    W[1, 3, 0, 2] = torch.nan
    assert law(W).isnan().any((-2, -1)).tolist() == [[False] * 5, [False, False, True, True, False]]


@pytest.mark.parametrize("law", [euler_law, symmetric_law])
def test_laws_of_layers_can_be_differentiated_where_the_engine_takes_their_numbers(law):
    W = randn(4, 3, 3, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(law, (W,))
    assert torch.equal(torch.func.vmap(law)(torch.stack((W, 2 * W)).detach())[1], law(2 * W))


def test_laws_tend_to_the_curvature_of_the_profile():
    # euler_law ≈ C(s) to first order, symmetric_law to second, in 1/L.
    W0 = smooth_profile(3, seed=10)
    grid = nf.DepthGrid.gauss(4, 16)
    C = depth_curvature(grid, W0.at(grid.nodes))
    for law, ratio in ((euler_law, 2), (symmetric_law, 4)):
        errors = []
        for L in (64, 128):
            layers, between = (torch.arange(L) + 0.5) / L, torch.arange(1, L) / L
            errors.append(float((law(W0.at(layers)) - grid.interpolate(C, between)).abs().max()))
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)


def test_the_intrinsic_flow_has_no_law():
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.eye(3)), nf.LogMean())
    law = flow.law(randn(2, 3, 3, seed=11))
    assert law.shape == (2, 0, 3, 3)
    assert torch.equal(drift(law, law), torch.zeros(2))


def test_relaxed_balanced_networks_keep_their_law_under_training():
    state = nf.relaxed_balanced_layers(positive_matrix(3, seed=12), torch.tensor([0.0, 0.5, -0.3]), generator(0))
    path = nf.integrate(
        nf.FiniteFlow(3, nf.Quadratic(randn(3, 3, seed=13))), state, TIMES, "DOP853", rtol=1e-10, atol=1e-12
    )
    assert float(path.drift.max()) < 1e-9


def test_weights_and_their_velocity_must_fit():
    grid, W = nf.DepthGrid.gauss(1, 4), torch.zeros(4, 2, 2)
    for law in (nf.laws.euler_momentum_law, lambda W, V: nf.laws.momentum_law(grid, W, V)):
        for shape in [(3, 2, 2), (4, 3, 3)]:
            with pytest.raises(ValueError, match=r"V must have the axes \(.*, d, d\) of W, \(4, 2, 2\), got"):
                law(W, torch.zeros(shape))
        with pytest.raises(TypeError, match="V is torch.float32 on cpu but W is torch.float64"):
            law(W, W.float())
