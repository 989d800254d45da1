"""What the API answers about cores themselves, field by field."""

from datetime import datetime
from typing import Any, Self

from api import examples
from api.schemas import Answer, example_of
from dmsae.service.paging import Page
from dmsae.service.publishing import CoreAbout

PUBLISH_REQUEST: dict[str, Any] = {"name": "lab/gemma-2-2b-l12"}
CORE_ABOUT: dict[str, Any] = {
    "core_id": examples.CORE["core_id"],
    "kind": "selected",
    "job_id": examples.JOB_ID,
    "cycle_index": 1,
    "owner": "ada",
    "n_latents": 121,
    "seed": 1,
    "published_as": "lab/gemma-2-2b-l12@3",
    "name": "lab/gemma-2-2b-l12",
    "version": 3,
    "published_by": "ada",
    "published_at": examples.LATER,
    "created_at": examples.MOMENT,
}
CORE_LIST: dict[str, Any] = {"items": [CORE_ABOUT], "next_cursor": None}


class CoreAboutOut(Answer):
    """A core: where it comes from, and under which name it is published."""

    model_config = example_of(CORE_ABOUT)

    core_id: str
    kind: str
    """selected by a cycle; else how the core that a training was given came about."""
    job_id: str
    cycle_index: int
    """The cycle that selected it, or was given it."""
    owner: str
    """Of the job."""
    n_latents: int
    seed: int | None
    published_as: str | None
    """`name@version`, by which trainings may refer to it; null where it is not published."""
    name: str | None
    version: int | None
    published_by: str | None
    published_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, about: CoreAbout) -> Self:
        """Show a core."""
        same = ("kind", "n_latents", "seed", "name", "published_at", "created_at")
        return cls(
            **{name: getattr(about.core, name) for name in same},
            core_id=about.core.id,
            job_id=about.job_id,
            cycle_index=about.cycle_index,
            owner=about.owner,
            published_as=about.published_as,
            version=about.core.published_version,
            published_by=about.publisher,
        )


class CoreList(Answer):
    """Some cores."""

    model_config = example_of(CORE_LIST)

    items: list[CoreAboutOut]
    next_cursor: str | None

    @classmethod
    def of(cls, page: Page[CoreAbout]) -> Self:
        """Show a page."""
        return cls(items=[CoreAboutOut.of(about) for about in page.items], next_cursor=page.next_cursor)
