"""Particles of saddle problems against their limits: in their scale α, in their number, in the step, and in time."""

from __future__ import annotations

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
AVERAGED = 512  # intervals of the running averages
_HALVINGS, _FEWER = 6, 4  # of the last T; nodes that running averages need less

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
    times = torch.linspace(0, duration, AVERAGED + 1).to(grid)
    problem = setting.equations.beside(2).saddle(penalty[:, None])
    particles = start.quadrature(setting.nodes - _FEWER).to(grid)
    members = (len(setting.equations.joint), len(penalties), len(alphas))
    flow = ParticleFlow(grid, problem, particles, grid.new_tensor(alphas))
    state = particles.theta.expand(*members, *particles.theta.shape).clone()
    path = whole(integrate(flow, state, times, **_SMOOTH), "flow of all particles")
    y = linear_limit(problem, kernel, times)
    z = torch.cat((path.z, y @ kernel), dim=-3)
    residual, dual = problem.residual(z), (problem.dual * z[..., 1, :].square()).sum(-1)
    gap = y[..., 0, :, :] - torch.stack((truth, torch.zeros_like(truth)))
    lyapunov = ((gap @ kernel) * gap).sum((-2, -1)) / 2
    at = [AVERAGED // 2**k for k in range(_HALVINGS, -1, -1)]
    return Averages(
        times[at],
        _running(dual, times)[at],
        _running(residual, times)[at],
        residual[-1],
        *_floor(setting, penalties),
        lyapunov[0] - lyapunov[-1],
        lyapunov[0],
    )


def _running(values: Tensor, times: Tensor) -> Tensor:
    """Averages from 0 to each time, by trapezia; at 0 the value itself."""
    integral = torch.cumulative_trapezoid(values, times, dim=0) / times[1:].reshape(-1, *(values.ndim - 1) * (1,))
    return torch.cat((values[:1], integral))


def _floor(setting: Setting, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """E|E[Φ | Z]|² at the saddle points, 0 without a penalty, and E g² there."""
    problem = setting.equations.beside(1).saddle(setting.grid.new_tensor(penalties))
    point = problem.point()
    return problem.residual(point), (problem.dual * point[..., 1, :].square()).sum(-1)
