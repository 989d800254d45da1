"""What the API answers about latents of the whole lab and the story of one, field by field."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api import examples
from api.lineage_schemas import LatentIdentity, PlaceOut
from api.row_streams import Format
from api.schemas import Answer, example_of
from dmsae.service.latent_stories import JobPath, Story
from dmsae.service.latents import LatentFilter, Order
from dmsae.service.lineage import LatentPath, Origins
from dmsae.service.paging import LARGEST_BIGINT, Page
from dmsae.service.tables import Latent

JOB_ID = r"^[A-Za-z0-9_-]{1,64}$"
OriginKind = Literal[
    "learned", "selected", "filtered", "random_directions", "random_latents", "frequent", "energy"
]


class LatentQuery(BaseModel):
    """Which latents, in which order."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)

    job_id: str | None = Field(None, pattern=JOB_ID)
    """Held by a core of this job, be it that a training was given."""
    origin_job_id: str | None = Field(None, pattern=JOB_ID)
    """Learned by this job."""
    origin_cycle: int | None = Field(None, ge=0, le=10_000)
    """Learned in this cycle of `origin_job_id`."""
    origin_kind: OriginKind | None = None
    """learned, or the kind of core that a training was given and that made it, such as random_directions."""
    min_times_selected: int | None = Field(None, ge=0, le=LARGEST_BIGINT)
    """Selected in at least so many unbroken cycles of its own job."""
    min_last_share: float | None = Field(None, ge=-1, le=1)
    """Share of the last cycle that selected it."""
    min_max_share: float | None = Field(None, ge=-1, le=1)
    """Share of the cycle of its own job where it was largest."""
    is_alive: bool | None = None
    """Whether the last finished cycle of its own job selected it."""
    order: Order = "newest"
    """By when it was recorded, or by a column, the largest first."""
    format: Format = "json"
    """json: a page; csv or parquet: all of the list, a row for each latent."""
    cursor: str | None = Field(None, max_length=500)
    """`next_cursor` of the page before; leave out to begin."""
    limit: int | None = Field(None, ge=1, le=200)
    """Entries of a page; 100 unless said."""

    def filter(self) -> LatentFilter:
        """Give what the list is narrowed to."""
        return LatentFilter(**{name: getattr(self, name) for name in LatentFilter.__dataclass_fields__})


class LatentRow(LatentIdentity):
    """A latent in a list, with what is kept of its own job's cycles."""

    times_selected: int
    last_cycle: int | None
    """The last cycle that selected it; null where none has."""
    dropped_at: int | None
    """The cycle that no longer selected it; null while it is in the core."""
    last_share: float | None
    max_share: float | None

    @classmethod
    def of(cls, latent: Latent) -> Self:
        """Show a latent."""
        same = ("times_selected", "dropped_at", "last_share", "max_share")
        kept = {name: getattr(latent, name) for name in same}
        return cls(**LatentIdentity.fields_of(latent), **kept, last_cycle=latent.last_index)


_ROW: dict[str, Any] = {
    **examples.IDENTITY,
    "times_selected": 2,
    "last_cycle": 1,
    "dropped_at": 2,
    "last_share": 0.024,
    "max_share": 0.031,
}
LATENT_LIST: dict[str, Any] = {"items": [_ROW], "next_cursor": None}


class LatentList(Answer):
    """Some latents. A page may hold fewer than its limit, even none: the last has no `next_cursor`."""

    model_config = example_of(LATENT_LIST)

    items: list[LatentRow]
    next_cursor: str | None
    """Where the list goes on; null on its last page."""

    @classmethod
    def of(cls, page: Page[Latent]) -> Self:
        """Show a page."""
        return cls(items=[LatentRow.of(latent) for latent in page.items], next_cursor=page.next_cursor)


class LineageRow(LatentIdentity, PlaceOut):
    """A latent's place in one cycle of a job, as a row of CSV or Parquet."""

    cycle_index: int
    is_given: bool
    """Whether it is its place in the core that a training was given, not in the one that it selected."""
    dropped_at: int | None

    @classmethod
    def of(cls, path: LatentPath) -> list[Self]:
        """Show each place of a latent."""
        identity = {**LatentIdentity.fields_of(path.latent), "dropped_at": path.latent.dropped_at}
        given = [] if path.given is None else [(0, path.given, True)]
        places = given + [(place.cycle_index, place.entry, False) for place in path.places]
        return [
            cls(**identity, **dict(PlaceOut.model_validate(entry)), cycle_index=cycle, is_given=is_given)
            for cycle, entry, is_given in places
        ]


class OriginRow(Answer):
    """How many latents of one cycle's core come from one origin, as a row of CSV or Parquet."""

    cycle_index: int
    origin_job_id: str
    origin_cycle: int
    n_latents: int

    @classmethod
    def of(cls, found: Origins) -> list[Self]:
        """Show each entry of the matrix that is not 0."""
        return [
            cls(cycle_index=cycle, origin_job_id=origin[0], origin_cycle=origin[1], n_latents=n_latents)
            for cycle, counts in zip(found.cycles, found.matrix, strict=True)
            for origin, n_latents in zip(found.origins, counts, strict=True)
            if n_latents
        ]


class SelectionOut(PlaceOut):
    """A latent's place in one core."""

    cycle_index: int
    core_id: str
    core_kind: str
    """selected; of a core that a training was given also filtered, random_latents, frequent, ..."""
    published_as: str | None
    """`name@version` of the core, where it is published."""
    times_selected: int | None
    """In how many unbroken cycles up to this one."""


class DropOut(Answer):
    """A cycle that did not select a latent of its core again; null is what was not recorded of it."""

    cycle_index: int
    score: float | None
    """As that cycle measured it, in nats a token."""
    share: float | None
    rank: int | None


class JobPathOut(Answer):
    """What one job did with a latent."""

    job_id: str
    kind: str
    owner: str
    name: str | None
    deleted_at: datetime | None
    """Since when the job is deleted; of its latents those stay that others carry."""
    given: SelectionOut | None
    """Its place in the core that a training was given."""
    selections: list[SelectionOut]
    """Its places in the cores that the job's cycles selected."""
    drops: list[DropOut]

    @classmethod
    def of(cls, path: JobPath) -> Self:
        """Show a path."""
        return cls(
            **path.job._asdict(),
            given=None if path.given is None else SelectionOut.model_validate(path.given),
            selections=[SelectionOut.model_validate(selection) for selection in path.selections],
            drops=[DropOut.model_validate(drop) for drop in path.drops],
        )


class DescendantOut(JobPathOut):
    """A job beside its own whose cores carry a latent's encoder vector."""

    relation: Literal["descended"] = "descended"


class MatchedOut(LatentIdentity):
    """A latent that was learned elsewhere, points the same way and fires at the same tokens."""

    relation: Literal["matched"] = "matched"
    match_job_id: str
    """The match that found it."""
    decoder_cosine: float
    firing_correlation: float | None
    best_cosine: float | None
    """Mean over the latents of the first of the two cores of their largest cosine with any of the second."""
    best_cosine_random: float | None
    """The same with random directions in the place of the second core: what chance gives."""


_SELECTION: dict[str, Any] = {
    **examples.PLACE,
    "cycle_index": 1,
    "core_id": "core_019ab2f51d2a7c90a1b2c3d4e5f60718",
    "core_kind": "selected",
    "published_as": "lab/gemma-2-2b-l12@3",
    "times_selected": 2,
}
_PATH: dict[str, Any] = {
    "job_id": examples.JOB_ID,
    "kind": "distillation",
    "owner": "ada",
    "name": "first try",
    "deleted_at": None,
    "given": None,
    "selections": [_SELECTION],
    "drops": [{"cycle_index": 2, "score": 0.0004, "share": 0.0003, "rank": 412}],
}
_DESCENDANT = {**_PATH, "job_id": "job_019ab2f7d2a17c3e8a51d2f6b7e80914", "relation": "descended"}
_MATCHED: dict[str, Any] = {
    **examples.IDENTITY,
    "latent_id": "job_019ab2f0c5a27c3e8a51d2f6b7e80915.1.40",
    "relation": "matched",
    "match_job_id": "job_019ab2f7d2a17c3e8a51d2f6b7e80914",
    "decoder_cosine": 0.83,
    "firing_correlation": 0.71,
    "best_cosine": 0.33,
    "best_cosine_random": 0.13,
}
DESCENDANT_LIST: dict[str, Any] = {"items": [_DESCENDANT], "next_cursor": None}
STORY: dict[str, Any] = {
    **_ROW,
    "own": _PATH,
    "descendants": [_DESCENDANT],
    "descendants_cursor": None,
    "matches": [_MATCHED],
    "has_more_matches": False,
}


class DescendantList(Answer):
    """Jobs whose cores carry a latent's encoder vector, the oldest first."""

    model_config = example_of(DESCENDANT_LIST)

    items: list[DescendantOut]
    next_cursor: str | None

    @classmethod
    def of(cls, page: Page[JobPath]) -> Self:
        """Show a page."""
        return cls(items=[DescendantOut.of(path) for path in page.items], next_cursor=page.next_cursor)


class StoryOut(LatentRow):
    """All that is known of one latent."""

    model_config = example_of(STORY)

    own: JobPathOut
    """In the job that learned it."""
    descendants: list[DescendantOut]
    """In other jobs, whoever owns them: the first 50."""
    descendants_cursor: str | None
    """For `GET /latents/{latent_id}/descendants`, where there are more; else null."""
    matches: list[MatchedOut]
    """The best first."""
    has_more_matches: bool
    """Whether there are more than the 500 that are told."""

    @classmethod
    def of_story(cls, story: Story) -> Self:
        """Show a story."""
        descendants = DescendantList.of(story.descendants)
        return cls(
            **dict(LatentRow.of(story.latent)),
            own=JobPathOut.of(story.own),
            descendants=descendants.items,
            descendants_cursor=descendants.next_cursor,
            matches=[MatchedOut.model_validate(alike) for alike in story.matches],
            has_more_matches=story.has_more_matches,
        )
