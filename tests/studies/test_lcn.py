"""Linear convolutional networks: factorisations by second routes, and planted faults that the checks see."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from small import SMALL, dataset, failing

from neuralode_flow.finding import Finding
from neuralode_flow.intrinsic.systems.convolution import laws_of, phi_of
from neuralode_flow.studies import STUDIES, filters, lcn
from neuralode_flow.studies.filters import Filters, balanced, factorisations, projected
from neuralode_flow.studies.lcn import CASES, FLOWS

STUDY = STUDIES["lcn"]
INSIDE = "M from z and the balances alone against autograd, strides or two dimensions"
ONE = "factorisations there off one"
SELF = "M of the factorisation that is θ against autograd, all kinds"
LINE = "M of another factorisation, one dimension with a stride 1, a control"
SHAPE = "M of exchanged filters of one shape, two dimensions, a control"
EQUAL = "the same of equal norms"
TWO = "factorisations of equal norms off two"
GAP = "largest rest of a divisor that is a filter over the least of one that is none"
LAYERS = "composed filter from layer after layer"
CLOSED = "training from the flow of z alone, strides or two dimensions"
PARTED = "trainings with one z₀ and one balance, one dimension with stride 1 or exchanged filters, a control"

METRIC, PHI, BALANCED, SUBSETS = Filters.metric, Filters.phi, filters.balanced, filters._subsets


def run(**changes):
    return STUDY.run(**SMALL["lcn"]()[1] | changes)


def again(**changes):
    """What is found of the small dataset with other numbers in it."""
    changed = dataset("lcn").assign(changes)
    return failing(lcn._finding(changed).attached(changed))


def draw(name, seed=0):
    case = CASES[name]
    return case.network, lcn._draw(case, torch.Generator().manual_seed(seed))


def test_the_pair_of_two_orders_of_the_roots():
    """z = 1.3 (x − ½)(x + 2), balance 0.4: the metrics of its two factorisations, written out, are 9.1 % apart."""
    network, z, balance = Filters(((2,), (2,)), (1,)), 1.3 * np.array([-1.0, 1.5, 1.0]), 0.4
    linear = [np.array([-0.5, 1.0]), np.array([2.0, 1.0])]
    metrics = []
    for first, second in (linear, linear[::-1]):
        norms = [1.25, 5.0] if first is linear[0] else [5.0, 1.25]
        # ‖w_1‖² = s, ‖w_2‖² = s + δ, and their product is (1.3)² · 1.25 · 5.
        s = -balance / 2 + (balance**2 / 4 + 1.3**2 * 6.25) ** 0.5
        w, v = first * (s / norms[0]) ** 0.5, second * ((s + balance) / norms[1]) ** 0.5
        np.testing.assert_allclose(np.convolve(w, v), z, atol=1e-14)
        columns = np.array([[v[0], 0, w[0], 0], [v[1], v[0], w[1], w[0]], [0, v[1], 0, w[1]]])
        metrics.append(columns @ columns.T)
    off = np.linalg.norm(metrics[0] - metrics[1]) / np.linalg.norm(metrics[0])
    assert abs(off - 0.091) < 1e-3
    found = factorisations(network, z).found
    ours = [network.metric(balanced(network, one.filters, z, np.array([balance]))) for one in found]
    assert len(ours) == 2
    for one in metrics:
        assert min(np.abs(one - other).max() for other in ours) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_the_composed_filter_and_its_metric_are_those_of_autograd(name):
    network, theta = draw(name)
    if len(network.kernels[0]) == 1:
        lengths = [shape[0] for shape in network.kernels]
        assert torch.allclose(network.phi(theta), phi_of(lengths, network.strides)(theta), rtol=1e-13, atol=1e-14)
        assert torch.allclose(network.laws(theta), laws_of(lengths)(theta))
    parts = [w.numpy() for w in network.split(theta)]
    np.testing.assert_allclose(network.product(parts), network.phi(theta).numpy(), rtol=1e-12, atol=1e-13)
    autograd = torch.autograd.functional.jacobian(network.phi, theta)
    np.testing.assert_allclose(network.jacobian(parts), autograd.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("strided", 0),
        ("line", 3),
        ("plane_equal", 0),
        pytest.param("strided_deep", 0, marks=pytest.mark.slow),
        pytest.param("plane", 0, marks=pytest.mark.slow),
        pytest.param("line_half", 0, marks=pytest.mark.slow),
    ],
)
def test_searches_from_random_starts_find_the_same_factorisations_and_no_other(name, seed):
    """θ of (z, balances) by least squares from a dozen starts that know nothing of it, up to signs."""
    network, theta = draw(name, seed)
    z, h, _ = lcn._found(network, theta)
    wanted = [np.concatenate([w.ravel() for w in balanced(network, one.filters, z, h)])
              for one in factorisations(network, z).found]  # fmt: skip
    scale, generator, reached = float(theta.norm()), np.random.default_rng(0), set()

    def residual(x):
        at = torch.as_tensor(x)
        return np.concatenate((network.phi(at).numpy() - z, network.laws(at).numpy() - h))

    def slope(x):
        at = torch.as_tensor(x)
        return np.vstack([torch.autograd.functional.jacobian(part, at).numpy() for part in (network.phi, network.laws)])

    for _ in range(12):
        start = generator.standard_normal(len(theta)) * scale / len(theta) ** 0.5
        found = least_squares(residual, start, slope, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=60)
        if found.cost > 1e-20:
            continue
        pieces = np.cumsum(network.sizes)[:-1]
        apart = [
            max(min(np.abs(a - b).max(), np.abs(a + b).max()) for a, b in zip(*(np.split(x, pieces) for x in pair)))
            for pair in ((found.x, one) for one in wanted)
        ]
        assert min(apart) < 1e-6 * scale
        reached.add(int(np.argmin(apart)))
    assert reached == set(range(len(wanted)))


def test_balanced_filters_have_the_balances_and_the_product():
    network, theta = draw("strided_deep", 2)
    z, h, _ = lcn._found(network, theta)
    for balances in (h, np.array([30.0, -50.0]), np.zeros(2)):
        made = balanced(network, [w.numpy() for w in network.split(theta)], z, balances)
        np.testing.assert_allclose(network.product(made), z, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(np.diff([np.sum(w**2) for w in made]), balances, rtol=1e-9, atol=1e-10)


def test_a_filter_beside_the_image_is_brought_back_to_it():
    network, theta = draw("plane")
    z, h, _ = lcn._found(network, theta)
    beside = z + 1e-4 * np.random.default_rng(0).standard_normal(len(z))
    made = projected(network, beside, h)
    left = beside - network.product(made)
    assert np.abs(network.jacobian(made).T @ left).max() < 1e-8 * np.abs(z).max()


@pytest.mark.parametrize(
    ("where", "name", "fault", "sees"),
    [
        (Filters, "metric", lambda s, w: METRIC(s, [x * (1 + 1e-6) for x in w]), {INSIDE, SELF, EQUAL}),
        (lcn, "balanced", lambda n, f, z, h: BALANCED(n, f, z, h + 0.1), {INSIDE, SELF, EQUAL}),
        (filters, "_subsets", lambda n, k: SUBSETS(n, k)[: max(1, len(SUBSETS(n, k)) // 2)], {SELF, ONE}),
        (filters, "TOLERANCE", 0.05, {ONE, TWO, GAP}),
        (Filters, "phi", lambda s, t: PHI(s, torch.cat((t[: s.sizes[0]], t[s.sizes[0] :].flip(0)))), {LAYERS}),
        (lcn, "projected", lambda n, z, h: projected(n, z, h + 1e-3), {CLOSED}),
    ],
    ids=["metric", "balance", "subsets", "tolerance", "phi", "closed flow"],
)
def test_a_planted_fault_is_seen(monkeypatch, where, name, fault, sees):
    monkeypatch.setattr(where, name, fault)
    monkeypatch.setattr(filters, "_exponents", cache(filters._exponents.__wrapped__))
    if name != "projected":  # training plays no part
        monkeypatch.setattr(lcn, "_flows", lambda *_: (np.zeros(31), np.zeros(31)))
    found = run(draws=3, starts=1)
    assert sees <= failing(found)
    assert not Finding.of(found).passed


def test_the_smallest_one_without_a_fault_passes():
    assert failing(dataset("lcn")) == set()


def test_every_check_of_numbers_can_fail():
    found = dataset("lcn")
    side = {name: found["case"].isin([n for n in CASES if CASES[n].side == name]) for name in
            (lcn.INSIDE, lcn.BEYOND, lcn.EXCHANGED, lcn.EQUAL)}  # fmt: skip
    inside = found.flow.isin([name for name in FLOWS if CASES[name].side == lcn.INSIDE])
    assert again() == set()
    assert again(apart=found.apart.where(~side[lcn.INSIDE], 1e-3)) == {INSIDE}
    assert again(apart=found.apart.where(~side[lcn.BEYOND], 1e-3)) == {LINE}
    assert again(apart=found.apart.where(~side[lcn.EXCHANGED], 1e-3)) == {SHAPE}
    assert again(apart=found.apart.where(~side[lcn.EQUAL], 1e-3)) == {EQUAL}
    assert again(number=found.number.where(~side[lcn.INSIDE], 2)) == {ONE}
    assert again(number=found.number.where(~side[lcn.EQUAL], 1)) == {TWO}
    assert again(near=found.near + 1e-6) == {SELF}
    assert again(rejected=found.accepted * 10) == {GAP}
    assert again(composed=found.composed + 1e-6) == {LAYERS}
    assert again(flow_apart=found.flow_apart.where(~inside, 1e-3)) == {CLOSED}
    assert again(flow_apart=found.flow_apart.where(inside, 1e-3)) == {PARTED}


def test_more_starts_than_draws_are_refused():
    with pytest.raises(ValueError, match=r"study\.starts must be at most study\.draws = 4, got 5; choose fewer"):
        run(starts=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_other_draws_pass(seed):
    assert failing(STUDY.run(draws=10, starts=2, seed=seed)) == set()
