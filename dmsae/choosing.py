"""Which candidates hold the wanted share of the score, and do two halves of the documents agree on them?

Arithmetic over lists of scores, exact whatever their sizes. Who the chosen are is left to `selection.py`.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple

from dmsae.errors import CycleFailed
from dmsae.ranks import rank_correlation

REMEDIES = {
    "quantile": "raise attribution.quantile, below which a latent that fires seldom scores 0, or sae.k",
    "signed": "take another attribution.score, or train for longer",
}
"""What may help where hardly a candidate has a positive score, by name of the score."""


class Choice(NamedTuple):
    """The strongest candidates that hold the wanted share of the total score."""

    ranking: list[int]
    """All candidates by score descending, ties by index."""
    n_wanted: int
    """Size of the smallest set that holds the wanted share."""
    n_chosen: int
    """At most `max_core` of them."""
    total: float
    share: float
    """What the chosen really hold of the total."""

    @property
    def members(self) -> list[int]:
        """The chosen candidates by rank."""
        return self.ranking[: self.n_chosen]


class Halves(NamedTuple):
    """How far the two halves of the attribution documents agree."""

    rank_correlation: float | None
    """Spearman's, of the scores of all candidates; None where one half has nothing to order."""
    jaccard: float | None
    """Candidates that both halves choose over those that either does; None where one half chooses none."""
    n_chosen: tuple[int, int]
    """Size of each half's own choice."""
    borderline: frozenset[int]
    """Candidates that one half chooses and the other does not."""

    def to_metrics(self) -> dict[str, Any]:
        """Give the entry `halves` of `metrics.json`."""
        return {
            "rank_correlation": self.rank_correlation,
            "jaccard": self.jaccard,
            "n_chosen": list(self.n_chosen),
            "n_borderline": len(self.borderline),
        }


def choose(scores: Sequence[float], *, fraction: float, max_core: int) -> Choice:
    """Choose the smallest set that holds `fraction` of the total score, and at most `max_core` of it by rank.

    Nothing is rounded on the way: scores are added up as whole numbers of one unit, and `fraction` is the
    decimal that was written, 0.9 being nine tenths. So a fraction of 1 takes every positive score, however
    small, and none takes a score of 0. Nothing is chosen where the total is 0.

    Shapes: finite scores of at least 0.
    """
    ranking = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    sums, unit = _exact_sums([scores[index] for index in ranking])
    total, wanted = sums[-1] if sums else 0, Fraction(str(fraction))
    if total == 0:
        return Choice(ranking, 0, 0, 0.0, 0.0)
    n_wanted = 1 + bisect_left(sums, wanted.numerator * total, key=lambda held: held * wanted.denominator)
    n_chosen = min(n_wanted, max_core)
    return Choice(ranking, n_wanted, n_chosen, total / unit, sums[n_chosen - 1] / total)


def compare_halves(
    first: Sequence[float], second: Sequence[float], *, fraction: float, max_core: int
) -> Halves:
    """Choose on each half of the documents alone, and tell how far the two agree."""
    one, other = (
        frozenset(choose(scores, fraction=fraction, max_core=max_core).members) for scores in (first, second)
    )
    return Halves(
        rank_correlation=rank_correlation(first, second),
        jaccard=len(one & other) / len(one | other) if one and other else None,
        n_chosen=(len(one), len(other)),
        borderline=one ^ other,
    )


def effective_number(scores: Sequence[float], total: float) -> float:
    """Give exp(H) of the shares of a positive total: over how many candidates it is spread."""
    shares = [score / total for score in scores]
    return math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0))


def require_meaningful(scores: Sequence[float], name: str) -> None:
    """Refuse scores from which no core can be chosen, telling what was seen.

    Raises: CycleFailed(degenerate_scores) where one is not finite, their sum is not, all are 0, or a single
    one of several is positive.
    Source: METHOD 9. Our choice: the last.
    """
    bad = [index for index, value in enumerate(scores) if not 0 <= value < math.inf]
    positive = [index for index, value in enumerate(scores) if value > 0]
    seen = {"n_candidates": len(scores), "n_not_finite": len(bad), "n_positive": len(positive)}
    if bad:
        what = (
            f"{len(bad)} of {len(scores)} candidates have no finite {name} score, latent {bad[0]} the first "
            f"({scores[bad[0]]}): training diverged; try a lower training.lr."
        )
    elif not _is_sum_finite(scores):
        what = (
            f"The {name} scores of {len(scores)} candidates, up to {max(scores):g}, have no finite sum: "
            "training diverged; try a lower training.lr."
        )
    elif not positive:
        remedy = REMEDIES.get(name, "train for longer, or raise sae.k")
        what = f"The {name} scores of all {len(scores)} candidates are 0: none matters to the loss; {remedy}."
    elif len(positive) == 1 < len(scores):
        only, remedy = positive[0], REMEDIES.get(name, "train for longer, or raise sae.k")
        what = (
            f"Of {len(scores)} candidates latent {only} alone has a positive {name} score "
            f"({scores[only]:g}): one latent is no core; {remedy}."
        )
    else:
        return
    raise CycleFailed("degenerate_scores", what, param="attribution.score", **seen)


def _exact_sums(values: Sequence[float]) -> tuple[list[int], int]:
    """Add up step by step in whole numbers of 1/unit: a float is a whole number over a power of two."""
    ratios = [value.as_integer_ratio() for value in values]
    unit = max((denominator for _, denominator in ratios), default=1)
    return list(accumulate(numerator * (unit // denominator) for numerator, denominator in ratios)), unit


def _is_sum_finite(scores: Sequence[float]) -> bool:
    try:
        return math.isfinite(math.fsum(scores))
    except OverflowError:
        return False
