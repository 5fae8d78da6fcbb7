"""Measures what each route of the torch engine gains over the plainer one: python benchmarks/routes.py [--threads N]

Every row is one operation without the compiled engine, as it is and with one route taken out of it, in alternation; the
ratio is how much longer it takes without. A route stays where it gains a third, or serves what no other does.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from harness import alternated, quartiles
from speed import limit_threads, scaled_waves

import neuralode_flow as nf
from neuralode_flow.depth import chain, picard
from neuralode_flow.depth.engine import by_torch, compiled

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Effort:
    rounds: int = 9
    budget: float = 4.0


Changes = list[tuple[Any, str, Any]]

# What is taken out of the operations on a grid, and out of chains.
FLOW: Mapping[str, Changes] = {
    "fast sweeps": [(by_torch, "plain", lambda W: False)],
    "single precision": [(picard, "MIXED_FROM", 10**9)],
}
CHAIN: Mapping[str, Changes] = {"blocks": [(by_torch, "BLOCK", 10**9)]}


@contextlib.contextmanager
def without(changes: Changes) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(patch.object(owner, name, value))
        yield


def operations(d: int) -> Iterator[tuple[str, Callable[[], Any], Mapping[str, Changes]]]:
    loss = nf.Quadratic(1.5 * torch.eye(d))
    for grid in (nf.DepthGrid.gauss(1, 13), nf.DepthGrid.gauss(4, 6)):
        W, solver = scaled_waves(grid.nodes, d), nf.Collocation(grid)
        name = f"{grid.panels} x {grid.order}"
        yield f"{name} gradient", lambda W=W, solver=solver: solver.gradient(W, loss.gradient), FLOW
        yield f"{name} product", lambda W=W, solver=solver: solver.product(W), {"fast sweeps": FLOW["fast sweeps"]}
    L = min(1024, 2**26 // (8 * d * d))
    U = torch.eye(d) + scaled_waves(torch.linspace(0, 1, L), d) / L
    yield f"chain, L = {L}", lambda: chain.gradient(U, loss.gradient), CHAIN


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    chosen = parser.parse_args()
    limit_threads(chosen.threads)
    torch.set_default_dtype(torch.float64)
    with patch.object(compiled, "library", lambda: None):
        for d in chosen.sizes:
            for name, call, routes in operations(d):
                sides = {"as it is": call}
                for route, changes in routes.items():

                    def other(changes: Changes = changes, call: Callable[[], Any] = call) -> Any:
                        with without(changes):
                            return call()

                    sides[route] = other
                seconds = alternated(sides, Effort())
                ours = seconds["as it is"]
                cells = "; ".join(
                    f"{route} {quartiles(times / ours)['median']:.2f}"
                    for route, times in seconds.items()
                    if route != "as it is"
                )
                print(f"d = {d}, {name}: {quartiles(ours)['median'] * 1e6:.0f} us; {cells}", flush=True)


if __name__ == "__main__":
    main()
