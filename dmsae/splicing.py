"""Where are activations replaced, and at which positions is a loss counted?

The rules that attribution, ablation and evaluation share (METHOD 8, 10). What stands in the place of an
activation is theirs to say.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from dmsae.activations import ContextBatch

RunUpper = Callable[[ContextBatch, Float[Tensor, "n t d_model"]], Float[Tensor, "n t vocab"]]
"""Runs on from the hook: a batch and the activations that stand there instead to logits, differentiable."""

UPPER_POSITIONS = 1024
"""Positions of one pass through the upper layers; bounds memory, since each has a logit for every word."""


def take_kept(batches: Iterable[ContextBatch], n_tokens: int) -> Iterator[ContextBatch]:
    """Give the first `n_tokens` kept tokens in their contexts; what follows them counts as not kept.

    Contexts without any kept token are left out: nothing is replaced or counted in them.
    """
    n_left = n_tokens
    for batch in batches:
        place = batch.is_kept.flatten().cumsum(0).view_as(batch.is_kept)
        is_kept = batch.is_kept & (place <= n_left)
        if is_kept.any():
            yield take_rows(batch._replace(is_kept=is_kept), is_kept.any(dim=1))
        n_left -= int(is_kept.sum())
        if n_left == 0:
            return


def spread_kept(batches: Sequence[ContextBatch], n_tokens: int) -> Iterator[ContextBatch]:
    """Give `n_tokens` kept tokens in whole contexts but the last, spread evenly over all batches.

    So that a few tokens come from many documents, not from the first one. All where there are no more.
    """
    n_all = sum(int(batch.is_kept.sum()) for batch in batches)
    chosen, n_seen, n_taken = [], 0, 0
    for batch in batches:
        is_taken = torch.zeros(len(batch.is_kept), dtype=torch.bool)
        for row, n_kept in enumerate(batch.is_kept.sum(dim=1).tolist()):
            n_seen += n_kept
            if n_taken * n_all < n_tokens * n_seen:
                is_taken[row] = True
                n_taken += n_kept
        if is_taken.any():
            chosen.append(take_rows(batch, is_taken))
    return take_kept(chosen, n_tokens)


def split_rows(batches: Iterable[ContextBatch], n_positions: int = UPPER_POSITIONS) -> Iterator[ContextBatch]:
    """Cut batches into pieces of whole contexts with at most `n_positions` positions, but one at least."""
    for batch in batches:
        n_rows, n_columns = batch.is_kept.shape
        step = max(1, n_positions // max(1, n_columns))
        for start in range(0, n_rows, step):
            yield take_rows(batch, slice(start, start + step))


def is_counted(batch: ContextBatch) -> Bool[Tensor, "n t"]:
    """Mark the positions whose next-token loss counts: a kept input token, then one of its document."""
    counted = torch.zeros_like(batch.is_kept)
    goes_on = batch.document_index[:, :-1] == batch.document_index[:, 1:]
    counted[:, :-1] = batch.is_kept[:, :-1] & batch.is_token[:, 1:] & goes_on
    return counted


def splice(
    batch: ContextBatch, values: Float[Tensor, "n_kept d_model"] | Float[Tensor, " d_model"]
) -> Float[Tensor, "n t d_model"]:
    """Put `values` (raw units) in the place of the kept activations and leave all others as they are.

    The result lies on the device of `values`.
    """
    activations = batch.activations.to(values.device, copy=True)
    activations[batch.is_kept] = values.expand(int(batch.is_kept.sum()), -1)
    return activations


def kept(batch: ContextBatch, device: torch.device) -> Float[Tensor, "n_kept d_model"]:
    """Give the kept activations, raw, where an SAE lives that is to read them."""
    return batch.activations[batch.is_kept].to(device)


def next_tokens(batch: ContextBatch, counted: Bool[Tensor, "n t"]) -> Int[Tensor, " n_counted"]:
    """Give the token that follows each counted position."""
    return batch.input_ids.roll(-1, dims=1)[counted].long()


def row_losses(
    logits: Float[Tensor, "n t vocab"], batch: ContextBatch, counted: Bool[Tensor, "n t"]
) -> Float[Tensor, " n"]:
    """Sum the counted next-token cross-entropies of each context.

    Shapes: float64 nats on the CPU, summed over the counted positions of a row.
    """
    row_index = counted.nonzero()[:, 0]
    sums = torch.zeros(len(counted), dtype=torch.float64)
    return sums.index_add(0, row_index, token_losses(logits, batch, counted))


def token_losses(
    logits: Float[Tensor, "n t vocab"], batch: ContextBatch, counted: Bool[Tensor, "n t"]
) -> Float64[Tensor, " n_counted"]:
    """Give the next-token cross-entropy at each counted position: float64 nats on the CPU."""
    targets = next_tokens(batch, counted).to(logits.device)
    return cross_entropy(logits[counted], targets, reduction="none").double().cpu()


def take_rows(batch: ContextBatch, rows: slice | Bool[Tensor, " n"] | Int[Tensor, " n_rows"]) -> ContextBatch:
    """Give some contexts of a batch."""
    return ContextBatch(*(field[rows] for field in batch))
