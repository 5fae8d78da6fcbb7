"""The closed flow of layers in the compiled engine: its velocity is that of torch, its steps those by their stages."""

import numpy as np
import pytest
import torch
from cases import ByVelocities, Passing, Rated, formula, positive_matrix, randn
from digits import kernel_in_many_digits
from torch.testing import assert_close

import neuralode_flow as nf
from neuralode_flow.depth.engine import compiled, divided
from neuralode_flow.flows.base import restricted

if compiled.library() is None:
    pytest.skip("the compiled engine is not there", allow_module_level=True)

N = 5


def shifts(L, seed, kind="mixed"):
    """c_k of one network: that of the study, balanced, or such that their factors differ by orders of magnitude."""
    if kind == "balanced":
        return torch.zeros(L)
    steps = randn(L - 1, seed=seed) / L
    return torch.cat((torch.zeros(1), torch.cumsum(steps, 0) if kind == "mixed" else 10 ** (3 * L * steps)))


def losses(d):
    x, y = randn(7, d, seed=1), randn(7, d, seed=2)
    yield nf.Quadratic(randn(N, d, d, seed=3))
    yield nf.Regression(x, y)
    yield Rated(randn(N, d, d, seed=3), torch.logspace(-1, 1, N))


def flow_of(loss, L, kind="mixed", scale=0.5):
    """All members have the same shifts, or each its own."""
    flow = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts(L, 0, kind), scale))
    yield flow
    flow = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts(L, 0, kind), scale))
    flow.kernel = nf.DividedDifference.together([nf.DividedDifference(shifts(L, i, kind), scale) for i in range(N)])
    yield flow


def by_torch(flow, state):
    """The velocity without the engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        return flow.velocity(state)


def assert_near(found, known, bound, said):
    """In the norm of each matrix."""
    gap, size = torch.linalg.matrix_norm(found - known), torch.linalg.matrix_norm(known)
    assert bool((gap <= bound * size).all()), (said, float((gap / size).max()))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 10, 13, 17, 32])
def test_the_velocity_is_that_of_torch_and_each_state_has_its_own(d, level):
    compiled.set_level(level)
    try:
        for loss in losses(d):
            for L in (1, 2, 17, 64, 300) if level == 2 else (2, 70):
                for kind in ("mixed", "balanced", "wide"):
                    for flow in flow_of(loss, L, kind):
                        z = randn(N, d, d, seed=d + 9)
                        found, known = flow.velocity(z), by_torch(flow, z)
                        assert min(d, L) < 3 or not torch.equal(found, known)
                        assert_near(found, known, 2e-14 if kind == "mixed" else 2e-13, (type(loss).__name__, L, kind))
                        for i in (0, N - 1):
                            alone = restricted(flow, (N,), torch.tensor([i])).velocity(z[i : i + 1])[0]
                            assert torch.equal(alone, found[i])
    finally:
        compiled.set_level(2)


def states(d):
    """Matrices whose singular values are equal, zero, close or far apart, by name."""
    A, one, k = randn(d, d, seed=4), torch.eye(d), torch.arange(d)
    Q, R = torch.linalg.qr(A)[0], torch.linalg.qr(randn(d, d, seed=5))[0]
    narrow = A.clone()
    narrow[:, -1] = 0
    return {
        "zero": 0 * A, "one": one, "turned": -3 * Q, "flipped": one.flip(0), "close": Q @ torch.diag(1 + 1e-12 * k) @ R,
        "narrow": narrow, "row": one * (k == 1), "small": 1e-300 * A, "smaller": 1e-310 * A, "large": 1e60 * A,
        "graded": torch.diag(10.0 ** (-4 * k)) @ A, "far": torch.diag(10.0 ** (-100 * k)),
    }  # fmt: skip


@pytest.mark.parametrize("d", [2, 3, 4, 7, 10, 19])
def test_states_of_any_rank_and_size_have_their_velocity(d):
    for L in (1, 2, 6, 64):
        flow = nf.IntrinsicFlow(nf.Quadratic(randn(d, d, seed=3)), nf.DividedDifference(0.3 + shifts(L, 1), 1 / L))
        for name, z in states(d).items():
            found, known = flow.velocity(z), by_torch(flow, z)
            if bool((known.abs() < 1e300).all()):
                assert float((found - known).norm()) <= 1e-12 * float(known.norm()), (L, name)
            assert torch.equal(flow.velocity(torch.stack((z, torch.eye(d))))[0], found) or name == "far"
    with pytest.raises(torch.linalg.LinAlgError):
        flow.velocity(torch.full((d, d), torch.nan))


class Even:
    """z₁₁ + z₁₂ + …, whose gradient shows the kernel of a diagonal z."""

    dimension = None

    def __call__(self, z):
        return z.sum((-2, -1))

    def gradient(self, z):
        return torch.ones_like(z)


@pytest.mark.parametrize("L", [2, 64, 1000, divided.DEEPEST])
@pytest.mark.parametrize("kind", ["equal", "mixed", "halves", "large", "one"])
def test_the_kernel_keeps_its_digits_up_to_the_depth_that_the_engine_takes(L, kind):
    k = torch.arange(L)
    c = {"equal": k * 0.0, "mixed": (k % 3) * 0.85, "halves": (k < L // 2) * 1.7, "large": (k % 2) * 1e6}
    own = c.get(kind, (k == L // 2) * -0.3 + 0.0)
    flow = nf.IntrinsicFlow(Even(), nf.DividedDifference(own))
    for sigma in ([2.5, 1.0, 0.3], [1e3, 1e-3], [1.0 + 1e-9, 1.0], [1.0, 1e-12, 0.1]):
        K = -flow.velocity(torch.diag(torch.tensor(sigma)))
        assert not torch.equal(K, flow.kernel(torch.tensor(sigma))) or L == 2
        for (i, j), exact in kernel_in_many_digits(sigma, own).items():
            assert abs(float(K[i, j] / exact) - 1) < 3e-13, (sigma, i, j)


@pytest.mark.parametrize("d", [1, 4, 6, 10, 17])
@pytest.mark.parametrize("method", ["DOP853", "dopri5", "fehlberg2"])
def test_a_whole_step_is_the_one_by_its_stages(method, d):
    made, short = formula(method), min(1, (4 / d) ** 3)  # large maps are fast
    h = short * np.linspace(0.0005, 0.005, N)
    for loss in losses(d):
        for flow in flow_of(loss, 12):
            z = 0.3 * randn(N, d, d, seed=6)
            f = flow.velocity(z)
            whole = flow.explicit_steps(z, f, h, made.tableau)
            known = made.by_stages(ByVelocities(flow, z.shape), np.arange(N), z.flatten(1), f.flatten(1), h)
            assert_close(whole.ahead.flatten(1), known.y, rtol=1e-13, atol=1e-14)
            if made.tableau.solution is None:
                assert torch.equal(whole.slope, flow.velocity(whole.ahead))
            assert_near(whole.slope, known.f.reshape(N, d, d), 1e-13, type(loss).__name__)
            assert_close(torch.from_numpy(whole.error), torch.as_tensor(known.error), rtol=1e-6, atol=1e-6)
            shared = flow.explicit_steps(z, f, np.array(0.002 * short), made.tableau)
            single = flow.explicit_steps(z, f, np.full(N, 0.002 * short), made.tableau)
            assert torch.equal(shared.ahead, single.ahead)


def test_many_members_with_shifts_of_their_own_are_asked_for_in_parts():
    """More than are taken together where the loss is asked in between."""
    n, d, tableau = 2000, 4, formula("DOP853").tableau
    flow = nf.IntrinsicFlow(Rated(randn(n, d, d, seed=3), torch.ones(n)), nf.DividedDifference(torch.zeros(1)))
    flow.kernel = nf.DividedDifference.together([nf.DividedDifference(shifts(3, i)) for i in range(n)])
    z, h = randn(n, d, d, seed=7), np.full(n, 0.01)
    f = flow.velocity(z)
    whole = flow.explicit_steps(z, f, h, tableau)
    for i in (0, 1234, n - 1):
        some = restricted(flow, (n,), torch.tensor([i]))
        alone = some.explicit_steps(z[i : i + 1], f[i : i + 1], h[:1], tableau)
        assert torch.equal(alone.ahead[0], whole.ahead[i])


def test_what_is_not_for_the_engine_is_left_to_torch(monkeypatch):
    loss, z = nf.Quadratic(torch.eye(3)), randn(3, 3, seed=1)
    flow = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts(4, 0)))
    tableau, f = formula("RK45").tableau, flow.velocity(z)

    def taken(flow, z=z):
        return flow.explicit_steps(z, f.to(z) if z.shape == f.shape else z, np.array(0.1), tableau) is not None

    class Other(nf.DividedDifference):
        def __call__(self, sigma):
            return 2 * super().__call__(sigma)

        def slope(self, sigma):
            return 2 * super().slope(sigma)

    assert flow.knows_steps(z)
    assert taken(flow)
    assert not flow.knows_steps(z.float())
    assert not flow.knows_steps(torch.eye(divided.LARGEST + 1))
    assert not nf.IntrinsicFlow(loss, nf.TwoLayer(0.3)).knows_steps(z)
    assert not taken(nf.IntrinsicFlow(loss, nf.DividedDifference(torch.zeros(divided.DEEPEST + 1))))
    assert not taken(nf.IntrinsicFlow(loss, nf.DividedDifference(torch.zeros(2).requires_grad_())))
    twice = nf.IntrinsicFlow(loss, Other(shifts(4, 0)))
    assert not twice.knows_steps(z)
    assert_close(twice.velocity(z), 2 * f, rtol=1e-12, atol=1e-13)
    own = nf.IntrinsicFlow(loss, nf.DividedDifference(shifts(4, 0)))
    own.velocity = lambda state: 2 * flow.velocity(state)
    assert not own.knows_steps(z)
    monkeypatch.setattr(nf.DividedDifference, "__call__", lambda self, sigma: torch.zeros(*sigma.shape, 3))
    assert not flow.knows_steps(z)
    assert float(flow.velocity(z).norm()) == 0


def test_a_wrapper_with_another_velocity_has_its_own_steps():
    flow, z = nf.IntrinsicFlow(nf.Quadratic(torch.eye(3)), nf.DividedDifference(shifts(4, 0))), randn(3, 3, seed=1)
    fast = nf.integrate(flow, z, [0.0, 0.5], "DOP853", 1e-10, 1e-12)
    slow = nf.integrate(Passing(flow), z, [0.0, 1.0], "DOP853", 1e-10, 1e-12)
    assert_close(fast.z[-1], slow.z[-1], rtol=0, atol=1e-9)


def test_a_subclass_with_an_end_of_its_own_is_looked_at_after_each_step():
    class Ending(nf.IntrinsicFlow):
        def finite(self, state):
            return torch.linalg.matrix_norm(state) < 2

    kernel, start = nf.DividedDifference(shifts(4, 0)), torch.eye(2).expand(3, 2, 2).clone()
    flow = Ending(nf.Quadratic(10 * torch.eye(2)), kernel)
    path = nf.integrate(flow, start, [0.0, 10.0], "DOP853", control="member")
    assert path.ending == "not_finite"
    assert bool((torch.linalg.matrix_norm(path.z[-1]) < 2).all())


@pytest.mark.parametrize("control", ["shared", "member"])
def test_a_run_is_that_of_the_layers(control):
    """From exactly relaxed balanced layers, in the other coordinates, by another part of the engine."""
    L, d, loss = 6, 4, nf.Quadratic(randn(4, 4, seed=3))
    z0, c = positive_matrix(d, 8), shifts(L, 3)
    layers = nf.relaxed_balanced_layers(z0, c)
    accurate = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    closed = nf.IntrinsicFlow(loss, nf.DividedDifference(c, 1 / L))
    start = torch.stack((z0, 0.5 * z0)) if control == "member" else z0
    path = nf.integrate(closed, start, [0.0, 0.7, 1.5], control=control, **accurate)
    known = nf.integrate(nf.FiniteFlow(L, loss), layers, [0.0, 0.7, 1.5], **accurate)
    assert_close(path.z[:, 0] if control == "member" else path.z, known.z, rtol=0, atol=1e-9)
