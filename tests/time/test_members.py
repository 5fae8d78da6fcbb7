"""One member that ends a batch is named, and what the others reached is kept."""

import re

import pytest
import torch
from cases import Growing
from scipy.integrate import solve_ivp

import neuralode_flow as nf
from neuralode_flow.checks import of_members
from neuralode_flow.depth.engine import compiled
from neuralode_flow.time.endings import Stopped
from neuralode_flow.time.resolution import FixedGrid
from neuralode_flow.time.watch import Budget, Spent, Watch


def growing(factors):
    """f = −c‖z‖⁴, member by member: without bound from below where c > 0, so that z is infinite in finite time."""
    c = torch.as_tensor(factors)
    return nf.IntrinsicFlow(Growing(c), nf.LogMean())


class Breaks(nf.IntrinsicFlow):
    """A flow whose velocity cannot be computed where the first entry of a member is above a bound."""

    def velocity(self, state):
        if bool((state[..., 0, 0] > 1.5).any()):
            raise torch.linalg.LinAlgError("the factorisation did not converge")
        return super().velocity(state)


class Unmapped(nf.IntrinsicFlow):
    """One whose end-to-end map cannot be computed there."""

    def product(self, state):
        if bool((state[..., 0, 0] > 1.5).any()):
            raise FloatingPointError("no product")
        return state


def test_members_are_named_by_their_indices():
    which = torch.zeros(8, dtype=torch.bool)
    assert of_members(which) == ""
    assert of_members(torch.tensor(True)) == ""
    which[3] = True
    assert of_members(which) == " of member 3 of 8"
    which[5] = True
    assert of_members(which) == " of members 3 and 5 of 8"
    assert of_members(torch.ones(8, dtype=torch.bool)) == " of members 0, 1, 2, 3 and 4 more of 8"
    assert of_members(which.reshape(2, 4)) == " of members (0, 3) and (1, 1) of (2, 4)"


@pytest.mark.parametrize(("shape", "name"), [((5,), "member 3 of 5"), ((2, 3), "member (1, 0) of (2, 3)")])
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "DOP853", "BDF", "auto"])
def test_the_member_that_blows_up_is_named_and_the_others_are_kept(method, shape, name):
    factors = torch.zeros(shape)
    factors.reshape(-1)[3] = 1.0
    step = {"step": 0.1} if method in ("euler", "rk4") else {}
    times = torch.cat((torch.linspace(0, 0.03, 4), torch.linspace(1, 5, 5)))
    start = torch.eye(2).expand(*shape, 2, 2).clone()
    path = nf.integrate(growing(factors), start, times, method, 1e-6, 1e-8, **step)
    assert path.ending in ("not_finite", "underflow")
    assert name in path.status
    assert path.status.endswith("a batch goes on as one: without it the others can go on")
    assert len(path.times) >= 4
    # … as they can.
    rest = torch.zeros(shape)
    alone = nf.integrate(growing(rest), start, path.times, method, 1e-6, 1e-8, **step)
    assert alone.status == "ok"
    kept = (factors == 0).reshape(-1)
    assert torch.allclose(path.z.flatten(1, -3)[:, kept], alone.z.flatten(1, -3)[:, kept], atol=1e-5)


@pytest.mark.parametrize("kind", [Breaks, Unmapped])
def test_the_member_at_which_a_function_raises_is_found(kind):
    targets = torch.ones(6, 2, 2) * torch.eye(2)
    targets[4, 0, 0] = 3.0
    flow = kind(nf.Quadratic(targets), nf.LogMean())
    path = nf.integrate(flow, torch.eye(2).expand(6, 2, 2).clone(), torch.linspace(0, 2, 21), "dopri5", 1e-6)
    assert path.ending == "velocity"
    assert "of member 4 of 6 could not be computed" in path.status
    targets[1, 0, 0] = 3.0
    flow = kind(nf.Quadratic(targets), nf.LogMean())
    path = nf.integrate(flow, torch.eye(2).expand(6, 2, 2).clone(), torch.linspace(0, 2, 21), "dopri5", 1e-6)
    assert "of members 1 and 4 of 6 could not be computed" in path.status


def test_a_failure_of_all_members_or_of_a_single_run_names_none():
    path = nf.integrate(growing(torch.ones(())), torch.eye(2), [0.0, 5.0], "euler", step=0.5)
    assert path.ending == "not_finite"
    assert "member" not in path.status
    assert "batch" not in path.status


def test_the_member_that_reaches_a_bound_first_is_named():
    targets = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 0.1])), 4 * torch.eye(2)])
    flow, start = nf.IntrinsicFlow(nf.Quadratic(targets), nf.LogMean()), torch.eye(2).expand(3, 2, 2).clone()
    low = nf.integrate(flow, start, [0.0, 9.0], stop={"sigma_min": 0.5})
    assert low.status.startswith("the smallest singular value of z of member 1 of 3 fell to 0.5 at t = ")
    high = nf.integrate(flow, start, [0.0, 9.0], stop={"norm": 4.0})
    assert high.status.startswith("the norm of z of member 2 of 3 rose to 4 at t = ")


class Bent(nf.ContinuousFlow):
    """A flow whose velocity can be computed everywhere, and its derivative not where an entry is above a bound."""

    many_directions = False

    def velocity(self, state):
        return super().velocity(state)

    def linearised(self, state):
        self.look(state)
        return super().linearised(state)

    @staticmethod
    def look(state):
        if bool((state[..., 0, 0, 0] > 0.2).any()):
            raise torch.linalg.LinAlgError("the factorisation did not converge")


class BentProducts(Bent):
    """One whose derivative fails once it is applied."""

    def velocity(self, state):
        return super().velocity(state)

    def linearised(self, state):
        derivative = nf.ContinuousFlow.linearised(self, state)
        return lambda direction: (self.look(state), derivative(direction))[1]


class Endless(Bent):
    """One whose derivative is infinite there."""

    def velocity(self, state):
        return super().velocity(state)

    def linearised(self, state):
        derivative = nf.ContinuousFlow.linearised(self, state)
        size = torch.where(state[..., :1, :1, :1] > 0.2, torch.inf, 1.0)
        return lambda direction: derivative(direction) * size


@pytest.mark.parametrize("method", ["rodas5p", "CVODE_BDF"])  # by a matrix, and by products with directions
@pytest.mark.parametrize(("kind", "bad"), [(Bent, (4,)), (Bent, (1, 4)), (BentProducts, (4,)), (Endless, (1, 4))])
def test_the_member_whose_velocity_has_no_derivative_is_found(kind, method, bad):
    grid, targets = nf.DepthGrid.gauss(1, 6), torch.ones(6, 2, 2) * torch.eye(2)
    targets[list(bad), 0, 0] = 3.0
    start = torch.zeros(6, 6, 2, 2)
    path = nf.integrate(kind(grid, nf.Quadratic(targets)), start, [0.0, 2.0], method, 1e-3, 1e-4)
    said = "is not finite" if kind is Endless else "could not be linearised"
    name = "member 4" if len(bad) == 1 else "members 1 and 4"
    assert f"of {name} of 6 {said} at t = " in path.status
    assert path.status.endswith("; a batch goes on as one: without it the others can go on")


def test_a_single_run_whose_velocity_has_no_derivative_names_no_member():
    for kind in (Bent, Endless):
        flow = kind(nf.DepthGrid.gauss(1, 6), nf.Quadratic(3 * torch.eye(2)))
        path = nf.integrate(flow, torch.zeros(6, 2, 2), [0.0, 2.0], "rodas5p", 1e-3, 1e-4)
        assert path.ending in ("velocity", "not_finite")
        assert "member" not in path.status


def test_the_member_whose_systems_cannot_be_factorised_is_found():
    class Resolved(nf.IntrinsicFlow):
        def resolvent(self, state):
            if bool((state[..., 0, 0] > 1.5).any()):
                raise torch.linalg.LinAlgError("the factorisation did not converge")
            return lambda gamma: lambda r: r

    flow, state = Resolved(nf.Quadratic(torch.eye(2)), nf.LogMean()), torch.eye(2).expand(6, 2, 2).clone()
    watch = Watch(FixedGrid(flow, 1e-8, 1e-10), torch.Size([6]), state, Budget(100), Spent())
    watch.resolvent(0.0, state.clone())
    state[4] *= 2
    with pytest.raises(Stopped, match=r"the velocity of member 4 of 6 could not be linearised at t = 0\.5: .*go on$"):
        watch.resolvent(0.5, state)


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("method", ["RK23", "DOP853", "dopri5", "bosh3"])
def test_a_velocity_that_fails_inside_a_step_says_when(method, engine, monkeypatch):
    """Steps as long as the outputs allow: the bound is crossed at z = 1.5, far behind the start of a step."""
    monkeypatch.setattr(compiled, "library", compiled.library if engine else lambda: None)
    targets = torch.ones(6, 2, 2) * torch.eye(2)
    targets[4] *= 3

    class Failing(nf.Quadratic):
        def gradient(self, z):
            if bool((z[..., 0, 0] > 1.5).any()):
                raise torch.linalg.LinAlgError("the factorisation did not converge")
            return z - self.target

    flow, start = nf.FiniteFlow(2, Failing(targets)), torch.zeros(6, 2, 2, 2)
    path = nf.integrate(flow, start, [0.0, 1.0], method, 1e-2, 1e-2)
    said = re.search(r"of member 4 of 6 could not be computed at t = ([0-9.e-]+): ", path.status)
    assert said, path.status
    # Where it stands z is below the bound, and above it at that time: of Euler layers it is known.
    when, reached = float(said[1]), float(path.times[-1])
    assert when > reached
    z = solve_ivp(lambda t, w: -(1 + w / 2) * ((1 + w / 2) ** 2 - 3), (0, when), [0.0], rtol=1e-10).y[0, -1]
    assert (1 + z / 2) ** 2 > 1.4


@pytest.mark.parametrize("method", ["DOP853", "dopri5"])
def test_an_underflow_names_the_method_and_the_member(method):
    flow = nf.FiniteFlow(2, Growing(torch.tensor([0.0, 1.0, 0.0])))
    start = torch.zeros(3, 2, 2, 2) + 0.1 * torch.eye(2)
    path = nf.integrate(flow, start, [0.0, 5.0], method, 1e-6, 1e-8)
    assert path.ending == "underflow"
    assert path.status.startswith(f"the step size of {method} underflowed at t = ")
    assert path.status.endswith(" member 1 of 3 moves fastest; a batch goes on as one: without it the others can go on")
