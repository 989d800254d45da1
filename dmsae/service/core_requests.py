"""What may a client say about cores?"""

from typing import Annotated

from pydantic import StringConstraints

from dmsae.service.requests import Partial, PlainText
from dmsae.sources import CORE_NAME


class PublishRequest(Partial):
    """The name under which a core is to be published."""

    name: Annotated[PlainText, StringConstraints(pattern=f"^{CORE_NAME}$")]
    """Two parts, such as `lab/gemma-2-2b-l12`; the version is counted by the service."""
