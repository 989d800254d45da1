"""Which loopback ports are free, and who holds one that is not."""

import contextlib
import socket
from collections.abc import Iterable

import psutil

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Tell whether this process could listen on a loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def pick_free(n_ports: int) -> list[int]:
    """Give distinct free loopback ports, held open together so that none is given twice."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n_ports)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def choose(names: Iterable[str], remembered: dict[str, int]) -> dict[str, int]:
    """Give each name its remembered port where that is free, else another free one."""
    wanted = list(names)
    kept = {name: remembered[name] for name in wanted if name in remembered and is_free(remembered[name])}
    missing = [name for name in wanted if name not in kept]
    return {**kept, **dict(zip(missing, pick_free(len(missing)), strict=True))}


def holder(port: int) -> str | None:
    """Name the process that listens on a port, where this user may know it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
            with contextlib.suppress(psutil.Error):
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    return None
