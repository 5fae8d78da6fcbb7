import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from small import clock

import neuralode_flow as nf
from neuralode_flow.finding import Finding
from neuralode_flow.initial import INITIALS
from neuralode_flow.orders import extrapolated
from neuralode_flow.problems import PROBLEMS, Problem
from neuralode_flow.studies import STUDIES, convergence
from neuralode_flow.studies.axes import arranged, axis, time
from neuralode_flow.studies.convergence import run, summarise
from neuralode_flow.studies.weights import kept


def inputs(problem="teacher", initial="relaxed_balanced", samples=5, grid=None, **changes):
    made = (
        problem
        if isinstance(problem, Problem)
        else PROBLEMS[problem](**({"dimension": 3} if problem == "teacher" else {}))
    )
    return {
        "problem": made,
        "initial": INITIALS[initial](made.z0),
        "solver": nf.Collocation(grid or nf.DepthGrid.gauss(4, 8)),
        "clock": clock(2.0, samples, **changes),
    }


@pytest.fixture(scope="module")
def dataset():
    fractions = []
    dataset = run(**inputs(), depths=[8, 16, 32, 64], progress=lambda fraction, what: fractions.append(fraction))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert fractions[0] < 0.5
    return dataset


def test_all_edges_of_the_square_are_measured(dataset):
    assert float(dataset.error_reference) < 1e-9
    assert float(dataset.error_grid) < 1e-9
    assert float(dataset.error_time) < 1e-9
    assert float(dataset.error_finite_square.max()) < 1e-9
    assert float(dataset.drift_continuous.max()) < 1e-9
    assert dataset.order.values == pytest.approx([1, 2, 2, 2], abs=0.1)
    assert dataset.order_profile.values == pytest.approx([1, 2, 2, 2], abs=0.1)
    assert float(dataset.order_richardson) == pytest.approx(2, abs=0.15)
    assert float(dataset.order_intrinsic_depth) == pytest.approx(1, abs=0.1)
    assert dataset.attrs["status"] == "ok"
    assert dataset.z_finite.dims == ("rule", "depth", "member", "time", "row", "column")


@pytest.mark.parametrize("mode", [0, 3, 6])
def test_a_velocity_that_breaks_the_law_shows_in_any_mode(dataset, mode, monkeypatch):
    def pushed(flow, state, right=nf.ContinuousFlow.velocity):
        coefficients = torch.zeros(flow.grid.panels, flow.grid.order, 1, 1)
        coefficients[1, mode] = 0.1
        return right(flow, state) + flow.grid.from_legendre(coefficients) * torch.eye(3)

    honest = summarise(dataset)
    assert honest["law_drift"] < 1e-9
    high = slice(4, None)  # the lower ones are moved by errors in time
    assert all(a < b for a, b in zip(honest["law_drift_modes"][high], honest["law_drift_bounds"][high], strict=True))
    monkeypatch.setattr(nf.ContinuousFlow, "velocity", pushed)
    summary = summarise(run(**inputs(samples=2), depths=[4], layers=["euler"]))
    assert summary["law_drift"] > 0.05
    assert summary["law_drift_modes"][mode] > 100 * summary["law_drift_bounds"][mode]


def test_the_errors_are_those_of_the_stored_maps(dataset):
    gap = dataset.z_finite.isel(member=0) - dataset.z_continuous
    error = np.sqrt((gap**2).sum(("row", "column"))).max("time")
    np.testing.assert_allclose(error, dataset.error_z, rtol=1e-12)
    euler = dataset.z_finite.sel(rule="euler").isel(member=0)
    both = zip(dataset.depth.values[:-1], dataset.depth.values[1:], strict=True)
    limits = [extrapolated([one, two], euler.sel(depth=[one, two]).values, 1) for one, two in both]
    error = [np.linalg.norm(z - dataset.z_continuous, axis=(-2, -1)).max() for z in limits]
    np.testing.assert_allclose(error, dataset.error_richardson[:-1], rtol=1e-9)
    assert np.isnan(dataset.error_richardson[-1])
    error = np.linalg.norm(dataset.z_continuous - dataset.z_intrinsic, axis=(-2, -1)).max()
    np.testing.assert_allclose(error, dataset.error_reference, rtol=1e-12)


def test_the_bottom_edge_is_that_of_powers_written_out():
    """Balanced layers: ż = −1/L Σ_k (zzᵀ)^{1−k/L} ∇ℓ (zᵀz)^{(k−1)/L}; limit: ∫₀¹ (zzᵀ)^{1−s} ∇ℓ (zᵀz)^s ds."""
    given = inputs(initial="balanced", samples=5)
    found, loss = run(**given, depths=[4, 8], layers=["euler"]), given["problem"].loss
    z0, nodes = given["problem"].z0.numpy(), np.polynomial.legendre.leggauss(20)

    def powers(gram, exponents):
        values, basis = np.linalg.eigh(gram)
        return np.einsum("ij,sj,kj->sik", basis, values ** exponents[:, None], basis)

    def path(left, right, weights):
        def velocity(_, flat):
            z = flat.reshape(z0.shape)
            slope = loss.gradient(torch.as_tensor(z)).numpy()
            each = powers(z @ z.T, left) @ slope @ powers(z.T @ z, right)
            return -np.tensordot(weights, each, 1).ravel()

        ended = solve_ivp(velocity, [0, 2], z0.ravel(), "DOP853", given["clock"].times.numpy(), rtol=1e-11, atol=1e-12)
        return ended.y.T.reshape(-1, *z0.shape)

    s = (nodes[0] + 1) / 2
    limit = path(1 - s, s, nodes[1] / 2)
    for L in (4, 8):
        k = np.arange(L)
        layers = path((L - 1 - k) / L, k / L, np.full(L, 1 / L))
        error = np.linalg.norm(layers - limit, axis=(-2, -1)).max()
        np.testing.assert_allclose(found.error_intrinsic_depth.sel(depth=L), error, rtol=1e-6)


def test_the_weights_are_kept_and_give_the_stored_maps(dataset):
    flow = nf.ContinuousFlow(nf.DepthGrid.gauss(4, 8), nf.Quadratic(torch.eye(3)))
    W = torch.as_tensor(dataset.W.values)
    np.testing.assert_allclose(flow.product(W), dataset.z_continuous, atol=1e-12)
    np.testing.assert_array_equal(dataset.s, flow.grid.nodes)
    layers = dataset.W_finite.sel(depth=8).transpose("time", "s", "row", "column").values
    # Eight panels of a network of 8 layers, seen at 4 nodes each: every layer at its own nodes.
    assert np.ptp(layers.reshape(5, 8, 4, 3, 3), axis=2).max() == 0
    network = nf.FiniteFlow(8, nf.Quadratic(torch.eye(3)))
    z = network.product(torch.as_tensor(layers[:, ::4]))
    np.testing.assert_allclose(z, dataset.z_finite.sel(rule="euler", depth=8).isel(member=0), atol=1e-12)


def test_large_weights_are_kept_by_their_singular_values():
    problem = PROBLEMS["teacher"](dimension=17)
    made = run(**inputs(problem, samples=2, grid=nf.DepthGrid.gauss(1, 12)), depths=[2], layers=["euler"])
    assert made.W_singular_values.dims == ("time", "s", "mode")
    assert made.W_singular_values.shape == (2, 12, 17)
    assert "W" not in made


def test_of_long_or_large_runs_less_is_kept():
    assert kept(10, torch.ones(8, 16, 16)).shape == (8, 16, 16)
    assert kept(10, torch.ones(8, 17, 17)).shape == (8, 17)
    assert kept(2000, torch.ones(8, 16, 16)).shape == (8, 16)
    assert kept(100_000, torch.ones(8, 16, 16)) is None


def test_the_summary_is_a_flat_record_that_json_takes(dataset):
    summary = summarise(dataset)
    record = json.loads(json.dumps(summary))
    assert record["study"] == "convergence"
    assert record["status"] == "ok"
    assert record["depths"] == [8, 16, 32, 64]
    assert set(record["orders"]) == set(record["errors"]) == {"euler", "rk2", "cayley", "exp"}
    assert record["relaxed_balanced"] is True
    assert "follows the intrinsic limit" in record["verdict"]


def test_the_control_is_reported_as_leaving_the_intrinsic_curve():
    summary = summarise(run(**inputs(initial="control"), depths=[8, 16], layers=["exp"]))
    assert summary["relaxed_balanced"] is False
    assert summary["intrinsic_gap"] > 0.01
    assert summary["verdict"].startswith("The initialisation is not relaxed balanced")
    assert max(summary["finite_square_errors"]) < 1e-9


def test_rough_layers_are_averaged_over_members():
    dataset = run(**inputs(initial="rough", rtol=1e-7, atol=1e-9), depths=[16, 64, 256], layers=["euler", "cayley"])
    assert dataset.sizes["member"] == 16
    assert dataset.order.values == pytest.approx([0.5, 0.5], abs=0.15)


@pytest.mark.parametrize("problem", ["linnerud", "breast_cancer", "breast_cancer_white"])
def test_real_problems_meet_the_limit_at_the_default_tolerance(problem):
    summary = summarise(run(**inputs(problem), depths=[4, 8], layers=["euler"]))
    assert summary["reference_error"] < 1e-9


def test_a_reference_that_blows_up_is_an_error_with_its_cause():
    unbounded = Problem(
        "unbounded", "a loss without a minimum", nf.Custom(lambda z: -z.square().sum().square()), torch.eye(2)
    )
    with pytest.raises(RuntimeError, match="the continuous model could not be computed: .* at t = "):
        run(**inputs(problem=unbounded), depths=[4])


def test_networks_that_stop_early_are_said_and_the_rest_is_kept():
    def stopping(flow, *args, **kwargs):
        budget = {"max_evaluations": 30} if isinstance(flow, nf.FiniteFlow) and flow.depth == 8 else {}
        return nf.integrate(flow, *args, **kwargs, **budget)

    given = inputs()
    given["clock"] = replace(given["clock"], carried_out=stopping)
    dataset = run(**given, depths=[4, 8], layers=["euler", "exp"])
    assert dataset.attrs["status"].startswith("2 of 4 finite networks stopped early; euler, L = 8: the budget of 30")
    assert np.isnan(dataset.error_z.sel(depth=8)).all()
    assert np.isfinite(dataset.error_z.sel(depth=4)).all()
    assert np.isnan(dataset.z_finite.sel(depth=8).isel(time=-1)).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"depths": []}, ValueError, "depths must be a non-empty increasing list"),
        ({"depths": [8, 4]}, ValueError, "increasing"),
        ({"depths": [0, 4]}, ValueError, "depths must be at least 1, got 0"),
        ({"depths": [4.0]}, TypeError, "depths must be an integer"),
        ({"depths": [4], "layers": ["rk3"]}, ValueError, "unknown layer rule 'rk3'"),
        ({"depths": [4], "sampling": "right"}, ValueError, "unknown sampling"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        STUDIES["convergence"].run(**inputs(), **arguments)


def test_a_solve_that_is_too_coarse_is_not_called_ok():
    dataset = run(**inputs("linnerud", method="euler"), depths=[4], layers=["euler"])
    assert dataset.attrs["status"].startswith("the solve is too coarse")
    assert dataset.attrs["verdict"].startswith("the solve is too coarse")


def test_workers_do_not_change_the_results(dataset):
    alone = run(**inputs(), depths=[8, 16, 32, 64], workers=1)
    np.testing.assert_allclose(alone.z_finite, dataset.z_finite, atol=1e-12)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        run(**inputs(), depths=[4], workers=0)


class Formula:
    """U = I + A + A²/2, and whatever is spoilt in it."""

    quadratic_law = False

    def __init__(self, order, square):
        self.order, self.square = order, square

    def layer(self, A):
        return torch.eye(A.shape[-1]).to(A) + A + self.square * A @ A, None


class Inconsistent(Formula):
    """U = I + 2A."""

    def layer(self, A):
        return torch.eye(A.shape[-1]).to(A) + 2 * A, None


@pytest.fixture
def with_rules():
    """Registers rules for one test."""
    from neuralode_flow.depth.rules import LAYERS

    before = dict(LAYERS._entries)
    yield lambda **rules: [LAYERS.register(name)(rule) for name, rule in rules.items()]
    LAYERS._entries.clear()
    LAYERS._entries.update(before)


def test_a_rule_of_a_lower_order_than_it_declares_is_not_ok(with_rules):
    with_rules(honest=Formula(1, 0.3), boastful=Formula(2, 0.3), constant=Inconsistent(1, 0.0))
    honest, boastful, constant = (
        summarise(run(**inputs(samples=3, rtol=1e-8, atol=1e-10), depths=[16, 32, 64], layers=["exp", name]))
        for name in ("honest", "boastful", "constant")
    )
    assert honest["status"] == "ok"
    assert honest["orders"]["honest"] == pytest.approx(1, abs=0.1)
    assert boastful["status"].startswith("layer rule 'boastful' has the observed order")
    assert "and not 2, as it declares" in boastful["verdict"]
    assert boastful["orders"]["exp"] == pytest.approx(2, abs=0.05)
    assert constant["status"].startswith("layer rule 'constant' does not converge as it declares (order 1): the errors")
    assert np.isnan(constant["orders"]["constant"])


def test_the_verdict_has_each_order_with_spread_depths_and_what_was_expected(dataset):
    verdict = dataset.attrs["verdict"]
    for rule, expected in (("euler", 1), ("exp", 2)):
        order, spread = (float(dataset[name].sel(rule=rule)) for name in ("order", "order_spread"))
        points = int(dataset.order_points.sel(rule=rule))
        assert f"{rule} {order:.2f} ± {spread:.2f} over {points} depths (expected {expected})" in verdict


def test_the_claim_of_the_square_holds_by_its_orders_and_its_limit(dataset):
    found = Finding.of(dataset)
    assert found.passed
    assert summarise(dataset)["passed"]
    for check in found.checks:
        if check.bound is not None:
            off = replace(found, checks=tuple(replace(c, error=np.nan) if c is check else c for c in found.checks))
            assert not off.passed
    measured = {check.name: check.error for check in found.checks}
    assert measured["order of exp from 2"] == abs(float(dataset.order.sel(rule="exp")) - 2)


def test_of_two_depths_no_order_is_said():
    summary = summarise(run(**inputs(), depths=[8, 16], layers=["euler"]))
    assert summary["status"] == "ok"
    assert np.isnan(summary["orders"]["euler"])
    assert "euler undecided (2 of 2 errors are above 30 times the floor" in summary["verdict"]
    assert summary["order_reasons"]["euler"]


def test_sampling_and_initialisation_limit_the_order_that_is_expected():
    smooth, rough = inputs()["initial"], inputs(initial="rough")["initial"]
    assert convergence.expected_order(smooth, "exp", "midpoint") == 2
    assert convergence.expected_order(smooth, "exp", "left") == 1
    assert convergence.expected_order(rough, "exp", "midpoint") == 0.5


@pytest.mark.parametrize(
    ("method", "step", "samples"),
    [("euler", 0.05, 3), ("euler", 0.5, 9), ("rk4", 0.25, 3), ("midpoint", None, 9), ("adaptive_heun", None, 17)],
)
def test_the_error_in_time_of_the_reference_is_that_against_an_accurate_run(method, step, samples):
    coarse = inputs(samples=samples, method=method, step=step, rtol=1e-1, atol=1e-1)
    claimed = summarise(run(**coarse, depths=[4], layers=["exp"]))["reference_error_time"]
    flow = nf.ContinuousFlow(coarse["solver"].grid, coarse["problem"].loss)
    paths = [
        nf.integrate(flow, flow.sample(coarse["initial"]), coarse["clock"].times, **options)
        for options in (
            {"method": method, "step": step, "rtol": 1e-1, "atol": 1e-1},
            {"method": "DOP853", "rtol": 1e-12},
        )
    ]
    true = float(torch.linalg.matrix_norm(paths[0].z - paths[1].z).max())
    assert true > 1e-7
    assert 0.7 * true <= claimed <= 2.5 * true


def test_orders_are_seen_under_an_error_in_time_that_both_sides_share():
    dataset = run(**inputs(method="euler", step=0.05), depths=[16, 32, 64], layers=["euler", "exp"])
    assert float(dataset.error_time) > 1e-3
    assert dataset.order.values == pytest.approx([1, 2], abs=0.1)


def test_datasets_with_the_same_axes_may_be_changed_one_by_one():
    times = torch.linspace(0, 1, 4)
    one, other = (arranged({"x": ("time", times + k)}, [time(times)]) for k in range(2))
    one.time.attrs["long_name"] = "changed"
    assert other.time.attrs["long_name"] == "training time t"
    assert arranged({}, [time(times)]).time.attrs["long_name"] == "training time t"
    assert arranged({}, [time(2 * times)]).time.values.tolist() == (2 * times).tolist()
    assert arranged({}, [axis("time", times, "other")]).time.attrs == {"long_name": "other"}
