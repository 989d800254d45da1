"""What was done, counted for good: how sweepers and workers add to what `GET /metrics` tells of them."""

from collections.abc import Mapping
from typing import Literal, get_args

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.service.tally_tables import ActionTally

Action = Literal[
    "swept",
    "attempt_expired",
    "job_cancelled",
    "wake_up_sent",
    "worker_gone",
    "cleaned",
    "job_expired",
    "upload_unused",
    "object_deleted",
    "checkpoint_deleted",
    "wake_up_failed_sweeper",
    "wake_up_failed_worker",
]
ACTIONS: tuple[Action, ...] = get_args(Action)


def count_action(session: Session, action: Action, n: int = 1) -> None:
    """Add to how often something was done, and note that it was done now."""
    now = func.clock_timestamp()
    statement = insert(ActionTally).values(action=action, n=n, last_at=now)
    changes = {"n": ActionTally.n + n, "last_at": now}
    session.execute(statement.on_conflict_do_update(index_elements=["action"], set_=changes))


def count_actions(session: Session, done: Mapping[Action, int]) -> None:
    """Add all that was done; what was done no time is left as it is."""
    for action in sorted(done):
        if done[action]:
            count_action(session, action, done[action])
