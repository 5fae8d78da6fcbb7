"""Initialisations by name, as a config asks for them: each makes a profile from z₀, sizes and a seed."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ..checks import count, positive, real, seeded
from ..depth.grid import Profile
from ..signatures import CountsWith, Members, Seed
from .base import INITIALS, control, identity
from .detour import Detour
from .random import random_direction, random_shift, random_twist, smooth
from .relaxed import relaxed_balanced
from .rough import Rough

_OfProfile = Annotated[Seed, CountsWith(("twist", "shift"))]


@INITIALS.register("identity")
def _identity(z0: Tensor) -> Profile:
    """W = 0: the identity map."""
    return identity(z0.shape[-1], dtype=z0.dtype, device=z0.device)


@INITIALS.register("balanced")
def _balanced(z0: Tensor) -> Profile:
    """The simplest profile with λ = 0 and P(1,0) = z₀."""
    return relaxed_balanced(z0)


@INITIALS.register("relaxed_balanced")
def _relaxed_balanced(z0: Tensor, twist: float = 1.0, shift: float = 0.5, seed: _OfProfile = 0) -> Profile:
    """A random smooth twist Ω(s) and shift λ(s); the end-to-end map follows the intrinsic dynamics.

    Parameters
    ----------
    twist : float
        Size of Ω(s), about its spectral norm.
    shift : float
        Size of λ(s).
    seed : int
        Of both.
    """
    generator = seeded("seed", seed)
    omega = random_twist(z0.shape[-1], real("twist", twist), generator)
    return relaxed_balanced(z0, random_shift(real("shift", shift), generator), omega)


@INITIALS.register("control")
def _control(z0: Tensor, shear: float = 1.0, seed: Annotated[Seed, CountsWith(("shear",))] = 0) -> Profile:
    """The negative control: log z₀ of a sheared z₀, constant in depth; it is not relaxed balanced.

    z₀ is multiplied by a random unit upper triangular matrix, so that the start is not normal even for z₀ = I.

    Parameters
    ----------
    shear : float
        Size of what is above the diagonal.
    seed : int
        Of the matrix.
    """
    generator = seeded("seed", seed)
    d = z0.shape[-1]
    noise = torch.randn(d, d, dtype=torch.float64, generator=generator, device="cpu").to(z0) / math.sqrt(d)
    return control(
        z0 @ (torch.eye(d, dtype=z0.dtype, device=z0.device) + real("shear", shear) * torch.triu(noise, diagonal=1))
    )


@INITIALS.register("smooth")
def _smooth(z0: Tensor, scale: float = 1.0, seed: Seed = 0) -> Profile:
    """A smooth random profile; it is not relaxed balanced.

    Parameters
    ----------
    scale : float
        Size of W(s), above 0.
    seed : int
        Of the profile.
    """
    return smooth(z0.shape[-1], scale, seeded("seed", seed))


@INITIALS.register("detour")
def _detour(
    z0: Tensor,
    twist: float = 1.0,
    shift: float = 0.5,
    detour: float = 0.5,
    seed: Annotated[Seed, CountsWith(("twist", "shift", "detour"))] = 0,
) -> Profile:
    """A relaxed balanced profile led astray between the ends of depth: the same z₀, not relaxed balanced.

    Parameters
    ----------
    twist, shift : float
        As of relaxed_balanced.
    detour : float
        How far it is led astray.
    seed : int
        Of the profile and of the direction.
    """
    base = _relaxed_balanced(z0, twist, shift, seed)
    return Detour(base, random_direction(z0.shape[-1], real("detour", detour), seeded("seed", seed)))


@INITIALS.register("rough")
def _rough(
    z0: Tensor, twist: float = 1.0, shift: float = 0.5, noise: float = 0.5, networks: Members = 16, seed: Seed = 0
) -> Profile:
    """Independent noise on every layer of a relaxed balanced profile, for several networks at once: order about 1/2.

    Parameters
    ----------
    twist, shift : float
        As of relaxed_balanced.
    noise : float
        Standard deviation of an entry of a layer, above 0.
    networks : int
        Networks.
    seed : int
        Of the profile and of the noise.
    """
    base = _relaxed_balanced(z0, twist, shift, seed)
    return Rough(base, positive("noise", noise), count("networks", networks), seed)
