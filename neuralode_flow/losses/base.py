"""What a loss is, and where the losses of a regression are filed by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..checks import follows, unpatched
from ..display import crossed, members_said, said
from ..matrices import each_product
from ..promises import Once
from ..registry import Registry
from ..signatures import known

# Losses whose derivatives have been compared; what a user writes into `Separable` or `Custom` is the user's.
PASSED = Once()


class Loss(Protocol):
    """What a loss promises, for z of shape `(..., d, d)`, or another one that it says.

    1. `loss(z)` is f(z), shape `(...)`.
    2. `loss.gradient(z)` is ∇f(z), of the shape of z.
    3. `dimension` is d, or None when any d will do or z is not square.

    A loss for one shape of z alone has it as `shape`: the square flows refuse one that is not square, which is for
    FactorizationFlow.

    Where it is known, `boundary()` is what a flow with det z > 0 cannot fall below where the minimiser has det < 0: the
    least value on singular matrices, `(...)`; NaN for members whose minimiser has not. `plateau()` is the next value
    at which such a flow can come to rest there, `(...)`: below it the loss tends to `boundary()`. `infimum()` is the
    infimum over det z > 0, `(...)`, None where it is not known: what is left of a loss is said against it. `hessian(z,
    direction)`, the derivative of the gradient, makes the Jacobian–vector products of stiff solvers exact. A loss of
    samples has them as `samples`, and `part(rows, shift)` is that of some of them, or with other targets: for SGD.
    A loss with a target for each member of a batch has `select(members, index)`, the loss of some of them, `(n,)`: for
    steps of their own. For events and the sign of det z it is asked for one without an axis as well, an index `()`.
    `squares()` says what it is half the square of (`Squares`), None where it is not: the compiled engine takes whole
    steps along such a gradient. A class whose gradient does the same operations whatever the numbers are says so by
    its own `repeats`, which those made of it do not inherit.
    """

    dimension: int | None

    def __call__(self, z: Tensor) -> Tensor: ...

    def gradient(self, z: Tensor) -> Tensor: ...


class Squares(NamedTuple):
    """A loss that is half a square times a weight: its gradient is w Rᵀ(R z xᵀ − yᵀ) x, or w (z − y) without x.

    Attributes
    ----------
    x : Tensor (rows, d) or None
    y : Tensor (rows, outputs), or (..., d, d) without x
    readout : Tensor (outputs, d) or None
        R; None for the identity.
    weight : Tensor (...) or None
        w, of each member or of all; None for 1.
    """

    x: Tensor | None
    y: Tensor
    readout: Tensor | None = None
    weight: Tensor | None = None

    def gradient(self, z: Tensor) -> Tensor:
        """That gradient, at z `(..., d, d)`."""
        image = z if self.x is None else each_product(z, self.x.mT)
        told = image if self.readout is None else each_product(self.readout, image)
        left = told - (self.y if self.x is None else self.y.mT)
        back = left if self.readout is None else each_product(self.readout.mT, left)
        moved = back if self.x is None else each_product(back, self.x)
        return moved if self.weight is None else self.weight[..., None, None] * moved


# Losses of a regression by name, as data problems take them: (x, y, readin, readout) → Loss. One whose y holds classes
# has `encode(name, y)`, which makes the targets (n, d_out) of what stands in a table; they are not standardised then.
LOSSES: Registry[Callable[..., Loss]] = Registry("loss")
LossName = Annotated[str, known(LOSSES)]


def check_loss(name: str, value: Any) -> None:
    """Raises TypeError unless `value` follows `Loss`."""
    follows(name, value, "a loss", "Quadratic(target)", ("gradient", "dimension", "__call__"))


def squares_of(loss: object) -> Squares | None:
    """What a loss is half the square of, as its own class says."""
    # One that is made of it, or whose gradient was replaced, may have another gradient.
    told = "squares" in vars(type(loss)) and "gradient" not in vars(loss) and unpatched(type(loss), "gradient")
    return loss.squares() if told else None  # type: ignore[attr-defined]


def repeats(loss: object) -> bool:
    """Whether the class of a loss says that its gradient does the same operations whatever the numbers are."""
    return bool(vars(type(loss)).get("repeats", False))


def check_square_loss(name: str, value: Any) -> None:
    """Raises unless `value` follows `Loss` and is for square z, the product of a depth."""
    check_loss(name, value)
    shape = getattr(value, "shape", None)
    if shape is not None and side(shape) is None:
        raise ValueError(
            f"{name} must be for square matrices, the products over depth, got one for z of shape {tuple(shape)}; "
            f"FactorizationFlow takes it"
        )


def side(shape: Sequence[int]) -> int | None:
    """d, where z of that shape is d × d."""
    return shape[0] if len(shape) == 2 and shape[0] == shape[1] else None


def loss_said(value: Any, *parts: str, loss: Any = None) -> str:
    """The repr of a loss, or of what has one: the size of z, what else it is made of, and the members of the loss."""
    loss = value if loss is None else loss
    return said(value, _size_said(loss), *parts, members_said(_members_of(loss)))


def _size_said(loss: Any) -> str:
    """The size of the z that a loss takes, "d=3" or "z of 2×3"; empty where any will do."""
    shape = getattr(loss, "shape", None)
    if loss.dimension is not None:
        return f"d={loss.dimension}"
    if shape is None:
        return ""
    return f"z of {crossed(shape)}" if len(shape) else "z a number"


def _members_of(loss: Any) -> tuple[int, ...]:
    """The leading axes of a loss with a target for each member; () of one for all."""
    shape = getattr(loss, "shape", None)
    parts = [getattr(loss, name, None) for name in ("target", "mask")]
    leading = [
        tuple(part.shape[: part.ndim - len(shape)]) for part in parts if isinstance(part, Tensor) and shape is not None
    ]
    return tuple(torch.broadcast_shapes(*leading))


def of_some(part: Tensor, axes: int, members: Sequence[int], index: Tensor) -> Tensor:
    """What some members of a batch have of a tensor `(..., *shape)` with `axes` last axes: `(n, *shape)`, or all of it.

    `members` is the shape of the batch, and `index` `(n,)` counts its members in one line.
    """
    if part.ndim == axes:
        return part
    shape = part.shape[part.ndim - axes :]
    return part.expand(*members, *shape).reshape(-1, *shape)[index]


def check_z(z: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raises unless z is a tensor with these last axes: cheap enough for every call."""
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch tensor, got {type(z).__name__}; use torch.as_tensor(...)")
    if shape is not None and z.shape[z.ndim - len(shape) :] != shape:
        wanted = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"z must have shape ({wanted}), that of the loss, got {tuple(z.shape)}")
