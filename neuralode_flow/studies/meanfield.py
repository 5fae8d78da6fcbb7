"""Particles of saddle problems against their limits: in their scale α, in their number, in the step, and in time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..matrices import normal
from ..orders import relative_noise
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import whole
from .particles import ParticleFlow, Particles, Start, linear_limit
from .saddle import Equation, Saddle

LAWS = {
    "symmetric": Start(shift=0.0, values=(1.0,), chances=(1.0,)),
    "skew": Start(shift=1.0, values=(2.0, -1.0), chances=(1 / 3, 2 / 3)),
}
OUTPUTS = 8  # intervals between the times at which functions are compared
COARSE = 3  # nodes of the quadrature that is a control
_AVERAGED = 32  # even intervals in each doubling of time of the running averages, a multiple of 4
_HALVINGS, _BEGUN = 6, 6  # of the last T; of the first one, before which nothing is told
_FINER = 4  # nodes more, for the error of running averages

_TIGHT: dict[str, Any] = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
_LOOSE: dict[str, Any] = {"method": "DOP853", "rtol": 1e-6, "atol": 1e-8}  # beside what is random
_SMOOTH: dict[str, Any] = {"method": "CVODE_Adams", "rtol": 1e-6, "atol": 1e-8}  # its steps do not end at the outputs


class Setting(NamedTuple):
    """Equations `(E, …)` on one grid, and how their saddle problems are run."""

    grid: Tensor
    equations: Equation
    penalty: float
    horizon: float
    nodes: int

    def problem(self, pairs: Tensor | None = None) -> Saddle:
        """Its members are equations and what is beside them, `(E, 1)`, or the draws of sampled pairs, `(E, draws)`."""
        return self.equations.beside(1).saddle(self.grid.new_tensor(self.penalty), pairs)

    def run(
        self, particles: Particles, alpha: Tensor, members: int, control: dict[str, Any], **more: Any
    ) -> Trajectory:
        """The flow of particles, at output times, for all equations and what is beside them: `(T, E, members, …)`."""
        flow = ParticleFlow(self.grid, self.problem(), particles, alpha)
        times = torch.linspace(0, self.horizon, OUTPUTS + 1, dtype=torch.float64, device="cpu")
        path = integrate(flow, self.state(particles, members), times, **control, **more)
        return whole(path, f"flow of {len(particles.weight)} particles")

    def state(self, particles: Particles, members: int) -> Tensor:
        """Their parameters at the start, `(E, members, 2, N, 2)`."""
        return particles.theta.expand(len(self.equations.joint), members, *particles.theta.shape[-3:]).clone()


def by_alpha(setting: Setting, start: Start, alphas: Sequence[float]) -> dict[str, Tensor]:
    """All particles at each α against the limit α → ∞, sup over t, `(E, alphas)`."""
    alpha, problem = setting.grid.new_tensor(alphas), setting.problem()
    particles, finer = (start.quadrature(nodes).to(setting.grid) for nodes in (setting.nodes, setting.nodes + 2))
    path = setting.run(particles, alpha, len(alphas), _TIGHT, observe=lambda _, state: particles.moved(state))
    other = setting.run(finer, alpha, len(alphas), _TIGHT)
    assert path.observed is not None
    kernel = start.kernel(setting.grid)
    limit = linear_limit(problem, kernel, path.times.to(kernel)) @ kernel
    return {
        "moved": path.observed.amax(0),
        "distance": problem.norm(path.z - limit).amax(0),
        "quadrature_error": problem.norm(path.z - other.z).amax(0),
        "size": problem.norm(limit).amax(0)[:, 0],
    }


def kernel_error(start: Start, nodes: int, grid: Tensor) -> float:
    """How far E[∇φ(x)·∇φ(x')] by quadrature is from its closed form: the largest entry."""
    particles = start.quadrature(nodes).to(grid)
    a, b = particles.theta[0].unbind(-1)
    slopes = particles.factor * torch.cos(grid[:, None] * a + b)
    products = (1 + grid[:, None] * grid) * ((particles.weight * slopes) @ slopes.mT)
    return float((products - start.kernel(grid)).abs().max())


def by_width(
    setting: Setting, alpha: float, widths: Sequence[int], draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """N random particles against all of them, sup over t, root mean square over draws, `(E, widths)`."""
    scale, problem = setting.grid.new_tensor([alpha]), setting.problem()
    limits = {}
    for name, nodes in (("width", setting.nodes), ("coarse", COARSE)):
        limits[name] = setting.run(LAWS["symmetric"].quadrature(nodes).to(setting.grid), scale, 1, _TIGHT).z
    gaps: dict[str, list[Tensor]] = {name: [] for name in limits}
    for width in widths:
        path = setting.run(_drawn(width, draws, generator), scale, draws, _LOOSE)
        for name, limit in limits.items():
            gaps[name].append(problem.norm(path.z - limit).amax(0))
    return _statistics("width", gaps["width"]) | {"coarse_distance": _root_mean_square(gaps["coarse"])}


def by_steps(
    setting: Setting, alpha: float, width: int, counts: Sequence[int], draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Steps of stochastic gradient descent and ascent, a sample each, against the flow of the same particles.

    Sup over t, root mean square over draws, `(E, counts)`; "exact" has expectations in place of samples.
    """
    scale, problem = setting.grid.new_tensor([alpha]), setting.problem()
    particles = _drawn(width, draws, generator)
    limit = setting.run(particles, scale, draws, _TIGHT).z
    exact, sampled = [], []
    for count in counts:
        euler = {"method": "euler", "step": setting.horizon / count}
        exact.append(problem.norm(setting.run(particles, scale, draws, euler).z - limit).amax(0))
        path = _stochastic(setting, particles, scale, count, generator)
        sampled.append(problem.norm(path - limit).amax(0))
    return _statistics("step", sampled) | {"exact_distance": _root_mean_square(exact)}


def _drawn(width: int, draws: int, generator: torch.Generator) -> Particles:
    """N particles of the symmetric law in pairs ±(a, b), so that f and g are 0 at the start, `(draws, 2, N, 2)`."""
    half = normal(generator, draws, 2, width // 2, 2)
    one = half.new_ones(width)
    return Particles(torch.cat((half, -half), dim=-2), one, one / width)


def _stochastic(
    setting: Setting, particles: Particles, alpha: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """f and g at the output times in `count` steps, each along the slopes of one sample, `(T, E, draws, 2, n)`."""
    draws = len(particles.theta)
    state = setting.state(particles, draws)
    kept = [ParticleFlow(setting.grid, setting.problem(), particles, alpha).product(state)]
    for n in range(1, count + 1):
        one = setting.problem(setting.equations.sampled(draws, generator))
        flow = ParticleFlow(setting.grid, one, particles, alpha)
        state = state + setting.horizon / count * flow.velocity(state)
        if n % (count // OUTPUTS) == 0:
            kept.append(flow.product(state))
    return torch.stack(kept)


def _root_mean_square(gaps: Sequence[Tensor]) -> Tensor:
    """Of draws, the last axis: `(E, …)`."""
    return torch.stack([gap.square().mean(-1).sqrt() for gap in gaps], dim=-1)


def _statistics(name: str, gaps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Root mean squares over draws, and their relative standard errors, `(E, …)`."""
    noise = [[relative_noise(one) for one in gap] for gap in gaps]
    return {
        f"{name}_distance": _root_mean_square(gaps),
        f"{name}_noise": torch.tensor(noise, dtype=torch.float64, device="cpu").mT,
    }


class Averages(NamedTuple):
    """Running averages over [0, T] along flows, `(T, E, penalties, scales)`, the last scale α = ∞."""

    horizons: Tensor
    dual: Tensor  # of E g²
    residual: Tensor  # of E|E[Φ | Z]|²
    last: Tensor  # that itself at the last T, without the first axis
    error: Tensor  # of both averages, by more nodes and by half as many times, relative, sup over T; no first axis
    last_error: Tensor  # of the last residual, by more nodes, relative
    floor: Tensor  # that of the saddle point, (E, penalties)
    floor_by_dual: Tensor  # E g² there, which is the same, (E, penalties)
    lost: Tensor  # by the Lyapunov function of the linear limit up to the last T, (E, penalties)
    begun: Tensor  # that function at the start, (E, penalties)


def averages(
    setting: Setting, alphas: Sequence[float], penalties: Sequence[float], duration: float, truth: Tensor
) -> Averages:
    """Along flows of all particles, and of their linear limit; `truth` has y of f* = y·kernel."""
    start, grid = LAWS["symmetric"], setting.grid
    penalty, kernel = grid.new_tensor(penalties), start.kernel(grid)
    times = _doubling(duration).to(grid)
    problem = setting.equations.beside(2).saddle(penalty[:, None])
    members = (len(setting.equations.joint), len(penalties), len(alphas))

    def flowed(nodes: int) -> Tensor:
        particles = start.quadrature(nodes).to(grid)
        flow = ParticleFlow(grid, problem, particles, grid.new_tensor(alphas))
        state = particles.theta.expand(*members, *particles.theta.shape).clone()
        return whole(integrate(flow, state, times, **_SMOOTH), "flow of all particles").z

    y = linear_limit(problem, kernel, times)
    found = []
    for nodes in (setting.nodes, setting.nodes + _FINER):
        z = torch.cat((flowed(nodes), y @ kernel), dim=-3)
        residual, dual = problem.residual(z), (problem.dual * z[..., 1, :].square()).sum(-1)
        found.append([_running(dual, times), _running(residual, times), residual[-1:]])
        found[-1] += [_running(dual, times, 2), _running(residual, times, 2)]
    ours, finer = found
    by_nodes, by_times = (
        [((one - other) / one).abs()[-_HALVINGS - 1 :].amax(0) for one, other in zip(ours, others, strict=False)]
        for others in (finer[:3], ours[3:])
    )
    gap = y[..., 0, :, :] - torch.stack((truth, torch.zeros_like(truth)))
    lyapunov = ((gap @ kernel) * gap).sum((-2, -1)) / 2
    return Averages(
        times[_AVERAGED::_AVERAGED][_BEGUN:],
        ours[0][_BEGUN:],
        ours[1][_BEGUN:],
        ours[2][0],
        torch.stack(by_nodes[:2]).amax(0) + torch.stack(by_times).amax(0),
        by_nodes[2],
        *_floor(setting, penalties),
        lyapunov[0] - lyapunov[-1],
        lyapunov[0],
    )


def _doubling(duration: float) -> Tensor:
    """Times from 0 to the end in intervals that are even up to a small part of it, and in each doubling from there."""
    ends = [0.0, *(duration * 2.0**-k for k in range(_HALVINGS + _BEGUN, -1, -1))]
    parts = [torch.linspace(a, b, _AVERAGED + 1, dtype=torch.float64)[1:] for a, b in itertools.pairwise(ends)]
    return torch.cat((torch.zeros(1, dtype=torch.float64), *parts))


def _running(values: Tensor, times: Tensor, every: int = 1) -> Tensor:
    """Averages from 0 to the end of each doubling, by Simpson's rule on one in `every` times."""
    parts = values[1:].unflatten(0, (-1, _AVERAGED))
    whole_parts = torch.cat((torch.cat((values[:1], parts[:-1, -1])).unsqueeze(1), parts), 1)[:, ::every]
    ends = times[_AVERAGED::_AVERAGED]
    rule = values.new_tensor([1.0, *(4.0, 2.0) * (_AVERAGED // every // 2 - 1), 4.0, 1.0]) / 3
    lengths = torch.diff(ends, prepend=times[:1]) / (_AVERAGED // every)
    like = (-1, *(values.ndim - 1) * (1,))
    integrals = lengths.reshape(like) * torch.tensordot(rule, whole_parts, ([0], [1]))
    return integrals.cumsum(0) / ends.reshape(like)


def _floor(setting: Setting, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """E|E[Φ | Z]|² at the saddle points, 0 without a penalty, and E g² there."""
    problem = setting.equations.beside(1).saddle(setting.grid.new_tensor(penalties))
    point = problem.point()
    return problem.residual(point), (problem.dual * point[..., 1, :].square()).sum(-1)
