"""How does a failure look over HTTP? One table from class to status; every answer is RFC 9457's document."""

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.examples import PROBLEM
from dmsae.errors import (
    BadRequest,
    Conflict,
    CycleFailed,
    DmsaeError,
    FieldProblem,
    Forbidden,
    InvalidConfig,
    NotFound,
    QuotaExceeded,
    RateLimited,
    StaleAttempt,
    Unauthorized,
    Unavailable,
)
from dmsae.service.requests import field_problems, shown

log = structlog.get_logger()


class UnsupportedMediaType(DmsaeError):
    """Send the body as JSON, with `Content-Type: application/json`."""

    code = "unsupported_media_type"


STATUSES: Mapping[type[DmsaeError], int] = {
    BadRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    StaleAttempt: 409,
    UnsupportedMediaType: 415,
    InvalidConfig: 422,
    QuotaExceeded: 429,
    RateLimited: 429,
    CycleFailed: 500,
    Unavailable: 503,
    DmsaeError: 500,
}

HEADERS: Mapping[int, dict[str, str]] = {
    401: {"WWW-Authenticate": 'Bearer realm="dmsae"'},
    429: {"Retry-After": "60"},
    503: {"Retry-After": "5"},
}

LONGEST_DETAIL = 2000
"""Characters; escaped they are at most six times as many bytes."""
LONGEST_ERRORS_BYTES = 40_000
"""The first refused fields that fit are listed: with the detail a problem stays below 64 kB."""

HTTP_CODES: Mapping[int, str] = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "A problem document; `code` is stable, `errors` names each refused field.",
        "content": {"application/problem+json": {"schema": {"type": "object"}, "example": PROBLEM}},
    },
    503: {
        "description": "A part that this needs does not answer.",
        "content": {"application/problem+json": {"schema": {"type": "object"}}},
    },
}
"""What every route may answer beside its own."""


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    request_id: str,
    more: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make a problem document: ASCII-only JSON, since what a client sent may be no valid text."""
    document = {
        "type": f"urn:dmsae:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
        **(more or {}),
    }
    return Response(
        json.dumps(document, allow_nan=False),
        status_code=status,
        headers={**HEADERS.get(status, {}), "X-Request-ID": request_id, **(headers or {})},
        media_type="application/problem+json",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Answer every failure with a problem document."""
    app.add_exception_handler(DmsaeError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unforeseen)


def _answer_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, DmsaeError)  # noqa: S101 - registered for this class alone
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if isinstance(error, InvalidConfig):
        return _refused(request, error.problems, code="invalid_config")
    if status >= 500:
        log.warning("request_failed", code=error.code, detail=error.message)
    more = {} if error.param is None else {"param": error.param}
    wait_s = error.fields.get("retry_after_s")
    headers = None if wait_s is None else {"Retry-After": str(math.ceil(wait_s))}
    return problem(
        status, error.code, error.message, request_id=request_id(request), more=more, headers=headers
    )


def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class alone
    errors = error.errors()
    places = {found["loc"][0] for found in errors}
    if any(found["type"] == "json_invalid" for found in errors):
        detail = f"The body is not JSON: {errors[0].get('ctx', {}).get('error', 'it cannot be parsed')}."
        return problem(400, "malformed_json", detail, request_id=request_id(request))
    if "path" in places:
        return problem(404, "not_found", "There is no such thing.", request_id=request_id(request))
    problems = field_problems([{**found, "loc": found["loc"][1:]} for found in errors])
    code = "invalid_request" if places & {"query", "header"} else "invalid_config"
    return _refused(request, problems, code=code)


def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
    details = {
        400: "The body cannot be parsed: send UTF-8 JSON.",
        404: f"There is no {shown(request.url.path)}; /openapi.json lists what there is.",
        405: f"{request.method[:20]} is not possible here.",
    }
    code = HTTP_CODES.get(error.status_code, "http_error")
    detail = details.get(error.status_code, error.detail)
    return problem(error.status_code, code, detail, request_id=request_id(request), headers=error.headers)


def _answer_unforeseen(request: Request, error: Exception) -> Response:
    log.error("request_crashed", error=type(error).__name__, request_id=request_id(request))
    detail = "Something went wrong in DMSAE; the log of the API tells more under this request id."
    return problem(500, "internal_error", detail, request_id=request_id(request))


def _refused(request: Request, problems: Sequence[FieldProblem], *, code: str) -> Response:
    errors: list[dict[str, Any]] = []
    size_bytes = 0
    for found in problems:
        told = {"param": found.param, "value": shown(found.value), "rule": found.rule, "code": found.code}
        size_bytes += len(json.dumps(told))
        if size_bytes > LONGEST_ERRORS_BYTES:
            break
        errors.append(told)
    return problem(
        422,
        code,
        "; ".join(map(str, problems))[:LONGEST_DETAIL],
        request_id=request_id(request),
        more={"param": problems[0].param if problems else None, "errors": errors},
    )


def request_id(request: Request) -> str:
    """Give the id under which this request stands in the log."""
    return str(request.scope.get("request_id", ""))
