"""Whose activations lie in this machine's cache? The keys of the last cycles that were finished with it.

They are kept in the cache folder, beside the activations: a worker that starts again still knows them, and
where the activations are gone, so are they. Workers of one machine that share the folder share the keys.
"""

import json
import os
from pathlib import Path

from dmsae.service.cache_keys import latest_keys
from dmsae.service.settings import Settings

FILE = "held_keys.json"
ACTIVATIONS = "activations"
"""Where trainers keep them below the cache folder."""
N_KEPT = 16


def held_keys(settings: Settings) -> tuple[str, ...]:
    """Give the keys, the newest first; none where nothing is kept, or what says so cannot be read."""
    if not settings.activation_cache_bytes or not (settings.cache_dir / ACTIVATIONS).is_dir():
        return ()
    try:
        keys = json.loads((settings.cache_dir / FILE).read_text())
    except (OSError, ValueError):
        return ()
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    return tuple(keys[:N_KEPT]) if is_list else ()


def note_key(settings: Settings, key: str) -> None:
    """Note that a cycle with this key was finished; of two workers at once one may be forgotten.

    Raises: OSError where the cache folder cannot be written.
    """
    keys = latest_keys(held_keys(settings), key, n_kept=N_KEPT)
    fresh: Path = settings.cache_dir / f"{FILE}.{os.getpid()}"
    fresh.write_text(json.dumps(keys))
    fresh.replace(settings.cache_dir / FILE)
