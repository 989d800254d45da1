"""Does the kernel kill for want of memory? By its own counts, of the machine and of the container."""

from collections.abc import Sequence
from pathlib import Path

COUNTS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))


def count_oom_kills(files: Sequence[Path] = COUNTS) -> int:
    """Give how many processes were killed so far; 0 where nothing counts them.

    The counts are of the whole machine: only with a trainer that was killed do they say why.
    """
    return sum(_count(file) for file in files)


def _count(file: Path) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts and counts[0].isdecimal() else 0
