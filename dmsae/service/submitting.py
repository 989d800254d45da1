"""How does a request become a resolved config, a job and its cycles?

Everything that can be known to fail is refused here, before anything is stored.
"""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import func
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION, DistillationConfig
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.allowed_paths import check_text_paths
from dmsae.service.database import wake_after_commit
from dmsae.service.events import append_event
from dmsae.service.ids import new_id
from dmsae.service.known_models import ModelFacts, find_facts
from dmsae.service.progress import JobView, view_jobs
from dmsae.service.requests import DistillationRequest, merge_preset, shown, validate_config
from dmsae.service.tables import Cycle, Job
from dmsae.service.text_objects import object_keys
from dmsae.service.uploads import note_use

PRIORITY_RANKS = {"high": 0, "normal": 1, "low": 2}
RESOURCE_CLASSES = {"cpu": "cpu", "cuda": "gpu"}
"""Device of a config -> class of the workers that have it."""


def resolve(
    request: DistillationRequest, *, allowed_roots: Sequence[Path]
) -> tuple[DistillationConfig, ModelFacts]:
    """Give all settings of a request, and what is known of its model.

    Raises:
        InvalidConfig: with every setting that is missing or cannot work.
    """
    config = validate_config(merge_preset(request))
    facts = find_facts(config.model, allowed_roots)
    check_text_paths(config.data.text, allowed_roots)
    problems = [*_check_model(config, facts), *_check_tokens(config)]
    if problems:
        raise InvalidConfig(problems)
    return config, facts


def submit(
    session: Session, owner_id: str, *, request: DistillationRequest, config: DistillationConfig
) -> JobView:
    """Store a distillation and its cycles, the first of them queued; workers hear of it after the commit.

    Raises:
        InvalidConfig: an upload that it names was deleted meanwhile.
    """
    job = Job(
        id=new_id("job"),
        kind="distillation",
        owner_id=owner_id,
        priority=request.priority,
        spec_version=SPEC_VERSION,
        name=request.name,
        tags=request.tags,
        notes=request.notes,
        preset=request.preset,
        config=config.model_dump(mode="json"),
    )
    session.add(job)
    session.flush()
    note_use(session, job.id, object_keys(config))
    resource_class = RESOURCE_CLASSES[config.device]
    session.add_all(_cycle(job, index, resource_class) for index in range(config.n_cycles))
    session.flush()
    message = f"A distillation of {config.n_cycles} cycles was queued."
    append_event(session, job.id, "job_queued", message, data={"n_cycles": config.n_cycles})
    session.refresh(job)
    wake_after_commit(session, resource_class)
    return view_jobs(session, [job])[0]


def _cycle(job: Job, index: int, resource_class: str) -> Cycle:
    return Cycle(
        id=new_id("cycle"),
        job_id=job.id,
        index=index,
        owner_id=job.owner_id,
        priority_rank=PRIORITY_RANKS[job.priority],
        state="waiting" if index else "queued",
        resource_class=resource_class,
        spec_version=job.spec_version,
        queued_at=None if index else func.now(),
    )


def _check_model(config: DistillationConfig, facts: ModelFacts) -> list[FieldProblem]:
    problems = []
    layer, context_length = config.activations.layer, config.data.context_length
    if facts.n_layers is not None and layer >= facts.n_layers:
        rule = f"{facts.name} has {facts.n_layers} layers: at most {facts.n_layers - 1}"
        problems.append(FieldProblem("activations.layer", layer, rule, "layer_out_of_range"))
    if facts.n_positions is not None and context_length > facts.n_positions:
        rule = f"{facts.name} reads at most {facts.n_positions} tokens at once"
        problems.append(FieldProblem("data.context_length", context_length, rule, "context_too_long"))
    return problems


def _check_tokens(config: DistillationConfig) -> list[FieldProblem]:
    n_tokens, batch_tokens = config.training.n_tokens, config.training.batch_tokens
    if n_tokens is None or n_tokens >= batch_tokens:
        return []
    rule = f"must be at least one batch: training.batch_tokens = {batch_tokens}"
    return [FieldProblem("training.n_tokens", shown(n_tokens), rule)]
