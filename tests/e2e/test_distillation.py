"""HTTP in, cycles of a tiny model, lineage out: the main job, real at every joint."""

import math
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.e2e.site import Site


class Finished(NamedTuple):
    """A distillation of three cycles that is over, with every file it stored."""

    job_id: str
    files: Path
    cores: list[list[dict[str, Any]]]
    """The core of each cycle, as the API tells it."""
    latents: list[dict[str, Any]]


@pytest.fixture(scope="module")
def finished(site: Site, twins: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    job_id = twins[0]
    base = f"/distillations/{job_id}"
    cores = [site.get(f"{base}/core", cycle_index=index)["items"] for index in range(3)]
    files = site.download(job_id, tmp_path_factory.mktemp("files"))
    return Finished(job_id, files, cores, site.get(f"{base}/lineage", limit=200)["items"])


def sae(finished: Finished, cycle: int) -> dict[str, Tensor]:
    return load_file(finished.files / str(cycle) / "sae" / "sae_weights.safetensors")


def test_every_cycle_succeeds_once_and_tells_its_metrics(site: Site, finished: Finished) -> None:
    job = site.get(f"/distillations/{finished.job_id}")
    assert [cycle["state"] for cycle in job["cycles"]] == ["succeeded"] * 3
    assert [cycle["n_attempts"] for cycle in job["cycles"]] == [1, 1, 1]
    for cycle, core in zip(job["cycles"], finished.cores, strict=True):
        metrics = cycle["metrics"]
        assert metrics["n_core"] == len(core)
        assert metrics["prefix_widths"][-1] == 64
        assert 0 < metrics["explained_variance"] < 1
        assert metrics["l0"] == pytest.approx(6, rel=0.2)
    retentions = [cycle["metrics"]["retention"] for cycle in job["cycles"]]
    assert retentions[0] is None
    assert all(0 <= retention <= 1 for retention in retentions[1:])


def test_new_latents_enter_after_cycle_0_and_old_ones_stay(finished: Finished) -> None:
    origins = [Counter(latent["origin_cycle"] for latent in core) for core in finished.cores]
    assert set(origins[0]) == {0}
    assert origins[1][1] > 0
    assert origins[2][0] > 0


def test_core_encoder_vectors_are_carried_bit_for_bit_and_decoder_rows_are_not(finished: Finished) -> None:
    for cycle in (1, 2):
        before, after = sae(finished, cycle - 1), sae(finished, cycle)
        selected = [latent["sae_index"] for latent in finished.cores[cycle - 1]]
        n_core = len(selected)
        assert after["W_enc"][:, :n_core].equal(before["W_enc"][:, selected])
        is_same = (after["W_dec"][:n_core] == before["W_dec"][selected]).all(dim=1)
        assert not is_same.any()


def test_identity_and_origin_survive_from_core_to_core(finished: Finished) -> None:
    for cycle in (1, 2):
        given = finished.cores[cycle - 1]
        for latent in finished.cores[cycle]:
            parent = latent["parent_core_index"]
            if parent is None:
                assert latent["origin_cycle"] == cycle
                assert latent["latent_id"] == f"{finished.job_id}.{cycle}.{latent['sae_index']}"
            else:
                assert latent["sae_index"] == parent
                for name in ("latent_id", "origin_cycle", "origin_index"):
                    assert latent[name] == given[parent][name]


def test_a_latent_that_is_not_selected_again_is_recorded_as_dropped(finished: Finished) -> None:
    ids = [{latent["latent_id"] for latent in core} for core in finished.cores]
    gone = {latent: cycle for cycle in (1, 2) for latent in ids[cycle - 1] - ids[cycle]}
    recorded = {row["latent_id"]: row["dropped_at"] for row in finished.latents if row["dropped_at"]}
    # whether any is depends on the text that this Python ships; test_lineage.py has drops by construction
    assert recorded == gone


def test_every_latents_path_names_each_cycle_that_selected_it(finished: Finished) -> None:
    ids = [[latent["latent_id"] for latent in core] for core in finished.cores]
    assert len(finished.latents) == len(set().union(*ids))
    for row in finished.latents:
        cycles = [place["cycle_index"] for place in row["path"]]
        assert cycles == [cycle for cycle in range(3) if row["latent_id"] in ids[cycle]]
        assert row["times_selected"] == len(cycles)
        assert row["origin_cycle"] == cycles[0]


def test_shares_reach_the_fraction_and_without_the_weakest_do_not(site: Site, finished: Finished) -> None:
    events = site.get(f"/jobs/{finished.job_id}/events", limit=200)["items"]
    cut = {event["cycle_index"] for event in events if event["kind"] == "core_truncated"}
    for cycle, core in enumerate(finished.cores):
        shares = sorted(latent["share"] for latent in core)
        if cycle in cut:
            assert len(core) == 20
            assert math.fsum(shares) < 0.9
        else:
            assert math.fsum(shares) >= 0.9 - 1e-12
            assert math.fsum(shares[1:]) < 0.9


def test_origins_count_every_core_latent_by_its_cycle(site: Site, finished: Finished) -> None:
    found = site.get(f"/distillations/{finished.job_id}/origins")
    assert found["cycles"] == [0, 1, 2]
    columns = [origin["cycle_index"] for origin in found["origins"]]
    for row, core in zip(found["matrix"], finished.cores, strict=True):
        counted = Counter(latent["origin_cycle"] for latent in core)
        assert row == [counted[column] for column in columns]


def test_min_selected_keeps_what_was_selected_in_that_many_unbroken_cycles(
    site: Site, finished: Finished
) -> None:
    base = f"/distillations/{finished.job_id}/core"
    for wanted in (1, 2, 3):
        kept = {latent["latent_id"] for latent in site.get(base, min_selected=wanted)["items"]}
        ids = [{latent["latent_id"] for latent in core} for core in finished.cores[3 - wanted :]]
        assert kept == set.intersection(*ids)


def as_bytes(shown: str) -> bytes:
    """Give what tokens hold, those that are a part of a character included."""
    parts = re.split("<0x([0-9A-F]{2})>", shown)
    return b"".join(bytes.fromhex(part) if odd % 2 else part.encode() for odd, part in enumerate(parts))


def test_each_core_latent_shows_texts_that_it_fires_at_and_how_often_it_does(
    site: Site, finished: Finished
) -> None:
    core_id = site.get(f"/distillations/{finished.job_id}/core")["core_id"]
    densities = load_file(finished.files / "2" / "scores.safetensors")["density_all"].tolist()
    source = "\0".join(topics.values()).encode()
    for latent in finished.cores[2]:
        told = site.get(f"/latents/{latent['latent_id']}/snippets")
        assert told["core"] == core_id
        assert told["density"] == pytest.approx(densities[latent["sae_index"]], abs=2 / told["n_tokens"])
        snippets = [snippet for decile in told["deciles"] for snippet in decile["snippets"]]
        assert all(as_bytes("".join(snippet["tokens"])) in source for snippet in snippets)
        peaks = [snippet["activations"][snippet["peak"]] for snippet in snippets]
        assert max(peaks, default=0.0) == pytest.approx(told["max_activation"], rel=1e-3)
        assert all(peak >= 0.999 * told["min_activation"] > 0 for peak in peaks)
        assert len(told["logit_lens"]["promoted"]) == 10


def test_events_are_numbered_without_a_gap_and_end_with_the_job(site: Site, finished: Finished) -> None:
    events = site.get(f"/jobs/{finished.job_id}/events", limit=200)["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "job_queued"
    assert events[-1]["kind"] == "job_succeeded"


def test_two_jobs_run_side_by_side_and_the_same_seed_gives_the_same_bits(
    site: Site, twins: list[str]
) -> None:
    logs = [site.get(f"/jobs/{job_id}/logs")["items"] for job_id in twins]
    assert [len(attempts) for attempts in logs] == [3, 3]
    (mine, theirs) = [{attempt["worker_id"] for attempt in attempts} for attempts in logs]
    spans = [(attempts[0]["opened_at"], attempts[-1]["closed_at"]) for attempts in logs]
    assert max(begun for begun, _ in spans) < min(ended for _, ended in spans)
    assert mine | theirs == {worker for worker in mine | theirs if worker.endswith(("cpu-0", "cpu-1"))}
    assert len(mine | theirs) == 2
    weights = [site.weights(job_id) for job_id in twins]
    assert weights[0] == weights[1]
    assert weights[0]


def test_no_secret_reaches_an_answer_or_the_trainers_log(site: Site, finished: Finished) -> None:
    told = [
        site.http.get(path).text
        for path in (
            f"/jobs/{finished.job_id}",
            f"/jobs/{finished.job_id}/logs",
            f"/jobs/{finished.job_id}/events",
            "/readyz",
        )
    ]
    secret = site.env["DMSAE_S3_SECRET_KEY"]
    assert not [text for text in told if secret in text or site.env["DMSAE_DATABASE_URL"] in text]
