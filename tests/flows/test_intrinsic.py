from contextlib import nullcontext

import numpy as np
import pytest
import torch
from cases import all_losses, positive_matrix, randn
from digits import kernel_in_many_digits

import neuralode_flow as nf
from neuralode_flow import kernels
from neuralode_flow.kernels.logmean import log_logmean


def power(symmetric, s):
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors @ torch.diag(values**s) @ vectors.mT


@pytest.mark.parametrize("d", [1, 2, 5])
def test_limit_velocity_is_the_integral_over_depth(d):
    z, G_loss = positive_matrix(d, seed=d, scale=1.0), all_losses(d, seed=1)["quadratic"]
    grid = nf.DepthGrid.gauss(8, 12)
    G = G_loss.gradient(z)
    integrand = torch.stack([power(z @ z.mT, 1 - s) @ G @ power(z.mT @ z, s) for s in grid.nodes.tolist()])
    velocity = nf.IntrinsicFlow(G_loss, nf.LogMean()).velocity(z)
    assert float((velocity + grid.integrate(integrand)).abs().max()) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0, 700.0])
def test_kernels_of_neighbouring_numbers(size, steps):
    """Their logarithms may be the same, where they are not."""
    near = size
    for _ in range(steps):
        near = float(np.nextafter(near, np.inf))
    sigma = torch.tensor([size, near])
    torch.testing.assert_close(nf.LogMean()(sigma), sigma.outer(sigma), rtol=1e-14, atol=0)
    torch.testing.assert_close(nf.LogMean().slope(sigma), sigma.unsqueeze(-1).expand(2, 2), rtol=1e-14, atol=0)
    double = log_logmean(2 * torch.log(sigma))
    torch.testing.assert_close(double.exp(), sigma.outer(sigma), rtol=1e-13, atol=0)
    layers = nf.DividedDifference(torch.zeros(3), time_scale=1 / 3)(sigma)
    assert bool(((layers / layers[0, 0] - 1).abs() < 1e-13).all())


def test_a_velocity_at_equal_singular_values_is_that_of_the_limit():
    """Numerical ones differ by round-off."""
    for seed in range(20):
        Q = torch.linalg.qr(randn(3, 3, seed=seed)).Q
        z = 3 * torch.block_diag(Q, torch.ones(1, 1))
        G = z - positive_matrix(4, seed)
        velocity = nf.IntrinsicFlow(nf.Quadratic(positive_matrix(4, seed)), nf.LogMean()).velocity(z)
        assert float((velocity + 9 * G).abs().max()) < 1e-12


def test_log_mean_between_its_bounds_and_at_its_limits():
    sigma = torch.tensor([3.0, 1.0, 1.0 + 1e-9, 1e-3, 1e-200, 0.0])
    K = nf.LogMean()(sigma)
    a, b = sigma[:, None], sigma[None, :]
    assert bool((a * b * (1 - 1e-15) <= K).all())
    assert bool(((a**2 + b**2) / 2 * (1 + 1e-15) >= K).all())
    assert torch.allclose(K.diagonal(), sigma**2)
    assert float(K[1, 2]) == pytest.approx(1 + 1e-9, abs=1e-15)
    assert float(K[0, 1]) == pytest.approx(8 / (2 * torch.log(torch.tensor(3.0)).item()), rel=1e-14)
    assert bool((K[-1] == 0).all())


def test_log_mean_of_very_different_singular_values():
    assert float(nf.LogMean()(torch.tensor([1e3, 1e-310]))[0, 1]) == pytest.approx(693.8, abs=0.1)


@pytest.mark.parametrize("L", [1, 2, 3, 7, 64, 4096])
@pytest.mark.parametrize("kind", ["balanced", "mixed"])
def test_divided_difference_kernel_equals_its_definition(L, kind):
    # High-precision values of (p(x_a) − p(x_b))/(x_a − x_b) by mpmath.
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    sigma = torch.tensor([2.5, 1.0, 0.3])
    steps = randn(max(L - 1, 0), seed=L) / L if kind == "mixed" else torch.zeros(max(L - 1, 0))
    shifts = torch.cat((torch.zeros(1), torch.cumsum(steps, 0)))
    K = nf.DividedDifference(shifts)(sigma)
    c = [mpmath.mpf(v) for v in shifts.tolist()]
    xs = []
    for s in sigma.tolist():
        goal, y = 2 * mpmath.log(s), 2 * mpmath.log(s) / L
        for _ in range(200):  # Newton in y = log(x + min c)
            x = mpmath.exp(y) - min(c)
            step = (mpmath.fsum(mpmath.log(x + v) for v in c) - goal) / mpmath.fsum(mpmath.exp(y) / (x + v) for v in c)
            y -= step
            if abs(step) < mpmath.mpf(10) ** -35:
                break
        xs.append(mpmath.exp(y) - min(c))
    for i in range(3):
        for j in range(3):
            p = [mpmath.mpf(s) ** 2 for s in sigma.tolist()]
            slope = p[i] * mpmath.fsum(1 / (xs[i] + v) for v in c)
            exact = slope if i == j else (p[i] - p[j]) / (xs[i] - xs[j])
            assert abs(float(mpmath.mpf(float(K[i, j])) / exact) - 1) < 2e-12


def test_two_layer_kernel_is_the_divided_difference_of_two_layers():
    sigma = torch.tensor([2.0, 1.0, 1.0, 0.2, 0.0])
    for lam in (0.0, 0.7, -1.3):
        two = nf.DividedDifference(torch.tensor([0.0, lam]))(sigma)
        assert torch.allclose(nf.TwoLayer(lam)(sigma), two, atol=1e-12)


def test_kernels_accept_leading_axes_in_any_order_of_sigma():
    sigma = randn(2, 3, 4, seed=0).abs()
    for kernel in (
        nf.LogMean(),
        nf.TwoLayer(0.5),
        nf.DividedDifference(torch.tensor([0.0, 0.3, -0.4]), time_scale=1 / 3),
    ):
        K = kernel(sigma)
        assert torch.allclose(K[1, 2], kernel(sigma[1, 2]), atol=1e-14)
        assert torch.allclose(K, K.mT, atol=1e-14)


def test_adding_a_constant_to_the_shifts_changes_nothing():
    sigma, c = torch.tensor([2.0, 0.5]), torch.tensor([0.0, 0.4, -0.2])
    assert torch.allclose(nf.DividedDifference(c)(sigma), nf.DividedDifference(c + 3)(sigma), atol=1e-13)


@pytest.mark.parametrize("seed", range(6))
def test_velocity_of_z_follows_from_the_layers(seed):
    # ż = Σ_k U_L … U̇_k … U_1 of the network equals the closed velocity in z.
    d, L = 2 + seed % 4, 2 + seed
    z0, shifts = randn(d, d, seed=seed), torch.cat((torch.zeros(1), torch.cumsum(randn(L - 1, seed=seed), 0)))
    loss = all_losses(d, seed=seed)["custom"]
    state = nf.relaxed_balanced_layers(z0, shifts, torch.Generator().manual_seed(seed))
    flow = nf.FiniteFlow(L, loss)
    velocity, U = flow.velocity(state), torch.eye(d) + state / L
    moved = torch.zeros(d, d)
    for k in range(L):
        factors = [*U[:k], velocity[k] / L, *U[k + 1 :]]
        product = torch.eye(d)
        for factor in factors:
            product = factor @ product
        moved = moved + product
    closed = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts, time_scale=1 / L)).velocity(z0)
    assert float((moved - closed).abs().max()) < 1e-12 * (1 + float(closed.abs().max()))


def test_kernel_arguments_are_checked():
    with pytest.raises(ValueError, match="shifts must be finite"):
        nf.DividedDifference(torch.tensor([0.0, torch.inf]))
    with pytest.raises(TypeError, match="shifts must hold floating-point numbers"):
        nf.DividedDifference(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="time_scale must be above 0"):
        nf.DividedDifference(torch.zeros(2), time_scale=0.0)
    with pytest.raises(ValueError, match="shift must be finite"):
        nf.TwoLayer(float("nan"))


def kernel_of(formula, positive_determinant=False):
    """A kernel by its formula in (σ_a, σ_b)."""

    class Own:
        def __call__(self, sigma):
            return formula(sigma.unsqueeze(-1), sigma.unsqueeze(-2))

    Own.positive_determinant = positive_determinant
    return Own()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (kernel_of(lambda a, b: a * b**2), "symmetric"),
        (kernel_of(lambda a, b: a + b - 1), ">= 0"),
        (kernel_of(lambda a, b: (a + b) * (1 + torch.eye(3))), "K_aa = K_ab where sigma_a = sigma_b"),
        (kernel_of(lambda a, b: (a + b).sum(-1)), r"map sigma \(..., d\) to K"),
        (kernel_of(lambda a, b: a * b / (a * b).sum()), "each member of a batch its own K"),
        (kernel_of(lambda a, b: a * b * torch.ones(3, 3).cumsum(-1) * torch.ones(3, 3).cumsum(-2)), "order of sigma"),
        (kernel_of(lambda a, b: torch.sqrt(a * b + 0.01), True), "declare positive_determinant = False"),
        (kernel_of(lambda a, b: (a * b) ** 0.25, True), "declare positive_determinant = False"),
    ],
)
def test_a_kernel_that_breaks_a_promise_is_refused_by_what_it_breaks(kernel, words):
    with pytest.raises(ValueError, match=f"kernel Own .*{words}"):
        nf.IntrinsicFlow(nf.Quadratic(torch.eye(3)), kernel)


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        (lambda sigma: 1.1 * sigma.unsqueeze(-2).expand(*sigma.shape, sigma.shape[-1]), "a slope that is not"),
        (lambda sigma: sigma.unsqueeze(-1).expand(*sigma.shape, sigma.shape[-1]), "a slope that is not"),
        (lambda sigma: sigma, r"slopes \(..., d, d\)"),
    ],
)
def test_a_kernel_with_the_slope_of_another_is_refused(slope, words):
    """Steps of stiff methods shrank: 21 449 evaluations where 389 are enough."""
    kernel = kernel_of(lambda a, b: a * b, True)
    kernel.slope = slope
    with pytest.raises(ValueError, match=words):
        nf.IntrinsicFlow(nf.Quadratic(torch.eye(3)), kernel)


def test_a_slope_that_raises_is_told_of_and_one_that_is_none_is_not_known():
    class Raises(nf.LogMean):
        def slope(self, sigma):
            raise NotImplementedError("not yet")

    class Without(nf.LogMean):
        slope = None

    loss = nf.Quadratic(torch.eye(2))
    with pytest.raises(ValueError, match=r"slope that raises NotImplementedError: not yet; mend it .* leave it out"):
        nf.IntrinsicFlow(loss, Raises())
    flow = nf.IntrinsicFlow(loss, Without())
    assert not flow.knows_jacobian(2 * torch.eye(2))
    assert nf.integrate(flow, 2 * torch.eye(2), [0.0, 1.0], "RK45").status == "ok"


def test_a_kernel_with_a_slope_of_its_own_is_taken():
    kernel = kernel_of(lambda a, b: a * b, True)
    kernel.slope = lambda sigma: sigma.unsqueeze(-2).expand(*sigma.shape, sigma.shape[-1])
    nf.IntrinsicFlow(nf.Quadratic(torch.eye(3)), kernel)


def test_right_kernels_are_not_refused():
    own = [kernel_of(lambda a, b: a * b, True), kernel_of(lambda a, b: a + b), kernel_of(lambda a, b: 0 * (a + b) + 1)]
    for kernel in own:
        nf.IntrinsicFlow(nf.Quadratic(torch.eye(3)), kernel)
    shifts = [c * torch.linspace(0, 1, L) for c in (0.0, 1.0, 1e8) for L in (1, 2, 50)]
    for kernel in (nf.LogMean(), nf.TwoLayer(0.0), nf.TwoLayer(1e8), *map(nf.DividedDifference, shifts)):
        kernels.base._check_values_of("kernel", kernel)


@pytest.mark.parametrize("L", [2, 64, 65, 1000, 100_000])
@pytest.mark.parametrize("kind", ["equal", "mixed", "halves", "large"])
def test_divided_difference_keeps_its_digits_at_any_depth(L, kind):
    # Shifts that take few values, so that sums of 10⁵ terms in many digits are short.
    k = torch.arange(L)
    shifts = {"equal": k * 0.0, "mixed": (k % 3) * 0.85, "halves": (k < L // 2) * 1.7, "large": (k % 2) * 1e6}[kind]
    for sigma in ([2.5, 1.0, 0.3], [1e3, 1e-3], [1.0 + 1e-9, 1.0], [1e-3, 1e-3 * (1 + 1e-14)]):
        K = nf.DividedDifference(shifts)(torch.tensor(sigma))
        for (i, j), exact in kernel_in_many_digits(sigma, shifts).items():
            assert abs(float(K[i, j] / exact) - 1) < 4e-13


@pytest.mark.parametrize("L", [1, 2, 64, 65, 1000])
@pytest.mark.parametrize("kind", ["equal", "one", "halves"])
def test_divided_difference_at_zero_is_what_the_root_at_zero_says(L, kind):
    # p(x) = Π (x + c_k) has at 0 the root −min c, whatever else there is; K is a sum of products without cancellation.
    k = torch.arange(L)
    shifts = {"equal": k * 0.0, "one": (k != L // 3) * 0.5, "halves": (k < L // 2) * 0.5}[kind]
    sigma = torch.tensor([2.5, 0.0, 0.3, 0.0])
    kernel = nf.DividedDifference(shifts)
    factors = torch.exp(kernels.log_factors(sigma, shifts))
    assert bool((factors[sigma == 0] == shifts - shifts.min()).all())
    ones = torch.ones(4, 1)
    before = torch.cumprod(torch.cat((ones, factors[:, :-1]), 1), 1)
    after = torch.cumprod(torch.cat((ones, factors.flip(1)[:, :-1]), 1), 1).flip(1)
    exact = before @ after.mT
    assert torch.allclose(kernel(sigma), exact, rtol=1e-11, atol=0)
    G = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    z = torch.diag(sigma)
    assert torch.allclose(nf.IntrinsicFlow(nf.Quadratic(z - G), kernel).velocity(z), -exact * G, rtol=1e-11, atol=0)
    assert torch.allclose(kernel(0 * sigma), exact[1, 1].expand(4, 4), rtol=1e-11, atol=0)


@pytest.mark.parametrize("L", [8, 1000])
def test_the_closed_flow_of_a_singular_z_is_that_of_its_layers(L):
    loss = nf.Quadratic(torch.tensor([[1.5, 0.7], [-0.4, 0.3]]))
    z = torch.diag(torch.tensor([1.0, 0.0]))
    W, times = L * (z.expand(L, 2, 2) - torch.eye(2)), [0.0, 0.5, 2.0]
    accuracy = {"method": "DOP853", "rtol": 1e-9, "atol": 1e-11}
    layers = nf.integrate(nf.FiniteFlow(L, loss), W, times, **accuracy)
    kernel = nf.DividedDifference(torch.zeros(L), time_scale=1 / L)
    closed = nf.integrate(nf.IntrinsicFlow(loss, kernel), z, times, **accuracy)
    assert closed.status == "ok"
    assert torch.allclose(closed.z, layers.z, rtol=0, atol=1e-8)


def singular(d: int) -> torch.Tensor:
    """A z of rank d − 1 whose least singular value, in floats, is the round-off of its entries, with det z > 0."""
    values = torch.linspace(1, 0, d)
    for seed in range(100):
        Q, R = torch.linalg.qr(randn(d, d, seed=seed)).Q, torch.linalg.qr(randn(d, d, seed=100 + seed)).Q
        z = Q @ torch.diag(values) @ R.mT
        if 0 < float(torch.linalg.svdvals(z)[-1]) < 2e-16 and float(torch.linalg.det(z)) > 0:
            return z
    raise AssertionError("no such z")


@pytest.mark.parametrize(
    ("kernel", "power"),
    [
        (nf.DividedDifference(torch.zeros(4), time_scale=1 / 4), "its power 2/4"),
        (nf.DividedDifference(torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0])), "its power 2/4"),
        (nf.DividedDifference(torch.zeros(64), time_scale=1 / 64), "its power 2/64"),
        (nf.LogMean(), "the inverse of its logarithm"),
    ],
)
def test_a_start_that_is_singular_up_to_round_off_is_told_where_the_kernel_has_a_root_of_it(kernel, power):
    z, loss = singular(3), nf.Quadratic(randn(3, 3, seed=5))
    flow, accuracy = nf.IntrinsicFlow(loss, kernel), {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    with pytest.warns(RuntimeWarning, match=f"singular up to round-off: .* counts as {power}"):
        nf.integrate(flow, z, [0.0, 0.1], **accuracy)
    with pytest.warns(RuntimeWarning, match="^state of member 1 of 2 is singular up to round-off"):
        nf.integrate(flow, torch.stack((torch.eye(3), z)), [0.0, 0.1], **accuracy)
    with pytest.warns(RuntimeWarning, match="singular up to round-off"):
        nf.descend(flow, z, steps=1, rate=0.01)


@pytest.mark.parametrize(
    ("kernel", "z", "rtol"),
    [
        # A root that is below the tolerance, or none.
        (nf.DividedDifference(torch.zeros(4)), singular(3), 1e-6),
        (nf.DividedDifference(torch.zeros(2)), singular(3), 1e-12),
        (nf.DividedDifference(torch.arange(8.0)), singular(3), 1e-12),
        (nf.TwoLayer(0.0), singular(3), 1e-12),
        (nf.TwoLayer(1.0), singular(3), 1e-12),
        # Small and meant: the singular values of a diagonal matrix are exact.
        (nf.DividedDifference(torch.zeros(8)), torch.diag(torch.tensor([1.0, 1e-18])), 1e-12),
        (nf.DividedDifference(torch.zeros(8)), torch.tensor([[0.0, 1e-18], [1.0, 0.0]]), 1e-12),
        (nf.LogMean(), torch.diag(torch.tensor([1.0, 1e-18])), 1e-12),
        (nf.DividedDifference(torch.zeros(8)), torch.diag(torch.tensor([1.0, 0.0])), 1e-12),
        (nf.DividedDifference(torch.zeros(8)), torch.zeros(2, 2), 1e-12),
    ],
)
def test_no_other_start_is_called_singular_up_to_round_off(kernel, z, rtol):
    flow = nf.IntrinsicFlow(nf.Quadratic(z.clone()), kernel)  # warnings are errors
    assert nf.integrate(flow, z, [0.0, 0.1], "DOP853", rtol=rtol, atol=rtol / 100).status == "ok"


@pytest.mark.parametrize("L", [4, 8, 16])
def test_what_is_said_of_a_singular_start_is_of_the_size_of_what_it_does(L):
    # In the bases in which z0 is diagonal its least singular value is 0, and the flow is that of singular layers.
    U, sigma, Vh = torch.linalg.svd(singular(3))
    sigma[-1] = 0.0
    target, kernel = randn(3, 3, seed=5), nf.DividedDifference(torch.zeros(L), time_scale=1 / L)
    accuracy = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    with pytest.warns(RuntimeWarning) as caught:
        path = nf.integrate(nf.IntrinsicFlow(nf.Quadratic(target), kernel), singular(3), [0.0, 0.5, 1.0], **accuracy)
    exact = nf.IntrinsicFlow(nf.Quadratic(U.mT @ target @ Vh.mT), kernel)
    turned = nf.integrate(exact, torch.diag(sigma), [0.0, 0.5, 1.0], **accuracy)
    distance = float(torch.linalg.matrix_norm(path.z - U @ turned.z @ Vh).max())
    said = float(str(caught[0].message).split("differs by ")[1].split(" ")[0])
    assert said / 10 < distance < 10 * said


def test_a_profile_of_a_z_that_is_singular_up_to_round_off_is_told():
    for seed in range(10):
        U, sigma, Vh = torch.linalg.svd(randn(3, 3, seed=seed))
        z = U @ torch.diag(sigma * torch.tensor([1.0, 1.0, 0.0])) @ Vh
        z = z * torch.linalg.det(z).sign()
        rank = torch.linalg.svd(z)
        sure = float(torch.linalg.det(rank.U @ rank.Vh)) > 0
        refused = nullcontext() if sure else pytest.raises(ValueError, match="its det has no sign")
        with pytest.warns(RuntimeWarning, match="^z0 is singular up to round-off"), refused:
            nf.relaxed_balanced(z)
    nf.relaxed_balanced(torch.diag(torch.tensor([1.0, 1e-18])))


@pytest.mark.parametrize("shifts", [[0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0, 0.3], [0.0, 0.5], [0.0]])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_slope_of_layers_at_zero_is_that_of_their_kernel(shifts, scale):
    kernel, sigma, h = nf.DividedDifference(torch.tensor(shifts), time_scale=scale), torch.tensor([2.0, 0.7, 0.0]), 1e-8
    moved = sigma + torch.tensor([0.0, 0.0, h])
    expected = (kernel(moved)[2, :2] - kernel(sigma)[2, :2]) / h
    assert torch.allclose(kernel.slope(sigma)[2, :2], expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(kernel.slope(sigma)[2], kernel.slope(moved)[2], rtol=1e-6, atol=1e-6)
    assert torch.equal(kernel.slope(sigma)[:2], kernel.slope(sigma.flip(0)).flip(0, 1)[:2])


def test_the_slope_of_two_layers_is_one_down_to_the_least_number():
    sigma = torch.tensor([2.0, 1e-200, 0.0])
    assert torch.allclose(nf.DividedDifference(torch.zeros(2)).slope(sigma), torch.ones(3, 3), rtol=1e-13)
    three = nf.DividedDifference(torch.zeros(3)).slope(sigma)[2]
    assert bool(three[:2].isinf().all())
    assert float(three[2]) == 0


def test_the_slopes_of_many_kernels_at_zero_are_those_of_each_alone():
    kernels = [nf.DividedDifference(torch.tensor(shifts)) for shifts in ([0.0, 0.5, 1.0], [0.0, 0.0, 1.0], [0.0] * 3)]
    sigma = torch.tensor([2.0, 1.0, 0.0])
    together = nf.DividedDifference.together(kernels).slope(sigma.expand(3, 3))
    for own, kernel in zip(together, kernels, strict=True):
        assert torch.allclose(own, kernel.slope(sigma), rtol=1e-13)
        mapped = torch.func.vmap(kernel.slope)(torch.stack([sigma, sigma + 1]))
        assert torch.allclose(mapped, torch.stack([kernel.slope(sigma), kernel.slope(sigma + 1)]), rtol=1e-13)


def test_the_derivative_where_three_layers_are_singular_is_a_number():
    flow = nf.IntrinsicFlow(nf.Quadratic(torch.tensor([[2.0, 0.3], [0.1, 1.0]])), nf.DividedDifference(torch.zeros(3)))
    z = torch.diag(torch.tensor([1.0, 0.0]))
    assert flow.jacobian(z).isfinite().all()
    path = nf.integrate(nf.ModifiedFlow(flow, 0.01), z, [0.0, 1.0], "DOP853")
    assert path.status == "ok"


def test_a_class_of_ones_own_may_have_a_state_that_is_no_matrix():
    class Flat(nf.IntrinsicFlow):
        def check(self, state):
            pass

        def product(self, state):
            return state.unflatten(-1, (2, 2))

        def velocity(self, state):
            return super().velocity(self.product(state)).flatten(-2)

        def law(self, state):
            return super().law(self.product(state))

        def carrier(self):
            return None

    flow = Flat(nf.Quadratic(2 * torch.eye(2)), nf.LogMean())
    assert nf.integrate(flow, torch.eye(2).flatten(), [0.0, 0.5], "DOP853").status == "ok"


def test_kernels_of_two_layers_do_not_vanish_where_squares_do():
    sigma = torch.tensor([3e-300, 1e-300])
    expected = sigma[:, None] + sigma
    for kernel in (nf.TwoLayer(0.0), nf.DividedDifference(torch.zeros(2)), nf.TwoLayer(1e-310)):
        assert torch.allclose(kernel(sigma) * 1e300, expected * 1e300, rtol=1e-12, atol=0)
    ends = nf.DividedDifference(torch.tensor([0.0, 1.7]))(torch.tensor([1.0, 1e-300]))
    assert torch.isfinite(ends).all()
    assert bool((ends > 0).all())
