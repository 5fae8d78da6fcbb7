"""Velocities and products under the other modes of torch: derivatives, transforms, tracers, compilers, inference mode.

The truth is the same mode on a naive route: a loop over layers or one dense system, and torch.func.grad through it.
"""

import threading
import warnings

import pytest
import torch
from cases import randn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import neuralode_flow as nf
from neuralode_flow.depth import engine

N, D = 4, 3
GRID = nf.DepthGrid.gauss(1, N)
TARGET = torch.eye(D) + 0.3 * randn(D, D, seed=1)
LOSSES = {
    "quadratic": nf.Quadratic(TARGET),
    "custom": nf.Custom(lambda z: torch.sqrt(1 + (z - TARGET).square()).sum()),
    "log_cosh": nf.LOSSES["log_cosh"](randn(7, D, seed=2), randn(7, D, seed=3)),
}
RULES = ("euler", "rk2", "cayley", "exp")
KERNELS = {
    "log_mean": nf.LogMean(),
    "two_layer": nf.TwoLayer(0.5),
    "divided": nf.DividedDifference(torch.tensor([0.0, 0.3, -0.2])),
}


@pytest.fixture(autouse=True)
def route():
    """In place of the two routes of this folder: what is tested here is which one is taken."""


@pytest.fixture(autouse=True)
def _no_word_of_torch():
    """torch's own forward mode, tracer and compiler warn of what they use themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
        yield


def naive_layer(rule, A):
    identity = torch.eye(D)
    if rule == "exp":
        return torch.linalg.matrix_exp(A)
    if rule == "cayley":
        return torch.linalg.solve(identity - A / 2, identity + A / 2)
    return identity + A + (A @ A / 2 if rule == "rk2" else 0)


def naive_product(name, W):
    z = torch.eye(D)
    if name in RULES:
        for k in range(N):
            z = naive_layer(name, W[k] / N) @ z
        return z
    A, weights = torch.from_numpy(GRID.rule.integrate), GRID.weights
    system = torch.eye(N * D) - torch.einsum("ij,jab->iajb", A, W).reshape(N * D, N * D)
    x = torch.linalg.solve(system, torch.eye(D).repeat(N, 1)).reshape(N, D, D)
    return z + torch.einsum("i,iab,ibc->ac", weights, W, x)


def phi(theta):
    return torch.linalg.matrix_exp(theta[..., 0, :, :]) @ (torch.eye(D) + theta[..., 1, :, :] @ theta[..., 1, :, :])


def naive_log(M):
    """The logarithm of a positive definite matrix by roots and a series: no eigenvectors."""
    identity = torch.eye(D)
    for _ in range(5):  # square roots by the Denman–Beavers iteration
        Y, Z = M, identity
        for _ in range(8):
            Y, Z = (Y + torch.linalg.inv(Z)) / 2, (Z + torch.linalg.inv(Y)) / 2
        M = Y
    X = (M - identity) @ torch.linalg.inv(M + identity)
    return 2**6 * sum(torch.linalg.matrix_power(X, 2 * k + 1) / (2 * k + 1) for k in range(8))


def naive_intrinsic(loss, z):
    fine = nf.DepthGrid.gauss(1, 12)
    left, right, s = naive_log(z @ z.mT), naive_log(z.mT @ z), fine.nodes[:, None, None]
    parts = torch.linalg.matrix_exp((1 - s) * left) @ loss.gradient(z) @ torch.linalg.matrix_exp(s * right)
    return -torch.einsum("n,nab->ab", fine.weights, parts)


def case(name, loss):
    """The flow, its state, and naive velocity and product."""
    f = LOSSES[loss]
    if name == "factorization":
        return nf.FactorizationFlow(phi, f), randn(2, D, D, seed=5) / 2, lambda x: -grad(lambda y: f(phi(y)))(x), phi
    flow = nf.ContinuousFlow(GRID, f) if name == "collocation" else nf.FiniteFlow(N, f, name)
    weights = GRID.weights if name == "collocation" else torch.full((N,), 1 / N)

    def velocity(W):
        return -grad(lambda V: f(naive_product(name, V)))(W) / weights[:, None, None]

    return flow, randn(N, D, D, seed=4) / 2, velocity, lambda W: naive_product(name, W)


def scalar(f):
    """A scalar function of x with derivatives that do not vanish."""
    return lambda x: (f(x) * torch.linspace(0.5, 1.5, f(x).numel()).view(f(x).shape)).sum()


def backward(f, x, v):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(scalar(f)(leaf), leaf)[0]


def twice(f, x, v):
    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(scalar(f)(leaf), leaf, create_graph=True)[0]
    return torch.autograd.grad((first * v).sum(), leaf)[0]


def checkpointed(f, x, v):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(scalar(lambda y: checkpoint(f, y, use_reentrant=False))(leaf), leaf)[0]


def dual(f, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent


def compiled(f, x, v):
    torch._dynamo.reset()
    function = torch.compile(lambda y: 2 * f(y + 0.1), backend="aot_eager")
    function(v)
    return function(x)


def compiled_backward(f, x, v):
    torch._dynamo.reset()
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(scalar(torch.compile(f, backend="aot_eager"))(leaf), leaf)[0]


DERIVATIVES = {
    "backward": backward,
    "twice backward": twice,
    "checkpoint": checkpointed,
    "grad": lambda f, x, v: grad(scalar(f))(x),
    "vjp": lambda f, x, v: vjp(f, x)[1](f(x))[0],
    "jvp": lambda f, x, v: jvp(f, (x,), (v,))[1],
    "dual": dual,
    "vmap of grad": lambda f, x, v: vmap(grad(scalar(f)))(torch.stack((x, x + v / 9))),
    "grad without recording": lambda f, x, v: torch.no_grad()(grad(scalar(f)))(x),
    "jacfwd": lambda f, x, v: jacfwd(f)(x),
    "jacrev": lambda f, x, v: jacrev(f)(x),
    "hessian": lambda f, x, v: hessian(scalar(f))(x),
    "vmap of jvp": lambda f, x, v: vmap(lambda w: jvp(f, (x,), (w,))[1])(torch.stack((v, x))),
}
OTHERS = {
    "vmap": lambda f, x, v: vmap(f)(torch.stack((x, v))),
    "compile": compiled,
    "compile backward": compiled_backward,
    "make_fx": lambda f, x, v: make_fx(lambda y: f(y))(v)(x),
    "sign in the tensor": lambda f, x, v: f(torch._neg_view(-x)),
    "flop counter": lambda f, x, v: _counted(f, x),
    "parameter": lambda f, x, v: f(torch.nn.Parameter(x)),
    "strides": lambda f, x, v: f(x.mT.contiguous().mT),
    "expanded": lambda f, x, v: f(x.expand(2, *x.shape)),
}


def _counted(f, x):
    with FlopCounterMode(display=False):
        return f(x)


def value(f, x, v):
    return f(x)


# In eager mode, where the naive route cannot follow.
TRUTHS = dict.fromkeys(("make_fx", "sign in the tensor", "flop counter", "strides", "parameter"), value) | {
    "checkpoint": backward,
    "compile": lambda f, x, v: 2 * f(x + 0.1),
    "compile backward": backward,
}


def agree(found, expected, rel=1e-11):
    assert torch.isfinite(found).all()
    assert float((found - expected).abs().max()) <= rel * float(expected.abs().max())


@pytest.mark.parametrize("mode", [*DERIVATIVES, *OTHERS])
@pytest.mark.parametrize("name", ["collocation", *RULES, "factorization"])
def test_a_mode_of_the_flow_is_that_mode_of_the_naive_route(name, mode):
    run = (DERIVATIVES | OTHERS)[mode]
    for loss in ("quadratic", "custom") if mode in DERIVATIVES else ("custom",):
        flow, x, velocity, product = case(name, loss)
        v = randn(*x.shape, seed=6) / 2
        # The naive route is for one state and eager mode.
        naive = _one_by_one if mode == "expanded" else (lambda f: f)
        truth = TRUTHS.get(mode, run)
        agree(run(flow.velocity, x, v).detach(), truth(naive(velocity), x, v).detach())
        agree(run(flow.product, x, v).detach(), truth(naive(product), x, v).detach())


def _one_by_one(f):
    return lambda x: torch.stack([f(member) for member in x])


@pytest.mark.parametrize("name", ["collocation", *RULES])
def test_the_losses_by_autograd_are_differentiated_as_well(name):
    flow, x, velocity, _ = case(name, "log_cosh")
    v = randn(*x.shape, seed=6)
    agree(backward(flow.velocity, x, v), backward(velocity, x, v))
    agree(jvp(flow.velocity, (x,), (v,))[1], jvp(velocity, (x,), (v,))[1])


@pytest.mark.parametrize("mode", DERIVATIVES)
def test_modes_of_the_intrinsic_limit_are_those_of_the_integral_over_depth(mode):
    loss = LOSSES["quadratic"]
    flow, z, v = nf.IntrinsicFlow(loss, nf.LogMean()), torch.eye(D) + 0.3 * randn(D, D, seed=7), randn(D, D, seed=8)
    run = DERIVATIVES[mode]
    agree(run(flow.velocity, z, v), run(lambda y: naive_intrinsic(loss, y), z, v), rel=1e-8)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("mode", ["backward", "grad", "jvp", "dual", "vmap of grad", "jacfwd", "vmap", "compile"])
def test_modes_of_intrinsic_flows_agree_with_differences(name, mode):
    flow, z = nf.IntrinsicFlow(LOSSES["custom"], KERNELS[name]), torch.eye(D) + 0.3 * randn(D, D, seed=7)
    v, f = randn(D, D, seed=8) / 2, flow.velocity

    def difference(g, x, w, h=1e-3):
        return (8 * (g(x + h * w) - g(x - h * w)) - (g(x + 2 * h * w) - g(x - 2 * h * w))) / (12 * h)

    if mode in ("vmap", "compile"):
        expected = torch.stack((f(z), f(v))) if mode == "vmap" else 2 * f(z + 0.1)
        return agree(OTHERS[mode](f, z, v), expected)
    found = DERIVATIVES[mode](f, z, v)
    if mode in ("jvp", "dual"):
        return agree(found, difference(f, z, v), 1e-9)
    if mode == "jacfwd":
        return agree((found * v).sum((-2, -1)), difference(f, z, v), 1e-9)
    first = found[0] if mode == "vmap of grad" else found
    agree((first * v).sum(), difference(scalar(f), z, v), 1e-9)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sigma", [[0.1, 0.1, 0.1], [2.0, 1.0 + 1e-9, 1.0], [1.0, 0.0, 0.0]])
def test_a_derivative_at_equal_singular_values_is_refused_and_not_nan(name, sigma):
    flow, z = nf.IntrinsicFlow(LOSSES["quadratic"], KERNELS[name]), torch.diag(torch.tensor(sigma))
    assert torch.isfinite(flow.velocity(z)).all()
    for run in (backward, DERIVATIVES["grad"], DERIVATIVES["jvp"], dual):
        with pytest.raises(ValueError, match="state has singular values that differ by"):
            run(flow.velocity, z, z)


def test_the_derivative_of_a_kernel_is_right_where_sigma_vanishes():
    flow = nf.IntrinsicFlow(nf.Quadratic(TARGET), nf.TwoLayer(0.0))
    z = torch.diag(torch.tensor([1.0, 0.5, 0.0]))
    assert torch.isfinite(backward(flow.velocity, z, z)).all()


@pytest.mark.parametrize("name", ["collocation", *RULES, "factorization"])
def test_derivatives_with_respect_to_the_loss_pass_through_the_velocity(name):
    x = case(name, "quadratic")[1]

    def velocity(make, naive=False):
        def of(target):
            if naive:
                return -grad(lambda W: nf.Quadratic(target)(maps(W)))(x) / weights[:, None, None]
            flow = {
                "collocation": lambda f: nf.ContinuousFlow(GRID, f),
                "factorization": lambda f: nf.FactorizationFlow(phi, f),
            }.get(name, lambda f: nf.FiniteFlow(N, f, name))
            return flow(make(target)).velocity(x)

        return of

    maps = phi if name == "factorization" else lambda W: naive_product(name, W)
    weights = {"collocation": GRID.weights, "factorization": torch.ones(2)}.get(name, torch.full((N,), 1 / N))
    quadratic, v = velocity(nf.Quadratic), randn(D, D, seed=9)
    custom = velocity(lambda target: nf.Custom(lambda z: (z - target).square().sum() / 2))
    expected = backward(velocity(None, naive=True), TARGET, v)
    for run in (backward, DERIVATIVES["grad"]):
        for of in (quadratic, custom):
            agree(run(of, TARGET, v), expected)
    agree(vmap(quadratic)(torch.stack((TARGET, v)))[1], quadratic(v))
    agree(jvp(quadratic, (TARGET,), (v,))[1], quadratic(TARGET + v) - quadratic(TARGET))  # it is affine


def test_a_network_taken_in_segments_is_differentiated_as_well(monkeypatch):
    x = case("rk2", "quadratic")[1]
    monkeypatch.setattr("neuralode_flow.depth.engine.by_torch.SEGMENT", 1)
    monkeypatch.setattr(engine.compiled, "library", lambda: None)

    def velocity(target):
        return nf.FiniteFlow(N, nf.Quadratic(target), "rk2").velocity(x)

    expected = grad(scalar(lambda T: -grad(lambda W: nf.Quadratic(T)(naive_product("rk2", W)))(x) * N))(TARGET)
    agree(grad(scalar(velocity))(TARGET), expected)
    agree(backward(velocity, TARGET, None), expected)
    agree(vmap(velocity)(TARGET[None])[0], velocity(TARGET))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["collocation", *RULES])
def test_a_given_loss_is_followed_where_torch_serves(name, dtype, monkeypatch):
    # The routes of torch that write into memory of their own, with an outer derivative that is recorded.
    monkeypatch.setattr(engine.compiled, "library", lambda: None)
    x, target = case(name, "quadratic")[1].to(dtype), TARGET.to(dtype)

    def velocity(T):
        make = nf.ContinuousFlow if name == "collocation" else nf.FiniteFlow
        return make(*((GRID, nf.Quadratic(T)) if name == "collocation" else (N, nf.Quadratic(T), name))).velocity(x)

    v = randn(D, D, seed=9).to(dtype)
    leaf = target.clone().requires_grad_()
    slope = torch.autograd.grad((velocity(leaf) * x).sum(), leaf)[0]
    expected = ((velocity(target + v) - velocity(target)) * x).sum()
    assert float(abs((slope * v).sum() - expected)) < (1e-12 if dtype == torch.float64 else 1e-4)
    agree(vmap(velocity)(target[None])[0], velocity(target), rel=1e-12 if dtype == torch.float64 else 1e-4)


def test_the_compiled_engine_serves_in_eager_mode_and_in_no_other():
    if engine.compiled.library() is None:
        pytest.skip("the engine is not compiled here")
    W, served = randn(N, D, D, seed=4), engine.compiled.takes
    assert served(W)
    assert served(torch.nn.Parameter(W, requires_grad=False))
    assert served(W.clone().requires_grad_().detach())
    assert torch.inference_mode()(served)(W)
    assert torch.no_grad()(served)(W.clone().requires_grad_())
    seen = []

    def ask(y):
        seen.append(served(y))
        return y * 1.0

    vmap(ask)(W), grad(lambda y: ask(y).sum())(W), jvp(ask, (W,), (W,)), make_fx(ask)(W), _counted(ask, W)
    dual(ask, W, W), ask(W.clone().requires_grad_()), ask(torch._neg_view(W)), ask(W.as_subclass(Marked))
    torch.jit.trace(ask, W, check_trace=False)
    assert seen == [False] * len(seen)
    assert len(seen) >= 10


class Marked(torch.Tensor):
    """A subclass without behaviour of its own."""


def test_compiled_velocities_use_the_compiled_engine_and_know_other_shapes():
    torch._dynamo.reset()
    asked = []
    flow = nf.FiniteFlow(N, nf.Custom(lambda z: asked.append(engine.compiled.takes(z)) or (z - 1).square().sum()))
    call = torch.compile(flow.velocity, backend="eager")
    for d in range(1, 12):  # more than torch compiles anew
        W = randn(N, d, d, seed=d)
        agree(call(W), flow.velocity(W), rel=1e-14)
    assert len(asked) == 22


@pytest.mark.slow
@pytest.mark.parametrize("name", ["collocation", "exp"])
def test_inductor_leaves_the_velocity_as_it_is(name):
    torch._dynamo.reset()
    flow, x, _, _ = case(name, "quadratic")
    call = torch.compile(lambda W: 2 * flow.velocity(W + 0.1))
    for W in (x, 2 * x):
        agree(call(W), 2 * flow.velocity(W + 0.1), rel=1e-14)


def test_a_traced_velocity_is_no_constant():
    for name in ("collocation", *RULES):
        flow, x, _, _ = case(name, "quadratic")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(lambda W, flow=flow: flow.velocity(W), x, check_trace=False)
        agree(traced(3 * x), flow.velocity(3 * x))


@pytest.mark.parametrize("name", ["collocation", *RULES, "factorization", *KERNELS])
@pytest.mark.parametrize("loss", LOSSES)
def test_inference_mode_changes_nothing(name, loss):
    if name in KERNELS:
        flow, x = nf.IntrinsicFlow(LOSSES[loss], KERNELS[name]), torch.eye(D) + 0.3 * randn(D, D, seed=7)
    else:
        flow, x = case(name, loss)[:2]
    linearised = getattr(flow, "linearised", lambda state: lambda direction: direction)
    expected = flow.velocity(x), flow.product(x), flow.loss(flow.product(x)), linearised(x)
    with torch.inference_mode():
        inside = x.clone()
        found = flow.velocity(inside), flow.product(inside), flow.loss(flow.product(x)), linearised(inside)
        if found[3] is not None:
            torch.testing.assert_close(found[3](inside), expected[3](x), rtol=1e-12, atol=1e-13)
        flow.check(inside)
        path = nf.integrate(flow, inside, [0.0, 0.1], "rk4")
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(path.z, nf.integrate(flow, x, [0.0, 0.1], "rk4").z)
    assert torch.equal(flow.velocity(inside), expected[0])  # a tensor of that mode, after it


def test_memory_lent_in_inference_mode_can_be_used_after_it():
    for name in ("collocation", *RULES):
        x = case(name, "quadratic")[1].float()
        loss = nf.Quadratic(TARGET.float())
        flow = nf.ContinuousFlow(GRID, loss) if name == "collocation" else nf.FiniteFlow(N, loss, name)
        with torch.inference_mode():
            first = flow.velocity(x)
        assert torch.equal(flow.velocity(x), first)


DEFAULTS = {
    "dtype": (torch.set_default_dtype, torch.float32, torch.float64),
    "device": (torch.set_default_device, "meta", None),
    "deterministic": (torch.use_deterministic_algorithms, True, False),
}


@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_of_torch_change_nothing(default):
    change, other, usual = DEFAULTS[default]
    x = case("euler", "quadratic")[1]
    flows = [case(name, loss)[0] for name in ("collocation", *RULES) for loss in LOSSES]
    flows.append(nf.ContinuousFlow(GRID, LOSSES["quadratic"], "torchdiffeq"))
    calls = [(f, x) for flow in flows for f in (flow.velocity, flow.product, flow.law)]
    # Matrices that are too large for the compiled engine.
    large, loss = randn(N, 260, 260, seed=12) / 60, nf.Quadratic(torch.eye(260))
    calls += [(nf.FiniteFlow(N, loss, rule).velocity, large) for rule in RULES]
    calls.append((nf.ContinuousFlow(GRID, loss).velocity, large))
    expected = [call(state) for call, state in calls]
    change(other)
    try:
        found = [call(state) for call, state in calls]
    finally:
        change(usual)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_do_not_see_each_others_memory():
    flow = nf.ContinuousFlow(GRID, LOSSES["custom"])
    states = [randn(N, D, D, seed=k).to(dtype) for k in range(4) for dtype in (torch.float64,)]
    expected = [flow.velocity(state) for state in states]
    wrong = []

    def work(state, truth):
        wrong.extend(k for k in range(30) if not torch.equal(flow.velocity(state), truth))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(states, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("panels", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_derivatives_through_the_adaptive_solver_are_those_of_its_values(panels):
    grid = nf.DepthGrid.gauss(panels, 3)
    solver = nf.ContinuousFlow(grid, LOSSES["quadratic"], nf.OdeintDepth(grid, rtol=1e-9, atol=1e-11))
    x, v = randn(len(grid), D, D, seed=10) / 2, randn(len(grid), D, D, seed=11) / 2
    for f in (solver.velocity, solver.product):
        quotient = (scalar(f)(x + 3e-4 * v) - scalar(f)(x - 3e-4 * v)) / 6e-4
        assert float((backward(f, x, v) * v).sum()) == pytest.approx(float(quotient), rel=1e-5)


def test_the_adaptive_solver_refuses_what_hides_numbers_from_it():
    flow, x = nf.ContinuousFlow(GRID, LOSSES["quadratic"], "torchdiffeq"), case("collocation", "quadratic")[1]
    for run in (DERIVATIVES["grad"], DERIVATIVES["jvp"], dual, OTHERS["vmap"]):
        with pytest.raises(NotImplementedError, match="use depth='collocation'"):
            run(flow.velocity, x, x)
    torch._dynamo.reset()
    agree(torch.compile(flow.product, backend="eager")(x), flow.product(x), rel=1e-14)


@pytest.mark.parametrize("name", ["collocation", *RULES, "factorization"])
def test_forward_mode_twice_is_the_difference_of_once(name):
    # Not against the naive route: torch.linalg.solve is wrong there.
    flow, x, _, _ = case(name, "custom")
    v = randn(*x.shape, seed=6) / 2
    for f in (flow.velocity, lambda y: vmap(flow.velocity)(y[None])[0]):

        def once(y, f=f):
            return jvp(f, (y,), (v,))[1]

        difference = (once(x + 1e-4 * v) - once(x - 1e-4 * v)) / 2e-4
        agree(jvp(once, (x,), (v,))[1], difference, rel=1e-6)


def test_the_linearised_velocity_is_differentiable_and_right_in_all_modes():
    for name in ("collocation", "factorization"):
        for loss in LOSSES:
            flow, x, velocity, _ = case(name, loss)
            v = randn(*x.shape, seed=6) / 2
            expected = jvp(velocity, (x,), (v,))[1]
            agree(flow.linearised(x)(v), expected)
            agree(vmap(flow.linearised(x))(torch.stack((v, x)))[0], expected)
            second = (flow.linearised(x + 1e-4 * v)(v) - flow.linearised(x - 1e-4 * v)(v)) / 2e-4
            agree(jvp(lambda y, flow=flow, v=v: flow.linearised(y)(v), (x,), (v,))[1], second, rel=1e-6)


WANTED = torch.eye(D, requires_grad=True)
REFUSED = {
    "state": lambda: (nf.ContinuousFlow(GRID, LOSSES["quadratic"]), torch.zeros(N, D, D, requires_grad=True)),
    "parameter": lambda: (nf.FiniteFlow(N, LOSSES["quadratic"]), torch.nn.Parameter(torch.zeros(N, D, D))),
    "profile": lambda: (
        nf.ContinuousFlow(GRID, LOSSES["quadratic"]),
        lambda s: 0.1 * WANTED,
    ),
    "target of the loss": lambda: (
        nf.FiniteFlow(N, nf.Quadratic(torch.eye(D, requires_grad=True))),
        torch.zeros(N, D, D),
    ),
    "shifts of the kernel": lambda: (
        nf.IntrinsicFlow(LOSSES["quadratic"], nf.DividedDifference(torch.zeros(2, requires_grad=True))),
        torch.eye(D),
    ),
    "flow": lambda: (
        nf.FiniteFlow(N, nf.Custom(lambda z: (WANTED * z).square().sum())),
        torch.zeros(N, D, D),
    ),
    "flow of a map": lambda: (
        nf.FactorizationFlow(lambda x: WANTED @ phi(x), LOSSES["quadratic"]),
        torch.zeros(2, D, D),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_integrate_refuses_a_gradient_that_it_does_not_carry(what):
    flow, state = REFUSED[what]()
    with pytest.raises(TypeError, match=r"a run does not carry derivatives through time.*no_grad"):
        nf.integrate(flow, state, [0.0, 0.1])
    with torch.no_grad():
        assert nf.integrate(flow, state, [0.0, 0.1]).status == "ok"


@pytest.mark.parametrize("times", [[0.0, torch.tensor(0.1)], torch.tensor([0.0, 0.1])], ids=["numbers", "tensor"])
def test_integrate_refuses_a_gradient_in_times_that_it_does_not_carry(times):
    """It gave z without one."""
    flow, state = nf.FiniteFlow(N, LOSSES["quadratic"]), torch.zeros(N, D, D)
    of = [t for t in (times if isinstance(times, list) else [times]) if isinstance(t, torch.Tensor)][0]
    of.requires_grad_()
    with pytest.raises(TypeError, match=r"times requires a gradient, but a run does not carry derivatives"):
        nf.integrate(flow, state, times)
    with torch.no_grad():
        assert nf.integrate(flow, state, times).status == "ok"
    of.requires_grad_(False)
    assert nf.integrate(flow, state, times).status == "ok"
    with pytest.raises(TypeError, match=r"times must be plain numbers"):
        torch.func.jvp(
            lambda t: nf.integrate(flow, state, torch.stack((0 * t, t))).z, (of.max(),), (torch.tensor(1.0),)
        )


def test_integrate_refuses_transforms_in_a_sentence():
    flow, x, _, _ = case("collocation", "quadratic")

    def end(W):
        return nf.integrate(flow, W, [0.0, 0.1]).z[-1]

    def end_of(target):
        return nf.integrate(nf.ContinuousFlow(GRID, nf.Quadratic(target)), x, [0.0, 0.1]).z[-1]

    for run in (DERIVATIVES["grad"], DERIVATIVES["jvp"], dual, DERIVATIVES["vmap of grad"], OTHERS["vmap"]):
        for f, at in ((end, x), (end_of, TARGET)):
            with pytest.raises(TypeError, match="a run takes no part in transforms"):
                run(f, at, at)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(end, backend="eager")(x), end(x))


def test_a_loss_of_another_precision_is_not_read_as_this_one():
    class Rough(nf.Quadratic):
        def gradient(self, z):
            return super().gradient(z).float()

    W = randn(N, D, D, seed=4)
    for make in (lambda f: nf.ContinuousFlow(GRID, f), lambda f: nf.FiniteFlow(N, f)):
        with pytest.raises(RuntimeError, match="dtype|scalar type"):  # torch does not multiply two precisions
            make(Rough(TARGET)).velocity(W)
