"""How jobs end otherwise: what only the worker can see, cancelling, kills in the middle of a real cycle."""

import time
from typing import Any

import pytest

from tests.e2e.site import Site

LONG: dict[str, Any] = {"training": {"n_tokens": None, "epochs": 200}}
"""A cycle that would train for minutes."""


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"attribution": {"n_tokens": 10_000_000}}, "dataset_exhausted"),
        ({"evaluation": {"n_tokens": 10_000_000}}, "dataset_exhausted"),
        ({"training": {"n_tokens": 10_000_000}}, "dataset_exhausted"),
        ({"training": {"n_tokens": None, "batch_tokens": 1_000_000}}, "dataset_exhausted"),
    ],
)
def test_too_little_text_fails_within_seconds_with_the_counts(
    site: Site, overrides: dict[str, Any], code: str
) -> None:
    job = site.wait_until_over(site.submit(**overrides), seconds=60)
    assert (job["state"], job["error"]["code"]) == ("failed", code)
    assert "tokens" in job["error"]["message"]
    assert job["error"]["retryable"] is False


def test_a_missing_model_fails_within_seconds(site: Site) -> None:
    model = {"source": "local", "path": str(site.model.parent / "nowhere")}
    job = site.wait_until_over(site.submit(model=model), seconds=60)
    assert (job["state"], job["error"]["code"]) == ("failed", "model_not_found")
    assert job["state_reason"]


def test_a_model_that_cannot_be_read_fails_within_seconds(site: Site) -> None:
    broken = site.model.parent / "broken.gguf"
    broken.write_bytes(b"GGUF but no more")
    model = {"source": "local", "path": str(broken)}
    job = site.wait_until_over(site.submit(model=model), seconds=60)
    assert (job["state"], job["error"]["code"]) == ("failed", "model_unreadable")


def test_a_failed_cycle_skips_the_later_ones_and_is_not_tried_again(site: Site) -> None:
    job_id = site.submit(attribution={"n_tokens": 10_000_000})
    site.wait_until_over(job_id)
    cycles = site.get(f"/distillations/{job_id}/cycles")["items"]
    assert [cycle["state"] for cycle in cycles] == ["failed", "skipped", "skipped"]
    assert cycles[0]["n_attempts"] == 1


def test_cancelling_a_running_cycle_ends_its_trainer_within_10_s(site: Site) -> None:
    job_id = site.submit(**LONG)
    _wait_for_phase(site, job_id, "training")
    (trainer,) = site.trainers()
    asked_at = time.monotonic()
    answer = site.http.post(f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelling")
    assert site.wait_until_over(job_id, seconds=30)["state"] == "cancelled"
    assert time.monotonic() - asked_at < 10
    assert not trainer.is_running()
    again = site.http.post(f"/jobs/{job_id}/cancel")
    assert again.json()["state"] == "cancelled"


@pytest.mark.parametrize("victim", ["trainer", "supervisor", "worker"])
def test_a_kill_in_the_middle_of_a_cycle_costs_time_and_nothing_else(site: Site, victim: str) -> None:
    settings: dict[str, Any] = {"n_cycles": 2, "seed": 11, "training": {"n_tokens": 65_536, "epochs": 2}}
    undisturbed = _weights(site, site.succeed(**settings))

    killed = site.submit(**settings)
    _wait_for_phase(site, killed, "training")
    (trainer,) = site.trainers()
    supervisor = trainer.parent()
    assert supervisor is not None
    device = "cpu:0" if supervisor.pid == site.processes["cpu:0"].pid else "cpu:1"
    assert supervisor.pid == site.processes[device].pid
    for process in {"trainer": [trainer], "supervisor": [supervisor], "worker": [supervisor, trainer]}[
        victim
    ]:
        process.kill()
    if victim != "trainer":
        site.processes[device].wait(10)
        site.start_process(device, ["-m", "worker", "--device", device])
    assert site.wait_until_over(killed)["state"] == "succeeded"
    outcomes = [attempt["outcome"] for attempt in site.get(f"/jobs/{killed}/logs")["items"]]
    assert sorted(outcomes) == ["crashed", "succeeded", "succeeded"]
    assert _weights(site, killed) == undisturbed
    lineage = site.get(f"/distillations/{killed}/lineage", limit=200)["items"]
    assert len({latent["latent_id"] for latent in lineage}) == len(lineage)
    assert site.trainers() == []


def _wait_for_phase(site: Site, job_id: str, phase: str) -> None:
    deadline = time.monotonic() + 60
    while site.get(f"/jobs/{job_id}")["progress"]["phase"] != phase:
        assert time.monotonic() < deadline, f"{job_id} never reached {phase}"
        time.sleep(0.05)


def _weights(site: Site, job_id: str) -> dict[tuple[int, str], str]:
    stored = site.get(f"/jobs/{job_id}/artifacts")["items"]
    return {(a["cycle_index"], a["name"]): a["sha256"] for a in stored if a["name"].endswith(".safetensors")}
