"""Who used how much of the devices within the window, and what may each owner have?"""

from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from dmsae.service.claims import LEAST_CHARGE_S, USAGE_WINDOW
from dmsae.service.queue_tables import UsageSlice
from dmsae.service.tables import Cycle

WEEK = timedelta(days=7)
"""For how long people are shown what each owner used; turns go by `USAGE_WINDOW` alone."""

SHARES = text(
    "SELECT o.id, o.name, o.weight, coalesce(s.device_s, 0) AS device_s, coalesce(s.high_s, 0) AS high_s,"
    " coalesce(s.n_running, 0) AS n_running, o.max_running, o.max_queued, o.high_quota_s"
    " FROM owners o"
    " LEFT JOIN owner_shares(clock_timestamp(), :window_s, :least_charge_s) s ON s.owner_id = o.id"
    " ORDER BY o.name"
)


class OwnerShare(NamedTuple):
    """What an owner used of the devices, and its limits."""

    owner_id: str
    name: str
    weight: float
    device_s: float
    """Within the window, running attempts counted."""
    high_s: float
    """Of these, for cycles of high priority."""
    n_running: int
    max_running: int | None
    max_queued: int | None
    high_quota_s: float | None

    @property
    def is_full(self) -> bool:
        """Whether it runs as many cycles as it may."""
        return self.max_running is not None and self.n_running >= self.max_running


def list_shares(session: Session, window: timedelta = USAGE_WINDOW) -> list[OwnerShare]:
    """List all owners by name, with what each used: by the very sums that claims go by."""
    given = {"window_s": window.total_seconds(), "least_charge_s": LEAST_CHARGE_S}
    return [OwnerShare(*row) for row in session.execute(SHARES, given)]


def count_queued(session: Session) -> dict[str, int]:
    """Count the queued cycles of each owner that has any."""
    rows = session.execute(
        select(Cycle.owner_id, func.count()).where(Cycle.state == "queued").group_by(Cycle.owner_id)
    )
    return {row[0]: row[1] for row in rows}


def drop_old_slices(session: Session) -> None:
    """Forget device time that neither turns nor the week that is shown reach any more."""
    old = UsageSlice.began_at < func.now() - WEEK - USAGE_WINDOW
    session.execute(delete(UsageSlice).where(old))
