"""What does a clone start from? The resolved settings of another job, and what is set over them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from dmsae.errors import Deleted, FieldProblem, InvalidConfig, NotFound
from dmsae.service.jobs import find_job
from dmsae.service.requests import JobRequest, TrainingRequest, field_problems, overlay
from dmsae.service.tables import Job

Request = TypeVar("Request", bound=JobRequest)


def expand(session: Session, request: Request) -> Request:
    """Give a request as if all settings of the job that it clones stood in it; one that clones none as it is.

    A single chain of several is cloned as that one chain, unless `set` says how many there are to be.

    Raises:
        InvalidConfig: there is no such job, it is of another kind, or what is set cannot stand there.
    """
    if request.clone is None:
        return request
    job = _find_origin(session, request)
    about = request.model_dump(exclude_unset=True, include=set(JobRequest.model_fields) - {"clone", "set"})
    chosen = {} if request.set is None else request.set.model_dump(exclude_unset=True)
    try:
        expanded = type(request).model_validate({**_settings(job, request, chosen), **about})
    except ValidationError as error:
        raise InvalidConfig(field_problems(error.errors(include_url=False))) from error
    return expanded.as_clone_of(job.id)


def list_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give each setting that differs, by its dotted name, as it was and as it is; a list is one value."""
    changes: dict[str, dict[str, Any]] = {}
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            changes |= {f"{name}.{inner}": change for inner, change in list_changes(was, now).items()}
        elif was != now:
            changes[name] = {"from": was, "to": now}
    return changes


def _find_origin(session: Session, request: JobRequest) -> Job:
    job_id = str(request.clone)
    try:
        job = find_job(session, job_id)
    except Deleted as error:
        raise _refusal(job_id, error.message.rstrip("."), "clone_deleted") from error
    except NotFound as error:
        raise _refusal(job_id, "there is no such job", "clone_not_found") from error
    wanted = "training" if isinstance(request, TrainingRequest) else "distillation"
    if job.kind == "probe":
        raise _refusal(job_id, "it is a probe: probes are made from finished jobs", "clone_unfit")
    if job.kind != wanted:
        rule = f"it is a {job.kind}, and here {wanted}s are submitted: POST /{job.kind}s"
        raise _refusal(job_id, rule, "clone_unfit")
    return job


def _settings(job: Job, request: JobRequest, chosen: Mapping[str, Any]) -> dict[str, Any]:
    settings = overlay(job.config, chosen)
    if "core" in chosen:
        settings["core"] = chosen["core"]
    if "chains" in chosen:
        settings.pop("chain_index", None)
    swept = {} if request.sweep is None else request.sweep.model_dump(exclude_unset=True)
    for name in ("core", "seed"):
        if name in swept and name not in chosen:
            settings.pop(name, None)
    if "k" in swept and "k" not in chosen.get("sae", {}):
        settings["sae"] = {name: value for name, value in settings["sae"].items() if name != "k"}
    return settings


def _refusal(job_id: str, rule: str, code: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem("clone", job_id, rule, code)])
