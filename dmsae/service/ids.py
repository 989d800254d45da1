"""Identifiers made in Python: a prefix that says what it names, then a UUIDv7, which sorts by time."""

import uuid_utils


def new_id(prefix: str) -> str:
    """Make a fresh id such as `job_019a...`; ids made later sort later (to the millisecond)."""
    return f"{prefix}_{uuid_utils.uuid7().hex}"
