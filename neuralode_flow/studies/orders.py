"""Observed orders of convergence, from the straight part of an error curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Nearer to the floor than this the floor bends the curve: at 30 it moves a slope over one doubling by at most 0.05.
ABOVE_FLOOR = 30.0
STRAIGHT = 0.1


class Order(NamedTuple):
    """An observed order p in error ~ L^{−p}.

    value : least-squares slope over the straight part; NaN when fewer than two errors can be trusted.
    spread : half the range of the local slopes there; NaN when there is only one.
    points : number of errors that the slope rests on.
    """

    value: float
    spread: float
    points: int


def local_orders(depths: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """−log(e_{i+1}/e_i) / log(L_{i+1}/L_i): `(n,)`, `(n,)` → `(n−1,)`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.diff(np.log(errors)) / np.diff(np.log(depths))


def observed_order(depths: np.ndarray, errors: np.ndarray, floor: float) -> Order:
    """The order of convergence of `errors` in 1/`depths`.

    Errors within a factor 30 of `floor` are dropped, then coarse depths as long as the local slope there differs from
    the finest one by more than 0.1.

    Parameters
    ----------
    depths, errors : array (n,)
        Depths increasing.
    floor : float
        Size of the error that does not depend on the depth.
    """
    trusted = np.isfinite(errors) & (errors > ABOVE_FLOOR * floor)
    L, e = depths[trusted].astype(float), errors[trusted]
    if len(e) < 2:
        return Order(float("nan"), float("nan"), len(e))
    slopes = local_orders(L, e)
    bent = np.flatnonzero(np.abs(slopes - slopes[-1]) > STRAIGHT)
    first = int(bent[-1]) + 1 if len(bent) else 0
    value = -np.polyfit(np.log(L[first:]), np.log(e[first:]), 1)[0]
    straight = slopes[first:]
    spread = (straight.max() - straight.min()) / 2 if len(straight) > 1 else float("nan")
    return Order(float(value), float(spread), len(e) - first)
