"""In which order would the queued cycles be claimed, and when would each begin? No database is asked here.

The rules are those of `claim_cycle`, played through for workers that take whatever comes first; a cycle that
waits for something else than a free worker stands behind all others.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from dmsae.service.claims import LEAST_CHARGE_S, QueueRules
from dmsae.service.shares import OwnerShare

N_PLACES = 10_000
"""Only so many cycles of a class have a place."""
ROUNDING = 1 + 1e-6

Lengths = Mapping[str | None, float]
"""Mean seconds of an attempt by job and by owner, under None that of all; what is not known is left out."""


class Waiting(NamedTuple):
    """A queued cycle, as far as the order goes by it."""

    id: str
    job_id: str
    owner_id: str
    priority_rank: int
    queued_at: datetime
    is_blocked: bool
    """Whether it waits for something else than a free worker."""


@dataclass
class Line:
    """The cycles of one owner that wait, and how its turns stand."""

    owner: OwnerShare
    best_first: list[Waiting]
    oldest_first: list[Waiting]
    device_s: float
    high_s: float
    taken: set[str] = field(default_factory=set)

    @property
    def ratio(self) -> float:
        """Give the device time used for each unit of weight."""
        return self.device_s / self.owner.weight

    def head(self, line: list[Waiting]) -> Waiting | None:
        """Give the first that is not taken; those that are fall out of the line."""
        while line and line[-1].id in self.taken:
            line.pop()
        return line[-1] if line else None

    def take(self, cycle: Waiting, cost_s: float) -> None:
        """Take one out, and charge its owner."""
        self.taken.add(cycle.id)
        self.device_s += cost_s
        self.high_s += cost_s * (cycle.priority_rank == 0)


def order_claims(
    waiting: Sequence[Waiting],
    shares: Mapping[str, OwnerShare],
    rules: QueueRules,
    *,
    now: datetime,
    lengths: Lengths,
) -> list[Waiting]:
    """Put cycles into the order of claims if nothing else came, the blocked ones last."""
    lines = _make_lines([cycle for cycle in waiting if not cycle.is_blocked], shares)
    starved_since = now - timedelta(seconds=rules.starved_after_s)
    order: list[Waiting] = []
    while lines and len(order) < N_PLACES:
        line, cycle = _next(lines, rules, starved_since)
        order.append(cycle)
        line.take(cycle, max(LEAST_CHARGE_S, mean_length(lengths, cycle.job_id, cycle.owner_id) or 0.0))
        if line.head(line.best_first) is None:
            lines.remove(line)
    blocked = sorted((cycle for cycle in waiting if cycle.is_blocked), key=lambda cycle: cycle.queued_at)
    return [*order, *blocked][:N_PLACES]


def _make_lines(waiting: Sequence[Waiting], shares: Mapping[str, OwnerShare]) -> list[Line]:
    by_owner: dict[str, list[Waiting]] = defaultdict(list)
    for cycle in waiting:
        by_owner[cycle.owner_id].append(cycle)
    lines = []
    for owner_id, cycles in by_owner.items():
        best = sorted(cycles, key=lambda c: (c.priority_rank, c.queued_at, c.id), reverse=True)
        oldest = sorted(cycles, key=lambda c: (c.queued_at, c.id), reverse=True)
        share = shares[owner_id]
        lines.append(Line(share, best, oldest, share.device_s, share.high_s))
    return lines


def _next(lines: Sequence[Line], rules: QueueRules, starved_since: datetime) -> tuple[Line, Waiting]:
    """Choose the owner whose turn it is, and its cycle, as `claim_cycle` does."""
    mean = sum(line.ratio for line in lines) / len(lines)
    best: tuple[Any, ...] | None = None
    for line in lines:
        head, oldest = line.head(line.best_first), line.head(line.oldest_first)
        if head is None or oldest is None:
            continue
        if oldest.queued_at <= starved_since and line.ratio <= mean * ROUNDING:
            key: tuple[Any, ...] = (-1, oldest.queued_at.timestamp(), 0.0, line.owner.owner_id)
            cycle = oldest
        else:
            quota = rules.high_quota_s if line.owner.high_quota_s is None else line.owner.high_quota_s
            level = max(head.priority_rank, int(line.high_s >= quota))
            key = (level, line.ratio, head.queued_at.timestamp(), line.owner.owner_id)
            cycle = head
        if best is None or key < best[0]:
            best = (key, line, cycle)
    if best is None:
        raise ValueError("no line holds a cycle")
    return best[1], best[2]


def mean_length(lengths: Lengths, job_id: str | None, owner_id: str | None) -> float | None:
    """Give the mean length of a job's attempts, else of its owner's, else that of all, else None."""
    return next((lengths[of] for of in (job_id, owner_id, None) if of in lengths), None)


def list_starts(order: Sequence[Waiting], free_in_s: Sequence[float], lengths: Lengths) -> list[float | None]:
    """Let workers take cycles in order; a worker that took one of unknown length tells no more."""
    free, starts = list(free_in_s), list[float | None]()
    heapq.heapify(free)
    for cycle in order:
        if cycle.is_blocked or not free:
            starts.append(None)
            continue
        start_s = heapq.heappop(free)
        starts.append(round(start_s, 1))
        length = mean_length(lengths, cycle.job_id, cycle.owner_id)
        if length is not None:
            heapq.heappush(free, start_s + length)
    return starts
