"""How far does each score agree with what ablation measures, and how sure is that?

Compares the scores of `attribution.py` with the loss changes of `ablation.py`; neither is made here.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from dmsae.ablation import LossChanges
from dmsae.attribution import Attribution
from dmsae.randomness import named_generator
from dmsae.ranks import rank_correlation
from dmsae.scoring import SCORES, Scores

N_DRAWS = 400
"""Resamples of a bootstrap: its standard errors are then known to a few percent of themselves."""


@dataclass(frozen=True)
class AblationCheck:
    """Measured loss changes of single latents, and how far each score agrees with them in rank."""

    n_tokens: int
    n_documents: int
    latent_indices: list[int]
    loss_changes: list[float]
    """Nats a kept token by which the loss rises without the latent."""
    loss_change_ses: list[float]
    """Standard errors over documents; NaN where there is one only."""
    rank_correlations: dict[str, float | None]
    """Spearman's, by name of the score; null for fewer than three latents or where one side does not vary."""
    rank_correlation_ses: dict[str, float | None]
    """Standard errors over the sampled latents and the documents of the ablation, not those of the scores."""

    def to_metrics(self) -> dict[str, Any]:
        """Give the entry `ablation` of `metrics.json`."""
        return asdict(self)


def compare(loss_changes: LossChanges, attribution: Attribution) -> AblationCheck:
    """Set measured loss changes beside each of the four scores."""
    changes = loss_changes.changes.tolist()
    scores = {name: attribution.scores[name][loss_changes.latents] for name in SCORES}
    draws = bootstrap_correlations(loss_changes, scores)
    return AblationCheck(
        n_tokens=loss_changes.n_tokens,
        n_documents=len(loss_changes.document_tokens),
        latent_indices=loss_changes.latents.tolist(),
        loss_changes=changes,
        loss_change_ses=change_errors(loss_changes).tolist(),
        rank_correlations={name: rank_correlation(changes, scores[name].tolist()) for name in SCORES},
        rank_correlation_ses={name: standard_deviation(draws[name]) for name in SCORES},
    )


def change_errors(loss_changes: LossChanges) -> Float64[Tensor, " n_sampled"]:
    """Estimate the standard error of each loss change over documents; NaN where there is one only.

    With S_d a document's change, n_d its kept tokens, n all of them and D the number of documents:
    sqrt(D / (D - 1) * sum_d (S_d - change * n_d)^2) / n.

    Source: the linearised ratio estimator of cluster sampling (Cochran, Sampling Techniques, 3rd ed., 9A).
    """
    n_documents, n_tokens = len(loss_changes.document_tokens), max(1, loss_changes.n_tokens)
    if n_documents < 2:
        return torch.full((len(loss_changes.latents),), math.nan, dtype=torch.float64)
    expected = loss_changes.document_tokens[:, None] * loss_changes.changes
    squares = (loss_changes.by_document - expected).square().sum(dim=0)
    errors: Tensor = (n_documents / (n_documents - 1) * squares).sqrt() / n_tokens
    return errors


def bootstrap_correlations(
    loss_changes: LossChanges, scores: Scores, *, n_draws: int = N_DRAWS, is_signed: bool = True
) -> dict[str, NDArray[np.float64]]:
    """Draw documents and latents anew and give each score's rank correlation, draw by draw.

    All scores see the same draws, so that differences between them may be taken. Unsigned, the loss change's
    size is compared, whichever way it goes. NaN where a draw leaves a correlation undefined.

    Shapes: `scores` of the sampled latents, in their order; float64 (n_draws,) for each name.
    Source: the bootstrap of Efron (1979), over two crossed kinds of units.
    """
    generator = named_generator(0, "bootstrap")
    n_documents, n_latents = loss_changes.by_document.shape
    found = {name: np.full(n_draws, math.nan) for name in scores}
    if n_documents == 0 or n_latents == 0:
        return found
    for draw in range(n_draws):
        documents = torch.randint(n_documents, (n_documents,), generator=generator)
        latents = torch.randint(n_latents, (n_latents,), generator=generator)
        # one divisor serves all latents, so sums have the ranks of means
        changes = loss_changes.by_document[documents].sum(dim=0)[latents]
        measured = (changes if is_signed else changes.abs()).tolist()
        for name, values in scores.items():
            correlation = rank_correlation(measured, values[latents].tolist())
            found[name][draw] = math.nan if correlation is None else correlation
    return found


def standard_deviation(draws: NDArray[np.float64]) -> float | None:
    """Give the spread of the draws in which a figure is defined; None for fewer than half of them."""
    defined = draws[~np.isnan(draws)]
    if len(defined) < 2 or 2 * len(defined) < len(draws):
        return None
    return float(defined.std(ddof=1))
