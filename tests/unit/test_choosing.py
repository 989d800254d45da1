"""Claims about choosing: the smallest set, exactly, whatever the ties and sizes, beside a slow plain twin."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from dmsae.choosing import choose, compare_halves, effective_number, require_meaningful
from dmsae.errors import CycleFailed

ANY = st.floats(0, 1e300, allow_subnormal=True)
TIED = st.sampled_from([0.0, 0.0, 0.1, 0.2, 0.3, 0.7, 1.0, 1e16])
SCORES = st.lists(st.one_of(ANY, TIED), min_size=1, max_size=25)
FRACTIONS = st.one_of(
    st.integers(1, 100).map(lambda percent: percent / 100), st.floats(0, 1, exclude_min=True)
)
PLENTY = 1000


def slow_choice(scores: Sequence[float], fraction: float) -> list[int]:
    """Take the strongest left, the first of equals, until nine tenths are nine tenths; all in fractions."""
    left, taken = dict(enumerate(map(Fraction, scores))), []
    total, held = sum(left.values(), Fraction()), Fraction()
    while held < Fraction(repr(fraction)) * total:
        strongest = max(left.values())
        index = min(index for index, value in left.items() if value == strongest)
        held += left.pop(index)
        taken.append(index)
    return taken


@given(SCORES, FRACTIONS)
@example([0.1] * 10, 0.9)
@example([0.1, 0.2, 0.3, 0.4], 0.7)
@example([1e300, 5e-324, 5e-324], 1.0)
@example([0.0, 0.0], 0.5)
def test_the_choice_is_that_of_a_plain_twin_in_fractions(scores, fraction):
    choice, expected = choose(scores, fraction=fraction, max_core=PLENTY), slow_choice(scores, fraction)
    assert choice.members == expected
    assert choice.n_wanted == len(expected)
    total = sum(map(Fraction, scores), Fraction())
    held = sum((Fraction(scores[index]) for index in expected), Fraction())
    assert choice.total == float(total)
    assert choice.share == (float(held / total) if total else 0)


@given(SCORES, FRACTIONS, st.integers(1, 30))
def test_the_cap_keeps_the_strongest_and_tells_what_they_hold(scores, fraction, max_core):
    free, capped = (choose(scores, fraction=fraction, max_core=cap) for cap in (PLENTY, max_core))
    assert capped.members == free.members[:max_core]
    assert capped.n_wanted == free.n_wanted
    total, held = sum(map(Fraction, scores)), sum(Fraction(scores[index]) for index in capped.members)
    assert capped.share == (float(Fraction(held) / total) if total else 0)


@given(SCORES)
def test_ties_are_broken_by_index_and_every_candidate_has_one_rank(scores):
    ranking = choose(scores, fraction=0.9, max_core=PLENTY).ranking
    assert ranking == sorted(ranking, key=lambda index: (-scores[index], index))
    assert sorted(ranking) == list(range(len(scores)))


@given(SCORES)
def test_a_fraction_of_one_takes_every_positive_score_and_no_zero(scores):
    choice = choose(scores, fraction=1.0, max_core=PLENTY)
    assert sorted(choice.members) == [index for index, value in enumerate(scores) if value > 0]
    assert choice.share == (1 if any(scores) else 0)


@given(SCORES, st.randoms(use_true_random=False))
def test_which_scores_are_chosen_does_not_depend_on_their_order(scores, random):
    shuffled = random.sample(scores, len(scores))
    one, other = (choose(values, fraction=0.9, max_core=PLENTY) for values in (scores, shuffled))
    assert [scores[index] for index in one.members] == [shuffled[index] for index in other.members]
    assert (one.total, one.share) == (other.total, other.share)


@pytest.mark.parametrize(
    ("scores", "fraction", "expected"),
    [
        ([0.1] * 10, 0.9, 9),  # added one by one, nine tenths of ten tenths are missed by the last digit
        ([0.1] * 10, 0.3, 3),
        ([1.0, 1.0] + [2.0**-54] * 4, 0.5, 2),  # plain float64 sums never see the small ones
        ([2.0**24, 2.0**24, 1.0], 0.5, 2),  # nor do float32 sums the last
        ([2.0**24, 2.0**24], 0.5, 1),
    ],
)
def test_shares_that_only_exact_sums_get_right(scores, fraction, expected):
    assert (
        choose(scores, fraction=fraction, max_core=10**6).n_chosen
        == expected
        == len(slow_choice(scores, fraction))
    )


def test_nothing_is_chosen_where_nothing_has_a_score():
    for scores in ([], [0.0, 0.0]):
        choice = choose(scores, fraction=1.0, max_core=5)
        assert (choice.members, choice.n_wanted, choice.total, choice.share) == ([], 0, 0, 0)


def test_halves_that_agree_have_no_borderline_candidate():
    halves = compare_halves([5.0, 4.0, 0.5, 0.0], [50.0, 40.0, 0.5, 0.0], fraction=0.9, max_core=PLENTY)
    assert (halves.rank_correlation, halves.jaccard) == (pytest.approx(1), 1)
    assert (halves.n_chosen, halves.borderline) == ((2, 2), frozenset())


def test_halves_that_share_one_of_three_candidates_have_a_jaccard_of_a_third():
    first, second = [5.0, 4.0, 0.0, 1.0], [5.0, 0.5, 4.5, 0.0]
    halves = compare_halves(first, second, fraction=0.9, max_core=PLENTY)
    assert halves.jaccard == pytest.approx(1 / 3)
    assert halves.borderline == {1, 2}
    assert halves.rank_correlation == pytest.approx(spearmanr(first, second).statistic)
    assert halves.to_metrics()["n_borderline"] == 2


def test_halves_of_different_size_count_what_one_takes_beyond_the_other():
    halves = compare_halves([9.0, 1.0, 0.0], [4.0, 3.0, 3.0], fraction=0.9, max_core=PLENTY)
    assert (halves.n_chosen, halves.jaccard, halves.borderline) == ((1, 3), pytest.approx(1 / 3), {1, 2})
    capped = compare_halves([9.0, 1.0, 0.0], [4.0, 3.0, 3.0], fraction=0.9, max_core=1)
    assert (capped.n_chosen, capped.jaccard, capped.borderline) == ((1, 1), 1, frozenset())


def test_a_half_without_any_score_leaves_the_agreement_unknown():
    halves = compare_halves([1.0, 2.0, 3.0], [0.0] * 3, fraction=0.9, max_core=PLENTY)
    assert (halves.rank_correlation, halves.jaccard) == (None, None)
    assert halves.n_chosen == (2 + 1, 0)


@pytest.mark.parametrize(
    ("scores", "told", "seen"),
    [
        ([0.0] * 6, "all 6 candidates are 0", (0, 0)),
        ([1.0, math.nan, math.inf, 2.0], "2 of 4 candidates .* latent 1 the first", (2, 3)),
        ([1.0, -1.0], "1 of 2 candidates .*latent 1 the first", (1, 1)),
        ([1e308, 1e308, 0.0], "no finite sum", (0, 2)),
        ([0.0, 0.25, 0.0], "Of 3 candidates latent 1 alone .*0.25", (0, 1)),
    ],
)
def test_degenerate_scores_are_refused_with_what_was_seen(scores, told, seen):
    with pytest.raises(CycleFailed, match=told) as caught:
        require_meaningful(scores, "absolute")
    assert (caught.value.failure, caught.value.param) == ("degenerate_scores", "attribution.score")
    fields = caught.value.fields
    assert (fields["n_not_finite"], fields["n_positive"]) == seen
    assert fields["n_candidates"] == len(scores)


def test_a_quantile_that_nearly_every_latent_is_silent_at_is_told_to_be_raised():
    with pytest.raises(CycleFailed, match=r"raise attribution\.quantile"):
        require_meaningful([0.0, 0.0], "quantile")


@pytest.mark.parametrize("scores", [[5.0], [0.0, 1e-300, 5e-324], [1e308, 0.0, 1e-300]])
def test_scores_of_any_size_are_meaningful_where_more_than_one_is_positive_or_there_is_only_one(scores):
    require_meaningful(scores, "absolute")


@pytest.mark.parametrize(("scores", "spread"), [([2.0] * 6, 6), ([3.0, 0.0], 1), ([1.0, 1.0, 0.0], 2)])
def test_the_effective_number_counts_over_how_many_candidates_the_score_is_spread(scores, spread):
    assert effective_number(scores, math.fsum(scores)) == pytest.approx(spread)
