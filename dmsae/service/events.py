"""What happened to a job, in order.

An event is written in the transaction of what it tells. Its number is drawn by updating the job's row, which
also locks it: events of one job can never commit out of order.
"""

from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from dmsae.errors import NotFound
from dmsae.service.tables import Event, Job


def append_event(
    session: Session,
    job_id: str,
    kind: str,
    message: str,
    *,
    cycle_index: int | None = None,
    attempt_number: int | None = None,
    data: dict[str, Any] | None = None,
) -> int:
    """Write one event of a job and return its sequence number; the job's `version` grows with it.

    Raises:
        NotFound: there is no such job.
    """
    draw = (
        update(Job)
        .where(Job.id == job_id)
        .values(event_seq=Job.event_seq + 1, version=Job.version + 1)
        .returning(Job.event_seq)
        .execution_options(synchronize_session=False)
    )
    seq = session.scalar(draw)
    if seq is None:
        raise NotFound(f"There is no job {job_id!r}.", id=job_id)
    session.execute(
        insert(Event).values(
            job_id=job_id,
            seq=seq,
            kind=kind,
            message=message,
            cycle_index=cycle_index,
            attempt_number=attempt_number,
            data=data or {},
        )
    )
    return seq
