"""One training step over the active latents only, on a GPU: what `sparse_step.py` does on a CPU.

The encoder is one float32 product (never TF32), and all pre-activations of the batch are there until the
selection is made. What comes after goes over the active latents in `gpu_kernels.py`. Only the dead latents'
part is dense, over its own columns.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dmsae.config import CycleConfig
from dmsae.dead_gradients import Unexplained, dead_part
from dmsae.gpu_kernels import adam_rows, decode_tokens, gather_gradients, launch
from dmsae.losses import Losses
from dmsae.row_adam import Gradient
from dmsae.row_step import Gradients, RowStep, Weights
from dmsae.sae import MatryoshkaSae
from dmsae.sparse_kernels import Array
from dmsae.steps import Selected

PIECE = 1024
"""Numbers of a vector that one program of Adam goes over."""


class Active(NamedTuple):
    """A batch with its active latents, by token and, within one, by latent."""

    x: Float[Tensor, "batch d_model"]
    centred: Float[Tensor, "batch d_model"]
    """x - b_dec."""
    edges: Int[Tensor, "batch n_prefixes+1"]
    """Where each token's latents of each block begin, and where its last ends."""
    tokens: Int[Tensor, " n_active"]
    latents: Int[Tensor, " n_active"]
    acts: Float[Tensor, " n_active"]
    n_by_latent: Int[Tensor, " n_latents"]


class Decoded(NamedTuple):
    """What the reconstructions of a batch give."""

    residuals: Float[Tensor, "n_prefixes batch d_model"]
    """Of prefix g the sum of x_hat - x over g and all wider ones."""
    d_acts: Float[Tensor, " n_active"]
    """Gradients of what is minimised by each active latent's activation."""


class GpuStep(RowStep):
    """Trains where `start` lies (`steps.Step`): same arguments, same bits."""

    def __init__(self, start: MatryoshkaSae, config: CycleConfig) -> None:
        super().__init__(start, config, step_rows=step_rows)
        device = start.W_dec.device
        self._widths = torch.tensor([0, *self._prefix_widths], device=device)
        latents = torch.arange(len(start.W_dec), device=device)
        self._blocks = torch.searchsorted(self._widths[1:], latents, right=True)

    def select(self, x: Float[Tensor, "batch d_model"]) -> Selected:
        """Encode a batch and choose what is active. NaN is kept, to show in the loss."""
        self._gradients = None  # make room
        weights = self._weights
        n_tokens, n_latents = len(x), len(weights.b_enc)
        centred = x - weights.b_dec
        pre_acts = torch.addmm(weights.b_enc, centred, weights.W_enc.T)
        keep, budget = self._sparsity.choose(pre_acts)
        places = keep.flatten().nonzero().squeeze(1)
        first_places = n_latents * torch.arange(n_tokens, device=x.device)
        edges = torch.searchsorted(places, first_places[:, None] + self._widths)
        tokens, latents = places // n_latents, places % n_latents
        n_by_latent = latents.bincount(minlength=n_latents)
        acts = pre_acts.flatten()[places]
        self._active = Active(x, centred, edges, tokens, latents, acts, n_by_latent)
        return Selected(n_by_latent, budget)

    def losses(self, *, is_dead: Bool[Tensor, " n_latents"]) -> Losses:
        """Give the losses of what was selected."""
        (x, _, edges, _, latents, acts, _), weights = self._active, self._weights
        (n_tokens, d_model), n_prefixes = x.shape, len(self._prefix_widths)
        errors, residuals = x.new_empty(n_tokens, n_prefixes), x.new_empty(n_prefixes, n_tokens, d_model)
        self._decoded = Decoded(residuals, torch.empty_like(acts))
        launch(
            decode_tokens,
            n_tokens,
            (edges, latents, acts),
            (weights.W_dec, weights.b_dec),
            x,
            (residuals, errors, self._decoded.d_acts),
            (n_tokens, n_prefixes, d_model),
            self._error_weight(n_tokens),
            width=d_model,
        )
        batch = Unexplained(self._active.centred, residuals[-1])
        self._dead = dead_part(batch, weights, is_dead=is_dead, weight=self._dead_weight)
        return Losses(errors.mean(dim=0), self._dead.loss)

    def update(self, loss: Float[Tensor, ""], *, lr: float) -> Float[Tensor, ""]:
        """Take a step of Adam on the total of `losses`, of which the gradient is known without `loss`."""
        del loss
        return self._step_down(self._gather(), lr=lr)

    def _error_weight(self, n_tokens: int) -> float:
        """Give what a residual is multiplied by to be its error's gradient."""
        return 2 * self._share / n_tokens

    def _gather(self) -> Gradients:
        active, (residuals, d_acts), weights, dead = self._active, self._decoded, self._weights, self._dead
        (n_tokens, d_model), n_latents = active.x.shape, len(weights.b_enc)
        weight = self._error_weight(n_tokens)
        order = active.latents.int().sort(stable=True).indices
        starts = torch.nn.functional.pad(active.n_by_latent.cumsum(0), (1, 0))
        places = torch.full_like(active.n_by_latent, -1)
        places[dead.latents] = torch.arange(len(dead.latents), device=places.device)
        d_enc, d_dec = torch.empty_like(weights.W_enc), torch.empty_like(weights.W_dec)
        d_bias, squares_enc, squares_dec = weights.b_enc.new_empty(3, n_latents)
        launch(
            gather_gradients,
            n_latents,
            (starts, active.tokens[order], active.acts[order], d_acts[order]),
            (self._blocks, residuals, active.centred, weights.W_dec),
            (places, dead.W_enc, dead.b_enc, dead.W_dec),
            (d_enc, d_bias, d_dec, squares_enc, squares_dec),
            (n_tokens, self._n_core, d_model),
            weight,
            width=d_model,
        )
        d_b_dec = weight * residuals[0].sum(dim=0) - d_bias @ weights.W_enc
        return Gradients(Weights(d_enc, d_bias, d_dec, d_b_dec), squares_enc, squares_dec)


def step_rows(
    rows: Float[Tensor, "n_rows width"],
    gradient: Gradient,
    state: tuple[Tensor, Tensor],
    *,
    rates: Array,
    is_unit: bool,
) -> None:
    """Take one step of Adam on rows of weights (`row_adam.StepRows`); a single row is gone over in pieces."""
    (n_rows, width), squares = rows.shape, gradient.squares
    if n_rows == 1 and not is_unit:
        width = min(width, PIECE)
        n_rows = -(-rows.numel() // width)
        squares = squares.repeat(n_rows)
    launch(
        adam_rows,
        n_rows,
        rows,
        (gradient.rows, squares),
        state,
        tuple(map(float, rates)),
        (rows.numel(), width),
        is_unit,
        width=width,
    )
