"""What is this machine's processor, and how much memory may this process use? Asked of the kernel alone."""

import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

CPUINFO = Path("/proc/cpuinfo")
MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Give the processor's name; where the kernel does not tell one, that of its architecture."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, named), "") or platform.processor() or platform.machine()


def usable_memory_bytes(*, membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """Give the memory that this process may use: the machine's, or less where a cgroup says so."""
    return min([psutil.virtual_memory().total, *_limits(membership, cgroups)])


def _limits(membership: Path, cgroups: Path) -> Iterator[int]:
    """Read the limits of this process's cgroups, version 1 and 2, and of all that these lie in."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits_above(cgroups, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_above(cgroups / "memory", path, "memory.limit_in_bytes")


def _limits_above(root: Path, path: str, name: str) -> Iterator[int]:
    """Read one kind of limit up to the root; a container may not see the folders that its path names."""
    place = PurePosixPath(path.lstrip("/"))
    for folder in (place, *place.parents):
        try:
            yield int((root / folder / name).read_text())
        except (OSError, ValueError):  # no such folder, or `max`
            continue
