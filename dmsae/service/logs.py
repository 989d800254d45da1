"""How do processes log? One JSON object a line on stderr: a constant event name, fields, no secrets.

Records of libraries (uvicorn, Celery) pass the same way.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from typing import Any, TextIO, cast

import structlog

from dmsae.service.states import Held

HIDDEN = "[hidden]"
CHATTY = ("alembic", "botocore", "urllib3")
"""Libraries of which only warnings are kept."""

NAME = (
    r"(?:\w*(?:password|passwd|secret|secret_key|access_key|api_?key|authorization|credentials?)"
    r"|(?:\w*(?:hf|auth|access|api|session|security)[_-])?token"
    r"|X-Amz-(?:Signature|Credential|Security-Token))"
)
SECRET_NAME = re.compile(NAME, re.IGNORECASE)
SECRET_TEXT = re.compile(
    rf"""
    (?P<url>://[^\s/:@'"]*:)[^\s/@'"]+(?=@)             # user:password@ of a URL
    | (?P<bearer>\bbearer\s+)[A-Za-z0-9._~+/=-]{{8,}}   # Authorization: Bearer ...
    | (?P<named>\b{NAME}["']?\s*[=:]\s*["']?)(?!bearer\b)[^\s&"',;]+
    | \b(?:dmsae|hf)_[A-Za-z0-9_-]{{16,}}               # keys of ours and of the model hub
    """,
    re.IGNORECASE | re.VERBOSE,
)
MARKS = (":", "=", "bearer", "dmsae_", "hf_")
"""Of which every secret text has one somewhere: most texts have none, and are looked at no further."""


def attempt_fields(held: Held) -> AbstractContextManager[None]:
    """Put job, cycle and attempt on every line that is logged within the block.

    So it is on those of libraries, and of threads that `worker.threads` starts within it.
    """
    return structlog.contextvars.bound_contextvars(
        job=held.job_id, cycle=held.cycle_index, attempt=held.attempt_number
    )


def job_field(job_id: str) -> AbstractContextManager[None]:
    """Put a job on every line that is logged within the block."""
    return structlog.contextvars.bound_contextvars(job=job_id)


def redact(text: str) -> str:
    """Hide what looks like a password, key or token; everything else stays."""
    lowered = text.lower()
    if not any(mark in lowered for mark in MARKS):
        return text
    return SECRET_TEXT.sub(lambda found: next((kept for kept in found.groups() if kept), "") + HIDDEN, text)


def configure_logs(level: str) -> None:
    """Send structlog's and the standard library's records to stderr as redacted JSON."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _hide_secrets,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Lossy:
    """A stream of which a full disk loses lines: whoever logs goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _hide_secrets(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: HIDDEN if _is_secret(name) else _hidden(value) for name, value in fields.items()}


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return {name: HIDDEN if _is_secret(name) else _hidden(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value


@lru_cache(maxsize=1024)
def _is_secret(name: object) -> bool:
    return SECRET_NAME.fullmatch(str(name)) is not None
