"""What `integrate` gives back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import archive
from ..files import as_path


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A training flow at its output times; it equals itself alone.

    Attributes
    ----------
    times : Tensor (T,)
        The output times that were reached, in flow time; float64 whatever the state is. A run that ended before the
        last one has the time of its last accepted step, or of the event that ended it, as its last entry.
    z : Tensor (T, ..., d, d)
        End-to-end maps.
    loss : Tensor (T, ...)
    drift : Tensor (T, ...)
        Largest Frobenius distance over depth of the conserved quantity from its start; zero for flows without one.
    state : Tensor
        The last state.
    stats : dict
        "evaluations" of the velocity (Jacobian–vector products among them), "products" (the latter alone), "seconds",
        "steps", "method", "rtol", "atol", "history" (what the method and the depth grid did on their own, in words),
        "grid" ((panels, order) that `state` stands on; None for flows without one).
    status : str
        "ok", or a sentence that says why the run ended before the last time or why its numbers are in doubt.
    ending : str
        The code of the status, a key of `ENDINGS`.
    depth_error : Tensor (T,)
        Estimated Frobenius error of z that comes from the depth grid, the largest so far; zero for flows without one.
    time_error : Tensor (T,) or None
        Measured Frobenius error of z that comes from the steps in time; only with ``estimate=True``.
    observed : Tensor (T', …) or None
        What `observe` returned at the output times.
    carried_log_sigma : Tensor (T, ..., d) or None
        What `log_sigma` is where the run was carried in logarithms.

    Examples
    --------
    >>> flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), kernel=nf.LogMean())
    >>> path = nf.integrate(flow, torch.eye(2), [0.0, 0.5, 1.0])
    >>> path.times.tolist(), path.loss.shape, path.stats["method"]
    ([0.0, 0.5, 1.0], torch.Size([3]), 'dopri5')
    """

    times: Tensor
    z: Tensor
    loss: Tensor
    drift: Tensor
    state: Tensor
    stats: dict[str, Any]
    status: str
    ending: str
    depth_error: Tensor
    time_error: Tensor | None = None
    observed: Tensor | None = None
    carried_log_sigma: Tensor | None = None

    @property
    def log_sigma(self) -> Tensor:
        """Logarithms of the singular values of z, falling, `(T, ..., d)`.

        Of an `IntrinsicFlow` that keeps the sign of det z they are those of the state that the run carried, right also
        far below the round-off of z; else those of z, right to about ε σ₁ / σ_a.

        Raises
        ------
        ValueError
            If z is no matrix.
        """
        if self.carried_log_sigma is not None:
            return self.carried_log_sigma
        if self.z.ndim != self.loss.ndim + 2:
            raise ValueError(f"log_sigma is for a z that is a matrix, and this one has shape {tuple(self.z.shape)}")
        return torch.log(torch.linalg.svdvals(self.z))

    @property
    def error(self) -> Tensor | None:
        """Depth error plus time error, (T,): the distance of z from the exact flow, where it was measured."""
        return None if self.time_error is None else self.depth_error + self.time_error

    def save(self, path: str | Path) -> None:
        """Writes one file, whole or not at all; `load` reads it, and `numpy.load` the arrays by their names."""
        file = as_path("path", path)
        try:
            archive.write(file, *pack(self))
        except OSError as error:
            raise type(error)(f"path={file} cannot be written: {error.strerror or error}") from error


# The names of what a checkpoint holds beside a trajectory begin so.
MEMORY = "memory."

_WORDS = ("stats", "status", "ending")


def pack(trajectory: Trajectory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A trajectory as header and arrays of an archive."""
    values = {field.name: getattr(trajectory, field.name) for field in fields(Trajectory)}
    arrays = {name: value.detach().cpu().numpy() for name, value in values.items() if isinstance(value, Tensor)}
    return {"kind": "trajectory", **{name: values[name] for name in _WORDS}}, arrays


def unpack(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trajectory:
    """The trajectory of an archive; ValueError if it holds something else."""
    try:
        if header["kind"] != "trajectory":
            raise KeyError(header["kind"])
        tensors = {field.name: arrays.get(field.name) for field in fields(Trajectory) if field.name not in _WORDS}
        found = {name: None if value is None else torch.from_numpy(value) for name, value in tensors.items()}
        missing = [name for name in ("times", "z", "loss", "drift", "state", "depth_error") if found[name] is None]
        foreign = [name for name in arrays if name not in found and not name.startswith(MEMORY)]
        if missing or foreign:
            raise KeyError(*missing, *foreign)
        return Trajectory(**found, **{name: header[name] for name in _WORDS})  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold a trajectory; give a file of Trajectory.save or a checkpoint"
        ) from error


def load(path: str | Path) -> Trajectory:
    """The trajectory in a file that `Trajectory.save` wrote, or what a checkpoint has reached.

    Tensors come back on the CPU. Loading runs no code.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of another version, no regular file, or something else; the message says which.

    Examples
    --------
    >>> flow = nf.IntrinsicFlow(nf.Quadratic(2 * torch.eye(2)), kernel=nf.LogMean())
    >>> path = nf.integrate(flow, torch.eye(2), [0.0, 1.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path.save(f"{folder}/path.npz")
    ...     again = nf.load(f"{folder}/path.npz")
    >>> bool((again.z == path.z).all())
    True
    """
    file = as_path("path", path)
    return unpack(file, *archive.read(file))
