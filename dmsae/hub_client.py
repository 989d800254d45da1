"""How long may the model hub keep a trainer waiting, and what do its answers mean?

huggingface_hub sends and repeats the requests; this client of it bounds every wait, and gives up at once
where no repetition helps. What the answers mean for a model or a dataset is the business of `hub.py`.
"""

import functools
import os
import ssl
import time
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import is_offline_mode, set_client_factory
from huggingface_hub.utils import parse_ratelimit_headers

PUBLIC_HUB = "https://huggingface.co"

TIMEOUT_S = 8.0
"""Longest wait for a connection, and for each piece of an answer."""

PATIENCE_S = 15.0
"""A hub that gives nothing for so long, however often it is asked, is given up."""

REFUSALS = (401, 403, 404)
"""Statuses that stay, however often the same is asked."""

RATE_LIMITED = 429
RETRIED = (408, RATE_LIMITED, 500, 502, 503, 504)
"""Statuses after which huggingface_hub asks again, up to five times."""

Missing = Literal["repository", "revision", "file"]
_MISSING: dict[str | None, Missing] = {"RevisionNotFound": "revision", "EntryNotFound": "file"}


class HubTrouble(Exception):
    """The hub did not give what it was asked for; `code` is one of `dmsae.errors.FAILURES`."""

    def __init__(
        self, code: str, reason: str, *, missing: Missing = "repository", has_token: bool = False
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.missing = missing
        """What a `hub_not_found` could not find."""
        self.has_token = has_token
        """Whether a token was sent."""


class Patience:
    """When did the hub begin to give nothing?"""

    def __init__(self) -> None:
        self._since: float | None = None

    def heard(self) -> None:
        """Note that it gave something."""
        self._since = None

    def failed(self, sent_at: float) -> None:
        """Note that a request sent then brought nothing."""
        self._since = sent_at if self._since is None else self._since

    def left_s(self) -> float:
        """Give how long it may still keep quiet."""
        return PATIENCE_S if self._since is None else self._since + PATIENCE_S - time.monotonic()


class PatientClient(httpx2.Client):
    """A client whose every wait is bounded, and which raises `HubTrouble` once patience is out."""

    def __init__(self, patience: Patience) -> None:
        super().__init__(follow_redirects=True, verify=_trusted())
        self._patience = patience

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send one request.

        Raises:
            HubTrouble: the answer is final, or nothing came for too long.
            httpx2.TransportError: nothing came; it may be asked again.
        """
        if is_offline_mode():
            raise HubTrouble("hub_unreachable", "HF_HUB_OFFLINE forbids to ask it")
        request.extensions["timeout"] = httpx2.Timeout(TIMEOUT_S).as_dict()
        sent_at = time.monotonic()
        try:
            response = super().send(request, stream=stream, **options)
        except httpx2.TransportError as error:
            self.take_failure(sent_at, error)
            raise
        if response.status_code >= 400:
            self._judge(response, sent_at, is_stream=stream)
        elif stream:
            response.stream = _HeardStream(response.stream, self, sent_at)
        else:
            self.take_bytes()
        return response

    def take_bytes(self) -> None:
        """Note that something came."""
        self._patience.heard()

    def take_failure(self, sent_at: float, error: httpx2.TransportError) -> None:
        """Note that a request brought nothing; raise `HubTrouble` once patience is out."""
        self._patience.failed(sent_at)
        if self._patience.left_s() <= 0:
            raise trouble_of(error) from error

    def _judge(self, response: httpx2.Response, sent_at: float, *, is_stream: bool) -> None:
        self._patience.failed(sent_at)
        left_s = self._patience.left_s()
        is_retried = response.status_code in RETRIED
        if not is_retried or left_s <= 0 or _asked_wait_s(response) >= left_s:
            response.close()
            raise trouble_of_answer(response)
        if is_stream and response.status_code >= 500:
            # a download goes on after a lost connection, but ends with the first 5xx
            response.close()
            raise httpx2.RemoteProtocolError(f"status {response.status_code}", request=response.request)


class _HeardStream(httpx2.SyncByteStream):
    """A body of which every piece is heard of, and its breaking off as well."""

    def __init__(self, body: Any, client: PatientClient, sent_at: float) -> None:
        self._body = body
        self._client = client
        self._asked_at = sent_at

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._body:
                self._client.take_bytes()
                yield piece
                self._asked_at = time.monotonic()
        except httpx2.TransportError as error:
            self._client.take_failure(self._asked_at, error)
            raise

    def close(self) -> None:
        self._body.close()


@functools.cache
def use_patient_client() -> Patience:
    """Make huggingface_hub use the patient client, once in this process, and give its patience."""
    patience = Patience()
    set_client_factory(lambda: PatientClient(patience))
    return patience


def hub_endpoint() -> str:
    """Give the address of the hub: `HF_ENDPOINT`, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")


def hub_host(endpoint: str) -> str:
    """Name a hub without whatever else its address may hold."""
    address = urlsplit(endpoint)
    return f"{address.hostname}:{address.port}" if address.port else str(address.hostname)


def trouble_of(error: httpx2.RequestError) -> HubTrouble:
    """Say why no answer came."""
    if isinstance(error, httpx2.TimeoutException):
        return HubTrouble("hub_unreachable", f"it did not answer within {TIMEOUT_S:g} s")
    return HubTrouble("hub_unreachable", f"{type(error).__name__}: {error}"[:200])


def trouble_of_answer(response: httpx2.Response) -> HubTrouble:
    """Say what an answer other than the one hoped for means.

    Only the hub itself refuses; a storage host to which it sent us on does not answer for it.
    """
    status, request = response.status_code, response.request
    reason = f"it answered with status {status}"
    has_token = "authorization" in request.headers
    if status == RATE_LIMITED:
        return HubTrouble("hub_rate_limited", reason, has_token=has_token)
    if request.url.host != urlsplit(hub_endpoint()).hostname:
        return HubTrouble(
            "hub_unreachable", f"its storage host {request.url.host} answered with status {status}"
        )
    if status == 404:
        missing = _MISSING.get(response.headers.get("X-Error-Code"), "repository")
        return HubTrouble("hub_not_found", reason, missing=missing, has_token=has_token)
    code = {401: "hub_unauthorized", 403: "hub_forbidden"}.get(status, "hub_unreachable")
    return HubTrouble(code, reason, has_token=has_token)


def _asked_wait_s(response: httpx2.Response) -> float:
    """Give how long the hub wants to be left alone: huggingface_hub obeys, however long that is."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == RATE_LIMITED and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) + 1
    asked = response.headers.get("Retry-After", "").strip()
    return float(asked) + 1 if asked.isdigit() else 0.0


def _trusted() -> ssl.SSLContext | bool:
    """Give the certificates to trust: httpx2 reads SSL_CERT_FILE by itself, REQUESTS_CA_BUNDLE not."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    return (
        ssl.create_default_context(cafile=bundle) if bundle and not os.environ.get("SSL_CERT_FILE") else True
    )
