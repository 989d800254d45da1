"""Who serves which device, and who is still there?"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.service.tables import Worker


@dataclass(frozen=True)
class WorkerIdentity:
    """A worker as it introduces itself: the same host and device give the same id."""

    id: str
    hostname: str
    device: str
    resource_class: str
    memory_bytes: int


def identify_worker(hostname: str, device: str, *, memory_bytes: int) -> WorkerIdentity:
    """Name the worker of a device such as `cpu:0`, whose resource class stands before the colon."""
    resource_class = "cpu" if device.startswith("cpu") else "gpu"
    worker_id = f"{hostname}.{device.replace(':', '-')}"
    return WorkerIdentity(worker_id, hostname, device, resource_class, memory_bytes)


def register_worker(session: Session, worker: WorkerIdentity) -> None:
    """Store a worker that starts, or starts again."""
    values = {
        "hostname": worker.hostname,
        "device": worker.device,
        "resource_class": worker.resource_class,
        "memory_bytes": worker.memory_bytes,
        "last_seen_at": func.now(),
        "stopped_at": None,
    }
    statement = insert(Worker).values(id=worker.id, **values)
    session.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={**values, "started_at": func.now()})
    )


def touch_worker(session: Session, worker_id: str) -> bool:
    """Note that a worker is there; false if it never registered."""
    touched = session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(last_seen_at=func.now(), stopped_at=None)
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
    return list(gone)
