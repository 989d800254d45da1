"""Which cycles read the same activations?

Two cycles with one cache key can share one harvest through the cache of a worker. What may really be read
there is decided by `dmsae/kept_activations.py`: a key that promises too much costs time, never a bit.
"""

import hashlib
import json
from collections.abc import Sequence

from pydantic import BaseModel

KEY_HEX = 32
"""Hexadecimal digits of a key: 128 bits."""

DECISIVE = ("model", "data", "activations", "n_threads", "device", "chains", "chain_index")
"""Settings of a job that decide its activations: all that the trainer's own key of a harvest is made from."""


def cache_key(config: BaseModel) -> str:
    """Name the activations that the cycles of a job read, in hexadecimal digits; the same for all its cycles.

    A setting that the config does not have, or that is null, counts as left out.
    """
    sections = config.model_dump(mode="json", include=set(DECISIVE), exclude_none=True)
    text = json.dumps(sections, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_HEX]


def latest_keys(keys: Sequence[str], newest: str, *, n_kept: int) -> tuple[str, ...]:
    """Put a key first among those known before, each once, and forget the oldest beyond `n_kept`."""
    return (newest, *(key for key in keys if key != newest))[:n_kept]
