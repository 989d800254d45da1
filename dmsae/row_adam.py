"""Adam over rows of weights, in one pass with clipping and with bringing rows to unit norm (METHOD 6)."""

from typing import Any, NamedTuple, Protocol

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


class StepRows(Protocol):
    """Takes one step of Adam on all rows of one matrix."""

    def __call__(
        self,
        rows: Float[Tensor, "n_rows width"],
        gradient: Gradient,
        state: tuple[Tensor, Tensor],
        *,
        rates: sparse_kernels.Array,
        is_unit: bool,
    ) -> None:
        """Move rows by `rates` (`sparse_kernels.adam_rates`); `is_unit` brings them to unit norm afterwards.

        Mutates: rows and state, the means of gradients and of their squares.
        """


class RowAdam:
    """Adam's state and step for several matrices; those of `unit_rows` have rows of unit norm after a step.

    The same as torch.optim.Adam. How rows are gone over is left to `step_rows`. Mutates: `parameters`.
    """

    def __init__(
        self,
        parameters: dict[str, Float[Tensor, "n_rows width"]],
        *,
        betas: tuple[float, float],
        unit_rows: set[str],
        step_rows: StepRows,
    ) -> None:
        self._parameters, self._betas = parameters, betas
        self._unit_rows, self._step_rows = unit_rows, step_rows
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
        rates = sparse_kernels.adam_rates(lr, self._betas, self._n_steps, scale=scale, epsilon=EPSILON)
        for name, gradient in gradients.items():
            rows, is_unit = self._parameters[name], name in self._unit_rows
            self._step_rows(rows, gradient, self._state[name], rates=rates, is_unit=is_unit)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Give all that decides the next steps, not copied."""
        return {"n_steps": self._n_steps, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, whose tensors are copied."""
        self._n_steps = state["n_steps"]
        for name, tensors in self._state.items():
            for tensor, given in zip(tensors, state["state"][name], strict=True):
                tensor.copy_(given)


def shared_by(workers: RowWorkers) -> StepRows:
    """Go over rows on a CPU, shared by threads; how they are shared decides no bit."""

    def step_rows(
        rows: Tensor,
        gradient: Gradient,
        state: tuple[Tensor, Tensor],
        *,
        rates: sparse_kernels.Array,
        is_unit: bool,
    ) -> None:
        slopes = (gradient.rows.numpy(), gradient.squares.numpy())
        arrays, moments = rows.numpy(), (state[0].numpy(), state[1].numpy())

        def step(start: int, stop: int) -> None:
            sparse_kernels.adam_rows(arrays, slopes, moments, rates, is_unit, start, stop)

        workers.run(step, len(rows))

    return step_rows
