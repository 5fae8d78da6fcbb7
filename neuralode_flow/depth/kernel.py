"""The compiled kernel: depth products and gradients of small matrices, in kernel.c.

Each function returns None where the kernel cannot serve: not compiled, not float64 on the CPU, large matrices, another
mode of torch than the eager one (derivatives taken through it, torch.func, tracers, torch.compile), a depth grid that
does not resolve W, or a layer that cannot be made. The caller then does the same in torch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from ..modes import bare, plain
from .grid import DepthGrid, gauss_rule
from .workspace import Workspace

# Larger matrices are multiplied as fast by BLAS, which keeps both cores busy as well; kernel.c has the same bound.
LARGEST = 256

# The layer rules of kernel.c, by their numbers there; PLAIN takes layers as they are.
PLAIN, EULER, RK2, CAYLEY, EXP = range(5)

# Set to 0, it leaves the kernel aside: for a comparison, or on a machine where it is at fault.
SWITCH = "NEURALODE_FLOW_KERNEL"

_WORKSPACE = Workspace()
_POINTER, _INT, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_double
_SIGNATURES = {
    "flow_scratch": ([_LONG, _INT, _INT, _INT, _INT], _LONG),
    "flow_forward": ([_POINTER, _POINTER, _POINTER, _LONG, _INT, _INT, _INT, _INT, _POINTER, _POINTER], _INT),
    "flow_backward": ([_POINTER, _POINTER, _POINTER], None),
    "chain_scratch": ([_LONG, _LONG, _INT, _INT, _INT], _LONG),
    "chain_forward": ([_POINTER, _LONG, _LONG, _INT, _INT, _DOUBLE, _INT, _POINTER, _POINTER], _INT),
    "chain_backward": ([_POINTER, _POINTER, _POINTER], None),
    "set_level": ([_INT], None),
    "set_pool": ([_POINTER], None),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None."""
    if os.environ.get(SWITCH) == "0":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernel{suffix}")
        if path.exists():
            loaded = ctypes.CDLL(str(path))
            for name, (arguments, result) in _SIGNATURES.items():
                function = getattr(loaded, name)
                function.argtypes, function.restype = arguments, result
            loaded.set_pool(_openmp())
            return loaded
    return None


def _openmp() -> int | None:
    """The address of GOMP_parallel in the OpenMP library of torch, in whose threads the kernel works as well."""
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, _POINTER).value


Outer = Callable[[Tensor], Tensor]


def flow(grid: DepthGrid, W: Tensor, outer: Outer | None = None) -> Tensor | None:
    """P(1,s_i)ᵀ G P(s_i,0)ᵀ with G = outer(z), `(..., N, d, d)`, as `Collocation.gradient`; z itself without `outer`.

    Its panels and members stop their sweeps each for themselves.
    """
    functions = _serving(W)
    if functions is None:
        return None
    W = W.contiguous()
    *batch, N, d, _ = W.shape
    sizes = W.numel() // (N * d * d), grid.panels, grid.order, d, torch.get_num_threads()
    J, ends = _integrals(grid.panels, grid.order)
    with _WORKSPACE.lend() as take:
        room = take("flow", (_size("flow_scratch", *sizes),), W)
        z = W.new_empty(*batch, d, d)
        arrays = W.data_ptr(), J.data_ptr(), ends.data_ptr()
        if functions.flow_forward(*arrays, *sizes, room.data_ptr(), z.data_ptr()):
            return None
        return z if outer is None else _pulled_back(functions.flow_backward, outer, z, room, W)


def chain(W: Tensor, outer: Outer | None = None, rule: int = PLAIN, step: float = 1.0) -> Tensor | None:
    """The gradient of a function of U_L … U_1 with respect to all step · W_k, `(..., L, d, d)`; U_k = rule(step · W_k).

    `outer` gives it with respect to the product, which is returned without it.
    """
    functions = _serving(W)
    if functions is None:
        return None
    W = W.contiguous()
    *batch, L, d, _ = W.shape
    members, threads = W.numel() // (L * d * d), torch.get_num_threads()
    with _WORKSPACE.lend() as take:
        room = take("chain", (_size("chain_scratch", members, L, d, rule, threads),), W)
        z = W.new_empty(*batch, d, d)
        sizes = members, L, d, rule, step, threads
        if functions.chain_forward(W.data_ptr(), *sizes, room.data_ptr(), z.data_ptr()):
            return None
        return z if outer is None else _pulled_back(functions.chain_backward, outer, z, room, W)


def _pulled_back(backward: Callable[..., None], outer: Outer, z: Tensor, room: Tensor, W: Tensor) -> Tensor | None:
    """The gradient at W, after the products have been left in `room`; None where `outer` gives more than numbers."""
    G = outer(z)
    if not (bare(G) and G.dtype is torch.float64 and G.is_cpu):
        return None
    G = G.expand(z.shape).contiguous()
    result = torch.empty_like(W)
    backward(G.data_ptr(), room.data_ptr(), result.data_ptr())
    return result


def _serving(W: Tensor) -> ctypes.CDLL | None:
    """The library, if it takes such a state."""
    fits = plain(W) and W.is_cpu and W.dtype == torch.float64 and 0 < W.shape[-1] <= LARGEST and W.numel()
    return library() if fits else None


@cache
def _size(name: str, *sizes: int) -> int:
    """Scratch memory in numbers of float64."""
    return -(-getattr(library(), name)(*sizes) // 8)


@cache
def _integrals(panels: int, order: int) -> tuple[Tensor, Tensor]:
    """The integrals of the Lagrange polynomials from the middle of a panel to its nodes, and to both ends."""
    both = torch.as_tensor(gauss_rule(order).from_middle / panels, dtype=torch.float64, device="cpu").contiguous()
    return both[:order], both[order:]
