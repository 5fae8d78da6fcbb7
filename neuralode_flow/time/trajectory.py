"""What `integrate` gives back."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import archive
from ..caution import warn
from ..checks import reals, underived
from ..display import counted, html_table, members_said, said, shortened
from ..files import as_path
from ..modes import undisturbed, unraised
from .endings import EVENTS_ASKED, REACHED

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


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
        Largest Frobenius distance over depth of the conserved quantity from its start; zero for flows without one, NaN
        with ``checks=False``. On a depth grid it leaves out what the grid itself accounts for (`laws.LawChange`): on
        coarse ones it is less than the plain change of J, up to 30 times at 4 × 4 nodes.
    state : Tensor
        The last state.
    stats : dict
        "evaluations" of the velocity (Jacobian–vector products among them), "products" (the latter alone), "seconds",
        "steps", "method", "rtol", "atol" (of `descend` "rule", "rate", "record", "options"),
        "history" (what the method and the depth grid did on their own, in words),
        "grid" ((panels, order) that `state` stands on; None for flows without one). With ``control="member"`` also
        "members": "endings" (as each would be told alone, but that members of a profile have its largest misfit),
        "times", "evaluations" and "steps" of each, in one line; "evaluations" and "steps" are then those of the member
        that took most.
    status : str
        "ok", or a sentence that says why the run ended before the last time or why its numbers are in doubt.
    ending : str
        The code of the status, a key of `ENDINGS`.
    depth_error : Tensor (T,)
        Frobenius error of z that comes from the depth grid, the largest so far: estimated from W of that time, which no
        longer knows what the grid did on the way (0.13 to 1.2 times the true one was seen where it is least, on coarse
        grids); measured with ``estimate=True`` where that may matter. Zero for flows without a grid, NaN with
        ``checks=False``.
    time_error : Tensor (T,) or None
        Measured Frobenius error of z that comes from the steps in time; only with ``estimate=True``.
    observed : Tensor (T', …) or None
        What `observe` returned at the output times.
    carried_log_sigma : Tensor (T, ..., d) or None
        What `log_sigma` is where the run was carried in logarithms.
    dense_times : Tensor (S + 1,) or None
        The ends of the S steps, the first time before them; only with ``dense=True``.
    dense_z : Tensor (S, 8, ..., d, d) or None
        z at the eight Chebyshev points of each step, both ends among them: what ``path(t)`` needs, 64 S bytes for each
        entry of z in float64, whatever the size of the state. `save` and checkpoints keep both.

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
    dense_times: Tensor | None = None
    dense_z: Tensor | None = None

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

    def __repr__(self) -> str:
        times, members = counted(len(self.times), "time"), members_said(self.loss.shape[1:])
        error = f"error {found}" if (found := self._error_said()) else ""
        return said(self, times, members, shortened(self.status, 40), f"loss {self._loss_said()}", error)

    def _loss_said(self) -> str:
        """The loss at the start and at the end."""
        return f"{_span(self.loss[0])} → {_span(self.loss[-1])}"

    def _error_said(self) -> str:
        """The largest error of z, and up to when it is known; empty where it was not measured."""
        if self.error is None or bool(self.error.isnan().all()):
            return ""
        known = ~self.error.isnan()
        until = "" if bool(known.all()) else f" up to t = {float(self.times[known][-1]):.4g}"
        return f"{float(self.error[known].max()):.2g}{until}"

    def _repr_html_(self) -> str:
        return html_table("Trajectory", self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        """What there is to say of it, by its name."""
        stats, members = self.stats, members_said(self.loss.shape[1:])
        yield "times", f"{len(self.times)} from t = {float(self.times[0]):.6g} to {float(self.times[-1]):.6g}"
        if members:
            yield "members", members
        yield "status", self.status
        yield "loss", self._loss_said()
        yield "z", f"shape {tuple(self.z.shape[self.loss.ndim :])}, {self.z.dtype}"
        if "rule" not in stats:  # steps of a rule have no error in time
            yield "error of z", self._error_said() or "not measured; estimate=True measures it"
        estimated = ", estimated" if self.time_error is None else ""
        yield (
            "of it in depth" if "rule" not in stats else "error of z in depth",
            "not measured"
            if bool(self.depth_error.isnan().any())
            else f"{float(self.depth_error.max()):.2g}{estimated}",
        )
        yield "drift of the law", "not measured" if bool(self.drift.isnan().any()) else f"{float(self.drift.max()):.2g}"
        control = ("rate", "record") if "rate" in stats else ("rtol", "atol")
        yield "method", ", ".join([stats["method"], *(f"{name} = {stats[name]:g}" for name in control)])
        yield "work", f"{stats['evaluations']} evaluations, {stats['steps']} steps, {stats['seconds']:.2g} s"

    def to_xarray(self) -> xr.Dataset:
        """All that is known at the output times, with axes, units and long names.

        Returns
        -------
        xarray.Dataset
            "z" (time, member_0 …, row, column), of a z that is no matrix (time, member_0 …, axis_0 …); "loss", "drift"
            (time, member_0 …); "depth_error", "time_error" and "error" (time), the last two where they were measured;
            "singular_values" (time, member_0 …, mode) of matrices, "log_sigma" where they were carried; "observed"
            (time, observed_0 …), NaN at the end of a run between two outputs. How it ended, and what made it, are
            attributes. The last state is in the file of `save` alone.
        """
        return _room("studies.paths").dataset(self)

    def plot(self) -> Figure:
        """Singular values of z over time (entries where z is no matrix), the loss, and the error where it was measured.

        Returns
        -------
        matplotlib.figure.Figure
            With up to twelve curves of up to six members; ``figure.savefig("path.pdf")`` writes it.
        """
        return _room("figures.paths").plot(self.to_xarray())

    def animate(self, path: str | Path | None = None) -> Any:
        """z over time as a movie of at most 101 frames: a matrix as a picture beside its singular values; else entries.

        Parameters
        ----------
        path : path, optional
            Where it is saved as a GIF, whole or not at all.

        Returns
        -------
        Movie
            With `figure`, `frames` and ``frame(i)``, which draws the i-th; of an ensemble the first member is shown.

        Raises
        ------
        ValueError
            If the path does not end in .gif.
        OSError
            If it cannot be written.
        """
        file = None if path is None else as_path("path", path)
        if file is not None and file.suffix.lower() != ".gif":
            raise ValueError(f"path must end in .gif, the one format that movies are saved in, got {file}")
        return _room("figures.paths").movie(self.to_xarray(), file)

    @undisturbed
    @unraised
    def __call__(self, t: float | Sequence[float] | Tensor) -> Tensor:
        """z at any times between the first and the last.

        Of a run with ``dense=True``, z in each step is the polynomial of degree 7 through its eight Chebyshev points,
        of order 8 like DOP853, the method of the highest order: what it adds to the error of the run is below that for
        all methods. Otherwise it is the polynomial through the four nearest outputs; a warning then says by how much it
        differs from the one through an output fewer, an estimate of an error that the steps have no part in.

        Parameters
        ----------
        t : float, sequence or Tensor (...)
            Flow times.

        Returns
        -------
        Tensor (..., ..., d, d)
            The axes of t, then those of z.

        Raises
        ------
        TypeError, ValueError
            If t is no time between the first and the last, or of a run of `descend` none of its times.

        Warns
        -----
        RuntimeWarning
            If the run was made without ``dense=True`` and t is not among its output times.
        """
        ends = self.times if self.dense_times is None else self.dense_times
        wanted = _times(t).to(ends.device)
        if "rule" in self.stats:  # 0.3 is the time 3 × 0.1 = 0.30000000000000004
            nearest = ends[(wanted[..., None] - ends).abs().argmin(-1)]
            wanted = torch.where((wanted - nearest).abs() <= _SAME * self.stats["rate"], nearest, wanted)
        outside = ~((wanted >= ends[0]) & (wanted <= ends[-1]))
        if bool(outside.any()):
            raise ValueError(
                f"t must be between {float(ends[0]):.15g} and {float(ends[-1]):.15g}, the times of this run, got "
                f"{float(wanted[outside][0])!r}"
            )
        if len(ends) == 1:
            return self.z[0].expand(*wanted.shape, *self.z.shape[1:]).clone()
        flat = wanted.reshape(-1)
        if self.dense_z is None:
            return self._between_outputs(flat).reshape(*wanted.shape, *self.z.shape[1:])
        step = torch.searchsorted(ends[1:-1].contiguous(), flat)
        weights = _barycentric((flat - ends[step]) / (ends[step + 1] - ends[step])).to(self.dense_z.dtype)
        z = torch.einsum("nj,nj...->n...", weights, self.dense_z[step])
        return z.reshape(*wanted.shape, *self.z.shape[1:])

    def _between_outputs(self, t: Tensor) -> Tensor:
        """z at times `(n,)` by the outputs around them alone; warns of what that is worth."""
        most = min(4, len(self.times))
        finer, coarser = (_through_nearest(self.times, self.z, t, count) for count in (most, most - 1))
        if not bool(torch.isin(t, self.times).all()):
            if "rule" in self.stats:
                raise ValueError("t must be among the times of this run: training in steps has no z between them")
            error = float((finer - coarser).abs().max())
            warn(
                f"z is interpolated between outputs, with an error of up to about {error:.0e}: "
                "integrate(…, dense=True) keeps what is between them"
            )
        return finer

    def save(self, path: str | Path) -> None:
        """Writes one file, whole or not at all; `load` reads it, and `numpy.load` the arrays by their names."""
        file = as_path("path", path)
        try:
            archive.write(file, *pack(self))
        except OSError as error:
            raise type(error)(f"path={file} cannot be written: {error.strerror or error}") from error


# A time this near to that of a step, as a part of the rate, is meant to be it.
_SAME = 1e-6

# The Chebyshev points of a step, on [0, 1], and their barycentric weights (Berrut–Trefethen, SIAM Review 46, 2004).
NODES = (1 - np.cos(np.pi * np.arange(8) / 7)) / 2
_WEIGHTS = (-1.0) ** np.arange(8) * np.array([0.5, 1, 1, 1, 1, 1, 1, 0.5])


def _barycentric(s: Tensor) -> Tensor:
    """The Lagrange polynomials of the nodes at s in [0, 1], `(n,)` → `(n, 8)`; exactly one of them at a node."""
    nodes, weights = (torch.from_numpy(array).to(s.device) for array in (NODES, _WEIGHTS))
    distance = s[:, None] - nodes
    terms = weights / torch.where(distance == 0, 1.0, distance)
    values = terms / terms.sum(-1, keepdim=True)
    return torch.where((distance == 0).any(-1, keepdim=True), (distance == 0).to(values), values)


# Relative: as near to a time as a multiple of a rate of ten digits is to the one that is meant; no step is as short.
SAME_TIME = 2e-9


def stopped(paths: Iterable[Trajectory]) -> str:
    """The ending of the first path that came neither to the last time nor to an event asked for, "ok" if all did.

    As `ending` of a summary it says whether the run can go on with another budget.
    """
    return next((path.ending for path in paths if path.ending not in (*REACHED, *EVENTS_ASKED)), "ok")


def common_times(first: Tensor, second: Tensor) -> int:
    """How many leading times two runs have in common, to round-off: where one has ended between them is none."""
    n = min(len(first), len(second))
    different = ((first[:n] - second[:n]).abs() > SAME_TIME * second[:n].abs()).nonzero()
    return int(different[0]) if len(different) else n


def at_times(path: Trajectory, times: Tensor, name: str = "z") -> Tensor:
    """A column of a path at the times that it was to reach `(T, …)`, NaN after an early end.

    What it has ended with between two of them belongs to neither.
    """
    values: Tensor = getattr(path, name)
    reached = min(common_times(path.times, times), len(values))
    if reached == len(times):
        return values
    missing = values.new_full((len(times) - reached, *values.shape[1:]), torch.nan)
    return torch.cat((values[:reached], missing))


def _through_nearest(times: Tensor, z: Tensor, t: Tensor, count: int) -> Tensor:
    """z at each t `(n,)` by the polynomial through the `count` outputs around it."""
    first = (torch.searchsorted(times, t) - count // 2).clamp(0, len(times) - count)
    near = first[:, None] + torch.arange(count, device=first.device)
    nodes = times[near]
    away, between = t[:, None, None] - nodes[:, None, :], nodes[:, :, None] - nodes[:, None, :]
    own = torch.eye(count, dtype=torch.bool, device=nodes.device)
    weights = (away / between.masked_fill(own, 1.0)).masked_fill(own, 1.0).prod(dim=-1)
    return torch.einsum("nj,nj...->n...", weights.to(z), z[near.to(z.device)])


def _times(t: Any) -> Tensor:
    """Times as float64; TypeError unless they are real numbers."""
    underived("t", t, "steps are found")
    try:
        return reals(t)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"t must be a time, a sequence of times or a tensor, got {t!r} ({error})") from error


def _span(values: Tensor) -> str:
    """A number, or the least and the largest of several."""
    low, high = (f"{float(value):.4g}" for value in values.aminmax())
    return low if low == high else f"{low} … {high}"


def _room(name: str) -> Any:
    """A module of a room below this one, looked up at the first use: nothing here needs it to be made or moved."""
    return importlib.import_module(f"..{name}", __package__)


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
