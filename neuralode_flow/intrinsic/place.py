"""A point θ with its round-off and its units, and generic points near it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .derivatives import Map, jacobian
from .ranks import ABOVE_ROUND_OFF
from .units import Measured, equilibrated

# By how many units in the last place θ is shaken, and how often, to see the round-off of what is computed there.
_SHAKEN, _TIMES = 4, 3

# How far a nearby point is, as a part of every entry of θ: as near as it takes for φ to be analytic in between.
_RADII = (0.1, 0.01, 1e-3)

# Chebyshev coefficients of φ on a segment: the last of so many are this part of the largest where φ is analytic.
_NODES, _LAST, _TAIL = 21, 5, 1e-7


@dataclass(frozen=True, eq=False)
class Place:
    """A point θ, and others that round-off does not tell from it.

    Attributes
    ----------
    theta : Tensor (n,)
    steps : Tensor (n,)
        What is a small change of each entry, in units of its own: |θ_i|, or for a zero what changes z as much.
    samples : tuple of Tensor
        θ, and θ shaken by a few units in the last place.
    """

    theta: Tensor
    steps: Tensor
    samples: tuple[Tensor, ...]

    @classmethod
    def at(cls, theta: Tensor, phi: Map, generator: torch.Generator) -> Place:
        """The place at θ."""
        return cls._with(theta, _steps(theta, jacobian(phi, theta)), generator)

    @classmethod
    def _with(cls, theta: Tensor, steps: Tensor, generator: torch.Generator) -> Place:
        shaken = _SHAKEN * torch.finfo(theta.dtype).eps * steps
        return cls(theta, steps, (theta, *(theta + shaken * _normals(theta, generator) for _ in range(_TIMES))))

    def jacobian(self, function: Map) -> Measured:
        """∂function (m, n). Where moving θ by all of itself changes an entry by round-off only, its row is zero."""
        found = Measured.of(torch.stack([jacobian(function, theta) for theta in self.samples]))
        value = function(self.theta).reshape(-1).abs()
        felt = (found.values * self.steps).abs().amax(1) > ABOVE_ROUND_OFF * torch.finfo(value.dtype).eps * value
        return Measured(torch.where(felt[:, None], found.values, 0.0), found.noise)

    def nearby(self, phi: Map, generator: torch.Generator) -> tuple[Place, bool]:
        """A random point near θ, and whether φ is seen to be analytic in between."""
        direction = self.steps * _normals(self.theta, generator)
        for radius in _RADII:
            if _analytic(phi, self.theta, radius * direction):
                return Place._with(self.theta + radius * direction, self.steps, generator), True
        return Place._with(self.theta + _RADII[-1] * direction, self.steps, generator), False

    def spread(self, rows: Measured) -> float:
        """By how much the metric of θ spreads in the units that rows give its entries, among those that share a row."""
        columns = rows.scales[1]
        linked = (rows.values != 0).to(columns)
        reach = linked.mT @ linked  # (n, n): which entries of θ share a row
        for _ in range(max(1, math.ceil(math.log2(len(columns))))):
            reach = (reach @ reach > 0).to(columns)
        logs = columns.log2().expand(len(columns), -1)
        together = reach > 0
        most = torch.where(together, logs, -torch.inf).amax(1)
        least = torch.where(together, logs, torch.inf).amin(1)
        gaps = torch.where(together.any(1), most - least, 0.0)
        return float(torch.exp2(2 * gaps.max()))


def _steps(theta: Tensor, J: Tensor) -> Tensor:
    columns = equilibrated(J)[1].log2()
    live = (J != 0).any(0)
    mean = columns[live].mean() if live.any() else columns.new_zeros(())
    units = torch.where(live, columns, mean)
    # θ is so many units in size, in the median of those that φ feels to first order, else of all that are not zero; one
    # that φ does not feel gets the mean unit.
    known = live & (theta != 0)
    known = known if known.any() else theta != 0
    size = (theta.abs().log2() - units)[known].median() if known.any() else -mean
    return torch.where(theta != 0, theta.abs(), torch.exp2(units + size))


def _normals(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like)


def _analytic(phi: Map, theta: Tensor, step: Tensor) -> bool:
    """Whether φ is a quickly convergent Chebyshev series from θ − step to θ + step: no switch, no pole."""
    k = torch.arange(_NODES, dtype=theta.dtype, device=theta.device)
    angles = (k + 0.5) * (math.pi / _NODES)
    values = torch.stack([phi(theta + x * step).reshape(-1) for x in angles.cos()])
    if not bool(values.isfinite().all()):
        return False
    size = (torch.cos(k[:, None] * angles) @ values).abs() * (2 / _NODES)
    noise = 1e3 * torch.finfo(theta.dtype).eps * values.abs().amax(0)
    return bool((size[-_LAST:].amax(0) <= _TAIL * size[1:].amax(0) + noise).all())
