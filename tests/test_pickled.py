"""What is sent to another process, or kept in a file, has the same numbers there: to the bit, in a fresh process."""

import copy
import io
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from cases import positive_matrix, randn

import neuralode_flow as nf
from neuralode_flow.depth.grid import Remembered, sample
from neuralode_flow.initial import random_shift, random_twist

TIMES = [0.0, 0.1, 0.3]
TARGET = positive_matrix(3, seed=3)
Z0 = positive_matrix(3, seed=4)
LOSS = nf.Quadratic(TARGET)
GRID = nf.DepthGrid.gauss(2, 6)
LAYERS = 0.3 * randn(4, 3, 3, seed=1)
NODES = 0.3 * randn(12, 3, 3, seed=2)
# The file problem is a table of the user's.
PROBLEMS = [name for name in nf.PROBLEMS if name != "file"]


def entries(theta):
    return theta[..., 0] * theta[..., 1]


def balance(theta):
    return theta[..., 0] ** 2 - theta[..., 1] ** 2


def of_system(system):
    """All that a system states, in numbers."""
    theta, z = system.theta, system.phi(system.theta)
    flow = system.flow or nf.FactorizationFlow(system.phi, system.loss, system.laws)
    whole = flow.product(theta)
    found = [theta, z, system.laws(theta), system.loss(z), system.loss.gradient(z), flow.velocity(theta), whole]
    found += [other.velocity(z) for other in (system.closed, system.control) if other is not None]
    path = nf.integrate(flow, theta, TIMES, rtol=1e-6, observe=lambda i, state: state.clone())
    found += [check(path.times, path.observed) for check in system.checks.values()]
    found += [observe(theta) for observe in system.observe.values()]
    found += [] if system.until is None else [system.until(0.1, z, path.state)]
    return [*found, *system.facts.values(), system.bound]


def of_flow(state, flow):
    return [flow.velocity(state), flow.product(state), flow.law(state), flow.loss(flow.product(state))]


def of_run(state, flow):
    return [*of_flow(state, flow), nf.integrate(flow, state, TIMES, rtol=1e-6, dense=True)([0.05, 0.2])]


def of_loss(loss):
    z = TARGET + 0.1
    return [loss(z), loss.gradient(z), loss.hessian(z, Z0)]


def of_profile(profile):
    W = profile(0.3)
    flow = nf.FiniteFlow(4, nf.Quadratic(TARGET.to(W)))
    return [W, sample(profile, GRID.nodes), flow.sample(profile), flow.product(flow.sample(profile))]


def of_problem(problem):
    return [problem.z0, problem.loss(problem.z0), problem.loss.gradient(problem.z0)]


def of_trajectory(path):
    kept = [getattr(path, field.name) for field in fields(path)]
    dense = [] if path.dense_z is None else [path([0.05, 0.2])]
    return [*(part for part in kept if torch.is_tensor(part)), *dense]


def of_grid(grid):
    return [grid.nodes, grid.weights, grid.integrate(NODES), grid.antiderivative(NODES)]


def of_kernel(kernel):
    return [kernel(torch.tensor([2.0, 1.0, 0.5])), *of_run(Z0, nf.IntrinsicFlow(LOSS, kernel))]


def of_hessian(H):
    return [H.product(LAYERS)]


def of_observer(observe):
    return [observe(0, LAYERS)]


def samples(name):
    x = randn(5, 3, seed=4)
    y = torch.eye(3)[torch.tensor([0, 1, 2, 1, 0])] if name in ("cross_entropy", "logistic") else randn(5, 3, seed=5)
    return x, y, None, None


def around():
    finite, continuous = nf.FiniteFlow(4, LOSS), nf.ContinuousFlow(GRID, LOSS)
    for name, flow, state in (("finite", finite, LAYERS), ("continuous", continuous, NODES)):
        momentum = nf.MomentumFlow(flow, 1.0)
        yield f"momentum of {name}", momentum, momentum.start(state)
        yield f"modified {name}", nf.ModifiedFlow(flow, 0.01), state
        yield f"central {name}", nf.CentralFlow(flow, 0.01), state


def profile(shifted, twisted):
    draws = torch.Generator().manual_seed(0)
    return nf.relaxed_balanced(Z0, random_shift(shifted, draws), random_twist(3, twisted, draws))


def everything():
    """Name → what makes an object, and what its numbers are."""
    flow, theta = nf.FactorizationFlow(entries, nf.Quadratic(torch.tensor(5.0)), balance), torch.tensor([2.0, 1.0])
    recovered = partial(nf.intrinsic.RecoveredFlow, entries, balance, theta, flow.loss)
    continuous, finite, closed = (
        nf.ContinuousFlow(GRID, LOSS),
        nf.FiniteFlow(4, LOSS),
        nf.IntrinsicFlow(LOSS, nf.LogMean()),
    )
    found = {f"system {name}": (build, of_system) for name, build in nf.SYSTEMS.items()}
    found |= {f"loss {name}": (partial(build, *samples(name)), of_loss) for name, build in nf.LOSSES.items()}
    found |= {f"initial {name}": (partial(build, Z0), of_profile) for name, build in nf.INITIALS.items()}
    found |= {f"problem {name}": (nf.PROBLEMS[name], of_problem) for name in PROBLEMS}
    found |= {f"layer {name}": (partial(nf.FiniteFlow, 4, LOSS, name), partial(of_run, LAYERS)) for name in nf.LAYERS}
    solvers = {name: {"rtol": 1e-4, "atol": 1e-6} if name == "torchdiffeq" else {} for name in nf.DEPTH_SOLVERS}
    for name, options in solvers.items():
        solver = partial(nf.DEPTH_SOLVERS[name], GRID, **options)
        found[f"depth {name}"] = lambda solver=solver: nf.ContinuousFlow(GRID, LOSS, solver()), partial(of_flow, NODES)
    found |= {f"flow {name}": (lambda flow=flow: flow, partial(of_flow, state)) for name, flow, state in around()}
    kernels = nf.LogMean(), nf.TwoLayer(0.5), nf.DividedDifference(torch.tensor([0.0, 0.1, 0.3]), 0.5)
    found |= {f"kernel {type(kernel).__name__}": (lambda kernel=kernel: kernel, of_kernel) for kernel in kernels}
    found |= {
        "twist and shift": (partial(profile, 0.5, 1.0), of_profile),
        "float32": (lambda: nf.relaxed_balanced(Z0.float()), of_profile),
        "remembered": (lambda: Remembered(nf.balanced(Z0)), of_profile),
        "grid": (lambda: GRID, of_grid),
        "completion": (partial(nf.Completion, TARGET, TARGET > 0), of_loss),
        "factorization": (lambda: flow, partial(of_run, theta)),
        "recovered": (recovered, partial(of_flow, torch.tensor(2.0))),
        "hessian": (partial(nf.curvature.hessian, finite, LAYERS), of_hessian),
        "along": (partial(nf.curvature.along, finite, 2), of_observer),
        "trajectory": (partial(nf.integrate, continuous, NODES, TIMES, estimate=True, dense=True), of_trajectory),
        "logarithms": (partial(nf.integrate, closed, Z0, TIMES, "auto"), of_trajectory),
        "descended": (partial(nf.descend, finite, LAYERS, rate=0.01, steps=5, rule="adam"), of_trajectory),
    }
    return found


# Objects are read before anything of the library is imported.
ELSEWHERE = """
import pickle, sys
from pathlib import Path
import torch
torch.set_default_dtype(torch.float64)
folder = Path(sys.argv[1])
objects = pickle.loads((folder / "objects").read_bytes())
asked = pickle.loads((folder / "asked").read_bytes())
numbers = {name: asked[name](value) for name, value in objects.items()}
(folder / "numbers").write_bytes(pickle.dumps(numbers))
"""


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def check_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        if torch.is_tensor(other):
            assert (one.dtype, one.shape, one.requires_grad) == (other.dtype, other.shape, other.requires_grad)
            assert torch.equal(one.isnan(), other.isnan())
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
        else:
            assert one == other


KNOWN = everything()


def known(name):
    build, numbers = KNOWN[name]
    return build(), numbers


@cache
def expected(name):
    """The numbers of one that has come through a pickle."""
    value, numbers = known(name)
    return numbers(pickle.loads(pickle.dumps(value)))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickled")
    for number, part in enumerate(("objects", "asked")):
        (folder / part).write_bytes(pickle.dumps({name: known(name)[number] for name in KNOWN}))
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", ELSEWHERE, folder], check=True, env=os.environ | {"PYTHONPATH": path})
    return pickle.loads((folder / "numbers").read_bytes())


@pytest.mark.parametrize("name", KNOWN)
def test_a_fresh_process_has_the_same_numbers(name, elsewhere):
    check_same(elsewhere[name], expected(name))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, through_file])
@pytest.mark.parametrize("name", KNOWN)
def test_copies_have_the_same_numbers_and_leave_the_first_as_it_is(name, again):
    """Systems of ReLU networks and flows that recover θ hold where their run is: no two may share that."""
    value, numbers = known(name)
    check_same(numbers(again(value)), expected(name))
    check_same(numbers(value), expected(name))


@pytest.mark.parametrize("again", [copy.deepcopy, through_file])
@pytest.mark.parametrize("name", ["relu_two_layer", "leaky_relu", "relu_spline"])
def test_checks_of_a_copied_network_look_at_its_own_loss(name, again):
    """They moved the anchors of the first one's."""
    system = nf.SYSTEMS[name]()
    other = again(system)
    assert other.closed.loss is other.loss is not system.loss
    before, path = pickle.dumps(system), system.theta + torch.linspace(0, 1, 11)[:, None]
    for check in other.checks.values():
        check(torch.zeros(11), path)
    assert len(other.loss._z) > 1
    assert pickle.dumps(system) == before
