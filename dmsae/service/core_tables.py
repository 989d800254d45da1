"""The tables of cores and latents: who is in which core, where each was learned, dropped, and found again."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.table_base import Table, one_of

CORE_KINDS = ("selected", "filtered", "random_directions", "random_latents", "frequent", "energy")
SORT_KEYS = {
    "times_selected": "times_selected",
    "last_share": "COALESCE(last_share, '-Infinity'::double precision)",
    "max_share": "COALESCE(max_share, '-Infinity'::double precision)",
}
"""What lists of latents are sorted by, as an index holds it: those without a share come last."""


class Core(Table):
    """A set of latents to build an SAE around; never changed once written."""

    __tablename__ = "cores"
    __table_args__ = (
        one_of("kind", CORE_KINDS),
        UniqueConstraint("name", "published_version"),
        CheckConstraint(
            "(name IS NULL) = (published_version IS NULL) AND (name IS NULL) = (published_at IS NULL)"
            " AND (name IS NULL) = (published_by IS NULL)",
            "published_whole",
        ),
        Index("ix_cores_published", "published_at", "id", postgresql_where=text("name IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    cycle_id: Mapped[str | None] = mapped_column(ForeignKey("cycles.id"), unique=True)
    """The cycle that selected it."""
    given_cycle_id: Mapped[str | None] = mapped_column(ForeignKey("cycles.id"), unique=True)
    """The training's cycle that it was made for, where it was."""
    seed: Mapped[int | None]
    n_latents: Mapped[int]
    name: Mapped[str | None]
    """Under which it is published; then triggers refuse to change or delete it or its places."""
    published_version: Mapped[int | None] = mapped_column(Integer)
    published_at: Mapped[datetime | None]
    published_by: Mapped[str | None] = mapped_column(ForeignKey("owners.id"))
    object_prefix: Mapped[str]
    provenance: Mapped[dict[str, Any] | None]
    """What travels with it: d_model, rms, median_norm, and the trainer's `Provenance`; null in old rows."""
    overlap: Mapped[float | None]
    """Share of a given core's latents that the referenced cycle selected."""
    is_weak_control: Mapped[bool | None]
    """Whether that is too large for a control."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Latent(Table):
    """The identity of a core latent: where its encoder vector was first learned."""

    __tablename__ = "latents"
    __table_args__ = (
        UniqueConstraint("origin_job_id", "origin_cycle", "origin_index"),
        one_of("origin_kind", ("learned", *CORE_KINDS)),
        Index("ix_latents_origin_job_id", "origin_job_id", "id"),
        *(Index(f"ix_latents_{name}", text(key), "id") for name, key in SORT_KEYS.items()),
        *(
            Index(f"ix_latents_origin_{name}", "origin_job_id", text(key), "id")
            for name, key in SORT_KEYS.items()
        ),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    public_id: Mapped[str] = mapped_column(unique=True)
    """`<job>.<cycle>.<sae_index>`."""
    origin_job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    origin_cycle: Mapped[int] = mapped_column(Integer)
    origin_index: Mapped[int]
    origin_kind: Mapped[str] = mapped_column(server_default="learned")
    times_selected: Mapped[int] = mapped_column(Integer)
    last_index: Mapped[int | None] = mapped_column(Integer)
    """The last cycle that selected it, of its own job; null where none has."""
    dropped_at: Mapped[int | None] = mapped_column(Integer)
    """The cycle that no longer selected it."""
    last_share: Mapped[float | None]
    max_share: Mapped[float | None]


class CoreLatent(Table):
    """One latent's place in one core; what no SAE has measured of a core that was given is null."""

    __tablename__ = "core_latents"
    __table_args__ = (
        ForeignKeyConstraint(
            ["parent_core_id", "parent_core_index"], ["core_latents.core_id", "core_latents.core_index"]
        ),
        CheckConstraint("(parent_core_id IS NULL) = (parent_core_index IS NULL)", "parent_whole"),
        UniqueConstraint("core_id", "latent_id"),
        UniqueConstraint("core_id", "sae_index"),
        Index("ix_core_latents_latent_id", "latent_id"),
        Index("ix_core_latents_parent", "parent_core_id", "parent_core_index"),
    )

    core_id: Mapped[str] = mapped_column(ForeignKey("cores.id"), primary_key=True)
    core_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    latent_id: Mapped[int] = mapped_column(ForeignKey("latents.id"))
    sae_index: Mapped[int | None]
    parent_core_id: Mapped[str | None]
    parent_core_index: Mapped[int | None] = mapped_column(Integer)
    times_selected: Mapped[int | None] = mapped_column(Integer)
    """In how many unbroken cycles up to this core's."""
    score: Mapped[float | None]
    score_se: Mapped[float | None]
    share: Mapped[float | None]
    rank: Mapped[int | None]
    encoder_norm: Mapped[float | None]
    density: Mapped[float | None]
    decoder_cosine: Mapped[float | None]
    firing_jaccard: Mapped[float | None]
    is_borderline: Mapped[bool | None]


class CycleOrigin(Table):
    """How many latents of a cycle's core come from each origin."""

    __tablename__ = "cycle_origins"

    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), primary_key=True)
    origin_job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)
    origin_cycle: Mapped[int] = mapped_column(Integer, primary_key=True)
    n_latents: Mapped[int]


class CoreDrop(Table):
    """A latent of the core that a cycle was given, which it did not select again."""

    __tablename__ = "core_drops"

    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), primary_key=True)
    core_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    """Its place in the core given."""
    latent_id: Mapped[int] = mapped_column(ForeignKey("latents.id"), index=True)
    sae_index: Mapped[int | None]
    score: Mapped[float | None]
    """As that cycle measured it; null where its trainer did not say."""
    share: Mapped[float | None]
    rank: Mapped[int | None]


class LatentMatch(Table):
    """Two latents of two cores that a match found alike, one to one: by decoder, of chains by firing too."""

    __tablename__ = "latent_matches"
    __table_args__ = (CheckConstraint("a < b", "pair_ordered"),)

    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), primary_key=True)
    """Of the match."""
    a: Mapped[int] = mapped_column(Integer, primary_key=True)
    """Place of the first core among those that the match compares."""
    b: Mapped[int] = mapped_column(Integer, primary_key=True)
    a_latent_id: Mapped[int] = mapped_column(ForeignKey("latents.id"), primary_key=True, index=True)
    b_latent_id: Mapped[int] = mapped_column(ForeignKey("latents.id"), index=True)
    decoder_cosine: Mapped[float]
    firing_correlation: Mapped[float | None]
    best_cosine: Mapped[float | None]
    """Mean over the latents of the first core of their largest cosine with any of the second."""
    best_cosine_random: Mapped[float | None]
    """The same with random directions in the place of the second core: what chance gives."""
