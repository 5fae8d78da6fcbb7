"""Criteria A and B: what theory says of small factorisations, and verdicts that show what decided them."""

import os

import pytest
import torch
from cases import generator, randn, relaxed_profile, smooth_profile

import neuralode_flow as nf
from neuralode_flow.depth.grid import sample
from neuralode_flow.initial import Detour, random_direction
from neuralode_flow.intrinsic import count_laws, depth_criterion, quadratic_laws, report
from neuralode_flow.intrinsic.derivatives import jacobian
from neuralode_flow.intrinsic.ranks import null_space, rank_of
from neuralode_flow.intrinsic.systems.linear_network import independent_laws, laws_of, phi_of

SHAPES = {(3, 3, 3): True, (3, 2, 3): True, (4, 2, 4): True, (5, 4, 3): True, (3, 3, 2): True, (4, 2, 3): False}

DRAWS = int(os.environ.get("NEURALODE_FLOW_DRAWS", "4"))  # of each shape


def two_layers(n, m, r):
    """z = UVᵀ and UᵀU − VᵀV, θ = (U, V)."""

    def split(theta):
        return theta[: n * r].reshape(n, r), theta[n * r :].reshape(m, r)

    def phi(theta):
        U, V = split(theta)
        return U @ V.mT

    def laws(theta):
        U, V = split(theta)
        i, j = torch.triu_indices(r, r)
        return (U.mT @ U - V.mT @ V)[i, j]

    return phi, laws


def balanced(n, m, r, lam, seed):
    """A random θ with UᵀU − VᵀV = λI, n >= r."""
    V = randn(m, r, seed=seed)
    rates, basis = torch.linalg.eigh(V.mT @ V + lam * torch.eye(r))
    frame = torch.linalg.qr(randn(n, r, seed=seed + 1000)).Q
    return torch.cat(((frame * rates.sqrt()) @ basis.mT, V)).reshape(-1)


@pytest.mark.parametrize(("shape", "holds"), SHAPES.items(), ids=str)
@pytest.mark.slow
def test_criterion_b_of_relaxed_balanced_layers_is_what_theory_says_in_every_draw(shape, holds):
    phi, laws = two_layers(*shape)
    for seed in range(DRAWS):
        theta = balanced(*shape, 0.7, seed)
        for given in (laws, None):
            found = report(phi, theta, given)
            assert not found.undecided
            assert found.metric is holds
            assert found.recoverable is False


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.slow
def test_criterion_b_fails_at_random_parameters_in_every_draw(shape):
    phi, laws = two_layers(*shape)
    for seed in range(DRAWS):
        found = report(phi, randn(sum(shape[:2]) * shape[2], seed=seed), laws)
        assert not found.undecided
        assert found.metric is False


@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 4)], ids=str)
def test_two_layers_have_the_known_number_of_laws_with_and_without_naming_them(shape):
    n, m, r = shape
    known = r * (r + 1) // 2 if r <= n + m else (n + m) * r - (n + m) * (n + m - 1) // 2
    phi, laws = two_layers(*shape)
    theta = randn((n + m) * r, seed=1)
    assert report(phi, theta, laws).laws == report(phi, theta).laws == known
    assert len(quadratic_laws(phi, len(theta))) == r * (r + 1) // 2


def test_one_unit_in_and_out_has_more_quadratic_laws_than_the_balance_of_its_layers():
    phi, laws = two_layers(1, 1, 3)
    found, theta = quadratic_laws(phi, 6), randn(6, seed=1)
    assert len(found) == 9  # six entries of uuᵀ − vvᵀ and the three u_i v_j − u_j v_i
    assert report(phi, theta, found).laws == report(phi, theta, laws).laws == 5


def test_a_failure_comes_with_a_direction_that_shows_it():
    phi, laws = two_layers(4, 2, 3)
    theta = balanced(4, 2, 3, 0.7, 0)
    found = report(phi, theta, laws)
    v, h = found.direction, 1e-5

    def metric(theta):
        J = jacobian(phi, theta)
        return J @ J.mT

    assert abs(float(v.norm()) - 1) < 1e-12
    assert float((jacobian(phi, theta) @ v).norm()) < 1e-12
    assert float((jacobian(laws, theta) @ v).norm()) < 1e-12
    change = (metric(theta + h * v) - metric(theta - h * v)) / (2 * h)
    assert abs(float(change.norm()) / found.metric_size - 1) < 1e-7


def test_the_size_of_the_change_of_the_metric_is_the_same_when_z_has_more_entries_than_theta_allows():
    phi, laws = two_layers(4, 2, 3)
    theta = balanced(4, 2, 3, 0.7, 0)
    Q = torch.linalg.qr(randn(400, 8, seed=1)).Q  # an isometry
    many = report(lambda theta: Q @ phi(theta).reshape(-1), theta, laws)
    few = report(phi, theta, laws)
    assert abs(many.metric_size / few.metric_size - 1) < 1e-10
    assert many.rank == few.rank


@pytest.mark.parametrize("widths", [(2, 3, 2), (3, 2, 4, 3), (2, 4, 3, 2, 3)])
def test_the_laws_of_a_linear_network_are_found_by_brackets_as_quadrics_and_by_theory(widths):
    phi, laws = phi_of(widths), laws_of(widths)
    n = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    found = quadratic_laws(phi, n)
    assert count_laws(phi, n).verdict == independent_laws(widths)
    theta = randn(n, seed=3)
    known, numeric = jacobian(laws, theta), jacobian(found, theta)
    ranks = [rank_of(torch.linalg.svdvals(rows)).rank for rows in (known, numeric, torch.cat((known, numeric)))]
    assert ranks == [independent_laws(widths)] * 3


def test_quadratic_laws_are_conserved_and_include_linear_ones():
    def phi(theta):  # invariant under scaling of the first two and a shift of the others
        return torch.stack((theta[0] * theta[1], theta[2] - theta[3]))

    found = quadratic_laws(phi, 4)
    assert len(found) == 3  # θ₀² − θ₁², θ₂ + θ₃ and its square
    flow = nf.FactorizationFlow(phi, nf.Quadratic(torch.tensor([1.0, 2.0])), found)
    path = nf.integrate(flow, randn(4, seed=0), [0, 1, 2], method="DOP853", rtol=1e-12, atol=1e-14)
    assert float(path.drift.max()) < 1e-11


@pytest.mark.parametrize("units", [1.0, 1e-8, 1e8])
def test_a_quadratic_law_whose_terms_cancel_at_every_point_is_found(units):
    """Of u v, where z is u² − v², and of both where θ has an entry of z that is nothing but round-off."""
    n = 3
    found = quadratic_laws(lambda theta: units * (theta[:n] ** 2 - theta[n:] ** 2), 2 * n)
    assert (found.evidence.verdict, len(found)) == (n, n)
    theta = randn(2 * n, seed=1)
    known = torch.func.jacrev(lambda theta: theta[:n] * theta[n:])(theta)
    both = torch.cat((known, torch.func.jacrev(found)(theta)))
    assert int(torch.linalg.matrix_rank(both, rtol=1e-10)) == n

    def with_nothing(theta):  # the first two are seen by round-off alone
        x, y, u, v = theta
        return torch.stack((units * ((x + y) ** 3 - x**3 - 3 * x**2 * y - 3 * x * y**2 - y**3), u * v))

    assert quadratic_laws(with_nothing, 4).evidence.verdict == 6  # any of x and y, and u² − v²


def test_a_doubtful_rank_is_called_undecided():
    def nearly_parallel(angle):
        return lambda x: torch.stack([x[0] + x[1], x[0] + (1 + angle) * x[1]])

    doubtful = report(nearly_parallel(1e-10), torch.ones(2))
    assert doubtful.undecided
    assert (doubtful.rank, doubtful.recoverable, doubtful.metric) == ("undecided",) * 3
    assert "undecided" in str(doubtful)
    assert not report(nearly_parallel(1e-6), torch.ones(2)).undecided
    assert report(nearly_parallel(1e-14), torch.ones(2)).rank == 1


def test_a_small_derivative_is_a_matter_of_units():
    for size in (1e-6, 1e-10, 1e-14):
        found = report(lambda x, size=size: torch.stack([x[0], x[0] + size * x[1]]), torch.ones(2))
        assert (found.rank, found.recoverable) == (2, True)


def test_all_of_theta_is_recoverable_where_phi_is_the_identity():
    found = report(lambda theta: theta, randn(3, seed=0))
    assert (found.dimension, found.rank, found.recoverable, found.metric, found.laws) == (3, 3, True, True, 0)
    assert found.direction is None


def test_a_linear_map_has_as_many_laws_as_it_forgets():
    A = randn(2, 5, seed=0)
    found = report(lambda theta: A @ theta, randn(5, seed=1))
    assert (found.rank, found.laws, found.recoverable) == (2, 3, True)


def test_theta_can_be_a_tuple_a_list_or_a_dict():
    U, V = randn(3, 2, seed=0), randn(4, 2, seed=1)
    flat = report(two_layers(3, 4, 2)[0], torch.cat((U, V)).reshape(-1))
    for theta, phi in (
        ((U, V), lambda pair: pair[0] @ pair[1].mT),
        ([U, V], lambda pair: pair[0] @ pair[1].mT),
        ({"u": U, "v": V}, lambda parts: parts["u"] @ parts["v"].mT),
    ):
        found = report(phi, theta)
        assert (found.rank, found.laws, found.metric) == (flat.rank, flat.laws, flat.metric)
        assert type(found.direction) is type(theta)


def test_laws_can_be_one_tensor_several_or_a_list_of_functions():
    phi, laws = two_layers(3, 2, 2)
    theta = randn(10, seed=0)
    whole = report(phi, theta, laws)
    for given in (
        lambda t: tuple(laws(t)),
        lambda t: [laws(t)[:1], laws(t)[1:]],
        [lambda t: laws(t)[0], lambda t: laws(t)[1:]],
    ):
        found = report(phi, theta, given)
        assert (found.laws, found.metric, found.recoverable) == (whole.laws, whole.metric, whole.recoverable)
    with pytest.raises(TypeError, match="laws must return a tensor, or several, got float"):
        report(phi, theta, lambda t: 1.0)


def test_inference_mode_changes_no_verdict():
    def phi(theta):
        return theta[:2] * theta[2:]

    def laws(theta):
        return theta[:2] ** 2 - theta[2:] ** 2

    def verdicts():
        theta = torch.arange(1.0, 5.0)
        found = [report(phi, theta), report(phi, theta, laws), count_laws(phi, 4)]
        return [str(one) for one in found], quadratic_laws(phi, 4).A

    said, A = verdicts()
    with torch.inference_mode():
        again, B = verdicts()
        assert torch.is_inference_mode_enabled()
    assert again == said
    assert torch.equal(A, B)


def test_a_phi_that_cannot_be_vectorised_is_taken_row_by_row():
    def phi(theta):
        if theta.shape != (3,):
            raise RuntimeError("one at a time")
        total = theta[0] * theta[1]
        for k in range(2):
            total = total + theta[k] ** 2
        return torch.stack((total, theta[2]))

    class OneByOne(torch.autograd.Function):
        """Without a rule for vmap."""

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return g

        @staticmethod
        def jvp(ctx, t):
            return t.clone()

    plain, special = report(phi, torch.ones(3)), report(lambda theta: phi(OneByOne.apply(theta)), torch.ones(3))
    assert (plain.rank, plain.laws) == (special.rank, special.laws) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, torch.ones(2)), "phi must be a function"),
        ((torch.sin, None), "theta must be a tensor, or a tuple, list or dict"),
        ((torch.sin, torch.ones(2).int()), "theta must hold floating-point numbers"),
        ((torch.sin, torch.ones(2) * torch.inf), "theta must be finite"),
        ((lambda theta: 1.0, torch.ones(2)), "phi must return a tensor"),
        ((torch.sin, torch.ones(2), "laws"), "laws must be a function"),
        ((lambda t: t[0] * t[1], torch.ones(2), lambda t: t), "laws must be conserved .* entry"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        report(*arguments)


def test_too_many_unknowns_and_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="dimension = 100 means 5150 coefficients"):
        quadratic_laws(torch.sin, 100)
    with pytest.raises(TypeError, match="dimension must be an integer"):
        count_laws(torch.sin, 2.0)


def test_a_kernel_is_orthonormal_and_complete():
    basis, rank = null_space(randn(3, 5, seed=0))
    assert basis.shape == (5, 2)
    assert rank.verdict == 3
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2))


@pytest.mark.parametrize("d", [2, 3])
def test_criterion_b_at_infinite_depth_holds_for_relaxed_balanced_profiles_only(d):
    grid = nf.DepthGrid.gauss(4, 12)
    for seed in range(5):
        _, profile = relaxed_profile(d, seed)
        found = depth_criterion(grid, sample(profile, grid.nodes))
        assert found.metric is True
        assert found.size < 1e-12 * found.scale
        led_astray = Detour(profile, random_direction(d, 0.5, generator(seed)))
        assert depth_criterion(grid, sample(led_astray, grid.nodes)).metric is False


def test_a_large_block_of_z_does_not_hide_that_a_small_one_is_not_closed():
    grid = nf.DepthGrid.gauss(4, 12)
    _, profile = relaxed_profile(2, 0)
    astray = sample(Detour(profile, random_direction(2, 0.5, generator(0))), grid.nodes)
    for size in (0.0, 10.0, 18.0):  # M has entries up to exp(2 size)
        W = torch.zeros(len(grid), 3, 3)
        W[:, :2, :2], W[:, 2, 2] = astray, size
        assert depth_criterion(grid, W).metric is False


def test_a_detour_keeps_the_end_to_end_map():
    z0, profile = relaxed_profile(3, 0)
    grid = nf.DepthGrid.gauss(4, 12)
    led_astray = Detour(profile, randn(3, 3, seed=1))
    product = nf.Collocation(grid).product(sample(led_astray, grid.nodes))
    assert float((product - z0).norm()) < 1e-11
    assert float(nf.laws.relaxed_balance_defect(grid, sample(led_astray, grid.nodes))) > 0.1
    torch.testing.assert_close(led_astray(0.3), led_astray.at(torch.tensor([0.3]))[0])


def test_the_criterion_in_depth_wants_one_resolved_profile():
    grid = nf.DepthGrid.gauss(2, 6)
    with pytest.raises(ValueError, match=r"W must have shape \(N, d, d\)"):
        depth_criterion(grid, torch.zeros(2, 12, 2, 2))
    with pytest.raises(ValueError, match="modes must be at least 1"):
        depth_criterion(grid, torch.zeros(12, 2, 2), modes=0)


def test_nothing_objects_where_nothing_keeps_z():
    grid = nf.DepthGrid.gauss(2, 8)
    found = depth_criterion(grid, sample(smooth_profile(1, 3), grid.nodes))
    assert found.metric is True
    assert (found.size, found.relative, found.variations.rank) == (0.0, 0.0, 0)
    assert found.scale > 0
