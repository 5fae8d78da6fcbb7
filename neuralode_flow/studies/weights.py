"""The weights along training, as a part of a dataset."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

# Up to this size matrices are kept entry by entry, larger ones by their singular values.
MOST_ROWS = 16


def weights(W: Tensor, nodes: Tensor) -> xr.Dataset:
    """W(t, s), or its singular values where the matrices are large.

    Parameters
    ----------
    W : Tensor (T, N, d, d)
    nodes : Tensor (N,)
        Depth s of each.

    Returns
    -------
    xarray.Dataset
        "W" (time, s, row, column) or "W_singular_values" (time, s, mode).
    """
    coordinates = {"s": ("s", nodes.cpu().numpy(), {"long_name": "depth s", "units": "1"})}
    if W.shape[-1] > MOST_ROWS:
        values = torch.linalg.svdvals(W).cpu().numpy()
        attrs = {"long_name": "singular values of the weights"}
        return xr.Dataset({"W_singular_values": (("time", "s", "mode"), values, attrs)}, coordinates)
    attrs = {"long_name": "weights"}
    return xr.Dataset({"W": (("time", "s", "row", "column"), W.cpu().numpy(), attrs)}, coordinates)
