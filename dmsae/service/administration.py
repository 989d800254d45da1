"""What may an administrator change about everybody's turns? One use case for each thing under `/admin`."""

from sqlalchemy.orm import Session

from dmsae.service import queue_control, shares
from dmsae.service.control_requests import OwnerLimits, QueueChanges, TurnChanges
from dmsae.service.jobs import find_job, view_job
from dmsae.service.progress import JobView
from dmsae.service.queue_tables import QueuePause
from dmsae.service.shares import OwnerShare


def find_pause(session: Session) -> QueuePause | None:
    """Give the pause of the queue; None while it goes on."""
    return session.get(QueuePause, 1, populate_existing=True)


def change_queue(session: Session, changes: QueueChanges) -> QueuePause | None:
    """Pause the queue or let it go on; again is no error."""
    if changes.is_paused:
        queue_control.pause_queue(session, reason=changes.reason)
    else:
        queue_control.resume_queue(session)
    session.flush()
    return find_pause(session)


def change_turn(session: Session, job_id: str, changes: TurnChanges) -> JobView:
    """Hold or release a job, or give it another priority, whoever owns it.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended.
    """
    find_job(session, job_id)
    if "priority" in changes.model_fields_set:
        queue_control.change_priority(session, job_id, changes.priority)
    if "held" in changes.model_fields_set:
        change = queue_control.hold_job if changes.held else queue_control.release_job
        change(session, job_id)
    session.flush()
    return view_job(session, job_id)


def change_owner(session: Session, name: str, limits: OwnerLimits) -> OwnerShare:
    """Change an owner's weight and limits.

    Raises:
        NotFound: there is no such owner.
        InvalidConfig: nothing is to change.
    """
    queue_control.set_owner(session, name, limits.changes())
    return next(share for share in shares.list_shares(session) if share.name == name)
