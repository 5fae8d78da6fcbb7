"""The weights along training, as a part of a dataset that stays small."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from .axes import Axis, arranged, axis

# Up to this size matrices are kept entry by entry, larger ones by their singular values; and no more numbers than this.
MOST_ROWS = 16
MOST_NUMBERS = 2**21


def kept(times: int, W: Tensor) -> Tensor | None:
    """What is kept at each of so many times of the weights `(N, d, d)`: they, or their singular values `(N, d)`.

    None where that would be too many numbers.
    """
    *_, N, d, _ = W.shape
    if d <= MOST_ROWS and times * N * d * d <= MOST_NUMBERS:
        return W.clone()
    return torch.linalg.svdvals(W) if times * N * d <= MOST_NUMBERS else None


def weights(values: Tensor, nodes: Tensor) -> xr.Dataset:
    """A dataset of what `kept` has given.

    Parameters
    ----------
    values : Tensor (T, N, d, d) or (T, N, d)
    nodes : Tensor (N,)
        Depth s of each.

    Returns
    -------
    xarray.Dataset
        "W" (time, s, row, column) or "W_singular_values" (time, s, mode).
    """
    variables, depth = weights_and_depth(values, nodes)
    return arranged(variables, [depth])


def weights_and_depth(values: Tensor, nodes: Tensor) -> tuple[dict[str, tuple[Any, Any, str]], Axis]:
    """The variable of `weights`, and its axis, for `arranged`."""
    depth = axis("s", nodes, "depth s", "1")
    if values.ndim == 3:
        return {"W_singular_values": (("time", "s", "mode"), values, "singular values of the weights")}, depth
    return {"W": (("time", "s", "row", "column"), values, "weights")}, depth
