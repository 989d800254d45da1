"""Rows that tests start from: owners, workers, jobs with their cycles, and lineages of small cores.

Every test plants under a resource class of its own, so tests share one database without seeing each other.
"""

from typing import Any
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION, SPLIT_SALT
from dmsae.service.ids import new_id
from dmsae.service.results import CycleResult, Lineage
from dmsae.service.states import Held
from dmsae.service.tables import Attempt, Cycle, Event, Job, Owner, Worker

CONFIG: dict[str, Any] = {
    "n_cycles": 3,
    "seed": 7,
    "time_limit_s": None,
    "model": {"source": "builtin", "name": "smollm2-135m"},
    "selection": {"attribution_fraction": 0.9, "max_core": None, "convergence_tolerance": 0.02},
}


PROVENANCE: dict[str, Any] = {
    "model_revision": "revision-1",
    "hook": "model.layers.10:resid_post",
    "dtype": "float32",
    "special_ids": [0, 1, 2],
    "split": [0.8, 0.1, 0.1],
    "split_salt": SPLIT_SALT,
    "rms": 2.5,
    "median_norm": 14.0,
    "d_model": 576,
}


def fresh_class() -> str:
    return f"cpu-{uuid4().hex[:8]}"


def plant_owner(session: Session) -> str:
    owner_id = new_id("owner")
    session.add(Owner(id=owner_id, name=owner_id))
    session.flush()
    return owner_id


def plant_worker(session: Session, resource_class: str, *, device: str = "cpu:0") -> str:
    worker_id = new_id("worker")
    session.add(Worker(id=worker_id, hostname="here", device=device, resource_class=resource_class))
    session.flush()
    return worker_id


def plant_job(
    session: Session, resource_class: str, *, owner_id: str | None = None, n_cycles: int = 3, **fields: Any
) -> str:
    """Plant a queued job; its first cycle is queued, the others wait."""
    job_id = new_id("job")
    config = {**CONFIG, "n_cycles": n_cycles, **fields.pop("config", {})}
    owner_id = owner_id or plant_owner(session)
    rank = {"high": 0, "normal": 1, "low": 2}[fields.get("priority", "normal")]
    spec_version = fields.pop("spec_version", SPEC_VERSION)
    session.add(
        Job(
            id=job_id,
            kind="distillation",
            owner_id=owner_id,
            spec_version=spec_version,
            config=config,
            **fields,
        )
    )
    session.flush()
    for index in range(n_cycles):
        session.add(
            Cycle(
                id=new_id("cycle"),
                job_id=job_id,
                index=index,
                owner_id=owner_id,
                priority_rank=rank,
                state="waiting" if index else "queued",
                resource_class=resource_class,
                spec_version=spec_version,
                queued_at=None if index else func.clock_timestamp(),
            )
        )
    session.flush()
    return job_id


def job_state(session: Session, job_id: str) -> str:
    return session.scalars(select(Job.state).where(Job.id == job_id)).one()


def cycle_states(session: Session, job_id: str) -> list[str]:
    return list(session.scalars(select(Cycle.state).where(Cycle.job_id == job_id).order_by(Cycle.index)))


def outcomes(session: Session, job_id: str) -> list[str | None]:
    return list(
        session.scalars(
            select(Attempt.outcome)
            .join(Cycle, Cycle.id == Attempt.cycle_id)
            .where(Cycle.job_id == job_id)
            .order_by(Cycle.index, Attempt.number)
        )
    )


def event_kinds(session: Session, job_id: str) -> list[str]:
    return list(session.scalars(select(Event.kind).where(Event.job_id == job_id).order_by(Event.seq)))


def core_entry(held: Held, core_index: int, sae_index: int, *, parent: dict[str, Any] | None = None) -> Any:
    """One entry of lineage.json: new in this cycle, or kept from `parent` (an entry of the core given)."""
    origin = (
        (held.job_id, held.cycle_index, sae_index)
        if parent is None
        else (parent["origin_job_id"], parent["origin_cycle"], parent["origin_index"])
    )
    return {
        "core_index": core_index,
        "sae_index": sae_index,
        "latent_id": "{}.{}.{}".format(*origin),
        "origin_job_id": origin[0],
        "origin_cycle": origin[1],
        "origin_index": origin[2],
        "parent_core_index": None if parent is None else parent["core_index"],
        "times_selected": 1 if parent is None else parent["times_selected"] + 1,
        "score": 1.0 / (core_index + 1),
        "score_se": None,
        "share": 0.25,
        "rank": core_index,
        "encoder_norm": 1.0,
        "density": 0.1,
        "decoder_cosine": None if parent is None else 0.9,
        "firing_jaccard": None if parent is None else 0.8,
        "is_borderline": False,
    }


def make_lineage(held: Held, given: list[Any], *, kept: list[int], new: list[int]) -> dict[str, Any]:
    """A lineage that keeps the places `kept` of the core given and adds new latents at rows `new`."""
    core = [core_entry(held, i, place, parent=given[place]) for i, place in enumerate(kept)]
    core += [core_entry(held, len(kept) + i, row) for i, row in enumerate(new)]
    dropped = [
        {"core_index": e["core_index"], "latent_id": e["latent_id"], "sae_index": e["core_index"]}
        for e in given
        if e["core_index"] not in kept
    ]
    return {"cycle_index": held.cycle_index, "core": core, "dropped": dropped}


def as_result(lineage: dict[str, Any], **metrics: Any) -> CycleResult:
    return CycleResult(metrics, Lineage.model_validate(lineage), PROVENANCE)
