"""Which loopback ports are free, and who holds one that is not."""

import secrets
import socket
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress

import psutil

LOOPBACK = "127.0.0.1"
PAIR_OFFSET = 10_000
"""Where SeaweedFS' parts look for each other's gRPC port, whatever they are told."""
HIGHEST = 65_535
CHOSEN_FROM = range(10_240, 22_528)
"""With their pairs below every usual range from which connections draw their own ports (Linux: 32,768)."""


def is_free(port: int) -> bool:
    """Tell whether this process could listen on a loopback port now."""
    with ExitStack() as held:
        return _take(port, held)


def pick_free(n_ports: int) -> list[int]:
    """Give distinct free loopback ports."""
    return list(choose([str(index) for index in range(n_ports)], {}).values())


def choose(
    names: Collection[str], remembered: Mapping[str, int], *, paired: Collection[str] = ()
) -> dict[str, int]:
    """Give each name its remembered port where that is free, else another free one.

    A `paired` name gets a port whose pair, `PAIR_OFFSET` above, is free too. All are held until all are
    chosen, so that none is given twice.
    """
    chosen: dict[str, int] = {}
    with ExitStack() as held:
        for name in names:
            if name in remembered and _take_with_pair(remembered[name], held, is_paired=name in paired):
                chosen[name] = remembered[name]
        for name in names:
            while name not in chosen:
                port = secrets.choice(CHOSEN_FROM)
                if _take_with_pair(port, held, is_paired=name in paired):
                    chosen[name] = port
    return chosen


def holder(port: int) -> str | None:
    """Name the process that listens on a port, where this user may know it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
            with suppress(psutil.Error):
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    return None


def _take_with_pair(port: int, held: ExitStack, *, is_paired: bool) -> bool:
    if not is_paired:
        return _take(port, held)
    return port + PAIR_OFFSET <= HIGHEST and _take(port, held) and _take(port + PAIR_OFFSET, held)


def _take(port: int, held: ExitStack) -> bool:
    """Listen on a port until `held` is closed; false if somebody else does."""
    probe = held.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((LOOPBACK, port))
        probe.listen(1)
    except OSError:
        return False
    return True
