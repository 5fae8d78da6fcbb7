"""Relaxed balanced profiles: S' + [Wᵀ, W] = λ(s) I."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..caution import warn
from ..checks import goes_with, of_members, real, underived
from ..depth.collocation import Collocation
from ..depth.engine import multiply
from ..depth.grid import DepthGrid, Profile, sample
from ..depth.probes import probes
from ..matrices import Turning, lost_values, orientation_preserving, polar, skew_log, slogdet
from .random import Smooth, SmoothNumber

# Twist and shift are integrated once on panels of this order: 16 of them, more while they are not resolved, up to 256,
# or 2048 for a fast twist, and no more than so many numbers at the nodes.
_ORDER, _FEWEST, _ROUGH, _FAST, _MOST_NUMBERS, _RESOLVED = 16, 16, 256, 2048, 2**23, 1e-11

# Radians that the frame turns on one panel: as is aimed at, and above which it is hopeless.
_TURN, _TOO_FAST = 2.0, 8.0


_MADE = "a profile is made"


@dataclass(frozen=True, eq=False)
class RelaxedBalanced:
    """W(s) = R (E (log H − ½∫₀¹Λ) Eᵀ + B) Rᵀ + ½Λ(s) I + Ω(s), with R' = ΩR, E = exp(sB), Λ = ∫₀ˢ λ.

    Made by `relaxed_balanced`. B is the constant skew matrix that brings R E to that of z₀ at s = 1; z₀ is kept as
    `end_to_end`: what P(1,0) has been asked to be.
    """

    stretch: Tensor
    turn: Turning
    twist: Callable[[float], Tensor] | None
    grid: DepthGrid
    rotation: Tensor
    height: Tensor
    end_to_end: Tensor

    def __call__(self, s: float) -> Tensor:
        return self.at(torch.tensor([s], dtype=torch.float64, device="cpu")).squeeze(-3)

    def at(self, nodes: Tensor) -> Tensor:
        s = nodes.to(self.grid.nodes)
        there = self.grid.interpolation(s)
        E = self.turn(s)
        still = _turned(self.stretch.unsqueeze(-3).expand_as(E), E) + self.turn.B.unsqueeze(-3)
        W = _turned(still, there(self.rotation))
        W.diagonal(dim1=-2, dim2=-1).add_(there(self.height).squeeze(-1), alpha=0.5)
        return W if self.twist is None else W + _skew(self.twist, s, self.stretch).to(W)


def _turned(M: Tensor, Q: Tensor) -> Tensor:
    """QMQᵀ of matrices `(..., n, d, d)`."""
    return multiply(multiply(Q, M), Q.mT)


def relaxed_balanced(
    z0: Tensor, shift: Callable[[float], float] | None = None, twist: Callable[[float], Tensor] | None = None
) -> Profile:
    """A relaxed balanced profile, S' + [Wᵀ, W] = λ(s) I, with P(1,0) = z₀.

    Parameters
    ----------
    z0 : Tensor (..., d, d)
        The end-to-end map at the start, det z₀ > 0.
    shift : callable, float s → float, optional
        λ(s); zero (balanced) when left out.
    twist : callable, float s → skew Tensor (d, d), optional
        Ω(s), the rotation speed of the frame along depth. A constant one is added in the moving frame so that the
        frame ends at the rotation of z₀ whatever Ω is; it is the only one when `twist` is left out.

    Returns
    -------
    callable, float s → Tensor (..., d, d)

    Raises
    ------
    TypeError, ValueError
        If z₀ is not a finite square floating-point matrix with det > 0, shift is not a finite number or twist not a
        skew matrix of the right size somewhere, or too fast to be resolved.

    Notes
    -----
    Section on relaxed balance in docs/math.md; arXiv 2508.07370. P(1,0) = z₀ holds to about 1e-13: twist and shift are
    resolved to 1e-11 by polynomials on up to 256 panels of 16 nodes, or 2048 where the twist is fast (up to about 4000
    radians). They are looked at in 1597 depths beside the nodes, at most 7e-4 apart, and in fewer for d > 36, unless
    they are made of a few cosines, as those of `INITIALS` are; what is narrower can be missed. Where they are not
    resolved, as with a jump, a RuntimeWarning says by how much P(1,0) misses z₀. Another one tells of a z₀ that is
    singular up to round-off: the logarithm of its least singular value, which W holds, is then that of round-off.

    Examples
    --------
    >>> rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> W0 = nf.relaxed_balanced(2 * torch.eye(2), shift=lambda s: 0.5 * s, twist=lambda s: 3 * s * rotation)
    >>> grid = nf.DepthGrid.gauss(panels=4, order=12)
    >>> W = torch.stack([W0(float(s)) for s in grid.nodes])
    >>> float((nf.Collocation(grid).product(W) - 2 * torch.eye(2)).abs().max()) < 1e-11
    True
    >>> float(nf.laws.relaxed_balance_defect(grid, W)) < 1e-8
    True
    """
    underived("z0", z0, _MADE)
    orientation_preserving("z0", z0)
    for name, function, returned in (("shift", shift, "number"), ("twist", twist, "skew (d, d) tensor")):
        if function is not None and (not callable(function) or isinstance(function, type)):
            raise TypeError(
                f"{name} must be a function of a float s that returns a {returned}, got {type(function).__name__}; "
                f"for a constant one use lambda s: {name}"
            )
    _warn_singular(z0.detach())
    wanted, stretch = polar(z0.double().cpu())
    lost = ~(slogdet(wanted)[0] > 0)
    if bool(lost.any()):
        raise ValueError(
            f"z0{of_members(lost)} must have det > 0, and is singular up to round-off, so that its det has no sign: "
            f"start from a z0 that is not singular"
        )
    frame = _frame(z0, shift, twist)
    stretch = stretch - frame.grid.integrate(frame.height) / 2 * torch.eye(
        z0.shape[-1], dtype=torch.float64, device="cpu"
    )
    turn = Turning(skew_log(frame.end.mT @ wanted))
    asked = z0.detach().double().cpu().clone()
    profile = RelaxedBalanced(stretch, turn, twist, frame.grid, frame.rotation, frame.height, asked)
    if frame.unresolved:
        _warn_unresolved(profile, frame.unresolved)
    if z0.dtype == torch.float64 and z0.device.type == "cpu":
        return profile
    return Cast(profile, z0)


def balanced(z0: Tensor) -> Profile:
    """The simplest balanced profile with P(1,0) = z₀: λ = 0 and a frame that turns evenly. See `relaxed_balanced`.

    Examples
    --------
    >>> W0 = nf.balanced(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    >>> bool(torch.allclose(W0(0.3), torch.diag(torch.tensor([math.log(4), 0.0]))))  # z₀ = e^W
    True
    """
    return relaxed_balanced(z0)


def _warn_singular(z0: Tensor) -> None:
    """Warns of a z₀ whose least singular value, of which W has the logarithm, is round-off."""
    sigma = torch.linalg.svdvals(z0)
    lost = lost_values(z0, sigma)
    if bool(lost.any()):
        ratio = float((torch.where(lost, sigma, 0.0).amax(-1) / sigma[..., 0]).max())
        warn(
            f"z0{of_members(lost.any(-1))} is singular up to round-off: the ratio {ratio:.2g} of its least singular "
            f"value to its largest has no true digit, the sign of det z0 neither, and W and its training depend on the "
            f"logarithm: start from a z0 that is not singular"
        )


class _Frame(NamedTuple):
    """R' = ΩR and Λ' = λ on a grid, R at its end, and which of the two is resolved how badly, by name."""

    grid: DepthGrid
    rotation: Tensor
    height: Tensor
    end: Tensor
    unresolved: dict[str, float]


def _frame(z0: Tensor, shift: Callable[[float], float] | None, twist: Callable[[float], Tensor] | None) -> _Frame:
    """The frame on the coarsest grid that resolves twist and shift, at its nodes and where it has none."""
    d = z0.shape[-1]
    omega = (lambda nodes: nodes.new_zeros(len(nodes), d, d)) if twist is None else partial(_skew, twist, like=z0)
    lam = (lambda nodes: nodes.new_zeros(len(nodes), 1, 1)) if shift is None else partial(_numbers, shift)
    depths = probes(d * d)
    seen = {name: at(depths) for name, at, own in (("twist", omega, twist), ("shift", lam, shift)) if not _is_slow(own)}
    affordable = max(_FEWEST, _MOST_NUMBERS // (_ORDER * omega(depths[:1]).numel()))
    panels, speed = _FEWEST, _fastest(seen["twist"]) if "twist" in seen else 0.0
    while panels * _TURN < speed and 2 * panels <= min(_FAST, affordable):
        panels *= 2
    if panels * _TOO_FAST < speed:
        raise ValueError(
            f"twist(s) is too fast, got {speed:.4g} radians per unit of depth: with matrices of this size at most "
            f"{panels * _TOO_FAST:.4g} can be resolved; use a smaller one"
        )
    while True:
        grid = DepthGrid.gauss(panels, _ORDER)
        found = {"twist": omega(grid.nodes), "shift": lam(grid.nodes)}
        rotation, _, end = Collocation(grid).propagators(found["twist"])
        errors = dict.fromkeys(found, 0.0)
        errors |= {name: max(grid.tail(found[name]), grid.misses(found[name], depths, seen[name])) for name in seen}
        slant = multiply(rotation.mT, rotation) - torch.eye(d, dtype=rotation.dtype, device=rotation.device)
        errors["twist"] = max(errors["twist"], grid.tail(rotation), float(slant.abs().max()))
        unresolved = {name: error for name, error in errors.items() if not error <= _RESOLVED}
        if not unresolved or 4 * panels > min(_ROUGH, affordable):
            return _Frame(grid, rotation, grid.antiderivative(found["shift"]), end, unresolved)
        panels *= 4


def _is_slow(function: Any) -> bool:
    """Whether a twist or shift is known to be resolved: it is of cosines whose phases turn slowly, and turns slowly."""
    if not isinstance(function, (Smooth, SmoothNumber)):
        return function is None
    if math.pi * (len(function.coefficients) - 1) > _FEWEST * _TURN:
        return False
    if isinstance(function, SmoothNumber):
        return True
    return function.skew and float(torch.linalg.matrix_norm(function.coefficients).sum()) <= _FEWEST * _TURN


def _fastest(omega: Tensor) -> float:
    """The largest spectral norm, among the matrices with the largest Frobenius norms; a bound that is small enough."""
    flat = omega.flatten(0, -3)
    norms = torch.linalg.matrix_norm(flat)
    if (bound := float(norms.max())) <= _FEWEST * _TURN:
        return bound
    return float(torch.linalg.matrix_norm(flat[norms.topk(min(8, len(flat))).indices], ord=2).max())


@dataclass(frozen=True, eq=False)
class Cast:
    """A profile in the dtype and on the device of another tensor."""

    profile: RelaxedBalanced
    like: Tensor

    @property
    def end_to_end(self) -> Tensor:
        return self.profile.end_to_end

    def __call__(self, s: float) -> Tensor:
        return self.profile(s).to(self.like)

    def at(self, nodes: Tensor) -> Tensor:
        return self.profile.at(nodes).to(self.like)


def _item(value: Any) -> Any:
    """The number in a tensor or array of one entry; anything else as it is."""
    return value.item() if tuple(getattr(value, "shape", (0,))) in ((), (1,)) else value


def _numbers(shift: Callable[[float], float], nodes: Tensor) -> Tensor:
    """λ at depths (n,), as matrices (n, 1, 1)."""
    if isinstance(shift, SmoothNumber):
        return shift.at(nodes)[:, None, None]
    values = []
    for s in nodes.tolist():
        value = shift(s)
        underived(f"shift({s:.6g})", value, _MADE)
        values.append(real(f"shift({s:.6g})", _item(value)))
    return torch.tensor(values, dtype=torch.float64, device="cpu")[:, None, None]


def _skew(twist: Callable[[float], Tensor], nodes: Tensor, like: Tensor) -> Tensor:
    """Ω at depths (n,), checked to be skew and of the size and the leading axes of `like`: `(..., n, d, d)`."""
    nodes = nodes.cpu()
    values = twist.at(nodes) if isinstance(twist, Smooth) else sample(lambda s: twist(s), nodes, "twist")
    underived("twist(s)", values, _MADE)
    values = values.double().cpu()
    d, batch, members = like.shape[-1], tuple(like.shape[:-2]), tuple(values.shape[:-3])
    if values.shape[-1] != d:
        got = (*members, *values.shape[-2:])
        raise ValueError(f"twist(s) must have the size of z0, ({d}, {d}), got shape {got}")
    if not goes_with(members, batch):
        raise ValueError(f"twist(s) has leading axes {members} but z0 has {batch}: return one matrix for all of z0")
    if isinstance(twist, Smooth) and twist.skew:
        return values
    asymmetry = float((values + values.mT).abs().max())
    if asymmetry > 1e-10 * (1 + float(values.abs().max())):
        raise ValueError(f"twist(s) must be skew (Ω + Ωᵀ = 0), got |Ω + Ωᵀ| = {asymmetry:.3g}; use (A - A.mT)/2")
    return values


def _warn_unresolved(profile: RelaxedBalanced, unresolved: dict[str, float]) -> None:
    """Says by how much P(1,0) misses z₀, as twice as many nodes have it."""
    fine = DepthGrid.gauss(2 * profile.grid.panels, _ORDER)
    z = Collocation(fine).product(profile.at(fine.nodes))
    missed = float(torch.linalg.matrix_norm(z - profile.end_to_end).max())
    reasons = " and ".join(f"{name}(s) is resolved to {error:.1e} only" for name, error in unresolved.items())
    warn(
        f"{reasons} by {profile.grid.panels} panels of {_ORDER} nodes (it is rough, or oscillates fast in s): P(1,0) "
        f"misses z0 by about {missed:.1e}, and relaxed balance holds to no more than that"
    )
