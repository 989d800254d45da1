"""Adam over rows of weights, in one pass with clipping and with bringing rows to unit norm (METHOD 6)."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae import sparse_kernels
from dmsae.row_workers import RowWorkers

EPSILON = 1e-8
"""torch.optim.Adam's default."""


class Gradient(NamedTuple):
    """The gradient of rows of weights."""

    rows: Float[Tensor, "n_rows width"]
    squares: Float[Tensor, " n_rows"]
    """Sum of squares of each row; where 0, the row has no gradient and what stands there is not read."""


class RowAdam:
    """Adam's state and step for several matrices; those of `unit_rows` have rows of unit norm after a step.

    The same as torch.optim.Adam, whatever the threads. Mutates: `parameters`.
    """

    def __init__(
        self,
        parameters: dict[str, Float[Tensor, "n_rows width"]],
        *,
        betas: tuple[float, float],
        unit_rows: set[str],
        workers: RowWorkers,
    ) -> None:
        self._parameters, self._betas, self._unit_rows, self._workers = parameters, betas, unit_rows, workers
        self._n_steps = 0
        self._state = {
            name: (torch.zeros_like(rows), torch.zeros_like(rows)) for name, rows in parameters.items()
        }

    def step(self, gradients: dict[str, Gradient], *, lr: float, clip_norm: float) -> Float[Tensor, ""]:
        """Take one step along `gradients`, their common norm held to `clip_norm`; give the norm before that.

        Where the norm is not finite, nothing is changed.
        """
        squares = [gradient.squares.double().sum() for gradient in gradients.values()]
        norm = torch.stack(squares).sum().sqrt().float()
        if not norm.isfinite():
            return norm
        self._n_steps += 1
        scale = min(1.0, clip_norm / (norm.item() + 1e-6))
        for name, gradient in gradients.items():
            self._step_rows(name, gradient, scale=scale, lr=lr)
        return norm

    def _step_rows(self, name: str, gradient: Gradient, *, scale: float, lr: float) -> None:
        first, second = self._state[name]
        state, slopes = (first.numpy(), second.numpy()), (gradient.rows.numpy(), gradient.squares.numpy())
        rows, is_unit = self._parameters[name].numpy(), name in self._unit_rows
        rates = sparse_kernels.adam_rates(lr, self._betas, self._n_steps, scale=scale, epsilon=EPSILON)

        def step(start: int, stop: int) -> None:
            sparse_kernels.adam_rows(rows, slopes, state, rates, is_unit, start, stop)

        self._workers.run(step, len(rows))

    def state_dict(self) -> dict[str, Any]:
        """Give all that decides the next steps, not copied."""
        return {"n_steps": self._n_steps, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, whose tensors are copied."""
        self._n_steps = state["n_steps"]
        for name, tensors in self._state.items():
            for tensor, given in zip(tensors, state["state"][name], strict=True):
                tensor.copy_(given)
