"""Losses and gradients of one batch over its active latents only, by hand.

The same as autograd gives over dense matrices, but for the order of float32 sums. With S_g the sum over
prefix g and all wider ones of the gradients of their losses by their reconstructions, and latent j in the
block of prefix g: d a_tj = <W_dec[j], S_g[t]>, d W_dec[j] = sum_t a_tj S_g[t], d W_enc[j] = sum_t d a_tj
(x_t - b_dec), d b_enc[j] = sum_t d a_tj, d b_dec = sum_t S_1[t] - W_enc d b_enc. The dead latents' part comes
from `dead_gradients.py`.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dmsae import sparse_kernels
from dmsae.dead_gradients import DeadPart
from dmsae.row_step import Gradients, Weights
from dmsae.row_workers import RowWorkers, Workspace
from dmsae.screening import Found

Floats = NDArray[np.float32]


class Active(NamedTuple):
    """A batch with its active latents."""

    x: Float[Tensor, "batch d_model"]
    centred: Float[Tensor, "batch d_model"]
    """x - b_dec."""
    starts: NDArray[np.int64]
    """(batch + 1): where each token's begin."""
    found: Found
    """The active latents, by token and, within one, by latent."""

    @classmethod
    def of(cls, x: Tensor, centred: Tensor, found: Found) -> "Active":
        """Find where each token's begin."""
        return cls(x, centred, np.searchsorted(found.tokens, np.arange(len(x) + 1)), found)


class Decoded(NamedTuple):
    """What the reconstructions of a batch give."""

    errors: Floats
    """(batch, n_prefixes): squared errors, summed over d_model."""
    residuals: Floats
    """(n_prefixes, batch, d_model): of prefix g the sum of x_hat - x over g and all wider ones."""
    d_acts: Floats
    """Gradients of what is minimised by each active latent's activation."""


class SparseGradients:
    """Computes them for one shape of SAE, in memory that is made once.

    `weight` is that of each prefix's mean squared error in what is minimised; the first `n_frozen` encoder
    vectors get no gradient.
    """

    def __init__(
        self, prefix_widths: list[int], *, n_frozen: int, weight: float, workers: RowWorkers
    ) -> None:
        self._widths, self._n_frozen, self._weight = np.array(prefix_widths), n_frozen, weight
        self._workers, self._workspace = workers, Workspace()

    def forget(self) -> None:
        """Give back that memory; what was given from it no longer holds."""
        self._workspace = Workspace()

    def decode(self, active: Active, weights: Weights) -> Decoded:
        """Reconstruct from every prefix. The result holds until the next call."""
        n_tokens, d_model = active.x.shape
        n_prefixes = len(self._widths)
        residuals = self._workspace.take("residuals", (n_prefixes, n_tokens, d_model))
        errors = np.empty((n_tokens, n_prefixes), np.float32)
        decoded = Decoded(errors, residuals, np.empty_like(active.found.values))
        by_token = (active.starts, active.found.latents, active.found.values)
        decoder, x = (weights.W_dec.numpy(), weights.b_dec.numpy()), active.x.numpy()
        weight = np.float32(2 * self._weight / n_tokens)
        out = (residuals, errors, decoded.d_acts)

        def decode(start: int, stop: int) -> None:
            sparse_kernels.decode_tokens(by_token, decoder, x, self._widths, weight, start, stop, out)

        self._workers.run(decode, n_tokens)
        return decoded

    def gather(self, active: Active, decoded: Decoded, weights: Weights, dead: DeadPart) -> Gradients:
        """Gather the gradients, what lies along a decoder row taken away. They hold until the next call."""
        n_latents, d_model = weights.W_dec.shape
        d_enc, d_dec = (self._workspace.take(name, (n_latents, d_model)) for name in ("d_enc", "d_dec"))
        d_bias, squares_enc, squares_dec = (np.empty(n_latents, np.float32) for _ in range(3))
        starts, order = sparse_kernels.order_by(active.found.latents, n_latents)
        tokens, _, acts = active.found.take(order)
        by_latent = (starts, tokens, acts, decoded.d_acts[order])
        places = np.full(n_latents, -1)
        places[dead.latents.numpy()] = np.arange(len(dead.latents))
        of_dead = (places, dead.W_enc.numpy(), dead.W_dec.numpy())
        weight = np.float32(2 * self._weight / len(active.x))
        centred, W_dec = active.centred.numpy(), weights.W_dec.numpy()
        layout, out = (self._widths, self._n_frozen), (d_enc, d_dec, d_bias, squares_enc, squares_dec)

        def gather(start: int, stop: int) -> None:
            sparse_kernels.gather_gradients(
                by_latent, decoded.residuals, centred, W_dec, layout, weight, of_dead, start, stop, out
            )

        self._workers.run(gather, n_latents)
        of_W_enc, of_W_dec, of_b_enc, *squares = (torch.from_numpy(array) for array in out)
        of_b_enc[dead.latents] += dead.b_enc
        of_b_dec = (
            float(weight) * torch.from_numpy(decoded.residuals[0]).sum(dim=0) - of_b_enc @ weights.W_enc
        )
        return Gradients(Weights(of_W_enc, of_b_enc, of_W_dec, of_b_dec), *squares)
