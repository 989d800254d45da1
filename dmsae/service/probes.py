"""How does a request for a probe become a job? Which core it asks about, what is inherited, what is refused.

A probe is a job of one cycle that selects no core: it waits, is claimed, retried and cancelled as any other.
What it found stands among the metrics of its cycle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION, RunConfig
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.probe_config import (
    AnyProbeConfig,
    CoreMatchConfig,
    OtherCycle,
    OtherFolder,
    OtherObjects,
)
from dmsae.service.allowed_paths import allowed_path, check_text_paths
from dmsae.service.cycle_sources import note_sources
from dmsae.service.database import wake_after_commit
from dmsae.service.events import append_event
from dmsae.service.given_cores import GivenCore, find_given, find_named
from dmsae.service.ids import new_id
from dmsae.service.jobs import find_job
from dmsae.service.known_models import ModelFacts, find_facts
from dmsae.service.objects import ObjectStore
from dmsae.service.probe_memory import peak_of_probe
from dmsae.service.probe_requests import (
    OtherPublished,
    ProbeRequest,
    build_config,
    refuse_foreign,
)
from dmsae.service.progress import JobView, view_jobs
from dmsae.service.queue_control import require_room
from dmsae.service.requests import PRIORITY_RANKS, shown
from dmsae.service.submitting import RESOURCE_CLASSES
from dmsae.service.tables import CoreLatent, Cycle, Job, Latent
from dmsae.service.text_objects import named_objects, pin_other
from dmsae.service.uploads import note_use
from dmsae.sources import PublishedCore, RequestedCore, SelectedCore

DEFAULT_TOKENS = 10_000
"""On which a match compares firing, unless told otherwise."""
SAYS = {
    "logit_lens": "A logit lens of a core was queued.",
    "match": "A match of a core with other latents was queued.",
    "prompt": "A prompt for a core was queued.",
}


@dataclass(frozen=True)
class ProbePlan:
    """One probe as it would be submitted."""

    config: AnyProbeConfig
    facts: ModelFacts
    """What is known of its model."""
    sources: tuple[GivenCore, ...]
    """The cycles whose stored files it reads; that of the core first."""

    @property
    def n_core(self) -> int:
        """Latents of the core that is asked about."""
        return self.sources[0].n_selected

    @property
    def memory_bytes(self) -> int | None:
        """What it takes of its device at most; None where that is not known."""
        n_other = self.sources[1].n_selected if len(self.sources) > 1 else None
        return peak_of_probe(self.config, self.facts, n_core=self.n_core, n_other=n_other)


def plan_probe(session: Session, request: ProbeRequest, *, allowed_roots: Sequence[Path]) -> ProbePlan:
    """Give the probe that a request asks for; what it leaves out is as in the job of the core.

    Raises:
        InvalidConfig: with every setting that is missing or cannot work, and where a core is not there.
    """
    refuse_foreign(request)
    given = _find(session, request.core.requested, "core")
    shared = {name: given.config[name] for name in RunConfig.model_fields if name in given.config}
    settings = {**shared, "time_limit_s": None, **request.settings, "core": _named(given)}
    if request.kind == "match":
        n_tokens = request.n_tokens or min(DEFAULT_TOKENS, settings["evaluation"]["n_tokens"])
        settings["evaluation"] = {"n_tokens": n_tokens}
    sources: tuple[GivenCore, ...] = (given,)
    if isinstance(request.other, OtherCycle | OtherPublished):
        other = _find_other(session, request.other)
        settings["other"] = {"kind": "cycle", **_named(other)}
        sources = (given, other)
    config = build_config(request.kind, settings)
    _require_latents(session, request, given)
    facts = find_facts(config.model, allowed_roots)
    if isinstance(config, CoreMatchConfig):
        check_text_paths(config.data.text, allowed_roots)
        _check_folder(config, allowed_roots)
        _check_other(
            sources, param="other.name" if isinstance(request.other, OtherPublished) else "other.job"
        )
    return ProbePlan(config, facts, sources)


def pin_objects(plan: ProbePlan, store: ObjectStore, *, prefixes: Sequence[str]) -> ProbePlan:
    """Give a plan with size and etag of the uploaded files that it compares with; of others, as it is.

    Raises:
        InvalidConfig: naming each object that may not be read, is not there, or holds other bytes than said.
        Unavailable: the store does not answer.
    """
    config = plan.config
    if not isinstance(config, CoreMatchConfig) or not isinstance(config.other, OtherObjects):
        return plan
    other = pin_other(config.other, store, prefixes=prefixes)
    return replace(plan, config=config.model_copy(update={"other": other}))


def submit_probe(session: Session, owner_id: str, *, request: ProbeRequest, plan: ProbePlan) -> JobView:
    """Store a probe and queue it; workers hear of it after the commit.

    Raises:
        InvalidConfig: an upload that it names, or a job that it starts from, was deleted meanwhile.
        QuotaExceeded: its owner may not have so many waiting.
    """
    require_room(session, owner_id, n_jobs=1)
    _hold_sources(session, plan)
    job = Job(
        id=new_id("job"),
        kind="probe",
        owner_id=owner_id,
        priority=request.priority,
        spec_version=SPEC_VERSION,
        name=request.name,
        tags=request.tags,
        notes=request.notes,
        config=plan.config.model_dump(mode="json"),
    )
    session.add(job)
    session.flush()
    _note_objects(session, job)
    cycle = _make_cycle(job, plan)
    session.add(cycle)
    session.flush()
    note_sources(session, cycle.id, [source.cycle_id for source in plan.sources])
    append_event(session, job.id, "job_queued", SAYS[request.kind], data={"kind": request.kind})
    wake_after_commit(session, cycle.resource_class)
    session.refresh(job)
    return view_jobs(session, [job])[0]


def find_result(session: Session, job_id: str) -> Mapping[str, Any] | None:
    """Give what a probe found; None before it has.

    Raises:
        NotFound: there is no such probe.
    """
    find_job(session, job_id, kind="probe")
    query = select(Cycle.metrics).where(Cycle.job_id == job_id, Cycle.state == "succeeded")
    metrics = session.scalars(query).one_or_none() or {}
    found: Mapping[str, Any] | None = metrics.get("result") or metrics.get("match")
    return found


def _make_cycle(job: Job, plan: ProbePlan) -> Cycle:
    """Make the one cycle; it has no cache key: waiting for who holds what costs more than a short read."""
    return Cycle(
        id=new_id("cycle"),
        job_id=job.id,
        index=0,
        owner_id=job.owner_id,
        priority_rank=PRIORITY_RANKS[job.priority],
        state="queued",
        resource_class=RESOURCE_CLASSES[plan.config.device],
        spec_version=job.spec_version,
        memory_bytes=plan.memory_bytes,
        selects_core=False,
        queued_at=func.now(),
    )


def _note_objects(session: Session, job: Job) -> None:
    """Keep the uploads that it reads from being deleted."""
    for param, keys in named_objects(job.config).items():
        note_use(session, job.id, [stored.key for stored in keys], param=param)


def _find(session: Session, core: RequestedCore, param: str) -> GivenCore:
    """Find a finished cycle that selected a core.

    Raises:
        InvalidConfig: it is unknown, deleted or unfinished, or nothing is published under its name.
    """
    try:
        given = find_given(session, find_named(session, core))
    except InvalidConfig as error:
        raise InvalidConfig([_renamed(problem, param) for problem in error.problems]) from error
    assert given is not None  # noqa: S101 - such a core names its cycle
    return given


def _find_other(session: Session, other: OtherCycle | OtherPublished) -> GivenCore:
    if isinstance(other, OtherPublished):
        return _find(session, PublishedCore(kind="published", name=other.name), "other")
    return _find(session, SelectedCore(kind="selected", cycle=other.ref), "other")


def _renamed(problem: FieldProblem, param: str) -> FieldProblem:
    names = {
        "core.cycle.job_id": f"{param}.job",
        "core.cycle.cycle_index": f"{param}.cycle",
        "core.name": f"{param}.name",
    }
    return replace(problem, param=names.get(problem.param, problem.param))


def _named(given: GivenCore) -> dict[str, Any]:
    return {"job": given.job_id, "cycle": given.cycle_index}


def _require_latents(session: Session, request: ProbeRequest, given: GivenCore) -> None:
    """Refuse latents that are not in the core.

    Raises:
        InvalidConfig: naming each.
    """
    asked = {f"latents.{place}": latent_id for place, latent_id in enumerate(request.latents or ())}
    if request.latent is not None:
        asked["latent"] = request.latent
    core_id = select(Cycle.output_core_id).where(Cycle.id == given.cycle_id).scalar_subquery()
    found = select(Latent.public_id).join(CoreLatent, CoreLatent.latent_id == Latent.id)
    query = found.where(Latent.public_id.in_(asked.values()), CoreLatent.core_id == core_id)
    known = set(session.scalars(query)) if asked else set()
    rule = f"is not in the core that cycle {given.cycle_index} of {given.job_id} selected"
    problems = [
        FieldProblem(param, latent_id, rule, "latent_not_in_core")
        for param, latent_id in asked.items()
        if latent_id not in known
    ]
    if problems:
        raise InvalidConfig(problems)


def _check_folder(config: CoreMatchConfig, allowed_roots: Sequence[Path]) -> None:
    """Refuse a folder outside the allowed roots.

    Raises:
        InvalidConfig: naming it.
    """
    if isinstance(config.other, OtherFolder):
        allowed_path(config.other.path, allowed_roots, param="other.path")


def _check_other(sources: Sequence[GivenCore], *, param: str) -> None:
    """Refuse another core that plainly cannot be compared with the first.

    Raises:
        InvalidConfig: it is the core itself, or of other activations.
    """
    if len(sources) < 2:
        return
    core, other = sources
    if core.cycle_id == other.cycle_id:
        rule = "is the core itself: name another cycle, or another job"
        raise InvalidConfig([FieldProblem(param, other.job_id, rule, "core_mismatch")])
    for name, own, its in _compared(core.config, other.config):
        if own != its:
            rule = f"its {name} is {shown(its)!r}, and that of the core {shown(own)!r}"
            raise InvalidConfig([FieldProblem(param, other.job_id, rule, "core_mismatch")])


def _compared(core: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Give (setting, the core's value, the other's) of all that makes their activations the same space."""
    taken = core["activations"], other["activations"]
    rows = [
        (f"activations.{name}", *(each.get(name, default) for each in taken))
        for name, default in (("layer", None), ("hook", "resid_post"), ("model_dtype", "float32"))
    ]
    models = core["model"], other["model"]
    if "local" in (models[0]["source"], models[1]["source"]):
        return rows  # the same model may lie under another path: the trainer compares its bits
    return [*rows, ("model", *models)]


def _hold_sources(session: Session, plan: ProbePlan) -> None:
    """Lock the jobs that it starts from, so that none is deleted before that is known of it.

    Raises:
        InvalidConfig: one was.
    """
    params = {source.job_id: param for source, param in zip(plan.sources, ("core", "other"), strict=False)}
    query = select(Job.id, Job.deleted_at).where(Job.id.in_(params)).order_by(Job.id)
    problems = [
        FieldProblem(f"{params[row.id]}.job", row.id, "the job was deleted a moment ago", "core_deleted")
        for row in session.execute(query.with_for_update(read=True))
        if row.deleted_at is not None
    ]
    if problems:
        raise InvalidConfig(problems)
