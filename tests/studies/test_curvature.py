"""Blocks of the Hessian: formulas by second routes, and planted faults that the checks see."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import solve_ivp
from small import dataset, failing

import neuralode_flow as nf
from neuralode_flow.studies import STUDIES, blockdepth, blockgrowth, blocks, blocktraining, curvature
from neuralode_flow.studies.blocks import ACTIVATIONS, Activation, Network, Softmax, SquaredError

STUDY = STUDIES["curvature"]
OUTER, PARTS, EDGE_LAW, LIMIT = blocks._outer, Network.parts, blockgrowth.edge, blockdepth.limit
NORMS, SHARPNESS = blocks.block_norms, blocktraining.sharpness

EXACT = "blocks of the chain rule from exact ones, linear and ReLU"
LAST = "the same at the last layer, tanh"
FIRST = "norm that the chain rule misses at the first layer, tanh of the least gain, a control"
POWER = "power of the gain in dropped over kept from 2k − L, tanh"
TRACE = "gain without growth of the trace from the critical one"
EDGE = "gain without growth of the norm over its edge from the critical one"
CLOSED = "that edge from its closed form"
SLOPE = "sharpness where training ends from the growth of the gradient along its eigenvector"
TWO = "log norm of two layers from its edge"
PLAIN = "gain without growth of the norm itself from the critical one, a control"
REAL = "gain without growth of the norm on digits, cross-entropy, from the critical one"
DECAYS = "growth per layer at 0.7 of the critical gain, a control"
GROWS = "growth per layer at 1.4 of the critical gain, a control"
STEP = "growth of a disturbance in a step from |1 − ηλ|"
STABLE = "that growth at step sizes below 2/λ"
UNSTABLE = "that growth at step sizes above 2/λ, a control"
END = "dropped over kept where training ends"
START = "dropped over kept where it starts, a control"
ORDERS = "orders of blocks in depth from 1"
OTHER = "distance from the limit of the other kind of layers, a control"


@pytest.fixture(scope="module", autouse=True)
def without_faults():
    """The small dataset is made before any fault is planted."""
    return dataset("curvature")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def changed(**changes):
    """The finding of the small dataset with other variables in it."""
    found = dataset("curvature")
    other = found.assign({name: (found[name].dims, np.asarray(values)) for name, values in changes.items()})
    return curvature._finding(other, "", 48)


def again(**changes):
    """What fails of it."""
    return {check.name for check in changed(**changes).checks if not check.holds}


def values(variables, *names):
    return {name: variables[name][1] for name in names or variables}


def chain():
    """The part of the study that compares with the chain rule, smaller."""
    data = blocks.digits(3, generator())
    return values(blocks.against_chain_rule(data, 16, 3, [0.2], 2, generator(1))[0])


def powers():
    return values(blocks.powers(blocks.digits(3, generator()), 16, [3, 5], generator(1)))


def growth():
    return values(blockgrowth.growth(blocks.digits(8, generator()), 48, [3, 5], 2, 5, generator()))


def training():
    data = blocks.digits(6, generator(1))
    found = values({n: v for n, v in blocktraining.training(data, 6, 0.12, 1000, generator(2)).items() if n != "mark"})
    return {name: found[name] for name in ("factor", "factor_expected", "trained_dropped", "sharpness_off")}


def in_depth():
    return values(blockdepth.in_depth(["euler"], [32, 64, 128], generator(1)), "error", "error_other")


def little(kind, loss, seed=0):
    """Five samples, layers 3 → 4 → 4 → 2."""
    random = generator(seed)
    x = nf.matrices.normal(random, 5, 3)
    y = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 1, 0, 1])]
    return Network(x, ACTIVATIONS[kind], loss(y), blocks.gaussian(random, 1.2, (3, 4, 4, 2)))


def dense(product, like):
    units = torch.eye(like.numel(), dtype=like.dtype).reshape(-1, *like.shape)
    return torch.stack([product(V).flatten() for V in units])


@pytest.mark.parametrize("loss", [SquaredError, Softmax])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_blocks_are_those_of_autograd(kind, loss):
    network = little(kind, loss)
    for k, (W, kept) in enumerate(zip(network.weights, network.chain_rule(), strict=True)):

        def value(W, k=k):
            return network.loss(network.outputs([*network.weights[:k], W, *network.weights[k + 1 :]]))

        wanted = torch.autograd.functional.hessian(value, W).reshape(W.numel(), -1)
        exact = dense(network.exact(k), W)
        torch.testing.assert_close(exact, wanted, rtol=1e-10, atol=1e-13)

        def outputs(W, k=k):
            return network.outputs([*network.weights[:k], W, *network.weights[k + 1 :]])

        J = torch.autograd.functional.jacobian(outputs, W).reshape(5, 2, -1)
        H = network.loss.curvature(network.outputs(network.weights))
        torch.testing.assert_close(dense(kept, W), (J.mT @ H @ J).mean(0), rtol=1e-10, atol=1e-13)
        eigenvalues = torch.linalg.eigvalsh(wanted).abs().max()
        assert blocks.norm(network.exact(k), W) == pytest.approx(float(eigenvalues), rel=1e-10)


@pytest.mark.parametrize("loss", [SquaredError, Softmax])
def test_derivatives_of_the_losses_are_those_of_autograd(loss):
    z = nf.matrices.normal(generator(), 4, 3)
    one = loss(torch.eye(3, dtype=torch.float64)[[0, 2, 1, 1]])
    leaf = z.clone().requires_grad_()
    torch.testing.assert_close(one.gradient(z), torch.autograd.grad(one(leaf), leaf)[0], rtol=1e-13, atol=1e-15)
    whole = torch.autograd.functional.hessian(one, z)
    own = torch.stack([whole[i, :, i] for i in range(4)])
    torch.testing.assert_close(own, one.curvature(z) / 4, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e9])
def test_a_norm_is_the_largest_modulus_at_any_size(size):
    A = nf.matrices.normal(generator(), 30, 30)
    A = size * (A + A.mT - 9 * torch.eye(30, dtype=torch.float64))
    like = torch.zeros(5, 6, dtype=torch.float64)
    found = blocks.norm(lambda V: (A @ V.flatten()).reshape(5, 6), like)
    assert found == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=1e-10)
    assert blocks.norm(torch.zeros_like, like) == 0


def test_digits_are_centred_and_of_mean_square_1():
    data = blocks.digits(20, generator())
    torch.testing.assert_close(data.x.square().mean(-1), torch.ones(20, dtype=torch.float64))
    assert (data.y.sum(-1) == 1).all()
    assert data.y.shape == (20, 10)
    assert not torch.equal(data.x, blocks.digits(20, generator(1)).x)


def test_the_edge_is_that_of_closed_forms_and_of_large_matrices():
    for p in (1, 2, 5):
        assert np.exp(EDGE_LAW("linear", p + 1)) == pytest.approx((p + 1) ** (p + 1) / p**p, rel=1e-9)
    assert np.exp(EDGE_LAW("relu", 2)) == pytest.approx(3 + 8**0.5, rel=1e-9)  # (1 + u)(1 + 2u)/u at u² = ½
    random, n = np.random.default_rng(0), 600
    J = np.eye(n)
    for _ in range(2):
        J = J @ (random.standard_normal((n, n)) * (2 / n) ** 0.5 * (random.random(n) < 0.5))
    assert 2 * np.log(np.linalg.norm(J, 2)) == pytest.approx(EDGE_LAW("relu", 3), abs=0.1)


def test_rates_and_crossings_are_those_written_out():
    layers = [3, 5, 9]
    logs = 1.0 + 0.25 * np.array(layers)[None, :, None] * np.array([1.0, -2.0])
    np.testing.assert_allclose(blockgrowth.rates(layers, logs), [[0.25, -0.5]], rtol=1e-13)
    assert blockgrowth.critical(np.array([0.2, 0.2])).value == pytest.approx(np.exp(-0.1))
    growth = 2 * np.log(np.array(blockgrowth.FACTORS)[:, None] / 1.2) + np.array([-0.1, 0.0, 0.1])
    found = blockgrowth.crossing(growth)
    assert found.value == pytest.approx(1.2)
    assert found.error == pytest.approx(1.2 * 0.05 / 3**0.5, rel=0.01)
    assert np.isnan(blockgrowth.crossing(growth + 2).value)


def test_the_limit_of_blocks_is_that_of_a_second_solver():
    loss, wave = nf.PROBLEMS["linnerud"]().loss, blockdepth.Wave(3, generator(1))
    s = torch.tensor([0.15, 0.7], dtype=torch.float64)

    def propagator(start, end):
        def field(t, y):
            return (wave(t).numpy() @ y.reshape(3, 3)).ravel()

        return torch.as_tensor(
            solve_ivp(field, (start, end), np.eye(3).ravel(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        ).reshape(3, 3)

    for curved in (False, True):
        found = LIMIT(loss, wave, s, curved)
        for at, block in zip(s.tolist(), found, strict=True):
            P, Q = propagator(at, 1.0), propagator(0.0, at)

            def of_layer(V, P=P, Q=Q, curved=curved):
                """One layer of depth 1 whose U is I + V + V²/2, or I + V."""
                V = V.reshape(3, 3)
                return loss(P @ (torch.eye(3, dtype=V.dtype) + V + curved * V @ V / 2) @ Q)

            wanted = torch.autograd.functional.hessian(of_layer, torch.zeros(9, dtype=torch.float64))
            torch.testing.assert_close(block, wanted, rtol=1e-9, atol=1e-9)


def test_blocks_of_layers_are_second_differences_of_the_loss():
    loss, wave = nf.PROBLEMS["linnerud"]().loss, blockdepth.Wave(3, generator(2))
    flow = nf.FiniteFlow(8, loss, "exp")
    _, found = blockdepth.finite(flow, wave)
    state, V, h = flow.sample(wave), nf.matrices.normal(generator(3), 3, 3), 1e-2
    for k in (0, 5):
        moved = [state.clone() for _ in range(3)]
        for sign, one in zip((-1, 0, 1), moved, strict=True):
            one[k] += sign * h * V
        behind, here, ahead = (float(loss(flow.product(one))) for one in moved)
        wanted = 64 * (ahead - 2 * here + behind) / h**2
        assert float(V.flatten() @ found[k] @ V.flatten()) == pytest.approx(wanted, rel=1e-4)


def without_mean(M, x):
    return lambda V: len(x) * OUTER(M, x)(V)


def without_inputs(M, x):
    return lambda V: M.mean(0) @ V


def of_the_next_layer(network):
    signals, jacobians = PARTS(network)
    return signals, [jacobians[1], *jacobians[1:]]


def at_the_top(flow, state, size):
    found = SHARPNESS(flow, state)
    return found._replace(value=size * found.value)


def nothing(V):
    return torch.zeros_like(V)


@pytest.mark.parametrize(
    ("where", "name", "fault", "part", "sees"),
    [
        (blocks, "_outer", without_mean, chain, {EXACT, LAST}),
        (blocks, "_outer", without_inputs, chain, {EXACT, LAST}),
        (Network, "parts", of_the_next_layer, chain, {EXACT}),
        (Softmax, "curvature", lambda s, z: torch.diag_embed(torch.softmax(z, -1)), chain, {EXACT, LAST}),
        (ACTIVATIONS, "tanh", ACTIVATIONS["linear"], chain, {FIRST}),
        (ACTIVATIONS, "relu", Activation(torch.relu, torch.ones_like, 2**0.5), chain, {EXACT}),
        (ACTIVATIONS, "tanh", Activation(lambda z: z + z**2, lambda z: 1 + 2 * z, 1.0), powers, {POWER}),
        (ACTIVATIONS, "relu", ACTIVATIONS["relu"]._replace(gain=1.0), growth, {TRACE, EDGE, TWO, REAL}),
        (blockgrowth, "edge", lambda kind, L: EDGE_LAW(kind, L + 1), growth, {TWO}),
        (blockgrowth, "edge", lambda kind, L: EDGE_LAW("linear", L), growth, {TWO}),
        (blockgrowth, "edge", lambda kind, L: 1.01 * EDGE_LAW(kind, L), growth, {CLOSED}),
        (blocks, "block_norms", lambda network, k: np.multiply(NORMS(network, k), (1, 1.01, 1)), chain, {EXACT}),
        (blocktraining, "sharpness", lambda flow, at: at_the_top(flow, at, 1.01), training, {SLOPE}),
        (blocktraining, "_descent", lambda f, t, n, r: DESCENT(f, t, n, r / 2), training, {STEP, UNSTABLE}),
        (blockdepth, "limit", lambda f, w, s, c, **p: LIMIT(f, w, s, not c, **p), in_depth, {ORDERS, OTHER}),
        (blockdepth, "limit", lambda f, w, s, c, **p: 1.01 * LIMIT(f, w, s, c, **p), in_depth, {ORDERS}),
    ],
    ids=[
        "no mean", "no inputs", "next layer", "no ppᵀ", "linear", "no φ'", "other power", "relu gain", "a layer more",
        "linear edge", "edge", "kept", "sharpness", "half steps", "other kind", "1 %",
    ],
)  # fmt: skip
def test_a_planted_fault_is_seen(monkeypatch, where, name, fault, part, sees):
    (monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr)(where, name, fault)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert sees <= again(**part())


DESCENT = blocktraining._descent


SLOW = [pytest.param(part, marks=pytest.mark.slow) for part in (growth, training)]


@pytest.mark.parametrize("part", [chain, powers, in_depth, *SLOW])
def test_a_part_without_a_fault_passes(part):
    assert again(**part()) == set()


def test_every_check_of_numbers_can_fail():
    found = dataset("curvature")
    assert again() == set()
    assert again(kept=found.kept * 1.5, exact=found.exact * 1.5) == set()
    assert again(exact=found.kept) == {FIRST}
    assert again(log_norm=found.log_norm + 0.3) == {TWO}
    assert again(power=found.power + 0.2) == {POWER}
    trend = 0.3 * found.number.values[:, None]
    assert again(log_trace=found.log_trace + trend) == {TRACE}
    assert again(log_norm=found.log_norm - 0.2 * found.number.values[:, None]) >= {PLAIN}
    assert again(log_real=found.log_real + 0.45 * found.deep) == {REAL, DECAYS}
    assert again(log_real=found.log_real * 0) == {REAL, DECAYS, GROWS}
    assert again(factor=1.0 + found.factor * 0) == {STEP}
    assert again(kept=found.kept * 1.01) == {EXACT}
    assert again(edge_off=found.edge_off * np.nan) == {CLOSED}
    assert again(sharpness_off=found.sharpness_off * np.nan) == {SLOPE}
    assert again(factor=found.factor + 0.1) == {STEP, STABLE}
    assert again(factor=found.factor - 0.1) == {STEP, UNSTABLE}
    assert again(trained_dropped=found.trained_dropped * 0 + 0.07) == {END, START}
    assert again(error=found.error**2) == {ORDERS}
    assert again(error_other=found.error) == {OTHER}
    spoilt = again(**{name: found[name] * np.nan for name in ("exact", "log_norm", "factor", "error")})
    assert {EXACT, LAST, FIRST, EDGE, PLAIN, STEP, STABLE, UNSTABLE, ORDERS} <= spoilt


def test_the_verdict_looks_at_the_checks():
    found, says = dataset("curvature"), "a disturbance grows as |1 − ηλ| says"
    assert says in changed().verdict
    assert says not in changed(factor=found.factor * 1.02).verdict
    assert "is off |1 − ηλ| by" in changed(factor=found.factor * 1.02).verdict
    assert "at orders undecided for euler." in changed(error=found.error * 0 + 1).verdict
    assert "none found, none found, none found (linear, ReLU, tanh)" in changed(log_real=found.log_real * 0 - 1).verdict
    assert changed().verdict.count(" at gain ") == 1  # of one gain there is no other


def test_what_cannot_be_is_said():
    for key, value, said in [
        ("gains", [0.5, 1.0], "study.gains must begin at 0.3 or below"),
        ("depths", [32, 60, 128], "study.depths must be three or more multiples of 8"),
        ("deep", [5], "study.deep must be two or more"),
    ]:
        annotation = nf.signatures.parameters(curvature.run)[key].annotation
        with pytest.raises(ValueError, match=said):
            nf.signatures.check_range(f"study.{key}", value, annotation)
    with pytest.raises(RuntimeError, match="gradient descent of rate 1000 could not be computed"):
        blocktraining.training(blocks.digits(3, generator()), 4, 1000.0, 50, generator())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4])
def test_other_draws_pass(seed):
    found = STUDY.run(seed=seed, repeats=8)
    assert failing(found) == set()
    assert isinstance(found, xr.Dataset)
