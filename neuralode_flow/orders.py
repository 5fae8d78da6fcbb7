"""Observed orders of convergence, from the straight part of an error curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .display import with_error

if TYPE_CHECKING:
    from torch import Tensor

# Nearer to the floor than this the floor bends the curve: at 30 it moves a slope over one doubling by at most 0.05.
ABOVE_FLOOR = 30.0

# The local slopes of a straight part differ by no more than this. Two slopes alone cannot show that they still move:
# beside L^{−p} a part of order p + 1 that is left in them is 1.3 to 1.8 times their difference.
STRAIGHT, STRAIGHT_OF_TWO = 0.1, 0.05

# Below this slope an error does not fall.
FLAT = 0.1

# Of four errors any three may lie on a line by chance: where one is left out, four must.
LEAST_POINTS, LEAST_WITH_ONE_OUT = 3, 4

UNDECIDED = float("nan")
STRAIGHT_PART = "the straight part"  # of an error curve


class Order(NamedTuple):
    """An observed order p in error ~ L^{−p}.

    value : least-squares slope over the straight part; NaN when it is undecided.
    spread : half the range of the local slopes there.
    points : number of errors that the slope rests on, at least three, or 0.
    reason : why it is undecided; empty where it is not.
    falls : False where the errors have stopped to fall although they are above the floor: there is no convergence.
    last : the larger of the last two local slopes, also where the order is undecided: one error alone makes a slope
        too small on one side of it only.
    rule : what it is the order of.
    expected : the order that theory says; NaN where it says none.
    over : what the errors are taken at, in the plural.
    spread_of : over what the spread is taken; of a mean over members it is their standard deviation.
    """

    value: float
    spread: float
    points: int
    reason: str = ""
    falls: bool = True
    last: float = UNDECIDED
    rule: str = ""
    expected: float = UNDECIDED
    over: str = "depths"
    spread_of: str = STRAIGHT_PART

    def __repr__(self) -> str:
        expected = "" if np.isnan(self.expected) else f", expected {self.expected:g}"
        return f"Order({self.rule}{': ' if self.rule else ''}{self}{expected})"

    def __str__(self) -> str:
        if self.reason:
            return f"undecided ({self.reason})"
        told = "" if self.spread_of == STRAIGHT_PART or np.isnan(self.spread) else f" (± over {self.spread_of})"
        return f"{with_error(self.value, self.spread, '.2f')} over {self.points} {self.over}{told}"


def local_orders(depths: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """−log(e_{i+1}/e_i) / log(L_{i+1}/L_i): `(n,)`, `(n,)` → `(n−1,)`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _slopes(np.log(depths), np.log(errors))


def observed_order(depths: np.ndarray, errors: np.ndarray, floor: float, noise: np.ndarray | None = None) -> Order:
    """The order of convergence of `errors` in 1/`depths`, or the reason why it is undecided.

    Errors within a factor 30 of `floor` are dropped. Of the rest the order is the slope of the longest straight part
    that reaches to the finest depth: at least three errors, their local slopes within 0.1 (0.05 if there are only two,
    more where the errors are noisy). One error anywhere may be left out where four others agree, so that a single one
    that is spoilt, or no number, neither decides the order nor hides it.

    Parameters
    ----------
    depths, errors : array (n,)
        Depths increasing.
    floor : float
        Size of the error that does not depend on the depth.
    noise : array (n,), optional
        Relative standard errors of the errors, where they are means over members.
    """
    errors = np.asarray(errors, dtype=float)
    unknown = int((~np.isfinite(errors)).sum())
    if unknown > 1:
        return _undecided(f"{unknown} of {len(errors)} errors are no numbers")
    least, beside = (LEAST_WITH_ONE_OUT, " beside one that is no number") if unknown else (LEAST_POINTS, "")
    trusted = np.isfinite(errors) & (errors > max(ABOVE_FLOOR * floor, 0.0))
    L, e = np.asarray(depths, dtype=float)[trusted], errors[trusted]
    s = np.zeros(len(e)) if noise is None else np.asarray(noise, dtype=float)[trusted]
    if len(e) < least:
        return _undecided(
            f"{len(e)} of {len(errors)} errors are above {ABOVE_FLOOR:g} times the floor {floor:.1g}, "
            f"and it takes {least}{beside}"
        )
    everything, logs = np.arange(len(e)), (np.log(L), np.log(e))
    part = _straight_part(everything, *logs, s)
    if not unknown and len(e) - 1 > max(len(part), LEAST_WITH_ONE_OUT - 1):
        without_one = max((_straight_part(np.delete(everything, k), *logs, s) for k in everything[::-1]), key=len)
        if len(without_one) > max(len(part), LEAST_WITH_ONE_OUT - 1):
            part = without_one
    # With two standard errors of a slope on top.
    last = float((_slopes(*logs) + 2 * np.hypot(s[1:], s[:-1]) / _steps(logs[0]))[-2:].max())
    if len(part) < least:
        number = "four" if unknown else "three"
        return _undecided(f"no {number} errors at the fine end lie on a line{beside}")._replace(last=last)
    log_L, log_e = (log[part] for log in logs)
    x = log_L - log_L.mean()
    value = -float(x @ log_e / (x @ x))
    if value < FLAT:
        return _undecided(f"the errors do not fall from {L[part[0]]:g} on", falls=False)
    return Order(value, float(np.ptp(_slopes(log_L, log_e))) / 2, len(part), last=last)


def extrapolated(depths: Sequence[int], values: np.ndarray, order: int) -> np.ndarray:
    """The limit of `values` `(n, …)` in which errors are sums of powers of 1/L^order, L of `depths`: Richardson's."""
    x = np.asarray(depths, dtype=float) ** -order
    weights = [np.prod([other / (other - own) for other in np.delete(x, i)]) for i, own in enumerate(x)]
    return np.tensordot(weights, values, 1)


def relative_noise(gaps: Tensor) -> float:
    """The relative standard error of the root mean square of the distances of members, `(members,)`; 0 of one."""
    if len(gaps) == 1:
        return 0.0
    squares = gaps.square()
    mean = float(squares.mean())
    return float(squares.std()) / (2 * mean * len(gaps) ** 0.5) if mean > 0 else 0.0


def said(orders: Sequence[Order]) -> str:
    """The orders of several curves in a few words: their range, and why any of them is undecided."""
    decided = [order.value for order in orders if not order.reason]
    lost = [order.reason for order in orders if order.reason]
    parts = [f"{min(decided):.3f} to {max(decided):.3f}"] if decided else []
    return ", ".join(parts + ([f"undecided for {len(lost)} of {len(orders)} ({lost[0]})"] if lost else []))


def said_each(orders: Mapping[str, Order]) -> str:
    """The orders of a few curves by their names, and of which of them it is undecided."""
    decided = {name: order for name, order in orders.items() if not order.reason}
    lost = [name for name, order in orders.items() if order.reason]
    values = ", ".join(f"{order.value:.2f}" for order in decided.values())
    parts = [f"{values} ({', '.join(decided)})"] if decided else []
    return ", ".join(parts + ([f"undecided for {', '.join(lost)}"] if lost else []))


def said_one(order: Order) -> str:
    """An order after "at", in words where it is undecided."""
    return "an undecided order" if order.reason else f"order {order.value:.2f}"


def _undecided(reason: str, *, falls: bool = True) -> Order:
    return Order(UNDECIDED, UNDECIDED, 0, reason, falls)


def _steps(values: np.ndarray) -> np.ndarray:
    """From each value to the next, as `np.diff` has them, which takes longer."""
    return values[1:] - values[:-1]


def _slopes(log_L: np.ndarray, log_e: np.ndarray) -> np.ndarray:
    """`local_orders` of what the logarithms are known of."""
    return -_steps(log_e) / _steps(log_L)


def _straight_part(kept: np.ndarray, log_L: np.ndarray, log_e: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The last of the points `kept`, as many as lie on a line; fewer than three where they do not."""
    log_L, noise = log_L[kept], noise[kept]
    slopes = _slopes(log_L, log_e[kept])
    # Two standard errors of a slope.
    loose = 2 * np.hypot(noise[1:], noise[:-1]) / _steps(log_L)
    for first in range(len(slopes) - 1):
        here = slopes[first:]
        allowed = STRAIGHT if len(here) > 2 else STRAIGHT_OF_TWO
        if np.max(here - loose[first:]) - np.min(here + loose[first:]) <= allowed and not _bends(here, loose[first:]):
            return kept[first:]
    return kept[:0]


def _bends(slopes: np.ndarray, loose: np.ndarray) -> bool:
    """Whether slopes that all move one way have, as far as they tell, further to go than a straight line allows.

    Beside L^{−p} a part of a higher order leaves about as much in the last slope as the last two differ by.
    """
    steps = _steps(slopes)
    if len(steps) < 2 or not (np.all(steps > 0) or np.all(steps < 0)):
        return False
    return bool(abs(steps[-1]) - loose[-1] - loose[-2] > STRAIGHT_OF_TWO or abs(steps[-1]) > 1.2 * abs(steps[0]) > 0.01)
