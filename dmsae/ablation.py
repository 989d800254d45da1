"""How true are the scores: what does the loss really do when one latent is taken away?

For a sample of the candidates, the loss change of ablating each alone, beside the scores of `attribution.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from dmsae.activations import ContextBatch
from dmsae.attribution import Attribution
from dmsae.config import AttributionConfig
from dmsae.randomness import named_generator
from dmsae.sae import MatryoshkaSae
from dmsae.scoring import SCORES
from dmsae.splicing import (
    UPPER_POSITIONS,
    RunUpper,
    is_counted,
    kept,
    row_losses,
    splice,
    split_rows,
    take_rows,
)


class LossChanges(NamedTuple):
    """By how much the loss rises without one latent at a time."""

    latents: Int[Tensor, " n_sampled"]
    changes: Float64[Tensor, " n_sampled"]
    """Nats per kept token of all contexts, those included in which the latent is silent."""
    n_tokens: int


@dataclass(frozen=True)
class AblationCheck:
    """Measured loss changes of single latents, and how far each score agrees with them in rank."""

    n_tokens: int
    latent_indices: list[int]
    loss_changes: list[float]
    """Nats a kept token by which the loss rises without the latent."""
    rank_correlations: dict[str, float | None]
    """Spearman's, by name of the score; null for fewer than three latents or where one side does not vary."""

    def to_metrics(self) -> dict[str, Any]:
        """Give the entry `ablation` of `metrics.json`."""
        return asdict(self)


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
    sae: MatryoshkaSae,
    *,
    rms: float,
    latents: Int[Tensor, " n_sampled"],
) -> LossChanges:
    """Measure by how much the loss rises when one latent at a time is left out of x_hat_1.

    Only contexts in which a latent fires are run again without it: nothing changes in the others.

    Source: METHOD 8.
    """
    changes, n_tokens = torch.zeros(len(latents), dtype=torch.float64), 0
    for batch in split_rows(batches):
        n_tokens += int(batch.is_kept.sum())
        acts = sae.encode(kept(batch, sae.W_dec.device) / rms)
        x_hat = rms * sae.decode(acts, sae.prefix_widths[0])
        intact = batch._replace(activations=splice(batch, x_hat).cpu())
        losses = _losses(intact, run_upper)
        for part in _ablated_rows(intact, acts, sae, rms=rms, latents=latents):
            changes.index_add_(0, part.which, _losses(part.batch, run_upper) - losses[part.row])
    return LossChanges(latents, changes / max(1, n_tokens), n_tokens)


def compare(loss_changes: LossChanges, attribution: Attribution) -> AblationCheck:
    """Set measured loss changes beside each of the four scores."""
    changes = loss_changes.changes.tolist()
    return AblationCheck(
        n_tokens=loss_changes.n_tokens,
        latent_indices=loss_changes.latents.tolist(),
        loss_changes=changes,
        rank_correlations={
            name: _rank_correlation(changes, attribution.scores[name][loss_changes.latents].tolist())
            for name in SCORES
        },
    )


class _AblatedRows(NamedTuple):
    which: Int[Tensor, " n_rows"]
    """Position in the sample of the latent that is left out of each row."""
    row: Int[Tensor, " n_rows"]
    """Row of the batch that it is left out of."""
    batch: ContextBatch


def _ablated_rows(
    batch: ContextBatch,
    acts: Float[Tensor, "n_kept n_latents"],
    sae: MatryoshkaSae,
    *,
    rms: float,
    latents: Int[Tensor, " n_sampled"],
) -> Iterator[_AblatedRows]:
    """Give the contexts in which a sampled latent fires, without it, some at a time.

    `batch` has the reconstruction in the place of its activations already.
    """
    columns = torch.zeros(len(latents), *batch.is_kept.shape, dtype=acts.dtype)
    columns[:, batch.is_kept] = acts[:, latents].T.cpu()
    W_dec = sae.W_dec[latents].cpu()
    which_all, row_all = (columns > 0).any(dim=2).nonzero(as_tuple=True)
    step = max(1, UPPER_POSITIONS // batch.is_kept.shape[1])
    for start in range(0, len(row_all), step):
        which, row = which_all[start : start + step], row_all[start : start + step]
        part = take_rows(batch, row)
        without = rms * columns[which, row, :, None] * W_dec[which, None, :]
        yield _AblatedRows(which, row, part._replace(activations=part.activations - without))


def _losses(batch: ContextBatch, run_upper: RunUpper) -> Float64[Tensor, " n"]:
    return row_losses(run_upper(batch, batch.activations), batch, is_counted(batch))


def _rank_correlation(changes: list[float], scores: list[float]) -> float | None:
    """Spearman's; here because importing `scipy.stats` for it would cost every cycle more than a second."""
    if len(changes) < 3 or len(set(changes)) == 1 or len(set(scores)) == 1:
        return None
    return float(np.corrcoef(_ranks(changes), _ranks(scores))[0, 1])


def _ranks(values: list[float]) -> NDArray[np.float64]:
    """Give each value's place in ascending order, ties the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = counts.cumsum() - (counts - 1) / 2
    return means[place]
