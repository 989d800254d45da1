"""From where does a process's memory come, and how much has it held?"""

import ctypes
import re
import resource
import sys
from pathlib import Path

M_ARENA_MAX = -8
"""glibc's number for how many arenas there may be (`malloc.h`)."""


def use_one_arena() -> None:
    """Let all threads share one arena of glibc's; elsewhere nothing is done, there are none.

    Those of other threads give their memory back after every large tensor: reading activations, which has a
    thread of its own, then costs a tenth more in page faults. Call it before there are threads.

    Mutates: the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def peak_memory_bytes() -> int:
    """Give the most memory that this program has held: every page in memory, those mapped from files too.

    Not `ru_maxrss` where Linux tells better: it begins with what the parent held when it started the program.
    """
    status = Path("/proc/self/status")
    told = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    if told is not None:
        return int(told[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
