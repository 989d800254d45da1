"""The plain step, its losses and gradients taken over parts of the batch: where memory is short."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dmsae.config import CycleConfig
from dmsae.losses import Losses, dead_latent_loss, reconstruction_losses, variance
from dmsae.plain_step import PlainStep
from dmsae.sae import MatryoshkaSae, decode_prefixes
from dmsae.steps import Selected


class MicroStep(PlainStep):
    """The same as `PlainStep`, in less memory.

    The same selection to the bit, and the same gradients but for the order of float32 sums (METHOD 4). One
    matrix of the whole batch is left, that of the pre-activations which the selection is made from; no
    gradient is taken of it.
    """

    def __init__(self, start: MatryoshkaSae, config: CycleConfig, *, n_parts: int) -> None:
        super().__init__(start, config)
        self._n_parts = n_parts
        self._share = 1 / len(self._prefix_widths) if config.sae.prefix_loss == "mean" else 1.0
        self._dead_weight = self._share * config.training.aux_coefficient

    @torch.no_grad()
    def select(self, x: Float[Tensor, "batch d_model"]) -> Selected:
        """Encode a batch and choose what is active."""
        pre_acts = self._encode(x)
        self._keep, budget = self._sparsity.choose(pre_acts)
        latent_acts = pre_acts.masked_fill_(~self._keep, 0.0)
        _, _, W_dec, b_dec = self._parameters.values()
        self._x, self._residual = x, x - (b_dec + latent_acts @ W_dec)
        return Selected((latent_acts > 0).sum(dim=0), budget)

    def losses(self, *, is_dead: Bool[Tensor, " n_latents"]) -> Losses:
        """Give the losses of what was selected, and gather their gradients part by part."""
        self._optimizer.zero_grad()
        prefixes, dead = self._x.new_zeros(len(self._prefix_widths)), self._x.new_zeros(())
        scale = variance(self._residual)
        n_tokens = len(self._x)
        size = -(-n_tokens // self._n_parts)
        for start in range(0, n_tokens, size):
            rows = slice(start, min(start + size, n_tokens))
            part = self._part_losses(rows, is_dead=is_dead, scale=scale)
            weight = (rows.stop - rows.start) / n_tokens
            loss = weight * (self._share * part.prefixes.sum() + self._dead_weight * part.dead)
            loss.backward()  # type: ignore[no-untyped-call]
            prefixes += weight * part.prefixes.detach()
            dead += weight * part.dead.detach()
        return Losses(prefixes, dead)

    def update(self, loss: Float[Tensor, ""], *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam on the total of `losses`, of which the gradient is known without `loss`."""
        del loss
        return self._step_down(lr=lr)

    def _part_losses(
        self, rows: slice, *, is_dead: Bool[Tensor, " n_latents"], scale: Float[Tensor, ""]
    ) -> Losses:
        _, _, W_dec, b_dec = self._parameters.values()
        pre_acts = self._encode(self._x[rows])
        latent_acts = torch.where(self._keep[rows], pre_acts, 0.0)
        x_hats = decode_prefixes(latent_acts, W_dec, b_dec, prefix_widths=self._prefix_widths)
        dead = dead_latent_loss(self._residual[rows], pre_acts, W_dec, is_dead=is_dead, scale=scale)
        return Losses(reconstruction_losses(self._x[rows], x_hats), dead)
