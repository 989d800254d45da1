"""How do the experiment's jobs get done? Submitted once over HTTP, found again by name, waited for."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from dmsae.client.client import Answer, Client
from dmsae.errors import DmsaeError
from experiments.plan import Distilling, Plan, Training

POLL_S = 5.0
ENDED = ("succeeded", "failed", "cancelled")
LOST = ("failed", "cancelling", "cancelled")
"""Of a job in such a state another one is submitted."""

Tell = Callable[[str], None]
Key = TypeVar("Key")


def run(
    client: Client, plan: Plan, tell: Tell, *, poll_s: float = POLL_S
) -> tuple[dict[Distilling, Answer], dict[Training, Answer]]:
    """Run everything that has not run yet; give the jobs of distillations and trainings.

    Raises: DmsaeError where a job did not succeed.
    """
    before = _by_name(client, plan)
    for core_sparsity in plan.core_sparsities:
        request = plan.chains_request(core_sparsity)
        if request["name"] not in before:
            client.distillations.create(request)
    submitted = {
        distilling: _submit(client, "/distillations", plan.distillation_request(distilling), before)
        for distilling in plan.distillations()
    }
    distilled = _wait(client, plan, submitted, tell, poll_s=poll_s)
    ids = {distilling: job["id"] for distilling, job in distilled.items()}
    submitted_trainings = {}
    for training in plan.trainings():
        config = submitted[training.distilling]["config"]
        epochs = config["training"]["epochs"] * config["n_cycles"]
        request = plan.training_request(training, ids, epochs=epochs)
        submitted_trainings[training] = _submit(client, "/trainings", request, before)
    trained = _wait(client, plan, submitted_trainings, tell, poll_s=poll_s)
    return distilled, trained


def wait_for_chains(client: Client, plan: Plan, tell: Tell, *, poll_s: float = POLL_S) -> Iterator[Answer]:
    """Give each group of chains, once its match is done.

    Raises: DmsaeError where one of its jobs did not succeed.
    """
    for group_id in sorted({job["group_id"] for job in _jobs(client, plan) if job["group_id"]}):
        while True:
            group = client.request("GET", f"/groups/{group_id}")
            _wait(client, plan, {job["id"]: job for job in group["jobs"]}, tell, poll_s=poll_s)
            if group["match"] is not None:
                yield group
                break
            if len(group["jobs"]) > plan.n_chains and all(job["state"] in ENDED for job in group["jobs"]):
                raise DmsaeError(f"group {group_id} ended without a match")


def _jobs(client: Client, plan: Plan) -> Iterator[Answer]:
    return client.jobs.find(tag=plan.tag)


def _by_name(client: Client, plan: Plan) -> dict[str, Answer]:
    """Give what was submitted before and need not be again."""
    return {job["name"]: job for job in _jobs(client, plan) if job["state"] not in LOST}


def _submit(client: Client, path: str, request: Mapping[str, Any], before: Mapping[str, Answer]) -> Answer:
    found = before.get(request["name"])
    return client.request("POST", path, body=request) if found is None else client.jobs.get(found["id"])


def _wait(
    client: Client, plan: Plan, submitted: Mapping[Key, Answer], tell: Tell, *, poll_s: float
) -> dict[Key, Answer]:
    """Wait until jobs have ended, saying how many have."""
    ids = {job["id"] for job in submitted.values()}
    n_told = -1
    while True:
        jobs = {job["id"]: job for job in _jobs(client, plan) if job["id"] in ids}
        n_ended = sum(job["state"] in ENDED for job in jobs.values())
        if n_ended != n_told:
            tell(f"{n_ended} of {len(ids)} jobs have ended")
            n_told = n_ended
        if n_ended == len(ids):
            break
        time.sleep(poll_s)
    _require_success(jobs.values())
    return {key: jobs[job["id"]] for key, job in submitted.items()}


def _require_success(jobs: Iterable[Answer]) -> None:
    for job in jobs:
        if job["state"] != "succeeded":
            raise DmsaeError(f"{job['name']} {job['state']}: {job['state_reason']}")
