"""The one family of errors; each class is a kind, each `code` a stable name that clients may match.

How a kind becomes an HTTP status is the business of `api/errors.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class FieldProblem:
    """One setting that was refused: where it stands, what was given, and the rule that it breaks."""

    param: str
    value: Any
    rule: str
    code: str = "invalid_value"

    def __str__(self) -> str:
        return f"{self.param} = {self.value!r}: {self.rule}"


class DmsaeError(Exception):
    """Something went wrong in DMSAE."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str | None = None, *, param: str | None = None, **fields: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.param = param
        self.fields: Mapping[str, Any] = fields
        super().__init__(self.message)


class InvalidConfig(DmsaeError):
    """Some settings cannot work."""

    code = "invalid_config"

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__(
            "; ".join(map(str, problems)),
            param=problems[0].param if problems else None,
            errors=[asdict(problem) for problem in problems],
        )
        self.problems = problems


class BadRequest(DmsaeError):
    """The request cannot be understood."""

    code = "bad_request"


class NotFound(DmsaeError):
    """There is no such thing."""

    code = "not_found"


class Deleted(NotFound):
    """It was deleted."""

    code = "deleted"


class Conflict(DmsaeError):
    """The present state does not allow this."""

    code = "conflict"


class IdempotencyKeyReused(Conflict):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"


class Unauthorized(DmsaeError):
    """A valid API key is required: send `Authorization: Bearer KEY`."""

    code = "unauthorized"


class KeyExpired(Unauthorized):
    """This API key has expired: make another one (`dmsae keys create`, POST /keys)."""

    code = "key_expired"


class KeyRevoked(Unauthorized):
    """This API key was revoked."""

    code = "key_revoked"


class Forbidden(DmsaeError):
    """This is not allowed here."""

    code = "forbidden"


class QuotaExceeded(DmsaeError):
    """This owner has as much waiting as it may have."""

    code = "quota_exceeded"


class RateLimited(DmsaeError):
    """Too many requests with this key; `Retry-After` says when there is room again."""

    code = "rate_limited"


class Unavailable(DmsaeError):
    """A part that this needs does not answer; try again in a moment."""

    code = "unavailable"


class DatabaseRefused(DmsaeError):
    """The database refused what was asked of it; the log names the kind of refusal."""


class StaleAttempt(DmsaeError):
    """This attempt is no longer the open one of its cycle: its fencing number is stale."""

    code = "stale_attempt"


class CycleFailed(DmsaeError):
    """A cycle ended without a result.

    `failure` is its stable code (see `FAILURES`), the message one sentence that a researcher can act on.
    """

    code = "cycle_failed"

    def __init__(self, failure: str, message: str, *, param: str | None = None, **fields: Any) -> None:
        super().__init__(message, param=param, **fields)
        self.failure = failure

    @property
    def is_retryable(self) -> bool:
        """Whether another try of the same spec may succeed."""
        return FAILURES.get(self.failure, False)


#: Every way in which a cycle can fail, and whether trying the same spec again may help.
FAILURES: Mapping[str, bool] = {
    "model_not_found": False,
    "model_unreadable": False,
    "model_unsupported": False,
    "hub_unauthorized": False,
    "hub_forbidden": False,
    "hub_not_found": False,
    "hub_rate_limited": True,
    "hub_unreachable": True,
    "hook_unsupported": False,
    "layer_out_of_range": False,
    "context_too_long": False,
    "data_unreadable": False,
    "activations_mismatch": False,
    "dataset_exhausted": False,
    "core_mismatch": False,
    "core_too_large": False,
    "core_empty": False,
    "degenerate_scores": False,
    "non_finite": False,
    "device_unavailable": True,
    "out_of_memory": False,
    "disk_full": True,
    "timed_out": False,
    "spec_unsupported": False,
    "internal_error": False,
    "attempts_exhausted": True,
    "crashed": True,
    "lease_expired": True,
    "store_unavailable": True,
}

OUTAGES = frozenset(
    ("hub_rate_limited", "hub_unreachable", "store_unavailable", "disk_full", "device_unavailable")
)
"""Of these, what another machine or a moment does not put right: the next attempt waits longer."""
