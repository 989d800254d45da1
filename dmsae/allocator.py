"""From where does a trainer's memory come?"""

import ctypes

M_ARENA_MAX = -8
"""glibc's number for how many arenas there may be (`malloc.h`)."""


def use_one_arena() -> None:
    """Let all threads share one arena of glibc's; elsewhere nothing is done, there are none.

    Those of other threads give their memory back after every large tensor: reading activations, which has a
    thread of its own, then costs a tenth more in page faults, and what stays behind in pieces differs from
    run to run. Call it before there are threads.

    Mutates: the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
