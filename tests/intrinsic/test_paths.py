"""The path lifting of ReLU networks, against the networks and against a list of all paths."""

import itertools

import pytest
import torch
from cases import generator, randn

import neuralode_flow as nf
from neuralode_flow.intrinsic.derivatives import jacobian
from neuralode_flow.intrinsic.paths import ReluDag
from neuralode_flow.intrinsic.ranks import rank_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.func, of torch.jit


def random_dags():
    """Networks of every kind, each with a θ and with inputs."""
    options = itertools.product((True, False), (0.0, 0.2), (0.4, 0.8))
    for seed, (biases, slope, density) in enumerate(options):
        dag = ReluDag.random(generator(seed), 2, 6, 2, density, biases, slope)
        yield dag, randn(dag.parameters, seed=seed + 50), randn(9, 2, seed=seed + 100)


def listed_paths(dag):
    """Every path as the set of its parameters, output by output, by depth-first search backwards."""

    def ending(node):
        if node < dag.inputs or node == dag.nodes:
            return [()]
        return [(*path, k) for k, (i, j) in enumerate(dag._arrows) if j == node for path in ending(i)]

    return [path for node in range(dag.inputs + dag.hidden, dag.nodes) for path in ending(node)]


def rank(function, theta):
    found = rank_of(torch.linalg.svdvals(jacobian(function, theta)))
    assert found.decided
    return found.rank


def test_the_output_is_the_sum_over_paths_on_random_dags():
    for dag, theta, x in random_dags():
        sums = dag.design(theta, x) @ dag.lifting(theta)
        torch.testing.assert_close(sums, dag.forward(theta, x).flatten(), rtol=0, atol=1e-12)


def test_the_activations_switch_within_the_samples():
    active = torch.cat([(dag.preactivations(theta, x) > 0).double().mean(0) for dag, theta, x in random_dags()])
    assert float(((active > 0) & (active < 1)).double().mean()) > 0.5


def test_a_layered_network_is_the_usual_one():
    dag = ReluDag.layered((3, 4, 2), slope=0.1)
    theta, x = randn(dag.parameters, seed=0), randn(7, 3, seed=1)
    first, second, b, c = theta.split((12, 8, 4, 2))
    hidden = torch.nn.functional.leaky_relu(x @ first.reshape(3, 4) + b, 0.1)
    torch.testing.assert_close(dag.forward(theta, x), hidden @ second.reshape(4, 2) + c, rtol=0, atol=1e-13)


def test_the_lifting_is_the_list_of_all_products():
    for dag, theta, _ in random_dags():
        paths = listed_paths(dag)
        assert dag.paths == len(paths) == len(set(paths))
        products = torch.stack([theta[list(path)].prod() for path in paths])
        torch.testing.assert_close(dag.lifting(theta), products, rtol=1e-13, atol=0)


def test_rescaling_a_neuron_changes_nothing_but_theta():
    for dag, theta, x in random_dags():
        for neuron, factor in itertools.product(range(dag.hidden), (0.3, 4.0)):
            moved = dag.rescale(theta, neuron, factor)
            assert float((moved - theta).abs().max()) > 0.01
            torch.testing.assert_close(dag.lifting(moved), dag.lifting(theta), rtol=1e-13, atol=0)
            torch.testing.assert_close(dag.forward(moved, x), dag.forward(theta, x), rtol=0, atol=1e-12)


def test_the_rank_is_parameters_less_hidden_neurons_for_the_lifting_and_its_sketch():
    for seed, (dag, theta, _) in enumerate(random_dags()):
        assert rank(dag.lifting, theta) == dag.parameters - dag.hidden
        assert rank(dag.sketch(dag.parameters, generator(seed)), theta) == dag.parameters - dag.hidden


def test_a_sketch_is_a_linear_functional_of_the_lifting():
    dag, theta, _ = next(random_dags())
    sketch = dag.sketch(3, generator(1))
    points = torch.cat((theta.unsqueeze(0), randn(2 * dag.paths, dag.parameters, seed=2)))
    solution = torch.linalg.lstsq(dag.lifting(points[1:]), sketch(points[1:])).solution
    torch.testing.assert_close(dag.lifting(theta) @ solution, sketch(theta), rtol=1e-9, atol=1e-9)


def test_the_sketch_has_the_rank_where_there_are_more_than_a_hundred_million_paths():
    for dag in (ReluDag.layered((2, *[4] * 13, 1)), ReluDag.layered((2, *[3] * 13, 1), skips=True)):
        assert dag.paths > 10**8
        theta = randn(dag.parameters, seed=3)
        assert rank(dag.sketch(dag.parameters, generator(4)), theta) == dag.parameters - dag.hidden
        with pytest.raises(ValueError, match=r"more than max_paths = 100000.*sketch"):
            dag.lifting(theta)
        with pytest.raises(ValueError, match="max_paths"):
            dag.design(theta, randn(2, 2, seed=5))


def test_the_number_of_paths_is_exact():
    assert ReluDag.layered((7, *[10] * 40, 3), biases=False).paths == 7 * 10**40 * 3


def test_the_laws_are_independent_and_orthogonal_to_every_gradient():
    for dag, theta, _ in random_dags():
        dh = jacobian(dag.laws, theta)
        assert torch.linalg.matrix_rank(dh) == dag.hidden
        assert float((jacobian(dag.lifting, theta) @ dh.mT).abs().max()) < 1e-12


def test_everything_takes_leading_axes():
    dag, _, x = next(random_dags())
    theta = randn(2, 3, dag.parameters, seed=6)
    functions = [
        dag.lifting,
        dag.laws,
        dag.sketch(5, generator(7)),
        lambda point: dag.forward(point, x),
        lambda point: dag.design(point, x),
        lambda point: dag.rescale(point, 2, 3.0),
    ]
    for function in functions:
        one_by_one = torch.stack([torch.stack([function(point) for point in row]) for row in theta])
        torch.testing.assert_close(function(theta), one_by_one, rtol=0, atol=1e-13)


def test_bad_networks_are_refused():
    cases = [
        ((1, 1, 1, [(0, 1)]), "out of node 1"),
        ((1, 1, 1, [(1, 2)]), "into node 1"),
        ((1, 1, 2, [(0, 1), (1, 2)]), "into node 3"),
        ((1, 1, 1, [(0, 1), (1, 2), (2, 1)]), "lead from a node to a later one"),
        ((2, 1, 1, [(0, 1), (1, 2), (2, 3)]), "lead from a node to a later one"),
        ((1, 1, 1, [(0, 1), (1, 2), (0, 1)]), "must not repeat"),
        ((1, 1, 1, [(0, 1), (1, 2)], True, -0.1), "slope must be at least 0"),
        ((0, 1, 1, []), "inputs must be at least 1"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            ReluDag(*arguments)
    with pytest.raises(TypeError, match="pairs"):
        ReluDag(1, 0, 1, [3])
    with pytest.raises(TypeError, match="widths must be a sequence"):
        ReluDag.layered(3)
    with pytest.raises(ValueError, match="density must be between 0 and 1"):
        ReluDag.random(generator(0), density=1.5)


def test_bad_arguments_of_methods_are_refused():
    dag = ReluDag.layered((2, 3, 1))
    theta = randn(dag.parameters, seed=8)
    with pytest.raises(ValueError, match=r"theta must have shape \(\.\.\., 13\)"):
        dag.lifting(theta[:-1])
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2\)"):
        dag.forward(theta, randn(4, 3, seed=9))
    with pytest.raises(ValueError, match="neuron must be at most 2"):
        dag.rescale(theta, 3, 2.0)
    with pytest.raises(ValueError, match="factor must be above 0"):
        dag.rescale(theta, 0, -2.0)


@pytest.mark.parametrize("biases", [True, False])
def test_a_network_without_hidden_neurons_is_a_network(biases):
    dag = ReluDag.layered((2, 3), biases=biases)
    theta, x = randn(5, dag.parameters, seed=0), randn(4, 2, seed=1)
    assert dag.incidence.shape == (dag.parameters, 0)
    assert dag.laws(theta).shape == (5, 0)
    assert dag.preactivations(theta, x).shape == (5, 4, 0)
    sums = (dag.design(theta, x) @ dag.lifting(theta).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(sums, dag.forward(theta, x).flatten(1), rtol=0, atol=1e-13)
    start, loss = theta[0], nf.Quadratic(torch.ones(dag.paths))
    found = nf.intrinsic.report(dag.lifting, start, dag.laws)
    assert (found.recoverable, found.laws, found.rank) == (True, 0, dag.parameters)
    assert nf.intrinsic.report(dag.lifting, start).laws == 0
    path = nf.integrate(nf.FactorizationFlow(dag.lifting, loss, dag.laws), start, [0, 1.0], rtol=1e-10, atol=1e-12)
    flow = nf.intrinsic.RecoveredFlow(dag.lifting, dag.laws, start, loss)
    closed = nf.integrate(flow, flow.start, [0, 1.0], rtol=1e-10, atol=1e-12)
    assert path.status == closed.status == "ok"
    torch.testing.assert_close(path.z, closed.z, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="neuron must be a hidden neuron, got 0, but this network has none"):
        dag.rescale(start, 0, 2.0)
