"""Becomes another program that dies with the process which asked for it.

Run as a script, `python -I -S launch.py SIGNAL PARENT_PID PROGRAM [ARGUMENT...]`, after any change of user,
since the kernel forgets the parent-death signal when the user changes. Where there is no such signal (macOS),
it only becomes the program; the next `dmsae up` then ends what is left over.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, look whether the parent is still there, and become the program."""
    death_signal, parent_pid, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent_pid:
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command comes from our own parent, no shell is meant


if __name__ == "__main__":
    main()
