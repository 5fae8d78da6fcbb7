"""Measures what each route of the torch engine gains over a plainer one: python benchmarks/routes.py [--threads N]

Each line is one operation without the compiled engine: its time, and how much longer it takes with one route taken out
of it, in alternation. With one thread the processor's time counts, so that other work on the machine does not.
A route stays where it gains a third, or serves what no other does (docs/performance.md).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from harness import alternated, amount
from speed import limit_threads, scaled_waves

import neuralode_flow as nf
from neuralode_flow.depth import chain, picard
from neuralode_flow.depth.engine import by_torch, compiled

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)

# What is changed so that a route is not taken.
SWEEPS = {"without the sweeps": (by_torch, "plain", lambda W: False)}
PRECISION = {"without single precision": (picard, "MIXED_FROM", 10**9)}
BLOCKS = {"one layer after the other": (by_torch, "BLOCK", 10**9)}

Operation = tuple[str, Callable[[], Any], Mapping[str, tuple[Any, str, Any]]]


@dataclass(frozen=True)
class Effort:
    rounds: int = 15
    budget: float = 5.0


def operations(d: int) -> Iterator[Operation]:
    """Their names, what they do, and the routes that they take."""
    outer = nf.Quadratic(1.5 * torch.eye(d)).gradient
    for panels, order in ((1, 13), (4, 6)):
        solver = nf.Collocation(nf.DepthGrid.gauss(panels, order))
        W = scaled_waves(solver.grid.nodes, d)
        yield f"{panels} x {order} gradient", lambda W=W, solver=solver: solver.gradient(W, outer), SWEEPS | PRECISION
        yield f"{panels} x {order} product", lambda W=W, solver=solver: solver.product(W), SWEEPS
    L = min(1024, 2**23 // d**2)
    U = torch.eye(d) + scaled_waves(torch.linspace(0, 1, L), d) / L
    yield f"chain of {L} layers", lambda: chain.gradient(U, outer), BLOCKS


def changed(call: Callable[[], Any], what: tuple[Any, str, Any]) -> Callable[[], Any]:
    """A call without a route."""

    def other() -> Any:
        owner, name, value = what
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            return call()
        finally:
            setattr(owner, name, before)

    return other


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what the routes of the torch engine gain.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    chosen = parser.parse_args()
    limit_threads(chosen.threads)
    torch.set_default_dtype(torch.float64)
    clock = time.process_time if chosen.threads == 1 else time.perf_counter
    with patch.object(compiled, "library", lambda: None):
        for d in chosen.sizes:
            for name, call, routes in operations(d):
                sides = {"ours": call} | {route: changed(call, what) for route, what in routes.items()}
                taken = alternated(sides, Effort(), clock)
                ratios = (f"{route} {np.median(taken[route] / taken['ours']):.2f}" for route in routes)
                print(f"d = {d}, {name}: {amount(np.median(taken['ours']), 's')}, {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
