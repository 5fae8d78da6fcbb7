"""Initialisations by name, as a config asks for them: each makes a profile from z₀, sizes and a seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import count, positive, real
from ..depth.grid import Profile
from ..signatures import Members, Seed
from .base import INITIALS, control, identity
from .detour import Detour
from .random import random_direction, random_shift, random_twist, smooth
from .relaxed import relaxed_balanced
from .rough import Rough


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
