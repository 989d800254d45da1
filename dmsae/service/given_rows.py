"""How does the core that a training was given become rows? Its latents keep who they are.

They are those of the referenced cycle's core, others of its SAE, or, as random directions, the training's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from dmsae.errors import CycleFailed
from dmsae.service.ids import new_id
from dmsae.service.results import CycleResult, Given, GivenEntry
from dmsae.service.source_tables import CycleSource
from dmsae.service.states import Held
from dmsae.service.tables import Core, CoreLatent, Cycle, Latent

PLACE = ("core_index", "sae_index", "score", "share", "rank", "encoder_norm", "density")
OWN_ROWS = "random_directions"
"""The kind of core whose latents have their origin in the training itself."""


class _Source(NamedTuple):
    """The cycle that a training refers to."""

    job_id: str
    cycle_index: int
    core_id: str


def write_given(session: Session, held: Held, result: CycleResult) -> str | None:
    """Write the core that a training's cycle was given, and give its id; None where it was given none.

    Kept columns of latents that were there before stay as they are: they are of their own job.

    Raises:
        CycleFailed: `internal_error`, what the trainer tells contradicts itself or the referenced cycle.
    """
    given, source = result.lineage.given, _find_source(session, held)
    if (given is None) != (source is None):
        raise _wrong(held, "it tells of a core given where there was none, or of none where there was one")
    if given is None or source is None:
        return None
    parents = _latents_of(session, source.core_id)
    _check(held, given, source=source, parents={place: name for place, (_, name) in parents.items()})
    ids = _write_identities(session, held, given, source)
    core_id = new_id("core")
    session.execute(
        insert(Core).values(
            id=core_id,
            kind=given.kind,
            given_cycle_id=held.cycle_id,
            seed=given.seed,
            n_latents=len(given.core),
            object_prefix=f"{held.object_prefix}given/",
            provenance=result.provenance,
            overlap=given.overlap,
            is_weak_control=given.is_weak_control,
        )
    )
    session.execute(insert(CoreLatent), [_place(core_id, entry, ids, source) for entry in given.core])
    return core_id


def _place(core_id: str, entry: GivenEntry, ids: dict[str, int], source: _Source) -> dict[str, Any]:
    return {
        "core_id": core_id,
        "latent_id": ids[entry.latent_id],
        "parent_core_id": None if entry.parent_core_index is None else source.core_id,
        "parent_core_index": entry.parent_core_index,
        **{name: getattr(entry, name) for name in PLACE},
    }


def _find_source(session: Session, held: Held) -> _Source | None:
    row = session.execute(
        select(Cycle.job_id, Cycle.index, Cycle.output_core_id)
        .join(CycleSource, CycleSource.source_cycle_id == Cycle.id)
        .where(CycleSource.cycle_id == held.cycle_id)
    ).one_or_none()
    return None if row is None or row[2] is None else _Source(row[0], row[1], row[2])


def _latents_of(session: Session, core_id: str) -> dict[int, tuple[int, str]]:
    rows = session.execute(
        select(CoreLatent.core_index, Latent.id, Latent.public_id)
        .join(Latent, Latent.id == CoreLatent.latent_id)
        .where(CoreLatent.core_id == core_id)
    )
    return {place: (latent_id, public_id) for place, latent_id, public_id in rows}


def _check(held: Held, given: Given, *, source: _Source, parents: dict[int, str]) -> None:
    entries = given.core
    problem = None
    if [entry.core_index for entry in entries] != list(range(len(entries))):
        problem = "the places of the core given are not 0, 1, 2, ..."
    elif len({entry.latent_id for entry in entries}) != len(entries):
        problem = "a latent of the core given stands there twice"
    elif any(e.latent_id != f"{e.origin_job_id}.{e.origin_cycle}.{e.origin_index}" for e in entries):
        problem = "an id of the core given differs from its origin"
    elif any(
        e.parent_core_index is not None and parents.get(e.parent_core_index) != e.latent_id for e in entries
    ):
        problem = f"a latent of the core given is another one in the core of {source.job_id}"
    if problem:
        raise _wrong(held, problem)


def _write_identities(session: Session, held: Held, given: Given, source: _Source) -> dict[str, int]:
    """Insert the identities that no core held before; give public id -> id of all."""
    names = [entry.latent_id for entry in given.core]
    known = _ids_of(session, names)
    new = [entry for entry in given.core if entry.latent_id not in known]
    for entry in new:
        is_own = given.kind == OWN_ROWS
        origin = (held.job_id, 0, entry.core_index) if is_own else (*source[:2], entry.sae_index)
        if (entry.origin_job_id, entry.origin_cycle, entry.origin_index) != origin:
            raise _wrong(held, "a latent of the core given has its origin elsewhere")
    if new:
        # another training may insert the same ones at the same time: all of them in one order
        new.sort(key=lambda entry: entry.latent_id)
        statement = upsert(Latent).on_conflict_do_nothing(index_elements=["public_id"])
        session.execute(statement, [_identity(entry) for entry in new])
    return _ids_of(session, names)


def _identity(entry: GivenEntry) -> dict[str, Any]:
    same = ("origin_job_id", "origin_cycle", "origin_index", "origin_kind")
    own = {name: getattr(entry, name) for name in same}
    return {"public_id": entry.latent_id, **own, "times_selected": 0}


def _ids_of(session: Session, names: Sequence[str]) -> dict[str, int]:
    rows = session.execute(select(Latent.public_id, Latent.id).where(Latent.public_id.in_(names)))
    return {row.public_id: row.id for row in rows}


def _wrong(held: Held, problem: str) -> CycleFailed:
    message = f"The trainer's lineage of cycle {held.cycle_index} is wrong: {problem}."
    return CycleFailed("internal_error", message)
