"""The compiled engine: depth products and gradients of small matrices, in engine.c.

It takes float64 matrices on the CPU, in eager mode: nothing in C sees derivatives, torch.func, tracers or compilers.
Where it finds on the way that the numbers are not for it, the whole call goes to torch's engine: a depth grid that does
not resolve W, a layer that cannot be made, an outer gradient that carries derivatives.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...modes import bare, plain
from .. import picard
from ..workspace import Workspace
from . import by_torch
from .by_torch import Outer, Stepped

if TYPE_CHECKING:
    from ..grid import DepthGrid
    from ..promises import LayerRule

# Larger matrices are multiplied as fast by BLAS, which keeps both cores busy as well; work.h has the same bound.
LARGEST = 256

# The layer rules of engine.c, by their numbers there; PLAIN takes layers as they are.
PLAIN, EULER, RK2, CAYLEY, EXP = range(5)

# Laws between larger layers are made of products; work.h has the same bound, BESIDE.
_NEIGHBOURS = 8

# Single products of larger matrices are for BLAS; work.h has the same bound.
_MULTIPLIED = 32

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
    "multiply": ([_POINTER, _POINTER, _LONG, _LONG, _INT, _INT, _POINTER], None),
    "neighbours": ([_POINTER, _LONG, _LONG, _INT, _INT, _INT, _POINTER], None),
    "grams": ([_POINTER, _POINTER, _LONG, _INT, _POINTER, _POINTER], None),
    "descend": ([*3 * [_POINTER], _DOUBLE, *4 * [_POINTER]], _INT),
    "stepped": ([_POINTER, _POINTER, _DOUBLE, _POINTER, _LONG, _LONG, _INT, _INT, _INT, *3 * [_POINTER]], _INT),
    "attempt_scratch": ([_POINTER], _LONG),
    "attempt": ([_POINTER, _POINTER, _INT], None),
    "closed_scratch": ([_POINTER], _LONG),
    "closed": ([_POINTER, _POINTER, _INT], _LONG),
    "ndf_kept": ([_POINTER], _LONG),
    "ndf_room": ([_POINTER], _LONG),
    "ndf_step": ([_POINTER], _INT),
    "ndf_size": ([], _LONG),
    "closed_size": ([], _LONG),
    "steps_size": ([], _LONG),
    "legs_size": ([], _LONG),
    "set_lapack": (3 * [_POINTER], None),
    "set_level": ([_INT], None),
    "set_pool": ([_POINTER], None),
    "made_of": ([], ctypes.c_char_p),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None; raises ImportError where they were compiled from other sources than these."""
    if "0" in map(os.environ.get, SWITCHES):
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_engine{suffix}")
        if path.exists():
            return _opened(path)
    return None


def _opened(path: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(path))
    try:
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(opened, name)
            function.argtypes, function.restype = arguments, result
        made_of = opened.made_of().decode()
    except AttributeError:
        made_of = "others"
    sources = sorted(path.parent.glob("*.[ch]"))  # none beside an engine that came with a wheel
    if sources and hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest() != made_of:
        raise ImportError(
            f"{path} was compiled from other sources than those beside it: compile it anew by "
            f"`pip install --editable .`, which ./scripts/run does by itself, or set {SWITCHES[0]}=0 to go without it"
        )
    opened.set_pool(_openmp())
    return opened


def set_level(level: int) -> None:
    """Holds the engine at an instruction set: 0 none, 1 AVX2, 2 AVX-512. Its scratch memory depends on it."""
    loaded().set_level(level)
    _size.cache_clear()


def _openmp() -> int | None:
    """The address of GOMP_parallel in the OpenMP library of torch, in whose threads the engine works as well."""
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, _POINTER).value


def takes(W: Tensor) -> bool:
    """Whether the engine is there and W `(..., N, d, d)` is for it."""
    if not (plain(W) and W.is_cpu and W.dtype == torch.float64):
        return False
    shape = W.shape
    fits = len(shape) > 1 and shape[-2] == shape[-1] <= LARGEST and W.numel() > 0
    return fits and library() is not None


# What is made of G at z, a scratch that the forward pass has filled, and its W.
Back = Callable[[Tensor, Tensor, Tensor], Any]


def flow(grid: DepthGrid, W: Tensor, outer: Outer | None = None) -> Tensor:
    """As `Engine.flow`; panels and members stop their sweeps each for themselves."""
    result = _flow(grid, W, outer, _pulled_back("flow_backward"))
    return by_torch.flow(grid, W, outer) if result is None else result


def descend_flow(grid: DepthGrid, W: Tensor, outer: Outer, rate: float, V: Tensor, added: Tensor) -> Stepped:
    """As `Engine.descend_flow`; each matrix moves while it is in the cache."""
    moves = _Moves.along(W, V, added, apart=0)
    step = moves and _flow(grid, W, outer, moves.taken(rate, apart=0))
    return by_torch.descend_flow(grid, W, outer, rate, V, added) if step is None else step


def _flow(grid: DepthGrid, W: Tensor, outer: Outer | None, back: Back) -> Any:
    """What `back` makes of the gradient at z, or z itself without `outer`; None where C leaves it to torch."""
    W = W.contiguous()
    *batch, N, d, _ = W.shape
    if len(grid) != N:
        return None
    sizes = W.numel() // (N * d * d), grid.panels, grid.order, d, torch.get_num_threads()
    J, ends = picard.integrals(grid.panels, grid.order, torch.float64, _CPU)
    with _WORKSPACE.lend() as take:
        room = take("flow", (_size("flow_scratch", *sizes),), W)
        z = W.new_empty(*batch, d, d)
        arrays = W.data_ptr(), J.data_ptr(), ends.data_ptr()
        if not loaded().flow_forward(*arrays, *sizes, room.data_ptr(), z.data_ptr()):
            if outer is None:
                return z
            if is_numbers(G := outer(z)):
                return back(G.expand(z.shape).contiguous(), room, W)
    return None


def chain(W: Tensor, outer: Outer | None = None, rule: LayerRule | None = None, depth: int = 1) -> Tensor:
    """As `Engine.chain`; layers of a rule that is not known in C are made by torch."""
    number = PLAIN if rule is None else number_of(rule)
    if rule is not None and number == PLAIN:
        return by_torch.layered(W, outer, rule, depth, _linked)
    result = _chain(W, outer, number, depth, _pulled_back("chain_backward"))
    return by_torch.chain(W, outer, rule, depth) if result is None else result


def descend_chain(
    W: Tensor, outer: Outer, rule: LayerRule, depth: int, rate: float, V: Tensor, added: Tensor
) -> Stepped:
    """As `Engine.descend_chain`; each matrix moves while it is in the cache."""
    moves, number = _Moves.along(W, V, added, apart=1), number_of(rule)
    step = None if number == PLAIN else moves and _chain(W, outer, number, depth, moves.taken(rate, apart=1))
    return stepped(W, chain(W, outer, rule, depth), rate, V, added, apart=1) if step is None else step


def number_of(rule: LayerRule) -> int:
    """What a layer rule is called in C, PLAIN where it is not known there."""
    number: int = vars(type(rule)).get("compiled", PLAIN)
    return number


def _chain(W: Tensor, outer: Outer | None, number: int, depth: int, back: Back) -> Any:
    """As `_flow`."""
    W = W.contiguous()
    *batch, L, d, _ = W.shape
    members, threads = W.numel() // (L * d * d), torch.get_num_threads()
    with _WORKSPACE.lend() as take:
        room = take("chain", (_size("chain_scratch", members, L, d, number, threads),), W)
        z = W.new_empty(*batch, d, d)
        if not loaded().chain_forward(
            W.data_ptr(), members, L, d, number, 1 / depth, threads, room.data_ptr(), z.data_ptr()
        ):
            if outer is None:
                return z
            if is_numbers(G := outer(z)):
                return back(G.expand(z.shape).contiguous(), room, W)
    return None


class _Laid(ctypes.Structure):
    """As in work.h."""

    _fields_ = (("at", _POINTER), *((name, _LONG) for name in ("outer", "inner", "row", "column")))

    @classmethod
    def of(cls, matrices: Tensor) -> _Laid:
        return cls(matrices.data_ptr(), *matrices.stride())


def multiply(one: Tensor, other: Tensor) -> Tensor:
    """As `Engine.multiply`, where the matrices lie; each product is the same whichever others are asked for with it."""
    d = one.shape[-1]
    if not (is_numbers(other) and one.shape[-2] == d <= _MULTIPLIED and other.shape[-2:] == (d, d)):
        return by_torch.multiply(one, other)
    batch = one.shape[:-2]
    if other.shape[:-2] != batch:
        batch = torch.broadcast_shapes(batch, other.shape[:-2])
        one, other = one.expand(*batch, d, d), other.expand(*batch, d, d)
    product = one.new_empty(*batch, d, d)
    A, B = _two_axes(one), _two_axes(other)
    laid = ctypes.byref(_Laid.of(A)), ctypes.byref(_Laid.of(B))
    loaded().multiply(*laid, *A.shape[:2], d, torch.get_num_threads(), product.data_ptr())
    return product


def _two_axes(matrices: Tensor) -> Tensor:
    """Matrices in a batch of two axes."""
    more = matrices.ndim - 4
    return matrices.flatten(0, more) if more > 0 else matrices[(None,) * -more]


def neighbours(W: Tensor, *, mean: bool) -> Tensor | None:
    """The law between neighbouring layers `(..., L, d, d)`, in one reading of them; None of those that are not for C.

    L(S_{k+1} − S_k) + W_{k+1}ᵀW_{k+1} − W_kW_kᵀ with S = W + Wᵀ or, of the quadratic part, the mean of [Wᵀ, W] of both.
    """
    *batch, L, d, _ = W.shape
    if not takes(W) or d > _NEIGHBOURS or L < 2:
        return None
    W, law = W.contiguous(), W.new_empty(*batch, L - 1, d, d)
    loaded().neighbours(W.data_ptr(), W.numel() // (L * d * d), L, d, mean, torch.get_num_threads(), law.data_ptr())
    return law


def grams(X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """As `Engine.grams`, for up to four directions in one reading of X."""
    if not _looks_along(X, V):
        return by_torch.grams(X, V)
    d, k = V.shape
    X, V, shape = X.contiguous(), _four(V), (*X.shape[:-2], _DIRECTIONS, _DIRECTIONS)
    right, left = X.new_empty(shape), X.new_empty(shape)
    loaded().grams(X.data_ptr(), V.data_ptr(), X.numel() // d**2, d, right.data_ptr(), left.data_ptr())
    return right[..., :k, :k], left[..., :k, :k]


def stepped(W: Tensor, X: Tensor, rate: float, V: Tensor, added: Tensor, apart: int) -> Stepped:
    """As `Engine.stepped`, along four directions in one reading of W and X; the step is written over X."""
    if W.shape != X.shape or not is_numbers(X) or (moves := _Moves.along(W, V, added, apart)) is None:
        return by_torch.stepped(W, X, rate, V, added, apart)
    W, X, N, d = W.contiguous(), X.contiguous(), *W.shape[-3:-1]
    members, seen = W.numel() // (N * d * d), moves.room(W, apart)
    spoiled = loaded().stepped(
        W.data_ptr(), X.data_ptr(), rate, moves.V.data_ptr(), members, N, apart, d, torch.get_num_threads(),
        moves.before.data_ptr(), None if seen is None else seen.data_ptr(), moves.after.data_ptr(),
    )  # fmt: skip
    return moves.result(X, spoiled)


class _Moves(NamedTuple):
    """Four directions, and what is known along them before and after a step; k of them were asked for."""

    V: Tensor
    before: Tensor
    after: Tensor
    k: int

    @classmethod
    def along(cls, W: Tensor, V: Tensor, added: Tensor, apart: int) -> _Moves | None:
        """Of steps of W along directions V `(d, k)`; None where C cannot take them."""
        *batch, N, _, _ = W.shape
        k = V.shape[-1]
        if not (_looks_along(W, V) and is_numbers(added) and added.shape == (*batch, N - apart, k, k)):
            return None
        V, added = (_four(V), _four(_four(added).mT).mT) if k < _DIRECTIONS else (V, added)
        before = added.contiguous()
        return cls(V.contiguous(), before, torch.empty_like(before), k)

    def taken(self, rate: float, apart: int) -> Back:
        """What takes a step along the gradient at W, after the products have been left in `room`."""

        def back(G: Tensor, room: Tensor, W: Tensor) -> Stepped:
            following, seen = torch.empty_like(W), self.room(W, apart)
            spoiled = loaded().descend(
                G.data_ptr(), room.data_ptr(), following.data_ptr(), rate, self.V.data_ptr(),
                self.before.data_ptr(), None if seen is None else seen.data_ptr(), self.after.data_ptr(),
            )  # fmt: skip
            return self.result(following, spoiled)

        return back

    @staticmethod
    def room(W: Tensor, apart: int) -> Tensor | None:
        """For what the step of each matrix looks like, where pairs of them are to be compared."""
        return W.new_empty(W.shape[:-2].numel() * 2 * _DIRECTIONS**2) if apart else None

    def result(self, following: Tensor, spoiled: int) -> Stepped:
        after = self.after if self.k == _DIRECTIONS else self.after[..., : self.k, : self.k]
        return Stepped(following, after, not spoiled)


def _looks_along(X: Tensor, V: Tensor) -> bool:
    """Whether V are as many directions `(d, k)` of matrices X `(..., d, d)` as C looks along at once."""
    return is_numbers(V) and V.ndim == 2 and len(V) == X.shape[-1] and V.shape[-1] <= _DIRECTIONS


def _four(V: Tensor) -> Tensor:
    """Columns V `(..., k)`, and zeros in the place of those that are not there."""
    k = V.shape[-1]
    return (V if k == _DIRECTIONS else torch.nn.functional.pad(V, (0, _DIRECTIONS - k))).contiguous()


def _linked(U: Tensor, outer: Outer | None = None) -> Tensor:
    """The chain of layers that torch has made: they may depend on more than W."""
    return (chain if takes(U) else by_torch.chain)(U, outer)


@cache
def _pulled_back(name: str) -> Back:
    """What gives the gradient at W, after the products have been left in `room`."""

    def back(G: Tensor, room: Tensor, W: Tensor) -> Tensor:
        result = torch.empty_like(W)
        getattr(loaded(), name)(G.data_ptr(), room.data_ptr(), result.data_ptr())
        return result

    return back


def is_numbers(G: Tensor) -> bool:
    """Whether an outer gradient is no more than numbers that C can read."""
    return bare(G) and G.dtype is torch.float64 and G.is_cpu


def loaded() -> ctypes.CDLL:
    """The library, where it is there."""
    opened = library()
    assert opened is not None
    return opened


@cache
def _size(name: str, *sizes: int) -> int:
    """Scratch memory in numbers of float64."""
    return -(-getattr(library(), name)(*sizes) // 8)
