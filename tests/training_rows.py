"""Trainings as a worker would leave them: the core that they were given, and what they selected."""

from typing import Any

from dmsae.service import keys
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.database import Database
from dmsae.service.planning import plan_distillations, plan_trainings
from dmsae.service.progress import JobView
from dmsae.service.recording import record_success
from dmsae.service.requests import DistillationRequest, TrainingRequest
from dmsae.service.results import CycleResult, Lineage
from dmsae.service.submitting import submit
from tests.planting import PROVENANCE, core_entry, make_lineage

FILES = (
    "core/core.json",
    "core/core.safetensors",
    "lineage.json",
    "metrics.json",
    "sae/cfg.json",
    "scores.safetensors",
)


def submit_distillations(database: Database, **body: Any) -> list[JobView]:
    request = DistillationRequest.model_validate({"preset": "demo", **body})
    plans = plan_distillations(request, allowed_roots=())
    owner = database.run(lambda session: keys.ensure_owner(session, "ada"))
    return database.run(lambda session: submit(session, owner.id, request=request, plans=plans))


def submit_trainings(database: Database, **body: Any) -> list[JobView]:
    request = TrainingRequest.model_validate(body)
    owner = database.run(lambda session: keys.ensure_owner(session, "ada"))
    plans = database.run(lambda session: plan_trainings(session, request, allowed_roots=()))
    return database.run(lambda session: submit(session, owner.id, request=request, plans=plans))


def record(database: Database, claim: Claim, lineage: dict[str, Any], **metrics: Any) -> str:
    """Record a cycle with every file that a trainer leaves."""
    files = tuple(StoredFile(name, claim.object_prefix + name, 4, "0" * 64) for name in FILES)
    result = CycleResult(metrics, Lineage.model_validate(lineage), PROVENANCE)
    return database.run(lambda session: record_success(session, claim, artifacts=files, result=result))


def given_entry(core_index: int, latent_id: str, **fields: Any) -> dict[str, Any]:
    """One latent of the core given; without a parent and unmeasured unless told otherwise."""
    job_id, cycle, row = latent_id.rsplit(".", 2)
    origin = {"origin_job_id": job_id, "origin_cycle": int(cycle), "origin_index": int(row)}
    places = ("parent_core_index", "sae_index", "score", "share", "rank", "density", "encoder_norm")
    unmeasured = dict.fromkeys(places)
    kind = {"origin_kind": "learned"}
    return {"core_index": core_index, "latent_id": latent_id, **origin, **kind, **unmeasured, **fields}


def training_lineage(
    claim: Claim, given: list[dict[str, Any]], *, kept: list[int], new: list[int], **about: Any
) -> dict[str, Any]:
    """The lineage of a training that keeps the places `kept` of its core and adds the rows `new`."""
    parents = [
        core_entry(claim, entry["core_index"], entry["core_index"])
        | {name: entry[name] for name in ("latent_id", "origin_job_id", "origin_cycle", "origin_index")}
        | {"times_selected": int(entry["origin_kind"] == "learned")}
        for entry in given
    ]
    told = {"kind": "selected", "seed": None, "overlap": 1.0, "is_weak_control": False, **about}
    return {**make_lineage(claim, parents, kept=kept, new=new), "given": {**told, "core": given}}
