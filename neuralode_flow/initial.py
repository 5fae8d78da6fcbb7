"""Initialisations: profiles W0(s) of the continuous model, and relaxed balanced finite networks.

A profile is a function of the depth s; it may have a method `at(nodes)` that evaluates many depths at once, and a
method `layers(nodes)` when the layers of a finite network are not its values (rough layers).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .checks import count, float_tensor, goes_with, placed, positive, random_source, real, same_kind, square
from .depth import chain
from .depth.collocation import Collocation
from .depth.grid import DepthGrid, Profile, sample
from .depth.probes import probes
from .kernels import log_factors
from .matrices import orientation_preserving, polar, random_orthogonal, real_log, skew_log
from .registry import Registry
from .signatures import Members, Seed

INITIALS: Registry[Callable[..., Profile]] = Registry("initialisation")

# Twist and shift are integrated once on panels of this order: 16 of them, more while they are not resolved, up to 256,
# or 2048 for a fast twist, and no more than so many numbers at the nodes.
_ORDER, _FEWEST, _ROUGH, _FAST, _MOST_NUMBERS, _RESOLVED = 16, 16, 256, 2048, 2**23, 1e-11

# Radians that the frame turns on one panel: as is aimed at, and above which it is hopeless.
_TURN, _TOO_FAST = 2.0, 8.0


@dataclass(frozen=True, eq=False)
class Constant:
    """W0(s) = W for every s; W of shape `(..., d, d)`."""

    W: Tensor

    def __call__(self, s: float) -> Tensor:
        return self.W

    def at(self, nodes: Tensor) -> Tensor:
        return self.W.unsqueeze(-3).expand(*self.W.shape[:-2], len(nodes), *self.W.shape[-2:]).clone()


@dataclass(frozen=True, eq=False)
class Smooth:
    """W0(s) = Σ_k a_k cos(kπs): `coefficients` a_k of shape `(n, d, d)`."""

    coefficients: Tensor

    def __call__(self, s: float) -> Tensor:
        return self.at(torch.tensor([s], dtype=torch.float64)).squeeze(-3)

    def at(self, nodes: Tensor) -> Tensor:
        k = torch.arange(len(self.coefficients)).to(self.coefficients)
        waves = torch.cos(torch.pi * nodes.to(self.coefficients)[:, None] * k)
        return torch.einsum("nk,kab->nab", waves, self.coefficients)


@dataclass(frozen=True, eq=False)
class RelaxedBalanced:
    """W(s) = Q (log H − ½∫₀¹Λ) Qᵀ + ½Λ(s) I + Ω(s) + R B Rᵀ, with R' = ΩR, Q = R exp(sB), Λ = ∫₀ˢ λ.

    Made by `relaxed_balanced`. B is the constant skew matrix that brings Q(1) to the rotation of z₀, which is kept as
    `end_to_end`: what P(1,0) has been asked to be.
    """

    stretch: Tensor
    turn: Tensor
    twist: Callable[[float], Tensor] | None
    grid: DepthGrid
    rotation: Tensor
    height: Tensor
    end_to_end: Tensor

    def __call__(self, s: float) -> Tensor:
        return self.at(torch.tensor([s], dtype=torch.float64)).squeeze(-3)

    def at(self, nodes: Tensor) -> Tensor:
        s = nodes.to(self.grid.nodes)
        R = self.grid.interpolate(self.rotation, s)
        Q = R @ torch.linalg.matrix_exp(s[:, None, None] * self.turn.unsqueeze(-3))
        W = Q @ self.stretch.unsqueeze(-3) @ Q.mT + R @ self.turn.unsqueeze(-3) @ R.mT
        W = W + self.grid.interpolate(self.height, s) / 2 * torch.eye(W.shape[-1]).to(W)
        return W if self.twist is None else W + _skew(self.twist, s, self.stretch).to(W)


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
    radians). They are looked at in 1597 depths beside the nodes, at most 7e-4 apart, and in fewer for d > 36; what is
    narrower can be missed. Where they are not resolved, as with a jump, a RuntimeWarning says by how much P(1,0)
    misses z₀.
    """
    orientation_preserving("z0", z0)
    for name, function, returned in (("shift", shift, "number"), ("twist", twist, "skew (d, d) tensor")):
        if function is not None and (not callable(function) or isinstance(function, type)):
            raise TypeError(
                f"{name} must be a function of a float s that returns a {returned}, got {type(function).__name__}; "
                f"for a constant one use lambda s: {name}"
            )
    wanted, stretch = polar(z0.double().cpu())
    frame = _frame(z0, shift, twist)
    stretch = stretch - frame.grid.integrate(frame.height) / 2 * torch.eye(z0.shape[-1]).double()
    turn = skew_log(frame.end.mT @ wanted)
    asked = z0.detach().double().cpu()
    profile = RelaxedBalanced(stretch, turn, twist, frame.grid, frame.rotation, frame.height, asked)
    if frame.unresolved:
        _warn_unresolved(profile, frame.unresolved)
    if z0.dtype == torch.float64 and z0.device.type == "cpu":
        return profile
    return Cast(profile, z0)


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
    omega = (lambda nodes: torch.zeros(len(nodes), d, d).double()) if twist is None else partial(_skew, twist, like=z0)
    lam = (lambda nodes: torch.zeros(len(nodes), 1, 1).double()) if shift is None else partial(_numbers, shift)
    depths = probes(d * d)
    seen = {"twist": omega(depths), "shift": lam(depths)}
    affordable = max(_FEWEST, _MOST_NUMBERS // (_ORDER * seen["twist"][..., 0, :, :].numel()))
    panels, speed = _FEWEST, _fastest(seen["twist"])
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
        errors = {name: max(grid.tail(found[name]), grid.misses(found[name], depths, seen[name])) for name in found}
        slant = rotation.mT @ rotation - torch.eye(d).to(rotation)
        errors["twist"] = max(errors["twist"], grid.tail(rotation), float(slant.abs().max()))
        unresolved = {name: error for name, error in errors.items() if not error <= _RESOLVED}
        if not unresolved or 4 * panels > min(_ROUGH, affordable):
            return _Frame(grid, rotation, grid.antiderivative(found["shift"]), end, unresolved)
        panels *= 4


def _fastest(omega: Tensor) -> float:
    """The largest spectral norm, among the matrices with the largest Frobenius norms."""
    flat = omega.flatten(0, -3)
    largest = torch.linalg.matrix_norm(flat).topk(min(8, len(flat))).indices
    return float(torch.linalg.matrix_norm(flat[largest], ord=2).max())


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
    values = [real(f"shift({s:.6g})", _item(shift(s))) for s in nodes.tolist()]
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def _skew(twist: Callable[[float], Tensor], nodes: Tensor, like: Tensor) -> Tensor:
    """Ω at depths (n,), checked to be skew and of the size and the leading axes of `like`: `(..., n, d, d)`."""
    nodes = nodes.cpu()
    values = twist.at(nodes) if isinstance(twist, Smooth) else sample(lambda s: twist(s), nodes, "twist")
    values = values.double().cpu()
    d, batch, members = like.shape[-1], tuple(like.shape[:-2]), tuple(values.shape[:-3])
    if values.shape[-1] != d:
        got = (*members, *values.shape[-2:])
        raise ValueError(f"twist(s) must have the size of z0, ({d}, {d}), got shape {got}")
    if not goes_with(members, batch):
        raise ValueError(f"twist(s) has leading axes {members} but z0 has {batch}: return one matrix for all of z0")
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
    warnings.warn(
        f"{reasons} by {profile.grid.panels} panels of {_ORDER} nodes (it is rough, or oscillates fast in s): P(1,0) "
        f"misses z0 by about {missed:.1e}, and relaxed balance holds to no more than that",
        RuntimeWarning,
        stacklevel=3,
    )


def relaxed_balanced_layers(z0: Tensor, shifts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """An exactly relaxed balanced network of Euler layers: U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = λ_k I, U_L … U_1 = z₀.

    U_k = Q_k diag(√(x_a + c_k)) Q_{k−1}ᵀ, where x_a solves Π_k (x_a + c_k) = σ_a², Q_0 = V, Q_L = U for
    z₀ = U diag(σ) Vᵀ, and the frames between are free (the gauge).

    Parameters
    ----------
    z0 : Tensor (..., d, d)
        Invertible; det z₀ > 0 without a generator.
    shifts : Tensor (L,)
        c_k = λ_1 + … + λ_{k−1}, c_1 = 0, of any signs: the argument of `DividedDifference`.
    generator : torch.Generator, optional
        Draws Haar-distributed frames. Without it the frames turn evenly from V to U, so that the layers sample a
        smooth profile and converge to the continuous model.

    Returns
    -------
    Tensor (..., L, d, d)
        W_k = L(U_k − I), a state of ``FiniteFlow(L, loss, "euler")``.

    Raises
    ------
    TypeError, ValueError
        If z₀ is singular, a shift is not finite, or the root x_a cannot be held in floating point.
    """
    square("z0", z0)
    float_tensor("shifts", shifts, ndim=1)
    if shifts.ndim != 1:
        raise ValueError(f"shifts must have shape (L,), got {tuple(shifts.shape)}")
    same_kind("shifts", shifts, "z0", z0)
    if generator is not None:
        random_source("generator", generator)
    L, d = len(shifts), z0.shape[-1]
    U, sigma, Vh = torch.linalg.svd(z0)
    if bool((sigma.amin(-1) <= torch.finfo(z0.dtype).eps * sigma.amax(-1)).any()):
        raise ValueError(f"z0 must be invertible, got singular values from {sigma.min():.3g} to {sigma.max():.3g}")
    if generator is None:
        orientation_preserving("z0", z0)
        turn = skew_log(U @ Vh)
        inner = [torch.linalg.matrix_exp(turn * (k / L)) @ Vh.mT for k in range(1, L)]
    else:
        inner = [random_orthogonal(tuple(z0.shape), generator).to(z0) for _ in range(1, L)]
    frames = torch.stack([Vh.mT, *inner, U], dim=-3)
    scales = torch.exp(log_factors(sigma, shifts.to(z0)) / 2).mT
    layers = frames[..., 1:, :, :] * scales.unsqueeze(-2) @ frames[..., :-1, :, :].mT
    error = float(torch.linalg.matrix_norm(chain.product(layers) - z0).max())
    if not error <= 1e-8 * float(sigma.max()):
        raise ValueError(
            f"shifts have no admissible root in {z0.dtype}: the layers miss z0 by {error:.3g}; "
            f"got shifts from {shifts.min():.3g} to {shifts.max():.3g}, use smaller ones"
        )
    return L * (layers - torch.eye(d).to(z0))


def balanced(z0: Tensor) -> Profile:
    """The simplest balanced profile with P(1,0) = z₀: λ = 0 and a frame that turns evenly. See `relaxed_balanced`."""
    return relaxed_balanced(z0)


def identity(d: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Profile:
    """W = 0, so z₀ = I; balanced."""
    placed(dtype, device)
    return Constant(torch.zeros(count("d", d), d, dtype=dtype, device=device))


def control(z0: Tensor) -> Profile:
    """The negative control W = log z₀, constant: the same z₀, but not relaxed balanced unless z₀ is normal.

    Raises
    ------
    ValueError
        If z₀ is singular or has no real logarithm.
    """
    square("z0", z0)
    sigma = torch.linalg.svdvals(z0)
    if bool((sigma.amin(-1) <= torch.finfo(z0.dtype).eps * sigma.amax(-1)).any()):
        raise ValueError(
            f"z0 has no real logarithm: it is singular, with singular values from {float(sigma.min()):.3g} to "
            f"{float(sigma.max()):.3g}; choose another matrix"
        )
    return Constant(real_log("z0", z0))


def smooth(d: int, scale: float, generator: torch.Generator, terms: int = 4) -> Profile:
    """A smooth random profile Σ_k a_k cos(kπs), not relaxed balanced.

    The entries of a_k are independent and normal, of size scale/(1 + k)/√d.

    Raises
    ------
    TypeError, ValueError
        If d or terms is not an integer of at least 1, scale not above 0, or generator none of torch's.
    """
    size, k = positive("scale", scale), torch.arange(count("terms", terms), dtype=torch.float64)
    weights = size / (1 + k) / math.sqrt(count("d", d))
    noise = torch.randn(terms, d, d, dtype=torch.float64, generator=random_source("generator", generator))
    return Smooth(weights[:, None, None] * noise)


@dataclass(frozen=True, eq=False)
class Detour:
    """The profile of the path P̃(s,0) = exp(β sin(πs) N) P(s,0): the same end-to-end map by another way.

    W̃ = βπ cos(πs) N + e^{B} W e^{−B} with B = β sin(πs) N. It keeps z₀ and, unless N is skew, breaks relaxed balance.

    Raises
    ------
    TypeError, ValueError
        If profile is no function, or direction no finite square matrix.
    """

    profile: Profile
    direction: Tensor

    def __post_init__(self) -> None:
        if not callable(self.profile) or isinstance(self.profile, type):
            got = type(self.profile).__name__
            raise TypeError(f"profile must be a function of a float s that returns a (d, d) tensor, got {got}")
        square("direction", self.direction)

    def __call__(self, s: float) -> Tensor:
        return self.at(torch.tensor([s], dtype=torch.float64)).squeeze(-3)

    def at(self, nodes: Tensor) -> Tensor:
        W = sample(self.profile, nodes)
        s = torch.pi * nodes.to(W)[:, None, None]
        B = torch.sin(s) * self.direction.to(W)
        turned = torch.linalg.matrix_exp(B) @ W @ torch.linalg.matrix_exp(-B)
        return torch.pi * torch.cos(s) * self.direction.to(W) + turned


@dataclass(frozen=True, eq=False)
class Rough:
    """Layers W_k = W(s_k) + ε_k with independent normal entries of size `noise`; `members` networks at once.

    The continuous model starts from W itself; finite networks reach it at order about ½ only, which is `order`.

    Raises
    ------
    TypeError, ValueError
        If profile is no function, noise is not above 0, members is no integer of at least 1, or seed none in [0, 2⁶³).
    """

    order: ClassVar[float] = 0.5

    profile: Profile
    noise: float
    members: int
    seed: int

    def __post_init__(self) -> None:
        if not callable(self.profile) or isinstance(self.profile, type):
            got = type(self.profile).__name__
            raise TypeError(f"profile must be a function of a float s that returns a (d, d) tensor, got {got}")
        positive("noise", self.noise)
        count("members", self.members)
        count("seed", self.seed, least=0, most=2**63 - 1)

    def __call__(self, s: float) -> Tensor:
        return self.profile(s)

    def at(self, nodes: Tensor) -> Tensor:
        return sample(self.profile, nodes)

    def layers(self, nodes: Tensor) -> Tensor:
        """`(members, L, d, d)`; other depths draw other noise from the same seed."""
        base = sample(self.profile, nodes)
        generator = torch.Generator().manual_seed(self.seed + len(nodes))
        noise = torch.randn(self.members, *base.shape, dtype=torch.float64, generator=generator)
        return base + self.noise * noise.to(base)


def random_twist(d: int, size: float, generator: torch.Generator) -> Callable[[float], Tensor]:
    """A smooth random skew Ω(s) = Σ_k A_k cos(kπs)/(1+k), k < 4, with ‖A_0‖ about `size` in the spectral norm."""
    raw = torch.randn(4, d, d, dtype=torch.float64, generator=random_source("generator", generator))
    scale = size / (1 + torch.arange(4, dtype=torch.float64)) / (2 * math.sqrt(2 * d))
    return Smooth(scale[:, None, None] * (raw - raw.mT))


def random_shift(size: float, generator: torch.Generator) -> Callable[[float], float]:
    """A smooth random λ(s) = size · Σ_k a_k cos(kπs)/(1+k), k < 4, with normal a_k."""
    a = torch.randn(4, dtype=torch.float64, generator=random_source("generator", generator)).tolist()
    return lambda s: size * sum(a[k] * math.cos(k * math.pi * s) / (1 + k) for k in range(4))


def random_direction(d: int, size: float, generator: torch.Generator) -> Tensor:
    """A normal random matrix (d, d) with a Frobenius norm of about `size`."""
    return size / d * torch.randn(d, d, dtype=torch.float64, generator=random_source("generator", generator))


@INITIALS.register("identity")
def _identity(z0: Tensor) -> Profile:
    return identity(z0.shape[-1], dtype=z0.dtype, device=z0.device)


@INITIALS.register("balanced")
def _balanced(z0: Tensor) -> Profile:
    return relaxed_balanced(z0)


@INITIALS.register("relaxed_balanced")
def _relaxed_balanced(z0: Tensor, twist: float = 1.0, shift: float = 0.5, seed: Seed = 0) -> Profile:
    generator = torch.Generator().manual_seed(seed)
    omega = random_twist(z0.shape[-1], real("twist", twist), generator)
    return relaxed_balanced(z0, random_shift(real("shift", shift), generator), omega)


@INITIALS.register("control")
def _control(z0: Tensor, shear: float = 1.0, seed: Seed = 0) -> Profile:
    """log of z₀ times a random unit upper triangular matrix, so that the start is not normal even for z₀ = I."""
    generator = torch.Generator().manual_seed(seed)
    d = z0.shape[-1]
    noise = torch.randn(d, d, dtype=torch.float64, generator=generator).to(z0) / math.sqrt(d)
    return control(z0 @ (torch.eye(d).to(z0) + real("shear", shear) * torch.triu(noise, diagonal=1)))


@INITIALS.register("smooth")
def _smooth(z0: Tensor, scale: float = 1.0, seed: Seed = 0) -> Profile:
    return smooth(z0.shape[-1], scale, torch.Generator().manual_seed(seed))


@INITIALS.register("detour")
def _detour(z0: Tensor, twist: float = 1.0, shift: float = 0.5, detour: float = 0.5, seed: Seed = 0) -> Profile:
    base = _relaxed_balanced(z0, twist, shift, seed)
    return Detour(base, random_direction(z0.shape[-1], real("detour", detour), torch.Generator().manual_seed(seed)))


@INITIALS.register("rough")
def _rough(
    z0: Tensor, twist: float = 1.0, shift: float = 0.5, noise: float = 0.5, members: Members = 16, seed: Seed = 0
) -> Profile:
    base = _relaxed_balanced(z0, twist, shift, seed)
    return Rough(base, positive("noise", noise), count("members", members), seed)
