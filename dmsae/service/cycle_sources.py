"""Which finished cycles does a cycle start from, beside the core of the cycle before it?

A training's is the cycle whose core it is given; a match's and a probe's are those whose cores it asks about.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, func, insert, or_, select
from sqlalchemy.orm import Session, aliased

from dmsae.probe_config import is_probe
from dmsae.service.source_tables import CycleSource
from dmsae.service.tables import Artifact, Cycle

CORE_FOLDER, SAE_FACTS = "core/", "sae/cfg.json"
"""What a trainer is given of a source that it only asks about: its core, and what the SAE says of itself."""
WHOLE_FILES = ("scores.safetensors", "lineage.json")
SAE_FOLDER = "sae/"
"""What a training is given besides: the SAE, its scores and who its latents are."""


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
    user = aliased(Cycle)
    is_wanted = or_(
        Artifact.name.startswith(CORE_FOLDER),
        Artifact.name == SAE_FACTS,
        and_(user.selects_core, Artifact.name.in_(WHOLE_FILES)),
        and_(user.selects_core, Artifact.name.startswith(SAE_FOLDER)),
    )
    return session.execute(
        select(name, Artifact.object_key, Artifact.size_bytes, Artifact.sha256)
        .join(CycleSource, CycleSource.source_cycle_id == Artifact.cycle_id)
        .join(Cycle, Cycle.id == CycleSource.source_cycle_id)
        .join(user, user.id == CycleSource.cycle_id)
        .where(CycleSource.cycle_id == cycle_id, is_wanted)
        .order_by(Cycle.job_id, Cycle.index, Artifact.name)
    ).all()


def make_spec(job_id: str, cycle_index: int, *, spec_version: int, config: dict[str, Any]) -> dict[str, Any]:
    """Give what a trainer is handed: a `CycleSpec`, a `ProbeSpec`, or a `MatchSpec` that compares chains."""
    head = {"spec_version": spec_version, "job_id": job_id}
    if "cores" in config or is_probe(config):
        return {**head, "config": config}
    return {**head, "cycle_index": cycle_index, "config": config}
