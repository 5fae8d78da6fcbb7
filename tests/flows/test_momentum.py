"""Momentum as a flow of pairs (W, W_t), and what it and heavy-ball steps do to the laws."""

import math

import pytest
import torch
from cases import all_losses, randn, smooth_profile

import neuralode_flow as nf
from neuralode_flow.laws import commutator, euler_law, euler_momentum_law, momentum_law, primitive
from neuralode_flow.time.steprule import STEP_RULES, Ground

GRID = nf.DepthGrid.gauss(4, 12)
LOSS = all_losses(3, seed=0)["quadratic"]
CONTINUOUS = nf.ContinuousFlow(GRID, LOSS)
TIGHT = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}


def skew(N):
    return (N - N.mT) / 2


def models():
    return {"continuous": CONTINUOUS, "2 layers": nf.FiniteFlow(2, LOSS), "16 layers": nf.FiniteFlow(16, LOSS)}


def start_of(flow, seed=1):
    """A start that is not relaxed balanced, and a velocity, both smooth in depth."""
    return flow.sample(smooth_profile(3, seed=seed, scale=0.5)), flow.sample(smooth_profile(3, seed=seed + 1))


def integrated(flow, W, V, times=(0.0, 0.5, 1.0, 2.0)):
    path = nf.integrate(flow, flow.start(W, V), list(times), **TIGHT, observe=lambda i, state: state)
    assert path.status == "ok"
    return path, flow.position(path.observed), flow.momentum(path.observed)


# The flow.


def test_a_number_with_inertia_is_the_damped_oscillator():
    inner = nf.FactorizationFlow(lambda theta: theta[..., 0], nf.Quadratic(torch.tensor(1.0).double()))
    flow = nf.MomentumFlow(inner, friction=0.4)
    times = torch.linspace(0, 5, 11).double()
    w = math.sqrt(1 - 0.2**2)
    for x0, v0 in ((3.0, 0.0), (0.5, -2.0)):
        start = flow.start(torch.tensor([x0]).double(), torch.tensor([v0]).double())
        path = nf.integrate(flow, start, times, **TIGHT)
        known = (x0 - 1) * torch.cos(w * times) + (v0 + 0.2 * (x0 - 1)) / w * torch.sin(w * times)
        assert float((path.z - 1 - torch.exp(-0.2 * times) * known).abs().max()) < 1e-10


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("friction", [0.0, 0.8])
def test_energy_falls_by_what_friction_takes(name, friction):
    flow = nf.MomentumFlow(models()[name], friction)
    path, _W, V = integrated(flow, *start_of(flow.flow), times=2 * GRID.nodes)
    depth = GRID.weights if name == "continuous" else torch.full((V.shape[-3],), 1 / V.shape[-3]).double()
    taken = friction * (V.square().sum((-2, -1)) * depth).sum(-1)
    spent = 2 * GRID.antiderivative(taken[:, None, None])[:, 0, 0]  # from t = 0, on Gauss nodes in time
    energy = flow.energy(path.observed)
    assert float((energy + spent - (energy[0] + spent[0])).abs().max()) < 1e-9
    if friction:
        assert float(energy[0] - energy[-1]) > 0.1


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("moving", [False, True])
def test_what_momentum_keeps_and_how_it_drives_the_law(name, moving):
    inner, alpha = models()[name], 0.7
    flow = nf.MomentumFlow(inner, alpha)
    W0, V0 = start_of(inner)
    times = 2 * GRID.nodes  # Gauss nodes, where integrals over time are as exact as those over depth
    _path, W, V = integrated(flow, W0, V0 if moving else torch.zeros_like(V0), times=times)
    N = inner.momentum_law(W, V)
    grown = torch.exp(alpha * times)[:, None, None, None] * N
    assert float((skew(grown) - skew(grown[0])).abs().max()) < 1e-9
    if moving:
        assert float(skew(N).abs().max()) > 0.05
    # e^{αt}N − ∫e^{ατ}(VᵀV − VVᵀ)dτ stays: the symmetric part moves, by what the velocity says.
    eye = torch.eye(3).double()
    driven = torch.exp(alpha * times)[:, None, None, None] * inner.law_of_steps(inner.step_law(V, eye))
    done = 2 * GRID.antiderivative(driven.flatten(1, 2)).reshape(driven.shape)
    assert float((grown - done - (grown[0] - done[0])).abs().max()) < 1e-9
    assert float((grown - grown[0]).abs().max()) > 0.02
    # C_t = N + Nᵀ, so that C − C_0 is the integral of that.
    law, moved = inner.law(W), N + N.mT
    done = 2 * GRID.antiderivative(moved.flatten(1, 2)).reshape(moved.shape)
    assert float((law - done - (law[0] - done[0])).abs().max()) < 1e-9
    assert float((law - law[0]).abs().max()) > 0.02


class Rubbing(nf.MomentumFlow):
    """Friction of which nothing is said, `rubs` of a velocity that ought to have none."""

    rubs = 0.01

    def velocity(self, state):
        return super().velocity(state) - self.rubs * torch.stack((0 * self.momentum(state), self.momentum(state)), -4)


def test_the_law_without_friction_is_that_of_the_pair_and_with_it_there_is_none():
    for inner in models().values():
        W, V = start_of(inner)
        free = nf.MomentumFlow(inner, 0.0)
        path = nf.integrate(free, free.start(W, V), [0.0, 1.0], **TIGHT)
        assert float(path.drift[-1]) < 1e-9
        rubbing = Rubbing(inner, 0.0)
        assert float(nf.integrate(rubbing, free.start(W, V), [0.0, 1.0], **TIGHT).drift[-1]) > 1e-3
        assert nf.MomentumFlow(inner, 0.1).law(free.start(W, V)).shape[-3] == 0
    layers = nf.MomentumFlow(nf.FiniteFlow(4, LOSS, "exp"), 0.0)
    assert layers.law(layers.sample(nf.identity(3))).shape == (0, 3, 3)


def test_what_integrate_does_with_a_flow_it_does_with_its_pairs(tmp_path):
    flow = nf.MomentumFlow(nf.ContinuousFlow(nf.DepthGrid.gauss(2, 6), LOSS), 1.0)
    times, profile = [0.0, 1.0, 2.0], smooth_profile(3, seed=4, scale=0.5)
    whole = nf.integrate(flow, profile, times, "DOP853", rtol=1e-8, atol=1e-10, adapt=True)
    assert whole.status == "ok"
    assert whole.stats["grid"] != [2, 6]
    fine = nf.integrate(nf.MomentumFlow(CONTINUOUS, 1.0), profile, times, **TIGHT)
    assert float((whole.z - fine.z).abs().max()) < 1e-7
    stiff = nf.integrate(flow, profile, times, "CVODE_BDF", rtol=1e-8, atol=1e-10)
    assert stiff.stats["products"] > 0
    assert float((stiff.z - fine.z).abs().max()) < 1e-4
    start = nf.MomentumFlow(CONTINUOUS, 1.0).sample(profile)
    run = {"checkpoint": tmp_path / "run.npz", "method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    nf.integrate(nf.MomentumFlow(CONTINUOUS, 1.0), start, times[:2], **run)
    longer = nf.integrate(nf.MomentumFlow(CONTINUOUS, 1.0), start, times, **run)
    at_once = nf.integrate(nf.MomentumFlow(CONTINUOUS, 1.0), start, times, **(run | {"checkpoint": None}))
    assert float((longer.z - at_once.z).abs().max()) < 1e-8
    with pytest.raises(ValueError, match="friction"):
        nf.integrate(nf.MomentumFlow(CONTINUOUS, 2.0), start, times, **run)


def test_members_of_a_batch_move_side_by_side():
    flow = nf.MomentumFlow(CONTINUOUS, 0.5)
    W, V = (torch.stack(both) for both in zip(start_of(CONTINUOUS, 1), start_of(CONTINUOUS, 5), strict=True))
    together = flow.start(W, V)
    assert together.shape == (2, 2, 48, 3, 3)
    flow.check(together)
    both = flow.velocity(together)
    for i in range(2):
        assert torch.allclose(both[i], flow.velocity(flow.start(W[i], V[i])), rtol=1e-12, atol=1e-13)
        assert torch.allclose(flow.energy(together)[i], flow.energy(flow.start(W[i], V[i])))


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="friction must be at least 0, got -1"):
        nf.MomentumFlow(CONTINUOUS, -1)
    with pytest.raises(ValueError, match="friction must be finite"):
        nf.MomentumFlow(CONTINUOUS, math.nan)
    with pytest.raises(TypeError, match="flow must be a flow such as ContinuousFlow"):
        nf.MomentumFlow(LOSS, 1.0)
    flow = nf.MomentumFlow(CONTINUOUS, 1.0)
    W, V = start_of(CONTINUOUS)
    with pytest.raises(ValueError, match="state must be a pair \\(W, V\\) .* start"):
        nf.integrate(flow, W, [0.0, 1.0])
    with pytest.raises(ValueError, match="V must have the shape of W"):
        flow.start(W, V[:-1])
    with pytest.raises(ValueError, match="velocity V with NaN"):
        nf.integrate(flow, flow.start(W, V * math.nan), [0.0, 1.0])
    with pytest.raises(TypeError, match="samples no function of depth"):
        nf.MomentumFlow(nf.FactorizationFlow(lambda t: t, LOSS), 1.0).sample(nf.identity(3))
    squares = nf.FactorizationFlow(lambda theta: theta @ theta.mT, LOSS)
    vector = nf.MomentumFlow(squares, 1.0)
    with pytest.raises(ValueError, match="give axes=2"):
        vector.check(vector.start(torch.eye(3).double()))
    matrix = nf.MomentumFlow(squares, 1.0, axes=2)
    assert nf.integrate(matrix, matrix.start(torch.eye(3).double()), [0.0, 1.0]).status == "ok"
    for law in (lambda W, V: momentum_law(GRID, W, V), euler_momentum_law):
        with pytest.raises(ValueError, match="V must have shape"):
            law(W, V[0, 0])


# Steps.


def stepped(flow, rule, V, steps=40, rate=0.02, seed=1, **options):
    """The states after each of the steps from a moving start, and the steps themselves."""
    W = start_of(flow, seed)[0]
    ground = Ground(flow, flow.velocity, None, 0, W)
    taken = STEP_RULES[rule](ground, rate, **options)
    taken.memory["V"] = V
    states, moves = [W], [V]
    for n in range(steps):
        states.append(taken.step(n, states[-1]))
        moves.append(taken.memory.get("V", V))
    return torch.stack(states), torch.stack(moves)


def heavy_ball_misses(flow, W, V, beta, symmetric=1.0):
    """By how much the two laws of heavy-ball steps fail: in the skew part of N, and in C; relative to their size."""
    N, law = flow.momentum_law(W, V), flow.law(W)
    eye = torch.eye(W.shape[-1]).to(W)
    predicted = law[:-1] + symmetric * beta * (N + N.mT)[:-1] + flow.law_of_steps(flow.step_law(V[1:], eye))
    skewed = (skew(N[1:]) - beta * skew(N[:-1])).abs().max() / skew(N).abs().max()
    return float(skewed), float((law[1:] - predicted).abs().max() / law.abs().max())


@pytest.mark.parametrize("name", models())
def test_the_laws_of_heavy_ball_steps_are_exact(name):
    flow = models()[name]
    V = 0.1 * start_of(flow)[1]
    W, V = stepped(flow, "heavy_ball", V, momentum=0.9)
    bound = 1e-10 if name == "continuous" else 1e-13
    assert max(heavy_ball_misses(flow, W, V, 0.9)) < bound
    assert float((flow.law(W[-1]) - flow.law(W[0])).abs().max()) > 0.05
    # Errors in what is said show in full.
    assert min(heavy_ball_misses(flow, W, V, 0.9 * 1.01)) > 1e-4
    assert heavy_ball_misses(flow, W, V, 0.9, symmetric=0.0)[1] > 1e-2
    # Nesterov's momentum has no such law.
    assert heavy_ball_misses(flow, *stepped(flow, "nesterov", V[0], momentum=0.9), 0.9)[0] > 1e-3


@pytest.mark.parametrize("name", models())
def test_what_nesterov_steps_add_to_the_skew_part(name):
    flow, beta = models()[name], 0.9
    W, V = stepped(flow, "nesterov", 0.1 * start_of(flow)[1], momentum=beta)
    N = skew(flow.momentum_law(W, V))
    # skew N_{n+1} = β skew N_n − β skew(V_nᵀV_{n+1} − V_{n+1}V_nᵀ), of layers V_{n,k+1} first and V_{n,k} second.
    if name == "continuous":
        mixed = V[:-1].mT @ V[1:] - V[1:] @ V[:-1].mT
    else:
        mixed = V[:-1, 1:].mT @ V[1:, 1:] - V[1:, :-1] @ V[:-1, :-1].mT
    added = flow.law_of_steps(mixed)
    assert float((N[1:] - beta * N[:-1] + beta * skew(added)).abs().max() / N.abs().max()) < 1e-10


@pytest.mark.parametrize(
    ("name", "of"), [*((name, "weights") for name in models()), ("2 layers", "layers"), ("16 layers", "layers")]
)
def test_the_law_of_steps_with_weight_decay_is_exact(name, of):
    flow, rate, mu = models()[name], 0.05, 0.4
    W, _V = stepped(flow, "weight_decay", 0 * start_of(flow)[0], rate=rate, decay=mu, of=of)
    kept = 1 - rate * mu
    origin = -W.shape[-3] * torch.eye(3).double() if of == "layers" else 0.0
    along = (W[1:] - origin) - kept * (W[:-1] - origin)  # −η g
    said = kept**2 * flow.law(W[:-1]) + flow.law_of_steps(flow.step_law(along, torch.eye(3).double()))
    if of == "weights":  # S' of the new weights stays behind
        S = W + W.mT
        said = said + (1 - kept) * flow.momentum_law(torch.zeros_like(S), S)[1:]
    law = flow.law(W)
    bound = 1e-10 if name == "continuous" else 1e-12
    assert float((law[1:] - said).abs().max() / law.abs().max()) < bound
    plain = kept * flow.law(W[:-1]) + flow.law_of_steps(flow.step_law(along, torch.eye(3).double()))
    assert float((law[1:] - plain).abs().max() / law.abs().max()) > 1e-3


def test_the_laws_are_what_they_are_by_their_definitions():
    W, V = randn(5, 3, 3, seed=8), randn(5, 3, 3, seed=9)
    U, moved = torch.eye(3).double() + W / 5, V / 5
    known = 25 * (U[1:].mT @ moved[1:] - moved[:-1] @ U[:-1].mT)
    assert torch.allclose(euler_momentum_law(W, V), known, rtol=0, atol=1e-13)
    # Half the derivative of the law along V is the symmetric part of N.
    slope = (euler_law(W + 1e-6 * V) - euler_law(W - 1e-6 * V)) / 2e-6
    assert torch.allclose(known + known.mT, slope, rtol=0, atol=1e-7)
    W, V = CONTINUOUS.sample(smooth_profile(3, seed=1)), CONTINUOUS.sample(smooth_profile(3, seed=2))
    law = momentum_law(GRID, W, V)
    N = GRID.differentiate(V) + W.mT @ V - V @ W.mT
    assert torch.allclose(GRID.differentiate(law), N, rtol=0, atol=1e-7)
    assert float(GRID.integrate(law).abs().max()) < 1e-13
    assert torch.equal(momentum_law(GRID, W, W + 0)[0], primitive(GRID, W, commutator(W))[0])
