"""The linear systems: their closed flows against the flow of θ, their laws, and what is known about them."""

import math

import pytest
import torch
from cases import generator, randn

import neuralode_flow as nf
from neuralode_flow.intrinsic.systems import ClosedFlow
from neuralode_flow.intrinsic.systems.balanced_two_layer import relaxed_metric
from neuralode_flow.intrinsic.systems.linear_network import image_dimension, independent_laws, laws_of, phi_of
from neuralode_flow.intrinsic.systems.scalar_chain import slope
from neuralode_flow.intrinsic.systems.single_neuron import potential

TIMES = torch.linspace(0, 3, 31)

DEFAULTS = [
    ("linear_network", {}),
    ("balanced_two_layer", {}),
    ("hyperbolic_leaf", {}),
    ("scalar_chain", {}),
    ("scalar_in_out", {}),
    ("diagonal_product", {}),
    ("single_neuron", {}),
    ("convolution", {}),
    ("deep_diagonal", {}),
]

# (n, m, r, λ) of a flow that closes on z, and of one that does not.
CLOSED = [
    (3, 3, 3, 0.7),
    (3, 2, 3, 0.7),
    (4, 2, 4, 0.7),
    (3, 3, 2, 0.7),
    (2, 4, 4, -1.0),
    (2, 4, 2, -1.0),
    (4, 3, 3, 1.0),
    (3, 4, 2, -1.3),
    (3, 4, 5, 0.0),
    (4, 3, 2, 0.0),
    (4, 2, 1, 0.5),
]
OPEN = [(4, 2, 3, 0.7), (5, 2, 3, 0.3), (2, 4, 3, -0.7)]

OTHERS = [
    ("linear_network", {"widths": (2,) * 7}),
    ("linear_network", {"widths": (1, 1, 1)}),
    ("hyperbolic_leaf", {"outputs": 2, "inputs": 3, "scale": 1.5, "shift": -1.2}),
    ("hyperbolic_leaf", {"outputs": 1, "inputs": 1, "shift": 0.6}),
    ("scalar_chain", {"depth": 2}),
    ("scalar_chain", {"depth": 12}),
    ("scalar_in_out", {"width": 1}),
    ("scalar_in_out", {"width": 2}),
    ("diagonal_product", {"dimension": 3, "samples": 6}),
    ("single_neuron", {"delta": -2.0}),
    ("single_neuron", {"delta": 0}),
    ("convolution", {"kernels": (3, 2), "strides": (4,)}),
    ("convolution", {"kernels": (2, 1), "strides": (2,)}),
    ("deep_diagonal", {"dimension": 3, "depth": 5, "samples": 6}),
]

WITHOUT = [
    ("linear_network", {"widths": (3, 3, 3, 3), "start": "random"}),
    ("linear_network", {"widths": (2, 5, 3), "start": "random"}),
    ("linear_network", {"widths": (2, 1, 1, 3), "start": "random"}),
    ("convolution", {"kernels": (3, 2), "strides": (2,)}),
    ("convolution", {"kernels": (2, 2, 2), "strides": (2, 2)}),
    ("delta_block", {}),
    ("delta_block", {"dimension": 2, "depth": 3}),
]


def system(name, **options):
    return nf.SYSTEMS[name](**options)


def run(flow, start):
    path = nf.integrate(flow, start, TIMES, "DOP853", rtol=1e-11, atol=1e-13, observe=lambda i, state: state.clone())
    assert path.status == "ok"
    return path


def trained(case):
    return run(nf.FactorizationFlow(case.phi, case.loss, case.laws), case.theta)


def apart(a, b):
    return float((a - b).reshape(len(a), -1).norm(dim=1).max())


def balanced(n, m, r, lam, seed):
    return system("balanced_two_layer", outputs=n, inputs=m, width=r, balance=lam, seed=seed)


def assert_closed(case):
    path = trained(case)
    assert apart(run(case.closed, case.phi(case.theta)).z, path.z) < case.bound
    assert float(path.drift.max()) < 1e-9
    assert all(check(path.times, path.observed) < case.bound for check in case.checks.values())


def rank(matrix):
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-9))


def jacobians(case, theta):
    return torch.func.jacrev(lambda t: case.phi(t).flatten())(theta), torch.func.jacrev(case.laws)(theta)


def metric_defect(case):
    """The largest derivative of M = ∂φ∂φᵀ along the common kernel of ∂φ and ∂h: criterion B."""

    def metric(theta):
        slope = torch.func.jacrev(lambda t: case.phi(t).flatten())(theta)
        return slope @ slope.mT

    stacked = torch.cat(jacobians(case, case.theta))
    kernel = torch.linalg.svd(stacked).Vh[rank(stacked) :]
    return float((torch.func.jacrev(metric)(case.theta) @ kernel.mT).abs().max()) if len(kernel) else 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "options"), DEFAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_z_of_the_parameters_follows_the_closed_flow(name, options, seed):
    assert_closed(system(name, **options, seed=seed))


@pytest.mark.parametrize(("name", "options"), OTHERS, ids=str)
def test_z_follows_the_closed_flow_at_other_sizes(name, options):
    assert_closed(system(name, **options, seed=3))


@pytest.mark.parametrize("sizes", CLOSED, ids=str)
def test_two_balanced_layers_close_where_the_kernel_of_z_is_settled(sizes):
    case = balanced(*sizes, seed=3)
    assert case.metric is True
    assert metric_defect(case) < 1e-12
    assert_closed(case)


@pytest.mark.parametrize("sizes", OPEN, ids=str)
def test_two_balanced_layers_do_not_close_if_the_kernel_of_z_has_both_eigenvalues(sizes):
    case = balanced(*sizes, seed=3)
    assert case.closed is None
    assert case.metric is False
    assert metric_defect(case) > 0.1
    path = trained(case)
    assert all(check(path.times, path.observed) < case.bound for check in case.checks.values())


@pytest.mark.parametrize(("name", "options"), WITHOUT, ids=str)
def test_laws_hold_where_no_closed_flow_is_known(name, options):
    case = system(name, **options, seed=1)
    assert case.closed is None
    assert float(trained(case).drift.max()) < 1e-9


@pytest.mark.parametrize(("name", "options"), DEFAULTS + OTHERS + WITHOUT, ids=str)
def test_ranks_are_those_that_the_system_states(name, options):
    case = system(name, **options, seed=4)
    of_phi, of_laws = jacobians(case, case.theta)
    assert float((of_phi @ of_laws.mT).abs().max()) < 1e-10
    assert rank(of_laws) == case.independent
    recoverable = rank(torch.cat((of_phi, of_laws))) == len(case.theta)
    assert case.recoverable in (recoverable, None)
    assert case.metric in (metric_defect(case) < 1e-10, None)


@pytest.mark.parametrize(("name", "options"), DEFAULTS + WITHOUT, ids=str)
def test_maps_and_closed_flows_take_leading_axes(name, options):
    case = system(name, **options)
    theta = case.theta + 0.01 * randn(2, 3, len(case.theta), seed=1)
    for f in (case.phi, case.laws):
        whole, one = f(theta), f(theta[1, 2])
        assert whole.shape == (2, 3, *one.shape)
        assert torch.allclose(whole[1, 2], one, atol=1e-14)
        assert torch.allclose(torch.func.vmap(f)(theta[0]), whole[0], atol=1e-14)
    if isinstance(case.closed, ClosedFlow):
        z = case.phi(theta)
        assert torch.allclose(case.closed.velocity(z)[1, 2], case.closed.velocity(z[1, 2]), atol=1e-12)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_independent_laws_are_the_rank_of_their_jacobian(layers):
    draws = generator(layers)
    for _ in range(25):
        widths = torch.randint(1, 7, (layers + 1,), generator=draws).tolist()
        number = sum(n * m for n, m in zip(widths, widths[1:]))
        theta = torch.randn(number, generator=draws)
        assert rank(torch.func.jacrev(laws_of(widths))(theta)) == independent_laws(widths), widths
        phi = phi_of(widths)
        assert rank(torch.func.jacrev(lambda t, phi=phi: phi(t).flatten())(theta)) == image_dimension(widths), widths


@pytest.mark.parametrize(("n", "m", "r"), [(3, 2, 4), (3, 2, 5), (3, 2, 9), (1, 1, 6)])
def test_independent_laws_of_two_layers_are_the_published_number(n, m, r):
    N = n + m
    assert independent_laws((m, r, n)) == (r * (r + 1) // 2 if r <= N else N * r - N * (N - 1) // 2)


def test_relaxed_balanced_networks_start_with_multiples_of_the_identity():
    theta = system("linear_network", widths=(4, 4, 4, 4), seed=2).theta
    W = theta.reshape(3, 4, 4)
    law = W[1:].mT @ W[1:] - W[:-1] @ W[:-1].mT
    assert torch.allclose(law, law[:, :1, :1] * torch.eye(4), atol=1e-13)
    assert float(torch.linalg.det(W[2] @ W[1] @ W[0])) > 0


def test_square_balanced_layers_have_the_two_layer_kernel():
    case = balanced(3, 3, 3, -0.9, seed=1)
    z = randn(3, 3, seed=5)
    expected = nf.IntrinsicFlow(case.loss, nf.TwoLayer(-0.9)).velocity(z)
    assert torch.allclose(case.closed.velocity(z), expected, atol=1e-13)


@pytest.mark.parametrize(("n", "m", "shift"), [(1, 2, 0.0), (2, 1, 0.3), (3, 3, -0.6)])
def test_the_laws_of_the_hyperbolic_leaf_have_both_signs(n, m, shift):
    theta = system("hyperbolic_leaf", outputs=n, inputs=m, scale=0.7, shift=shift).theta
    Vt, U = theta[: (n + m) * m].reshape(n + m, m), theta[(n + m) * m :].reshape(n, n + m)
    eigenvalues = torch.linalg.eigvalsh(U.mT @ U - Vt @ Vt.mT)
    assert torch.allclose(eigenvalues, torch.tensor([shift - 0.7] * m + [shift + 0.7] * n), atol=1e-13)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (2, 3)])
def test_the_sum_of_both_eigenvalues_drops_out_and_their_difference_does_not(n, m):
    plain, shifted, other = (
        system("hyperbolic_leaf", outputs=n, inputs=m, scale=a, shift=s)
        for a, s in ((0.7, 0.0), (0.7, -0.5), (0.8, 0.0))
    )
    assert torch.equal(plain.loss.target, shifted.loss.target)
    z = plain.phi(plain.theta)
    assert torch.allclose(shifted.phi(shifted.theta), z, atol=1e-14)
    path = trained(plain).z
    assert apart(trained(shifted).z, path) < 1e-10
    assert apart(run(other.closed, z).z, path) > 1e-2
    assert apart(run(plain.control, z).z, path) > 1e-1


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (2, 3), (3, 3)])
def test_as_the_negative_eigenvalue_goes_to_zero_the_network_is_relaxed_balanced(n, m):
    case, z, G = system("hyperbolic_leaf", outputs=n, inputs=m), randn(n, m, seed=6), randn(n, m, seed=7)
    assert torch.allclose(case.closed.formula(z, G), -relaxed_metric(z, G, 1.4, n), atol=1e-13)
    limit = system("hyperbolic_leaf", outputs=n, inputs=m, shift=0.7 * (1 - 1e-12))
    Vt, U = limit.theta[: (n + m) * m].reshape(n + m, m), limit.theta[(n + m) * m :].reshape(n, n + m)
    left, values, _ = torch.linalg.svd(torch.cat((U, Vt.mT)), full_matrices=False)
    assert float(values[n]) < 1e-5 < float(values[n - 1])
    narrow = left[:, :n] * values[:n]
    law = narrow[:n].mT @ narrow[:n] - narrow[n:].mT @ narrow[n:]
    assert torch.allclose(law, 1.4 * torch.eye(n), atol=1e-10)
    theta = torch.cat((narrow[n:].mT.flatten(), narrow[:n].flatten()))
    balanced = run(nf.FactorizationFlow(phi_of((m, n, n)), limit.loss), theta)
    assert apart(balanced.z, trained(limit).z) < 1e-9


def test_a_chain_of_equal_scalars_has_the_slope_of_arora():
    z = torch.tensor([1e-8, 0.3, -2.0, 50.0])
    assert torch.allclose(slope(z, torch.zeros(5)), 5 * z.abs() ** (2 - 2 / 5), rtol=1e-13)


@pytest.mark.parametrize("z", [0.0, 1e-9, 0.4, -3.0])
def test_a_chain_of_two_scalars_has_the_slope_of_a_quadratic_equation(z):
    assert float(slope(torch.tensor(z), torch.tensor([0.0, -1.5]))) == pytest.approx(math.hypot(1.5, 2 * z), rel=1e-13)


def test_a_chain_with_one_smallest_factor_changes_its_sign():
    case = system("scalar_chain", depth=3, seed=1)
    loss = nf.Quadratic(torch.tensor(-0.8))
    closed = ClosedFlow(loss, case.closed.formula)
    path = run(nf.FactorizationFlow(case.phi, loss, case.laws), case.theta)
    assert path.z[0] > 0 > path.z[-1]
    assert apart(run(closed, case.phi(case.theta)).z, path.z) < 1e-8


@pytest.mark.parametrize("delta", [-1.5, 0.0, 0.8])
def test_the_potential_of_a_neuron_is_the_published_one(delta):
    w = randn(7, 3, seed=1)
    x, half = w.norm(dim=-1), delta / 2
    S = torch.sqrt(x.square() + half**2)
    published = (x.square() - half * (half + S)) * torch.sqrt(S - half) / x
    assert torch.allclose(potential(w, delta), published, rtol=1e-12)


def test_a_composed_filter_is_the_filter_of_strided_convolutions():
    kernels, strides = (3, 2, 4), (2, 3)
    case = system("convolution", kernels=kernels, strides=strides, seed=2)
    x = randn(1, 1, 40, seed=3)
    step_by_step = x
    for w, stride in zip(case.theta.split(list(kernels)), (*strides, 1)):
        step_by_step = torch.nn.functional.conv1d(step_by_step, w[None, None], stride=stride)
    z = case.phi(case.theta)
    at_once = torch.nn.functional.conv1d(x, z[None, None], stride=6)
    assert len(z) == 3 + 1 * 2 + 3 * 6
    assert torch.allclose(at_once[..., : step_by_step.shape[-1]], step_by_step, atol=1e-13)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_delta_blocks_leave_the_flow_of_balanced_layers(seed):
    case = system("delta_block", seed=seed)
    z0 = case.phi(case.theta)
    assert float(torch.linalg.det(z0)) > 0
    assert apart(run(case.control, z0).z, trained(case).z) > 0.05
    assert float(case.observe["imbalance"](case.theta).min()) > 1e-3


def test_delta_blocks_with_equal_keys_and_strengths_are_balanced():
    theta = torch.tensor([0.3, 1.0, 2.0, 0.3, 1.0, 2.0])
    assert float(system("delta_block", dimension=2, depth=2).observe["imbalance"](theta)) < 1e-15


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("linear_network", {"widths": (3, 3)}, ValueError, "system.widths must have at least 3"),
        ("linear_network", {"widths": "333"}, TypeError, "system.widths must be a list"),
        ("linear_network", {"widths": (3, 0, 3)}, ValueError, r"system.widths\[1\] must be at least 1"),
        ("linear_network", {"widths": (3, 4, 3)}, ValueError, "system.widths must be all equal"),
        ("linear_network", {"start": "zero"}, ValueError, "system.start must be one of"),
        (
            "balanced_two_layer",
            {"outputs": 2, "width": 3},
            ValueError,
            "system.width must be at most system.outputs = 2",
        ),
        (
            "balanced_two_layer",
            {"inputs": 2, "balance": -1},
            ValueError,
            "system.width must be at most system.inputs = 2",
        ),
        ("balanced_two_layer", {"balance": math.nan}, ValueError, "system.balance must be finite"),
        ("hyperbolic_leaf", {"scale": 0}, ValueError, "system.scale must be above 0"),
        ("hyperbolic_leaf", {"shift": -0.7}, ValueError, "system.shift must be between −system.scale and system.scale"),
        ("hyperbolic_leaf", {"shift": math.inf}, ValueError, "system.shift must be finite"),
        ("scalar_chain", {"depth": 1}, ValueError, "system.depth must be at least 2"),
        ("scalar_in_out", {"width": 0}, ValueError, "system.width must be at least 1"),
        ("diagonal_product", {"samples": 1.5}, TypeError, "system.samples must be an integer"),
        ("single_neuron", {"dimension": 4, "samples": 3}, ValueError, "system.samples must be at least 4"),
        ("single_neuron", {"delta": "one"}, TypeError, "system.delta must be a number"),
        ("convolution", {"kernels": (2,), "strides": ()}, ValueError, "system.kernels must have at least 2"),
        ("convolution", {"kernels": (2, 3, 2)}, ValueError, "system.strides must have one entry fewer"),
        ("deep_diagonal", {"depth": 1}, ValueError, "system.depth must be at least 2"),
        ("delta_block", {"dimension": 0}, ValueError, "system.dimension must be at least 1"),
    ],
)
def test_wrong_parameters_are_refused_by_name(name, options, error, message):
    with pytest.raises(error, match=message):
        system(name, **options)
