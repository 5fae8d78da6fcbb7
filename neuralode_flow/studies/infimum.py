"""How far training has come: its loss against the infimum over all z that a flow can reach."""

from __future__ import annotations

from typing import Any

import xarray as xr

from ..losses import Loss

LONG_NAME = "infimum of the loss over det z > 0"


def variable(loss: Loss) -> dict[str, tuple[Any, float, str]]:
    """`loss_infimum` for `arranged`, where the loss knows it, of one problem and not of each member."""
    infimum = loss.infimum() if hasattr(loss, "infimum") else None
    if infimum is None or infimum.numel() != 1:
        return {}
    return {"loss_infimum": ((), float(infimum), LONG_NAME)}


def numbers(dataset: xr.Dataset, trained: str) -> dict[str, Any]:
    """What summary.json has of it; nothing where the infimum is not known.

    Parameters
    ----------
    dataset : xarray.Dataset
        With `loss_infimum` where it is known.
    trained : str
        Its variable of the loss in training (time).
    """
    if "loss_infimum" not in dataset:
        return {}
    start, end, least = (float(value) for value in (*dataset[trained].values[[0, -1]], dataset["loss_infimum"]))
    way = (start - end) / (start - least) if start > least else None
    return {"loss_start": start, "loss_end": end, "loss_infimum": least, "loss_way": way}


def verdict(dataset: xr.Dataset, trained: str) -> str:
    """The same in a sentence, with a blank before it; empty where the infimum is not known."""
    found = numbers(dataset, trained)
    if not found or found["loss_way"] is None:
        return ""
    return (
        f" Training takes the loss from {found['loss_start']:.4g} to {found['loss_end']:.4g}, "
        f"{100 * found['loss_way']:.0f} % of the way to its infimum over det z > 0 ({found['loss_infimum']:.4g})."
    )
