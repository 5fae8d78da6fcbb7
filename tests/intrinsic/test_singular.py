"""Points where the gradients of φ generate less than around them: the theorem of Frobenius says nothing there."""

import exactly
import maps
import pytest
import torch
from cases import randn

from neuralode_flow.intrinsic import report

# φ, the point, its laws, and dim Lie there and around.
POINTS = {
    "a dead neuron": (maps.layers(3, 2, 2), [0.5, 0, 1.25, 0, -0.75, 0, 0.375, 0, 1.5, 0], maps.balance(3, 2, 2), 4, 7),
    "WWᵀ of rank one": (maps.symmetric(3, 2), [0.5, 1, 0.25, 0.5, -0.75, -1.5], None, 3, 6),
    "BA at zero": (maps.layers(2, 2, 2), [0.0] * 8, maps.balance(2, 2, 2), 0, 5),
    "B at zero, A singular": (maps.layers(2, 2, 2), [0, 0, 0, 0, 0.5, 1, 0.5, 1.0], maps.balance(2, 2, 2), 3, 5),
    "abc with two zeros": (maps.product, [0.0, 0.0, 1.0], lambda t: [t[0] * t[0] - t[1] * t[1]], 0, 1),
    "abcd with three zeros": (maps.product, [0.0, 0.0, 0.0, 3.0], lambda t: [t[0] * t[0] - t[1] * t[1]], 0, 1),
    "a neuron at zero": (maps.neuron, [0.0, 0.0, 0.0], lambda t: [t[0] * t[0] - t[1] * t[1] - t[2] * t[2]], 0, 2),
    "(x, x²y)": (lambda t: [t[0], t[0] * t[0] * t[1]], [0.0, 1.0], None, 2, 2),
    "(x, x³y)": (lambda t: [t[0], t[0] * t[0] * t[0] * t[1]], [0.0, 1.0], None, 2, 2),
    "(x, xy, x²y)": (lambda t: [t[0], t[0] * t[1], t[0] * t[0] * t[1]], [0.0, 1.0], None, 2, 2),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_point_where_the_gradients_generate_less_is_not_recoverable(name):
    phi, point, laws, here, around = POINTS[name]
    n = len(point)
    truth = exactly.verdicts(phi, point, further=2)
    assert truth[0] is False
    assert truth[3] is (here < around)
    found = report(maps.in_torch(phi), torch.tensor(point, dtype=torch.float64))
    assert found.recoverable is False
    assert found.singular is truth[3]
    assert found.evidence["lie"].verdict == n - here
    assert found.laws == found.evidence["nearby"].verdict == truth[2] == n - around
    assert ("singular point" in str(found)) is (here < around)
    if laws is not None:
        given = report(maps.in_torch(phi), torch.tensor(point, dtype=torch.float64), maps.in_torch(laws))
        assert given.recoverable is False
        assert given.metric is exactly.verdicts(phi, point, laws)[1]
        assert found.metric in (given.metric, "undecided")


def test_a_point_that_needs_more_brackets_than_is_affordable_is_no_false_true():
    def phi(t):  # (x, x⁹y): nine brackets
        return torch.stack((t[0], t[0] ** 9 * t[1]))

    assert report(phi, torch.tensor([0.0, 1.0])).recoverable is False


def test_the_metric_is_refuted_at_a_singular_point_only_where_the_proof_stands():
    # Two live neurons that are not balanced and a dead one: the live ones refute B.
    U, V = randn(2, 3, seed=0), randn(2, 3, seed=1)
    U[:, 2] = V[:, 2] = 0

    def phi(theta):
        U, V = theta.reshape(2, 2, 3)
        return U @ V.mT

    found = report(phi, torch.stack((U, V)).reshape(-1))
    assert (found.singular, found.recoverable, found.metric) == (True, False, False)


def test_a_switch_nearby_is_not_taken_for_a_singular_point():
    def phi(theta):  # beyond −0.003 the product, before it nothing: there θ itself is conserved
        return torch.relu(theta[0]) * theta[1:]

    for seed in range(5):
        theta = torch.cat((torch.tensor([-3e-3]), randn(2, seed=seed)))
        assert report(phi, theta).recoverable in (True, "undecided")
    far = report(phi, torch.tensor([-0.5, 1.0, 2.0]))
    assert (far.recoverable, far.laws, far.singular) == (True, 3, False)
    on_it = report(phi, torch.tensor([0.0, 1.0, 2.0]))
    assert on_it.laws == "undecided"
    assert "not smooth" in str(on_it)


@pytest.mark.parametrize("unit", [1.0, 2.0**27, 2.0**-27])
def test_where_phi_feels_zeros_alone_to_first_order_the_unit_of_theta_is_that_of_the_others(unit):
    """The step of a zero had no unit: a point nearby was nearer than round-off, or far away."""

    def phi(theta):
        a, b, c, d, e, f = theta / unit
        return torch.stack(((a * c + b * d) * e, (a * c + b * d) * f))

    found = report(phi, unit * torch.tensor([0.5, -1.0, 1.5, 2.0, 0.0, 0.0], dtype=torch.float64))
    assert (found.rank, found.laws, found.singular, found.recoverable) == (2, 4, False, True)
    nothing = report(phi, unit * torch.tensor([0.5, 0.0, 0.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    assert (nothing.rank, nothing.laws, nothing.singular, nothing.recoverable) == (0, 4, True, False)


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("part", [1.0, 1e-2, 1e-4, 1e-6])
def test_a_law_that_ends_at_a_switch_is_none_that_is_known(power, part):
    """(x, y + c relu(x)ⁿ w): w is kept where x < 0, nothing where x > 0, and around x = 0 there is no one answer."""

    def phi(theta):
        x, y, w = theta
        return torch.stack((x, y + part * x.relu() ** power * w))

    for x, laws in ((-0.7, 1), (0.7, 0), (-1e-8, 1), (1e-8, 0)):
        found = report(phi, torch.tensor([x, 0.4, 0.5], dtype=torch.float64))
        if power > 1 or abs(x) > 1e-3:
            assert (found.laws, found.recoverable) == (laws, laws == 1)
    found = report(phi, torch.tensor([0.0, 0.4, 0.5], dtype=torch.float64))
    assert (found.laws, found.recoverable, found.singular) == ("undecided",) * 3
    assert found.metric == ("undecided" if power == 1 else True)
    assert found.rank == ("undecided" if power == 1 else 2)


@pytest.mark.parametrize(
    "phi",
    [
        lambda t: t[0].abs() * t[1],
        lambda t: t[0].relu() * t[1],
        lambda t: torch.stack((t[0].abs() * t[1], t[1])),
        lambda t: torch.linalg.vector_norm(t[[0, 2]]) * t[1],
        lambda t: torch.maximum(t[0], t[2]) * t[1],
        lambda t: t[[0, 2]].sort()[0] * t[1],
    ],
)
def test_where_phi_has_no_derivative_nothing_is_known(phi):
    found = report(phi, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert (found.rank, found.laws, found.recoverable, found.metric) == ("undecided",) * 4
    assert "φ has no derivative at θ" in str(found)


class Cubed(torch.autograd.Function):
    """x³ with the derivative of its own, whose derivative autograd takes for zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


@pytest.mark.parametrize(
    ("phi", "which"),
    [
        (lambda t: torch.stack((t[0], t[0] * t[1].detach() + t[2])), "first"),
        (lambda t: torch.stack((t[0], 1e-9 * (t[0] * t[1].detach() + t[2]))), "first"),
        (lambda t: torch.stack((t[0], Cubed.apply(t[0]) * t[1] + t[2])), "second"),
    ],
)
def test_derivatives_that_are_not_those_of_phi_are_refused(phi, which):
    theta = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=f"phi has {which} derivatives that are not its own"):
        report(phi, theta)
    with pytest.raises(ValueError, match=f"phi has {which} derivatives that are not its own"):
        report(lambda parts: phi(torch.cat(parts)), (theta[:1], theta[1:]))


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (lambda t: tuple(t), "phi must return a tensor, got tuple"),
        (lambda t: torch.complex(t[0], t[1]), "must hold floating-point numbers, got dtype torch.complex128"),
        (lambda t: (t[0] * t[1]).long(), "must hold floating-point numbers, got dtype torch.int64"),
        (lambda t: t[0] / (t[1] - t[1]), "must be finite"),
        (lambda t: torch.zeros(2, dtype=t[0].dtype), "phi must depend on theta"),
        (lambda t: (t[0] * t[1]).float(), r"phi\(theta\) is torch.float32 .* but theta.double\(\) is torch.float64"),
        (lambda t: (t[0] - t[0].detach()).sqrt() * t[1], "phi must have a derivative at theta"),
    ],
)
def test_phi_of_another_kind_is_refused_whatever_holds_theta(phi, message):
    one, two = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for theta in (torch.stack((one, two)), (one, two), [one.float(), two.float()]):
        with pytest.raises((TypeError, ValueError), match=message):
            report(phi, theta)
