"""Who serves which device, and who is still there?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.tables import Worker
from dmsae.service.tallies import count_action

ALIVE = timedelta(seconds=60)
"""A worker that was not seen for longer does not count."""

DEVICE = re.compile(r"(cpu|cuda):(0|[1-9][0-9]{0,2})")


@dataclass(frozen=True)
class WorkerIdentity:
    """A worker as it introduces itself: the same host and device give the same id."""

    id: str
    hostname: str
    device: str
    """`cpu:0`, `cuda:1`, as the host's processes count them."""
    slot: str
    """What tells the device from every other one of this host."""
    resource_class: str
    memory_bytes: int | None
    device_name: str | None


def parse_device(name: str) -> tuple[str, int]:
    """Take a device's name apart: `cuda:1` is `cuda` and 1.

    Raises:
        InvalidConfig: it is no device's name.
    """
    found = DEVICE.fullmatch(name)
    if found is None:
        rule = "must be cpu:N or cuda:N with N from 0 to 999, such as cpu:0"
        raise InvalidConfig([FieldProblem("device", name, rule)])
    return found[1], int(found[2])


def identify_worker(
    hostname: str,
    device: str,
    *,
    memory_bytes: int | None,
    device_name: str | None = None,
    slot: str | None = None,
) -> WorkerIdentity:
    """Name the worker of a device of a host; without `slot` the device's own name tells it from others.

    Raises:
        InvalidConfig: it is no device's name.
    """
    kind, index = parse_device(device)
    slot = slot or f"{kind}-{index}"
    resource_class = {"cpu": "cpu", "cuda": "gpu"}[kind]
    return WorkerIdentity(
        f"{hostname}.{slot}", hostname, device, slot, resource_class, memory_bytes, device_name
    )


def register_worker(session: Session, worker: WorkerIdentity) -> None:
    """Store a worker that starts, or starts again."""
    values = {
        "hostname": worker.hostname,
        "device": worker.device,
        "resource_class": worker.resource_class,
        "memory_bytes": worker.memory_bytes,
        "device_name": worker.device_name,
        "last_seen_at": func.now(),
        "stopped_at": None,
        "draining_at": None,
    }
    statement = insert(Worker).values(id=worker.id, **values)
    session.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={**values, "started_at": func.now()})
    )


def touch_worker(session: Session, worker_id: str, *, cache_keys: Sequence[str] | None = None) -> bool:
    """Note that a worker is there, and whose activations it holds if that is said; false if it is unknown."""
    known = {} if cache_keys is None else {"cache_keys": list(cache_keys)}
    touched = session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(last_seen_at=func.now(), stopped_at=None, **known)
        .returning(Worker.id)
        .execution_options(synchronize_session=False)
    )
    return touched.one_or_none() is not None


def stop_worker(session: Session, worker_id: str) -> None:
    """Note that a worker has stopped."""
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(stopped_at=func.now())
        .execution_options(synchronize_session=False)
    )


def drain_workers(session: Session, hostname: str, *, device: str | None = None) -> list[str]:
    """Mark the workers of a host, or of one of its devices, that are there: they take nothing new and end.

    The mark goes when a worker of the device starts again. Gives their ids.
    """
    where = [Worker.hostname == hostname, Worker.stopped_at.is_(None)]
    if device is not None:
        where.append(Worker.device == device)
    drained = session.scalars(
        update(Worker)
        .where(*where)
        .values(draining_at=func.coalesce(Worker.draining_at, func.now()))
        .returning(Worker.id)
        .execution_options(synchronize_session=False)
    )
    return sorted(drained)


def is_draining(session: Session, worker_id: str) -> bool:
    """Whether somebody marked this worker."""
    found = session.scalar(select(Worker.id).where(Worker.id == worker_id, Worker.draining_at.is_not(None)))
    return found is not None


def mark_gone_workers(session: Session, *, after_s: float) -> list[str]:
    """Note as stopped who was not seen for a while; give their ids."""
    gone = session.scalars(
        update(Worker)
        .where(
            Worker.stopped_at.is_(None),
            Worker.last_seen_at < func.clock_timestamp() - timedelta(seconds=after_s),
        )
        .values(stopped_at=func.now())
        .returning(Worker.id)
        .execution_options(synchronize_session=False)
    )
    ids = list(gone)
    if ids:
        count_action(session, "worker_gone", len(ids))
    return ids
