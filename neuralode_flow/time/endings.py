"""How a run can end: codes, and the sentences that say so."""

from __future__ import annotations

from types import MappingProxyType


class Stopped(Exception):
    """A run cannot, or need not, go on; `code` is a key of ENDINGS and the message the sentence of the status."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class UsedUp(Stopped):
    """A budget is used up; what was begun then is dropped, so that the run knows alone what time it has reached."""

    def __init__(self, code: str, budget: str, after: str = "") -> None:
        super().__init__(code, f"{budget} was used up{after}")
        self._budget, self._after = budget, after

    def at(self, t: float) -> str:
        """The sentence of a run that holds its trajectory up to t."""
        return f"{self._budget} was used up at t = {t:.6g}{self._after}"


ENDINGS = MappingProxyType(
    {
        "ok": "the last time was reached",
        "loss": "the loss fell to the value that was asked for",
        "gradient": "the gradient of the loss fell to the value that was asked for",
        "steady": "the state moves more slowly than was asked for",
        "sigma_min": "the smallest singular value of z fell to the bound",
        "norm": "the norm of z rose to the bound",
        "time": "the time that was asked for was reached",
        "event": "an event of the user's own happened",
        "unreachable": "the target has det < 0 and the flow keeps det > 0: the loss cannot fall to its minimum",
        "evaluations": "the budget of velocity evaluations was used up",
        "seconds": "the budget of wall time was used up",
        "underflow": "the step size underflowed: the tolerance cannot be met",
        "implicit": "the equations of an implicit step were not solved",
        "velocity": "the velocity could not be computed",
        "not_finite": "numbers left the finite range",
        "diverged": "steps of an optimiser have left the range of numbers, or let the loss grow without bound",
        "depth": "the depth grid does not resolve W",
        "escaped": "errors of steps or round-off have carried z across det z = 0, or off it: the exact flow does not",
        "accuracy": "the measured error is above ten times the tolerance, or could not be measured",
        "checkpoint": "the checkpoint could not be written",
        "interrupted": "the run has not ended: its checkpoint was read before",
    }
)

# Endings at the last time, with numbers to trust.
REACHED: tuple[str, ...] = ("ok", "unreachable")

# Endings that were asked for; the others say that something is in the way.
EVENTS_ASKED: tuple[str, ...] = ("loss", "gradient", "steady", "sigma_min", "norm", "time", "event")
