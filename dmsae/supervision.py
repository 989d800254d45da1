"""How does a trainer make sure that it never outlives its supervisor?

Two ties, since each has a gap: the kernel's signal (Linux only, and lost if the parent died before it was
asked for), and a standard input that closes when the parent goes.
"""

import ctypes
import os
import signal
import sys
import threading

ORPHANED = 4
"""Exit status of a trainer whose standard input closed."""

_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> threading.Event:
    """End this process when its parent does: at once, without cleaning up.

    The signal follows the parent's thread that started this process, so that one must live as long. Gives
    what is set whenever the parent asks for a checkpoint: by anything that it writes to standard input.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    is_asked = threading.Event()
    threading.Thread(target=_watch_stdin, args=(is_asked,), name="stdin-watch", daemon=True).start()
    return is_asked


def _watch_stdin(is_asked: threading.Event) -> None:
    while os.read(0, 4096):
        is_asked.set()
    os._exit(ORPHANED)
