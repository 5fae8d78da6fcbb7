"""Checks of the public boundary: each names the argument, what came, and what to do."""

from __future__ import annotations

import errno
import math
import numbers
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .looks import current
from .modes import derived, followed, hidden

_PRECISE = (torch.float64, torch.float32)  # no matrix of fewer digits can be factorised
_NAMED = 4  # members in a sentence


def of_members(which: Tensor) -> str:
    """As in " of member 3 of 8", from booleans over the leading axes `(...)`; empty without any, or without a True."""
    if which.ndim == 0 or not bool(which.any()):
        return ""
    shape = tuple(which.shape)
    indices = [tuple(index) for index in which.nonzero().tolist()]
    names = [str(index[0] if len(shape) == 1 else index) for index in indices[:_NAMED]]
    if len(indices) > _NAMED:
        names.append(f"{len(indices) - _NAMED} more")
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    whole = shape[0] if len(shape) == 1 else shape
    return f" of member{'s' if len(indices) > 1 else ''} {listed} of {whole}"


def no_derivatives(name: str, tensor: Tensor) -> None:
    """Raises TypeError where a derivative, or a transform of torch, is asked of what is only integrated."""
    if followed():
        raise TypeError(
            f"{name} must be plain numbers: a run takes no part in transforms of torch.func, tracers or "
            f"forward-mode derivatives; members of a batch go along leading axes, and velocity and product can be "
            f"transformed"
        )
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name} requires a gradient, but a run does not carry derivatives through time: pass .detach() or "
            f"call it under torch.no_grad(); velocity and product can be differentiated"
        )


def underived(name: str, value: Any, what: str) -> None:
    """Raises TypeError where a derivative, or a transform of torch, is asked of what sees numbers: it would be zero."""
    if isinstance(value, Tensor) and derived(value):
        raise TypeError(
            f"{name} must be plain numbers: {what} from them alone, so that there are no derivatives in {name}, and no "
            f"transforms of torch.func; pass {name}.detach()"
        )


def floating(name: str, value: Any) -> Tensor:
    """`value` as a tensor of float64 or float32 numbers: cheap enough for every call, since no entry is looked at.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}; use torch.as_tensor(...)")
    if value.dtype not in _PRECISE:
        kind = "float64 or float32" if value.is_floating_point() else "floating-point"
        raise TypeError(f"{name} must hold {kind} numbers, got dtype {value.dtype}; use {name}.double()")
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        cure = "torch.stack(...)" if value.is_nested else f"{name}.to_dense()"
        raise TypeError(f"{name} must be a dense tensor, got {got}; use {cure}")
    return value


def float_tensor(name: str, value: Any, ndim: int | None = None) -> Tensor:
    """`value` as a finite floating-point tensor with at least `ndim` axes.

    Raises
    ------
    TypeError
        If it is not a tensor of floating-point numbers.
    ValueError
        If it is empty, has too few axes, or has NaN or infinite entries.
    """
    floating(name, value)
    if ndim is not None and value.ndim < ndim:
        raise ValueError(f"{name} must have at least {ndim} axes, got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    if not (value.is_meta or hidden(value) or _finite(value)):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries of {value.numel()}")
    return value


def reals(values: Any) -> Tensor:
    """Real numbers as float64, all digits of them, in memory or where a tensor of them is.

    Raises
    ------
    TypeError, ValueError, RuntimeError, OverflowError
        If they are none.
    """
    found = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    if found.dtype == torch.bool or found.is_complex():
        raise TypeError(f"entries of kind {found.dtype}")
    # Numbers of Python have been made the default dtype, which may hold fewer digits.
    return found.double() if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64, device="cpu")


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


def goes_with(members: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Whether leading axes `members` broadcast to exactly the leading axes `batch`."""
    return len(members) <= len(batch) and all(m in (1, b) for m, b in zip(members[::-1], batch[::-1], strict=False))


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above zero."""
    number = real(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return number


def real(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a number beyond the range of a float") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an integer of at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {_shown(value)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {_short(number)}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {_short(number)}")
    return number


def seeded(name: str, seed: Any) -> torch.Generator:
    """Random numbers of a seed, of which a generator of torch sees 32 bits: one beyond them would be another's copy."""
    number = count(name, seed, least=0)
    if number >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {_short(number)}")
    return torch.Generator(device="cpu").manual_seed(number)


def follows(name: str, value: Any, kind: str, example: str, promises: Iterable[str]) -> None:
    """Raises TypeError unless `value` has all that a protocol promises and is no class.

    `promises` are the names of its attributes; "__call__" among them means that it can be called. `example` is one way
    to make such an object, and `kind` what it is, with its article.
    """
    missing = [part for part in promises if not (callable(value) if part == "__call__" else hasattr(value, part))]
    if isinstance(value, type):
        got = f"the class {value.__name__} itself; make an object of it, {value.__name__}(...)"
    elif missing:
        got = f"{_shown(value)} without {missing[0]}"
    else:
        return
    raise TypeError(f"{name} must be {kind} such as {example}, got {got}")


def placed(dtype: Any, device: Any) -> None:
    """Raises unless tensors of floating-point `dtype` can be made on `device` here."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch dtype such as torch.float64, got {_shown(dtype)}")
    if dtype not in _PRECISE:
        raise TypeError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a name such as 'cpu' or a torch.device, got {_shown(device)}")
    try:
        torch.empty(1, dtype=dtype, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch raises any of them where a device is missing
        raise ValueError(f"device must be one that torch can use here, got {str(device)!r}; use 'cpu'") from None


def random_source(name: str, value: Any) -> torch.Generator:
    """`value` as a generator of random numbers."""
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{name} must be a torch.Generator, got {_shown(value)}; use torch.Generator().manual_seed(0)")
    return value


def _shown(value: Any) -> str:
    """A short value itself, else its type."""
    text = repr(value)
    return text if len(text) <= 60 and text.isprintable() and text[0] != "<" else type(value).__name__


def _short(value: int) -> str:
    """A whole number in full unless it is very long."""
    return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"


def unpatched(kind: type, name: str) -> bool:
    """Whether a class still has the method of that name that it was written with."""
    method = vars(kind).get(name)
    written = kind.__module__, f"{kind.__qualname__}.{name}"
    return (getattr(method, "__module__", ""), getattr(method, "__qualname__", "")) == written


def all_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite, by the sum where that decides: it is one pass and no tensor of booleans.

    Where looks are postponed it is noted as a doubt, and the answer is yes.
    """
    noted = current()
    if noted is not None:
        noted.doubts.append(~torch.isfinite(value.detach().sum()))
        return True
    return _finite(value)


def _finite(value: Tensor) -> bool:
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def is_memory(error: BaseException) -> bool:
    """Whether memory has run out; torch says so by a RuntimeError, and processes by an OSError."""
    if isinstance(error, RuntimeError):
        return re.search("allocate memory|out of memory|not enough memory", str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
