"""Random cases that the tests share; everything is float64 and made from a seed."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import neuralode_flow as nf
from neuralode_flow.initial import random_shift, random_twist
from neuralode_flow.time.base import Control
from neuralode_flow.time.formulas import ScipyFormula, TorchFormula
from neuralode_flow.time.methods.scipy import RUNGE_KUTTA


def slow(*values):
    """Parameters of a test that are left to the slow tests: others are cheaper and show the same."""
    return [pytest.param(*(v if isinstance(v, tuple) else [v]), marks=pytest.mark.slow) for v in values]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def positive_matrix(d, seed, scale=0.5):
    """A random matrix near the identity with det > 0 (well away from zero) that is not normal."""
    draws = generator(seed)
    while True:
        z = torch.eye(d) + scale * torch.randn(d, d, generator=draws) / math.sqrt(d)
        if torch.linalg.det(z) > 0.1:
            return z


def relaxed_profile(d, seed, twist=2.0, shift=1.0):
    """z₀ and a relaxed balanced profile with random twist and shift, both entire functions of s."""
    draws = generator(seed)
    z0 = positive_matrix(d, seed)
    return z0, nf.relaxed_balanced(z0, random_shift(shift, draws), random_twist(d, twist, draws))


def smooth_profile(d, seed, scale=1.0):
    """A smooth random profile that is not relaxed balanced."""
    return nf.smooth(d, scale, generator(seed))


def all_losses(d, seed):
    x, y = randn(3 * d, d + 1, seed=seed), randn(3 * d, 2, seed=seed + 1)
    target = randn(d, d, seed=seed + 2)
    return {
        "quadratic": nf.Quadratic(target),
        "regression": nf.Regression(x, y, randn(d, d + 1, seed=seed + 3), randn(2, d, seed=seed + 4)),
        "completion": nf.Completion(target, (randn(d, d, seed=seed + 5) > 0) | torch.eye(d, dtype=torch.bool)),
        "custom": nf.Custom(lambda z: torch.sqrt(1 + (z - target).square()).sum()),
    }


def distance(a, b):
    """The largest Frobenius distance of two stacks of matrices."""
    return float(torch.linalg.matrix_norm(a - b).max())


def carried(loss, kernel, before):
    """The `carrier` of an intrinsic flow that calls `before` ahead of each velocity and Jacobian."""

    def carrier():
        flow = nf.IntrinsicFlow(loss, kernel).carrier()
        velocity, jacobian = flow.velocity, flow.jacobian

        def after(whole):
            return lambda state: (before(), whole(state))[1]

        flow.velocity, flow.jacobian = after(velocity), after(jacobian)
        flow.knows_jacobian = lambda state: True  # its velocity is still the one that is derived
        return flow

    return carrier


class Growing:
    """f = −c‖z‖⁴ + ‖z‖², member by member: z is infinite in finite time where c > 0."""

    dimension = None

    def __init__(self, c):
        self.c = c

    def __call__(self, z):
        return -self.c * z.square().sum((-2, -1)).square() + z.square().sum((-2, -1))

    def gradient(self, z):
        size = z.square().sum((-2, -1), keepdim=True)
        return (2 - 4 * self.c[..., None, None] * size) * z

    def select(self, members, index):
        return Growing(self.c.expand(members).reshape(-1)[index])


class Rated:
    """c‖z − T‖²/2 with a rate of its own for each member: a stranger's loss."""

    def __init__(self, target, rate):
        self.target, self.rate, self.dimension = target, rate, target.shape[-1]

    def __call__(self, z):
        return self.rate * (z - self.target).square().sum((-2, -1)) / 2

    def gradient(self, z):
        if bool((z[..., 0, 0] > 40).any()):
            raise torch.linalg.LinAlgError("a factorisation did not converge")
        return self.rate[..., None, None] * (z - self.target)

    def select(self, members, index):
        n = torch.Size(members).numel()
        return Rated(self.target.reshape(n, *self.target.shape[-2:])[index], self.rate.reshape(n)[index])


class Weighted:
    """Another loss times a weight, of each member or of all: a stranger's, which says of what it is half a square."""

    def __init__(self, loss, weight):
        self.loss, self.weight, self.dimension = loss, weight, loss.dimension

    def __call__(self, z):
        return self.weight * self.loss(z)

    def gradient(self, z):
        return self.weight[..., None, None] * self.loss.gradient(z)

    def hessian(self, z, direction):
        return self.weight[..., None, None] * self.loss.hessian(z, direction)

    def squares(self):
        return self.loss.squares()._replace(weight=self.weight)

    def select(self, members, index):
        own = self.loss.select(members, index) if hasattr(self.loss, "select") else self.loss
        return Weighted(own, self.weight.reshape(-1)[index])


class NoHessian:
    """½‖z‖², of a stranger who knows no second derivative."""

    dimension = None

    def __call__(self, z):
        return z.square().sum((-1, -2)) / 2

    def gradient(self, z):
        return z


class Passing:
    """Passes all on to another flow but its velocity, which is half of that."""

    def __init__(self, flow):
        self._flow = flow

    def __getattr__(self, name):
        return getattr(self._flow, name)

    def velocity(self, state):
        return 0.5 * self._flow.velocity(state)


def formula(name):
    """An explicit method for steps of one's own, at rtol 1e-6 and atol 1e-8."""
    made = (ScipyFormula if name in RUNGE_KUTTA else TorchFormula)(Control(1e-6, 1e-8, None), name=name)
    made.flat(torch.zeros(1, 1))
    return made


class ByVelocities:
    """What a formula asks of a flow, by its velocity alone."""

    def __init__(self, flow, shape):
        self.flow, self.shape = flow, shape

    def __call__(self, rows, y):
        flow = self.flow if len(rows) == self.shape[0] else restricted(self.flow, self.shape[0], rows)
        return flow.velocity(y.reshape(-1, *self.shape[1:])).reshape(len(y), -1), np.ones(len(y), dtype=bool)

    def explicit_steps(self, *_):
        return None


def restricted(flow, n, rows):
    some = copy.copy(flow)
    some.loss = flow.loss.select((n,), torch.from_numpy(rows))
    return some


class Seen(TorchDispatchMode):
    """Sees what torch does, and so must be left the work."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))
