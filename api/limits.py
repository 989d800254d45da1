"""What every request must keep to before anything reads it: an id for the log, a body of bounded size, and
one that is JSON if it says so.

Plain ASGI, around the whole application.
"""

import asyncio
import contextlib
import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem
from api.json_bodies import find_fault
from dmsae.service.ids import new_id
from dmsae.version import VERSION, VERSION_HEADER

log = structlog.get_logger()

LONGEST_LOGGED = 500
LARGEST_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30
LINGER_S = 2
LINGER_BYTES = 16 << 20
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLimits:
    """Gives each request an id, reads its body whole, and refuses one above 1 MiB or not strictly JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = scope["request_id"] = given if REQUEST_ID.fullmatch(given) else new_id("req")
        serve = self._serve_body if _has_body(headers) else self._app
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await serve(scope, receive, _noted(scope, send))

    async def _serve_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["request_id"]
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                messages = await _read(scope, receive)
        except TimeoutError:
            detail = f"The body did not arrive within {BODY_TIMEOUT_S} s."
            answer = problem(408, "body_too_slow", detail, request_id=request_id, headers=CLOSE)
            await answer(scope, receive, send)
            return
        if messages is None:
            detail = f"The body is larger than {LARGEST_BODY_BYTES} bytes."
            answer = problem(413, "body_too_large", detail, request_id=request_id, headers=CLOSE)
            await answer(scope, receive, _lingering(receive, send))
            return
        fault = find_fault(_joined(messages)) if _is_json(scope) else None
        if fault is not None:
            await problem(400, "malformed_json", fault, request_id=request_id)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


CLOSE = {"Connection": "close"}


async def _read(scope: Scope, receive: Receive) -> list[Message] | None:
    """Read the messages of a body; None as soon as it is known to be too large."""
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > LARGEST_BODY_BYTES:
        return None
    messages, size_bytes = [], 0
    while True:
        message = await receive()
        messages.append(message)
        size_bytes += len(message.get("body", b""))
        if size_bytes > LARGEST_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return messages


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_json(scope: Scope) -> bool:
    """Whether a body would be read as JSON."""
    return Headers(scope=scope).get("content-type", "application/json").lower().startswith("application/json")


def _joined(messages: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def _lingering(receive: Receive, send: Send) -> Send:
    """Read on for a while between an answer and its end.

    A connection that is closed on unread data is reset, and the client may lose the answer with it.
    """

    async def send_and_linger(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_discard(receive), LINGER_S)
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return send_and_linger


async def _discard(receive: Receive) -> None:
    size_bytes, is_over = 0, False
    while not is_over and size_bytes < LINGER_BYTES:
        message = await receive()
        size_bytes += len(message.get("body", b""))
        is_over = not message.get("more_body", False)


def _noted(scope: Scope, send: Send) -> Send:
    """Put the request's id and this version into its answer, and what was answered into the log."""
    began = time.monotonic()

    async def send_noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = scope["request_id"]
            headers[VERSION_HEADER] = VERSION
            seconds = round(time.monotonic() - began, 3)
            caller = scope.get("caller")
            made = headers.get("location")
            log.info(
                "request_answered",
                method=scope["method"],
                path=scope["path"][:LONGEST_LOGGED],
                status=message["status"],
                seconds=seconds,
                owner=caller and caller.name,
                key_id=caller and caller.key_id,
                **({} if made is None else {"location": made[:LONGEST_LOGGED]}),
            )
        await send(message)

    return send_noted
