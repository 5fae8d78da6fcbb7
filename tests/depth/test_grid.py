import math

import pytest
import torch
from cases import randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth.grid import _lagrange, sample
from neuralode_flow.depth.probes import integral, probes, widest_gap


def column(values):
    return values[:, None, None]


@pytest.mark.parametrize(("panels", "order"), [(1, 1), (1, 5), (3, 4), (4, 6), (2, 24)])
def test_quadrature_is_exact_to_degree_2m_minus_1_and_not_beyond(panels, order):
    grid = nf.DepthGrid.gauss(panels, order)
    for degree in range(2 * order):
        assert float(grid.weights @ grid.nodes**degree) == pytest.approx(1 / (degree + 1), abs=1e-14)
    if panels * order <= 12:
        assert abs(float(grid.weights @ grid.nodes ** (2 * order)) - 1 / (2 * order + 1)) > 1e-13


@pytest.mark.parametrize(("panels", "order"), [(1, 2), (3, 5), (4, 12), (1, 30)])
def test_calculus_is_exact_on_polynomials_of_the_grid(panels, order):
    grid, k = nf.DepthGrid.gauss(panels, order), order - 1
    s = grid.nodes
    values = column(s**k)
    assert torch.allclose(grid.antiderivative(values), column(s**order / order), atol=1e-14)
    assert torch.allclose(grid.differentiate(values), column(k * s ** (k - 1)), atol=1e-11)
    points = torch.linspace(0, 1, 13)
    assert torch.allclose(grid.interpolate(values, points), column(points**k), atol=1e-13)
    assert torch.allclose(grid.interpolate(values, s), values, atol=0)
    assert float(grid.integrate(values)) == pytest.approx(1 / order, abs=1e-14)
    assert torch.allclose(grid.project(values, k), values, atol=1e-13)


def test_interpolation_converges_spectrally():
    errors = []
    for order in (4, 8, 12, 16):
        grid = nf.DepthGrid.gauss(2, order)
        points = torch.linspace(0, 1, 101)
        values = grid.interpolate(column(torch.sin(5 * grid.nodes)), points)
        errors.append(float((values - column(torch.sin(5 * points))).abs().max()))
    assert all(b < a / 100 for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-13


def test_projection_keeps_the_low_legendre_coefficients_only():
    grid = nf.DepthGrid.gauss(3, 7)
    values = randn(2, 21, 3, 3, seed=0)
    kept, all_of_them = grid.legendre(grid.project(values, 2)), grid.legendre(values)
    assert torch.allclose(kept[..., :3, :, :], all_of_them[..., :3, :, :], atol=1e-13)
    assert float(kept[..., 3:, :, :].abs().max()) < 1e-13
    assert torch.allclose(grid.from_legendre(all_of_them), values, atol=1e-13)


def test_auto_resolves_what_is_smooth_with_few_nodes_and_more_for_a_smaller_tolerance():
    W, fine = smooth_profile(4, seed=1), nf.DepthGrid.gauss(16, 16)
    loss, state = nf.Quadratic(torch.zeros(4, 4)), W.at(fine.nodes)
    z, velocity = nf.Collocation(fine).product(state), nf.ContinuousFlow(fine, loss).velocity(state)
    sizes = []
    for tol in (1e-4, 1e-8, 1e-12):
        grid = nf.DepthGrid.auto(W, tol)
        sizes.append(len(grid))
        points = torch.linspace(0, 1, 57)
        values = grid.interpolate(sample(W, grid.nodes), points)
        assert float((values - W.at(points)).abs().max()) < 10 * tol**0.5
        found = sample(W, grid.nodes)
        assert float((z - nf.Collocation(grid).product(found)).abs().max()) < tol * float(torch.linalg.matrix_norm(z))
        gap = nf.ContinuousFlow(grid, loss).velocity(found) - fine.interpolate(velocity, grid.nodes)
        assert tol / 1000 < float(gap.abs().max() / velocity.abs().max()) < 3 * tol
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 32


def test_auto_sees_the_growth_of_the_propagator_also_where_W_is_constant():
    assert len(nf.DepthGrid.auto(lambda s: 8 * torch.eye(2), 1e-10)) > len(
        nf.DepthGrid.auto(lambda s: torch.eye(2), 1e-10)
    )


def test_auto_sees_a_spike_between_the_nodes():
    grid = nf.DepthGrid.auto(lambda s: torch.eye(2) * (1 + math.exp(-(((s - 0.37) / 0.02) ** 2))), 1e-6)
    assert len(grid) > 40


def narrow(center, width, size=56.0):
    A, B = torch.tensor([[0.2, 0.5], [-0.3, 0.1]]), torch.tensor([[1.0, 0.5], [0.0, 0.3]])
    return lambda s: A + size * math.exp(-(((s - center) / width) ** 2)) * B


@pytest.mark.parametrize("center", [0.3137, 0.98765])
def test_auto_sees_what_all_nodes_of_a_coarse_grid_miss(center):
    W = narrow(center, 1e-3)
    assert len(nf.DepthGrid.auto(W, 0.02)) > 300
    with pytest.raises(ValueError, match="not resolved to tol=1e-08"):
        nf.DepthGrid.auto(W, 1e-8)


@pytest.mark.parametrize("numbers", [1, 64, 4096, 65536])
def test_the_depths_between_the_nodes_fill_the_interval(numbers):
    depths = probes(numbers)
    assert bool((torch.diff(depths) > 0).all())
    assert widest_gap(depths) < 1.95 / len(depths)
    assert len(depths) * numbers <= 2**22
    for panels, order in ((1, 5), (4, 6), (64, 16)):
        assert float((depths[:, None] - nf.DepthGrid.gauss(panels, order).nodes).abs().min()) > 0
    value, uncertain = integral(depths, column(depths.square()))
    assert float(value) == pytest.approx(1 / 3, abs=2 / len(depths))
    step, uncertain = integral(depths, column((depths > 0.4567).double()))
    assert abs(float(step) - (1 - 0.4567)) <= float(uncertain) < 2 / len(depths)


def test_interpolation_on_many_nodes_is_that_of_few():
    few, many = nf.DepthGrid.gauss(64, 8), nf.DepthGrid.gauss(128, 8)
    values, points = randn(3, 512, 2, 2, seed=2), torch.linspace(0, 1, 77)
    fine = few.interpolate(values, many.nodes)
    assert fine.shape == (3, 1024, 2, 2)
    inside = points[(points * 64 % 1 > 0.01) & (points * 64 % 1 < 0.99)]
    assert torch.allclose(many.interpolate(fine, inside), few.interpolate(values, inside), atol=1e-10)
    assert torch.allclose(many.interpolate(fine, many.nodes), fine, atol=1e-13)
    assert torch.allclose(many.interpolate(fine[1], 0.3), many.interpolate(fine, 0.3)[1], atol=1e-13)


def test_what_a_decaying_expansion_leaves_out_is_little_and_a_jump_leaves_out_much():
    grid = nf.DepthGrid.gauss(4, 8)
    smooth, jump = smooth_profile(2, seed=3).at(grid.nodes), column((grid.nodes > 0.4321).double()) * torch.eye(2)
    assert float(grid.left_out(smooth)) < 1e-11
    assert 1e-3 < float(grid.left_out(jump)) < 0.2
    assert torch.equal(
        grid.left_out(torch.stack((smooth, jump))), torch.stack((grid.left_out(smooth), grid.left_out(jump)))
    )


def test_auto_refuses_a_rough_profile():
    with pytest.raises(ValueError, match="not resolved to tol=1e-10"):
        nf.DepthGrid.auto(lambda s: torch.eye(2) * (1.0 if s < 1 / math.pi else 2.0), 1e-10)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nf.DepthGrid.gauss(0, 4), ValueError, "panels must be at least 1, got 0"),
        (lambda: nf.DepthGrid.gauss(2, 2.5), TypeError, "order must be an integer, got 2.5"),
        (lambda: nf.DepthGrid.auto(lambda s: torch.eye(2), 0.0), ValueError, "tol must be above 0"),
        (lambda: nf.DepthGrid.auto(lambda s: torch.eye(2) * math.nan, 1e-6), ValueError, "must be finite"),
        (lambda: nf.DepthGrid.gauss(2, 3).interpolate(torch.zeros(6, 2, 2), 1.5), ValueError, r"must lie in \[0, 1\]"),
        (lambda: nf.DepthGrid.gauss(2, 3).integrate(torch.zeros(5, 2, 2)), ValueError, "N = 6 depth nodes"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("nodes", [(4, 12), (128, 8)], ids=["few", "many"])
def test_interpolation_of_a_batch_is_that_of_each_to_the_bit_and_of_torch(nodes):
    grid, points = nf.DepthGrid.gauss(*nodes), torch.linspace(0, 1, 37)
    values = randn(5, len(grid), 4, 4, seed=6)
    at = grid.interpolation(points)
    assert all(torch.equal(at(values)[i], at(values[i])) for i in range(5))
    assert torch.equal(grid.interpolate(values[0], points), at(values[0]))
    followed = values.clone().requires_grad_()
    assert torch.allclose(at(followed), at(values), rtol=0, atol=1e-13)
    (slope,) = torch.autograd.grad(at(followed)[..., 0, 0].sum(), followed)
    assert torch.allclose(slope[..., 0, 0].sum(-1), torch.full((5,), 37.0))  # the polynomials add up to 1


@pytest.mark.parametrize(
    "points",
    [[0.3, 0.9, 0.1, 0.3, 0.0, 1.0, 0.5, 0.25], [0.6, 0.55, 0.7, 0.51], [0.4], []],
    ids=["unsorted", "in one panel", "one", "none"],
)
def test_interpolation_panel_by_panel_is_that_by_the_lagrange_polynomials(points):
    grid, s = nf.DepthGrid.gauss(4, 6), torch.tensor(points, dtype=torch.float64)
    values = randn(2, len(grid), 3, 3, seed=7)
    found = grid.interpolate(values, s)
    panels, weights = _lagrange(4, 6, s.numpy())
    local = grid.panelled(values).flatten(-2)
    expected = [torch.from_numpy(w) @ local[:, p] for p, w in zip(panels, weights, strict=True)]
    assert found.shape == (2, len(points), 3, 3)
    for k, value in enumerate(expected):
        assert torch.allclose(found[:, k].flatten(-2), value, rtol=0, atol=1e-14)


class Many:
    """A profile that is asked for many depths at once."""

    def __init__(self, at):
        self.at = at

    def __call__(self, s):
        return torch.eye(2)


@pytest.mark.parametrize(
    ("at", "error", "words"),
    [
        (lambda nodes: torch.eye(2), ValueError, r"W.at\(s\) must have at least 3 axes"),
        (lambda nodes: torch.eye(2)[None], ValueError, "n = 1597 depths, got \\(1, 2, 2\\)"),
        (lambda nodes: torch.zeros(len(nodes), 2, 3), ValueError, "must have shape"),
        (lambda nodes: torch.full((len(nodes), 2, 2), math.nan), ValueError, "must be finite"),
        (lambda nodes: [[1.0]], TypeError, "must be a torch tensor, got list"),
        (lambda nodes: torch.zeros(len(nodes), 2, 2, dtype=torch.long), TypeError, "floating-point"),
    ],
)
def test_what_a_profile_says_of_many_depths_is_held_to_what_it_says_of_one(at, error, words):
    with pytest.raises(error, match=words):
        nf.DepthGrid.auto(Many(at), 1e-4)


def test_a_profile_that_is_not_a_number_between_the_nodes_is_no_state():
    def hole(nodes):
        values = torch.eye(2).repeat(len(nodes), 1, 1)
        values[(nodes - 0.5).abs() < 1e-3] = math.nan
        return values

    grid = nf.DepthGrid.gauss(2, 6)
    assert bool(hole(grid.nodes).isfinite().all())
    with pytest.raises(ValueError, match=r"W.at\(s\) must be finite"):
        nf.ContinuousFlow(grid, nf.Quadratic(2 * torch.eye(2))).sample(Many(hole))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of what it takes from one graph to another
@pytest.mark.parametrize("panels", [2, 200])  # by matrices for each panel, and by a sparse one
def test_interpolation_stands_beside_torch_compile(panels):
    """It ended in an assertion of the compiler, at what NumPy reads from a buffer."""
    grid, depths = nf.DepthGrid.gauss(panels, 6), torch.tensor([0.1, 0.5, 0.9])
    values = randn(6 * panels, 2, 2, seed=3).requires_grad_()

    def several(values):
        return grid.interpolate(values, depths) + 1

    def one(values):
        return grid.interpolate(values, 0.3) + 1

    def again(values):
        return grid.interpolation(depths)(values) + 1

    def singly(values):
        return grid.interpolant(values)(0.3) + 1

    for call in (several, one, again, singly):
        found, wanted = torch.compile(call, backend="eager")(values), call(values)
        assert torch.equal(found, wanted)
        gradients = [torch.autograd.grad(part.square().sum(), values)[0] for part in (found, wanted)]
        assert torch.equal(*gradients)


def test_a_profile_may_write_all_its_values_into_one_tensor():
    place = torch.empty(2, 2)

    def reused(s):
        return place.copy_(torch.eye(2) * s)

    grid = nf.DepthGrid.gauss(3, 4)
    assert torch.equal(sample(reused, grid.nodes), column(grid.nodes) * torch.eye(2))
    assert str(nf.DepthGrid.auto(reused, 1e-8)) == str(nf.DepthGrid.auto(lambda s: torch.eye(2) * s, 1e-8))
