"""Identifiability of ReLU networks: ranks and recovery by second routes, and planted faults that the checks see."""

import numpy as np
import pytest
import torch
from small import dataset, failing

from neuralode_flow.finding import Finding
from neuralode_flow.intrinsic.paths import ReluDag
from neuralode_flow.matrices import normal
from neuralode_flow.studies import STUDIES, identifiability, realisation
from neuralode_flow.studies.identifiability import NETWORKS
from neuralode_flow.studies.realisation import Layers, drawn, from_paths, jacobian, rank, recovered, seen

STUDY = STUDIES["identifiability"]
ABOVE = "rank above the parameters that samples see minus active neurons"
RANK = "share of ranks that are this count"
SHARE = "share of ranks that are parameters minus hidden neurons"
GAP = "smallest singular value kept over the largest dropped"
DEAD = "what a dead neuron takes from the rank, a control"
TWIN = "what twins take from the rank, a control"
PATHS = "rank of the derivative of Φ off parameters minus hidden neurons"
RESCALED = "Φ under rescaling"
INCOMING = "Φ where only incoming weights are multiplied, a control"
LINEAR = "outputs from A Φ at the same activations"
SWITCHED = "outputs from A Φ at other activations, a control"
FOUND = "share of searches that find the outputs, of full rank"
BACK = "θ where the outputs are found and the rank is full, up to rescaling"
BACK_TWIN = "θ with twins where the outputs are found, a control"
SIGNS = "θ from Φ and its signs, up to rescaling"
TURNED = "outputs with the signs of a neuron turned, which Φ does not see, a control"

JACOBIAN, SEEN, DRAWN, SLOPES = realisation.jacobian, realisation.seen, realisation.drawn, realisation.path_slopes
LIFTING = ReluDag.lifting


def noisy(J):
    return J + 1e-4 * normal(torch.Generator().manual_seed(0), *J.shape)


def again(**changes):
    """What is found of the small dataset with other numbers in it."""
    changed = dataset("identifiability").assign(changes)
    return failing(identifiability._finding(changed, 100).attached(changed))


def network(widths=(3, 5, 4, 2), seed=0, samples=400, kind="plain"):
    random = torch.Generator().manual_seed(seed)
    x = normal(random, samples, widths[0])
    return ReluDag.layered(widths), x, drawn(random, widths, x, kind)


def by_layers(theta, widths, x):
    """The outputs, written out."""
    layers = Layers.of(theta, widths)
    for k, (W, b) in enumerate(zip(*layers)):
        x = x @ W + b
        x = x if k == len(widths) - 2 else x.clamp(min=0)
    return x


def test_layers_are_those_of_the_graph():
    widths = (3, 5, 4, 2)
    dag, x, theta = network(widths)
    assert torch.equal(Layers.of(theta, widths).theta, theta)
    assert torch.allclose(dag.forward(theta, x), by_layers(theta, widths, x), rtol=1e-12, atol=1e-13)
    plain = Layers.of(theta, widths).normalised()
    assert torch.allclose(dag.forward(plain.theta, x), dag.forward(theta, x), rtol=1e-11, atol=1e-12)
    assert torch.allclose(plain.weights[1].square().sum(0) + plain.biases[1].square(), torch.ones(4).double())


def test_the_derivative_is_that_of_differences_and_its_rank_that_of_numpy():
    dag, x, theta = network(samples=150)
    J, step = jacobian(dag, theta, x), 1e-7
    for k in range(0, len(theta), 9):
        move = step * torch.eye(len(theta), dtype=torch.float64)[k]
        slope = (dag.forward(theta + move, x) - dag.forward(theta - move, x)).flatten() / (2 * step)
        off = (slope - J[:, k]).abs()
        assert float(off.quantile(0.95)) < 1e-7  # all but samples that switch on the way
    assert rank(J).rank == np.linalg.matrix_rank(J.numpy(), tol=1e-9 * float(J.norm()))


@pytest.mark.parametrize("kind", identifiability.KINDS)
def test_parameters_that_no_sample_sees_are_columns_of_zeros(kind):
    for seed in range(4):
        widths = (3, 5, 4, 2)
        dag, x, theta = network(widths, seed, 300, kind)
        J = jacobian(dag, theta, x)
        columns = J.abs().amax(0) > 0
        found = seen(dag, widths, theta, x)
        assert torch.equal(Layers(found.weights, found.biases).theta, columns)
        biases = columns[-sum(widths[1:]) : -widths[-1]]
        assert found.neurons == int(biases.sum())


def test_the_kinds_are_what_they_say():
    widths = (3, 5, 4, 2)
    dag, x, theta = network(widths, kind="dead")
    active = (dag.preactivations(theta, x) > 0).double().mean(0)
    assert active[5] == 0
    assert (active[[0, 1, 2, 3, 4, 6, 7, 8]] >= 0.4).all()
    dag, x, theta = network(widths, kind="twin")
    sums = dag.preactivations(theta, x)
    assert torch.allclose(sums[:, 1], 1.7 * sums[:, 0])


def test_the_way_back_from_paths_needs_the_signs():
    widths = (3, 4, 3, 2)
    dag, x, theta = network(widths)
    back = from_paths(dag, theta)
    assert torch.allclose(dag.forward(back, x), dag.forward(theta, x), rtol=1e-10, atol=1e-11)
    turned = identifiability._turned(dag, theta)
    assert torch.allclose(dag.lifting(turned), dag.lifting(theta), rtol=1e-13)
    assert not torch.allclose(dag.forward(turned, x), dag.forward(theta, x), atol=1e-3)


def test_a_search_that_knows_nothing_finds_a_shallow_network_up_to_order_and_scale():
    """From random starts: where the outputs are found, so are the neurons."""
    widths = (2, 2, 2)
    dag, x, theta = network(widths, 4, 150)
    wanted, found = Layers.of(theta, widths).normalised(), 0
    for seed in range(4):
        start = network(widths, 50 + seed, 150)[2]
        back = recovered(dag, x, dag.forward(theta, x), start)
        if float((dag.forward(back, x) - dag.forward(theta, x)).abs().max()) < 1e-9:
            one = Layers.of(back, widths).normalised()
            orders = [[0, 1], [1, 0]]
            assert min(float((one.weights[0][:, o] - wanted.weights[0]).abs().max()) for o in orders) < 1e-7
            found += 1
    assert found


@pytest.mark.parametrize(
    ("where", "name", "fault", "sees"),
    [
        (identifiability, "jacobian", lambda d, t, x: noisy(JACOBIAN(d, t, x)), {ABOVE, RANK}),
        (identifiability, "jacobian", lambda d, t, x: JACOBIAN(d, t, x[:9]), {RANK, SHARE, FOUND}),
        (identifiability, "seen", lambda *a: SEEN(*a)._replace(neurons=0), {RANK}),
        (realisation.Seen, "shared", property(lambda s: 1), {RANK}),
        (
            identifiability,
            "drawn",
            lambda r, w, x, k="plain": DRAWN(r, w, x, "plain"),
            {ABOVE, RANK, DEAD, TWIN, BACK_TWIN},
        ),
        (identifiability, "path_slopes", lambda d, t: SLOPES(d, t)[:9], {PATHS}),
        (identifiability, "from_paths", lambda d, t: from_paths(d, t) * (1 + 1e-6 * t), {SIGNS}),
        (identifiability, "from_paths", lambda d, t: from_paths(d, t).abs(), {SIGNS}),
        (identifiability, "recovered", lambda d, x, y, s: s, {FOUND, BACK, BACK_TWIN}),
        (ReluDag, "lifting", lambda s, t: LIFTING(s, t.abs() + 0.1), {RESCALED, LINEAR}),
    ],
    ids=["noise", "few samples", "neurons", "twins", "kinds", "paths", "back", "signs", "search", "lifting"],
)
def test_a_planted_fault_is_seen(monkeypatch, where, name, fault, sees):
    monkeypatch.setattr(where, name, fault)
    if name != "recovered" and FOUND not in sees and BACK_TWIN not in sees:  # no search plays a part
        monkeypatch.setattr(identifiability, "recovered", lambda d, x, y, s: s)
    kept = dict(list(NETWORKS.items())[1:3])
    monkeypatch.setattr(identifiability, "NETWORKS", kept)
    found = STUDY.run(draws=1, samples=200, searches=1, fitted=150)
    assert sees <= failing(found)
    assert not Finding.of(found).passed


def test_the_smallest_one_without_a_fault_passes():
    assert failing(dataset("identifiability")) == set()


def test_every_check_of_numbers_can_fail():
    found = dataset("identifiability")
    assert again() == set()
    assert again(predicted=found.predicted + (found.kind == "dead")) == {RANK}
    assert again(predicted=found.predicted - (found.kind == "dead")) == {ABOVE, RANK}
    assert again(missing=found.missing.where(found.kind != "plain", 1)) == {SHARE}
    assert again(missing=found.missing.where(found.kind != "dead", 0)) == {DEAD}
    assert again(missing=found.missing.where(found.kind != "twin", 0)) == {TWIN}
    assert again(dropped=found.kept / 10) == {GAP}
    assert again(path_missing=found.path_missing + 1) == {PATHS}
    assert again(rescaled=found.rescaled + 1e-6) == {RESCALED}
    assert again(other=found.other * 0) == {INCOMING}
    assert again(linear=found.linear + 1e-6) == {LINEAR}
    assert again(switched=found.switched * 0) == {SWITCHED}
    assert again(fitted=found.fitted + 1) == {FOUND, BACK}
    assert again(recovered=found.recovered + 1e-3) == {BACK}
    assert again(twin_recovered=found.twin_recovered * 0) == {BACK_TWIN}
    assert again(from_paths=found.from_paths + 1e-6) == {SIGNS}
    assert again(from_paths_alone=found.from_paths_alone * 0) == {TURNED}


def test_samples_at_which_no_neuron_switches_are_refused():
    x = torch.zeros(50, 3, dtype=torch.float64)
    with pytest.raises(
        RuntimeError, match=r"none of 1000 networks of widths \[3, 4, 1\] has neurons that switch; take"
    ):
        drawn(torch.Generator().manual_seed(0), (3, 4, 1), x)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_other_draws_pass(seed):
    assert failing(STUDY.run(draws=5, searches=1, seed=seed)) == set()


def test_searches_are_the_same_wherever_in_memory_they_are_made():
    random, kept, found = torch.Generator().manual_seed(0), [], []
    widths = list(NETWORKS.values())[3]
    dag, x = ReluDag.layered(widths), normal(random, 300, widths[0])
    theta, noise = drawn(random, widths, x, "plain"), normal(random, dag.parameters)
    for k in range(8):
        kept.append(np.empty(1001 + 37 * k))
        found.append(recovered(dag, x, dag.forward(theta, x), theta * (1 + 0.1 * noise)))
    assert all(torch.equal(found[0], one) for one in found)
