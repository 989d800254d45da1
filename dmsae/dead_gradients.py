"""The dead latents' loss (`losses.dead_latent_loss`) and its gradients, by hand.

With a_tj the pre-activation of dead latent j where token t uses it, and m = sum_j a_tj W_dec[j] - r_t what is
missed: d a_tj = <W_dec[j], m_t>, d W_dec[j] = sum_t a_tj m_t, d W_enc[j] = sum_t d a_tj (x_t - b_dec), all
times 2 / (batch * variance of r). Few dead latents are computed as matrices, on any device; many, of which
each token uses few, over those that are used. Both are the same but for the order of float32 sums.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from dmsae import sparse_kernels
from dmsae.losses import n_dead_used, variance
from dmsae.row_step import Weights
from dmsae.row_workers import PARTS_EACH, RowWorkers

MANY = 6
"""From so many times as many dead latents as a token uses, a CPU is faster over those in use alone."""
MOST_VALUES = 2**22
"""Pre-activations that are looked at together."""


class Unexplained(NamedTuple):
    """What the dead latents are to explain, and what they see."""

    centred: Float[Tensor, "batch d_model"]
    """x - b_dec."""
    residual: Float[Tensor, "batch d_model"]
    """x_hat - x of the widest prefix."""


class DeadPart(NamedTuple):
    """The dead latents' loss, before its weight, and its gradients, weighted; of the dead latents only."""

    loss: Float[Tensor, ""]
    latents: Int[Tensor, " n_dead"]
    W_enc: Float[Tensor, "n_dead d_model"]
    b_enc: Float[Tensor, " n_dead"]
    W_dec: Float[Tensor, "n_dead d_model"]
    """But for what lies along a decoder row, which a step takes away: it may be in it or not."""


def dead_part(
    batch: Unexplained,
    weights: Weights,
    *,
    is_dead: Bool[Tensor, " n_latents"],
    weight: float,
    workers: RowWorkers | None = None,
) -> DeadPart:
    """Give the loss and its gradients, times `weight`; `workers` are those of a CPU."""
    latents = is_dead.nonzero().squeeze(1)
    scale = variance(batch.residual) if len(latents) else batch.residual.new_zeros(())
    if scale == 0:
        return DeadPart(scale, latents[:0], *(tensor[:0] for tensor in weights[:3]))
    rows = [tensor[latents] for tensor in weights[:3]]
    factor = 2 * weight / len(batch.centred) / scale
    n_used = n_dead_used(len(latents), d_model=batch.centred.shape[1])
    if workers is None or len(latents) < MANY * n_used:
        square, gradients = _over_all(batch, rows, factor=factor, n_used=n_used)
    else:
        square, gradients = _over_used(batch, rows, factor=factor, n_used=n_used, workers=workers)
    return DeadPart(square / scale, latents, *gradients)


def _over_all(
    batch: Unexplained, rows: list[Tensor], *, factor: Float[Tensor, ""], n_used: int
) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """Give the mean square of what is missed, and the gradients.

    All that is as wide as the batch's dead pre-activations is these, their gradients and a mask.
    """
    W_enc, b_enc, W_dec = rows
    acts = torch.addmm(b_enc, batch.centred, W_enc.T)
    is_unused = None
    if n_used < len(W_dec):
        is_unused = torch.ones_like(acts, dtype=torch.bool)
        is_unused.scatter_(1, acts.topk(n_used, dim=1, sorted=False).indices, False)
        acts.masked_fill_(is_unused, 0.0)
    missed = torch.addmm(batch.residual, acts, W_dec)
    slope = factor * missed
    d_acts = slope @ W_dec.T
    if is_unused is not None:
        d_acts.masked_fill_(is_unused, 0.0)
    square = missed.square().sum(dim=1).mean()
    return square, [d_acts.T @ batch.centred, d_acts.sum(dim=0), acts.T @ slope]


def _over_used(
    batch: Unexplained, rows: list[Tensor], *, factor: Float[Tensor, ""], n_used: int, workers: RowWorkers
) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """Give the same by the loops of the active latents, with the dead ones as the only prefix."""
    centred, target, W_dec = batch.centred.numpy(), batch.residual.neg().numpy(), rows[2].numpy()
    (n_tokens, d_model), n_dead, weight = centred.shape, len(W_dec), np.float32(factor)
    by_token = _find_used(batch.centred, rows, n_used=n_used, workers=workers)
    (token_starts, latents, acts), widths = by_token, np.array([n_dead])
    missed, squares = np.empty((1, n_tokens, d_model), np.float32), np.empty((n_tokens, 1), np.float32)
    decoder, d_acts = (W_dec, np.zeros(d_model, np.float32)), np.empty_like(acts)
    decoded = (missed, squares, d_acts)

    def decode(start: int, stop: int) -> None:
        sparse_kernels.decode_tokens(by_token, decoder, target, widths, weight, start, stop, decoded)

    workers.run(decode, n_tokens)
    starts, order = sparse_kernels.order_by(latents, n_dead)
    tokens = np.repeat(np.arange(n_tokens), np.diff(token_starts))
    by_latent = (starts, tokens[order], acts[order], d_acts[order])
    d_enc, d_dec = np.zeros_like(W_dec), np.zeros_like(W_dec)
    d_bias, *squares_of_rows = (np.empty(n_dead, np.float32) for _ in range(3))
    out, none = (d_enc, d_dec, d_bias, *squares_of_rows), (np.full(n_dead, -1), W_dec[:0], W_dec[:0])

    def gather(start: int, stop: int) -> None:
        sparse_kernels.gather_gradients(
            by_latent, missed, centred, W_dec, (widths, 0), weight, none, start, stop, out
        )

    workers.run(gather, n_dead)
    gradients = [torch.from_numpy(array) for array in (d_enc, d_bias, d_dec)]
    return torch.from_numpy(squares).mean(), gradients


def _find_used(
    centred: Float[Tensor, "batch d_model"], rows: list[Tensor], *, n_used: int, workers: RowWorkers
) -> tuple[sparse_kernels.Array, ...]:
    """Find the `n_used` largest pre-activations of each token; of equal ones those of lower latents.

    Gives where each token's begin (batch + 1), the latents, ascending within one, and the values.
    """
    W_enc, b_enc, _ = rows
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    for x in torch.split(centred, max(1, MOST_VALUES // len(W_enc))):
        pre_acts = torch.addmm(b_enc, x, W_enc.T).numpy()
        parts = np.array_split(pre_acts, PARTS_EACH * workers.n_threads)
        largest = [(np.empty(0, np.int64), np.empty(0, np.int64), pre_acts[0, :0]) for _ in parts]

        def find(part: int, parts: list[NDArray[np.float32]] = parts, largest: Any = largest) -> None:
            largest[part] = _largest_of_rows(parts[part], n_used)

        workers.run_each(find, len(parts))
        found += largest
    n_each, latents, acts = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.concatenate([[0], np.cumsum(n_each)]), latents, acts


def _largest_of_rows(
    rows: NDArray[np.float32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Give, of the `n` largest of each row, how many they are, where they stand, and their values.

    They are fewer only where NaN is among them.
    """
    place = rows.shape[1] - n
    nth = np.partition(rows, place, axis=1)[:, place : place + 1]
    is_used = rows >= nth
    if np.count_nonzero(is_used) > n * len(rows):
        is_tied = rows == nth
        n_late = is_used.sum(axis=1, keepdims=True) - n
        is_used &= ~is_tied | (is_tied.cumsum(axis=1) <= is_tied.sum(axis=1, keepdims=True) - n_late)
    which, latents = is_used.nonzero()
    return np.bincount(which, minlength=len(rows)), latents, rows[which, latents]
