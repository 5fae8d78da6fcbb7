"""Univariate ReLU networks as splines: derivatives by second routes, and planted faults that the checks see."""

import numpy as np
import pytest
import torch
from small import SMALL, dataset, failing

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.studies import STUDIES, spline_landscape, splines
from neuralode_flow.studies.splines import Spline

STUDY = STUDIES["spline_landscape"]
GRADIENT = "gradient by moments of residuals from autograd"
HESSIAN = "Hessian by moments of pieces from autograd"
PLAIN = "Hessian without moments of residuals, a control"
RANK = "networks whose rank is not the one counted"
NEURONS = "share whose rank is not two for each neuron, a control"
CRITICAL = "gradient at critical points, by autograd"
CROSSED = "gradient where a sample has crossed a knot, a control"
FITTED = "loss from that of lines fitted to the pieces"
NEGATIVE = "negative eigenvalues at critical points"
FLAT = "flat directions from those counted"
SILENT = "negative eigenvalues from one, a silent neuron added"
LAW = "p-value of the knots in their law"
LAW_CONTROL = "p-value of the knots in the other law, a control"

MOMENTS, COUNTED, RATIO = Spline.moments, Spline.rank, splines.uniform_ratio


def run(**changes):
    return STUDY.run(**SMALL["spline_landscape"]()[1] | changes)


def spline(seed=0, width=5, samples=20):
    random = np.random.default_rng(seed)
    return Spline.of(
        np.sort(random.uniform(-1, 1, samples)), random.standard_normal(samples), random.standard_normal(3 * width)
    )


def loss(at, theta):
    one = Spline.of(at.x, at.y, theta)
    outputs = np.maximum(one.w * at.x[:, None] + one.b, 0) @ one.u
    return np.mean((outputs - at.y) ** 2) / 2


@pytest.mark.parametrize("seed", range(3))
def test_gradient_and_hessian_are_differences_of_the_loss_written_out(seed):
    at, step = spline(seed), 1e-5
    np.testing.assert_array_equal(Spline.of(at.x, at.y, at.theta).theta, at.theta)
    units = step * np.eye(len(at.theta))
    slopes = [(loss(at, at.theta + e) - loss(at, at.theta - e)) / (2 * step) for e in units]
    np.testing.assert_allclose(at.gradient(), slopes, atol=1e-8)
    moved = [(Spline.of(at.x, at.y, at.theta + e), Spline.of(at.x, at.y, at.theta - e)) for e in units]
    curved = [(one.gradient() - other.gradient()) / (2 * step) for one, other in moved]
    np.testing.assert_allclose(at.hessian(), curved, atol=1e-8)


def test_the_hessian_of_the_library_is_the_same():
    at = spline(4)
    flow = spline_landscape._network(at.x, at.y, 5)[1]
    values = nf.curvature.hessian(flow, torch.as_tensor(at.theta)).spectrum().values
    np.testing.assert_allclose(values.numpy()[::-1], np.linalg.eigvalsh(at.hessian()), atol=1e-12)


@pytest.mark.parametrize(
    ("knots", "sides", "rank"),
    [
        ([-2.0, 2.0], [-1, 1], 0),  # both dead
        ([-2.0, -3.0], [1, 1], 2),  # active everywhere
        ([0.0], [1], 2),
        ([0.0, 0.0], [1, -1], 4),  # one knot, both sides
        ([-0.5, 0.5], [1, 1], 4),
        ([-0.5, 0.5, -2.0], [1, 1, 1], 6),
        ([-0.01, 0.15], [1, -1], 4),  # one sample between neurons of different sides
        ([-0.01, 0.15], [1, 1], 3),  # and of the same side
    ],
)
def test_flat_directions_are_counted_as_lines_on_half_lines(knots, sides, rank):
    x, w = np.linspace(-1, 1, 11), np.array(sides, dtype=float)
    at = Spline(x, 0 * x, np.ones(len(w)), w, -w * np.array(knots))
    on = np.maximum(w * x[:, None] + at.b, 0) > 0
    assert np.linalg.matrix_rank(np.concatenate((on, on * x[:, None]), axis=1)) == rank
    assert at.rank() == rank


def test_a_settled_network_keeps_its_laws_and_fits_its_pieces():
    at = spline(1)
    point = at.settled()
    np.testing.assert_allclose(point.u**2 - point.w**2 - point.b**2, at.u**2 - at.w**2 - at.b**2, atol=1e-12)
    on = np.maximum(at.w * at.x[:, None] + at.b, 0) > 0
    basis = np.concatenate((on, on * at.x[:, None]), axis=1)
    best = basis @ np.linalg.lstsq(basis, at.y, rcond=None)[0]
    outputs = on @ point.lines[:, 1] + (on * at.x[:, None]) @ point.lines[:, 0]
    np.testing.assert_allclose(outputs, best, atol=1e-11)


def test_laws_of_knots_are_integrals_of_ratios():
    """Of b/w for w in (−1, 1): P(b/w <= t) over a grid of w, b uniform or normal."""
    w = (np.arange(20000) + 0.5) / 20000
    for t in (-3.0, -0.4, 0.0, 0.7, 1.5):
        by_hand = np.mean(np.clip((t * w + 1) / 2, 0, 1))
        assert splines.uniform_ratio(np.array(t)) == pytest.approx(by_hand, abs=1e-6)
        angles = (np.arange(20000) + 0.5) / 20000 * np.pi - np.pi / 2
        assert splines.cauchy(np.array(t)) == pytest.approx(np.mean(np.tan(angles) <= t), abs=1e-4)


def test_all_checks_hold_and_the_point_that_is_shown_is_critical():
    found = dataset("spline_landscape")
    assert failing(found) == set()
    assert float(found.gradient.where(found.smooth).min()) < 1e-12
    assert Finding.of(found).numbers["near"] > 0


FAULTS = {
    "moments": (Spline, "moments", lambda s: MOMENTS(s) * 1.0001, {GRADIENT, HESSIAN}),
    "settled": (Spline, "settled", lambda s: s, {CRITICAL, NEGATIVE, FITTED}),
    "counted": (Spline, "rank", lambda s: COUNTED(s) + 1, {RANK, FLAT}),
    "silent": (Spline, "silent", lambda s: s, {SILENT}),
    "none": (Spline, "silent", lambda s: None, {SILENT}),
    "law": (spline_landscape, "LAWS", {"normal": lambda t: splines.cauchy(1.1 * t), "uniform": RATIO}, {LAW}),
    "same": (spline_landscape, "LAWS", {"normal": splines.cauchy, "uniform": splines.cauchy}, {LAW, LAW_CONTROL}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [name if name in ("settled", "counted") else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_a_planted_fault_is_seen(monkeypatch, name):
    where, what, fault, sees = FAULTS[name]
    monkeypatch.setattr(where, what, fault)
    found = run(networks=10, steps=300, width=2, samples=16)
    assert sees <= failing(found)
    assert not Finding.of(found).passed


def test_every_check_of_numbers_can_fail():
    found = dataset("spline_landscape")
    known = {name: Finding.of(found).numbers[name] for name in ("gradient", "hessian", "plain", "rank", "neurons")}

    def again(numbers=None, **changes):
        changed = found.assign(changes)
        return failing(spline_landscape._finding(changed, "", known | (numbers or {})).attached(changed))

    assert again() == set()
    assert again({"plain": 0.0}) == {PLAIN}
    assert again({"neurons": 0.0}) == {NEURONS}
    assert again(gradient=found.gradient * 0) == {CROSSED}
    assert again(lowest=found.lowest - 1e-6) == {NEGATIVE}
    assert again(fitted=found.fitted * np.nan) == {FITTED}


def test_training_that_meets_no_critical_point_says_so(monkeypatch):
    monkeypatch.setattr(Spline, "settled", lambda s: s._replace(b=s.b + 10 * np.abs(s.w)))
    with pytest.raises(RuntimeError, match=r"choose more study\.starts or a smaller study\.width"):
        run(networks=1, steps=10)


def test_drawing_knots_leaves_torch_where_it_was():
    before = torch.random.get_rng_state()
    spline_landscape._knots("uniform", 1000, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "width", "samples"), [(1, 4, 12), (2, 6, 24)])
def test_other_noise_and_starts_pass(seed, width, samples):
    assert failing(STUDY.run(seed=seed, width=width, samples=samples)) == set()


def test_no_generator_of_the_users_is_seeded(monkeypatch):
    """Those of GPUs among them, which nothing would put back."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPUs were seeded"))
    before = torch.get_rng_state()
    drawn = spline_landscape._knots("uniform", 5, 3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        layer = torch.nn.Linear(1, 5, dtype=torch.float64)
    assert (drawn == (-layer.bias / layer.weight[:, 0]).detach().numpy()).all()
