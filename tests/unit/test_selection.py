"""Claims about selection: who everyone is afterwards, and what is told of it."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dmsae.activations import Scale
from dmsae.attribution import Attribution
from dmsae.config import CycleSpec
from dmsae.errors import CycleFailed
from dmsae.identity import lineage_record
from dmsae.metrics import Drift
from dmsae.sae import Core
from dmsae.scoring import SCORES
from dmsae.selection import Selection, build_core, core_change, select
from tests.spliced import PROVENANCE, core_of, random_sae
from tests.tiny import tiny_spec

N_CANDIDATES = 6


def attribution_of(
    scores: list[float], *, halves: tuple[list[float], list[float]] | None = None
) -> Attribution:
    tensor = torch.tensor(scores, dtype=torch.float64)
    first, second = (
        dict.fromkeys(SCORES, torch.tensor(half, dtype=torch.float64)) for half in halves or (scores, scores)
    )
    scores_by_name, errors = dict.fromkeys(SCORES, tensor), dict.fromkeys(SCORES, tensor / 10)
    densities = torch.arange(1, len(scores) + 1).double() / 100
    return Attribution(100, 4, 90, 1.0, densities, scores_by_name, errors, (first, second))


def spec(*, cycle_index: int = 0, **selection: Any) -> CycleSpec:
    return CycleSpec.model_validate(
        tiny_spec(
            "/models/tiny", cycle_index=cycle_index, job_id="dst_1", selection={"max_core": 5, **selection}
        )
    )


def run(scores: list[float], *, given: Core | None = None, halves: Any = None, **settings: Any) -> Selection:
    sae = random_sae(prefix_widths=(len(scores), 24), n_core=given.n_core if given else 0)
    return select(attribution_of(scores, halves=halves), sae, spec=spec(**settings), given=given)


def given_core(n_core: int) -> Core:
    """Give a core of cycle 0 whose entries came from rows 10, 11, ... there."""
    return core_of(random_sae(seed=8), list(range(10, 10 + n_core)))


def test_in_cycle_0_every_latent_is_new_and_named_by_job_cycle_and_row():
    selection = run([0.0, 5.0, 1.0, 4.0, 0.0, 0.0])
    assert [latent.sae_index for latent in selection.core] == [1, 3]
    first = selection.core[0]
    assert (first.latent_id, first.origin_job_id, first.origin_cycle, first.origin_index) == (
        "dst_1.0.1", "dst_1", 0, 1
    )  # fmt: skip
    assert (first.core_index, first.rank, first.times_selected, first.parent_core_index) == (0, 0, 1, None)
    assert (first.share, first.score, first.score_se, first.density) == (0.5, 5.0, 0.5, 0.02)
    assert selection.retention is None
    assert core_change(selection) is None
    assert selection.share == 0.9


def test_latents_selected_again_keep_their_identity_and_the_others_are_recorded_as_dropped():
    given = given_core(3)
    selection = run([3.0, 0.1, 6.0, 8.0, 0.0, 2.0], given=given, cycle_index=1)
    assert [latent.latent_id for latent in selection.core] == [
        "job.0.10",
        "job.0.12",
        "dst_1.1.3",
        "dst_1.1.5",
    ]
    assert [latent.sae_index for latent in selection.core] == [0, 2, 3, 5]
    assert [latent.core_index for latent in selection.core] == [0, 1, 2, 3]
    assert [latent.parent_core_index for latent in selection.core] == [0, 2, None, None]
    assert [latent.times_selected for latent in selection.core] == [2, 2, 1, 1]
    assert [latent.origin_cycle for latent in selection.core] == [0, 0, 1, 1]
    assert [latent.rank for latent in selection.core] == [2, 1, 0, 3]
    (dropped,) = selection.dropped
    assert (dropped.core_index, dropped.sae_index, dropped.latent_id, dropped.rank) == (1, 1, "job.0.11", 4)
    assert dropped.share == pytest.approx(0.1 / 19.1)
    assert selection.retention == pytest.approx(2 / 3)
    assert core_change(selection) == pytest.approx(3 / 5)


def test_kept_latents_come_first_in_their_old_order_then_new_ones_by_rank():
    selection = run(
        [1.0, 2.0, 9.0, 3.0, 8.0, 7.0], given=given_core(3), cycle_index=1, attribution_fraction=1
    )
    assert [latent.sae_index for latent in selection.core] == [1, 2, 4, 5, 3]
    assert selection.is_truncated  # max_core = 5 cuts the weakest, an old one
    assert [latent.latent_id for latent in selection.dropped] == ["job.0.10"]


def test_a_core_cut_by_max_core_tells_the_share_really_reached():
    selection = run([1.0] * 6, max_core=3)
    assert selection.is_truncated
    assert (len(selection.core), selection.n_wanted, selection.share) == (3, 6, 0.5)
    assert not run([1.0] * 6, max_core=6, attribution_fraction=0.5).is_truncated


def test_latents_that_only_one_half_of_the_documents_selects_are_borderline():
    halves = ([5.0, 4.0, 0.0, 1.0, 0.0, 0.0], [5.0, 0.0, 0.0, 4.0, 1.0, 0.0])
    selection = run([5.0, 2.0, 0.0, 2.5, 0.5, 0.0], halves=halves)
    assert {latent.sae_index: latent.is_borderline for latent in selection.core} == {
        0: False,
        3: True,
        1: True,
    }


def test_how_far_the_halves_agree_stands_in_the_metrics():
    halves = ([5.0, 4.0, 0.0, 1.0, 0.0, 0.0], [5.0, 0.0, 0.0, 4.0, 1.0, 0.0])
    metrics = run([5.0, 2.0, 0.0, 2.5, 0.5, 0.0], halves=halves).to_metrics()
    # 5 + 4 and 5 + 4 hold nine tenths of each half: {0, 1} and {0, 3}
    assert metrics["halves"]["jaccard"] == pytest.approx(1 / 3)
    assert metrics["halves"]["n_chosen"] == [2, 2]
    assert metrics["halves"]["n_borderline"] == 2
    assert metrics["halves"]["rank_correlation"] == pytest.approx(spearmanr(*halves).statistic)
    assert metrics["n_borderline"] == 2
    json.dumps(metrics, allow_nan=False)


def test_latents_that_never_fire_are_never_selected_not_even_at_a_fraction_of_one():
    selection = run([1.0, 0.0, 1e-300, 0.0, 0.0, 0.0], attribution_fraction=1.0)
    assert [latent.sae_index for latent in selection.core] == [0, 2]
    assert selection.share == 1
    assert not selection.is_truncated


def test_ties_at_the_border_of_the_core_go_to_the_lower_index():
    selection = run([1.0, 2.0, 1.0, 1.0, 1.0, 2.0], attribution_fraction=0.6)
    assert [latent.sae_index for latent in selection.core] == [1, 5, 0]
    capped = run([1.0, 2.0, 1.0, 1.0, 1.0, 2.0], attribution_fraction=0.9, max_core=4)
    assert [latent.sae_index for latent in capped.core] == [1, 5, 0, 2]


@pytest.mark.parametrize("scores", [[0.0] * 6, [1.0, math.nan] + [1.0] * 4, [0.0, 0.5] + [0.0] * 4])
def test_degenerate_scores_end_the_cycle(scores):
    with pytest.raises(CycleFailed, match="6 candidates") as caught:
        run(scores)
    assert caught.value.failure == "degenerate_scores"
    assert caught.value.param == "attribution.score"


def test_a_core_that_is_not_the_one_of_the_sae_is_refused():
    sae = random_sae(prefix_widths=(6, 24), n_core=2)
    with pytest.raises(CycleFailed, match="2 latents that the SAE was built around"):
        select(attribution_of([1.0] * 6), sae, spec=spec(cycle_index=1), given=given_core(3))


def test_the_next_core_is_cut_out_of_the_sae_bit_for_bit():
    given = given_core(3)
    sae = random_sae(prefix_widths=(6, 24), n_core=3)
    scores = attribution_of([3.0, 0.1, 6.0, 8.0, 0.0, 2.0])
    selection = select(scores, sae, spec=spec(cycle_index=1), given=given)
    core = build_core(selection, sae, scale=Scale(rms=4.0, median_norm=3.0), provenance=PROVENANCE)
    rows = [0, 2, 3, 5]
    assert torch.equal(core.W_enc, sae.W_enc[:, rows])
    assert torch.equal(core.W_dec, sae.W_dec[rows])
    assert torch.equal(core.b_enc, sae.b_enc[rows])
    assert torch.equal(core.threshold, sae.threshold[rows])
    assert (core.rms, core.median_norm) == (4.0, 3.0)
    assert core.latents[0] == replace(given.latents[0], times_selected=2)
    assert core.latents[3].latent_id == "dst_1.1.5"
    norms: Tensor = sae.W_enc.norm(dim=0)[rows]
    assert [latent.encoder_norm for latent in selection.core] == pytest.approx(norms.tolist())


def test_the_lineage_record_tells_how_far_each_kept_latent_drifted():
    selection = run([3.0, 0.1, 6.0, 8.0, 0.0, 2.0], given=given_core(3), cycle_index=1)
    record = lineage_record(selection, Drift([0.9, 0.8, 0.7], [0.6, 0.1, 0.3]))
    assert [entry["decoder_cosine"] for entry in record["core"]] == [0.9, 0.7, None, None]
    assert [entry["firing_jaccard"] for entry in record["core"]] == [0.6, 0.3, None, None]
    assert record["identity_lost"]  # the median of 0.6 and 0.3 is below a half
    assert not lineage_record(selection, Drift([0.9, 0.8, 0.7], [0.6, 0.1, 0.4]))["identity_lost"]
    assert [entry["latent_id"] for entry in record["dropped"]] == ["job.0.11"]
    assert (record["n_core"], record["n_new"], record["n_kept"], record["n_dropped"]) == (4, 2, 2, 1)
    json.dumps(record, allow_nan=False)


def test_without_a_core_given_no_identity_can_be_lost_and_an_unknown_error_is_null():
    attribution = attribution_of([0.0, 5.0, 1.0, 4.0, 0.0, 0.0])
    attribution.standard_errors["absolute"] = torch.full((6,), math.nan)
    selection = select(attribution, random_sae(prefix_widths=(6, 24)), spec=spec(), given=None)
    record = lineage_record(selection, None)
    assert not record["identity_lost"]
    assert record["retention"] is None
    assert record["core"][0]["score_se"] is None
    json.dumps({**record, **selection.to_metrics()}, allow_nan=False)


@pytest.mark.parametrize(("scores", "spread"), [([2.0] * 6, 6.0), ([3.0, 3.0] + [0.0] * 4, 2.0)])
def test_the_effective_number_of_candidates_counts_how_far_the_score_is_spread(scores, spread):
    metrics = run(scores).to_metrics()
    assert metrics["score_effective_n"] == pytest.approx(spread)
    assert metrics["score_effective_fraction"] == pytest.approx(spread / 6)
