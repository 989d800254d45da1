"""What a trainer may say: one JSON object a line. Whatever else it prints is no message."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dmsae.service.plain_json import read_plain_json

LARGEST_COUNT = 2**53
"""Larger numbers are no counts, and some readers of JSON would round them."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PhaseMessage(_Message):
    """The trainer begins a phase."""

    type: Literal["phase"]
    phase: Literal["loading", "harvesting", "training", "attributing", "evaluating"]


class ProgressMessage(_Message):
    """Where training stands, about once a second; every measure may be unknown."""

    type: Literal["progress"]
    step: Count
    n_steps: Count | None = None
    n_tokens: Count = 0
    n_tokens_total: Count | None = None
    loss: float | None = None
    aux_loss: float | None = None
    l0: float | None = None
    l0_core: float | None = None
    explained_variance: float | None = None
    explained_variance_first: float | None = None
    dead_fraction: float | None = None
    clipped_fraction: float | None = None
    lr: float | None = None
    tokens_per_s: float | None = None
    time_left_s: float | None = None


class EventMessage(_Message):
    """Something that the job's owner should know."""

    type: Literal["event"]
    kind: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    message: str = Field(max_length=2000)
    data: dict[str, Any] = {}


class CheckpointMessage(_Message):
    """A checkpoint of the cycle is written, as a folder."""

    type: Literal["checkpoint"]
    step: Count
    path: str = Field(max_length=4096)


class FailedMessage(_Message):
    """The cycle cannot succeed; the last line."""

    type: Literal["failed"]
    code: str
    message: str
    param: str | None = None


class DoneMessage(_Message):
    """The output folder is complete; the last line."""

    type: Literal["done"]


Message = PhaseMessage | ProgressMessage | EventMessage | CheckpointMessage | FailedMessage | DoneMessage

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def parse_line(line: bytes) -> Message | None:
    """Read one line of a trainer's output; None if it is no message."""
    try:
        return _MESSAGE.validate_python(read_plain_json(line))
    except (ValidationError, ValueError, RecursionError):
        return None
