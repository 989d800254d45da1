"""What the API answers about keys, and administrators about the queue and owners, field by field."""

from datetime import datetime
from typing import Any, Self

from api.schemas import Answer, example_of
from dmsae.service.keys import KeyView
from dmsae.service.paging import Page
from dmsae.service.queue_tables import QueuePause
from dmsae.service.shares import OwnerShare

KEY_REQUEST: dict[str, Any] = {"name": "notebook", "role": "submitter", "expires_in_days": 90}
QUEUE_CHANGES: list[Any] = [{"is_paused": True, "reason": "power cut at noon"}, {"is_paused": False}]
TURN_CHANGES: list[Any] = [{"held": True}, {"held": False, "priority": "high"}]
OWNER_LIMITS: dict[str, Any] = {"weight": 2.0, "max_running": 4, "max_queued": None}

KEY: dict[str, Any] = {
    "id": "key_019ab2f0c4d17c3e8a51d2f6b7e80913",
    "owner": "ada",
    "name": "notebook",
    "role": "submitter",
    "prefix": "dmsae_n7Kq2x",
    "state": "valid",
    "created_at": "2026-11-25T16:20:41.204117Z",
    "expires_at": "2027-02-23T16:20:41.204117Z",
    "revoked_at": None,
    "last_used_at": "2026-11-25T16:23:05.770012Z",
}
KEY_MADE: dict[str, Any] = {**KEY, "last_used_at": None, "key": "dmsae_n7Kq2x... (49 characters)"}
KEY_LIST: dict[str, Any] = {"items": [KEY], "next_cursor": None}
PAUSE: dict[str, Any] = {
    "is_paused": True,
    "reason": "power cut at noon",
    "paused_at": "2026-11-25T11:40:00Z",
}
OWNER: dict[str, Any] = {
    "name": "ada",
    "weight": 2.0,
    "max_running": 4,
    "max_queued": None,
    "high_quota_s": None,
    "device_s": 5230.0,
    "high_s": 0.0,
    "n_running": 1,
}
OWNER_LIST: dict[str, Any] = {"items": [OWNER]}


class KeyOut(Answer):
    """An API key, without what it is."""

    model_config = example_of(KEY)

    id: str
    owner: str
    name: str
    role: str
    """reader, submitter or admin."""
    prefix: str
    """How it begins, to tell it from others; empty if it is older than this field."""
    state: str
    """valid, expired or revoked."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Within a minute; null: never."""

    @classmethod
    def of(cls, view: KeyView, **more: Any) -> Self:
        """Show one."""
        shown = KeyOut.model_fields.keys() - {"owner", "state"}
        return cls(
            owner=view.owner,
            state=view.state,
            **{name: getattr(view.key, name) for name in shown},
            **more,
        )


class KeyMadeOut(KeyOut):
    """A key that was just made."""

    model_config = example_of(KEY_MADE)

    key: str | None
    """The key itself, shown now and never again: only its hash is stored. Null in a repeated answer."""


class KeyList(Answer):
    """A page of keys, the newest first."""

    model_config = example_of(KEY_LIST)

    items: list[KeyOut]
    next_cursor: str | None
    """Send it as `cursor` for the next page; null at the end."""

    @classmethod
    def of(cls, page: Page[KeyView]) -> Self:
        """Show a page."""
        return cls(items=[KeyOut.of(view) for view in page.items], next_cursor=page.next_cursor)


class PauseOut(Answer):
    """Whether the queue stands still."""

    model_config = example_of(PAUSE)

    is_paused: bool
    reason: str | None
    paused_at: datetime | None

    @classmethod
    def of(cls, pause: QueuePause | None) -> Self:
        """Show it."""
        if pause is None:
            return cls(is_paused=False, reason=None, paused_at=None)
        return cls(is_paused=True, reason=pause.reason, paused_at=pause.paused_at)


class OwnerOut(Answer):
    """An owner: what it may have of the devices, and what it used of them."""

    model_config = example_of(OWNER)

    name: str
    weight: float
    """Share of the devices, beside the weights of the others who wait."""
    max_running: int | None
    """Most cycles at once; null: any number."""
    max_queued: int | None
    """Most jobs that wait for their first claim; null: any number."""
    high_quota_s: float | None
    """Device-seconds in 24 hours within which `high` goes first; null: as the service's settings say."""
    device_s: float
    """Device-seconds used in the last 24 hours, running cycles counted."""
    high_s: float
    """Of these, for cycles of high priority."""
    n_running: int


class OwnerList(Answer):
    """All owners, by name."""

    model_config = example_of(OWNER_LIST)

    items: list[OwnerOut]

    @classmethod
    def of(cls, shares: list[OwnerShare]) -> Self:
        """Show them."""
        return cls(items=[OwnerOut.model_validate(share) for share in shares])
