"""The number of conservation laws of random networks, found by brackets, against the known numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..intrinsic.lie import count_laws
from ..intrinsic.paths import ReluDag
from ..intrinsic.ranks import Rank
from ..intrinsic.systems.linear_network import independent_laws, phi_of
from .base import STUDIES, Clock, Progress, Study

# Layers (inclusive) and widths (inclusive) of the random networks, as in the table of Marcotte et al. 2023.
SIZES = {"linear": ((2, 4), (2, 5)), "relu": ((2, 4), (2, 9))}

# Functionals of the path lifting beyond the number of parameters.
_SPARE = 5


@dataclass(frozen=True, eq=False)
class _Case:
    kind: str
    widths: list[int]
    dimension: int
    found: Rank
    known: int
    seconds: float


def run(setup: Clock, *, networks: int = 50, seed: int = 0, progress: Progress | None = None) -> xr.Dataset:
    """Counts the independent conservation laws of random linear and ReLU networks at random parameters.

    Linear networks: z = W_L … W_1, 2 to 4 layers, widths 2 to 5. ReLU networks: path lifting, without biases, 2 to 4
    layers, widths 2 to 9 (through random functionals of it, so that no path is listed); one law for each hidden neuron.

    Parameters
    ----------
    setup : Clock
        Nothing in it matters here.
    networks : int
        Of each kind.
    seed : int
        Of sizes and parameters.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        One row for each network. The status is always "ok"; the verdict says how many numbers agree, and how many are
        undecided.
    """
    n = count("networks", networks)
    generator = torch.Generator().manual_seed(count("seed", seed, least=0))
    cases: list[_Case] = []
    for kind, (layers, widths) in SIZES.items():
        for i in range(n):
            if progress is not None:
                progress((len(cases)) / (2 * n), f"{kind} networks")
            if setup.used_up():
                raise RuntimeError(f"the budget of wall time was used up after {len(cases)} of {2 * n} networks")
            L = _draw(generator, *layers)
            cases.append(_counted(kind, [_draw(generator, *widths) for _ in range(L + 1)], i, generator))
    return _dataset(cases)


def _draw(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _counted(kind: str, widths: list[int], seed: int, generator: torch.Generator) -> _Case:
    started = time.perf_counter()
    phi: Callable[[Tensor], Tensor]
    if kind == "linear":
        phi, n, known = phi_of(widths), sum(a * b for a, b in zip(widths, widths[1:], strict=False)), None
    else:
        network = ReluDag.layered(widths, biases=False)
        n, known = network.parameters, sum(widths[1:-1])
        phi = network.sketch(n + _SPARE, generator)
    found = count_laws(phi, n, seed)
    seconds = time.perf_counter() - started
    return _Case(kind, widths, n, found, independent_laws(widths) if known is None else known, seconds)


def _dataset(cases: list[_Case]) -> xr.Dataset:
    columns: dict[str, tuple[str, list[Any]]] = {
        "kind": ("linear or relu", [case.kind for case in cases]),
        "widths": ("widths from input to output", ["-".join(map(str, case.widths)) for case in cases]),
        "dimension": ("number of parameters", [case.dimension for case in cases]),
        "found": ("independent laws by brackets, n − dim Lie", [case.found.rank for case in cases]),
        "known": ("independent laws by theory", [case.known for case in cases]),
        "decided": ("1 where the gap of the singular values decides", [int(case.found.decided) for case in cases]),
        "largest_zero": ("largest singular value counted as zero, relative", [c.found.largest_zero for c in cases]),
        "smallest_nonzero": ("smallest one counted as non-zero, relative", [c.found.smallest_nonzero for c in cases]),
        "seconds": ("wall time", [case.seconds for case in cases]),
    }
    dataset = xr.Dataset(
        {name: ("network", np.array(values), {"long_name": meaning}) for name, (meaning, values) in columns.items()}
    )
    dataset["seconds"].attrs["units"] = "s"
    dataset.attrs = {"study": "conservation_laws", "status": "ok", "problem": "Conservation laws of random networks"}
    sentences = []
    for kind in SIZES:
        rows = dataset.where(dataset.kind == kind, drop=True)
        agree = int(((rows.found == rows.known) & (rows.decided == 1)).sum())
        sentences.append(
            f"{kind}: {agree} of {rows.sizes['network']} networks have the known number of laws, "
            f"{int((rows.decided == 0).sum())} undecided (largest zero {float(rows.largest_zero.max()):.1e}, smallest "
            f"non-zero {float(rows.smallest_nonzero.min()):.1e}), in {float(rows.seconds.sum()):.1f} s"
        )
    dataset.attrs["verdict"] = "; ".join(sentences) + "."
    return dataset


def summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """The flat record of the study for summary.json."""
    result: dict[str, Any] = {
        "study": "conservation_laws",
        "status": dataset.attrs["status"],
        "verdict": dataset.attrs["verdict"],
    }
    wrong = (dataset.found != dataset.known) | (dataset.decided == 0)
    for kind in SIZES:
        of = (dataset.kind == kind).values
        result |= {
            f"{kind}_networks": int(of.sum()),
            f"{kind}_agree": int((~wrong.values & of).sum()),
            f"{kind}_seconds": float(dataset.seconds.values[of].sum()),
        }
    agree = sum(result[f"{kind}_agree"] for kind in SIZES)
    return result | {
        "figure": "T1",
        "claim": "every random network has the known number of conservation laws",
        "published": dataset.sizes["network"],
        "measured": agree,
        "check": "networks whose number of laws differs from the known one, or is undecided",
        "error": float(wrong.sum()),
        "bound": 0.0,
        "passed": not bool(wrong.any()),
        "undecided": int((dataset.decided == 0).sum()),
        "largest_zero": float(dataset.largest_zero.max()),
        "smallest_nonzero": float(dataset.smallest_nonzero.min()),
    }


STUDIES.register("conservation_laws")(
    Study(
        run,
        summarise,
        Clock,
        question="How many independent conservation laws do random networks have, and is it the known number?",
    )
)
