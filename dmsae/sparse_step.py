"""One training step over the active latents only: what `plain_step.py` does over dense matrices, and faster.

Both give the same but for the order of float32 sums, and where values closer than that lie at the border of
the budget. Encoder vectors are rows here, those of the core first.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dmsae.config import DistillationConfig
from dmsae.estimates import has_fast_int8
from dmsae.losses import Losses
from dmsae.row_adam import Gradient, RowAdam
from dmsae.row_workers import RowWorkers
from dmsae.sae import MatryoshkaSae
from dmsae.screening import Found, Screen, joined
from dmsae.sparse_gradients import Active, SparseGradients, Weights, dead_part
from dmsae.sparsity import Sparsity
from dmsae.steps import ADAM_BETAS, Selected

LEAST_INT8_PRODUCT = 2**28
"""Below so many multiplications a batch, rounding to int8 takes longer than it saves."""


class SparseStep:
    """Trains on a CPU (`steps.Step`): same arguments, same bits."""

    def __init__(self, start: MatryoshkaSae, config: DistillationConfig) -> None:
        training, n_prefixes = config.training, len(start.prefix_widths)
        share = 1 / n_prefixes if config.sae.prefix_loss == "mean" else 1.0
        self._n_core, self._prefix_widths = start.n_core, list(start.prefix_widths)
        self._sparsity = Sparsity.of(config.sae, n_core=start.n_core)
        self._clip_norm, self._dead_weight = training.grad_clip_norm, share * training.aux_coefficient
        self._weights = Weights(
            start.W_enc.T.clone(memory_format=torch.contiguous_format),
            start.b_enc.clone(),
            start.W_dec.clone(),
            start.b_dec.clone(),
        )
        workers = RowWorkers()
        n_products = training.batch_tokens * start.W_enc.numel()
        is_int8 = n_products >= LEAST_INT8_PRODUCT and has_fast_int8(len(start.W_enc))
        self._screen = Screen(workers, is_int8=is_int8)
        self._sparse = SparseGradients(
            self._prefix_widths, n_frozen=self._n_core, weight=share, workers=workers
        )
        rows = {name: _as_rows(tensor) for name, tensor in self.parameters.items()}
        self._adam = RowAdam(rows, betas=ADAM_BETAS, unit_rows={"W_dec"}, workers=workers)
        self._active: Active | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Give what is trained: `W_enc` by rows, without those of the core, which stay as they are."""
        return self._trained(self._weights)

    def select(self, x: Float[Tensor, "batch d_model"]) -> Selected:
        """Encode a batch and choose what is active: nothing where anything is not finite."""
        n_exempt, weights = self._sparsity.n_exempt, self._weights
        centred = x - weights.b_dec
        exempt = centred @ weights.W_enc[:n_exempt].T + weights.b_enc[:n_exempt]
        tokens, latents = (exempt > 0).nonzero(as_tuple=True)
        budget = self._sparsity.budget(len(tokens), n_tokens=len(x))
        found = self._screen.find_largest(
            centred, weights.W_enc[n_exempt:], weights.b_enc[n_exempt:], budget=budget
        )
        self._active = None
        n_active = np.zeros(len(weights.b_enc), np.int64)
        if found is not None and exempt.isfinite().all():
            of_core = Found(tokens.numpy(), latents.numpy(), exempt[tokens, latents].numpy())
            others = found._replace(latents=found.latents + n_exempt)
            both = joined([of_core, others]).in_order(len(x)) if n_exempt else found
            self._active = Active.of(x, centred, both)
            n_active = np.bincount(both.latents, minlength=len(n_active))
        return Selected(torch.from_numpy(n_active), budget)

    def losses(self, *, is_dead: Bool[Tensor, " n_latents"]) -> Losses:
        """Give the losses of what was selected; all NaN where nothing could be."""
        if self._active is None:
            nothing = torch.full((len(self._prefix_widths) + 1,), torch.nan)
            return Losses(nothing[1:], nothing[0])
        self._decoded = self._sparse.decode(self._active, self._weights)
        self._dead = dead_part(
            self._active, self._decoded, self._weights, is_dead=is_dead, weight=self._dead_weight
        )
        return Losses(torch.from_numpy(self._decoded.errors).mean(dim=0), self._dead.loss)

    def update(self, loss: Float[Tensor, ""], *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam on the total of `losses`, of which the gradient is known without `loss`."""
        del loss
        if self._active is None:
            return torch.tensor(torch.nan)
        self._gradients = self._sparse.gather(self._active, self._decoded, self._weights, self._dead)
        slopes = self._trained(self._gradients.weights)
        squares = {
            "W_enc": self._gradients.squares_enc[self._n_core :],
            "W_dec": self._gradients.squares_dec,
        }
        squares |= {name: slopes[name].square().sum()[None] for name in ("b_enc", "b_dec")}
        gradients = {name: Gradient(_as_rows(slope), squares[name]) for name, slope in slopes.items()}
        return self._adam.step(gradients, lr=lr, clip_norm=self._clip_norm)

    def gradients(self) -> dict[str, Tensor]:
        """Give the gradients of the last update; rows without one are 0."""
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
        """Give parameters and optimiser, not copied. What the screen remembers decides nothing."""
        return {"parameters": self.parameters, "optimizer": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, copied, what `state_dict` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["parameters"][name])
        self._adam.load_state_dict(state["optimizer"])

    def _trained(self, weights: Weights) -> dict[str, Tensor]:
        return {**weights._asdict(), "W_enc": weights.W_enc[self._n_core :]}


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor[None]
