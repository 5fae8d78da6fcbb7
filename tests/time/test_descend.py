"""Training in steps: each rule against a second route, z₀ decides, the law in steps, and how a run ends and goes on."""

import math

import pytest
import torch
from cases import Passing
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.time.steplaw import StepLaw
from neuralode_flow.time.steprule import STEP_RULES, AlongGradient, Ground, StepRule

D, GRID = 3, nf.DepthGrid.gauss(4, 10)
EYE = torch.eye(D).double()
SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(12, D, generator=SOURCE, dtype=torch.float64)
Z0 = torch.linalg.matrix_exp(0.3 * torch.randn(D, D, generator=SOURCE, dtype=torch.float64))
LOSS = nf.Regression(X, X @ torch.linalg.matrix_exp(0.5 * torch.randn(D, D, generator=SOURCE, dtype=torch.float64)).mT)
FLOW = nf.ContinuousFlow(GRID, LOSS)
START = FLOW.sample(nf.INITIALS["relaxed_balanced"](Z0))
OPTIONS = {"sgd": {"batch": 5}, "weight_decay": {"decay": 0.1}}
RATES = {"normalised": 0.02, "layer_normalised": 0.02, "muon": 0.02, "lars": 0.02, "sign": 0.02, "adam": 0.02}
EQUIVARIANT = [name for name, rule in STEP_RULES.items() if rule.equivariant]


def run(rule="gd", steps=40, flow=FLOW, start=START, rate=None, **options):
    rate = RATES.get(rule, 0.05) if rate is None else rate
    return nf.descend(flow, start, steps, rule, rate, **{"record": 10, **OPTIONS.get(rule, {}), **options})


def norm(z):
    return float(z.norm(dim=(-2, -1)).max())


# Each rule against a second route.


def test_gradient_descent_is_the_explicit_euler_method_of_the_flow():
    path = run("gd", record=1)
    euler = nf.integrate(FLOW, START, path.times, "euler")
    assert_close(path.z, euler.z, rtol=0, atol=1e-13)


THETA = torch.randn(2, 2, 4, generator=SOURCE, dtype=torch.float64)
FACTORS = nf.FactorizationFlow(lambda theta: theta[..., 0, :, :] @ theta[..., 1, :, :].mT, nf.Quadratic(torch.eye(2)))


@pytest.mark.parametrize(
    ("rule", "options", "optimiser"),
    [
        ("gd", {}, lambda p: torch.optim.SGD(p, lr=0.05)),
        ("heavy_ball", {"momentum": 0.8}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8)),
        ("adam", {"beta1": 0.8}, lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.8, 0.999))),
        ("weight_decay", {"decay": 0.3}, lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.3)),
    ],
)
def test_a_rule_is_that_of_torch(rule, options, optimiser):
    theta = THETA.clone().requires_grad_()
    steps = optimiser([theta])
    for _ in range(50):
        steps.zero_grad()
        (FACTORS.phi(theta) - torch.eye(2)).square().sum().mul(0.5).backward()
        steps.step()
    path = nf.descend(FACTORS, THETA, 50, rule, 0.05, record=50, **options)
    assert_close(path.state, theta.detach(), rtol=0, atol=1e-13)


def test_nesterov_is_that_of_torch_seen_where_its_momentum_leads():
    theta = THETA.clone().requires_grad_()
    steps = torch.optim.SGD([theta], lr=0.05, momentum=0.8, nesterov=True)
    ours = nf.descend(FACTORS, THETA, 50, "nesterov", 0.05, momentum=0.8, observe=lambda i, state: state).observed
    for n in range(50):
        steps.zero_grad()
        (FACTORS.phi(theta) - torch.eye(2)).square().sum().mul(0.5).backward()
        steps.step()
        ahead = ours[n + 1] + 0.8 * (ours[n + 1] - ours[n])
        assert_close(ahead, theta.detach(), rtol=0, atol=1e-13)


def test_steps_of_a_fixed_length_have_it():
    weights = GRID.weights[:, None, None]
    for rule in ("normalised", "layer_normalised", "muon", "lars", "sign"):
        states = run(rule, 5, record=1, observe=lambda i, state: state).observed
        moved, g = states[1:] - states[:-1], [-FLOW.velocity(state) for state in states[:-1]]
        size = {
            "normalised": lambda step, state: (weights * step.square()).sum().sqrt() - 0.02,
            "layer_normalised": lambda step, state: torch.linalg.matrix_norm(step) - 0.02,
            "muon": lambda step, state: torch.linalg.svdvals(step) - 0.02,
            "lars": lambda step, state: torch.linalg.matrix_norm(step) - 0.02 * torch.linalg.matrix_norm(state),
            "sign": lambda step, state: step.abs() - 0.02,
        }[rule]
        for step, state, gradient in zip(moved, states[:-1], g, strict=True):
            assert_close(size(step, state), torch.zeros_like(size(step, state)), rtol=0, atol=1e-14)
            assert float((step * gradient).sum()) < 0


def test_the_polar_factor_is_the_nearest_orthogonal_matrix_and_muons_polynomial_is_near_it():
    from neuralode_flow.time.rules.muon import exact, newton_schulz

    g = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    Q = exact(g)
    assert_close(Q @ Q.mT, torch.eye(5).double().expand(4, 5, 5), rtol=0, atol=1e-14)
    assert_close(Q.mT @ g, (Q.mT @ g).mT, rtol=0, atol=1e-13)  # g = QH with H symmetric and positive definite
    assert float(torch.linalg.eigvalsh(Q.mT @ g).min()) > 0
    near = torch.linalg.svdvals(Q.mT @ newton_schulz(g))
    assert float((near - 1).abs().max()) < 0.35
    flat = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))  # no direction in its kernel
    assert_close(exact(flat), torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))
    assert float(exact(torch.zeros(2, 2)).abs().max()) == 0.0


def test_an_epoch_sees_every_sample_once_and_a_whole_batch_is_gradient_descent():
    whole = run("sgd", 20, batch=12, sampling="epochs")
    assert_close(whole.z, run("gd", 20).z, rtol=0, atol=1e-13)
    rule = STEP_RULES["sgd"](_ground(), 0.1, batch=5, sampling="epochs")
    for epoch in range(3):
        seen = torch.cat([rule.rows(3 * epoch + k) for k in range(3)])
        assert sorted(seen.tolist()) == list(range(12))
    drawn = STEP_RULES["sgd"](_ground(), 0.1, batch=4000 % 12 + 1, seed=1)
    counts = torch.bincount(torch.cat([drawn.rows(n) for n in range(3000)]), minlength=12)
    assert float((counts / counts.sum() * 12 - 1).abs().max()) < 0.1


def test_label_noise_is_none_on_the_average_and_has_its_size():
    rule = STEP_RULES["label_noise"](_ground(), 1.0, sigma=0.5)
    moved = torch.stack([START - rule.step(n, START) for n in range(400)])
    g = -FLOW.velocity(START)
    assert norm((moved.mean(0) - g).mean(0)) < 0.2 * norm((moved - g).square().mean(0).sqrt().mean(0))
    assert norm((moved[0] - g).mean(0)) > 1e-3


def _ground():
    from neuralode_flow.time.steprule import Ground

    def with_loss(state, loss):
        return -nf.ContinuousFlow(GRID, loss).velocity(state)

    return Ground(FLOW, FLOW.velocity, with_loss, 0, START)


# z₀ decides (theorem G).


@pytest.mark.parametrize("rule", EQUIVARIANT)
def test_relaxed_balanced_starts_of_one_z0_train_alike(rule):
    profiles = [nf.INITIALS["relaxed_balanced"](Z0, seed=seed, twist=1.0 + seed) for seed in range(4)]
    starts = torch.stack([FLOW.sample(profile) for profile in profiles])
    z = run(rule, 60, start=starts).z
    assert norm(z - z[:, :1]) < 1e-12 * norm(z)
    other = run(rule, 60, start=FLOW.sample(nf.control(Z0))).z
    assert norm(other - z[:, 0]) > 1e-3


@pytest.mark.parametrize("rule", ["adam", "sign", "lars", "weight_decay"])
def test_rules_that_see_coordinates_or_sizes_tell_them_apart(rule):
    profiles = [nf.INITIALS["relaxed_balanced"](Z0, seed=seed, twist=1.0 + seed) for seed in range(4)]
    z = run(rule, 60, start=torch.stack([FLOW.sample(profile) for profile in profiles])).z
    assert not STEP_RULES[rule].equivariant
    assert norm(z - z[:, :1]) > 1e-2


# The law in steps.


@pytest.mark.parametrize("rule", ["gd", "normalised", "sgd", "label_noise"])
@pytest.mark.parametrize("model", ["continuous", "euler"])
def test_the_law_moves_as_the_steps_say(rule, model):
    flow = FLOW if model == "continuous" else nf.FiniteFlow(8, LOSS)
    start = flow.sample(nf.smooth(D, 1.0, torch.Generator().manual_seed(3)))
    path = run(rule, flow=flow, start=start, rate=0.1)
    moved = (flow.law(path.state) - flow.law(start)).norm(dim=(-2, -1)).max()
    assert float(path.drift.max()) < 1e-9
    assert float(moved) > 1e-3


def test_the_law_of_larger_matrices_is_followed_along_four_directions():
    """The estimate is near the distance itself where something is wrong: here, a step that nobody has told of."""
    flow = nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(7).double()))
    start = flow.sample(nf.smooth(7, 1.0, torch.Generator().manual_seed(3)))
    path = nf.descend(flow, start, 40, "gd", 0.1, record=10)
    assert float(path.drift.max()) < 1e-9
    law = StepLaw(flow, start)
    step = 0.1 * flow.velocity(start)
    law.step(start, start + step)
    assert float(law.drift(start + step)) < 1e-9
    wrong = start + 1.5 * step
    moved = flow.law(wrong) - flow.law(start) - flow.law_of_steps(flow.step_law(step, torch.eye(7).double()))
    assert 0.5 < float(law.drift(wrong)) / norm(moved) < 2


MOVED = [("heavy_ball", {"rate": 0.02}), ("heavy_ball", {"momentum": 0.3}), ("weight_decay", {"decay": 0.4})]


@pytest.mark.parametrize(("rule", "options"), [*MOVED, ("weight_decay", {"decay": 0.4, "of": "layers"})])
@pytest.mark.parametrize("model", ["continuous", "euler"])
def test_momentum_and_decay_move_the_law_as_they_say(rule, options, model, tmp_path):
    """Also where the run was resumed, and not if what is said were of another momentum or decay."""
    if model == "continuous" and "of" in options:
        pytest.skip("only Euler networks have layers that can decay")
    flow = FLOW if model == "continuous" else nf.FiniteFlow(8, LOSS)
    start = flow.sample(nf.smooth(D, 1.0, torch.Generator().manual_seed(3)))
    settings = {"flow": flow, "start": start, "rate": 0.1, **options}
    options = {name: value for name, value in options.items() if name != "rate"}
    path = run(rule, 60, **settings)
    moved = (flow.law(path.state) - flow.law(start)).norm(dim=(-2, -1)).max()
    assert float(path.drift.max()) < 1e-9
    assert float(moved) > 1e-3
    run(rule, 30, checkpoint=tmp_path / "half.npz", **settings)
    assert torch.equal(run(rule, 60, checkpoint=tmp_path / "half.npz", **settings).drift[-1], path.drift[-1])
    other = {"momentum": 0.5} if rule == "heavy_ball" else {"decay": 0.2}
    wrong = STEP_RULES[rule](Ground(flow, flow.velocity, None, 0, start), 0.1, **options | other).law()
    states = [run(rule, n, **settings).state for n in range(1, 11)]
    for before, after in zip([start, *states], states, strict=False):
        wrong.step(before, after)
    assert float(wrong.drift(states[-1])) > 1e-3


def test_where_steps_do_not_say_how_it_moves_the_drift_is_that_from_the_start():
    path = run("nesterov")
    moved = (FLOW.law(path.state) - FLOW.law(START)).norm(dim=(-2, -1)).max()
    assert float(path.drift[-1]) == pytest.approx(float(moved), rel=1e-6)
    layers = nf.FiniteFlow(4, LOSS, layer="exp")
    assert float(run("gd", flow=layers, start=layers.sample(nf.control(Z0))).drift.max()) > 1e-4


def test_decay_of_the_layers_lets_their_law_decay():
    flow = nf.FiniteFlow(4, LOSS)
    start = flow.sample(nf.smooth(D, 1.0, torch.Generator().manual_seed(3)))

    def law(W):  # of a flow in time: U_kᵀU_k falls like e^{−2μt}
        U = torch.eye(D).double() + W / 4
        return U[1:].mT @ U[1:] - U[:-1] @ U[:-1].mT

    errors = []
    for n in (100, 200):
        path = run("weight_decay", n, flow=flow, start=start, rate=1.0 / n, decay=0.5, of="layers")
        errors.append(float((law(path.state) - math.exp(-1.0) * law(start)).abs().max()))
    assert errors[0] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3  # order 1 in the rate


# How a run ends, and goes on.


def test_a_rate_that_is_too_large_is_a_status_with_the_step():
    path = nf.descend(FLOW, START, 100, rate=30.0)
    assert path.ending == "diverged"
    step = path.stats["steps"]
    assert f"diverged at step {step + 1} of 100" in path.status
    assert bool(torch.isfinite(path.z).all())
    assert float(path.times[-1]) == 30.0 * step
    assert "the loss has grown to" in path.status  # and the step is not kept
    assert float(path.loss.max()) < 1e13
    layers = nf.FiniteFlow(8, LOSS)
    start = layers.sample(nf.control(Z0))
    both = nf.descend(layers, torch.stack((start, start + 40.0)), 50, rate=0.05)
    assert "of member 1 of 2" in both.status
    with pytest.raises(nf.IntegrationError, match="diverged"):
        nf.descend(FLOW, START, 100, rate=30.0, throw=True)


class Burst(nf.Quadratic):
    """Its gradient is infinite where z[0, 0] > 1."""

    def gradient(self, z):
        return super().gradient(z).masked_fill(z[..., :1, :1] > 1, float("inf"))


@pytest.mark.parametrize("flow", [nf.ContinuousFlow(GRID, Burst(1.5 * EYE)), nf.FiniteFlow(1, Burst(1.5 * EYE))])
@pytest.mark.parametrize("rule", ["gd", "normalised", "sign"])
def test_a_gradient_that_is_not_finite_is_named_and_not_the_step_along_it(flow, rule):
    depth = len(flow.grid) if hasattr(flow, "grid") else 1
    start = torch.stack([0 * EYE, -EYE])[:, None].repeat(1, depth, 1, 1)
    path = nf.descend(flow, start, 50, rule, 0.1, record=50)
    assert path.ending == "diverged"
    assert "the gradient of member 0 of 2 is not finite" in path.status
    assert path.stats["evaluations"] == path.stats["steps"] + 1
    assert torch.isfinite(path.state).all()


def test_events_end_it_after_the_first_step_at_which_they_have_happened():
    whole = run("gd", 200, record=1)
    bound = float(whole.loss[57]) * (1 + 1e-12)
    path = run("gd", 200, record=50, stop={"loss": bound})
    assert (path.ending, path.stats["steps"]) == ("loss", 57)
    assert path.times.tolist() == [0.0, 2.5, pytest.approx(57 * 0.05)]
    steady = run("gd", 2000, record=500, stop={"steady": 1e-3})
    assert float(FLOW.velocity(steady.state).abs().max()) <= 1e-3
    mine = run("gd", 50, stop={"mine": lambda t, z, state: 0.99 - t})
    assert (mine.ending, mine.stats["steps"]) == ("event", 20)
    assert run("gd", 50, stop={"norm": 1e-3}).stats["steps"] == 0


@pytest.mark.parametrize("rule", STEP_RULES)
def test_it_goes_on_to_the_bit(rule, tmp_path):
    file = tmp_path / "run.npz"
    whole = run(rule, 40)

    def interrupt(i, state):
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(rule, 40, checkpoint=file, every=0, observe=interrupt)
    assert nf.load(file).ending == "interrupted"
    path = run(rule, 40, checkpoint=file, every=0, observe=lambda i, state: None)
    assert torch.equal(path.z, whole.z)
    assert torch.equal(path.state, whole.state)
    assert torch.equal(path.drift, whole.drift)
    assert path.stats["evaluations"] == whole.stats["evaluations"]
    longer = run(rule, 60, checkpoint=file)
    assert torch.equal(longer.z, run(rule, 60).z)
    assert torch.equal(nf.load(file).z, longer.z)
    with pytest.raises(ValueError, match="belongs to a run with rate"):
        run(rule, 60, checkpoint=file, rate=0.01)


def test_a_budget_of_time_ends_it_and_it_goes_on(tmp_path):
    path = run("gd", 10**6, max_seconds=0.3, checkpoint=tmp_path / "run.npz", record=10**5)
    assert path.ending == "seconds"
    assert 0 < path.stats["steps"] < 10**6
    assert f"at step {path.stats['steps'] + 1} of 1000000" in path.status
    more = run("gd", 10**6, max_seconds=0.6, checkpoint=tmp_path / "run.npz", record=10**5)
    assert more.stats["steps"] > path.stats["steps"]


def test_members_train_as_they_would_alone():
    starts = torch.stack([START, FLOW.sample(nf.control(Z0)), 0.5 * START])
    for rule in STEP_RULES:
        together = run(rule, start=starts).z
        for k in range(3):
            assert_close(together[:, k], run(rule, start=starts[k]).z, rtol=0, atol=1e-12)


def test_it_is_a_trajectory_like_others(tmp_path):
    path = run("adam", 20)
    assert repr(path).startswith("Trajectory(3 times, ok, loss ")
    dataset = path.to_xarray()
    assert dataset.attrs["method"] == "adam"
    assert dataset.attrs["rate"] == 0.02
    assert "rate = 0.02" in path._repr_html_()
    path.save(tmp_path / "path.npz")
    assert torch.equal(nf.load(tmp_path / "path.npz").z, path.z)
    assert torch.equal(path(path.times[1]), path.z[1])
    with pytest.raises(ValueError, match="has no z between them"):
        path(0.3)
    path.plot()
    dataset.to_netcdf(tmp_path / "path.nc", engine="scipy")


def test_a_grid_that_does_not_resolve_the_state_is_said():
    coarse = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), LOSS)
    start = nf.relaxed_balanced(Z0, twist=lambda s: 8 * math.sin(9 * s) * (Z0 - Z0.mT))
    assert run("gd", 5, flow=coarse, start=start).ending == "depth"


def test_intrinsic_flows_and_single_matrices_take_steps():
    limit = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2).double()), nf.LogMean())
    for rule in ("gd", "muon", "layer_normalised", "normalised", "adam"):
        path = nf.descend(limit, torch.eye(2).double(), 100, rule, 0.01, record=100)
        assert path.status == "ok"
        assert float(path.loss[-1]) < float(path.loss[0])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"rate": 0.0}, ValueError, "rate must be above 0, got 0.0"),
        ({"rate": math.nan}, ValueError, "rate must be finite, got nan"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"record": 0}, ValueError, "record must be at least 1, got 0"),
        ({"rule": "heavyball"}, ValueError, "unknown step rule 'heavyball'; did you mean 'heavy_ball'?"),
        ({"rule": "heavy_ball", "momentun": 0.5}, TypeError, "no option 'momentun'; did you mean 'momentum'?"),
        ({"momentum": 0.5}, TypeError, r"rule='gd' has no option 'momentum' \(it has none\)"),
        ({"rule": "heavy_ball", "momentum": 1.0}, ValueError, "momentum must be below 1, got 1.0"),
        ({"rule": "nesterov", "momentum": -0.1}, ValueError, "momentum must be at least 0, got -0.1"),
        ({"rule": "adam", "beta1": "x"}, TypeError, "beta1 must be a number, got 'x'"),
        ({"rule": "muon", "polar": "qr"}, ValueError, "unknown polar factor 'qr'"),
        ({"rule": "sgd", "batch": 13}, ValueError, "batch must be at most the number of samples, 12, got 13"),
        ({"rule": "sgd", "flow": nf.ContinuousFlow(GRID, nf.Quadratic(Z0))}, ValueError, "needs a loss with samples"),
        ({"rule": "weight_decay", "of": "layers"}, ValueError, "FiniteFlow of euler layers"),
        ({"start": nf.control(torch.eye(2).double())}, ValueError, "state has matrices of size 2"),
        ({"checkpoint": "nowhere/x.npz"}, OSError, "cannot be written"),
    ],
)
def test_what_is_refused_before_any_work(arguments, error, said):
    with pytest.raises(error, match=said):
        run(**arguments)


def test_muon_needs_matrices():
    scalar = nf.IntrinsicFlow(nf.Quadratic(torch.tensor([[2.0]]).double()), nf.LogMean())
    with pytest.raises(ValueError, match="choose sign"):
        nf.descend(scalar, torch.tensor([[1.0]]).double(), 5, "muon")
    with pytest.raises(ValueError, match="works on the matrix at each depth"):
        nf.descend(FACTORS, THETA, 5, "muon")


def test_a_random_network_of_one_gauge_orbit_trains_alike():
    """Euler layers: U_k ↦ Q_k U_k Q_{k−1}ᵀ with Q_0 = Q_L = I."""
    for depth in (2, 4, 16):
        flow = nf.FiniteFlow(depth, LOSS)
        U = torch.eye(D).double() + flow.sample(nf.INITIALS["smooth"](Z0)) / depth
        Q = torch.linalg.qr(torch.randn(depth - 1, D, D, generator=torch.Generator().manual_seed(depth)).double())[0]
        ends = torch.eye(D).double()[None]
        turned = torch.cat((Q, ends)) @ U @ torch.cat((ends, Q)).mT
        starts = depth * (torch.stack((U, turned)) - torch.eye(D).double())
        assert norm(starts[0, 0] - starts[1, 0]) > 0.1
        for rule in ("gd", "heavy_ball", "nesterov", "muon", "sgd"):
            z = run(rule, 100, flow=flow, start=starts, rate=0.02).z
            assert norm(z[:, 0] - z[:, 1]) < 1e-12 * norm(z)
        assert norm((z := run("sign", 100, flow=flow, start=starts, rate=0.02).z)[:, 0] - z[:, 1]) > 1e-3


def test_memory_grows_with_what_is_recorded_alone(tmp_path):
    sizes = []
    for n in (10, 1000):
        path = run("gd", n, record=n, checkpoint=tmp_path / f"{n}.npz")
        assert len(path.times) == 2
        sizes.append((tmp_path / f"{n}.npz").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 100


def test_four_directions_tell_the_size_of_a_matrix_on_the_average():
    from neuralode_flow.time.steplaw import _scale

    d, k = 9, 4
    draws = torch.linalg.qr(torch.randn(4000, d, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    E = torch.randn(d, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    E = E + E.mT
    E = E - E.trace() / d * torch.eye(d).double()
    V = draws[..., :k]
    mean = float((V.mT @ E @ V).square().sum((-2, -1)).mean()) ** 0.5
    assert _scale(d, k) * mean == pytest.approx(float(E.norm()), rel=0.02)


# At the joints.


def test_a_number_of_steps_is_no_list_of_times(tmp_path):
    for file in (None, tmp_path / "run.npz"):
        path = nf.descend(FLOW, START, 10**18, checkpoint=file, stop={"time": 0.035})
        assert (path.ending, path.stats["steps"]) == ("time", 4)


def test_a_run_of_any_length_goes_on(tmp_path):
    """Its last step is recorded; the longer run does not record it."""
    file = tmp_path / "run.npz"

    def seen(i, state):
        return state

    run("adam", 15, checkpoint=file, observe=seen)
    assert len(nf.load(file).times) == 3
    longer, whole = run("adam", 40, checkpoint=file, observe=seen), run("adam", 40, observe=seen)
    for name in ("times", "z", "drift", "state", "observed", "depth_error"):
        assert torch.equal(getattr(longer, name), getattr(whole, name))
    with pytest.raises(ValueError, match="belongs to a run with steps = '40', now it is '39'"):
        run("adam", 39, checkpoint=file, observe=seen)


class Ramp:
    """x grows by the rate at each step; z is not finite above `edge`, nor the velocity from `end` on."""

    def __init__(self, edge, end):
        self.edge, self.end, self.loss = edge, end, nf.Quadratic(torch.tensor(9.0).double())

    def velocity(self, x):
        return torch.where(x < self.end, torch.ones_like(x), math.nan * x.exp())

    def product(self, x):
        return torch.where(x > self.edge, math.nan, x)

    def law(self, x):
        return x.new_empty(*x.shape, 0, 1, 1)

    def check(self, x):
        pass


def test_a_run_that_ends_where_z_is_lost_is_saved_where_it_is(tmp_path):
    file = tmp_path / "run.npz"
    start = torch.tensor(0.0).double()
    for _ in range(2):
        path = nf.descend(Ramp(2, 4), start, 100, rate=1.0, record=50, checkpoint=file)
        assert path.status.startswith("the training diverged at step 5 of 100: the gradient is not finite")
        assert path.times.tolist() == [0.0]
        assert float(nf.load(file).state) == 4.0
    assert float(nf.descend(Ramp(2, 4), start, 100, rate=1.0, record=50).state) == 0.0  # that of the last z


def test_it_is_the_step_that_is_named_at_which_an_event_or_a_start_is_lost():
    start = torch.tensor(0.0).double()
    path = nf.descend(Ramp(2, 9), start, 100, rate=1.0, record=50, stop={"loss": 1e-3})
    assert path.status.startswith("the training diverged at step 3 of 100: the event 'loss' is not a number")
    assert (path.times.tolist(), float(path.state)) == ([0.0, 2.0], 2.0)
    lost = nf.descend(Ramp(2, 0), start, 100)
    assert (lost.ending, lost.status) == ("not_finite", "the gradient is not finite, at step 1 of 100")


def test_a_rule_of_ones_own_has_plain_options_and_any_memory(monkeypatch, tmp_path):
    class Mine(StepRule):
        def __init__(self, ground: Ground, rate: float, *, power: float, shift: int = -1, odd: bool = False,
                     most: float | None = None) -> None:  # fmt: skip
            super().__init__(ground, rate)
            self.power, self.odd = power, odd

        def step(self, n, state):
            count = self.memory["count"] = self.memory.get("count", torch.tensor(2**53 + 1)) + 1
            if self.odd:
                raise torch.linalg.LinAlgError("singular")
            return state - self.rate * (count % 2) ** self.power * self.ground.gradient(state)

    monkeypatch.setitem(STEP_RULES._entries, "mine", Mine)
    file = tmp_path / "run.npz"
    run("mine", 20, power=1, checkpoint=file)
    assert torch.equal(run("mine", 40, power=1, checkpoint=file).z, run("mine", 40, power=1).z)
    assert run("mine", 40, power=1, odd=True).status == "the step could not be computed: singular, at step 1 of 40"
    for options, said in (
        ({}, "rule='mine' needs its option 'power'"),
        ({"power": "x"}, "power must be a number, got 'x'"),
        ({"power": 1, "shift": 0.5}, "shift must be an integer, got 0.5"),
        ({"power": 1, "odd": 1}, "odd must be True or False, got 1"),
    ):
        with pytest.raises(TypeError, match=said):
            run("mine", 2, **options)


@pytest.mark.parametrize("kept", ["whole", "seen", "state", "nothing"])
def test_a_step_is_not_written_over_what_a_rule_keeps(kept, monkeypatch):
    """Whatever a rule gives away or keeps, all steps are those that `step` alone would take."""

    class Lazy(AlongGradient):
        """Its gradient is new at every fourth step alone."""

        def along(self, n, state):
            if kept == "state":
                return state
            if n % 4 == 0 or kept == "nothing":
                self.memory = {"g": self.ground.velocity(state)} if kept != "nothing" else {}
                return self.memory.get("g", self.ground.velocity(state))
            return self.memory["g"].view(-1, 3, 3) if kept == "seen" else self.memory["g"]

    class Plain(Lazy):
        def step(self, n, state):  # one's own, which is not known to be along a gradient
            return torch.add(state, self.along(n, state), alpha=self.rate)

    flow = nf.ContinuousFlow(GRID, nf.Quadratic(torch.eye(3).double()))
    start = flow.sample(nf.smooth(3, 1.0, torch.Generator().manual_seed(3)))
    before, paths = start.clone(), []
    for rule in (Lazy, Plain):
        monkeypatch.setitem(STEP_RULES._entries, "mine", rule)
        paths.append(nf.descend(flow, start, 10, "mine", 0.05))
    assert torch.equal(start, before)
    assert_close(paths[0].z, paths[1].z, rtol=1e-14, atol=1e-14)
    assert_close(paths[0].state, paths[1].state, rtol=1e-14, atol=1e-14)


class Away(nf.ContinuousFlow):
    """Goes the other way, and slower."""

    def velocity(self, state):
        return -0.5 * super().velocity(state)


def patched(state):
    return 0.25 * FLOW.velocity(state)


def models(name):
    """A flow by its name, and a start."""
    d = 6 if name == "larger" else D
    loss = LOSS if d == D else nf.Quadratic(1.5 * torch.eye(d).double())
    flow = nf.ContinuousFlow(GRID, loss)
    layered = {"layers": "euler", "one": "euler", "cayley": "cayley"}
    if name in layered:
        flow = nf.FiniteFlow(1 if name == "one" else 12, loss, layered[name])
    elif name == "odeint":
        flow = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), loss, "torchdiffeq")
    start = flow.sample(nf.smooth(d, 1.0, torch.Generator().manual_seed(3)))
    if name == "batch":
        start = torch.stack((start, 0.5 * start))
    elif name == "away":
        flow = Away(GRID, loss)
    elif name == "passing":
        flow = Passing(flow)
    elif name == "patched":
        flow.velocity = patched
    return flow, start


@pytest.mark.parametrize(
    "name", ["grid", "larger", "batch", "layers", "one", "cayley", "odeint", "away", "passing", "patched"]
)
def test_a_step_that_is_taken_with_its_velocity_is_that_step(name, monkeypatch):
    class Along(AlongGradient):
        """Gradient descent that asks for velocities."""

        def along(self, n, state):
            return self.ground.velocity(state)

    flow, start = models(name)
    before = start.clone()
    monkeypatch.setitem(STEP_RULES._entries, "mine", Along)
    steps = 2 if name == "odeint" else 11
    together, apart = (nf.descend(flow, start, steps, rule, 0.05, record=4) for rule in ("gd", "mine"))
    assert torch.equal(start, before)
    assert together.stats["evaluations"] == apart.stats["evaluations"] == steps
    for field in ("z", "loss", "drift", "state"):
        assert torch.equal(getattr(together, field), getattr(apart, field)), field
    assert float((together.z[-1] - together.z[0]).norm()) > 1e-2


def test_members_without_axes_of_their_own_are_normalised_each():
    flow = nf.FactorizationFlow(lambda theta: theta**2, nf.Quadratic(torch.tensor(2.0)))
    path = nf.descend(flow, torch.tensor([1.0, 0.5]), 1, "normalised", 0.1)
    assert_close(path.state, torch.tensor([1.1, 0.6]))


def test_it_advises_nothing_that_it_does_not_take():
    coarse = nf.ContinuousFlow(nf.DepthGrid.gauss(1, 4), LOSS)
    path = run("gd", 5, flow=coarse, start=nf.relaxed_balanced(Z0, twist=lambda s: 8 * math.sin(9 * s) * (Z0 - Z0.mT)))
    assert path.status.endswith("; use more nodes")
    assert "estimate=True" not in path._repr_html_()
    assert path.stats["law_modes"] is None  # what is measured is no change of the law
    assert run("adam", 5).stats["law_modes"] is not None


def test_seeds_are_told_apart_to_their_last_bit():
    first = [run("sgd", 5, seed=seed).z for seed in (3, 3, 3 + 2**32, 3 + 2**40)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[2], first[3])


def test_a_time_is_that_of_a_step_as_it_is_written():
    path = run("gd", 40, rate=0.1, record=1)
    assert float(path.times[3]) != 0.3
    assert torch.equal(path([0.3, 0.7, 4]), path.z[[3, 7, 40]])
    assert torch.equal(run("gd", 100, rate=0.57, record=100)(57), run("gd", 100, rate=0.57, record=100).z[-1])
    with pytest.raises(ValueError, match="has no z between them"):
        path(0.3001)
    assert torch.equal(nf.integrate(FLOW, START, [0.0, 0.1])(0.1), nf.integrate(FLOW, START, [0.0, 0.1]).z[-1])


def test_a_checkpoint_is_refused_where_a_function_in_the_flow_has_become_another(tmp_path):
    file = tmp_path / "run.npz"
    for factor, steps in ((1.0, 5), (1.0, 10), (2.0, 15)):

        def loss(z, factors=[factor]):  # noqa: B006  # what a list holds is not known
            return factors[0] * z.square().sum((-2, -1))

        flow = nf.ContinuousFlow(GRID, nf.Custom(loss))
        if factor == 1.0:
            run("gd", steps, flow=flow, checkpoint=file)
            continue
        with pytest.raises(ValueError, match="belongs to a run with loss at the start"):
            run("gd", steps, flow=flow, checkpoint=file)


def test_gradients_and_transforms_are_refused_in_the_words_of_both_verbs():
    with pytest.raises(TypeError, match="state requires a gradient, but a run does not carry derivatives"):
        run(start=START.clone().requires_grad_())
    with pytest.raises(TypeError, match="state must be plain numbers: a run takes no part in transforms"):
        torch.func.vmap(lambda W: run(start=W).z)(START[None])


def test_progress_tells_the_loss_between_records():
    seen = []
    path = run("gd", 5, record=5, progress=seen.append)
    assert seen[0].fraction == 0.2
    assert seen[0].loss == pytest.approx(float(run("gd", 1).loss[-1]))
    assert seen[-1].loss == pytest.approx(float(path.loss[-1]))


def test_the_state_of_a_training_that_diverged_is_that_of_its_last_row_after_a_resumption_too(tmp_path):
    loss = nf.Quadratic(torch.diag(torch.tensor([3.0, 2.0])))
    flow = nf.IntrinsicFlow(loss, nf.DividedDifference(torch.zeros(3)))

    def run(steps, **options):
        return nf.descend(flow, torch.eye(2), steps, rate=0.3, record=7, **options)

    whole = run(40)
    assert whole.ending == "diverged"
    assert whole.stats["steps"] > 9
    for steps in (9, 40, 40):
        again = run(steps, checkpoint=tmp_path / "run.npz")
    for name in ("times", "z", "loss", "drift", "state"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert torch.equal(again.state, again.z[-1])
