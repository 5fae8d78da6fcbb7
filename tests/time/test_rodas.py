"""The linearly implicit method: its coefficients, the derivatives that it asks for, and stiff members by themselves."""

import math

import numpy as np
import pytest
import torch
from cases import Passing, randn, slow
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.flows.base import jacobian, jacobians
from neuralode_flow.flows.polar import LogPolarFlow
from neuralode_flow.time.base import Control
from neuralode_flow.time.methods import rodas

S = len(rodas._C) + 1
GRID = nf.DepthGrid.gauss(1, 4)
TARGET = torch.tensor([[1.5, 0.3], [-0.2, 0.8]]).double()


def triangle(rows):
    M = np.zeros((S, S))
    for i, row in enumerate(rows, start=1):
        M[i, : len(row)] = row
    return M


def tableau(A=rodas._WEIGHTS, C=rodas._C):
    """α, β = α + Γ and both rows of weights, of order 5 and of order 4, from the form without products."""
    a = triangle(A)
    gamma = np.linalg.inv(np.eye(S) / rodas._GAMMA - triangle(C))
    alpha, weights = a @ gamma, np.append(A[-1], 1.0)
    return alpha, alpha + gamma, weights @ gamma, np.append(A[-1], 0.0) @ gamma


def trees(order):
    """Rooted trees of an order: sorted tuples of the trees at the root."""

    def forests(n, most):
        if n == 0:
            yield ()
        for k in range(min(n, most), 0, -1):
            for tree in trees(k):
                for rest in forests(n - k, k):
                    if not rest or rest[0] <= tree or size(rest[0]) < k:
                        yield (tree, *rest)

    return list(dict.fromkeys(forests(order - 1, order - 1)))


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def elementary(tree, alpha, beta):
    M = beta if len(tree) == 1 else alpha
    return math.prod((M @ elementary(branch, alpha, beta) for branch in tree), start=np.ones(S))


def missed(weights, alpha, beta, order):
    """By how much the conditions up to an order are missed (Hairer and Wanner, Solving ODEs II, theorem IV.7.4)."""
    found = [t for n in range(1, order + 1) for t in trees(n)]
    return max(abs(weights @ elementary(t, alpha, beta) - 1 / density(t)) for t in found)


def test_the_coefficients_meet_the_conditions_of_order_5_and_4():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    alpha, beta, weights, embedded = tableau()
    assert missed(weights, alpha, beta, 5) < 1e-12
    assert missed(weights, alpha, beta, 6) > 1e-6
    assert missed(embedded, alpha, beta, 4) < 1e-12
    assert missed(embedded, alpha, beta, 5) > 1e-6
    for name in ("_A", "_C"):  # a digit that is wrong is seen
        for i, row in enumerate(getattr(rodas, name)):
            for j in range(len(row)):
                rows = list(getattr(rodas, name))
                rows[i] = (*row[:j], row[j] * (1 + 1e-6), *row[j + 1 :])
                A = (*rows, (*rows[-1], 1.0), (*rows[-1], 1.0, 1.0)) if name == "_A" else rodas._WEIGHTS
                alpha, beta, weights, _ = tableau(A, rows if name == "_C" else rodas._C)
                assert missed(weights, alpha, beta, 5) > 1e-10, (name, i, j)


class Scalar:
    """y' = λ y."""

    def __init__(self, rate):
        self.rate = torch.as_tensor(rate)

    def __call__(self, rows, y):
        return self.rate * y, np.ones(len(y), dtype=bool)

    def jacobians(self, rows, y):
        return self.rate.to(y).reshape(1, 1, 1).repeat(len(y), 1, 1), np.ones(len(y), dtype=bool)


def test_it_damps_what_is_stiff():
    formula, one = rodas.RosenbrockFormula(Control(1e-6, 1e-8, None)), torch.ones(1, 1).double()
    for rate in (-1e2, -1e4, -1e8, -1e12):
        y = formula.tried(Scalar(rate), one, rate * one, np.ones(1)).y
        assert abs(float(y)) < 20 / abs(rate)
    wave = one.to(torch.complex128)
    for rate in (0.5j, 5j, 50j, 5e3j):  # on the imaginary axis it does not grow
        assert abs(complex(formula.tried(Scalar(rate), wave, rate * wave, np.ones(1)).y)) < 1 + 1e-12


class Away(nf.IntrinsicFlow):
    """Goes half as fast; its `linearised` is that of another velocity."""

    def velocity(self, state):
        return 0.5 * super().velocity(state)

    def carrier(self):
        return None


LOSS = nf.Quadratic(TARGET)
MODELS = {
    "continuous": (nf.ContinuousFlow(GRID, LOSS), 0.3 * randn(3, 4, 2, 2, seed=1)),
    "intrinsic": (nf.IntrinsicFlow(LOSS, nf.LogMean()), torch.eye(2).double() + 0.2 * randn(3, 2, 2, seed=2)),
    "finite": (nf.FiniteFlow(4, LOSS), 0.3 * randn(3, 4, 2, 2, seed=1)),
    "cayley": (nf.FiniteFlow(4, LOSS, "cayley"), 0.3 * randn(3, 4, 2, 2, seed=1)),
    "factorization": (nf.FactorizationFlow(lambda t: t**3, nf.Quadratic(TARGET[0])), 1 + 0.2 * randn(3, 2, seed=3)),
    "away": (Away(LOSS, nf.LogMean()), torch.eye(2).double() + 0.2 * randn(3, 2, 2, seed=2)),
    "passing": (Passing(nf.ContinuousFlow(GRID, LOSS)), 0.3 * randn(3, 4, 2, 2, seed=1)),
}
LOGARITHMS = LogPolarFlow(LOSS, nf.LogMean(), None)
HEAVY = "passing", "cayley"


@pytest.mark.parametrize("name", [*MODELS, "logarithms"])
def test_the_derivatives_of_members_are_those_of_differences(name):
    flow, states = MODELS.get(name, (LOGARITHMS, LOGARITHMS.enter(MODELS["intrinsic"][1])))
    v, h = randn(*states.shape, seed=5), 1e-6
    expected = (flow.velocity(states + h * v) - flow.velocity(states - h * v)) / (2 * h)
    found = jacobians(flow, states) @ v.reshape(3, -1, 1)
    assert_close(found.reshape(v.shape), expected, rtol=0, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in HEAVY] + slow(*HEAVY))
def test_runs_are_as_accurate_as_was_asked(name):
    flow, states = MODELS[name]
    reference = nf.integrate(flow, states[0], [0.0, 0.5, 2.0], "DOP853", 1e-12, 1e-13).z
    spent = []
    for rtol in (1e-5, 1e-7, 1e-9):
        path = nf.integrate(flow, states[0], [0.0, 0.5, 2.0], "rodas5p", rtol, rtol / 100)
        assert path.ending in ("ok", "depth")
        assert float((path.z - reference).abs().max()) < 10 * rtol
        spent.append(path.stats["steps"])
    # Of order 5: a step is 100^(1/5) = 2.5 times shorter for two digits more.
    assert spent[2] < 3.2 * spent[1]


class Rated(nf.Quadratic):
    """½ c ‖z − T‖² with a rate for each member."""

    def __init__(self, target, rate):
        super().__init__(target)
        self.rate = rate

    def __call__(self, z):
        return self.rate * super().__call__(z)

    def gradient(self, z):
        return self.rate[..., None, None] * super().gradient(z)

    def hessian(self, z, direction):
        return self.rate[..., None, None] * direction

    def select(self, members, index):
        return Rated(self.target.flatten(0, len(members) - 1)[index], self.rate.flatten()[index])


def test_stiff_members_take_steps_of_their_own():
    rate, sigma = torch.logspace(-1, 2, 7).double(), 0.5 + torch.arange(14).double().reshape(7, 2) / 10
    times = torch.tensor([0.0, 2.0, 10.0]).double()
    known = [nf.exact.aligned_limit(c * times, torch.ones(2).double(), s) for c, s in zip(rate, sigma, strict=True)]
    z = torch.diag_embed(torch.stack(known, 1))
    flow = nf.IntrinsicFlow(Rated(torch.diag_embed(sigma), rate), nf.LogMean())
    start = torch.eye(2).double().expand(7, 2, 2).clone()
    path = nf.integrate(flow, start, times, "rodas5p", 1e-7, 1e-9, control="member")
    assert path.status == "ok"
    allowed = 1e-9 + 1e-7 * torch.linalg.matrix_norm(z)
    assert bool((torch.linalg.matrix_norm(path.z - z) <= 10 * allowed).all())
    for i in (0, 6):
        one = nf.IntrinsicFlow(Rated(torch.diag_embed(sigma[i]), rate[i]), nf.LogMean())
        alone = nf.integrate(one, start[i], times, "rodas5p", 1e-7, 1e-9)
        assert path.stats["members"]["evaluations"][i] == alone.stats["evaluations"]
        assert_close(path.z[:, i], alone.z, rtol=0, atol=1e-11)
    # A thousand times the rate costs three times as much; stability gives explicit steps about 2 c t evaluations.
    evaluations = path.stats["members"]["evaluations"]
    assert max(evaluations) < 4 * min(evaluations)
    assert evaluations[-1] < float(rate[-1] * times[-1])


def test_members_of_many_numbers_are_factorised_with_several_threads():
    # 192 numbers each: where MKL has threads, torch factorises a batch of such matrices wrongly, or hangs.
    grid, before = nf.DepthGrid.gauss(2, 6), torch.get_num_threads()
    flow, start = nf.ContinuousFlow(grid, nf.Quadratic(2 * torch.eye(4).double())), 0.3 * randn(3, 12, 4, 4, seed=1)
    torch.set_num_threads(2)
    path = nf.integrate(flow, start, [0.0, 0.05], "rodas5p", 1e-5, 1e-7, control="member", checks=False)
    torch.set_num_threads(before)
    assert path.status == "ok"
    for i in range(3):
        alone = nf.integrate(flow, start[i], [0.0, 0.05], "DOP853", 1e-9, 1e-11, checks=False)
        assert_close(path.z[-1, i], alone.z[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("control", ["shared", "member"])
def test_a_derivative_by_autograd_is_had_in_inference_mode(control):
    flow, start = nf.FiniteFlow(2, nf.Quadratic(TARGET), "cayley"), 0.3 * randn(3, 2, 2, 2, seed=1)
    expected = nf.integrate(flow, start, [0.0, 0.5], "rodas5p", control=control)
    with torch.inference_mode():
        path = nf.integrate(flow, start, [0.0, 0.5], "rodas5p", control=control)
        inside = nf.FiniteFlow(2, nf.Quadratic(TARGET.clone()), "cayley")
        again = nf.integrate(inside, start.clone(), [0.0, 0.5], "rodas5p", control=control)
    assert torch.equal(path.z, expected.z)
    assert torch.equal(again.z, expected.z)


class Bounded(nf.FiniteFlow):
    """Cannot be linearised where z[0, 0] is above a bound, nor moved above a larger one."""

    bound = 1.2

    def velocity(self, state):
        most = self.bound if torch.is_grad_enabled() else 1.4
        if bool((self.product(state)[..., 0, 0] > most).any()):
            raise torch.linalg.LinAlgError("beyond the bound")
        return super().velocity(state)


def test_a_member_without_a_derivative_does_not_stop_the_others():
    target, start = torch.stack((TARGET, 0.5 * torch.eye(2).double(), TARGET)), torch.zeros(3, 4, 2, 2).double()
    path = nf.integrate(Bounded(4, nf.Quadratic(target)), start, [0.0, 2.0], "rodas5p", control="member")
    assert path.stats["members"]["endings"] == ["velocity", "ok", "velocity"]
    alone = nf.integrate(Bounded(4, nf.Quadratic(target[1])), start[1], [0.0, 2.0], "rodas5p")
    assert alone.status == "ok"
    assert_close(path.z[-1, 1], alone.z[-1], rtol=0, atol=1e-13)
    stopped = nf.integrate(Bounded(4, nf.Quadratic(TARGET)), start[0], [0.0, 2.0], "rodas5p")
    assert stopped.ending == "velocity"
    assert "could not be linearised" in stopped.status


class Numbers(nf.FactorizationFlow):
    """A velocity that torch cannot follow."""

    linearised = None

    def velocity(self, state):
        return torch.from_numpy(-state.detach().numpy())


def test_what_it_cannot_move_is_refused():
    many = randn(20, 4, 2, 2, seed=1)[None].expand(4, -1, -1, -1, -1)
    flow = nf.FiniteFlow(4, LOSS)
    with pytest.raises(ValueError, match=r"up to 1024 numbers, and here it has 1280.*control='member' for the members"):
        nf.integrate(flow, many, [0.0, 1.0], "rodas5p")
    with pytest.raises(ValueError, match=r"1156: choose auto or CVODE_BDF$"):
        nf.integrate(nf.FiniteFlow(1, nf.Quadratic(torch.eye(34))), torch.eye(34)[None], [0.0, 1.0], "rodas5p")
    unknown = Numbers(lambda t: t, nf.Quadratic(TARGET[0]))
    with pytest.raises(TypeError, match=r"method='rodas5p' cannot move this flow: Numbers gives no derivative"):
        nf.integrate(unknown, torch.ones(2).double(), [0.0, 1.0], "rodas5p")


class Stranger:
    """Half the squared distance from a target, without a second derivative."""

    dimension = 2

    def __init__(self, target):
        self.target = target

    def __call__(self, z):
        return (z - self.target).square().sum((-2, -1)) / 2

    def gradient(self, z):
        return z - self.target

    def select(self, members, index):
        return Stranger(self.target[index])


def test_a_derivative_that_torch_does_not_have_is_told_with_what_to_do():
    """At z = I all singular values are equal: torch's derivative of their vectors is infinite there."""

    def run(loss, start, control="shared"):
        flow = nf.IntrinsicFlow(loss, nf.LogMean())
        return nf.integrate(flow, start.expand(2, 2, 2), [0.0, 1.0], "rodas5p", control=control)

    targets, apart = torch.stack([TARGET, 2 * TARGET]), torch.diag(torch.tensor([1.3, 1.0]))
    path = run(Stranger(targets), torch.eye(2))
    assert path.ending == run(Stranger(targets), torch.eye(2), "member").ending == "velocity"
    assert "as where singular values meet; a loss with `hessian` gives the flow its own" in path.status
    assert_close(run(Stranger(targets), apart).z, run(nf.Quadratic(targets), apart).z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("control", ["shared", "member"])
def test_a_loss_of_ones_own_has_as_many_directions_at_once_as_others(control):
    """The columns of the matrix are asked for together, also of members."""
    grid = nf.DepthGrid.gauss(1, 10)
    start = torch.stack([torch.eye(2), 1.2 * torch.eye(2)]).double()
    state = start[:, None].expand(2, grid.panels * grid.order, 2, 2).clone()
    run = {"times": [0.0, 0.5, 1.0], "method": "rodas5p", "rtol": 1e-8, "atol": 1e-10, "control": control}
    known, own = (
        nf.integrate(nf.ContinuousFlow(grid, loss), state, **run)
        for loss in (nf.Quadratic(TARGET), nf.Custom(lambda z: 0.5 * (z - TARGET).square().sum()))
    )
    assert own.ending == "ok"
    assert_close(own.z, known.z, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "phi", [lambda W: W[2] @ W[1] @ W[0], lambda W: W[-1] @ W[0]], ids=["of the first axis", "of its ends"]
)
def test_a_map_of_one_state_is_asked_for_one_state(phi):
    """Its derivative was taken with an axis of members before: an IndexError, or that of another map and 90 299
    evaluations."""
    start, times = randn(3, 2, 2, seed=0), [0.0, 1.0]
    flow = nf.FactorizationFlow(phi, nf.Quadratic(TARGET))
    expected = nf.integrate(flow, start, times, "DOP853", 1e-11, 1e-12).z
    path = nf.integrate(flow, start, times, "rodas5p", 1e-8, 1e-10)
    assert path.status == "ok"
    assert_close(path.z, expected, rtol=0, atol=1e-7)
    assert path.stats["evaluations"] < 2000
    assert_close(jacobian(flow, start), jacobian(Alone(flow), start), rtol=0, atol=1e-12)


class Alone:
    """A flow of a user's own with a velocity of one state, whose derivative autograd has."""

    def __init__(self, flow):
        self.flow = flow

    def velocity(self, state):
        leaf = state if state.requires_grad else state.detach().requires_grad_()
        value = self.flow.loss(self.flow.phi(leaf))
        return -torch.autograd.grad(value, leaf, create_graph=True)[0]
