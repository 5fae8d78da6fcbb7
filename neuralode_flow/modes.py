"""What torch may do with a tensor beside its numbers: derivatives, transforms, tracers, compilers.

Code that reads memory by its address, writes into memory of its own, or decides by numbers is for eager mode alone:
a derivative, a transform of torch.func, a tracer or a compiler does not see what it does. Such code asks here first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from .compat import pulled_back, torch_modes

P = ParamSpec("P")
R = TypeVar("R")

# Numbers up to which a tensor is small: beyond, what is computed takes longer than the calls.
_SMALL = 2048

_ORDINARY = (Tensor, torch.nn.Parameter)
_transform, _dispatch_modes, _tracing_state, _forward_level, _is_wrapped, _is_batched, _unwrapped, _autocast = (
    torch_modes()
)
_CASTING = ("cpu", "cuda", "xpu", "mps")  # where autocast multiplies float32 matrices in half of their digits
_is_compiling = torch.compiler.is_compiling


def eager() -> bool:
    """Whether no compiler, tracer, dispatch mode, transform of torch.func or forward-mode derivative is at work."""
    # The compiler is asked for first: it knows this question, and does not come to the others.
    return not (_is_compiling() or _dispatch_modes() or followed())


def followed() -> bool:
    """Whether a transform of torch.func, a forward-mode derivative or torch.jit.trace is at work."""
    return _transform() is not None or forward_mode() or _tracing_state() is not None


def forward_mode() -> bool:
    """Whether forward-mode derivatives are at work."""
    return _forward_level() >= 0


def derived(tensor: Tensor) -> bool:
    """Whether a derivative is taken through a tensor, or a transform of torch.func or a tracer is at work on it."""
    if (tensor.requires_grad and torch.is_grad_enabled()) or _tracing_state() is not None or _is_wrapped(tensor):
        return True
    return forward_mode() and torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def bare(tensor: Tensor) -> bool:
    """Whether a tensor is, in eager mode, its numbers and no more.

    It is no subclass, no derivative is recorded through it, and its numbers lie in memory as they are, and not up to a
    sign.
    """
    return type(tensor) in _ORDINARY and not (tensor.requires_grad and torch.is_grad_enabled()) and not tensor.is_neg()


def plain(tensor: Tensor) -> bool:
    """`bare`, and in eager mode: what is written in C or into given memory may take it."""
    return eager() and bare(tensor)


def array_of(tensor: Tensor, members: int = 1) -> np.ndarray | None:
    """The numbers of a tensor in NumPy, whose calls cost less; None where that would not be the same.

    That is for small float64 tensors on the CPU, of `plain` ones; of so many members where each is small.
    """
    ours = tensor.dtype == torch.float64 and tensor.is_cpu and tensor.numel() <= _SMALL * members and plain(tensor)
    return tensor.detach().numpy() if ours else None


def ordinary(tensor: Tensor) -> bool:
    """Whether nothing but autograd, as `torch.autograd.grad` and `backward` use it, may be at work on a tensor."""
    return eager() and type(tensor) in _ORDINARY


def hidden(tensor: Tensor) -> bool:
    """Whether Python may not decide by the numbers of a tensor.

    It is one of many under `vmap`, or a tracer or compiler would keep the decision for all later numbers.
    """
    if _is_compiling() or _dispatch_modes() or _tracing_state() is not None or type(tensor) not in _ORDINARY:
        return True
    while _is_wrapped(tensor):
        if _is_batched(tensor):
            return True
        tensor = _unwrapped(tensor)
    return False


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """A function that torch.compile leaves out of its graphs, and autocast in the precision of its arguments."""

    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in _CASTING:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _is_compiling():
            return torch.compiler.disable(precise)(*args, **kwargs)
        return precise(*args, **kwargs) if _autocast() else function(*args, **kwargs)

    return call


def unraised(function: Callable[P, R]) -> Callable[P, R]:
    """A function in which NumPy raises no error of floating point, nor speaks of numbers that underflow.

    Methods of integration look at such numbers themselves, and take steps that are too long to find out that they are.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        kept = {kind: "warn" for kind, answer in np.geterr().items() if answer == "raise"}
        with np.errstate(**(kept | {"under": "ignore"})):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return call


def in_inference_mode(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that needs autograd, to be called in inference mode."""

    def call(argument: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return function(argument.clone())

    return call


def gradient(
    function: Callable[[Tensor], Tensor], point: Tensor, outer: Callable[[Tensor], Tensor] | None = None
) -> Tensor | None:
    """∂function(point)ᵀ outer(function(point)), or the gradient of a scalar function; None where nothing leads to it.

    It can be called in every mode of torch, also where no gradients are recorded. Derivatives can be taken through it
    where they are recorded: with respect to the point and to all else that the function and `outer` depend on.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return gradient(function, point.clone(), outer)
    if point.is_inference():  # made in that mode, and refused by autograd also after it
        point = point.clone()
    if not ordinary(point):
        return _transformed(function, point, outer)
    recorded = torch.is_grad_enabled()
    follow = recorded and point.requires_grad
    with torch.enable_grad():
        # A view of its own: what the function knows of the point by other ways does not count.
        start = point.view_as(point) if follow else point.detach().requires_grad_()
        value = function(start)
        if not value.requires_grad:
            return None
        dual = None if outer is None else outer(value if follow else value.detach())
        if follow:
            return pulled_back(value, start, dual, create_graph=True)
        if recorded and ((dual is not None and not bare(dual)) or _leads_elsewhere(value, start)):
            return _transformed(function, point, outer)
        return pulled_back(value, start, dual)


def _transformed(
    function: Callable[[Tensor], Tensor], point: Tensor, outer: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """The same by torch.func, through which every mode sees."""
    value, pull = torch.func.vjp(function, point)[:2]
    return pull(torch.ones_like(value) if outer is None else outer(value))[0]


def _leads_elsewhere(value: Tensor, start: Tensor) -> bool:
    """Whether a value depends on tensors other than `start` that derivatives are recorded for."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not start:
            return True
        nodes += [edge[0] for edge in node.next_functions]
    return False
