"""Where do database and objects answer, for a command beside or instead of the running stack?"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmsae.errors import Conflict, NotFound
from dmsae.local import daemon, environment, paths, state
from dmsae.local.stack import Stack
from dmsae.service.settings import Settings, settings_from

NO_BROKER = "redis://127.0.0.1:1/0"
"""For settings of whoever wakes nobody."""


@contextmanager
def open_stores(root: Path, *, is_alone: bool) -> Iterator[Settings]:
    """Give settings under which database and store answer: `DMSAE_*`, else those of the data folder's stack.

    Where no stack runs on the folder, its services run for as long as this is open; `is_alone` demands it.

    Raises:
        Conflict: a stack runs although the caller must be alone, or one is just starting or stopping.
        NotFound: there is no data folder, and the caller does not begin one.
        Unavailable: a service does not start.
    """
    if environment.embedded_names(os.environ) in ([], ["valkey"]):
        broker_url = os.environ.get("DMSAE_BROKER_URL") or NO_BROKER
        yield settings_from({**os.environ, "DMSAE_BROKER_URL": broker_url})
        return
    if not is_alone and not root.is_dir():
        raise NotFound(f"There is no data folder {root.absolute()}.")
    folder = paths.open_data_folder(root)
    url = daemon.running_url(folder)
    if url is not None and is_alone:
        raise Conflict(f"DMSAE is running on {folder.root} at {url}: stop it with `dmsae down` first.")
    if url is not None:
        yield settings_from(daemon.stack_environment(root))
        return
    with state.hold(folder):
        stack = Stack(folder, checkout=paths.find_checkout(), port=None, n_workers=0)
        try:
            stack.start_services()
            yield settings_from(stack.env)
        finally:
            stack.stop()
