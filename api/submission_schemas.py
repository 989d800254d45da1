"""What the API answers about a submission that it did not have to carry out."""

from typing import Literal, Self

from api import examples
from api.schemas import JobOut, example_of
from dmsae.service.progress import JobView


class ReusedOut(JobOut):
    """A finished job with the same config, data and code as what was submitted; nothing new was stored."""

    model_config = example_of(examples.REUSED)

    reused: Literal[True]

    @classmethod
    def of(cls, view: JobView) -> Self:
        """Show a job that is answered instead of a new one."""
        return cls(**dict(JobOut.of(view)), reused=True)
