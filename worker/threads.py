"""How does a thread of an attempt log as the one that started it: with job, cycle and attempt?

Python's threads begin with an empty context, so each would log without.
"""

import contextvars
import threading
from collections.abc import Callable


def thread_of(run: Callable[..., object], *args: object, name: str | None = None) -> threading.Thread:
    """Make a daemon thread, not started yet, that runs in the present context."""
    context = contextvars.copy_context()
    return threading.Thread(target=context.run, args=(run, *args), name=name, daemon=True)
