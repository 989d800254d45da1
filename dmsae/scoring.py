"""What do the attributions of single firings add up to: four scores of each latent, and how sure are they?

Plain statistics over a list of firings; where that list comes from is left to `attribution.py`.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

SCORES = ("absolute", "signed", "quantile", "energy")
"""Names of the stored scores, as in `AttributionConfig.score`."""

Scores = dict[str, Float64[Tensor, " n_candidates"]]


class Firings(NamedTuple):
    """Every firing of a candidate at a kept token, one entry each, in the order of the tokens.

    Where a candidate is silent its attribution is exactly 0, so nothing is lost by leaving that out.
    """

    candidate: Int[Tensor, " n_firings"]
    document: Int[Tensor, " n_firings"]
    attribution: Float[Tensor, " n_firings"]
    """A_ti in nats: the latent activation times the gradient of the summed loss by it."""
    latent_act: Float[Tensor, " n_firings"]
    """At normalised scale."""
    documents: Int[Tensor, " n_tokens"]
    """Document of each kept token, whether anything fires there or not."""

    @property
    def n_tokens(self) -> int:
        """Number of kept tokens."""
        return len(self.documents)

    def of_documents(self, chosen: Int[Tensor, " n_chosen"]) -> "Firings":
        """Keep the tokens of the chosen documents."""
        is_in = torch.isin(self.document, chosen)
        return Firings(
            self.candidate[is_in],
            self.document[is_in],
            self.attribution[is_in],
            self.latent_act[is_in],
            self.documents[torch.isin(self.documents, chosen)],
        )


def score(firings: Firings, n_candidates: int, *, quantile: float) -> Scores:
    """Give the four scores of each candidate per kept token, silent ones included; all 0 without tokens.

    absolute: mean |A|. signed: ReLU of the mean of -A. quantile: the ceil(q n)-th smallest |A| of n tokens.
    energy: mean squared latent activation at normalised scale.

    Shapes: float64; nats a token but for energy.
    Source: METHOD 8.
    """
    rank = torch.full((n_candidates,), max(1, math.ceil(Fraction(str(quantile)) * firings.n_tokens)))
    return {
        "absolute": _mean(firings, firings.attribution.abs(), n_candidates),
        "signed": _mean(firings, -firings.attribution, n_candidates).relu(),
        "quantile": _at_rank(firings, rank),
        "energy": _mean(firings, firings.latent_act.double() ** 2, n_candidates),
    }


def score_errors(firings: Firings, scores: Scores, *, quantile: float) -> Scores:
    """Give the standard error of each score over documents, whose tokens are not independent.

    That of `signed` belongs to the mean before it is cut at 0. Not a number where there is one document only.

    Source: means by `_mean_error`; the quantile by Woodruff's interval (1952, J. Am. Stat. Assoc. 47): half
    the distance of the quantiles at q - e and q + e, e the standard error of the share of tokens above.
    """
    n_candidates, n_tokens = len(scores["quantile"]), firings.n_tokens
    is_above = firings.attribution.abs() > scores["quantile"][firings.candidate]
    share_error = _mean_error(firings, is_above, n_candidates)
    places = (quantile + sign * share_error.nan_to_num() for sign in (-1, 1))
    low, high = (_at_rank(firings, (place * n_tokens).ceil().clamp(1, n_tokens).long()) for place in places)
    return {
        "absolute": _mean_error(firings, firings.attribution.abs(), n_candidates),
        "signed": _mean_error(firings, firings.attribution, n_candidates),
        "quantile": torch.where(share_error.isnan(), share_error, (high - low) / 2),
        "energy": _mean_error(firings, firings.latent_act.double() ** 2, n_candidates),
    }


def firing_densities(firings: Firings, n_candidates: int) -> Float64[Tensor, " n_candidates"]:
    """Give the share of the kept tokens at which each candidate fires."""
    return _mean(firings, torch.ones_like(firings.latent_act), n_candidates)


def _mean(
    firings: Firings, values: Shaped[Tensor, " n_firings"], n_candidates: int
) -> Float64[Tensor, " n_candidates"]:
    sums = torch.zeros(n_candidates, dtype=torch.float64).index_add(0, firings.candidate, values.double())
    return sums / max(1, firings.n_tokens)


def _mean_error(
    firings: Firings, values: Shaped[Tensor, " n_firings"], n_candidates: int
) -> Float64[Tensor, " n_candidates"]:
    """Estimate the standard error of the mean of `values` over all tokens, silent ones as 0.

    With S_d a document's sum, n_d its tokens, n all tokens and D the number of documents:
    sqrt(D / (D - 1) * sum_d (S_d - mean * n_d)^2) / n.

    Source: the linearised ratio estimator of cluster sampling (Cochran, Sampling Techniques, 3rd ed., 9A).
    """
    documents, sizes = torch.unique(firings.documents, return_counts=True)
    if len(documents) < 2:
        return torch.full((n_candidates,), math.nan, dtype=torch.float64)
    mean = _mean(firings, values, n_candidates)
    document = torch.searchsorted(documents, firings.document)
    pairs, which = torch.unique(firings.candidate * len(documents) + document, return_inverse=True)
    sums = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, which, values.double())
    candidate = pairs // len(documents)
    expected = mean[candidate] * sizes[pairs % len(documents)]
    # where a candidate is silent in a whole document, S_d = 0 and the residual is what was expected
    excess = torch.zeros_like(mean).index_add(0, candidate, (sums - expected) ** 2 - expected**2)
    squares = (excess + mean**2 * (sizes.double() ** 2).sum()).clamp_min(0)
    errors: Tensor = (squares * len(documents) / (len(documents) - 1)).sqrt() / firings.n_tokens
    return errors


def _at_rank(firings: Firings, rank: Int[Tensor, " n_candidates"]) -> Float64[Tensor, " n_candidates"]:
    """Give the `rank`-th smallest |A| of each candidate over all tokens, counted from 1, silent ones as 0."""
    magnitudes, order = firings.attribution.abs().sort()
    candidates, by_candidate = firings.candidate[order].sort(stable=True)
    ordered = torch.cat([magnitudes[by_candidate].double(), torch.zeros(1, dtype=torch.float64)])
    counts = torch.bincount(candidates, minlength=len(rank))
    place = rank - 1 - (firings.n_tokens - counts)
    first = counts.cumsum(0) - counts
    return torch.where(place >= 0, ordered[(first + place.clamp_min(0)).clamp_max(len(ordered) - 1)], 0.0)
