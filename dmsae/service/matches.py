"""Which latents did several chains find? The match that compares their final cores, as a job of its own.

It is made in the transaction that records the last chain, so nothing between the two can lose it.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION, MatchConfig, RunConfig
from dmsae.service.cache_keys import cache_key
from dmsae.service.cycle_sources import note_sources
from dmsae.service.database import wake_after_commit
from dmsae.service.events import append_event
from dmsae.service.ids import new_id
from dmsae.service.results import Match
from dmsae.service.states import Held, tell
from dmsae.service.tables import Cycle, Job

GROUP_LOCK = 0x646D73_04
"""Key of the advisory locks, one a group, under which the last of its chains is told from the others."""


def queue_match(session: Session, held: Held) -> None:
    """Queue the match of a group's chains, if the job whose last cycle was just recorded is the last of them.

    Where one was deleted meanwhile there is none, and an event says so.

    Mutates: the match is a job of the same group and owner; its workers hear of it after the commit.
    """
    job = session.scalars(select(Job).where(Job.id == held.job_id)).one()
    if job.kind != "distillation" or job.group_id is None or job.config.get("chains", 1) == 1:
        return
    session.execute(select(func.pg_advisory_xact_lock(GROUP_LOCK, func.hashtext(job.group_id))))
    members = select(Job.kind, Job.state).where(Job.group_id == job.group_id)
    found = [tuple(row) for row in session.execute(members)]
    if set(found) != {("distillation", "succeeded")}:
        return
    chains = _hold_chains(session, job.group_id)
    if len(chains) < len(found):
        tell(session, held, "match_skipped", "A chain of this group was deleted: its cores are not compared.")
        return
    _submit_match(session, job, _final_cycles(session, chains))


def describe_match(match: Match) -> dict[str, Any]:
    """Give what of a match stands among metrics: of each pair how many latents match, not which."""
    pairs = [
        {name: value for name, value in pair.items() if name != "matches"}
        | {"n_matches": len(pair.get("matches", ()))}
        for pair in match.pairs
    ]
    return {**match.model_dump(), "pairs": pairs}


def _hold_chains(session: Session, group_id: str) -> Sequence[str]:
    """Lock the jobs of a group, so that none is deleted meanwhile; give those that are not deleted."""
    query = select(Job.id).where(Job.group_id == group_id, Job.deleted_at.is_(None))
    return session.scalars(query.order_by(Job.id).with_for_update(read=True)).all()


def _final_cycles(session: Session, job_ids: Sequence[str]) -> list[Cycle]:
    """Give the last finished cycle of each job, in the order of the jobs."""
    query = select(Cycle).where(Cycle.job_id.in_(job_ids), Cycle.state == "succeeded")
    finals = {cycle.job_id: cycle for cycle in session.scalars(query.order_by(Cycle.index))}
    return [finals[job_id] for job_id in job_ids]


def _submit_match(session: Session, chain: Job, finals: Sequence[Cycle]) -> None:
    shared = {name: chain.config[name] for name in RunConfig.model_fields if name in chain.config}
    refs = [{"job_id": final.job_id, "cycle_index": final.index} for final in finals]
    config = MatchConfig.model_validate({**shared, "cores": refs})
    match = Job(
        id=new_id("job"),
        kind="probe",
        owner_id=chain.owner_id,
        group_id=chain.group_id,
        priority=chain.priority,
        spec_version=SPEC_VERSION,
        name=chain.name,
        tags=chain.tags,
        config=config.model_dump(mode="json"),
    )
    before = finals[0]
    cycle = Cycle(
        id=new_id("cycle"),
        job_id=match.id,
        index=0,
        owner_id=chain.owner_id,
        priority_rank=before.priority_rank,
        state="queued",
        resource_class=before.resource_class,
        spec_version=SPEC_VERSION,
        cache_key=cache_key(config),
        selects_core=False,
        queued_at=func.now(),
    )
    session.add(match)
    session.flush()
    session.add(cycle)
    session.flush()
    note_sources(session, cycle.id, [final.id for final in finals])
    message = f"A match of {len(refs)} chains was queued."
    append_event(session, match.id, "job_queued", message, data={"n_chains": len(refs)})
    wake_after_commit(session, before.resource_class)
