"""What the steps share that hold all weights by rows, one a latent: parameters, optimiser, copies, state.

How a batch is encoded and what its gradients are is left to `sparse_step.py` and `gpu_step.py`. Encoder
vectors are rows here, those of the core first.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.config import CycleConfig
from dmsae.row_adam import Gradient, RowAdam, StepRows
from dmsae.sae import MatryoshkaSae
from dmsae.sparsity import Sparsity
from dmsae.steps import ADAM_BETAS


class Weights(NamedTuple):
    """An SAE's weights as the step holds them: all by rows, one a latent."""

    W_enc: Float[Tensor, "n_latents d_model"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_model"]
    b_dec: Float[Tensor, " d_model"]


class Gradients(NamedTuple):
    """Gradients of all weights; a row of a matrix whose squares are 0 has none and holds anything."""

    weights: Weights
    squares_enc: Float[Tensor, " n_latents"]
    squares_dec: Float[Tensor, " n_latents"]
    """Sum of squares of each row."""


class RowStep:
    """Weights and optimiser of a step (`steps.Step`), without `select`, `losses` and `update`.

    `share` is the weight of each prefix's mean squared error in what is minimised.
    """

    def __init__(self, start: MatryoshkaSae, config: CycleConfig, *, step_rows: StepRows) -> None:
        training, n_prefixes = config.training, len(start.prefix_widths)
        self._share = 1 / n_prefixes if config.sae.prefix_loss == "mean" else 1.0
        self._n_core, self._prefix_widths = start.n_core, list(start.prefix_widths)
        self._sparsity = Sparsity.of(config.sae, n_core=start.n_core)
        self._clip_norm, self._dead_weight = training.grad_clip_norm, self._share * training.aux_coefficient
        self._weights = Weights(
            start.W_enc.T.clone(memory_format=torch.contiguous_format),
            start.b_enc.clone(),
            start.W_dec.clone(),
            start.b_dec.clone(),
        )
        rows = {name: _as_rows(tensor) for name, tensor in self.parameters.items()}
        self._adam = RowAdam(rows, betas=ADAM_BETAS, unit_rows={"W_dec"}, step_rows=step_rows)
        self._gradients: Gradients | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Give what is trained: `W_enc` by rows, without those of the core, which stay as they are."""
        return self._trained(self._weights)

    def gradients(self) -> dict[str, Tensor]:
        """Give the gradients of the last update; rows without one are 0."""
        if self._gradients is None:
            return {}
        weights, squares_enc, squares_dec = self._gradients
        weights.W_enc[squares_enc == 0] = 0
        weights.W_dec[squares_dec == 0] = 0
        return self._trained(weights)

    def sae(self) -> MatryoshkaSae:
        """Copy the SAE as it stands, without a threshold (all 0)."""
        weights = self._weights
        return MatryoshkaSae(
            W_enc=weights.W_enc.T.clone(memory_format=torch.contiguous_format),
            b_enc=weights.b_enc.clone(),
            W_dec=weights.W_dec.clone(),
            b_dec=weights.b_dec.clone(),
            threshold=torch.zeros_like(weights.b_enc),
            prefix_widths=list(self._prefix_widths),
            n_core=self._n_core,
        )

    def state_dict(self) -> dict[str, Any]:
        """Give parameters and optimiser, not copied: all that decides how training goes on."""
        return {"parameters": self.parameters, "optimizer": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, copied, what `state_dict` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["parameters"][name])
        self._adam.load_state_dict(state["optimizer"])

    def _step_down(self, gradients: Gradients, *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam; give the gradients' norm before clipping, and keep them."""
        self._gradients = gradients
        slopes = self._trained(gradients.weights)
        squares = {"W_enc": gradients.squares_enc[self._n_core :], "W_dec": gradients.squares_dec}
        squares |= {name: slopes[name].square().sum()[None] for name in ("b_enc", "b_dec")}
        by_row = {name: Gradient(_as_rows(slope), squares[name]) for name, slope in slopes.items()}
        return self._adam.step(by_row, lr=lr, clip_norm=self._clip_norm)

    def _trained(self, weights: Weights) -> dict[str, Tensor]:
        return {**weights._asdict(), "W_enc": weights.W_enc[self._n_core :]}


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor[None]
