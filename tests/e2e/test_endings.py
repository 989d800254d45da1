"""How jobs end otherwise: what only the worker can see, cancelling, kills in the middle of a real cycle."""

import time
from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.conftest import TWIN
from tests.e2e.site import Site
from tests.faults.crew import in_full

LONG: dict[str, Any] = {"training": {"n_tokens": None, "epochs": 200}}
"""A cycle that would train for minutes."""


UNABLE: dict[str, tuple[dict[str, Any], str]] = {
    "too little text": ({"attribution": {"n_tokens": 10_000_000}}, "dataset_exhausted"),
    "missing model": ({"model": {"source": "local", "path": "nowhere"}}, "model_not_found"),
    "broken model": ({"model": {"source": "local", "path": "broken.gguf"}}, "model_unreadable"),
}
"""What only the worker can see, and the code under which it must tell; `unit/test_cycle.py` has more."""


@pytest.fixture(scope="module")
def failed(site: Site) -> dict[str, dict[str, Any]]:
    """A job for each, submitted together and over."""
    roots = site.model.parent
    (roots / "broken.gguf").write_bytes(b"GGUF but no more")
    job_ids = {}
    for name, (overrides, _) in UNABLE.items():
        model = overrides.get("model")
        placed = {"model": {**model, "path": str(roots / model["path"])}} if model else overrides
        job_ids[name] = site.submit(**placed)
    return {name: site.wait_until_over(job_id) for name, job_id in job_ids.items()}


@pytest.mark.parametrize("name", UNABLE)
def test_what_only_the_worker_can_see_fails_within_seconds_under_its_code(
    site: Site, failed: dict[str, dict[str, Any]], name: str
) -> None:
    job = failed[name]
    assert (job["state"], job["error"]["code"]) == ("failed", UNABLE[name][1])
    assert job["error"]["retryable"] is False
    assert job["state_reason"]
    (attempt,) = site.get(f"/jobs/{job['id']}/logs")["items"]
    opened, closed = (datetime.fromisoformat(attempt[when]) for when in ("opened_at", "closed_at"))
    assert (closed - opened).total_seconds() < 60


def test_too_little_text_is_told_with_the_counts(failed: dict[str, dict[str, Any]]) -> None:
    assert "tokens" in failed["too little text"]["error"]["message"]


def test_a_failed_cycle_skips_the_later_ones_and_is_not_tried_again(
    site: Site, failed: dict[str, dict[str, Any]]
) -> None:
    cycles = site.get(f"/distillations/{failed['too little text']['id']}/cycles")["items"]
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


@pytest.mark.parametrize(
    ("victim", "n_cycles"),
    [pytest.param("trainer", 1, marks=in_full), pytest.param("supervisor", 1, marks=in_full), ("worker", 2)],
)
def test_a_kill_in_the_middle_of_a_cycle_costs_time_and_nothing_else(
    site: Site, twins: list[str], victim: str, n_cycles: int
) -> None:
    killed = site.submit(**{**TWIN, "n_cycles": n_cycles})
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
    assert sorted(outcomes) == ["crashed"] + ["succeeded"] * n_cycles
    undisturbed = site.weights(twins[0])
    assert site.weights(killed) == {key: undisturbed[key] for key in undisturbed if key[0] < n_cycles}
    stored = Counter(artifact["name"] for artifact in site.get(f"/jobs/{killed}/artifacts")["items"])
    assert stored["manifest.json"] == stored["sae/sae_weights.safetensors"] == n_cycles
    lineage = site.get(f"/distillations/{killed}/lineage", limit=200)["items"]
    assert len({latent["latent_id"] for latent in lineage}) == len(lineage)
    assert site.trainers() == []


def _wait_for_phase(site: Site, job_id: str, phase: str) -> None:
    deadline = time.monotonic() + 60
    while site.get(f"/jobs/{job_id}")["progress"]["phase"] != phase:
        assert time.monotonic() < deadline, f"{job_id} never reached {phase}"
        time.sleep(0.05)
