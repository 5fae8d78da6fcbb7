"""The loss on rows that training does not see, along the path of z, beside that of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..display import evenly
from ..finding import DATA, Finding
from ..losses import Loss
from ..problems import Problem

LONG_NAME = "loss on the rows held out"
_MOST_TIMES = 101  # in a summary, which must stay small; the dataset has all of them


def along(loss: Loss, z: Tensor | np.ndarray) -> np.ndarray:
    """The loss of each of many z, `(…, d, d)`: `(…)`; one at a time, since a loss may keep n rows for each."""
    maps = torch.as_tensor(z)
    each = maps.reshape(-1, *maps.shape[-2:])
    return np.array([float(loss(one)) for one in each]).reshape(maps.shape[:-2])


def numbers(dataset: xr.Dataset, trained: str) -> dict[str, Any]:
    """What summary.json has of both losses, the largest of all members; nothing where no rows are held out.

    Parameters
    ----------
    dataset : xarray.Dataset
        With `loss_held_out` (time, …) where rows are held out.
    trained : str
        Its variable of the loss in training.
    """
    if "loss_held_out" not in dataset:
        return {}
    losses = {"train": _largest(dataset[trained]), "held_out": _largest(dataset["loss_held_out"])}
    held, times = losses["held_out"], dataset.time.values
    shown = evenly(len(times), _MOST_TIMES)
    least = int(held.argmin()) if np.isfinite(held).any() else 0
    return {
        "loss_train": losses["train"][-1],
        "loss_held_out": held[-1],
        "loss_held_out_least": held[least],
        "loss_held_out_least_time": times[least],
        "losses_along_training": {"time": times[shown]} | {name: values[shown] for name, values in losses.items()},
    }


def verdict(dataset: xr.Dataset, trained: str) -> str:
    """Both losses in a sentence, with a blank before it; empty where no rows are held out."""
    found = numbers(dataset, trained)
    if not found:
        return ""
    return (
        f" On the rows held out the loss is {found['loss_held_out']:.4g} at the end, and at its least "
        f"{found['loss_held_out_least']:.4g} (t = {found['loss_held_out_least_time']:.4g}); on those trained on it is "
        f"{found['loss_train']:.4g} at the end."
    )


def told(dataset: xr.Dataset, problem: Problem) -> xr.Dataset:
    """The dataset, whose finding and attributes say what was done to the data of the problem."""
    said = list(problem.data)
    if problem.held_out is not None and "loss_held_out" not in dataset:
        said.append("this study does not tell the loss of the rows held out (trajectory and convergence do)")
    if not said or not Finding.stated(dataset):
        return dataset
    finding = Finding.of(dataset)
    notes, entries = {DATA: "\n".join(said), **finding.notes}, {"data": said, **finding.numbers}
    return replace(finding, notes=notes, numbers=entries).attached(dataset).assign_attrs(data="; ".join(said))


def _largest(loss: xr.DataArray) -> np.ndarray:
    """Over all members at each time, `(T,)`."""
    return loss.max([dim for dim in loss.dims if dim != "time"]).values
