"""Zhang and Peyré 2026: a scalar network of S factorised residual blocks, and its limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..checks import count
from ..finding import Check, Claim, Finding
from ..flows.factorization import FactorizationFlow
from ..intrinsic.systems import ClosedFlow
from ..losses import Quadratic
from ..orders import observed_order
from ..signatures import Depths
from ..time.integrate import integrate
from .axes import arranged, axis, depth, time
from .base import STUDIES, Clock, Progress, Study, whole

_ORDER, _BOUND = 0.05, 1e-8


def run(
    clock: Clock,
    *,
    depths: Depths = (4, 8, 16, 32, 64, 128, 256, 512, 1024),
    blocks: int = 6,
    progress: Progress | None = None,
) -> xr.Dataset:
    """z = Π_k (1 + u_k v_k/S) trained towards −1 from u_k = √2, v_k = 0: r = u_k v_k moves alone.

    ṙ = −2√(1 + r²) ((1 + r/S)^S + 1)(1 + r/S)^{S−1} in flow time times S, and ṙ = −2√(1 + r²)(eʳ + 1)eʳ as S → ∞. The
    target is out of reach of the limit, z = eʳ > 0.

    Parameters
    ----------
    clock : Clock
    depths : sequence of int
        S, increasing.
    blocks : int
        S of the network whose parameters are trained, to verify the equation.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
    """
    S0 = count("study.blocks", blocks)
    curves = {}
    for k, S in enumerate((0, *depths)):
        if progress is not None:
            progress(k / (1 + len(depths)), f"S = {S}" if S else "limit")
        curves[S] = _scalar(clock, S)
    square = float(np.abs(_network(clock, S0) - _scalar(clock, S0)).max())
    tight = torch.as_tensor(_scalar(clock.tight(), 0, "tight"))
    error_time = float(clock.time_error(torch.as_tensor(curves[0]), tight).abs().max())
    dataset = _dataset(clock.times, depths, curves, error_time)
    return _finding(dataset, S0, square, clock.floor(error_time)).attached(dataset)


def _dataset(times: Tensor, depths: Sequence[int], curves: dict[int, np.ndarray], error_time: float) -> xr.Dataset:
    errors = [np.abs(curves[S] - curves[0]).max() for S in depths]
    return arranged(
        {
            "r": (("network", "time"), np.stack([curves[S] for S in (0, *depths)]), "r(t)"),
            "error_r": ("depth", errors, "sup over t of |r_S − r_∞|"),
            "error_time": ((), error_time, "error in time of the limit, from the same in finer steps"),
        },
        [
            axis("network", [0, *depths], "blocks S; 0 is the limit"),
            depth(depths, "blocks S"),
            time(times, units="flow time times S"),
        ],
    )


def _finding(dataset: xr.Dataset, S0: int, square: float, floor: float) -> Finding:
    order = observed_order(dataset.depth.values, dataset.error_r.values, floor)
    error_time = float(dataset.error_time)
    return Finding(
        study="scalar_blocks",
        problem="Zhang, Peyré 2026: factorised residual blocks in a scalar",
        status="ok",
        verdict=f"r of S blocks tends to the limit at order {order} (expected 1) in 1/S; the parameters of {S0} blocks "
        f"follow the scalar flow to {square:.1e}.",
        claim=Claim(
            "the scalar flow of S blocks tends to its limit as S → ∞, at order 1",
            measured=order.value,
            published=1.0,
            figure="F5",
        ),
        checks=(
            Check(f"the trained parameters of {S0} blocks against the scalar flow", square, _BOUND, "sup over t"),
            Check("the order at which r tends to the limit from 1", abs(order.value - 1), _ORDER, "in 1/S"),
            Check("error in time of the limit", error_time, norm="sup over t"),
        ),
        orders=(order._replace(rule="r in 1/S", expected=1.0),),
        numbers={"reference_error": error_time},
    )


def _scalar(clock: Clock, S: int, name: str = "scalar") -> np.ndarray:
    """r(t) of the equation in r alone; of the limit for S = 0."""

    def velocity(r: Tensor, _: Tensor) -> Tensor:
        z, slope = (torch.exp(r),) * 2 if S == 0 else ((1 + r / S) ** S, (1 + r / S) ** (S - 1))
        return -2 * torch.sqrt(1 + r.square()) * (z + 1) * slope

    zero = torch.zeros((), dtype=torch.float64)
    path = integrate(ClosedFlow(Quadratic(zero), velocity), zero, clock.times, **clock.options(f"{name}-{S}"))
    return whole(path, f"flow of {S} blocks" if S else "limit").z.numpy()


def _network(clock: Clock, S: int) -> np.ndarray:
    """r(t) of the trained parameters (u_k, v_k)."""

    def phi(theta: Tensor) -> Tensor:
        u, v = theta.chunk(2, dim=-1)
        return (1 + u * v / S).prod(-1)

    start = torch.cat((torch.full((S,), 2**0.5, dtype=torch.float64), torch.zeros(S, dtype=torch.float64)))
    flow = FactorizationFlow(phi, Quadratic(-torch.ones((), dtype=torch.float64)))
    path = integrate(
        flow, start, S * clock.times.double(), **clock.options("network"), observe=lambda i, theta: theta.clone()
    )
    seen = whole(path, "network").observed
    assert seen is not None
    return (seen[:, 0] * seen[:, S]).numpy()


STUDIES.register("scalar_blocks")(
    Study(
        run,
        question="Does the training of S factorised residual blocks in a scalar tend to a closed limit as S grows?",
    )
)
