"""Which finished cycles does a cycle start from, beside the core of the cycle before it?

A training's is the cycle whose core it is given, a match's are those whose cores it compares.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, insert, or_, select
from sqlalchemy.orm import Session

from dmsae.service.source_tables import CycleSource
from dmsae.service.tables import Artifact, Cycle

WHOLE_FILES = ("scores.safetensors", "lineage.json")
FOLDERS = ("sae/", "core/")
"""What a trainer is given of a source: the SAE, its core, its scores and who its latents are."""


def note_sources(session: Session, cycle_id: str, source_cycle_ids: Sequence[str]) -> None:
    """Note which cycles a cycle starts from, so that their jobs are not deleted before it has ended.

    The caller holds the rows of their jobs, and has seen that none is deleted.
    """
    for source_id in dict.fromkeys(source_cycle_ids):
        session.execute(insert(CycleSource).values(cycle_id=cycle_id, source_cycle_id=source_id))


def source_files(session: Session, cycle_id: str) -> Sequence[Row[str, str, int, str]]:
    """List the files of a cycle's sources as (name, object key, size, sha256).

    Names are those in `--sources`: `<job>.<cycle index>/<path in OUT>`.
    """
    name = func.concat(Cycle.job_id, ".", Cycle.index, "/", Artifact.name)
    is_wanted = or_(Artifact.name.in_(WHOLE_FILES), *(Artifact.name.startswith(part) for part in FOLDERS))
    return session.execute(
        select(name, Artifact.object_key, Artifact.size_bytes, Artifact.sha256)
        .join(CycleSource, CycleSource.source_cycle_id == Artifact.cycle_id)
        .join(Cycle, Cycle.id == CycleSource.source_cycle_id)
        .where(CycleSource.cycle_id == cycle_id, is_wanted)
        .order_by(Cycle.job_id, Cycle.index, Artifact.name)
    ).all()


def make_spec(job_id: str, cycle_index: int, *, spec_version: int, config: dict[str, Any]) -> dict[str, Any]:
    """Give what a trainer is handed: a `CycleSpec`, or a `MatchSpec` where cores are to be compared."""
    head = {"spec_version": spec_version, "job_id": job_id}
    return (
        {**head, "config": config}
        if "cores" in config
        else {**head, "cycle_index": cycle_index, "config": config}
    )
