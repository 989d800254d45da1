"""How is a long list read in parts? An opaque cursor says after which entry the next page begins."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dmsae.errors import BadRequest

Item = TypeVar("Item")

LARGEST_BIGINT = 2**63 - 1


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some entries of a list, and where the next page begins; None at the end."""

    items: list[Item]
    next_cursor: str | None


def make_page(found: list[Item], limit: int, *, last_key: list[Any] | None) -> Page[Item]:
    """Cut a list that was read one entry too far, and point behind its last entry.

    `last_key` is the sort key of entry `limit - 1`; None if the list is not longer than `limit`.
    """
    return Page(found[:limit], None if last_key is None else encode_cursor(last_key))


def encode_cursor(key: list[Any]) -> str:
    """Pack a sort key into a word that is safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *types: type) -> list[Any]:
    """Unpack a sort key, of values of these types.

    Raises:
        BadRequest: this is no cursor that `encode_cursor` made.
    """
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        key = json.loads(packed)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _malformed(cursor) from error
    if not isinstance(key, list) or [type(value) for value in key] != list(types):
        raise _malformed(cursor)
    for value in key:
        if isinstance(value, int) and not 0 <= value <= LARGEST_BIGINT:
            raise _malformed(cursor)
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise _malformed(cursor)
    return key


def _malformed(cursor: str) -> BadRequest:
    return BadRequest(
        "The cursor is malformed: send `next_cursor` of the page before, unchanged.",
        param="cursor",
        value=cursor[:100],
    )
