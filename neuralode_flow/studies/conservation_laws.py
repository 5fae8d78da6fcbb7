"""The number of conservation laws of random networks, found by brackets, against the known numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import xarray as xr
from torch import Tensor

from ..checks import count, seeded
from ..finding import Check, Claim, Finding
from ..intrinsic.lie import count_laws
from ..intrinsic.paths import ReluDag
from ..intrinsic.ranks import Rank
from ..intrinsic.systems.linear_network import independent_laws, phi_of
from ..signatures import Count, Seed
from .axes import arranged
from .base import STUDIES, Clock, Progress, Reads, Study

# Layers (inclusive) and widths (inclusive) of the random networks, as in the table of Marcotte et al. 2023.
SIZES = {"linear": ((2, 4), (2, 5)), "relu": ((2, 4), (2, 9))}

# Functionals of the path lifting beyond the number of parameters.
_SPARE = 5


@dataclass(frozen=True, eq=False)
class _Case:
    """A network with its number of laws."""

    kind: str
    widths: list[int]
    dimension: int
    found: Rank
    known: int
    seconds: float


def run(
    clock: Annotated[Clock, Reads(("max_seconds",))],
    *,
    networks: Count = 50,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Counts the independent conservation laws of random linear and ReLU networks at random parameters.

    Linear networks: z = W_L … W_1, 2 to 4 layers, widths 2 to 5. ReLU networks: path lifting, without biases, 2 to 4
    layers, widths 2 to 9 (through random functionals of it, so that no path is listed); one law for each hidden neuron.

    Parameters
    ----------
    clock : Clock
        Its budget of wall time.
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
    generator = seeded("seed", seed)
    cases: list[_Case] = []
    for kind, (layers, widths) in SIZES.items():
        for i in range(n):
            if progress is not None:
                progress((len(cases)) / (2 * n), f"{kind} networks")
            if clock.used_up():
                raise RuntimeError(f"the budget of wall time was used up after {len(cases)} of {2 * n} networks")
            L = _draw(generator, *layers)
            cases.append(_counted(kind, [_draw(generator, *widths) for _ in range(L + 1)], i, generator))
    dataset = _dataset(cases)
    return _finding(dataset).attached(dataset)


def _draw(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator, device="cpu"))


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
    columns = {
        "kind": ([case.kind for case in cases], "linear or relu"),
        "widths": (["-".join(map(str, case.widths)) for case in cases], "widths from input to output"),
        "dimension": ([case.dimension for case in cases], "number of parameters"),
        "found": ([case.found.rank for case in cases], "independent laws by brackets, n − dim Lie"),
        "known": ([case.known for case in cases], "independent laws by theory"),
        "decided": ([int(case.found.decided) for case in cases], "1 where the gap of the singular values decides"),
        "largest_zero": ([c.found.largest_zero for c in cases], "largest singular value counted as zero, relative"),
        "smallest_nonzero": ([c.found.smallest_nonzero for c in cases], "smallest one counted as non-zero, relative"),
        "seconds": ([case.seconds for case in cases], "wall time"),
    }
    return arranged({name: ("network", *column) for name, column in columns.items()}, units={"seconds": "s"})


def _finding(dataset: xr.Dataset) -> Finding:
    agrees = (dataset.found == dataset.known) & (dataset.decided == 1)
    sentences: list[str] = []
    numbers: dict[str, float] = {}
    for kind in SIZES:
        rows = dataset.where(dataset.kind == kind, drop=True)
        networks, agree = rows.sizes["network"], int((agrees & (dataset.kind == kind)).sum())
        seconds = float(rows.seconds.sum())
        sentences.append(
            f"{kind}: {agree} of {networks} networks have the known number of laws, "
            f"{int((rows.decided == 0).sum())} undecided (largest zero {float(rows.largest_zero.max()):.1e}, smallest "
            f"non-zero {float(rows.smallest_nonzero.min()):.1e}), in {seconds:.1f} s"
        )
        numbers |= {f"{kind}_networks": networks, f"{kind}_agree": agree, f"{kind}_seconds": seconds}
    wrong, largest_zero = float((~agrees).sum()), float(dataset.largest_zero.max())
    numbers |= {
        "undecided": int((dataset.decided == 0).sum()),
        "largest_zero": largest_zero,
        "smallest_nonzero": float(dataset.smallest_nonzero.min()),
    }
    return Finding(
        study="conservation_laws",
        problem="Conservation laws of random networks",
        status="ok",
        verdict="; ".join(sentences) + ".",
        claim=Claim(
            "every random network has the known number of conservation laws",
            measured=int(agrees.sum()),
            published=dataset.sizes["network"],
            figure="T1",
        ),
        checks=(
            Check(
                "networks whose number of laws differs from the known one, or is undecided", wrong, 0.0, "their number"
            ),
            Check("largest singular value counted as zero", largest_zero, norm="relative, sup over networks"),
        ),
        numbers=numbers,
    )


STUDIES.register("conservation_laws")(
    Study(
        run,
        question="How many independent conservation laws do random networks have, and is it the known number?",
    )
)
