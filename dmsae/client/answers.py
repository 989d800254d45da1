"""What do an answer's status, headers and problem document mean to a client?"""

import re
from collections.abc import Mapping
from typing import Any

import httpx

from dmsae.errors import (
    BadRequest,
    Conflict,
    DmsaeError,
    FieldProblem,
    Forbidden,
    InvalidConfig,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from dmsae.version import VERSION, VERSION_HEADER, is_understood

ERRORS: Mapping[int, type[DmsaeError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    415: BadRequest,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


HOST = re.compile(rb"[A-Za-z0-9._:-]*[A-Za-z0-9][A-Za-z0-9._:-]*")


class VersionMismatch(DmsaeError):
    """Client and server do not understand each other."""

    code = "version_mismatch"


def read_answer(answer: httpx.Response) -> dict[str, Any]:
    """Give an answer's JSON; one without a body, or that nothing has changed, is empty.

    Raises:
        InvalidConfig: settings were refused; `problems` names field, value and rule of each.
        DmsaeError: any other refusal, as the class of its kind; `fields["code"]` is the API's code.
    """
    if answer.status_code == 304 or (answer.is_success and not answer.content):
        return {}
    if not answer.is_success:
        raise error_of(answer)
    try:
        return dict(answer.json())
    except (ValueError, TypeError) as error:
        raise DmsaeError(f"{answer.url} answered with no JSON object: is it DMSAE's API?") from error


def bytes_of(answer: httpx.Response) -> bytes:
    """Give an answer as it is.

    Raises:
        DmsaeError: it is a refusal, as the class of its kind.
    """
    if not answer.is_success:
        raise error_of(answer)
    return answer.content


def error_of(answer: httpx.Response) -> DmsaeError:
    """Turn a problem document into the error of its kind."""
    kind = ERRORS.get(answer.status_code, DmsaeError)
    try:
        problem: dict[str, Any] = answer.json()
        detail, code = str(problem["detail"]), str(problem["code"])
    except (ValueError, KeyError, TypeError):
        kind = kind if kind is Unavailable else DmsaeError
        return kind(f"{answer.url} answered {answer.status_code} without a problem document.")
    if answer.status_code == 422 and problem.get("errors"):
        return InvalidConfig([FieldProblem(**found) for found in problem["errors"]])
    return kind(detail, param=problem.get("param"), code=code, status=answer.status_code)


def refuse_other_version(answer: httpx.Response) -> None:
    """Refuse a server that says that it is of a version which this client does not understand.

    Raises:
        VersionMismatch: naming both versions, and what to install.
    """
    server = answer.headers.get(VERSION_HEADER)
    if server is None or is_understood(server):
        return
    raise VersionMismatch(
        f"The server is DMSAE {server[:50]}, this client is {VERSION}: a client understands servers of its "
        f"own major version that are as new or newer. Install the client of version {server[:50]}, or update "
        "the server.",
        server=server,
        client=VERSION,
    )


def url_of(given: str) -> httpx.URL:
    """Read the URL of an API.

    Raises:
        BadRequest: it is none of HTTP.
    """
    try:
        url = httpx.URL(given)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise BadRequest(f"url = {given!r}: must be a URL ({error}).", param="url") from error
    if url.scheme not in ("http", "https") or not HOST.fullmatch(url.raw_host):
        raise BadRequest(f"url = {given!r}: must begin with http:// or https:// and a host.", param="url")
    return url


def headers_of(key: str | None) -> dict[str, str]:
    """Give what tells the API who is asking.

    Raises:
        BadRequest: the key cannot be one.
    """
    if key is None:
        return {}
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise BadRequest("key: must be letters, digits and signs of ASCII without spaces.", param="key")
    return {"Authorization": f"Bearer {key}"}


def is_loopback(url: str | httpx.URL) -> bool:
    """Tell whether a URL names this machine, where no proxy of the environment may come between."""
    return httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")
