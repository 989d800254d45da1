"""JSON that Postgres takes: no NaN, no infinity, no NUL, no lone surrogates.

One non-finite metric must never lose a finished run.
"""

import json
import math
from typing import Any


def read_plain_json(content: str | bytes) -> Any:
    """Parse JSON; what Postgres would refuse becomes null (numbers) or a replacement character (text).

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    return plain(json.loads(content))


def plain(value: Any) -> Any:
    """Give a copy of a JSON value that Postgres takes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, dict):
        return {plain_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def plain_text(value: str) -> str:
    """Replace the characters that Postgres refuses."""
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
