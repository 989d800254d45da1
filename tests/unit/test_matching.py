"""Latents of several cores, matched one to one: against slow plain truth, and what chance alone gives."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from dmsae.matching import Firings, align, align_all, core_acts, matches_of, reproduced
from dmsae.randomness import named_generator
from dmsae.sae import CoreLatent
from tests.spliced import D_MODEL, core_of, random_sae

CPU = torch.device("cpu")


def generator():
    return named_generator(0, "test")


def unit_rows(n, *, seed=0, d_model=D_MODEL):
    rows = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def aligned(a, b, min_cosine=0.7):
    return align(a, b, min_cosine=min_cosine, generator=generator())


def cores_of(*seeds, rms=1.0):
    """Cores of SAEs of their own, with identities of their own."""
    cores = [core_of(random_sae(seed=seed), [0, 3, 5, 8, 9], rms=rms) for seed in seeds]
    for number, core in enumerate(cores):
        core.latents[:] = [
            CoreLatent(f"job{number}.0.{each.origin_index}", f"job{number}", 0, each.origin_index, 1)
            for each in core.latents
        ]
    return cores


def firings_of(cores, x, min_cosine=0.0):
    n = len(cores)
    generators = {(a, b): generator() for a in range(n) for b in range(a + 1, n)}
    found = align_all(cores, min_cosine=min_cosine, generators=generators)
    firings = Firings(cores, found, CPU)
    for piece in x.split(37):
        firings.add(piece)
    return found, firings


def test_latents_are_paired_as_trying_every_assignment_would():
    a, b = unit_rows(4, seed=1, d_model=3), unit_rows(5, seed=2, d_model=3)
    found = aligned(a, b, min_cosine=0.5)
    cosines = (a @ b.T).double()
    worth = torch.where(cosines >= 0.5, cosines, 0.0)
    best = max(sum(worth[i, j].item() for i, j in enumerate(order)) for order in permutations(range(5), 4))
    assert sum(found.cosines) == pytest.approx(best, abs=1e-6)
    assert len(set(found.a_indices)) == len(set(found.b_indices)) == len(found.cosines)
    assert min(found.cosines) >= 0.5
    assert found.best_cosine == pytest.approx(cosines.max(dim=1).values.mean().item(), abs=1e-6)


def test_shuffled_and_scaled_rows_find_themselves():
    a, order = unit_rows(20), torch.randperm(20, generator=torch.Generator().manual_seed(3))
    found = aligned(a, 3 * a[order])
    assert [int(order[j]) for j in found.b_indices] == found.a_indices == list(range(20))
    assert found.cosines == pytest.approx([1.0] * 20)


def test_no_latent_is_matched_twice_though_two_resemble_it():
    a = unit_rows(1)
    found = aligned(a.repeat(3, 1), a)
    assert len(found.cosines) == 1


def test_pairs_too_far_apart_never_cost_one_that_is_near():
    """The other assignment has the larger sum over all pairs, and no pair that counts."""
    a = torch.tensor([[1.0, 0.0], [0.6, -0.8]])
    b = torch.tensor([[0.8, 0.6], [0.65, 0.76]])
    found = aligned(a, b, min_cosine=0.75)
    assert (found.a_indices, found.b_indices) == ([0], [0])


def test_random_rows_match_nothing_and_the_baseline_says_what_chance_gives():
    a, b = unit_rows(50, seed=4, d_model=64), unit_rows(50, seed=5, d_model=64)
    found = aligned(a, b)
    assert found.cosines == []
    assert found.best_cosine == pytest.approx(found.best_cosine_random, abs=0.05)
    assert aligned(a, a).best_cosine == pytest.approx(1)
    assert aligned(a, b) == found


def test_correlations_are_those_of_the_activations_each_core_at_its_own_scale():
    cores = cores_of(1, 2, 3)
    cores = [
        type(core)(**{**vars(core), "rms": rms}) for core, rms in zip(cores, (0.5, 1.0, 4.0), strict=True)
    ]
    x = 2 * torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(9))
    found, firings = firings_of(cores, x)
    assert firings.n_tokens == 200
    for (i, j), pairs in found.items():
        a, b = (core_acts(cores[k], x / cores[k].rms).double() for k in (i, j))
        assert len(pairs.cosines) > 0
        for place, correlation in enumerate(firings.correlations((i, j))):
            both = torch.stack([a[:, pairs.a_indices[place]], b[:, pairs.b_indices[place]]])
            assert correlation == pytest.approx(torch.corrcoef(both)[0, 1].item(), abs=1e-9)


def test_core_latents_fire_as_they_do_in_their_sae():
    sae = random_sae()
    core, x = core_of(sae, [2, 7]), torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(core_acts(core, x), sae.encode(x)[:, [2, 7]], atol=1e-6)


def test_a_latent_that_never_fires_correlates_with_nothing():
    core = core_of(random_sae(), [0, 3])
    silent = replace(core, threshold=torch.full((2,), 1e9))
    found, firings = firings_of([core, silent], torch.randn(64, D_MODEL), min_cosine=0.7)
    assert firings.correlations((0, 1)) == [None, None]
    assert matches_of(found[0, 1], [None, None], min_correlation=0.0) == []


def test_a_match_takes_the_same_direction_and_the_same_tokens():
    """Both cores hold the same rows; those of the second fire at other tokens but for one."""
    first, second = cores_of(1, 1)
    flipped = second.W_enc.clone()
    flipped[:, 1:] *= -1
    second = replace(second, W_enc=flipped)
    x = torch.randn(300, D_MODEL, generator=torch.Generator().manual_seed(2))
    found, firings = firings_of([first, second], x, min_cosine=0.7)
    assert len(found[0, 1].cosines) == 5
    matches = matches_of(found[0, 1], firings.correlations((0, 1)), min_correlation=0.5)
    assert [(match.a_index, match.b_index) for match in matches] == [(0, 0)]
    assert matches[0].firing_correlation == pytest.approx(1)
    names = reproduced([first, second], {(0, 1): matches})
    assert names == [[first.latents[0].latent_id], [second.latents[0].latent_id]]


def test_one_other_core_is_enough_to_reproduce_a_latent():
    cores = cores_of(1, 1, 4)
    x = torch.randn(300, D_MODEL, generator=torch.Generator().manual_seed(2))
    found, firings = firings_of(cores, x, min_cosine=0.7)
    matches = {
        pair: matches_of(each, firings.correlations(pair), min_correlation=0.5)
        for pair, each in found.items()
    }
    assert list(map(len, reproduced(cores, matches))) == [5, 5, 0]


def test_a_latent_that_both_cores_were_given_is_not_found_again():
    core = core_of(random_sae(), [0, 3])
    x = torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(2))
    found, firings = firings_of([core, core], x, min_cosine=0.7)
    matches = matches_of(found[0, 1], firings.correlations((0, 1)), min_correlation=0.5)
    assert len(matches) == 2
    assert reproduced([core, core], {(0, 1): matches}) == [[], []]
