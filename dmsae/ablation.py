"""What does the loss really do when one latent is taken away?

For a sample of the candidates, the loss change of ablating each alone. How far the scores of `attribution.py`
agree with it is left to `agreement.py`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dmsae.activations import ContextBatch
from dmsae.attribution import Attribution, Replacement
from dmsae.config import AttributionConfig
from dmsae.randomness import named_generator
from dmsae.splicing import (
    UPPER_POSITIONS,
    RunUpper,
    is_counted,
    kept,
    splice,
    split_rows,
    take_rows,
    token_losses,
)


class LossChanges(NamedTuple):
    """By how much the loss rises without one latent at a time."""

    latents: Int[Tensor, " n_sampled"]
    by_document: Float64[Tensor, "n_documents n_sampled"]
    """Nats by which the summed loss of a document rises; 0 where the latent is silent throughout."""
    document_tokens: Int[Tensor, " n_documents"]
    """Kept tokens of each document."""

    @property
    def n_tokens(self) -> int:
        """Kept tokens of all documents."""
        return int(self.document_tokens.sum())

    @property
    def changes(self) -> Float64[Tensor, " n_sampled"]:
        """Nats per kept token of all documents, those included in which the latent is silent."""
        return self.by_document.sum(dim=0) / max(1, self.n_tokens)


def sample_latents(
    attribution: Attribution, *, config: AttributionConfig, seed: int
) -> Int[Tensor, " n_sampled"]:
    """Draw candidates that fire at all, spread over the ranking by the configured score.

    The ranking is cut into as many equal stretches as latents are wanted, and one drawn from each; all are
    taken where there are no more than that. Ascending by rank.
    """
    ranking = attribution.scores[config.score].sort(descending=True, stable=True).indices
    ranking = ranking[attribution.densities[ranking] > 0]
    n_sampled = min(config.ablation_latents, len(ranking))
    edges = torch.arange(n_sampled + 1) * len(ranking) // max(1, n_sampled)
    draws = torch.rand(n_sampled, generator=named_generator(seed, "ablation"), dtype=torch.float64)
    return ranking[edges[:-1] + (draws * (edges[1:] - edges[:-1])).long()]


@torch.no_grad()
def measure_ablations(
    batches: Iterable[ContextBatch],
    run_upper: RunUpper,
    replacement: Replacement,
    *,
    latents: Int[Tensor, " n_sampled"],
) -> LossChanges:
    """Measure by how much the loss rises when one latent at a time is left out of what replaces x.

    Only contexts in which a latent fires are run again without it: nothing changes in the others.

    Source: METHOD 8.
    """
    pieces = [_measure(batch, run_upper, replacement, latents=latents) for batch in split_rows(batches)]
    none = torch.zeros(0, dtype=torch.int64)
    read = torch.cat([none, *(piece.documents for piece in pieces)])
    documents, place = torch.unique(read, return_inverse=True)
    tokens = torch.zeros(len(documents), dtype=torch.int64)
    changes = torch.zeros(len(documents), len(latents), dtype=torch.float64)
    if pieces:
        tokens.index_add_(0, place, torch.cat([piece.tokens for piece in pieces]))
        changes.index_add_(0, place, torch.cat([piece.changes for piece in pieces]))
    return LossChanges(latents, changes, tokens)


class _Piece(NamedTuple):
    """What one batch tells of each of its documents."""

    documents: Int[Tensor, " n_documents"]
    tokens: Int[Tensor, " n_documents"]
    changes: Float64[Tensor, "n_documents n_sampled"]


def _measure(
    batch: ContextBatch, run_upper: RunUpper, replacement: Replacement, *, latents: Int[Tensor, " n_sampled"]
) -> _Piece:
    x = kept(batch, replacement.sae.W_dec.device)
    acts = replacement.encode(x)
    intact = batch._replace(activations=splice(batch, replacement.of(x, replacement.decode(acts))).cpu())
    documents, place = torch.unique(batch.document_index, return_inverse=True)
    intact = intact._replace(document_index=place)
    losses = _losses(intact, run_upper, n_documents=len(documents))
    changes = torch.zeros(len(latents), len(documents), dtype=torch.float64)
    for part in _ablated_rows(intact, acts[:, latents].cpu(), replacement, latents=latents):
        without = _losses(part.batch, run_upper, n_documents=len(documents))
        changes.index_add_(0, part.which, without - losses[part.row])
    tokens = torch.bincount(place[batch.is_kept], minlength=len(documents))
    is_read = tokens > 0
    return _Piece(documents[is_read], tokens[is_read], changes.T[is_read])


class _AblatedRows(NamedTuple):
    which: Int[Tensor, " n_rows"]
    """Position in the sample of the latent that is left out of each row."""
    row: Int[Tensor, " n_rows"]
    """Row of the batch that it is left out of."""
    batch: ContextBatch


def _ablated_rows(
    batch: ContextBatch,
    acts: Float[Tensor, "n_kept n_sampled"],
    replacement: Replacement,
    *,
    latents: Int[Tensor, " n_sampled"],
) -> Iterator[_AblatedRows]:
    """Give the contexts in which a sampled latent fires, without it, some at a time.

    `batch` has the replacement in the place of its activations already. Contexts of like length come together
    and lose the columns behind the last loss that counts: attention is causal, so nothing there matters.
    """
    columns = torch.zeros(acts.shape[1], *batch.is_kept.shape, dtype=acts.dtype)
    columns[:, batch.is_kept] = acts.T
    W_dec = replacement.sae.W_dec[latents].cpu()
    lengths = _used_columns(batch)
    which_all, row_all = (columns > 0).any(dim=2).nonzero(as_tuple=True)
    by_length = lengths[row_all].argsort(stable=True)
    which_all, row_all = which_all[by_length], row_all[by_length]
    step = max(1, UPPER_POSITIONS // batch.is_kept.shape[1])
    for start in range(0, len(row_all), step):
        which, row = which_all[start : start + step], row_all[start : start + step]
        n_columns = int(lengths[row].max())
        part = ContextBatch(*(field[:, :n_columns] for field in take_rows(batch, row)))
        without = replacement.rms * columns[which, row, :n_columns, None] * W_dec[which, None, :]
        yield _AblatedRows(which, row, part._replace(activations=part.activations - without))


def _used_columns(batch: ContextBatch) -> Int[Tensor, " n"]:
    """Count the columns of each context up to the target of its last loss that counts, two at least."""
    place = torch.arange(batch.is_kept.shape[1])
    last = torch.where(is_counted(batch), place, 0).amax(dim=1)
    return last + 2


def _losses(
    batch: ContextBatch, run_upper: RunUpper, *, n_documents: int
) -> Float64[Tensor, "n n_documents"]:
    """Sum the counted losses of each context by document; `document_index` counts those of this batch."""
    counted = is_counted(batch)
    losses = token_losses(run_upper(batch, batch.activations), batch, counted)
    cell = counted.nonzero()[:, 0] * n_documents + batch.document_index[counted]
    sums = torch.zeros(len(counted) * n_documents, dtype=torch.float64)
    return sums.index_add(0, cell, losses).view(len(counted), n_documents)
