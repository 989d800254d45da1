"""What may a client say about keys, and an administrator about the queue, jobs and owners?"""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from dmsae.service.keys import LONGEST_KEY_NAME, OWNER_NAME
from dmsae.service.queue_control import LARGEST, LARGEST_QUOTA_S, OwnerChanges
from dmsae.service.requests import Name, Partial, PlainText, Priority

OwnerName = Annotated[PlainText, StringConstraints(pattern=f"^{OWNER_NAME.pattern}$")]
Role = Literal["reader", "submitter", "admin"]
KeyName = Annotated[PlainText, StringConstraints(max_length=LONGEST_KEY_NAME)]
NO_LIMIT = -1
"""What `OwnerChanges` takes as: no limit."""


class KeyRequest(Partial):
    """An API key to make."""

    owner: OwnerName | None = None
    """Whose; by default the caller's own. Only administrators may name others, made if they are new."""
    name: KeyName = ""
    """What it is for."""
    role: Role = "submitter"
    """reader: look at everything; submitter: submit too, and change the owner's jobs; admin: everything."""
    expires_in_days: int | None = Field(None, ge=1, le=3650)
    """After so many days it is no longer valid; null: never."""


class QueueChanges(Partial):
    """Whether the queue stands still."""

    is_paused: bool
    """Nothing is claimed while it is; what runs goes on."""
    reason: Name | None = None
    """What those are told who wait."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reason is not None and not self.is_paused:
            told = {"param": "reason", "value": self.reason, "code": "invalid_value"}
            raise PydanticCustomError("rule", "{rule}", {**told, "rule": "goes with is_paused = true alone"})
        return self


class TurnChanges(Partial):
    """What may change about a job's turn, whoever owns it; what is left out stays."""

    held: bool = False
    """Whether its cycles are kept from being claimed; one that runs goes on."""
    priority: Priority = "normal"
    """For the cycles that have not finished."""


class OwnerLimits(Partial):
    """How much of the devices an owner may have; what is left out stays, null takes a limit away."""

    weight: float = Field(1.0, gt=0, le=LARGEST)
    """Share of the devices, beside the weights of the others who wait."""
    max_running: int | None = Field(None, ge=0, le=LARGEST)
    """Most cycles at once."""
    max_queued: int | None = Field(None, ge=0, le=LARGEST)
    """Most jobs that wait for their first claim."""
    high_quota_s: float | None = Field(None, ge=0, le=LARGEST_QUOTA_S)
    """Device-seconds in 24 hours within which `high` goes first; null: as the service's settings say."""

    def changes(self) -> OwnerChanges:
        """Give what is to change."""
        given = self.model_dump(exclude_unset=True)
        return OwnerChanges(**{name: NO_LIMIT if value is None else value for name, value in given.items()})
