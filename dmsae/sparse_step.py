"""One training step over the active latents only: what `plain_step.py` does over dense matrices, and faster.

Both give the same but for the order of float32 sums, and where values closer than that lie at the border of
the budget.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dmsae.config import CycleConfig
from dmsae.dead_gradients import DeadPart, Unexplained, dead_part
from dmsae.errors import CycleFailed
from dmsae.estimates import has_fast_int8
from dmsae.losses import Losses
from dmsae.row_adam import shared_by
from dmsae.row_step import RowStep
from dmsae.row_workers import RowWorkers
from dmsae.sae import MatryoshkaSae
from dmsae.screening import Found, Screen, joined
from dmsae.sparse_gradients import Active, Decoded, SparseGradients
from dmsae.steps import Selected

LEAST_INT8_PRODUCT = 2**28
"""Below so many multiplications a batch, rounding to int8 takes longer than it saves."""


class SparseStep(RowStep):
    """Trains on a CPU (`steps.Step`): same arguments, same bits."""

    def __init__(self, start: MatryoshkaSae, config: CycleConfig) -> None:
        workers = RowWorkers()
        super().__init__(start, config, step_rows=shared_by(workers))
        n_products = config.training.batch_tokens * start.W_enc.numel()
        is_int8 = n_products >= LEAST_INT8_PRODUCT and has_fast_int8(len(start.W_enc))
        # what the screen remembers decides nothing
        self._screen, self._workers = Screen(workers, is_int8=is_int8), workers
        self._sparse = SparseGradients(
            self._prefix_widths, n_frozen=self._n_core, weight=self._share, workers=workers
        )
        self._active: Active | None = None
        self._decoded: Decoded | None = None
        self._dead: DeadPart | None = None

    def select(self, x: Float[Tensor, "batch d_model"]) -> Selected:
        """Encode a batch and choose what is active: nothing where anything is not finite."""
        n_exempt, (centred, exempt) = self._sparsity.n_exempt, self._encode_exempt(x)
        tokens, latents = (exempt > 0).nonzero(as_tuple=True)
        budget = self._sparsity.budget(len(tokens), n_tokens=len(x))
        found = self._screen.find_largest(centred, *self._competing(), budget=budget)
        self._active, self._dead = None, None
        n_active = np.zeros(len(self._weights.b_enc), np.int64)
        if found is not None and exempt.isfinite().all():
            of_core = Found(tokens.numpy(), latents.numpy(), exempt[tokens, latents].numpy())
            others = found._replace(latents=found.latents + n_exempt)
            both = joined([of_core, others]).in_order(len(x)) if n_exempt else found
            self._active = Active.of(x, centred, both)
            n_active = np.bincount(both.latents, minlength=len(n_active))
        return Selected(torch.from_numpy(n_active), budget)

    def encode_above(
        self, x: Float[Tensor, "batch d_model"], *, floor: float, n_most: int
    ) -> tuple[int, Float[Tensor, " n_found"]]:
        """Encode for the inference threshold (`sparsity.EncodeAbove`), with the weights as they stand.

        Raises: CycleFailed(non_finite).
        """
        centred, exempt = self._encode_exempt(x)
        found = self._screen.find_above(centred, *self._competing(), floor=floor, n_most=n_most)
        if found is None or not exempt.isfinite().all():
            raise CycleFailed("non_finite", "threshold: pre-activations are not finite", tensor="pre_acts")
        return int((exempt > 0).sum()), torch.from_numpy(found.values)

    def losses(self, *, is_dead: Bool[Tensor, " n_latents"]) -> Losses:
        """Give the losses of what was selected; all NaN where nothing could be."""
        if self._active is None:
            nothing = torch.full((len(self._prefix_widths) + 1,), torch.nan)
            return Losses(nothing[1:], nothing[0])
        self._decoded = self._sparse.decode(self._active, self._weights)
        batch = Unexplained(self._active.centred, torch.from_numpy(self._decoded.residuals[-1]))
        self._dead = dead_part(
            batch, self._weights, is_dead=is_dead, weight=self._dead_weight, workers=self._workers
        )
        return Losses(torch.from_numpy(self._decoded.errors).mean(dim=0), self._dead.loss)

    def update(self, loss: Float[Tensor, ""], *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam on the total of `losses`, of which the gradient is known without `loss`."""
        del loss
        if self._active is None or self._decoded is None or self._dead is None:
            return torch.tensor(torch.nan)
        gradients = self._sparse.gather(self._active, self._decoded, self._weights, self._dead)
        return self._step_down(gradients, lr=lr)

    def forget(self) -> None:
        """Give back the memory that the last batch took, its gradients too; the next takes it anew."""
        self._active, self._decoded, self._dead, self._gradients = None, None, None, None
        self._sparse.forget()

    def _encode_exempt(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give x - b_dec, and the pre-activations of the latents that do not compete."""
        n_exempt, weights = self._sparsity.n_exempt, self._weights
        centred = x - weights.b_dec
        return centred, centred @ weights.W_enc[:n_exempt].T + weights.b_enc[:n_exempt]

    def _competing(self) -> tuple[Tensor, Tensor]:
        """Give the encoder vectors and biases of those that do."""
        n_exempt = self._sparsity.n_exempt
        return self._weights.W_enc[n_exempt:], self._weights.b_enc[n_exempt:]
