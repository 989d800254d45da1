"""How do the experiment's jobs get done? Submitted once over HTTP, found again by name, waited for."""

import time
from collections.abc import Callable, Iterator

from dmsae.client.client import Answer, Client
from dmsae.errors import DmsaeError
from experiments.plan import Distilling, Plan, Training

POLL_S = 5.0
ENDED = ("succeeded", "failed", "cancelled")
Tell = Callable[[str], None]


def run(client: Client, plan: Plan, tell: Tell) -> tuple[dict[Distilling, Answer], dict[Training, Answer]]:
    """Run everything that has not run yet; give all jobs.

    Raises: DmsaeError where a job did not succeed.
    """
    for core_sparsity in plan.core_sparsities:
        if not list(client.jobs.find(tag=f"{plan.tag}-chains")):
            client.distillations.create(plan.chains_request(core_sparsity))
    distilled = {}
    for distilling in plan.distillations():
        request = plan.distillation_request(distilling)
        distilled[distilling] = _find(client, plan, distilling.label) or client.distillations.create(request)
    _wait(client, plan.tag, tell)
    ids = {distilling: job["id"] for distilling, job in distilled.items()}
    trained = {}
    for training in plan.trainings():
        job = client.jobs.get(ids[training.distilling])
        epochs = job["config"]["training"]["epochs"] * job["config"]["n_cycles"]
        request = plan.training_request(training, ids, epochs=epochs)
        found = _find(client, plan, training.label)
        trained[training] = found or client.request("POST", "/trainings", body=request)
    _wait(client, plan.tag, tell)
    _wait(client, f"{plan.tag}-chains", tell)
    return (
        {distilling: client.jobs.get(job["id"]) for distilling, job in distilled.items()},
        {training: client.jobs.get(job["id"]) for training, job in trained.items()},
    )


def chain_groups(client: Client, plan: Plan) -> Iterator[Answer]:
    """Give each group of chains with its match."""
    groups = {job["group_id"] for job in client.jobs.find(tag=f"{plan.tag}-chains")}
    for group_id in sorted(groups):
        yield client.request("GET", f"/groups/{group_id}")


def _find(client: Client, plan: Plan, label: str) -> Answer | None:
    """Give the job of that name that ran, runs or waits."""
    for job in client.jobs.find(tag=plan.tag):
        if job["name"] == label and job["state"] not in ("failed", "cancelled", "cancelling"):
            return job
    return None


def _wait(client: Client, tag: str, tell: Tell) -> None:
    told = -1
    while True:
        jobs = list(client.jobs.find(tag=tag))
        n_ended = sum(job["state"] in ENDED for job in jobs)
        if n_ended != told:
            tell(f"{tag}: {n_ended} of {len(jobs)} jobs have ended")
            told = n_ended
        if n_ended == len(jobs):
            break
        time.sleep(POLL_S)
    for job in jobs:
        if job["state"] == "failed":
            raise DmsaeError(f"{job['name']} failed: {job['state_reason']}")
