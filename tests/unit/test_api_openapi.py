"""The OpenAPI document shows an example of each body, and each example is what it says."""

from typing import Any

import pytest

from api import (
    control_schemas,
    core_schemas,
    examples,
    figure_schemas,
    group_schemas,
    latent_schemas,
    lineage_schemas,
    probe_schemas,
    schemas,
    snippet_schemas,
    submission_schemas,
    watching_schemas,
    webhook_schemas,
)
from api.main import create_app
from dmsae.service.requests import DistillationRequest, JobChanges, TrainingRequest, UploadRequest
from dmsae.service.settings import Settings

ANSWERS = {
    schemas.JobOut: examples.JOB,
    submission_schemas.ReusedOut: examples.REUSED,
    schemas.JobList: examples.JOB_LIST,
    submission_schemas.DryRunOut: examples.DRY_RUN,
    submission_schemas.DryRunGroupOut: examples.DRY_RUN_GROUP,
    group_schemas.TrainingOut: examples.TRAINING,
    group_schemas.GroupOut: examples.GROUP,
    schemas.CycleList: examples.CYCLE_LIST,
    schemas.DistillationOut: examples.DISTILLATION,
    schemas.EventList: examples.EVENT_LIST,
    schemas.LogList: examples.LOG_LIST,
    schemas.ArtifactList: examples.ARTIFACT_LIST,
    schemas.UploadOut: examples.UPLOAD,
    lineage_schemas.CoreOut: examples.CORE,
    lineage_schemas.LineageOut: examples.LINEAGE,
    lineage_schemas.OriginsOut: examples.ORIGINS,
    schemas.ReadinessOut: examples.READINESS,
    schemas.AliveOut: examples.ALIVE,
    control_schemas.KeyOut: control_schemas.KEY,
    control_schemas.KeyMadeOut: control_schemas.KEY_MADE,
    control_schemas.KeyList: control_schemas.KEY_LIST,
    control_schemas.PauseOut: control_schemas.PAUSE,
    control_schemas.OwnerOut: control_schemas.OWNER,
    control_schemas.OwnerList: control_schemas.OWNER_LIST,
    watching_schemas.StepMetrics: watching_schemas.STEP_METRICS,
    webhook_schemas.WebhookOut: webhook_schemas.WEBHOOK,
    webhook_schemas.WebhookMadeOut: webhook_schemas.WEBHOOK_MADE,
    webhook_schemas.WebhookSeenOut: webhook_schemas.WEBHOOK_SEEN,
    webhook_schemas.WebhookList: webhook_schemas.WEBHOOK_LIST,
    latent_schemas.LatentList: latent_schemas.LATENT_LIST,
    latent_schemas.StoryOut: latent_schemas.STORY,
    latent_schemas.DescendantList: latent_schemas.DESCENDANT_LIST,
    core_schemas.CoreAboutOut: core_schemas.CORE_ABOUT,
    core_schemas.CoreList: core_schemas.CORE_LIST,
    figure_schemas.ComparisonOut: figure_schemas.COMPARISON,
    probe_schemas.ProbeOut: probe_schemas.PROBE,
    probe_schemas.ProbeDryRunOut: probe_schemas.PROBE_DRY_RUN,
    snippet_schemas.SnippetsOut: snippet_schemas.SNIPPETS,
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    settings = Settings(
        database_url="postgresql+psycopg://nobody@127.0.0.1:1/none",
        broker_url="redis://127.0.0.1:1/0",
        s3_endpoint_url="http://127.0.0.1:1",
        s3_access_key="a",
        s3_secret_key="b",
    )
    return create_app(settings).openapi()


def schema_of(document: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = content["application/json"]["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    n_bodies = 0
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            if "requestBody" in call:
                content = call["requestBody"]["content"]
                body = content["application/json"]
                given = body.get("examples") or body["schema"].get("examples")
                assert given or schema_of(document, content).get("examples"), (method, path)
            for status, answer in call["responses"].items():
                if status[0] == "2" and "content" in answer:
                    n_bodies += 1
                    for kind, body in answer["content"].items():
                        given = body.get("example") or body.get("examples")
                        is_json = kind == "application/json"
                        shown = given or (is_json and schema_of(document, answer["content"]).get("examples"))
                        assert shown, (path, status, kind)
    assert n_bodies >= 14


@pytest.mark.parametrize("model", list(ANSWERS), ids=lambda model: model.__name__)
def test_each_example_of_an_answer_is_whole(model: type[schemas.Answer]) -> None:
    shown = model.model_validate(ANSWERS[model]).model_dump(mode="json", exclude_unset=True)
    assert shown.keys() == model.model_fields.keys()


def test_the_examples_of_requests_are_accepted() -> None:
    for body in examples.SUBMISSIONS:
        wanted = DistillationRequest.model_validate(body)
        assert (wanted.preset == "demo") != (wanted.clone is not None)
    for body in examples.TRAINING_SUBMISSIONS:
        request = TrainingRequest.model_validate(body)
        assert sum(given is not None for given in (request.core, request.sweep, request.clone)) == 1
    assert JobChanges.model_validate(examples.CHANGES).priority == "high"
    assert UploadRequest.model_validate(examples.UPLOAD_REQUEST).filename == "pile.jsonl.zst"


def test_every_post_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    posts = {path: calls["post"] for path, calls in document["paths"].items() if "post" in calls}
    takes = {
        path
        for path, call in posts.items()
        if ("header", "Idempotency-Key") in [(given["in"], given["name"]) for given in call["parameters"]]
    }
    assert takes == posts.keys()


def test_every_call_of_the_design_is_there(document: dict[str, Any]) -> None:
    calls = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    job = "/jobs/{job_id}"
    kinds = ("/distillations", "/trainings")
    assert calls == {
        *(f"POST {kind}" for kind in kinds),
        *(f"GET {kind}/{{job_id}}" for kind in kinds),
        *(
            f"GET {kind}/{{job_id}}/{name}"
            for kind in kinds
            for name in ("cycles", "core", "lineage", "origins")
        ),
        "POST /probes",
        "GET /probes/{job_id}",
        "GET /groups/{group_id}",
        "POST /groups/{group_id}/cancel",
        "GET /jobs",
        f"GET {job}",
        f"PATCH {job}",
        f"DELETE {job}",
        f"POST {job}/cancel",
        f"POST {job}/retry",
        *(f"GET {job}/{name}" for name in ("events", "logs", "artifacts", "metrics")),
        "POST /uploads",
        "GET /latents",
        "GET /latents/{latent_id}",
        "GET /latents/{latent_id}/descendants",
        "GET /latents/{latent_id}/snippets",
        "GET /cores",
        "GET /cores/{core_id}",
        "GET /cores/{lab}/{name}",
        "POST /cores/{core_id}/publish",
        f"GET {job}/figures/{{figure}}.{{form}}",
        "GET /figures/compare",
        "GET /figures/compare.{form}",
        *(f"{method} /webhooks" for method in ("GET", "POST")),
        *(f"{method} /webhooks/{{webhook_id}}" for method in ("GET", "DELETE")),
        "GET /queue",
        "GET /keys",
        "POST /keys",
        "DELETE /keys/{key_id}",
        "GET /admin/queue",
        "PATCH /admin/queue",
        "PATCH /admin/jobs/{job_id}",
        "GET /admin/owners",
        "PATCH /admin/owners/{name}",
        *(f"GET /{name}" for name in ("healthz", "readyz", "metrics")),
    }
