"""What the API answers about cores and their latents, field by field."""

from typing import Any, Self

from api import examples
from api.schemas import Answer, example_of
from dmsae.service.lineage import CoreMember, CoreView, LatentPath, Origins, Place
from dmsae.service.tables import Latent


class LatentIdentity(Answer):
    """Who a latent is: where its encoder vector was first learned."""

    latent_id: str
    """`<job>.<cycle>.<sae_index>`."""
    origin_job_id: str
    origin_cycle: int
    origin_index: int
    origin_kind: str

    @staticmethod
    def fields_of(latent: Latent) -> dict[str, Any]:
        """Give the identity of a stored latent."""
        same = ("origin_job_id", "origin_cycle", "origin_index", "origin_kind")
        return {"latent_id": latent.public_id, **{name: getattr(latent, name) for name in same}}


class PlaceOut(Answer):
    """A latent's place in the core of one cycle."""

    core_index: int
    """Its row in that core, and in the next cycle's SAE."""
    sae_index: int | None
    """Its row in the SAE that selected it, or that a core given was made from; null where there is none."""
    parent_core_index: int | None
    """Its row in the core before; null where it is new."""
    rank: int | None
    """Among all candidates; 0 is the strongest; like all scores null where none was taken."""
    score: float | None
    """Nats a token, comparable between cycles."""
    score_se: float | None
    share: float | None
    """Of this cycle's total score; not comparable between cycles."""
    encoder_norm: float | None
    density: float | None
    decoder_cosine: float | None
    """With the cycle before, on the same tokens; null where it is new."""
    firing_jaccard: float | None
    is_borderline: bool | None


class CoreLatentOut(LatentIdentity, PlaceOut):
    """One latent of a core."""

    times_selected: int
    """In how many unbroken cycles up to this one, those before it was given to a training included."""

    @classmethod
    def of(cls, member: CoreMember) -> Self:
        """Show a core latent."""
        place = dict(PlaceOut.model_validate(member.place))
        identity = LatentIdentity.fields_of(member.latent)
        return cls(**identity, **place, times_selected=member.place.times_selected)


class CoreOut(Answer):
    """The core that one cycle selected, in the order of its rows."""

    model_config = example_of(examples.CORE)

    core_id: str
    cycle_index: int
    n_latents: int
    """Of the whole core, whatever `min_selected` keeps."""
    min_selected: int
    items: list[CoreLatentOut]
    next_cursor: str | None

    @classmethod
    def of(cls, core: CoreView) -> Self:
        """Show a core."""
        same = ("core_id", "cycle_index", "n_latents", "min_selected")
        return cls(
            **{name: getattr(core, name) for name in same},
            items=[CoreLatentOut.of(member) for member in core.members.items],
            next_cursor=core.members.next_cursor,
        )


class PathEntry(PlaceOut):
    """A latent's place in one cycle."""

    cycle_index: int

    @classmethod
    def of(cls, place: Place) -> Self:
        """Show a place."""
        return cls(**dict(PlaceOut.model_validate(place.entry)), cycle_index=place.cycle_index)


class LatentOut(LatentIdentity):
    """A latent, and what became of it."""

    times_selected: int
    last_cycle: int | None
    """The last cycle that selected it, of its own job; null where none has."""
    dropped_at: int | None
    """The cycle that no longer selected it; null while it is in the core."""
    last_share: float | None
    max_share: float | None
    path: list[PathEntry]
    """Its places in the cores that this job's cycles selected."""
    given: PlaceOut | None
    """Its place in the core that a training was given."""

    @classmethod
    def of(cls, path: LatentPath) -> Self:
        """Show a latent's story."""
        latent = path.latent
        same = ("times_selected", "dropped_at", "last_share", "max_share")
        return cls(
            **LatentIdentity.fields_of(latent),
            **{name: getattr(latent, name) for name in same},
            last_cycle=latent.last_index,
            path=[PathEntry.of(place) for place in path.places],
            given=None if path.given is None else PlaceOut.model_validate(path.given),
        )


class LineageOut(Answer):
    """Every latent that any core of a job held, the oldest first."""

    model_config = example_of(examples.LINEAGE)

    items: list[LatentOut]
    next_cursor: str | None


class OriginOut(Answer):
    """A cycle that latents come from."""

    job_id: str
    cycle_index: int


class OriginsOut(Answer):
    """How many latents of each cycle's core come from each origin."""

    model_config = example_of(examples.ORIGINS)

    cycles: list[int]
    """The rows: finished cycles."""
    origins: list[OriginOut]
    """The columns: this job's cycles, then those of other jobs."""
    matrix: list[list[int]]

    @classmethod
    def of(cls, found: Origins) -> Self:
        """Show the matrix."""
        origins = [OriginOut(job_id=job_id, cycle_index=index) for job_id, index in found.origins]
        return cls(cycles=found.cycles, origins=origins, matrix=found.matrix)
