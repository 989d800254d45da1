"""What does each figure show? Plain values, as the service collects them; each tells its rows as CSV too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

Form = Literal["svg", "png", "csv"]
Theme = Literal["light", "dark"]
Cell = str | int | float | None
Fate = Literal["given", "new", "kept", "dropped"]

CURVES: Mapping[str, str] = {
    "loss": "loss",
    "explained_variance": "explained variance",
    "l0": "L0",
    "dead_fraction": "share of dead latents",
}
"""Figures of a step that are drawn, and what they are called."""


class Subject(NamedTuple):
    """The job that a figure is about."""

    job_id: str
    name: str | None

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or self.job_id


class Origin(NamedTuple):
    """Where latents were learned."""

    job_id: str
    cycle: int


@dataclass(frozen=True)
class OriginsData:
    """How many latents of each cycle's core come from which origin: the paper's figure."""

    HEADER: ClassVar = ("cycle_index", "origin_job_id", "origin_cycle", "n_latents")

    subject: Subject
    cycles: Sequence[int]
    origins: Sequence[Origin]
    """The job's own first, by cycle; then those of other jobs."""
    counts: Sequence[Sequence[int]]
    """For each cycle a row, for each origin a column."""

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Give each count, zeros included."""
        for cycle, counts in zip(self.cycles, self.counts, strict=True):
            for origin, n in zip(self.origins, counts, strict=True):
                yield (cycle, *origin, n)


@dataclass(frozen=True)
class Stage:
    """A core on the way through the cycles."""

    cycle_index: int | None
    """The cycle that selected it; None: the core that a training was given."""
    kept: Mapping[Origin, int]
    """Of the core before, by origin."""
    new: Mapping[Origin, int]

    @property
    def totals(self) -> dict[Origin, int]:
        """Count all of it by origin, kept or new."""
        origins = dict.fromkeys((*self.kept, *self.new))
        return {origin: self.kept.get(origin, 0) + self.new.get(origin, 0) for origin in origins}


class Flow(NamedTuple):
    """Latents of one origin that had the same fate in a cycle."""

    cycle_index: int | None
    """The cycle that decided it; None: they were given."""
    origin: Origin
    fate: Fate
    n_latents: int


@dataclass(frozen=True)
class FlowData:
    """Which latents each cycle kept, added and dropped."""

    HEADER: ClassVar = ("cycle_index", "origin_job_id", "origin_cycle", "fate", "n_latents")

    subject: Subject
    origins: Sequence[Origin]
    """In the order in which they are stacked."""
    stages: Sequence[Stage]

    def dropped(self, place: int) -> dict[Origin, int]:
        """Count what the core at a place no longer has of the one before it."""
        if place == 0:
            return {}
        before, kept = self.stages[place - 1].totals, self.stages[place].kept
        lost = {origin: n - kept.get(origin, 0) for origin, n in before.items()}
        return {origin: n for origin, n in lost.items() if n}

    def flows(self) -> Iterator[Flow]:
        """Give all that came, stayed or went, cycle by cycle."""
        for place, stage in enumerate(self.stages):
            first: Fate = "given" if stage.cycle_index is None else "new"
            fates: list[tuple[Fate, Mapping[Origin, int]]] = [
                (first, stage.new),
                ("kept", stage.kept),
                ("dropped", self.dropped(place)),
            ]
            for fate, counts in fates:
                for origin in self.origins:
                    if counts.get(origin):
                        yield Flow(stage.cycle_index, origin, fate, counts[origin])

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Give each flow."""
        return ((flow.cycle_index, *flow.origin, flow.fate, flow.n_latents) for flow in self.flows())


@dataclass(frozen=True)
class Curve:
    """The steps of one cycle, column by column."""

    cycle_index: int
    n_recorded: int
    """Points that there are; fewer stand here where runs of them were taken together."""
    steps: Sequence[int]
    n_tokens: Sequence[int]
    values: Mapping[str, Sequence[float | None]]
    """The figures of `CURVES`."""


@dataclass(frozen=True)
class CurvesData:
    """How training went, step by step, in each cycle."""

    HEADER: ClassVar = ("cycle_index", "n_recorded", "step", "n_tokens", *CURVES)

    subject: Subject
    curves: Sequence[Curve]

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Give each point."""
        for curve in self.curves:
            columns = (curve.steps, curve.n_tokens, *(curve.values[name] for name in CURVES))
            for point in zip(*columns, strict=True):
                yield (curve.cycle_index, curve.n_recorded, *point)


class Point(NamedTuple):
    """A core latent: how often it is active, and what it is worth."""

    latent_id: str
    core_index: int
    origin: Origin
    times_selected: int | None
    density: float | None
    score: float | None


@dataclass(frozen=True)
class DensityData:
    """Density against score of the core that a cycle selected."""

    HEADER: ClassVar = (
        "cycle_index", "latent_id", "core_index", "origin_job_id", "origin_cycle", "times_selected",
        "density", "score",
    )  # fmt: skip

    subject: Subject
    cycle_index: int
    n_latents: int
    """Of the core; fewer points where it is so large that every so-manieth is taken."""
    points: Sequence[Point]

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Give each latent."""
        for point in self.points:
            yield (
                self.cycle_index, point.latent_id, point.core_index, *point.origin, point.times_selected,
                point.density, point.score,
            )  # fmt: skip
