"""The path lifting of ReLU networks on any directed acyclic graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..checks import count, floating, positive, random_source, real

Map = Callable[[Tensor], Tensor]
Value = TypeVar("Value")


@dataclass(frozen=True)
class ReluDag:
    """A network of ReLU (or leaky ReLU) neurons on a directed acyclic graph, linear at its outputs.

    Nodes are numbered in a topological order: inputs, hidden neurons, outputs. A bias is the weight of an edge from
    one more node that always holds 1. θ, a tensor `(..., n)`, has the weights of the edges in the order given, then
    the biases of the hidden neurons, then those of the outputs.

    Parameters
    ----------
    inputs, hidden, outputs : int
        Numbers of nodes of each kind.
    edges : sequence of (int, int)
        Edges (i, j) from node i to node j > i, skip connections too: none into an input, none out of an output.
    biases : bool
        Whether every hidden neuron and every output has a bias.
    slope : float
        The activation is σ(p) = p for p > 0 and `slope` p else: 0 for ReLU, above it for leaky ReLU.
    max_paths : int
        The methods that list all paths refuse a graph that has more.

    Raises
    ------
    TypeError, ValueError
        For bad arguments; an edge that is there twice or not between such nodes; a hidden neuron without an edge into
        it or out of it; an output without an edge into it.

    Notes
    -----
    Every path from an input or a bias to an output multiplies what it starts with by the weights along it and by the
    slopes of the activations that it meets. The network is therefore linear in φ(θ), the products of weights, as long
    as no activation switches (Gonon et al. 2023, arXiv 2310.01225, definition of the path lifting and of the path
    activations). Where no entry of θ is zero, ∂φ has rank n − hidden: its null space is the rescaling of the neurons
    (Marcotte et al. 2023, arXiv 2307.00144; 2025, arXiv 2508.07370).
    """

    inputs: int
    hidden: int
    outputs: int
    edges: Sequence[tuple[int, int]]
    biases: bool = True
    slope: float = 0.0
    max_paths: int = 100_000

    def __post_init__(self) -> None:
        for name, least in (("inputs", 1), ("hidden", 0), ("outputs", 1), ("max_paths", 1)):
            object.__setattr__(self, name, count(name, getattr(self, name), least))
        if not isinstance(self.biases, bool):
            raise TypeError(f"biases must be True or False, got {self.biases!r}")
        if not real("slope", self.slope) >= 0:
            raise ValueError(f"slope must be at least 0, got {self.slope!r}")
        object.__setattr__(self, "edges", self._checked_edges(self.edges))

    def _checked_edges(self, edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        last_hidden = self.inputs + self.hidden
        kept: dict[tuple[int, int], None] = {}
        for edge in edges:
            try:
                i, j = edge
            except (TypeError, ValueError):
                raise TypeError(f"edges must be pairs (i, j) of nodes, got {edge!r}") from None
            i, j = count("edges", i, least=0), count("edges", j, least=0)
            if not (i < j and i < last_hidden and self.inputs <= j < self.nodes):
                raise ValueError(
                    f"edges must lead from a node to a later one, with inputs 0 to {self.inputs - 1} before hidden "
                    f"neurons before outputs {last_hidden} to {self.nodes - 1}, got {(i, j)}"
                )
            if (i, j) in kept:
                raise ValueError(f"edges must not repeat, got {(i, j)} twice")
            kept[i, j] = None
        starts, ends = {i for i, _ in kept}, {j for _, j in kept}
        for node in range(self.inputs, self.nodes):
            if node not in ends or (node < last_hidden and node not in starts):
                what = "into" if node not in ends else "out of"
                raise ValueError(f"edges must have one {what} node {node}, which is no end of the network")
        return tuple(kept)

    @classmethod
    def layered(
        cls,
        widths: Sequence[int],
        biases: bool = True,
        skips: bool = False,
        slope: float = 0.0,
        max_paths: int = 100_000,
    ) -> ReluDag:
        """A network of fully connected layers of these widths, inputs first.

        `skips` joins every layer to the layer after the next as well.
        """
        if not isinstance(widths, Sequence) or len(widths) < 2:
            raise TypeError(f"widths must be a sequence of at least 2 integers, got {widths!r}")
        if not isinstance(skips, bool):
            raise TypeError(f"skips must be True or False, got {skips!r}")
        sizes = [count("widths", width) for width in widths]
        ends = list(itertools.accumulate(sizes, initial=0))
        layers = [range(a, b) for a, b in itertools.pairwise(ends)]
        edges = [
            edge
            for ahead in ((1, 2) if skips else (1,))
            for a, b in zip(layers, layers[ahead:])
            for edge in itertools.product(a, b)
        ]
        return cls(sizes[0], sum(sizes[1:-1]), sizes[-1], edges, biases, slope, max_paths)

    @classmethod
    def random(
        cls,
        generator: torch.Generator,
        inputs: int = 2,
        hidden: int = 5,
        outputs: int = 2,
        density: float = 0.5,
        biases: bool = True,
        slope: float = 0.0,
        max_paths: int = 100_000,
    ) -> ReluDag:
        """Each possible edge is drawn with probability `density`; nodes left without one that they need get one."""
        random_source("generator", generator)
        sizes = count("inputs", inputs), count("hidden", hidden, least=0), count("outputs", outputs)
        if not 0 <= (chance := real("density", density)) <= 1:
            raise ValueError(f"density must be between 0 and 1, got {density!r}")
        first_hidden, first_output, nodes = itertools.accumulate(sizes)
        possible = [(i, j) for j in range(first_hidden, nodes) for i in range(min(j, first_output))]
        drawn = torch.rand(len(possible), generator=generator, device="cpu") < chance
        edges = [edge for edge, taken in zip(possible, drawn.tolist()) if taken]

        def add_one(candidates: Sequence[tuple[int, int]]) -> None:
            edges.append(candidates[int(torch.randint(len(candidates), (1,), generator=generator, device="cpu"))])

        for node in range(first_hidden, nodes):
            if all(j != node for _, j in edges):
                add_one([edge for edge in possible if edge[1] == node])
        for node in range(first_hidden, first_output):
            if all(i != node for i, _ in edges):
                add_one([edge for edge in possible if edge[0] == node])
        return cls(inputs, hidden, outputs, edges, biases, slope, max_paths)

    @property
    def nodes(self) -> int:
        """Number of nodes without the one of the biases."""
        return self.inputs + self.hidden + self.outputs

    @property
    def parameters(self) -> int:
        """n, the length of θ."""
        return len(self._arrows)

    @cached_property
    def _arrows(self) -> tuple[tuple[int, int], ...]:
        """(i, j) of every parameter, with i = `nodes` for the biases."""
        targets = range(self.inputs, self.nodes) if self.biases else ()
        return (*self.edges, *((self.nodes, j) for j in targets))

    @cached_property
    def _incoming(self) -> tuple[tuple[int, ...], ...]:
        """The parameters that lead into each hidden neuron, then into each output."""
        into: list[list[int]] = [[] for _ in range(self.hidden + self.outputs)]
        for k, (_, j) in enumerate(self._arrows):
            into[j - self.inputs].append(k)
        return tuple(map(tuple, into))

    @cached_property
    def _order(self) -> list[int]:
        return list(itertools.chain(*self._incoming))

    def _weights(self, theta: Tensor) -> tuple[Tensor, ...]:
        """The weights into each hidden neuron and output, (..., in-degree) each: one gather, cheap to differentiate."""
        return theta[..., self._order].split([len(into) for into in self._incoming], dim=-1)

    def _walk(self, starts: Sequence[Value], one: Value, step: Callable[[int, list[Value]], Value]) -> list[Value]:
        """The values of the outputs, by dynamic programming over the nodes.

        Node k after the inputs has the value step(k, the values that its edges come from);
        `starts` are the values of the inputs and `one` that of the node of the biases.
        """
        values = dict(enumerate(starts))
        values[self.nodes] = one
        for k, into in enumerate(self._incoming):
            values[self.inputs + k] = step(k, [values[self._arrows[arrow][0]] for arrow in into])
        return [values[node] for node in range(self.inputs + self.hidden, self.nodes)]

    @cached_property
    def _paths_to(self) -> list[int]:
        """The number of paths to each output."""
        return self._walk([1] * self.inputs, 1, lambda k, numbers: sum(numbers))

    @property
    def paths(self) -> int:
        """The number of paths, the length of φ(θ): exact, however large."""
        return sum(self._paths_to)

    @cached_property
    def incidence(self) -> Tensor:
        """(n, hidden): 1 for a weight or bias into the neuron, −1 for a weight out of it, 0 for others."""
        rows = [[0.0] * self.hidden for _ in self._arrows]
        for row, (i, j) in zip(rows, self._arrows):
            if j < self.inputs + self.hidden:
                row[j - self.inputs] = 1.0
            if self.inputs <= i < self.inputs + self.hidden:
                row[i - self.inputs] = -1.0
        return torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(self.parameters, self.hidden)

    def _check_theta(self, theta: Tensor) -> None:
        floating("theta", theta)
        if theta.shape[-1:] != (self.parameters,):
            raise ValueError(f"theta must have shape (..., {self.parameters}), got {tuple(theta.shape)}")

    def _check_paths(self) -> None:
        if self.paths > self.max_paths:
            raise ValueError(
                f"the network has {self.paths:.3g} paths, more than max_paths = {self.max_paths}: raise it, or use "
                f"sketch(number, generator), which lists no paths"
            )

    def _sums(self, theta: Tensor, x: Tensor) -> Tensor:
        """What reaches the hidden neurons and the outputs, (..., N, hidden + outputs)."""
        self._check_theta(theta)
        floating("x", x)
        if x.ndim != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x must have shape (N, {self.inputs}), got {tuple(x.shape)}")
        batch = (*theta.shape[:-1], len(x))
        weights = self._weights(theta)
        sums: list[Tensor] = []

        def step(k: int, values: list[Tensor]) -> Tensor:
            total = (torch.stack(values, dim=-1) @ weights[k].unsqueeze(-1)).squeeze(-1)
            sums.append(total)
            return torch.where(total > 0, total, self.slope * total)

        self._walk([x[:, i].expand(batch) for i in range(self.inputs)], x.new_ones(()).expand(batch), step)
        return torch.stack(sums, dim=-1)

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """The outputs (..., N, outputs) for inputs x (N, inputs)."""
        return self._sums(theta, x)[..., self.hidden :]

    def preactivations(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the hidden neurons are activated by, (..., N, hidden)."""
        return self._sums(theta, x)[..., : self.hidden]

    def lifting(self, theta: Tensor) -> Tensor:
        """φ(θ) (..., paths): the product of the weights along each path, output by output.

        Raises
        ------
        ValueError
            If there are more than `max_paths`.
        """
        self._check_theta(theta)
        self._check_paths()
        weights = self._weights(theta)

        def step(k: int, values: list[Tensor]) -> Tensor:
            return torch.cat([w * value for w, value in zip(weights[k].split(1, dim=-1), values)], dim=-1)

        one = theta.new_ones(1)
        return torch.cat(self._walk([one] * self.inputs, one, step), dim=-1)

    def design(self, theta: Tensor, x: Tensor) -> Tensor:
        """A (..., N · outputs, paths) with the outputs = A φ(θ), for the activations of θ at x (N, inputs).

        Its rows go through the outputs of the first sample, then those of the second, …

        Raises
        ------
        ValueError
            If there are more than `max_paths`.
        """
        self._check_paths()
        active = self.preactivations(theta, x) > 0
        gains = torch.where(active, x.new_ones(()), self.slope)

        def step(k: int, values: list[Tensor]) -> Tensor:
            row = torch.cat(values, dim=-1)
            return row * gains[..., k, None] if k < self.hidden else row

        batch = (*gains.shape[:-1], 1)
        starts = [x[:, i : i + 1].expand(batch) for i in range(self.inputs)]
        rows = self._walk(starts, x.new_ones(batch), step)
        ends = itertools.accumulate(self._paths_to)
        blocks = [pad(row, (end - row.shape[-1], self.paths - end)) for row, end in zip(rows, ends)]
        return torch.stack(blocks, dim=-2).flatten(-3, -2)

    def laws(self, theta: Tensor) -> Tensor:
        """(..., hidden): Σ incoming² (+ bias²) − Σ outgoing² of every hidden neuron, conserved by every loss."""
        self._check_theta(theta)
        return theta.square() @ self.incidence.to(dtype=theta.dtype, device=theta.device)

    def rescale(self, theta: Tensor, neuron: int, factor: float) -> Tensor:
        """θ with all that enters a hidden neuron times `factor` > 0 and all that leaves it over it.

        It leaves φ and the function of the network as they are.
        """
        self._check_theta(theta)
        if not self.hidden:
            raise ValueError(f"neuron must be a hidden neuron, got {neuron!r}, but this network has none")
        column = self.incidence[:, count("neuron", neuron, least=0, most=self.hidden - 1)]
        return theta * positive("factor", factor) ** column.to(dtype=theta.dtype, device=theta.device)

    def sketch(self, number: int, generator: torch.Generator) -> Map:
        """Random linear functionals of φ, in time independent of the number of paths.

        Parameters
        ----------
        number : int
            How many.
        generator : torch.Generator
            Of the factors c_e, one for each parameter and functional.

        Returns
        -------
        callable
            θ (..., n) → (..., number): Σ over the paths of Π c_e θ_e over the edges e of the path.

        Notes
        -----
        As polynomials in c the products Π c_e of different paths are independent, so that generic draws span all
        functionals of φ: as many as ∂φ has rank have the same null space and the same rank, and the Lie algebra that
        the gradients of φ generate is that of theirs.
        """
        number = count("number", number)
        random_source("generator", generator)
        drawn = torch.randn(number, self.parameters, generator=generator, dtype=torch.float64, device="cpu")
        # Each node sums as many terms as edges lead into it: so scaled, the sums stay of order one over any depth.
        terms = torch.tensor(
            [len(self._incoming[j - self.inputs]) for _, j in self._arrows], dtype=torch.float64, device="cpu"
        )
        factors = drawn / terms.sqrt()

        def functionals(theta: Tensor) -> Tensor:
            self._check_theta(theta)
            weights = self._weights(theta.unsqueeze(-2) * factors.to(dtype=theta.dtype, device=theta.device))

            def step(k: int, values: list[Tensor]) -> Tensor:
                return (torch.stack(values, dim=-1) * weights[k]).sum(-1)

            one = theta.new_ones(()).expand(weights[0].shape[:-1])
            return torch.stack(self._walk([one] * self.inputs, one, step)).sum(0)

        return functionals
