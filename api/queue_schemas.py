"""What the API answers about the shared queue, field by field."""

from datetime import datetime
from typing import Self

from api.schemas import Answer, example_of
from dmsae.service.queue_view import LineView, QueueView, ShareView, WaitingView, WorkerView

QUEUE = {
    "is_paused": False,
    "pause_reason": None,
    "lines": [
        {
            "resource_class": "gpu",
            "taken_at": "2026-11-25T10:00:05Z",
            "n_queued": 41,
            "waiting": [
                {
                    "job_id": "job_0193a1b2c3d47e5f8a9b0c1d2e3f4a5b",
                    "job_name": "first try",
                    "cycle_index": 2,
                    "owner": "ada",
                    "priority": "normal",
                    "held": False,
                    "queued_at": "2026-11-25T09:12:00Z",
                    "position": 0,
                    "starts_in_s": 340.0,
                    "memory_bytes": 31_000_000_000,
                    "why": "It waits for a free gpu worker; it comes next, and begins in about 6 min.",
                }
            ],
        }
    ],
    "workers": [
        {
            "id": "lab-1.GPU-5f3a",
            "hostname": "lab-1",
            "device": "cuda:0",
            "device_name": "NVIDIA H100 80GB HBM3",
            "resource_class": "gpu",
            "memory_bytes": 85_520_809_984,
            "last_seen_at": "2026-11-25T10:00:01Z",
            "running": {
                "job_id": "job_0193a1b2c3d47e5f8a9b0c1d2e3f4a5c",
                "job_name": None,
                "owner": "ada",
                "cycle_index": 0,
                "attempt_number": 1,
                "phase": "training",
                "opened_at": "2026-11-25T09:31:00Z",
            },
        }
    ],
    "owners": [
        {
            "owner": "ada",
            "weight": 1.0,
            "device_s": 5230.0,
            "share": 0.4,
            "week_s": 81400.0,
            "week_share": 0.31,
            "n_running": 1,
            "n_queued": 12,
            "max_running": None,
            "max_queued": None,
        }
    ],
}


class WaitingOut(Answer):
    """A queued cycle."""

    job_id: str
    job_name: str | None
    cycle_index: int
    owner: str
    priority: str
    held: bool
    """Whether it is kept from being claimed until it is released."""
    queued_at: datetime
    position: int
    """How many come first."""
    starts_in_s: float | None
    """When it would begin if nothing else came; null while nothing can be told."""
    memory_bytes: int | None
    """What it takes of its device at most, by estimate."""
    why: str
    """Why it waits."""

    @classmethod
    def of(cls, view: WaitingView) -> Self:
        """Show one."""
        names = ("job_id", "job_name", "cycle_index", "priority", "held", "queued_at", "memory_bytes")
        return cls(
            owner=view.owner,
            position=view.place.position,
            starts_in_s=view.place.starts_in_s,
            why=view.why,
            **{name: getattr(view.cycle, name) for name in names},
        )


class LineOut(Answer):
    """What waits for one class of devices, in the order of claims."""

    resource_class: str
    taken_at: datetime
    """When the order was last worked out."""
    n_queued: int
    """All that waited then."""
    waiting: list[WaitingOut]
    """The first of them that wait still."""

    @classmethod
    def of(cls, view: LineView) -> Self:
        """Show one."""
        waiting = [WaitingOut.of(each) for each in view.waiting]
        return cls(
            resource_class=view.resource_class,
            taken_at=view.taken_at,
            n_queued=view.n_queued,
            waiting=waiting,
        )


class RunningOut(Answer):
    """What a worker runs."""

    job_id: str
    job_name: str | None
    owner: str
    cycle_index: int
    attempt_number: int
    phase: str
    opened_at: datetime


class WorkerOut(Answer):
    """A worker that is there."""

    id: str
    hostname: str
    device: str
    device_name: str | None
    resource_class: str
    memory_bytes: int | None
    last_seen_at: datetime
    running: RunningOut | None

    @classmethod
    def of(cls, view: WorkerView) -> Self:
        """Show one."""
        names = [name for name in cls.model_fields if name != "running"]
        running = None if view.running is None else RunningOut.model_validate(view.running)
        return cls(running=running, **{name: getattr(view.worker, name) for name in names})


class ShareOut(Answer):
    """An owner that has work, or had some in the last 7 days."""

    owner: str
    weight: float
    device_s: float
    """Device-seconds used in the last 24 hours, running cycles counted: turns go by these."""
    share: float | None
    """Of what all owners used in the last 24 hours."""
    week_s: float
    """Device-seconds used in the last 7 days."""
    week_share: float | None
    """Of what all owners used in the last 7 days."""
    n_running: int
    n_queued: int
    max_running: int | None
    max_queued: int | None

    @classmethod
    def of(cls, view: ShareView) -> Self:
        """Show one."""
        names = ("weight", "device_s", "n_running", "max_running", "max_queued")
        values = {name: getattr(view.share, name) for name in names}
        week = {"week_s": view.week_s, "week_share": view.week_part}
        return cls(owner=view.share.name, share=view.part, n_queued=view.n_queued, **week, **values)


class QueueOut(Answer):
    """The shared queue."""

    model_config = example_of(QUEUE)

    is_paused: bool
    pause_reason: str | None
    lines: list[LineOut]
    """One for each class of devices for which cycles wait."""
    workers: list[WorkerOut]
    owners: list[ShareOut]

    @classmethod
    def of(cls, view: QueueView) -> Self:
        """Show it."""
        return cls(
            is_paused=view.is_paused,
            pause_reason=view.pause_reason,
            lines=[LineOut.of(line) for line in view.lines],
            workers=[WorkerOut.of(worker) for worker in view.workers],
            owners=[ShareOut.of(owner) for owner in view.owners],
        )
