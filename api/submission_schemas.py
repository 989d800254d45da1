"""What is answered about a submission that was not carried out: a dry run, or a job that did the same?"""

from typing import Any, Literal, Self

from api import examples
from api.schemas import Answer, JobOut, example_of
from dmsae.service.progress import JobView


class ReusedOut(JobOut):
    """A finished job with the same config, data and code as what was submitted; nothing new was stored."""

    model_config = example_of(examples.REUSED)

    reused: Literal[True]

    @classmethod
    def of(cls, view: JobView) -> Self:
        """Show a job that is answered instead of a new one."""
        return cls(**dict(JobOut.of(view)), reused=True)


class Quantity(Answer):
    """A figure, or null, and where it comes from."""

    value: int | float | None
    unit: str
    source: str


class CycleWidths(Answer):
    """The widths of one cycle: exact in cycle 0, bounds from above later."""

    cycle_index: int
    is_exact: bool
    n_core: int
    """Latents of the core that it starts from."""
    prefix_widths: list[int]
    stored_bytes: int | None
    """At most what it will store; null while the model's width is not known."""
    gpu_hours: float | None
    """What it would compute on one GPU, by arithmetic; null on a CPU, or where too little is known."""


class DryRunOut(Answer):
    """What a submission would be; nothing was stored."""

    model_config = example_of(examples.DRY_RUN)

    config: dict[str, Any]
    max_core: int
    cycles: list[CycleWidths]
    memory: Quantity
    """Of the device, at its peak; on a CPU the whole process."""
    host_memory: Quantity
    """Of the machine, beside a GPU."""
    time: Quantity
    """Of all cycles, one after the other."""
    gpu_hours: Quantity
    """The same in hours of one GPU."""
    retention_days: int | None
    """Days after its end until the job would be deleted; null: never."""
    identical_to: str | None
    """A finished job with the same config, data and code: the same result."""


class DryRunGroupOut(Answer):
    """What a submission of several jobs would be; nothing was stored."""

    model_config = example_of(examples.DRY_RUN_GROUP)

    n_jobs: int
    jobs: list[DryRunOut]
