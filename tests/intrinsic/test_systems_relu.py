"""The systems made of ReLU networks: closed flows through the switches, laws, checks, refusals."""

import math

import pytest
import torch
from cases import randn

import neuralode_flow as nf
from neuralode_flow.intrinsic.systems import SYSTEMS
from neuralode_flow.intrinsic.systems.relu_two_layer import TwoLayer, two_layer_system

NAMES = ["leaky_relu", "relu_dag", "relu_spline", "relu_two_layer"]


def followed(flow, start, T=3.0, stop=None):
    """The states at 31 times up to T."""
    path = nf.integrate(
        flow,
        start,
        torch.linspace(0, T, 31),
        "DOP853",
        rtol=1e-11,
        atol=1e-13,
        observe=lambda i, state: state.clone(),
        stop=stop,
        max_evaluations=20_000,
    )
    assert path.status == "ok" or "event" in path.status
    return torch.stack(list(path.observed))


def switches(network, path):
    active = network.factors(path)[1] @ network.x.mT > 0
    return int((active[1:] != active[:-1]).sum())


def compare(system, T=3.0):
    """θ along its own flow, after the checks of all that the system claims."""
    path = followed(system.flow, system.theta, T)
    z = followed(system.closed, system.phi(system.theta), T)
    assert float((z - system.phi(path)).abs().max()) < system.bound
    assert float((system.laws(path) - system.laws(system.theta)).abs().max()) < 1e-9
    for name, error in system.checks.items():
        assert error(torch.linspace(0, 3, len(path)), path) < 1e-9, name
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relu_two_layer", {}),
        ("relu_two_layer", {"outputs": 3, "inputs": 2}),
        ("relu_two_layer", {"biases": False, "seed": 2}),
        pytest.param("leaky_relu", {}, marks=pytest.mark.slow),
        pytest.param("relu_spline", {}, marks=pytest.mark.slow),
    ],
)
def test_the_closed_flow_is_the_parameter_flow_through_the_switches(name, options):
    system = SYSTEMS[name](**options)
    path = compare(system)
    assert switches(system.loss.network, path) >= 1


@pytest.mark.parametrize("longer", ["u", "v"])
def test_z_decides_the_activations_of_vectors_that_turn_around(longer):
    angles = torch.linspace(0, 3.6, 60)  # more than half a turn
    turning, fixed = torch.stack((angles.cos(), angles.sin()), dim=-1), torch.tensor([[0.3, 0.4]]).expand(60, 2)
    path = torch.cat((turning, fixed) if longer == "u" else (fixed, turning), dim=-1)
    network = TwoLayer(randn(30, 2, seed=0), randn(30, 2, seed=1), 1, 0.0, (1, 2, 2))
    system = two_layer_system("one", "One neuron", "", network, path[0])
    z = network.phi(path)
    assert float((system.loss.outputs(z) - network.outputs(path)).abs().max()) > 0.1  # θ₀ alone does not tell
    assert system.checks["z decides the activations"](angles, path) < 1e-12
    # What has been followed is known wherever one looks.
    torch.testing.assert_close(system.loss.outputs(z), network.outputs(path), rtol=0, atol=1e-12)


def test_the_loss_in_z_is_the_loss_of_the_network():
    for name in NAMES:
        system = SYSTEMS[name]()
        assert float(system.loss(system.phi(system.theta))) == pytest.approx(
            float(system.flow.loss(system.flow.phi(system.theta))), rel=1e-12
        )


def test_the_gradient_in_z_is_the_derivative_of_the_loss():
    system = SYSTEMS["leaky_relu"](outputs=2)
    z = system.phi(system.theta)
    step = 1e-6 * randn(*z.shape, seed=1)
    change = system.loss(z + step) - system.loss(z - step)
    assert float(change) == pytest.approx(2 * float((system.loss.gradient(z) * step).sum()), rel=1e-6)


def test_phi_and_the_laws_take_leading_axes():
    for name in NAMES:
        system = SYSTEMS[name]()
        theta = system.theta + 0.1 * randn(2, 3, len(system.theta), seed=2)
        for function in (system.phi, system.laws):
            one_by_one = torch.stack([torch.stack([function(point) for point in row]) for row in theta])
            torch.testing.assert_close(function(theta), one_by_one, rtol=0, atol=1e-13)


def test_the_network_on_a_dag_keeps_its_laws_and_is_the_sum_over_its_paths():
    system = SYSTEMS["relu_dag"]()
    path = followed(system.flow, system.theta)
    assert float((system.laws(path) - system.laws(system.theta)).abs().max()) < 1e-9
    assert system.independent == system.laws(path).shape[-1] == 7
    for name, error in system.checks.items():
        assert error(torch.linspace(0, 3, len(path)), path) < 1e-12, name


@pytest.mark.slow
def test_a_switch_with_velocities_towards_it_on_both_sides_ends_the_flow():
    system = SYSTEMS["relu_two_layer"](outputs=3, inputs=2, seed=2)
    network = system.loss.network
    path = nf.integrate(
        system.flow, system.theta, [0.0, 3.0], "DOP853", rtol=1e-11, atol=1e-13, stop={"slides": system.until},
        max_evaluations=20_000,
    )  # fmt: skip
    assert path.ending == "event"
    assert 1.0 < float(path.times[-1]) < 1.1
    u, v = network.factors(path.state)
    cosines = v @ network.x.mT / (v.norm(dim=1, keepdim=True) * network.x.norm(dim=1))
    j, i = divmod(int(cosines.abs().argmin()), cosines.shape[1])
    rates = []
    for side in (-1e-7, 1e-7):  # a little to either side of the switch
        moved = v.clone()
        moved[j] += (side - cosines[j, i]) * v[j].norm() * network.x[i] / network.x[i].norm()
        velocity = system.flow.velocity(torch.cat((u.flatten(), moved.flatten())))
        rates.append(float(network.factors(velocity)[1][j] @ network.x[i]))
    assert rates[0] > 0 > rates[1]


def test_until_the_first_switch_the_path_lifting_follows_the_frozen_loss():
    system = SYSTEMS["relu_dag"](seed=2)
    path = followed(system.flow, system.theta, stop={"switch": system.until})
    assert 3 <= len(path) < 31  # a switch came, but not at once
    for theta in path:
        assert system.until(0.0, system.phi(theta), theta) > -1e-6
        frozen = nf.FactorizationFlow(system.phi, system.loss).velocity(theta)
        torch.testing.assert_close(system.flow.velocity(theta), frozen, rtol=0, atol=1e-12)


def test_a_switch_ends_the_count_down():
    system = SYSTEMS["relu_dag"]()
    assert system.until(0.0, system.phi(system.theta), system.theta) > 0.9
    assert system.until(0.0, system.phi(-system.theta), -system.theta) < 0


def test_the_dag_takes_several_outputs():
    system = SYSTEMS["relu_dag"]((2, 3, 2), skips=False)
    frozen = nf.FactorizationFlow(system.phi, system.loss).velocity(system.theta)
    torch.testing.assert_close(system.flow.velocity(system.theta), frozen, rtol=0, atol=1e-13)


def test_the_spline_has_its_knots_where_its_slope_changes():
    system = SYSTEMS["relu_spline"](width=3)
    grid, values = system.facts["grid"], system.observe["function"](system.theta)
    assert torch.equal(system.facts["y"], torch.sin(math.pi * system.facts["x"]))
    bends = values.diff().diff().abs() > 1e-10
    knots, slopes = system.observe["knots"](system.theta), system.observe["slopes"](system.theta)
    spacing = float(grid[1] - grid[0])
    for bend in grid[1:-1][bends]:
        assert float((knots - bend).abs().min()) <= spacing
    change = (values[-1] - values[-2] - values[1] + values[0]) / spacing
    w = system.loss.network.factors(system.theta)[1][:, 0]
    assert float(change) == pytest.approx(float((slopes * w.sign()).sum()), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "error", "sentence"),
    [
        ("relu_two_layer", {"width": 0}, ValueError, r"system\.width must be at least 1"),
        ("relu_two_layer", {"inputs": 1.5}, TypeError, r"system\.inputs must be an integer"),
        ("relu_two_layer", {"biases": 1}, TypeError, r"system\.biases must be True or False"),
        ("leaky_relu", {"slope": -0.1}, ValueError, r"system\.slope must be between 0"),
        ("leaky_relu", {"slope": "steep"}, TypeError, r"system\.slope must be a number"),
        ("relu_spline", {"samples": 1}, ValueError, r"system\.samples must be at least 2"),
        ("relu_dag", {"widths": (2, 1)}, TypeError, r"system\.widths must be a sequence of at least 3"),
        ("relu_dag", {"widths": (2, 0, 1)}, ValueError, r"system\.widths must be at least 1"),
        ("relu_dag", {"skips": "yes"}, TypeError, r"system\.skips must be True or False"),
    ],
)
def test_bad_parameters_are_refused(name, options, error, sentence):
    with pytest.raises(error, match=sentence):
        SYSTEMS[name](**options)


def test_a_state_of_another_shape_is_refused():
    system = SYSTEMS["relu_two_layer"]()
    with pytest.raises(ValueError, match=r"state must have shape \(\.\.\., 6, 1, 4\)"):
        nf.integrate(system.closed, torch.ones(6, 4), [0.0, 1.0])


@pytest.mark.parametrize(("seed", "ends"), [(5, False), (7, False), (9, True), (11, True)])
def test_a_neuron_that_dies_does_not_slide(seed, ends):
    """Small steps by the formulas of the network alone switch a sample again and again only where the flow slides."""
    system = SYSTEMS["relu_two_layer"](seed=seed)
    network = system.loss.network
    u, v = (part.clone() for part in network.factors(system.theta))
    step, switches, before = 1e-3, 0, (v @ network.x.mT > 0).double()
    for _ in range(3000):
        p = v @ network.x.mT
        active = (p > 0).double()
        residual = ((active * p).mT @ u - network.y) / len(network.y)
        u, v = u - step * (active * p) @ residual, v - step * (active * (u @ residual.mT)) @ network.x
        switches, before = switches + int((active != before).sum()), active
    assert (switches > 200) == ends
    path = nf.integrate(
        system.flow, system.theta, [0.0, 3.0], "DOP853", rtol=1e-11, atol=1e-13, stop={"slides": system.until},
    )  # fmt: skip
    assert (path.ending == "event") == ends
