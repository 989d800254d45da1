"""Is a body JSON that means one thing? Checked before anything parses it for good.

Python's parser takes NaN and infinities, which are no JSON, and of two equal keys silently the last.
"""

import json
from typing import Any, NoReturn

LONGEST_KEY_SHOWN = 100


def find_fault(body: bytes) -> str | None:
    """Say what is wrong with a body, in one sentence; None if nothing is."""
    try:
        json.loads(body.decode(), object_pairs_hook=_refuse_doubled, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"The body is not JSON: byte {error.start} is no UTF-8."
    except json.JSONDecodeError as error:
        return f"The body is not JSON: {error}."
    except RecursionError:
        return "The body is nested too deeply."
    except ValueError as error:
        return f"The body is not JSON: {error}."
    return None


def _refuse_doubled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"an object names {key[:LONGEST_KEY_SHOWN]!r} twice")
            seen.add(key)
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
