"""What z₀ decides of training in steps: for each step rule, one line of z_n or a fan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from scipy.linalg import logm
from torch import Tensor

from ..depth import DepthSolver
from ..finding import Check, Claim, Finding
from ..flows.base import Flow
from ..flows.continuous import ContinuousFlow
from ..flows.finite import FiniteFlow
from ..flows.intrinsic import IntrinsicFlow
from ..initial import INITIALS
from ..kernels import LogMean
from ..matrices import frobenius, matrix_exp
from ..orders import extrapolated
from ..problems import Problem
from ..signatures import Count, Depths, Positive, Seed, at_least, distinct, each, known
from ..time.descend import descend
from ..time.integrate import integrate
from ..time.steprule import STEP_RULES
from ..time.trajectory import Trajectory
from .axes import arranged, axis
from .base import STUDIES, Progress, Study, whole

# Rules whose steps have a length of their own: their rate is that length.
_OF_LENGTH = ("normalised", "layer_normalised", "muon", "lars", "sign", "adam")
# Of these, those that amplify round-off near a minimiser: they are judged until a perturbation by round-off has grown.
_AMPLIFYING, _GROWN, _ROUND_OFF = ("normalised", "layer_normalised"), 100.0, 1e-15
_ONE, _FAN = 1e-12, 1e-2  # relative to ‖z‖: below it curves are one, above it they fan out
_SURE, _HALVED, _SAME = 1e-3, 5, 5e-3  # of the distance of large steps from the flow, by two routes
_JOINED = 4  # steps of as many sizes are extrapolated: the largest are in no limit that smaller ones have
_RECORDED, _GAUGES, _TURN = 50, 3, 0.5
LARGE = "gd, large steps"
_RULES = (
    "gd", "heavy_ball", "nesterov", "sgd", "label_noise", "normalised", "layer_normalised", "muon", "lars", "sign",
    "adam", "weight_decay",
)  # fmt: skip

RuleNames = Annotated[Sequence[str], distinct, each(known(STEP_RULES))]


@dataclass(frozen=True, eq=False)
class _Entry:
    """A step rule as it is tried."""

    label: str
    rule: str
    rate: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def equivariant(self) -> bool:
        return STEP_RULES[self.rule].equivariant


def run(
    problem: Problem,
    solver: DepthSolver,
    *,
    rules: RuleNames = _RULES,
    steps: Count = 100,
    rate: Positive = 0.05,
    large: Positive = 0.2,
    length: Positive = 0.02,
    starts: Annotated[int, at_least(2)] = 8,
    controls: Annotated[int, at_least(2)] = 3,
    twist: float = 3.0,
    shift: float = 1.0,
    detour: Positive = 0.5,
    depths: Depths = (2, 4, 16),
    seed: Seed = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """z_n of many starts with one z₀, by step rule: relaxed balanced, perturbed, and others; and of gauged networks.

    Parameters
    ----------
    problem : Problem
    solver : DepthSolver
    rules : sequence of str
        Step rules; those that the loss has no samples for are left out, and said to be.
    steps : int
        Steps of each run.
    rate : float
        Step size of rules along gradients.
    large : float
        A step size at which gradient descent is visibly off the flow.
    length : float
        Step size of the rules whose steps have a length of their own.
    starts : int
        Relaxed balanced starts, at least 2, each with its own twist and shift.
    controls : int
        Starts with the same z₀ that are not relaxed balanced, at least 2.
    twist : float
        Size of Ω(s).
    shift : float
        Size of λ(s).
    detour : float
        Size of what breaks relaxed balance.
    depths : sequence of int
        Numbers of Euler layers L >= 2, whose U_k are turned by random gauges.
    seed : int
        Of all draws.
    progress : callable, optional
        progress(fraction, what).

    Returns
    -------
    xarray.Dataset
        `spread` is the largest Frobenius distance of a start from the first, over ‖z‖; `floor` that between
        a start and the same perturbed by 1e-15.
    """
    flow = ContinuousFlow(solver.grid, problem.loss, solver)
    entries, left_out = _entries(problem.loss, rules, rate, large, length)
    states = _states(flow, problem.z0, (starts, controls), (twist, shift, detour), seed)
    found, networks = [], []
    for i, entry in enumerate(entries):
        if progress is not None:
            progress(i / (len(entries) + 1), entry.label)
        found.append(_trained(flow, states, entry, steps))
        networks.append([_gauged(problem, L, entry, steps, seed) if entry.equivariant else np.nan for L in depths])
    exponential = _exponential(problem, _Entry("gd", "gd", rate), steps, seed)
    large_steps = [path for path, e in zip(found, entries, strict=True) if e.label == LARGE]
    off = _off_the_flow(problem, large_steps)
    own, unsure = _off_its_limit(flow, states[:1], large_steps, steps, large)
    dataset = _dataset(entries, found, (starts, controls)).assign(
        network_spread=xr.DataArray(networks, dims=("rule", "depth"), coords={"depth": list(depths)}),
        exponential=exponential,
        off_the_flow=off,
        off_its_limit=own,
        error_limit=unsure,
    )
    return _finding(dataset, entries, left_out, problem).attached(dataset)


def _entries(loss: Any, rules: Sequence[str], rate: float, large: float, length: float) -> tuple[list[_Entry], str]:
    """The rules as they are tried, and what was left out."""
    made, without = [], []
    for name in rules:
        if name in ("sgd", "label_noise") and not _has_targets(loss):
            without.append(name)
            continue
        options: dict[str, Any] = {}
        if name == "sgd":
            options = {"batch": max(1, len(loss.samples) // 8)}
        if name == "weight_decay":
            options = {"decay": 1.0}
        made.append(_Entry(name, name, length if name in _OF_LENGTH else rate, options))
        if name == "gd":
            made.append(_Entry(LARGE, name, large))
    return made, f"left out, since the loss has no samples with targets: {', '.join(without)}" if without else ""


def _has_targets(loss: Any) -> bool:
    """Whether a loss has samples to whose targets noise can be added."""
    try:
        return hasattr(loss, "part") and loss.part(shift=torch.zeros_like(loss.samples.y)) is not None
    except ValueError:
        return False


def _states(
    flow: ContinuousFlow, z0: Tensor, number: tuple[int, int], sizes: tuple[float, float, float], seed: int
) -> Tensor:
    """Relaxed balanced starts, the same perturbed by round-off, and starts that are not: `(members, N, d, d)`."""
    (starts, controls), (twist, shift, detour) = number, sizes
    balanced = [INITIALS["relaxed_balanced"](z0, twist, shift, seed + k) for k in range(starts)]
    others = [INITIALS["detour"](z0, twist, shift, detour, seed + k) for k in range(controls)]
    states = torch.stack([flow.sample(profile) for profile in balanced])
    noise = torch.randn(
        states.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"
    ).to(states)
    perturbed = states + _ROUND_OFF * states.square().mean((-3, -2, -1), keepdim=True).sqrt() * noise
    return torch.cat((states, perturbed, torch.stack([flow.sample(profile) for profile in others])))


def _trained(flow: Flow, states: Tensor, entry: _Entry, steps: int) -> Trajectory:
    record = max(1, steps // _RECORDED)
    return descend(flow, states, steps, entry.rule, entry.rate, record=record, **entry.options)


def _spread(z: Tensor) -> np.ndarray:
    """The largest distance of a member from the first, over the norm of that: `(T, members, d, d)` → `(T,)`."""
    return _over(z - z[:, :1], z)


def _over(differences: Tensor, z: Tensor) -> np.ndarray:
    """The largest norm of some differences at each step, over that of the first z: `(T, …, d, d)` → `(T,)`."""
    return (frobenius(differences, 2).amax(1) / frobenius(z[:, 0], 1)).cpu().numpy()


def _gauged(problem: Problem, L: int, entry: _Entry, steps: int, seed: int) -> float:
    """The largest spread of Euler networks U_k ↦ Q_k U_k Q_{k−1}ᵀ under a rule; NaN where one has diverged."""
    flow = FiniteFlow(L, problem.loss)
    U = _layers(problem.z0, L, seed)
    turned = [U, *(turn @ U @ back for turn, back in _gauges(U, seed))]
    states = L * (torch.stack(turned) - torch.eye(U.shape[-1], dtype=U.dtype, device=U.device))
    return _largest(_trained(flow, states, entry, steps))


def _exponential(problem: Problem, entry: _Entry, steps: int, seed: int, L: int = 4) -> float:
    """The same of exponential layers, whose weights a gauge does not turn; by small ones: there are logarithms then."""
    flow = FiniteFlow(L, problem.loss, layer="exp")
    U = matrix_exp(
        _layers(problem.z0, L, seed) - torch.eye(problem.z0.shape[-1], dtype=problem.z0.dtype, device=problem.z0.device)
    )
    turned = [U, *(turn @ U @ back for turn, back in _gauges(U, seed, _TURN))]
    logarithms = [[logm(factor.cpu().numpy()) for factor in layers] for layers in turned]
    return _largest(_trained(flow, L * torch.as_tensor(np.array(logarithms)).to(U), entry, steps))


def _layers(z0: Tensor, L: int, seed: int) -> Tensor:
    """Layers `(L, d, d)` near the identity that are not balanced, whatever z₀: U_k = I + W_k/L."""
    d = z0.shape[-1]
    W = torch.randn(L, d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu") / d**0.5
    return torch.eye(d, dtype=z0.dtype, device=z0.device) + W.to(z0) / L


def _gauges(U: Tensor, seed: int, turn: float | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Q_k and Q_{k−1}ᵀ for all layers, with the identity at both ends; rotations by about `turn` where it is given."""
    L, d = U.shape[0], U.shape[-1]
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(_GAUGES):
        random = torch.randn(L - 1, d, d, generator=generator, dtype=torch.float64, device="cpu")
        skew = (random - random.mT) / (2 * d) ** 0.5
        Q = torch.linalg.qr(random)[0] if turn is None else matrix_exp(turn * skew)
        end = torch.eye(d, dtype=U.dtype, device=U.device)[None]
        yield torch.cat((Q.to(U), end)), torch.cat((end, Q.to(U))).mT


def _largest(path: Trajectory) -> float:
    return float("nan") if path.ending == "diverged" else float(_spread(path.z).max())


def _off_the_flow(problem: Problem, paths: Sequence[Trajectory]) -> float:
    """How far the first start is from the flow of z at most, over ‖z‖; NaN without a path that has come to its end."""
    if not paths or paths[0].status != "ok":
        return float("nan")
    z = paths[0].z[:, 0]
    exact = integrate(IntrinsicFlow(problem.loss, LogMean()), problem.z0, paths[0].times, "auto", 1e-9, 1e-11)
    limit = whole(exact, "flow of z").z
    return float((frobenius(z - limit, 1) / frobenius(limit, 1)).max())


def _off_its_limit(
    flow: Flow, state: Tensor, paths: Sequence[Trajectory], steps: int, rate: float
) -> tuple[float, float]:
    """The same with gradient descent in smaller steps, extrapolated to steps of no size, in the place of the flow of z.

    And its error: the last change of that limit when steps of half the size join in, over ‖z‖. They do until it is a
    thousandth of the distance, five times at most; that of the depth grid stands beside it.
    """
    if not paths or paths[0].status != "ok":
        return float("nan"), float("nan")
    walks, cuts, record = [paths[0].z[:, 0].cpu()], [1], max(1, steps // _RECORDED)
    limits: list[Tensor] = []
    found, unsure, size = float("nan"), float("inf"), frobenius(walks[0], 1)
    while len(cuts) <= _HALVED and not unsure <= _SURE * found:
        cuts.append(2 * cuts[-1])
        finer = descend(flow, state, steps * cuts[-1], "gd", rate / cuts[-1], record=record * cuts[-1])
        if finer.status != "ok":
            return float("nan"), float("nan")
        walks.append(finer.z[:, 0].cpu())
        limits.append(torch.from_numpy(extrapolated(cuts[-_JOINED:], torch.stack(walks[-_JOINED:]).numpy(), 1)))
        size = frobenius(limits[-1], 1)
        found = float((frobenius(walks[0] - limits[-1], 1) / size).max())
        if len(limits) > 1:
            unsure = float((frobenius(limits[-2] - limits[-1], 1) / size).max())
    return found, unsure + float(paths[0].depth_error.max() / size.min())


_LONG_NAMES = {
    "spread": "largest distance of a relaxed balanced start from the first, over ‖z‖",
    "control_spread": "the same of starts that are not relaxed balanced, over ‖z‖",
    "floor": "largest distance between a start and the same perturbed by 1e-15, over ‖z‖",
    "loss": "loss f(z_n)",
    "z": "end-to-end map z_n",
    "kind": "what a start is",
    "rate": "step size η",
    "equivariant": "whether the rule turns with the gradient",
    "depth_error": "error of z from the depth grid",
    "status": "how the run ended",
    "network_spread": "largest spread of Euler networks of one gauge orbit, over ‖z‖",
    "exponential": "spread of four exponential layers turned by gauges, under gradient descent, over ‖z‖",
    "off_its_limit": "the same from gradient descent extrapolated to steps of no size, over ‖z‖",
    "error_limit": "error of that limit, estimated, over ‖z‖",
    "off_the_flow": "largest distance of gradient descent in large steps from the flow, over ‖z‖",
}


def _dataset(entries: Sequence[_Entry], paths: Sequence[Trajectory], number: tuple[int, int]) -> xr.Dataset:
    """What became of all starts; the perturbed ones stand between the relaxed balanced ones and the others."""
    starts, controls = number
    kept = [*range(starts), *range(2 * starts, 2 * starts + controls)]
    most = max(len(path.times) for path in paths)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("spread", "control_spread", "floor", "loss", "z")}
    for path in paths:
        z = path.z
        seen = {
            "spread": _spread(z[:, :starts]),
            "control_spread": _spread(z[:, 2 * starts :]),
            "floor": _over(z[:, starts : 2 * starts] - z[:, :starts], z),
            "loss": path.loss[:, kept].cpu().numpy(),
            "z": z[:, kept].cpu().numpy(),
        }
        for name, values in seen.items():
            rows[name].append(_padded(most, values))
    longest = max(paths, key=lambda path: len(path.times))
    taken = (longest.times / longest.stats["rate"]).round().cpu().numpy()
    dims = {"loss": ("start",), "z": ("start", "row", "column")}
    variables = {name: (("rule", "step", *dims.get(name, ())), np.stack(values)) for name, values in rows.items()}
    return arranged(
        variables
        | {
            "kind": ("start", ["relaxed balanced"] * starts + ["other"] * controls),
            "rate": ("rule", [entry.rate for entry in entries]),
            "equivariant": ("rule", [entry.equivariant for entry in entries]),
            "depth_error": ("rule", [float(path.depth_error.max()) for path in paths]),
            "status": ("rule", [path.status for path in paths]),
        },
        [
            axis("rule", [entry.label for entry in entries], "step rule"),
            axis("step", taken, "step n"),
            axis("start", np.arange(starts + controls), "start"),
        ],
        _LONG_NAMES,
    )


def _padded(length: int, values: np.ndarray) -> np.ndarray:
    """The same with NaN for the steps that were not taken."""
    missing = length - len(values)
    return np.concatenate((values, np.full((missing, *values.shape[1:]), np.nan))) if missing else values


def _finding(dataset: xr.Dataset, entries: Sequence[_Entry], left_out: str, problem: Problem) -> Finding:
    judged = {entry.label: _judged(dataset.sel(rule=entry.label), entry) for entry in entries}
    turning = [entry.label for entry in entries if entry.equivariant]
    seeing = [entry.label for entry in entries if not entry.equivariant]
    control = dataset.control_spread.max("step", skipna=False).to_series().to_dict()
    networks = dataset.network_spread.sel(rule=turning).max("depth", skipna=False).to_series().to_dict()
    # A fan may be told on a grid that resolves W to 1e-5 only, one line may not.
    ended = dict(zip(judged, dataset.status.values.tolist(), strict=True))
    wrong = [f"{label}: {ended[label]}" for label in judged if ended[label] != "ok" and label in turning]
    wrong += [f"{label}: {ended[label]}" for label in seeing if "diverged" in ended[label]]
    starts = int((dataset.kind == "relaxed balanced").sum())
    return Finding(
        study="universality",
        problem=problem.title,
        status=wrong[0] if wrong else "ok",
        verdict=_verdict(starts, judged, control, turning, seeing),
        claim=Claim(
            "for every step rule that turns with the gradient, of any step size, z₀ decides the whole sequence z_n"
            if turning
            else "under step rules that see coordinates or sizes z₀ does not decide the sequence z_n",
            measured={label: judged[label] for label in turning or seeing},
        ),
        checks=_checks(dataset, judged, control, networks),
        notes={"Rules": left_out} if left_out else {},
        numbers={
            "spread": judged,
            "control_spread": control,
            "network_spread": networks,
            "reference_error": float(dataset.depth_error.sel(rule=turning).max()) if turning else None,
        },
    )


def _verdict(
    starts: int, judged: dict[Any, float], control: dict[Any, float], turning: Sequence[str], seeing: Sequence[str]
) -> str:
    """Which starts are one line and which fan out, as far as it is known, and under which rule least so."""
    lines = {label: judged[label] for label in turning if np.isfinite(judged[label])}
    fans, still = _apart({label: judged[label] for label in seeing})
    others, close = _apart(control)
    told, sentences = [], []
    if lines:
        most, where = max(lines.values()), _under(lines, "most", max)
        told.append(
            f"have the same z_n to {most:.1e} ‖z‖ {where}" if most <= _ONE else f"are {most:.1e} ‖z‖ apart {where}"
        )
    if fans:
        told.append(f"fan out to {min(fans.values()):.1e} ‖z‖ or more {_under(fans, 'least', min)}")
    if told:
        sentences.append(f"{starts} relaxed balanced starts with one z₀ {' and '.join(told)}.")
    if still:
        sentences.append(f"Relaxed balanced starts do not fan out {_under(still, 'least', min)}.")
    if others:
        where = "under all of them" if len(others) == len(control) else _under(others, "least", min)
        sentences.append(f"Starts that are not fan out {where}.")
    if close:
        sentences.append(f"Starts that are not relaxed balanced do not fan out {_under(close, 'least', min)}.")
    if lost := [label for label in control if np.isnan(judged[label] + control[label])]:
        sentences.append(f"Not all is known of {', '.join(lost)}.")
    return " ".join(sentences)


def _apart(spreads: dict[Any, float]) -> tuple[dict[Any, float], dict[Any, float]]:
    """Those under which starts fan out, and those under which they do not."""
    return (
        {label: spread for label, spread in spreads.items() if spread >= _FAN},
        {label: spread for label, spread in spreads.items() if spread < _FAN},
    )


def _under(spreads: dict[Any, float], how: str, which: Callable[..., Any]) -> str:
    """Rules in words, of several also the one under which it is least or most so."""
    named = f" ({how} under {which(spreads, key=spreads.__getitem__)})" if len(spreads) > 1 else ""
    return f"under {', '.join(spreads)}{named}"


def _checks(
    dataset: xr.Dataset, judged: dict[Any, float], control: dict[Any, float], networks: dict[Any, float]
) -> tuple[Check, ...]:
    """What must be one, and what must fan out; `networks` are those under rules that turn with the gradient."""
    over = "over ‖z‖"
    exponential, off = float(dataset.exponential), float(dataset.off_the_flow)
    own = float(np.maximum(abs(off - float(dataset.off_its_limit)) - float(dataset.error_limit), 0.0)) / off
    steady, amplifying = ([label for label in networks if (label in _AMPLIFYING) == own] for own in (False, True))
    found = [
        _worst("starts under rules that turn with the gradient", judged, steady),
        _worst(
            "the same under normalised rules, while a perturbation has grown less than 100-fold", judged, amplifying
        ),
        _worst("Euler networks turned by random gauges", networks, steady),
        _worst(
            "starts under rules that see coordinates or sizes",
            judged,
            [label for label in judged if label not in networks],
            fan=True,
        ),
        _worst("other starts under any rule", control, list(control), fan=True),
        Check("exponential layers turned by gauges", exponential, _FAN, over, least=True) if "gd" in judged else None,
        Check("gd in large steps, distance from the flow", off, _FAN, over, least=True) if "gd" in judged else None,
        Check(
            "that distance against that from its own limit in smaller steps", own, _SAME, "relative, beyond its error"
        )
        if "gd" in judged
        else None,
    ]
    return tuple(check for check in found if check is not None)


def _worst(name: str, spreads: dict[Any, float], labels: Sequence[str], fan: bool = False) -> Check | None:
    """The largest spread of some rules, to be round-off, or the least, to be a fan; None without any.

    NaN where one of them is not known. Which rule it is of differs between members, so that its name does not say it.
    """
    if not labels:
        return None
    found, of = [spreads[label] for label in labels], f"over ‖z‖, {'least' if fan else 'largest'} of the rules"
    return Check(name, float(np.min(found) if fan else np.max(found)), _FAN if fan else _ONE, of, least=fan)


def _judged(one: xr.Dataset, entry: _Entry) -> float:
    """The largest spread under a rule; of one that amplifies round-off, while a perturbation has not grown much."""
    spread = one.spread.values
    if entry.label in _AMPLIFYING:
        beyond = np.flatnonzero(one.floor.values >= _GROWN * max(_ROUND_OFF, float(one.floor[0])))
        spread = spread[: beyond[0]] if len(beyond) else spread
    return float(spread.max()) if len(spread) > 1 else float("nan")  # at the start all are one


STUDIES.register("universality")(
    Study(
        run,
        steps="study.rules, study.rate",
        question="Which step rules leave nothing of a start but z₀: one line of z_n, or a fan?",
    )
)
