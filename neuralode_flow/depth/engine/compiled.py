"""The compiled engine: depth products and gradients of small matrices, in engine.c.

It takes float64 matrices on the CPU, in eager mode: nothing in C sees derivatives, torch.func, tracers or compilers.
Where it finds on the way that the numbers are not for it, the whole call goes to torch's engine: a depth grid that does
not resolve W, a layer that cannot be made, an outer gradient that carries derivatives.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...modes import bare, plain
from .. import picard
from ..workspace import Workspace
from . import by_torch

if TYPE_CHECKING:
    from ..grid import DepthGrid
    from ..promises import LayerRule

# Larger matrices are multiplied as fast by BLAS, which keeps both cores busy as well; work.h has the same bound.
LARGEST = 256

# The layer rules of engine.c, by their numbers there; PLAIN takes layers as they are.
PLAIN, EULER, RK2, CAYLEY, EXP = range(5)

# Set to 0, one of them leaves the engine aside: for a comparison, or on a machine where it is at fault.
SWITCHES = "NEURALODE_FLOW_ENGINE", "NEURALODE_FLOW_KERNEL"

# What engine.c looks along at once.
_DIRECTIONS = 4

_WORKSPACE = Workspace()
_CPU = torch.device("cpu")
_POINTER, _INT, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_double
_SIGNATURES = {
    "flow_scratch": ([_LONG, _INT, _INT, _INT, _INT], _LONG),
    "flow_forward": ([_POINTER, _POINTER, _POINTER, _LONG, _INT, _INT, _INT, _INT, _POINTER, _POINTER], _INT),
    "flow_backward": ([_POINTER, _POINTER, _POINTER], None),
    "chain_scratch": ([_LONG, _LONG, _INT, _INT, _INT], _LONG),
    "chain_forward": ([_POINTER, _LONG, _LONG, _INT, _INT, _DOUBLE, _INT, _POINTER, _POINTER], _INT),
    "chain_backward": ([_POINTER, _POINTER, _POINTER], None),
    "grams": ([_POINTER, _POINTER, _LONG, _INT, _POINTER, _POINTER], None),
    "stepped": ([_POINTER, _POINTER, _DOUBLE, _POINTER, _LONG, _LONG, _INT, _INT, _INT, *4 * [_POINTER]], None),
    "set_level": ([_INT], None),
    "set_pool": ([_POINTER], None),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None."""
    if "0" in map(os.environ.get, SWITCHES):
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_engine{suffix}")
        if path.exists():
            loaded = ctypes.CDLL(str(path))
            for name, (arguments, result) in _SIGNATURES.items():
                function = getattr(loaded, name)
                function.argtypes, function.restype = arguments, result
            loaded.set_pool(_openmp())
            return loaded
    return None


def _openmp() -> int | None:
    """The address of GOMP_parallel in the OpenMP library of torch, in whose threads the engine works as well."""
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, _POINTER).value


def takes(W: Tensor) -> bool:
    """Whether the engine is there and W `(..., N, d, d)` is for it."""
    fits = plain(W) and W.is_cpu and W.dtype == torch.float64 and 0 < W.shape[-1] <= LARGEST and W.numel() > 0
    return fits and library() is not None


Outer = Callable[[Tensor], Tensor]


def flow(grid: DepthGrid, W: Tensor, outer: Outer | None = None) -> Tensor:
    """As `Engine.flow`; panels and members stop their sweeps each for themselves."""
    W = W.contiguous()
    *batch, N, d, _ = W.shape
    sizes = W.numel() // (N * d * d), grid.panels, grid.order, d, torch.get_num_threads()
    J, ends = picard.integrals(grid.panels, grid.order, torch.float64, _CPU)
    with _WORKSPACE.lend() as take:
        room = take("flow", (_size("flow_scratch", *sizes),), W)
        z = W.new_empty(*batch, d, d)
        arrays = W.data_ptr(), J.data_ptr(), ends.data_ptr()
        if not _loaded().flow_forward(*arrays, *sizes, room.data_ptr(), z.data_ptr()):
            if outer is None:
                return z
            if _is_numbers(G := outer(z)):
                return _pulled_back(_loaded().flow_backward, G.expand(z.shape), room, W)
    return by_torch.flow(grid, W, outer)


def chain(W: Tensor, outer: Outer | None = None, rule: LayerRule | None = None, depth: int = 1) -> Tensor:
    """As `Engine.chain`; layers of a rule that is not known in C are made by torch."""
    number = PLAIN if rule is None else vars(type(rule)).get("compiled", PLAIN)
    if rule is not None and number == PLAIN:
        return by_torch.layered(W, outer, rule, depth, _linked)
    W = W.contiguous()
    *batch, L, d, _ = W.shape
    members, threads = W.numel() // (L * d * d), torch.get_num_threads()
    with _WORKSPACE.lend() as take:
        room = take("chain", (_size("chain_scratch", members, L, d, number, threads),), W)
        z = W.new_empty(*batch, d, d)
        if not _loaded().chain_forward(
            W.data_ptr(), members, L, d, number, 1 / depth, threads, room.data_ptr(), z.data_ptr()
        ):
            if outer is None:
                return z
            if _is_numbers(G := outer(z)):
                return _pulled_back(_loaded().chain_backward, G.expand(z.shape), room, W)
    return by_torch.chain(W, outer, rule, depth)


def grams(X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """As `Engine.grams`, for up to four directions in one reading of X."""
    d, k = V.shape
    if k > _DIRECTIONS or not _is_numbers(V):
        return by_torch.grams(X, V)
    X, V, shape = X.contiguous(), _four(V), (*X.shape[:-2], _DIRECTIONS, _DIRECTIONS)
    right, left = X.new_empty(shape), X.new_empty(shape)
    _loaded().grams(X.data_ptr(), V.data_ptr(), X.numel() // d**2, d, right.data_ptr(), left.data_ptr())
    return right[..., :k, :k], left[..., :k, :k]


def stepped(W: Tensor, X: Tensor, rate: float, V: Tensor, added: Tensor, apart: int) -> tuple[Tensor, Tensor]:
    """As `Engine.stepped`, along four directions in one reading of W and X; the step is written over X."""
    d, k = V.shape
    if k > _DIRECTIONS or W.shape != X.shape or not (_is_numbers(X) and _is_numbers(V) and _is_numbers(added)):
        return by_torch.stepped(W, X, rate, V, added, apart)
    if k < _DIRECTIONS:
        following, after = stepped(W, X, rate, _four(V), _four(_four(added).mT).mT, apart)
        return following, after[..., :k, :k]
    W, X, V, added, N = W.contiguous(), X.contiguous(), V.contiguous(), added.contiguous(), W.shape[-3]
    members, after = W.numel() // (N * d * d), torch.empty_like(added)
    seen = W.new_empty(32 * members * N) if apart else None
    place = X.data_ptr()
    _loaded().stepped(
        W.data_ptr(), place, rate, V.data_ptr(), members, N, apart, d, torch.get_num_threads(),
        added.data_ptr(), place, None if seen is None else seen.data_ptr(), after.data_ptr(),
    )  # fmt: skip
    return X, after


def _four(V: Tensor) -> Tensor:
    """Columns V `(..., k)`, and zeros in the place of those that are not there."""
    k = V.shape[-1]
    return (V if k == _DIRECTIONS else torch.nn.functional.pad(V, (0, _DIRECTIONS - k))).contiguous()


def _linked(U: Tensor, outer: Outer | None = None) -> Tensor:
    """The chain of layers that torch has made: they may depend on more than W."""
    return (chain if takes(U) else by_torch.chain)(U, outer)


def _pulled_back(backward: Callable[..., None], G: Tensor, room: Tensor, W: Tensor) -> Tensor:
    """The gradient at W, after the products have been left in `room`."""
    G, result = G.contiguous(), torch.empty_like(W)
    backward(G.data_ptr(), room.data_ptr(), result.data_ptr())
    return result


def _is_numbers(G: Tensor) -> bool:
    """Whether an outer gradient is no more than numbers that C can read."""
    return bare(G) and G.dtype is torch.float64 and G.is_cpu


def _loaded() -> ctypes.CDLL:
    """The library, where it is there."""
    loaded = library()
    assert loaded is not None
    return loaded


@cache
def _size(name: str, *sizes: int) -> int:
    """Scratch memory in numbers of float64."""
    return -(-getattr(library(), name)(*sizes) // 8)
