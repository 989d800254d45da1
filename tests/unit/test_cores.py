"""Each kind of core that a training may be given, against what plain code makes of the same folder."""

import json
import random
from itertools import count

import pytest
import torch
from safetensors.torch import save_file

from dmsae.cores import NEAREST, draw_alike, make_given_core, random_directions
from dmsae.errors import CycleFailed
from dmsae.formats import save_core, save_sae
from dmsae.randomness import named_generator
from dmsae.sae import CoreLatent
from dmsae.source_cycles import SourceCycle
from dmsae.sources import (
    CycleRef,
    EnergyCore,
    FilteredCore,
    FrequentCore,
    NoCore,
    RandomDirections,
    RandomLatents,
    SelectedCore,
)
from tests.spliced import core_of, random_sae

REF = CycleRef(job_id="dst_1", cycle_index=2)
SELECTED = [1, 2, 5, 7]
"""Rows of the SAE that its cycle selected; rows 0, 1, 2 were given to it."""
GIVEN = ["dst_1.0.9", "dst_1.1.4", "dst_0.3.8"]
TIMES = [3, 1, 1, 1]
N_LATENTS, N_CANDIDATES = 40, 10
RMS = 2.5


def latents():
    """Who the selected ones are: rows 1 and 2 were given, the others are new."""
    ids = [GIVEN[1], GIVEN[2], "dst_1.2.5", "dst_1.2.7"]
    names = [each.rsplit(".", 2) for each in ids]
    return [
        CoreLatent(latent_id, job_id, int(cycle), int(index), times)
        for latent_id, (job_id, cycle, index), times in zip(ids, names, TIMES, strict=True)
    ]


@pytest.fixture(scope="module")
def sae():
    return random_sae(n_latents=N_LATENTS, prefix_widths=(N_CANDIDATES, 20, N_LATENTS), n_core=len(GIVEN))


@pytest.fixture(scope="module")
def scores():
    generator = torch.Generator().manual_seed(8)
    drawn = {
        name: torch.rand(N_CANDIDATES, dtype=torch.float64, generator=generator)
        for name in ("density", "score_energy", "score_absolute")
    }
    drawn["density"][[3, 8]] = 2.0  # a tie, and above all others
    return {**drawn, "density_all": torch.rand(N_LATENTS, dtype=torch.float64, generator=generator)}


@pytest.fixture(scope="module")
def sources(sae, scores, tmp_path_factory):
    """What a cycle would have stored."""
    root = tmp_path_factory.mktemp("sources")
    folder = root / REF.folder_name
    facts = {"job_id": "dst_1", "cycle_index": 2, "core_latent_ids": GIVEN, "attribution_score": "absolute"}
    save_sae(folder / "sae", sae, rms=RMS, facts=facts)
    core = core_of(sae, SELECTED, rms=RMS)
    core.latents[:] = latents()
    save_core(folder / "core", core)
    save_file(scores, folder / "scores.safetensors")
    entries = [
        {"sae_index": row, "score": 0.5 + row, "share": 0.1, "rank": place, "density": 0.25}
        for place, row in enumerate(SELECTED)
    ]
    (folder / "lineage.json").write_text(json.dumps({"core": entries}))
    return root


def made(core, sources):
    return make_given_core(core, sources, job_id="trn_1")


def assert_rows(given, sae, rows):
    """The core holds these rows of the SAE, in this order: vectors bit for bit, the rest to a rounding."""
    assert [latent.sae_index for latent in given.latents] == rows
    assert torch.equal(given.core.W_enc, sae.W_enc[:, rows])
    assert torch.equal(given.core.W_dec, sae.W_dec[rows])
    assert torch.allclose(given.core.b_enc, sae.b_enc[rows], rtol=1e-6)
    assert torch.allclose(given.core.threshold, sae.threshold[rows], rtol=1e-6)
    assert given.core.rms == RMS
    assert [latent.core_index for latent in given.latents] == list(range(len(rows)))


def test_no_core_needs_no_folder():
    assert make_given_core(NoCore(kind="none"), None, job_id="trn_1") is None


def test_the_selected_core_is_the_stored_one_with_its_identities(sae, sources):
    given = made(SelectedCore(kind="selected", cycle=REF), sources)
    assert_rows(given, sae, SELECTED)
    assert given.core.latents == latents()
    assert (given.overlap, given.is_weak_control, given.seed) == (1, None, None)
    assert [latent.parent_core_index for latent in given.latents] == [0, 1, 2, 3]
    assert [latent.score for latent in given.latents] == [0.5 + row for row in SELECTED]


@pytest.mark.parametrize(("least", "rows"), [(1, SELECTED), (2, [1]), (3, [1])])
def test_a_filter_keeps_what_that_many_unbroken_cycles_selected(sae, sources, least, rows):
    given = made(FilteredCore(kind="filtered", cycle=REF, min_selected=least), sources)
    assert_rows(given, sae, rows)
    assert [each.times_selected for each in given.core.latents] == [n for n in TIMES if n >= least]


def test_a_filter_that_leaves_nothing_is_refused(sources):
    with pytest.raises(CycleFailed, match=r"core\.min_selected = 4: .*at most 3") as caught:
        made(FilteredCore(kind="filtered", cycle=REF, min_selected=4), sources)
    assert caught.value.failure == "core_empty"


@pytest.mark.parametrize(
    ("core", "name"),
    [
        (FrequentCore(kind="frequent", cycle=REF), "density"),
        (EnergyCore(kind="energy", cycle=REF), "score_energy"),
    ],
)
def test_the_candidates_with_most_of_something_are_taken_in_its_order(sae, scores, sources, core, name):
    values = scores[name].tolist()
    rows = sorted(range(N_CANDIDATES), key=lambda row: (-values[row], row))[: len(SELECTED)]
    given = made(core, sources)
    assert_rows(given, sae, rows)
    n_shared = len(set(rows) & set(SELECTED))
    assert given.overlap == n_shared / len(SELECTED)
    assert given.is_weak_control is (n_shared > 2)


def test_latents_that_were_never_in_a_core_are_named_after_where_they_were_learned(scores, sources):
    given = made(FrequentCore(kind="frequent", cycle=REF), sources)
    total = sum(scores["score_absolute"].tolist())
    order = scores["score_absolute"].argsort(descending=True).tolist()
    for latent, identity in zip(given.latents, given.core.latents, strict=True):
        row = latent.sae_index
        assert latent.latent_id == identity.latent_id
        assert latent.origin_kind == "learned"
        if row in SELECTED:
            assert identity == latents()[SELECTED.index(row)]
            continue
        assert latent.latent_id == (GIVEN[row] if row < len(GIVEN) else f"dst_1.2.{row}")
        assert identity.times_selected == 0
        assert latent.score == scores["score_absolute"][row]
        assert latent.share == pytest.approx(latent.score / total)
        assert latent.rank == order.index(row)
        assert latent.density == scores["density"][row]


def test_a_latent_that_the_cycle_was_given_and_dropped_keeps_its_older_identity(sources):
    source = SourceCycle(sources, REF)
    assert source.identity(0) == CoreLatent("dst_1.0.9", "dst_1", 0, 9, times_selected=0)
    assert source.identity(1) == latents()[0]
    assert source.identity(30) == CoreLatent("dst_1.2.30", "dst_1", 2, 30, times_selected=0)


def test_random_latents_come_from_outside_the_first_prefix_each_once_and_alike_in_density(
    sae, scores, sources
):
    densities = scores["density_all"].tolist()
    sets = []
    for seed in range(5):
        given = made(RandomLatents(kind="random_latents", cycle=REF, seed=seed), sources)
        rows = [latent.sae_index for latent in given.latents]
        assert_rows(given, sae, rows)
        assert len(set(rows)) == len(SELECTED)
        assert min(rows) >= N_CANDIDATES
        assert (given.overlap, given.is_weak_control, given.seed) == (0, False, seed)
        for row, wanted in zip(rows, SELECTED, strict=True):
            others = sorted(
                range(N_CANDIDATES, N_LATENTS),
                key=lambda each: abs(densities[each] ** 0.5 - densities[wanted] ** 0.5),
            )
            assert others.index(row) < NEAREST + len(SELECTED)
        assert all(latent.density == densities[latent.sae_index] for latent in given.latents)
        assert all(latent.score is latent.rank is latent.share is None for latent in given.latents)
        sets.append(tuple(rows))
    assert len(set(sets)) > 1


def test_densities_are_matched_as_by_looking_through_all_that_are_left():
    draw = random.Random(3)
    for _ in range(20):
        wanted = [draw.choice([0.0, 0.1, draw.random()]) for _ in range(6)]
        offered = [draw.choice([0.0, 0.1, draw.random()]) for _ in range(15)]
        drawn = draw_alike(wanted, offered, generator=named_generator(1, "draw"))
        assert len(set(drawn)) == 6
        generator = named_generator(1, "draw")
        left = set(range(15))
        for each in torch.randperm(6, generator=generator).tolist():
            far = sorted(abs(offered[place] ** 0.5 - wanted[each] ** 0.5) for place in left)
            torch.randint(NEAREST, (), generator=generator)
            assert abs(offered[drawn[each]] ** 0.5 - wanted[each] ** 0.5) <= far[min(NEAREST, len(far)) - 1]
            left.remove(drawn[each])


def test_as_many_as_there_are_can_all_be_drawn():
    drawn = draw_alike([0.5] * 4, [0.0, 0.1, 0.9, 1.0], generator=named_generator(0, "draw"))
    assert sorted(drawn) == [0, 1, 2, 3]


def test_too_few_latents_outside_the_first_prefix_are_refused_with_both_numbers(tmp_path, scores):
    folder = tmp_path / REF.folder_name
    sae = random_sae(n_latents=12, prefix_widths=(10, 12), n_core=0)
    facts = {"job_id": "dst_1", "cycle_index": 2, "core_latent_ids": []}
    save_sae(folder / "sae", sae, rms=RMS, facts=facts)
    save_core(folder / "core", core_of(sae, SELECTED, rms=RMS))
    save_file({**scores, "density_all": scores["density_all"][:12]}, folder / "scores.safetensors")
    entries = [{"sae_index": row} for row in SELECTED]
    (folder / "lineage.json").write_text(json.dumps({"core": entries}))
    with pytest.raises(CycleFailed, match=r"core = 4 latents: .* has 2 latents") as caught:
        made(RandomLatents(kind="random_latents", cycle=REF), tmp_path)
    assert caught.value.failure == "core_too_large"


def test_random_directions_have_the_norms_of_the_core_and_belong_to_the_training(sources):
    core = RandomDirections(kind="random_directions", cycle=REF, seed=4)
    given = made(core, sources)
    own = made(SelectedCore(kind="selected", cycle=REF), sources).core
    torch.testing.assert_close(given.core.W_enc.norm(dim=0), own.W_enc.norm(dim=0))
    torch.testing.assert_close(given.core.W_dec.norm(dim=1), torch.ones(len(SELECTED)))
    unit = given.core.W_enc / given.core.W_enc.norm(dim=0)
    torch.testing.assert_close(unit.T, given.core.W_dec)
    assert (given.overlap, given.is_weak_control, given.seed, given.has_rows) == (None, False, 4, False)
    for place, latent in zip(count(), given.latents, strict=False):
        assert latent.latent_id == f"trn_1.0.{place}"
        assert (latent.origin_job_id, latent.origin_cycle, latent.origin_index) == ("trn_1", 0, place)
        assert latent.origin_kind == "random_directions"
        assert latent.sae_index is latent.parent_core_index is latent.density is latent.score is None
    other = made(core.model_copy(update={"seed": 5}), sources)
    assert not torch.equal(other.core.W_enc, given.core.W_enc)


def test_random_directions_point_everywhere():
    rows = random_directions(torch.ones(2000, dtype=torch.float64), 8, seed=0)
    assert rows.mean(dim=0).abs().max() < 0.05
    assert (rows.T @ rows / 2000 - torch.eye(8) / 8).abs().max() < 0.02


@pytest.mark.parametrize("kind", [RandomDirections, RandomLatents])
def test_what_is_drawn_does_not_hang_on_the_number_of_threads(sources, kind):
    name = "random_directions" if kind is RandomDirections else "random_latents"
    n_threads, drawn = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            drawn.append(made(kind(kind=name, cycle=REF, seed=1), sources))
            wide = random_directions(torch.ones(3, dtype=torch.float64), 100_000, seed=1).float()
            drawn[-1] = (drawn[-1].core.W_enc, wide)
    finally:
        torch.set_num_threads(n_threads)
    for one in drawn[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(one, drawn[0], strict=True))


def test_a_folder_of_another_cycle_is_refused_with_both_names(sources):
    (sources / "dst_9.0").symlink_to(sources / REF.folder_name)
    with pytest.raises(CycleFailed, match=r"core\.cycle = dst_9\.0: .*dst_1\.2") as caught:
        made(SelectedCore(kind="selected", cycle=CycleRef(job_id="dst_9", cycle_index=0)), sources)
    assert (caught.value.failure, caught.value.param) == ("core_mismatch", "core.cycle")
