"""The arguments of `integrate` and `descend`, looked at before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..caution import warn
from ..checks import count, float_tensor, no_derivatives, of_members, positive, real, reals
from ..depth.grid import Profile, Remembered
from ..files import as_path
from ..flows.base import Flow, jacobian, jacobians, missing, own_velocity, restricted
from ..flows.capabilities import Samples, offers
from ..flows.intrinsic import IntrinsicFlow
from ..losses import check_derivatives
from ..matrices import lost_values
from .base import FAILURES, METHODS, Control, differentiates, fixed_steps
from .resolution import unwarned
from .trajectory import Trajectory

_RTOL, _ATOL = 1e-8, 1e-10

# Errors of so many tolerances are too large, as in `estimate`.
_FAR_OFF = 10.0

# Numbers of a state whose derivative is made as a matrix.
_MOST_DERIVED = 1024


def output_times(times: Tensor | Sequence[float]) -> list[float]:
    """The output times; TypeError or ValueError unless they are numbers that increase, and carry no derivatives."""
    for given in (times, *(times if isinstance(times, list | tuple) else ())):
        if isinstance(given, Tensor):
            no_derivatives("times", given)
    try:
        values = reals(times)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"times must be a sequence of real numbers, got {times!r} ({error})") from error
    if values.ndim != 1:
        raise ValueError(f"times must have shape (T,), got {tuple(values.shape)}")
    points = float_tensor("times", values)
    steps = torch.diff(points)
    if not bool((steps > 0).all()):
        i = int((steps <= 0).nonzero()[0])
        raise ValueError(f"times must increase strictly, got {points[i]:.6g} followed by {points[i + 1]:.6g}")
    return points.tolist()


def checked_start(flow: Flow, state: Tensor | Profile) -> tuple[Flow, Tensor, Profile | None]:
    """The flow, its initial state, and the function of depth that it is sampled from, if any."""
    lacking = missing(flow)
    if isinstance(flow, type):
        raise TypeError(f"flow must be a flow and not the class {flow.__name__}: make one, such as {flow.__name__}(…)")
    if lacking:
        raise TypeError(f"flow must be a flow such as ContinuousFlow, got {type(flow).__name__} without {lacking[0]}")
    if isinstance(state, Trajectory):  # with dense output it can be called, but with times
        raise TypeError(
            "state must be a tensor or a function of depth, got a Trajectory: give its `state` to begin anew at its "
            "end; with checkpoint=FILE the same call with more times after the same ones, or more steps, goes on"
        )
    profile = None if isinstance(state, Tensor) or not callable(state) else Remembered(state)
    start: Any = state
    samples = offers(flow, Samples)
    if profile is not None and samples:
        start = unwarned(flow, profile)
    elif profile is not None:
        raise TypeError(f"state must be a tensor for {type(flow).__name__}, which samples no function of depth")
    if isinstance(start, Tensor):
        no_derivatives("state", start)
        if start.is_meta:
            raise TypeError("state must hold numbers, got a tensor on the device meta, which has none")
        start = start.resolve_neg()  # NumPy does not read numbers up to a sign
    _check_numbers(flow)
    if profile is None:
        flow.check(start)
    recorded = False
    with suppress(*FAILURES):  # the run tells of them
        z = flow.product(start)
        value: object = flow.loss(z)
        if not isinstance(value, Tensor):
            raise TypeError(f"the loss {type(flow.loss).__name__} must give a torch tensor, got {type(value).__name__}")
        recorded = torch.is_grad_enabled() and value.requires_grad
        check_derivatives(flow.loss, z.detach())
    if recorded:
        raise TypeError(
            "flow depends on a tensor that requires a gradient, but a run does not carry derivatives through "
            "time: detach that tensor, or call it under torch.no_grad()"
        )
    return flow, start.detach(), profile


def kept(start: Tensor, *shown: Any) -> Tensor:
    """The start of a run: a copy where functions of the caller see the run, and may write into the tensor."""
    return start.clone() if any(callable(function) for function in shown) else start


def _check_numbers(flow: Flow) -> None:
    """Raises where derivatives are taken for a tensor of the flow, its loss, kernel, grid or depth solver."""
    own = getattr(flow, "__dict__", {})
    for owner, part in [("flow", flow), *((f"flow.{name}", part) for name, part in own.items())]:
        for name, tensor in getattr(part, "__dict__", {}).items():
            if isinstance(tensor, Tensor):
                no_derivatives(f"{owner}.{name}", tensor)


def checked_control(rtol: float, atol: float | None, step: float | None, start: Tensor, fixed: bool) -> Control:
    """The accuracy wanted of the method, as far as the dtype of the state holds it."""
    wanted = {"rtol": positive("rtol", rtol), "atol": _ATOL if atol is None else positive("atol", atol)}
    raised = []
    eps = torch.finfo(start.dtype).eps
    for name, floor in (("rtol", 100 * eps), ("atol", eps * float(start.abs().max().clamp(min=1.0)))):
        if wanted[name] < floor:
            if name == "rtol" or atol is not None:
                raised.append(f"{name} = {wanted[name]:g} to {floor:.2g}")
            wanted[name] = floor
    if raised and not fixed:
        warn(f"tolerances below what {start.dtype} can hold are raised: {' and '.join(raised)}", UserWarning)
    return Control(**wanted, step=None if step is None else positive("step", step))


def check_shared_atol(flow: Any, start: Tensor, control: Control, asked: float | None) -> None:
    """Warns where the largest member of a batch raises atol far above what was asked of the smallest."""
    own = max(_ATOL if asked is None else asked, torch.finfo(start.dtype).eps)
    if control.atol <= _FAR_OFF * own:
        return
    try:
        members = flow.loss(flow.product(start)).shape
    except FAILURES:  # the run tells of them
        return
    if not members or start.shape[: len(members)] != members:
        return
    sizes = start.abs().reshape(members.numel(), -1).amax(-1)
    least = float(sizes.min())
    own = max(own, torch.finfo(start.dtype).eps * least)
    if control.atol > _FAR_OFF * (own + control.rtol * least):
        warn(
            f"members of a batch have one atol, which the largest, with entries of {float(sizes.max()):.3g}, raises to "
            f"{control.atol:.2g}; the smallest, with entries of at most {least:.3g}, would have {own:.2g} alone: "
            f"integrate members of such different sizes one by one"
        )


def check_round_off(flow: Any, start: Tensor, rtol: float = _RTOL, atol: float = _ATOL) -> None:
    """Warns where the velocity of a closed flow depends on singular values that are round-off, above the tolerance.

    A z that is singular up to round-off has others than 0, of which K may have a root; no error that is measured knows.
    """
    if not (isinstance(flow, IntrinsicFlow) and own_velocity(flow, IntrinsicFlow)):
        return
    sigma = torch.linalg.svdvals(start)
    lost = lost_values(start, sigma)
    if not bool(lost.any()):
        return
    K, without = flow.kernel(sigma), flow.kernel(sigma.masked_fill(lost, 0.0))
    part = (K - without).abs().amax((-2, -1)) / K.abs().amax((-2, -1))
    part = torch.where(lost.any(-1), part, 0.0)
    # Of K; paths were off by up to six times as much.
    doubtful = _FAR_OFF * part > rtol + atol / sigma[..., 0]
    if not bool(doubtful.any()):
        return
    ratio = float((torch.where(lost, sigma, 0.0).amax(-1) / sigma[..., 0])[doubtful].max())
    counts = getattr(flow.kernel, "near_zero", None)
    instead = (
        ""
        if flow.kernel.positive_determinant
        else (", or one that is exactly singular: a diagonal z0 with entries 0 (turn the problem), or singular layers")
    )
    warn(
        f"state{of_members(doubtful)} is singular up to round-off: the ratio {ratio:.2g} of its least singular value "
        f"to its largest has no true digit{f', and counts as {counts}' if counts else ''}. The kernel differs by "
        f"{float(part[doubtful].max()):.2g} (relative) from that at 0, and errors that are measured do not include "
        f"what this does to z: start from a z0 that is not singular{instead}"
    )


def check_derivative(flow: Any, start: Tensor, method: str, apart: bool) -> None:
    """Raises where a method needs a derivative of the velocity that the flow has not, or that is too large.

    It is one of all members together, or of each where they take steps of their own.
    """
    if not differentiates(METHODS[method]):
        return
    try:
        members = flow.loss(flow.product(start)).shape
        alone = apart and len(members) > 0
        first = start.flatten(0, len(members) - 1)[:1] if alone else start
        if first.numel() > _MOST_DERIVED:
            hint = ", or control='member' for the members of a batch" if members and not apart else ""
            raise ValueError(
                f"method={method!r} makes the derivative of the velocity as a matrix, of states of up to "
                f"{_MOST_DERIVED} numbers, and here it has {first.numel()}: choose auto or CVODE_BDF{hint}"
            )
        if alone:
            jacobians(restricted(flow, members, torch.tensor([0], device=start.device)), first)
        else:
            jacobian(flow, first)
    except FAILURES:  # the run tells of them
        pass
    except TypeError as error:
        raise TypeError(f"method={method!r} cannot move this flow: {error}; choose auto, BDF or CVODE_BDF") from error


def check_budgets(
    max_evaluations: int, max_seconds: float | None, control: Control, points: list[float], method: str
) -> None:
    """Raises unless the budgets are positive, and the step is for this method and fits them."""
    count("max_evaluations", max_evaluations)
    if max_seconds is not None:
        positive("max_seconds", max_seconds)
    step = control.step
    if step is None:
        return
    if (points[-1] - points[0]) / step > max_evaluations:
        raise ValueError(
            f"step = {step:g} takes more steps than max_evaluations = {max_evaluations}: raise one of them"
        )
    if not fixed_steps(METHODS[method]):
        raise ValueError(
            f"step = {step:g} is for methods of fixed steps, and {method} chooses its own: leave step out, or use "
            f"rtol and atol"
        )


def check_options(observe: Any, progress: Any, **flags: Any) -> None:
    """Raises TypeError unless the functions can be called and the flags are True or False."""
    if observe is not None and not callable(observe):
        raise TypeError(f"observe must be a function (i, state), got {observe!r}")
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be True, False or a function, got {progress!r}")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_checks(checks: bool, **options: bool) -> None:
    """Raises ValueError where nothing is to be measured that an option needs."""
    for name, on in options.items():
        if on and not checks:
            raise ValueError(
                f"{name}=True needs the error in depth, and checks=False measures none: leave one of them out"
            )


def checked_path(checkpoint: str | Path | None, every: float) -> Path | None:
    """The file of the checkpoint, if one is wanted."""
    if real("every", every) < 0:
        raise ValueError(f"every must be at least 0 seconds, got {every!r}")
    if checkpoint is None:
        return None
    path = as_path("checkpoint", checkpoint)
    if path.is_dir() or str(checkpoint).endswith("/"):
        raise ValueError(f"checkpoint={checkpoint} is a folder; give a file in it, such as {path / 'run.npz'}")
    return path
