"""SGD: gradient descent on some of the samples, drawn anew at each step."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ...signatures import Count, MixedSeed, known
from ..steprule import STEP_RULES, AlongGradient, Ground

SAMPLING = ("replacement", "epochs")


@STEP_RULES.register("sgd")
class StochasticGradientDescent(AlongGradient):
    """W_{n+1} = W_n − η g_n of the loss of `batch` samples; all members of a batch of states see the same ones.

    They are drawn with replacement, or in epochs: in an order of all samples, a new one for each epoch, whose last
    batch may be smaller. Step n draws the same samples whenever it is taken.
    """

    def __init__(
        self,
        ground: Ground,
        rate: float,
        *,
        batch: Count = 1,
        sampling: Annotated[str, known(dict.fromkeys(SAMPLING), "sampling")] = "replacement",
        seed: MixedSeed = 0,
    ) -> None:
        super().__init__(ground, rate)
        self.loss = need_samples("sgd", ground)
        self.number, self.batch, self.seed = len(self.loss.samples), batch, seed
        if batch > self.number:
            raise ValueError(f"batch must be at most the number of samples, {self.number}, got {batch}")
        self.rows = self._in_epochs if sampling == "epochs" else self._with_replacement
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def along(self, n: int, state: Tensor) -> Tensor:
        return -self.ground.with_loss(state, self.loss.part(self.rows(n).to(state.device)))

    def _with_replacement(self, n: int) -> Tensor:
        return torch.randint(self.number, (self.batch,), generator=source(self.seed, n), device="cpu")

    def _in_epochs(self, n: int) -> Tensor:
        epoch, within = divmod(n, -(-self.number // self.batch))
        if self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(self.number, generator=source(self.seed, epoch), device="cpu")
        return self._epoch[1][within * self.batch : (within + 1) * self.batch]


def need_samples(name: str, ground: Ground) -> Any:
    """The loss of a flow, which has samples; ValueError if it has none."""
    loss = ground.flow.loss
    if not hasattr(loss, "part"):
        raise ValueError(
            f"rule={name!r} needs a loss with samples, such as Regression(x, y), and {type(loss).__name__} has none"
        )
    return loss


def source(seed: int, n: int) -> torch.Generator:
    """Random numbers of step n, the same whatever came before; a generator of torch sees the last 32 bits of a seed."""
    mixed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed((mixed + n * 0x9E3779B97F4A7C15) % 2**63)
