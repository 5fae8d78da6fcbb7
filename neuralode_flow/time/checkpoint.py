"""A run on disk: what has been reached, and what is needed to go on to the bit."""

from __future__ import annotations

import dis
import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from inspect import ismemberdescriptor, signature
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import archive
from ..checks import reals
from ..files import InUse, locked, remove_remains
from .base import Memory
from .endings import Stopped
from .trajectory import MEMORY, Trajectory, pack, unpack

# What every run remembers beside its method: when its steps ended.
_ENDS = "ends"

# Of what a function closes over, and of its defaults, only these are looked at: others may change while it is called.
_CONSTANT = (bool, int, float, complex, str, bytes, tuple, np.generic, partial, FunctionType, MethodType)
_GIVEN = (*_CONSTANT, np.ndarray, Tensor, torch.nn.Module)


def digest(state: Tensor) -> str:
    """A short hash of the bits of a tensor."""
    own = state.detach().resolve_conj().resolve_neg().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    return hashlib.sha256(own.view(torch.uint8).numpy().data).hexdigest()[:16]


def description(value: Any, depth: int = 4) -> Any:
    """An object in plain values: kinds, numbers, names, and hashes of tensors.

    Of a function its name is known, and values that it is given: its defaults, what it is bound to, and numbers,
    tensors and functions that it closes over.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (complex, bytes, range, torch.dtype)):
        return repr(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        value = _tensor(value)
        if isinstance(value, str):
            return value
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {digest(value) if _in_memory(value) else value.layout}"
    if isinstance(value, (list, tuple)):
        return [description(item, depth) for item in value]
    if isinstance(value, (dict, set, frozenset)) and depth == 0:
        return type(value).__name__
    if isinstance(value, dict):
        return {_key(key): description(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((description(item, depth - 1) for item in value), key=repr)
    if callable(value) and hasattr(value, "__qualname__"):
        name, parts = value.__qualname__, _given_to(value)
    else:
        name, parts = type(value).__name__, _attributes(value)
    if depth == 0 or parts is None:
        return name
    return {"kind": name, **{key.lstrip("_"): description(item, depth - 1) for key, item in sorted(parts.items())}}


def _tensor(value: np.ndarray) -> Tensor | str:
    """The numbers of an array, whatever their order in memory; a text of what torch has no dtype for."""
    try:
        return torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
    except TypeError:
        return str(value)


def _key(key: object) -> str:
    """What a value is filed under, in words that are the same in another process."""
    return str(key) if key is None or isinstance(key, (str, bool, int, float, tuple)) else type(key).__name__


def _in_memory(value: Tensor) -> bool:
    """Whether a tensor has numbers that lie in memory one beside the other."""
    return value.layout == torch.strided and value.device.type != "meta" and not value.is_quantized


def _attributes(value: Any) -> dict[str, Any] | None:
    """What an object has been given, by name; None of one that keeps nothing under a name."""
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if isinstance(value, ModuleType):
        return None
    own: dict[str, Any] = getattr(value, "__dict__", {})
    if is_dataclass(value) and not isinstance(value, type):  # what is no part of it when it is compared is none here
        left_out = {part.name for part in fields(value) if not part.compare}
        own = {name: item for name, item in own.items() if name not in left_out}
    if isinstance(value, torch.nn.Module):  # however deep its parts lie in one another
        own = {name: item for name, item in own.items() if not name.startswith("_")}
        return own | {"parameters": dict(value.named_parameters()), "buffers": dict(value.named_buffers())}
    classes = [vars(kind) for kind in type(value).__mro__ if "__slots__" in vars(kind)]
    slots = (name for own_class in classes for name, item in own_class.items() if ismemberdescriptor(item))
    kept = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**kept, **own} if kept or hasattr(value, "__dict__") else None


def _given_to(function: Any) -> dict[str, Any] | None:
    """What a function has been given, by name, but for objects and for what it binds or writes itself: a counter."""
    if isinstance(function, MethodType):
        written = _written_by(function.__func__, "STORE_ATTR")
        own = {name: item for name, item in (_attributes(function.__self__) or {}).items() if name not in written}
        return (_given_to(function.__func__) or {}) | {"self": own}
    if not isinstance(function, FunctionType):
        return None
    kinds = _GIVEN if not _written_by(function, "STORE_SUBSCR") else _CONSTANT
    parameters = signature(function, follow_wrapped=False).parameters
    given = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
    bound_anew = _written_by(function, "STORE_DEREF")
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # one that is still empty
            if name not in bound_anew:
                given[name] = cell.cell_contents
    return {name: item for name, item in given.items() if isinstance(item, kinds)} or None


def _written_by(function: Any, instruction: str) -> set[Any]:
    """The names that instructions of a kind write to in a function."""
    if not hasattr(function, "__code__"):
        return set()
    return {i.argval for i in dis.get_instructions(function) if i.opname == instruction}


def described(name: str, times: Sequence[float]) -> str:
    """A series of times in a few words, beginning with their number; of output times also where they lie.

    Of a range, such as the steps of a rule, the number says all.
    """
    if isinstance(times, range):
        return str(times.stop)
    range_said = f" from {times[0]:g} to {times[-1]:g}" if name == "times" and times else ""
    return f"{len(times)}{range_said} {digest(reals(times))}"


def _differences(saved: Any, now: Any, name: str) -> Iterator[str]:
    """What two descriptions differ in, innermost first named."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *saved]):
            yield from _differences(saved.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(now, dict) and saved is not None and saved == now.get("kind"):
        return  # of a run from before, which knew of a function no more than its name
    elif repr(saved) != repr(now):  # two NaN are equal here
        yield f"{name} = {saved!r}, now it is {now!r}"


@dataclass(frozen=True, eq=False)
class Saved:
    """What a checkpoint holds: the trajectory so far, the position, the memory of the method, the ends of its steps."""

    reached: Trajectory
    position: dict[str, Any]
    memory: Memory
    ends: list[float]


class Checkpoint:
    """The file of one run, locked against a second one.

    Parameters
    ----------
    path : Path
        It lies in an existing folder; the one before the last is kept beside it.
    every : float
        Seconds of wall time between two savings.
    settings : mapping
        What a run is: a file with other settings is refused.
    series : dict of str to sequence of float
        Times that are settings too, by their names: a file with the first of them alone is that of a shorter run, which
        can be made longer.

    Raises
    ------
    ValueError
        If the file is damaged or belongs to a run with other settings; the message names the first that differs.
    OSError
        If the folder is missing or cannot be written to, or another process has the file.
    """

    def __init__(
        self, path: Path, every: float, settings: Mapping[str, Any], series: Mapping[str, Sequence[float]]
    ) -> None:
        self.path = path
        self.every = every
        self.series = {name: times for name, times in series.items() if times}
        self.settings = {**settings, **{name: described(name, times) for name, times in self.series.items()}}
        self._due = time.monotonic() + every
        self._held = ExitStack()

    def __enter__(self) -> Checkpoint:
        try:
            self._held.enter_context(locked(self.path.with_name(f".{self.path.name}.lock")))
        except InUse as error:
            raise InUse(
                f"checkpoint={self.path} is in use by another run; wait for it, or give another path"
            ) from error
        except OSError as error:
            raise type(error)(f"checkpoint={self.path} cannot be written: {error.strerror}") from error
        remove_remains(self.path)
        return self

    def __exit__(self, *_: Any) -> None:
        self._held.close()

    def read(self) -> Saved | None:
        """What was saved; None before the start."""
        try:
            header, arrays = archive.read(self.path)
        except FileNotFoundError:
            return None
        position = header.get("position")
        if not isinstance(position, dict) or f"{MEMORY}{_ENDS}" not in arrays:
            raise ValueError(f"checkpoint={self.path} holds a finished trajectory, not a run that can go on")
        for difference in _differences(header.get("settings"), self._shorter(header.get("settings")), ""):
            raise ValueError(
                f"checkpoint={self.path} belongs to a run with {difference}: go back to the former, or give another "
                f"path"
            )
        memory = {name.removeprefix(MEMORY): a for name, a in arrays.items() if name.startswith(MEMORY)}
        ends = memory.pop(_ENDS).tolist()
        return Saved(unpack(self.path, header, arrays), position, memory, ends)

    def _shorter(self, saved: Any) -> dict[str, Any]:
        """The settings, with the first of the times alone where the saved ones are those."""
        settings = dict(self.settings)
        for name, times in self.series.items():
            was = saved.get(name) if isinstance(saved, dict) else None
            number = re.match(r"\d+", was) if isinstance(was, str) else None
            if number is not None and was == described(name, times[: int(number[0])]):
                settings[name] = was
        return settings

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._due

    def write(self, saved: Saved) -> None:
        """Saves; raises Stopped if that fails, and what was saved before is still there."""
        header, arrays = pack(saved.reached)
        header |= {"settings": self.settings, "position": saved.position}
        arrays |= {
            f"{MEMORY}{name}": value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in {**saved.memory, _ENDS: np.array(saved.ends, dtype=np.float64)}.items()
        }
        try:
            archive.write(self.path, header, arrays, keep=True)
        except OSError as error:
            raise Stopped(
                "checkpoint",
                f"the checkpoint {self.path} could not be written: {error.strerror or error}; "
                f"what was saved before is untouched",
            ) from error
        self._due = time.monotonic() + self.every
