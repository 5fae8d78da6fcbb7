"""A point θ with its round-off and its units, and generic points near it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .derivatives import Map, hessians, jacobian
from .ranks import ABOVE_ROUND_OFF
from .units import Measured, equilibrated

# By how many units in the last place θ is shaken, and how often, to see the round-off of what is computed there.
_SHAKEN, _TIMES = 4, 3

# How far a nearby point is, as a part of every entry of θ: as near as it takes for φ to be analytic in between.
_RADII = (0.1, 0.01, 1e-3)

# Chebyshev coefficients of φ, and of ∂φ, on a segment: the last of so many are this part of the largest where φ is
# analytic. Their slope in the middle is then known to about _TAIL × _NODES², and autograd's is another one beyond this.
_NODES, _LAST, _TAIL, _DENIED = 21, 5, 1e-7, 1e-3

# ∂φ jumps at θ where round-off changes an entry by this part of its size nearby.
_TORN = 1e-6


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
        """A random point near θ, and whether φ is seen to be analytic in between.

        Raises ValueError where it is, and its derivatives by autograd are not its own.
        """
        direction = self.steps * _normals(self.theta, generator)
        for radius in _RADII:
            line = _Line.through(phi, self, radius * direction)
            if line is not None:
                line.check()
                return Place._with(self.theta + radius * direction, self.steps, generator), True
        return Place._with(self.theta + _RADII[-1] * direction, self.steps, generator), False

    def torn(self, phi: Map) -> bool:
        """Whether round-off on either side of θ changes an entry of ∂φ(θ) by a visible part of its size nearby.

        There φ has no derivative, or one that is nothing but round-off, which only a smooth neighbourhood tells.
        """
        shaken = torch.stack(self.samples[1:]) - self.theta
        here, there = (
            torch.stack([jacobian(phi, self.theta + sign * size * v) for v in shaken for sign in (1, -1)])
            for size in (1.0, _RADII[-1] / (_SHAKEN * torch.finfo(shaken.dtype).eps))
        )
        jump = (here - jacobian(phi, self.theta)).abs().amax(0)
        return bool((jump > _TORN * torch.cat((here, there)).abs().amax(0)).any())

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


@dataclass(frozen=True, eq=False)
class _Line:
    """φ and ∂φ from θ − step to θ + step as Chebyshev series, `(k, m)` and `(k, m, n)`, and the round-off in them."""

    phi: Map
    theta: Tensor
    step: Tensor
    series: tuple[Tensor, Tensor]
    noise: tuple[Tensor, Tensor]

    @classmethod
    def through(cls, phi: Map, place: Place, step: Tensor) -> _Line | None:
        """The line through a place; None where a series does not converge quickly: there is a switch or a pole.

        A switch shows in ∂φ, entry by entry: in φ one of a high order, or of a small part of z, is too small.
        """
        theta = place.theta
        k = torch.arange(_NODES, dtype=theta.dtype, device=theta.device)
        angles = (k + 0.5) * (math.pi / _NODES)
        points = theta + angles.cos()[:, None] * step
        values = torch.stack([phi(point).reshape(-1) for point in points])
        if not bool(values.isfinite().all()):
            return None
        transform = torch.cos(k[:, None] * angles) * (2 / _NODES)
        noise = 1e3 * torch.finfo(theta.dtype).eps * values.abs().amax(0)
        series = transform @ values
        if not _converges(series, noise):
            return None
        slopes, shaken = (
            torch.stack([jacobian(phi, point) for point in there])
            for there in (points, points + (place.samples[1] - theta))
        )
        if not bool(slopes.isfinite().all()):
            return None
        apart = (shaken - slopes).abs()
        apart[_NODES // 2] = 0  # θ itself, where a switch is no round-off
        of_slopes = ABOVE_ROUND_OFF * torch.maximum(apart.amax(0), torch.finfo(theta.dtype).eps * slopes.abs().amax(0))
        series_of_slopes = (transform @ slopes.flatten(1)).unflatten(1, slopes.shape[1:])
        if not _converges(series_of_slopes, of_slopes):
            return None
        return cls(phi, theta, step, (series, series_of_slopes), (noise, of_slopes))

    def check(self) -> None:
        """Raises ValueError unless the first and second derivatives by autograd are the slopes of the series."""
        first = jacobian(self.phi, self.theta)
        second = hessians(self.phi, self.theta, self.step[None])[0]
        claims = ("first", first @ self.step, first.abs() @ self.step.abs()), ("second", second, second.abs())
        for (name, claimed, terms), series, noise in zip(claims, self.series, self.noise, strict=True):
            k = torch.arange(_NODES, dtype=series.dtype, device=series.device)
            measured = torch.tensordot(k * torch.sin(k * (math.pi / 2)), series, dims=1)  # the slope of cos(k arccos x)
            doubt = _DENIED * (series[1:].abs().sum(0) + terms) + _NODES * noise
            gap = (measured - claimed).abs() - doubt
            if bool((gap > 0).any()):
                at = int(gap.argmax())
                raise ValueError(
                    f"phi has {name} derivatives that are not its own: along one direction autograd gives "
                    f"{float(claimed.flatten()[at]):.6g} where differences give {float(measured.flatten()[at]):.6g}; "
                    f"write all of it in torch, without detach, or mend its backward"
                )


def _converges(series: Tensor, noise: Tensor) -> bool:
    """Whether the last coefficients are small beside the largest, or round-off."""
    size = series.abs()
    return bool((size[-_LAST:].amax(0) <= _TAIL * size[1:].amax(0) + noise).all())
