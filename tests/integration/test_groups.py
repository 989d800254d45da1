"""Chains end one after the other or at once, and exactly one match compares them."""

import contextlib
import threading
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from dmsae.config import MatchSpec
from dmsae.errors import Conflict, Forbidden, NotFound, StaleAttempt
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job
from dmsae.service.groups import cancel_group, view_group
from dmsae.service.recording import record_cancelled, record_failure, record_success
from dmsae.service.results import Match, MatchResult
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle, Job
from tests.finished import claim_of
from tests.planting import event_kinds, make_lineage, plant_worker
from tests.serving import served
from tests.training_rows import record, submit_distillations


class Chains:
    """A group of chains of one cycle each, all of them claimed."""

    def __init__(self, database: Database, n_chains: int, *, worker_id: str | None = None) -> None:
        self.database = database
        views = submit_distillations(database, n_cycles=1, chains=n_chains, name="consensus", priority="high")
        self.ids = [view.job.id for view in views]
        self.owner_id = views[0].job.owner_id
        self.group_id = str(views[0].job.group_id)
        self.worker_id = worker_id or database.run(lambda session: plant_worker(session, "cpu"))
        self.claims = {claim.job_id: claim for claim in (self.claim() for _ in self.ids)}

    def claim(self) -> Claim:
        return claim_of(self.database, self.worker_id)

    def finish(self, index: int) -> None:
        claim = self.claims[self.ids[index]]
        record(self.database, claim, make_lineage(claim, [], kept=[], new=[3, 5]))

    def matches(self) -> list[str]:
        with self.database.session_scope() as session:
            return list(session.scalars(select(Job.id).where(Job.kind == "probe")))

    def state(self) -> str:
        with self.database.session_scope() as session:
            return view_group(session, self.group_id).state

    def delete(self, index: int) -> None:
        job_id = self.ids[index]
        self.database.run(lambda session: delete_job(session, job_id, owner_id=self.owner_id))


def found_by_both(chains: Chains) -> MatchResult:
    reproduced = [[f"{job_id}.0.3"] for job_id in chains.ids]
    pair = {"a": 0, "b": 1, "matches": [{"a_index": 0, "b_index": 0}], "best_cosine_random": 0.2}
    told: dict[str, Any] = {
        "cores": [f"{job_id}.0" for job_id in chains.ids],
        "n_latents": [2, 2],
        "decoder_cosine": 0.7,
        "firing_correlation": 0.5,
        "pairs": [pair],
        "reproduced": reproduced,
        "share_reproduced": [0.5, 0.5],
    }
    return MatchResult({"seconds": 1.5}, Match.model_validate(told))


def test_the_match_waits_for_the_last_chain_and_is_told_with_the_group(
    database: Database, settings: Settings
) -> None:
    chains = Chains(database, 2)
    configs = [claim.spec["config"] for claim in chains.claims.values()]
    assert {(c["chains"], c["chain_index"], c["seed"]) for c in configs} == {(2, 0, 0), (2, 1, 1)}
    chains.finish(1)
    assert (chains.matches(), chains.state()) == ([], "running")
    chains.finish(0)
    (match_id,) = chains.matches()
    assert chains.state() == "running"
    claim = chains.claim()
    spec = MatchSpec.model_validate(claim.spec)
    assert [ref.folder_name for ref in spec.config.cores] == [f"{job_id}.0" for job_id in chains.ids]
    assert {file.name.partition("/")[0] for file in claim.source_files} == {f"{i}.0" for i in chains.ids}
    with pytest.raises(Conflict, match=match_id):
        chains.delete(0)
    file = StoredFile("match.json", f"{claim.object_prefix}match.json", 9, "0" * 64)
    result = found_by_both(chains)
    outcome = database.run(lambda s: record_success(s, claim, artifacts=(file,), result=result))
    assert outcome == "succeeded"
    with database.session_scope() as session:
        cycle = session.scalars(select(Cycle).where(Cycle.job_id == match_id)).one()
        assert (cycle.state, cycle.output_core_id) == ("succeeded", None)
        assert event_kinds(session, match_id)[-1] == "job_succeeded"
    with served(settings) as api:
        check_group(api, chains, match_id)


def check_group(api: httpx.Client, chains: Chains, match_id: str) -> None:
    group = api.get(f"/groups/{chains.group_id}").json()
    assert group["state"] == "succeeded"
    assert [job["id"] for job in group["jobs"]] == [*chains.ids, match_id]
    assert [job["point"].get("chain_index") for job in group["jobs"]] == [0, 1, None]
    assert {job["priority"] for job in group["jobs"]} == {"high"}
    assert group["match"]["job_id"] == match_id
    assert group["match"]["share_reproduced"] == [0.5, 0.5]
    assert group["match"]["pairs"] == [{"a": 0, "b": 1, "best_cosine_random": 0.2, "n_matches": 1}]
    artifacts = api.get(f"/jobs/{match_id}/artifacts").json()["items"]
    assert [artifact["name"] for artifact in artifacts] == ["match.json"]
    assert api.get(f"/jobs/{match_id}").json()["kind"] == "probe"


def test_chains_that_end_at_the_same_time_are_matched_once(database: Database) -> None:
    chains = Chains(database, 4)
    barrier = threading.Barrier(4)

    def finish(index: int) -> None:
        barrier.wait(10)
        chains.finish(index)

    threads = [threading.Thread(target=finish, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(chains.matches()) == 1


def test_chains_of_which_one_failed_or_is_gone_are_not_matched(database: Database) -> None:
    chains = Chains(database, 2)
    failing = chains.claims[chains.ids[0]]
    database.run(lambda s: record_failure(s, failing, code="degenerate_scores", message="All are 0."))
    chains.finish(1)
    assert (chains.matches(), chains.state()) == ([], "failed")

    others = Chains(database, 2, worker_id=chains.worker_id)
    others.finish(0)
    others.delete(0)
    others.finish(1)
    assert (others.matches(), others.state()) == ([], "succeeded")
    with database.session_scope() as session:
        assert event_kinds(session, others.ids[1])[-1] == "match_skipped"


def test_a_group_is_cancelled_as_one_and_what_had_finished_keeps_its_figures(
    database: Database, settings: Settings
) -> None:
    chains = Chains(database, 3)
    claim = chains.claims[chains.ids[1]]
    record(database, claim, make_lineage(claim, [], kept=[], new=[3]), explained_variance=0.7, l0=12.0)
    with served(settings) as api:
        before = api.get(f"/groups/{chains.group_id}").json()
        assert (before["states"], before["n_cycles"], before["n_cycles_done"]) == (
            {"running": 2, "succeeded": 1},
            3,
            1,
        )
        assert before["jobs"][0]["figures"] is None
        figures = before["jobs"][1]["figures"]
        told = (figures["cycle_index"], figures["explained_variance"], figures["l0"], figures["lr_kept"])
        assert told == (0, 0.7, 12.0, None)
    with pytest.raises(Forbidden, match=chains.group_id):
        database.run(lambda session: cancel_group(session, chains.group_id, owner_id="owner_else"))
    for _ in range(2):
        view = database.run(lambda s: cancel_group(s, chains.group_id, owner_id=chains.owner_id))
        assert [job.job.state for job in view.jobs] == ["cancelling", "succeeded", "cancelling"]
        assert view.state == "cancelling"
    with database.session_scope() as session:
        assert event_kinds(session, chains.ids[0]).count("job_cancelling") == 1
    for index in (0, 2):
        held = chains.claims[chains.ids[index]]
        database.run(lambda s, held=held: record_cancelled(s, held, confirmed_by="supervisor"))
    assert (chains.state(), chains.matches()) == ("cancelled", [])


def test_a_group_that_nobody_made_cannot_be_cancelled(database: Database) -> None:
    with pytest.raises(NotFound, match="group_none"):
        database.run(lambda session: cancel_group(session, "group_none", owner_id=None))


def test_a_match_that_the_last_chain_queues_meanwhile_is_cancelled_too(database: Database) -> None:
    chains = Chains(database, 2)
    chains.finish(1)
    barrier = threading.Barrier(2)

    def finish() -> None:
        barrier.wait(10)
        with contextlib.suppress(StaleAttempt):
            chains.finish(0)

    thread = threading.Thread(target=finish)
    thread.start()
    barrier.wait(10)
    database.run(lambda s: cancel_group(s, chains.group_id, owner_id=None))
    thread.join(30)
    database.run(lambda s: cancel_group(s, chains.group_id, owner_id=None))
    with database.session_scope() as session:
        states = set(session.scalars(select(Job.state).where(Job.group_id == chains.group_id)))
    assert states <= {"succeeded", "cancelled"}
