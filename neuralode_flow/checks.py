"""Checks of the public boundary: each names the argument, what came, and what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor


def float_tensor(name: str, value: Any, ndim: int | None = None) -> Tensor:
    """`value` as a finite floating-point tensor with at least `ndim` axes.

    Raises
    ------
    TypeError
        If it is not a tensor of floating-point numbers.
    ValueError
        If it is empty, has too few axes, or has NaN or infinite entries.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}; use torch.as_tensor(...)")
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, got dtype {value.dtype}; use {name}.double()")
    if ndim is not None and value.ndim < ndim:
        raise ValueError(f"{name} must have at least {ndim} axes, got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries of {value.numel()}")
    return value


def square(name: str, value: Any) -> Tensor:
    """`value` as a finite floating-point tensor of square matrices `(..., d, d)` with d >= 1."""
    matrix = float_tensor(name, value, ndim=2)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name} must be square in its last two axes, got shape {tuple(matrix.shape)}")
    return matrix


def same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raises TypeError unless both tensors share dtype and device."""
    if value.dtype != other.dtype or value.device != other.device:
        raise TypeError(
            f"{name} is {value.dtype} on {value.device} but {other_name} is {other.dtype} on {other.device}; "
            f"move one with .to(dtype=..., device=...)"
        )


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above zero."""
    number = real(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return number


def real(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def count(name: str, value: Any, least: int = 1) -> int:
    """`value` as an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)
