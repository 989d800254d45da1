"""By whose clock are requests to the store signed? By the store's own, once it has refused one.

S3 refuses whatever is signed by a clock more than 15 minutes off. Its refusal says what time it is there, so
the request is signed again by that, at once, and so is every later one of the same store.
"""

from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import structlog
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth, S3SigV4QueryAuth

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = structlog.get_logger()

SIGNER = "dmsae-s3v4"
OFFSET = "dmsae_clock_offset"
STAMP = "%Y%m%dT%H%M%SZ"
TOLERATED = timedelta(minutes=1)
"""A refusal whose time differs by less had another reason."""


class StoreClock:
    """How far this machine's clock is from a store's, for all clients of that store, in any thread."""

    def __init__(self) -> None:
        self._offset = timedelta()

    def sign_for(self, client: "S3Client") -> None:
        """Have a client sign by this clock from now on, and teach it.

        Mutates: botocore's table of signers, which gets one more, the same for all.
        """
        AUTH_TYPE_MAPS.setdefault(SIGNER, _Signer)
        AUTH_TYPE_MAPS.setdefault(f"{SIGNER}-query", _LinkSigner)
        events: Any = client.meta.events
        events.register_first("choose-signer.s3", lambda **_: SIGNER)
        events.register("before-sign.s3", self._tell)
        events.register_first("needs-retry.s3", self._learn)

    def _tell(self, request: Any, **_: Any) -> None:
        request.context[OFFSET] = self._offset

    def _learn(self, response: Any, request_dict: Any, **_: Any) -> int | None:
        """Give how many seconds to wait before the request is sent again; None unless its time was wrong."""
        if response is None or response[0].status_code != 403 or "Date" not in response[0].headers:
            return None
        there = parsedate_to_datetime(response[0].headers["Date"]).replace(tzinfo=None)
        signed = datetime.strptime(request_dict["context"]["timestamp"], STAMP)
        if abs(there - signed) < TOLERATED:
            return None
        self._offset = request_dict["context"].get(OFFSET, timedelta()) + there - signed
        log.warning("clock_differs", offset_s=self._offset.total_seconds())
        return 0


def _correct(request: Any) -> None:
    """Move the time by which a request is about to be signed."""
    context = request.context
    signed = datetime.strptime(context["timestamp"], STAMP) + context.get(OFFSET, timedelta())
    context["timestamp"] = signed.strftime(STAMP)


class _Signer(S3SigV4Auth):
    def _modify_request_before_signing(self, request: Any) -> None:
        _correct(request)
        super()._modify_request_before_signing(request)  # type: ignore[misc]


class _LinkSigner(S3SigV4QueryAuth):
    def _modify_request_before_signing(self, request: Any) -> None:
        _correct(request)
        super()._modify_request_before_signing(request)  # type: ignore[misc]
