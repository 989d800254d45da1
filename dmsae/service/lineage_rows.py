"""How does a selected core become rows? Identities, places, origins, and what was dropped.

A latent is named by where it was first learned, so a cycle that runs again writes the same names.
"""

from collections import Counter
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from dmsae.errors import CycleFailed
from dmsae.service.core_tables import CoreDrop
from dmsae.service.ids import new_id
from dmsae.service.results import CoreEntry, CycleResult, Lineage
from dmsae.service.states import Held
from dmsae.service.tables import Core, CoreLatent, CycleOrigin, Latent

PLACE = (
    "core_index",
    "sae_index",
    "times_selected",
    "score",
    "score_se",
    "share",
    "rank",
    "encoder_norm",
    "density",
    "decoder_cosine",
    "firing_jaccard",
    "is_borderline",
)


def write_core(
    session: Session, held: Held, result: CycleResult, *, input_core_id: str | None, seed: int | None
) -> str:
    """Write the core that a cycle selected, the identities and places of its latents, and its origins.

    Raises:
        CycleFailed: `internal_error`, the lineage contradicts itself or the core that the cycle was given.
    """
    lineage = result.lineage
    check_lineage(held, lineage, given=_given_core(session, input_core_id))
    core_id = new_id("core")
    session.execute(
        insert(Core).values(
            id=core_id,
            kind="selected",
            cycle_id=held.cycle_id,
            seed=seed,
            n_latents=len(lineage.core),
            object_prefix=f"{held.object_prefix}core/",
            provenance=result.provenance,
        )
    )
    ids = _write_identities(session, held, lineage)
    session.execute(
        insert(CoreLatent),
        [
            {
                "core_id": core_id,
                "latent_id": ids[entry.latent_id],
                "parent_core_id": None if entry.parent_core_index is None else input_core_id,
                "parent_core_index": entry.parent_core_index,
                **{name: getattr(entry, name) for name in PLACE},
            }
            for entry in lineage.core
        ],
    )
    _write_drops(session, held, lineage, ids)
    _write_origins(session, held, lineage)
    return core_id


def check_lineage(held: Held, lineage: Lineage, *, given: dict[int, str]) -> None:
    """Refuse a lineage that contradicts itself or the core given (place -> public id of the latent).

    Raises:
        CycleFailed: `internal_error`.
    """
    kept = {e.parent_core_index: e.latent_id for e in lineage.core if e.parent_core_index is not None}
    told = kept | {e.core_index: e.latent_id for e in lineage.dropped}
    new = [e for e in lineage.core if e.parent_core_index is None]
    n_kept = len(lineage.core) - len(new)
    problem = None
    if lineage.cycle_index != held.cycle_index:
        problem = f"it tells of cycle {lineage.cycle_index}"
    elif told != given or n_kept + len(lineage.dropped) != len(given):
        problem = "kept and dropped latents are not those of the core given"
    elif any(e.latent_id != f"{e.origin_job_id}.{e.origin_cycle}.{e.origin_index}" for e in lineage.core):
        problem = "an id differs from its origin"
    elif any(not _is_from_here(held, entry) for entry in new):
        problem = "a new latent has its origin elsewhere"
    if problem:
        message = f"The trainer's lineage of cycle {held.cycle_index} is wrong: {problem}."
        raise CycleFailed("internal_error", message)


def _is_from_here(held: Held, entry: CoreEntry) -> bool:
    origin = (entry.origin_job_id, entry.origin_cycle, entry.origin_index)
    return origin == (held.job_id, held.cycle_index, entry.sae_index)


def _given_core(session: Session, core_id: str | None) -> dict[int, str]:
    if core_id is None:
        return {}
    rows = session.execute(
        select(CoreLatent.core_index, Latent.public_id)
        .join(Latent, Latent.id == CoreLatent.latent_id)
        .where(CoreLatent.core_id == core_id)
    )
    return {row.core_index: row.public_id for row in rows}


def _write_identities(session: Session, held: Held, lineage: Lineage) -> dict[str, int]:
    """Insert new identities and update known ones, locked by id first; give public id -> id."""
    names = [entry.latent_id for entry in lineage.core]
    dropped = [entry.latent_id for entry in lineage.dropped]
    session.execute(
        select(Latent.id)
        .where(Latent.public_id.in_(names + dropped))
        .order_by(Latent.id)
        .with_for_update(key_share=True)
    ).all()
    statement = upsert(Latent)
    statement = statement.on_conflict_do_update(
        index_elements=["origin_job_id", "origin_cycle", "origin_index"],
        set_={
            "times_selected": statement.excluded.times_selected,
            "last_index": statement.excluded.last_index,
            "last_share": statement.excluded.last_share,
            "max_share": func.greatest(Latent.max_share, statement.excluded.max_share),
            "dropped_at": None,
        },
        where=Latent.origin_job_id == held.job_id,
    )
    session.execute(statement, [_identity(held, entry) for entry in lineage.core])
    session.execute(
        update(Latent)
        .where(Latent.public_id.in_(dropped), Latent.origin_job_id == held.job_id)
        .values(dropped_at=held.cycle_index)
        .execution_options(synchronize_session=False)
    )
    rows = session.execute(select(Latent.public_id, Latent.id).where(Latent.public_id.in_(names + dropped)))
    return {row.public_id: row.id for row in rows}


def _identity(held: Held, entry: CoreEntry) -> dict[str, Any]:
    return {
        "public_id": entry.latent_id,
        "origin_job_id": entry.origin_job_id,
        "origin_cycle": entry.origin_cycle,
        "origin_index": entry.origin_index,
        "times_selected": entry.times_selected,
        "last_index": held.cycle_index,
        "last_share": entry.share,
        "max_share": entry.share,
    }


def _write_drops(session: Session, held: Held, lineage: Lineage, ids: dict[str, int]) -> None:
    measured = ("core_index", "sae_index", "score", "share", "rank")
    rows = [
        {
            "cycle_id": held.cycle_id,
            "latent_id": ids[entry.latent_id],
            **{name: getattr(entry, name) for name in measured},
        }
        for entry in lineage.dropped
    ]
    if rows:
        session.execute(insert(CoreDrop), rows)


def _write_origins(session: Session, held: Held, lineage: Lineage) -> None:
    counts = Counter((entry.origin_job_id, entry.origin_cycle) for entry in lineage.core)
    session.execute(
        insert(CycleOrigin),
        [
            {
                "cycle_id": held.cycle_id,
                "origin_job_id": job_id,
                "origin_cycle": cycle,
                "n_latents": n_latents,
            }
            for (job_id, cycle), n_latents in sorted(counts.items())
        ],
    )
