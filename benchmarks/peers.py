"""How others compute a training velocity, and a whole training flow: the peers of benchmarks/speed.py.

Each is written the way its library is meant to be used. All of them take the same state, the values of W on the depth
nodes, and stand for the same panel polynomials; what a peer does between the nodes is its own affair.

The libraries interpolate values inside a step, some at a lower order than that of the step. With ``landing`` the steps
end on the depth nodes instead: more of them, at a looser tolerance. Which is faster depends on the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchdiffeq
from scipy.integrate import solve_ivp
from torch import Tensor

import neuralode_flow as nf
from neuralode_flow.losses import Loss

MOST_STEPS = 16_384  # of one solve by diffrax


def lagrange(grid: nf.DepthGrid, s: float) -> tuple[int, np.ndarray]:
    """The panel of a depth and the Lagrange polynomials there, (order,): the barycentric formula for one point."""
    panel = min(max(int(s * grid.panels), 0), grid.panels - 1)
    difference = s * grid.panels - panel - grid.rule.nodes
    terms = grid.rule.barycentric / difference if difference.all() else (difference == 0).astype(float)
    return panel, terms / terms.sum()


class Torchdiffeq:
    """Two calls of `torchdiffeq.odeint`: X' = W(s) X from 0 to 1, then its adjoint Y' = −W(s)ᵀ Y from 1 back.

    Parameters
    ----------
    grid : DepthGrid
    loss : Loss
    method : str
        "dopri5" or "dopri8".
    tolerance : float
        rtol and atol of both solves.
    landing : bool
        Steps end on the depth nodes and on the edges of the panels; without, on the last depth only.
    """

    def __init__(self, grid: nf.DepthGrid, loss: Loss, method: str, tolerance: float, landing: bool = False) -> None:
        self.grid = grid
        self.loss = loss
        self.options = {"method": method, "rtol": tolerance, "atol": tolerance}
        self.landing = landing
        ends = torch.tensor([0.0, 1.0]).to(grid.nodes)
        self.depths = torch.cat((ends[:1], grid.nodes, ends[1:]))
        self.edges = torch.arange(1, grid.panels).to(grid.nodes) / grid.panels

    def _weights(self, state: Tensor) -> Callable[[Tensor], Tensor]:
        """W(s), a function of one depth."""
        panels, shape = self.grid.panelled(state).flatten(-2).unbind(-3), state.shape[-2:]

        def at(s: Tensor) -> Tensor:
            panel, weights = lagrange(self.grid, float(s))
            return (torch.from_numpy(weights).to(state) @ panels[panel]).unflatten(-1, shape)

        return at

    def _solve(self, slope: Callable[[Tensor, Tensor], Tensor], start: Tensor, depths: Tensor, edges: Tensor) -> Tensor:
        landing = {"step_t": depths[1:], "jump_t": edges} if self.landing else {"step_t": depths[-1:]}
        return torchdiffeq.odeint(slope, start, depths, **self.options, options=landing)

    def _forward(self, state: Tensor) -> Tensor:
        """X at 0, at the nodes and at 1, depth first."""
        weights = self._weights(state)
        start = torch.eye(state.shape[-1]).to(state).expand(*state.shape[:-3], *state.shape[-2:]).contiguous()
        return self._solve(lambda s, X: weights(s) @ X, start, self.depths, self.edges)

    def product(self, state: Tensor) -> Tensor:
        """z = X(1)."""
        return self._forward(state)[-1]

    def velocity(self, state: Tensor) -> Tensor:
        """−Y Xᵀ at the nodes."""
        weights, X = self._weights(state), self._forward(state)
        gradient, depths, edges = self.loss.gradient(X[-1]), self.depths[1:].flip(0), self.edges.flip(0)
        Y = self._solve(lambda s, Y: -weights(s).mT @ Y, gradient, depths, edges).flip(0)
        return -(Y[:-1] @ X[1:-1].mT).movedim(0, -3)

    def flow(self, state: Tensor, times: Tensor, method: str, tolerance: float) -> Tensor:
        """z at the times: a third `odeint` around the other two, over training time."""
        options = {"method": method, "rtol": tolerance, "atol": tolerance, "options": {"step_t": times[1:]}}
        path = torchdiffeq.odeint(lambda t, W: self.velocity(W), state, times, **options)
        return torch.stack([self.product(W) for W in path])


class Scipy:
    """The two solves by `scipy.integrate.solve_ivp` with DOP853 on flattened matrices; its outputs are of order 7."""

    def __init__(self, grid: nf.DepthGrid, loss: Loss, tolerance: float) -> None:
        self.grid = grid
        self.loss = loss
        self.options = {"method": "DOP853", "rtol": tolerance, "atol": tolerance}
        self.nodes = grid.nodes.numpy()

    def velocity(self, state: Tensor) -> Tensor:
        """−Y Xᵀ at the nodes."""
        grid, d = self.grid, state.shape[-1]
        panels = grid.panelled(state).flatten(-2).numpy()

        def weights(s: float) -> np.ndarray:
            panel, values = lagrange(grid, s)
            return (values @ panels[panel]).reshape(d, d)

        def solve(slope: Callable[[float, np.ndarray], np.ndarray], start: np.ndarray, depths: np.ndarray) -> Any:
            span = (depths[0], depths[-1])
            return solve_ivp(slope, span, start.ravel(), t_eval=depths, **self.options).y.T.reshape(-1, d, d)

        depths = np.concatenate(([0.0], self.nodes, [1.0]))
        X = solve(lambda s, x: (weights(s) @ x.reshape(d, d)).ravel(), np.eye(d), depths)
        gradient = self.loss.gradient(torch.from_numpy(X[-1])).numpy()
        Y = solve(lambda s, y: -(weights(s).T @ y.reshape(d, d)).ravel(), gradient, depths[:0:-1])
        return torch.from_numpy(-(Y[:0:-1] @ X[1:-1].transpose(0, 2, 1)))


class Diffrax:
    """The two solves by `diffrax.diffeqsolve` in float64, compiled by XLA, for f(z) = ½‖z − target‖².

    States, targets and results are JAX arrays; tolerances are arguments of the compiled functions, so that one
    compilation serves them all. A solve that fails returns inf or NaN (`throw=False` saves the check on the host).

    Parameters
    ----------
    grid : DepthGrid
    method : str
        A solver of diffrax, such as "Tsit5" or "Dopri8".
    landing : bool
        Steps end on the depth nodes.
    """

    def __init__(self, grid: nf.DepthGrid, method: str, landing: bool = False) -> None:
        self.lib = _jax()
        self.grid = grid
        self.method = method
        self.landing = landing
        self.nodes, self.local, self.barycentric = map(self.array, (grid.nodes, grid.rule.nodes, grid.rule.barycentric))

    def array(self, values: Tensor | np.ndarray) -> Any:
        """`values` as a JAX array."""
        return self.lib.numpy.asarray(np.asarray(values.cpu() if isinstance(values, Tensor) else values))

    def velocity(self) -> Callable[..., Any]:
        """The compiled function (state, target, tolerance) → velocity."""
        return self.lib.jax.jit(self._velocity)

    def ensemble(self) -> Callable[..., Any]:
        """The same for leading batch axes of state and target, by `vmap`."""
        return self.lib.jax.jit(self.lib.jax.vmap(self._velocity, in_axes=(0, 0, None)))

    def flow(self, method: str) -> Callable[..., Any]:
        """The compiled function (state, target, times, tolerance, inner tolerance) → z at the times.

        `method` and the first tolerance are those of the solve over training time, around the other two.
        """
        diffrax = self.lib.diffrax

        def solve(state: Any, target: Any, times: Any, tolerance: Any, inner: Any) -> Any:
            path = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, W, _: self._velocity(W, target, inner)),
                getattr(diffrax, method)(),
                times[0],
                times[-1],
                None,
                state,
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                max_steps=MOST_STEPS,
                throw=False,
            ).ys
            return self.lib.jax.lax.map(lambda W: self._forward(W, inner)[-1], path)

        return self.lib.jax.jit(solve)

    def _weights(self, state: Any, s: Any) -> Any:
        """W(s): the barycentric formula, which is a single value where s is a node."""
        jnp, panels = self.lib.numpy, self.grid.panels
        panel = jnp.clip(jnp.floor(s * panels).astype(int), 0, panels - 1)
        difference = s * panels - panel - self.local
        exact = difference == 0
        terms = jnp.where(exact.any(), exact.astype(float), self.barycentric / jnp.where(exact, 1.0, difference))
        local = state.reshape(panels, self.grid.order, *state.shape[-2:])[panel]
        return jnp.tensordot(terms / terms.sum(), local, 1)

    def _solve(self, slope: Callable[..., Any], start: Any, depths: Any, tolerance: Any) -> Any:
        diffrax = self.lib.diffrax
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        if self.landing:
            controller = diffrax.ClipStepSizeController(controller, step_ts=self.nodes)
        return diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            getattr(diffrax, self.method)(),
            depths[0],
            depths[-1],
            None,
            start,
            saveat=diffrax.SaveAt(ts=depths),
            stepsize_controller=controller,
            max_steps=MOST_STEPS,
            throw=False,
        ).ys

    def _forward(self, state: Any, tolerance: Any) -> Any:
        """X at 0, at the nodes and at 1, depth first."""
        jnp = self.lib.numpy
        depths = jnp.concatenate((jnp.zeros(1), self.nodes, jnp.ones(1)))
        return self._solve(lambda s, X, _: self._weights(state, s) @ X, jnp.eye(state.shape[-1]), depths, tolerance)

    def _velocity(self, state: Any, target: Any, tolerance: Any) -> Any:
        jnp = self.lib.numpy
        X = self._forward(state, tolerance)
        depths = jnp.concatenate((jnp.ones(1), self.nodes[::-1]))
        Y = self._solve(lambda s, Y, _: -self._weights(state, s).T @ Y, X[-1] - target, depths, tolerance)
        return -Y[:0:-1] @ X[1:-1].transpose(0, 2, 1)


class Closed:
    """The closed equation ż = −U (K ∘ (UᵀGV)) Vᵀ of infinite depth for a regression, as one would write it by hand.

    With its Jacobian, from the divided differences of K in the squares of the singular values; in NumPy, or in JAX.

    Parameters
    ----------
    loss : Regression
    xp : module
        numpy or jax.numpy.
    """

    def __init__(self, loss: nf.Regression, xp: Any = np) -> None:
        x, y = loss._x.numpy(), loss._y.numpy()
        R = np.eye(x.shape[1]) if loss.readout is None else loss.readout.numpy()
        self.xp, self.d = xp, x.shape[1]
        self.left, self.right, self.start = (xp.asarray(M) for M in (R.T @ R, x.T @ x, R.T @ y.T @ x))
        self.hessian = xp.kron(self.left, self.right)

    def _parts(self, y: Any) -> tuple[Any, ...]:
        """U, σ, Vᵀ, K and UᵀGV, and of each pair log(x_a/x_b), x_a − x_b with x = σ², and whether they meet."""
        xp, z = self.xp, y.reshape(self.d, self.d)
        U, sigma, Vh = xp.linalg.svd(z)
        x = sigma**2
        r, gap = xp.log(x[:, None] / x), x[:, None] - x
        near = abs(r) < 1e-4
        K = xp.where(near, xp.sqrt(x[:, None] * x) * (1 + r**2 / 24), gap / xp.where(near, 1.0, r))
        return U, sigma, Vh, K, U.T @ (self.left @ z @ self.right - self.start) @ Vh.T, r, gap, near

    def velocity(self, y: Any) -> Any:
        U, _, Vh, K, E, *_ = self._parts(y)
        return -(U @ (K * E) @ Vh).ravel()

    def jacobian(self, y: Any) -> Any:
        xp, d = self.xp, self.d
        U, sigma, Vh, K, E, r, gap, near = self._parts(y)
        safe = xp.where(abs(r) < 1e-2, 1.0, r)
        series = 1 / 2 - r / 6 + r**2 / 24 - r**3 / 120 + r**4 / 720
        slope = xp.where(abs(r) < 1e-2, series, (safe + xp.expm1(-safe)) / safe**2)
        apart = (K[:, None] - K[None]) / xp.where(near, 1.0, gap)[:, :, None]
        k = xp.where(near[:, :, None], (slope[:, None] + slope[None]) / 2, apart)  # [a, c, b]
        one = xp.eye(d)
        rows, columns = k * E[None], xp.einsum("bca,ac->abc", k, E)
        T = xp.einsum("acb,c,ap->abpc", rows, sigma, one) + xp.einsum("acb,a,aq->abcq", rows, sigma, one)
        T = T + xp.einsum("abc,b,bp->abpc", columns, sigma, one) + xp.einsum("abc,c,bq->abcq", columns, sigma, one)
        W = xp.kron(U, Vh.T)
        return -W @ (T.reshape(d * d, d * d) @ W.T + K.reshape(-1, 1) * (W.T @ self.hessian))

    def scipy(self, z0: Tensor, times: Tensor, tolerance: float, method: str = "Radau") -> Tensor:
        """z at the times by `solve_ivp`."""
        path = solve_ivp(
            lambda t, y: self.velocity(y),
            (float(times[0]), float(times[-1])),
            z0.numpy().ravel(),
            method,
            t_eval=times.numpy(),
            jac=lambda t, y: self.jacobian(y),
            rtol=tolerance,
            atol=tolerance / 100,
        )
        return torch.from_numpy(path.y.T.reshape(-1, *z0.shape))

    @staticmethod
    def diffrax(loss: nf.Regression, z0: Tensor, times: Tensor, method: str) -> Callable[[float], Any]:
        """A compiled function of the tolerance that gives z at the times by `diffrax.diffeqsolve`."""
        lib = _jax()
        closed, jax, diffrax = Closed(loss, lib.numpy), lib.jax, lib.diffrax
        velocity = jax.custom_jvp(closed.velocity)
        velocity.defjvp(lambda y, moved: (closed.velocity(y[0]), closed.jacobian(y[0]) @ moved[0]))
        start, ts = lib.numpy.asarray(z0.numpy().ravel()), lib.numpy.asarray(times.numpy())

        def solve(tolerance: Any) -> Any:
            path = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, _: velocity(y)),
                getattr(diffrax, method)(),
                ts[0],
                ts[-1],
                None,
                start,
                saveat=diffrax.SaveAt(ts=ts),
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance / 100),
                max_steps=MOST_STEPS,
                throw=False,
            )
            return path.ys.reshape(-1, *z0.shape)

        compiled = jax.jit(solve)
        return lambda tolerance: compiled(tolerance).block_until_ready()


def _jax() -> SimpleNamespace:
    """jax, jax.numpy and diffrax, in double precision."""
    try:
        import diffrax
        import jax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the diffrax peer needs {error.name}, which is not installed: pip install 'neuralode_flow[bench]'"
        ) from error
    jax.config.update("jax_enable_x64", True)
    return SimpleNamespace(jax=jax, numpy=jax.numpy, diffrax=diffrax)


def _cayley(A: Tensor, X: Tensor) -> Tensor:
    return torch.linalg.solve(torch.eye(A.shape[-1]).to(A) - A / 2, X + A @ X / 2)


# How one layer of a finite network moves X, with A = W_k / L.
MOVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euler": lambda A, X: X + A @ X,
    "rk2": lambda A, X: X + A @ (X + A @ X / 2),
    "cayley": _cayley,
    "exp": lambda A, X: torch.linalg.matrix_exp(A) @ X,
}


class AutogradFlow(nf.FiniteFlow):
    """The finite network as it is written without this package: a loop over the layers, differentiated by autograd.

    It has the interface of `FiniteFlow`, so that `integrate` takes it.

    Parameters
    ----------
    depth, loss, layer, sampling
        As for `FiniteFlow`; the layer rule by its name.
    unbound : bool
        The layers are taken apart by one `unbind`. Indexing W[k] in the loop, as most people write it, has autograd add
        up L gradients of the size of the whole state, which costs L² in all.
    """

    def __init__(
        self, depth: int, loss: Loss, layer: str = "euler", sampling: str = "midpoint", unbound: bool = False
    ) -> None:
        super().__init__(depth, loss, layer, sampling)
        self.move = MOVES[layer]
        self.unbound = unbound

    def velocity(self, state: Tensor) -> Tensor:
        """−L ∂f/∂W_k of one network, `(L, d, d)`."""
        with torch.enable_grad():
            W = state.detach().requires_grad_()
            layers = W.unbind(0) if self.unbound else (W[k] for k in range(self.depth))
            X = torch.eye(W.shape[-1]).to(W)
            for layer in layers:
                X = self.move(layer / self.depth, X)
            self.loss(X).backward()
        return -self.depth * W.grad
