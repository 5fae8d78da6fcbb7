"""Where training comes to rest: gradient flow, gradient descent at the edge of stability, and the central flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..curvature import balanced_spectrum, minimiser_spectrum, sharpness
from ..curvature.flow import CentralFlow
from ..flows.base import Flow
from ..flows.capabilities import inner_weights
from ..flows.continuous import ContinuousFlow
from ..time.descend import descend
from ..time.integrate import integrate
from ..time.trajectory import Trajectory
from .base import Clock, whole

# Until then gradient flow must have come to its end.
_FAR = 1e5

# What there must be between the sharpness in which the flow ends and the least one, relatively.
_ROOM = 0.01

# Fixed steps: the central flow goes back to 2/η within about a step of gradient descent, and has kinks where the error
# control of other methods lingers. They are the rate cut in two: those of η itself are at their limit of stability.
_CENTRAL_METHOD, CUT = "heun2", 2

# Entries of a state up to which its Hessian is made once, of all directions side by side: of more, the products that
# Lanczos' method asks for one after the other take less time.
_SMALL = 256


@dataclass(frozen=True, eq=False)
class Edge:
    """A rate whose 2/η lies between the least sharpness of minimisers and the one in which gradient flow ends.

    Attributes
    ----------
    start, flow, least : float
        Sharpness at the start and at the end of gradient flow, and that of relaxed balanced weights with the z of this
        end: the least there is, where the loss has the Hessian I in z.
    between : float
        Where 2/η lies from `least`, 0, to `flow`, 1.
    state : Tensor
        Weights in which gradient flow ends.
    """

    start: float
    flow: float
    least: float
    between: float
    state: Tensor = field(repr=False)

    @property
    def value(self) -> float:
        """2/η."""
        return self.least + self.between * (self.flow - self.least)

    @property
    def rate(self) -> float:
        """η."""
        return 2 / self.value

    @property
    def nothing_to_show(self) -> str:
        """Why gradient descent of this rate shows nothing of the edge, and what to change; empty where it does."""
        if self.flow < (1 + _ROOM) * self.least:
            return (
                f"gradient flow ends at sharpness {self.flow:.6g}, and relaxed balanced weights with that z have "
                f"{self.least:.6g}: no edge lies between them; take a start that is not relaxed balanced, such as "
                f"initial=detour"
            )
        if self.flow <= self.start:
            return (
                f"gradient flow ends at sharpness {self.flow:.4g}, below the {self.start:.4g} at its start: nothing "
                f"rises to an edge; take a start nearer to the identity, or a target further from it"
            )
        if self.value <= self.start:
            return (
                f"the start has sharpness {self.start:.4g}, above 2/η = {self.value:.4g}: it is beyond the edge that "
                f"it should rise to; raise study.between, {self.between:g}"
            )
        return ""


@dataclass(frozen=True, eq=False)
class Rest:
    """Weights at which gradient descent has settled.

    Attributes
    ----------
    state : Tensor
    steps : int
    sharpness : float
    left : float
        How far that is about from the sharpness at the minimiser itself.
    """

    state: Tensor
    steps: int
    sharpness: float
    left: float


class Path(NamedTuple):
    """Times (T,), loss (T,), z (T, d, d) and weights (T, N, d, d) of a training."""

    times: Tensor
    loss: Tensor
    z: Tensor
    W: Tensor


class NotSettled(RuntimeError):
    """A training did not come to rest."""


def at_rest(flow: Flow, state: Tensor) -> float:
    """The sharpness at a minimiser, by the spectrum on the space of z."""
    return float(minimiser_spectrum(flow, state)[0])


def edge(clock: Clock, flow: Flow, state: Tensor, between: float, settled: float, name: str) -> Edge:
    """The edge for the rate that is asked for, by the end of gradient flow from a state.

    Raises
    ------
    NotSettled
        If the flow does not come to an end.
    """
    options = clock.options(f"{name}-flow") | {"progress": False}  # nobody knows how long it takes
    path = integrate(flow, state, [0.0, _FAR], stop={"gradient": settled}, **options)
    if path.ending != "gradient":
        gradient = float(torch.linalg.matrix_norm(flow.loss.gradient(path.z[-1])))
        raise NotSettled(
            f"gradient flow did not come to an end: at t = {float(path.times[-1]):.3g} the gradient of the loss is "
            f"{gradient:.2g}, above study.settled = {settled:g} ({path.status}); take a problem that has a minimiser "
            f"with det z > 0, raise study.settled, or set time.method=auto"
        )
    least = float(balanced_spectrum(flow.loss, path.z[-1])[0])
    return Edge(float(sharpness(flow, state).value), at_rest(flow, path.state), least, between, path.state)


def settle(clock: Clock, flow: Flow, state: Tensor, rate: float, settled: float, steps: int, name: str) -> Rest:
    """Gradient descent until the gradient of the loss is at most `settled`, and what is left of its sharpness.

    Near the minimiser sharpness is linear in the gradient of the last mode to settle, so that a tenth of it leaves a
    tenth of the distance.

    Raises
    ------
    NotSettled
        If it is not after so many steps.
    """
    taken, found = 0, []
    for part, bound in enumerate((10 * settled, settled)):
        options = kept(clock, f"{name}-settle-{part}")
        path = descend(flow, state, steps, "gd", rate, record=steps, stop={"gradient": bound}, **options)
        taken, state = taken + path.stats["steps"], path.state
        if path.ending != "gradient":
            raise NotSettled(
                f"gradient descent of {name} with η = {rate:.4g} did not settle: after {taken} steps the loss is "
                f"{float(path.loss[-1]):.3g} and its gradient is above study.settled = {settled:g} ({path.status}); "
                f"raise study.steps, {steps}, or study.between, which makes η smaller"
            )
        found.append(at_rest(flow, state))
    return Rest(state, taken, found[1], abs(found[1] - found[0]) / 9)


def kept(clock: Clock, name: str) -> dict[str, Any]:
    """What `descend` takes of the options of a clock."""
    wanted = ("checkpoint", "every", "max_seconds")
    return {key: value for key, value in clock.options(name).items() if key in wanted}


def between_records(clock: Clock, rate: float) -> int:
    """Steps from one output to the next: the output times are moved to whole multiples of the rate."""
    return max(1, round(float(clock.times[-1] / (len(clock.times) - 1)) / rate))


def followed(clock: Clock, flow: Flow, state: Tensor, rate: float, name: str) -> Path:
    """Gradient descent along the output times."""
    every, number = between_records(clock, rate), len(clock.times) - 1
    options = kept(clock, f"{name}-descent")
    path = descend(flow, state, every * number, "gd", rate, record=every, observe=_weights, **options)
    return _seen(path, f"gradient descent of {name}")


def halves(times: Tensor, rate: float) -> Tensor:
    """The output times of gradient descent, each followed by that half a step later."""
    return torch.stack((times, times + rate / 2), dim=-1).flatten()


def times_off(times: Tensor, steps: Tensor, rate: float) -> float:
    """By how many steps times are off those at which gradient descent was looked at, and half a step later, in turn."""
    expected = torch.stack((steps, steps + rate / 2), dim=-1).flatten()
    return float((times - expected).abs().max() / rate)


def flowed(clock: Clock, flow: Flow, state: Tensor, times: Tensor, name: str) -> Path:
    """Gradient flow at those times."""
    path = integrate(flow, state, times, observe=_weights, **clock.options(f"{name}-path"))
    return _seen(path, f"gradient flow of {name}")


def centred(clock: Clock, flow: Flow, state: Tensor, rate: float, times: Tensor, name: str, cut: int = CUT) -> Path:
    """The central flow at those times, in steps of the rate over `cut`."""
    steps = {"method": _CENTRAL_METHOD, "step": rate / cut}
    options = clock.options(f"{name}-central-{cut}") | steps
    path = integrate(CentralFlow(gathered(flow, state), rate), state, times, observe=_weights, **options)
    return _seen(path, f"central flow of {name}")


def unprojected(flow: Flow, state: Tensor, rate: float) -> float:
    """|⟨V − v, V⟩| over ‖v‖², v the velocity of the flow and V that of the central flow.

    0 at the edge, where V is what is left of v when the directions along which eigenvalues of the Hessian would rise
    are taken out.
    """
    with torch.no_grad():
        plain, held = flow.velocity(state), CentralFlow(gathered(flow, state), rate).velocity(state)
    weights = inner_weights(flow).to(state)
    return float((weights * (held - plain) * held).sum().abs() / (weights * plain.square()).sum())


def means(flow: Flow, W: Tensor, rate: float) -> Tensor:
    """The means of iterates and their successors, (T, …): half a step later, without the oscillation."""
    return torch.stack([state + rate / 2 * flow.velocity(state) for state in W])


def apart(flow: Flow, W: Tensor, V: Tensor) -> Tensor:
    """The distance of weights at each time in the inner product in which the flow descends, (T,)."""
    return (inner_weights(flow).to(W) * (W - V).square()).flatten(1).sum(1).sqrt()


def sharpness_along(flow: Flow, W: Tensor) -> Tensor:
    """The sharpness at each time, (T,)."""
    flow = gathered(flow, W[0])
    return torch.stack([sharpness(flow, state).value for state in W])


class Gathered(ContinuousFlow):
    """The continuous model, with its linearised velocity as one matrix, (n, n) of the n entries of a state."""

    def linearised(self, state: Tensor) -> Callable[[Tensor], Tensor] | None:
        """As of ContinuousFlow, of one state alone."""
        n = state.numel()
        known = super().linearised(state.expand(n, *state.shape))
        if known is None:
            return None
        columns = known(torch.eye(n, dtype=state.dtype, device=state.device).reshape(n, *state.shape)).reshape(n, n)
        return lambda direction: (direction.reshape(n) @ columns).reshape(direction.shape)


def gathered(flow: Flow, state: Tensor) -> Flow:
    """The flow, in the form whose spectra take least time."""
    if type(flow) is ContinuousFlow and state.numel() <= _SMALL:
        return Gathered(flow.grid, flow.loss, flow.depth)
    return flow


def case(
    clock: Clock, flow: Flow, starts: Sequence[Tensor], between: float, settled: float, steps: int, name: str
) -> dict[str, float]:
    """How far gradient flow and the central flow are from gradient descent from the first start that shows an edge.

    The distances are the largest over the second half of the output times.

    Raises
    ------
    NotSettled
        If none of the starts shows one.
    """
    why = ""
    for drawn, state in enumerate(starts):
        this = f"{name}-{drawn}"
        try:
            found = edge(clock, flow, state, between, settled, this)
            why = found.nothing_to_show
            if why:
                continue
            settle(clock, flow, state, found.rate, settled, steps, this)
        except NotSettled as error:
            why = str(error)
            continue
        descent = followed(clock, flow, state, found.rate, this)
        times, mean = halves(descent.times, found.rate), means(flow, descent.W, found.rate)
        paths = (
            flowed(clock, flow, state, times, this),
            centred(clock, flow, state, found.rate, times, this),
        )
        late = len(mean) // 2
        of_flow, of_central = (float(apart(flow, path.W[1::2], mean)[late:].max()) for path in paths)
        off = max(times_off(path.times, descent.times, found.rate) for path in paths)
        ends = {"edge": found.value, "end": found.flow}
        return {"flow": of_flow, "central": of_central, **ends, "times_off": off, "drawn": drawn}
    raise NotSettled(
        f"none of {len(starts)} drawn starts shows an edge; of the last: {why}; change study.detour, or study.between"
    )


def _weights(i: int, state: Tensor) -> Tensor:
    return state.clone()


def _seen(path: Trajectory, what: str) -> Path:
    """What `_weights` has observed of a path that is whole."""
    W = whole(path, what).observed
    assert W is not None
    return Path(path.times, path.loss, path.z, W)
