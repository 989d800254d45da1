"""What does a comparison of jobs show? Each job's figures, and their means with how far they scatter."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import ClassVar, Literal, NamedTuple

from dmsae.figures.data import Cell

Over = Literal["k", "seed"]

MEASURES: Mapping[str, str] = {
    "loss_recovered_first": "loss recovered",
    "explained_variance_first": "explained variance",
    "ce_increase_first": "CE increase (nats)",
    "loss_recovered": "loss recovered",
    "explained_variance": "explained variance",
    "ce_increase": "CE increase (nats)",
}
"""What is compared: of the most nested prefix, then of the whole SAE. Of the CE increase less is better."""

ALL_SEEDS = "all"
"""Where, over seeds, their mean stands."""
BARS = "Bars: mean ± sample standard deviation over seeds; a point without a bar is a single job."


class Series(NamedTuple):
    """Jobs that differ in nothing but k and seed."""

    arm: str
    """What their SAEs are built around."""
    setup: str
    """The settings in which they differ from others that are compared; empty where there are none."""

    @property
    def label(self) -> str:
        """What a legend calls them."""
        return f"{self.arm} ({self.setup})" if self.setup else self.arm


@dataclass(frozen=True)
class Compared:
    """One job, by its last cycle."""

    job_id: str
    series: Series
    k: int
    seed: int
    values: Mapping[str, float | None]
    """The figures of `MEASURES`; None where its metrics lack one."""
    is_weak_control: bool | None
    """Whether a control shares more than half of its core with what it is to be a control of."""
    is_named: bool
    """False for a control that was found and put beside those that were named."""


class Estimate(NamedTuple):
    """A mean of jobs of one series."""

    measure: str
    series: Series
    k: int
    at: int | str
    """The k or seed at which it stands; `all`: over all seeds."""
    n: int
    mean: float
    sd: float | None
    """Sample standard deviation; None of a single job."""
    jobs: tuple[str, ...]
    values: tuple[float, ...]
    """Of these jobs, in their order."""


class Missing(NamedTuple):
    """A width-matched SAE without a core that the service does not have."""

    series: Series
    """To which it would be the control."""
    k: int
    n_matched: int
    """Latents as wide as whose core it would have to be."""

    @property
    def sentence(self) -> str:
        """Say what is missing, and how one comes by it."""
        return (
            f"No finished training without a core is as wide (n_matched = {self.n_matched}) at k = {self.k} "
            f"with otherwise these settings, so nothing tells what is owed to width."
        )


@dataclass(frozen=True)
class CompareData:
    """Several jobs, over k or over seeds."""

    HEADER: ClassVar = ("measure", "arm", "setup", "k", "at", "n", "mean", "sd", "jobs", "values", "note")

    over: Over
    jobs: Sequence[Compared]
    missing: Sequence[Missing]
    left_out: Sequence[str]
    """Ids of jobs that have not succeeded (yet)."""
    n_controls_left: int = 0
    """Width-matched controls beyond those that one comparison takes."""

    @property
    def series(self) -> list[Series]:
        """All series, in the order of their jobs."""
        return list(dict.fromkeys(job.series for job in self.jobs))

    def estimates(self) -> Iterator[Estimate]:
        """Give each mean: at each k over its seeds, or at each seed and, for each k, over all seeds."""
        for measure in MEASURES:
            for series in self.series:
                of_series = [job for job in self.jobs if job.series == series]
                for k in sorted({job.k for job in of_series}):
                    jobs = [job for job in of_series if job.k == k]
                    yield from self._at(measure, series, k, jobs)

    @property
    def left_sentence(self) -> str:
        """Say how many controls are known and not compared."""
        return f"{self.n_controls_left} more width-matched controls are left out: the oldest are shown."

    @property
    def digest(self) -> str:
        """Give a text that is the same for the same comparison alone."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]

    def _at(self, measure: str, series: Series, k: int, jobs: list[Compared]) -> Iterator[Estimate]:
        if self.over == "k":
            yield from _estimate(measure, series, k, k, jobs)
            return
        for seed in sorted({job.seed for job in jobs}):
            yield from _estimate(measure, series, k, seed, [job for job in jobs if job.seed == seed])
        yield from _estimate(measure, series, k, ALL_SEEDS, jobs)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Give each mean, then a row without one for each control that is missing."""
        for found in self.estimates():
            jobs, values = " ".join(found.jobs), " ".join(map(repr, found.values))
            yield (
                found.measure, *found.series, found.k, found.at, found.n, found.mean, found.sd, jobs, values,
                self._weak(found.jobs),
            )  # fmt: skip
        for gap in self.missing:
            yield ("", *gap.series, gap.k, "", 0, None, None, "", "", gap.sentence)
        if self.n_controls_left:
            yield ("", "", "", None, "", 0, None, None, "", "", self.left_sentence)

    def _weak(self, jobs: Iterable[str]) -> str:
        weak = [job.job_id for job in self.jobs if job.is_weak_control and job.job_id in jobs]
        return f"weak control (more than half is the distilled core): {' '.join(weak)}" if weak else ""


def _estimate(
    measure: str, series: Series, k: int, at: int | str, jobs: list[Compared]
) -> Iterator[Estimate]:
    known = [(job.job_id, value) for job in jobs if (value := job.values[measure]) is not None]
    if known:
        ids, values = zip(*known, strict=True)
        sd = stdev(values) if len(values) > 1 else None
        yield Estimate(measure, series, k, at, len(values), mean(values), sd, ids, values)
