"""What the API answers about trainings and groups, field by field."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from api import examples
from api.schemas import Answer, CycleOut, JobOut, JobSummary, example_of
from dmsae.service.groups import GroupView
from dmsae.service.jobs import CycleView
from dmsae.service.progress import JobView
from dmsae.service.tables import Core

APART = ("seed", "chain_index", "core")
"""Settings beside `sae.k` that may set the jobs of a group apart."""


class GivenOut(Answer):
    """The core that a training was given."""

    core_id: str
    kind: str
    """selected, filtered, random_directions, random_latents, frequent or energy."""
    seed: int | None
    """What a random core was drawn with."""
    n_latents: int
    overlap: float | None
    """Share of its latents that the referenced cycle selected; null for random directions."""
    is_weak_control: bool | None
    """Whether a control shares more than half of them: then it shows little."""


class TrainingOut(JobOut):
    """A training: the job, and its science in short."""

    model_config = example_of(examples.TRAINING)

    cycles: list[CycleOut]
    given: GivenOut | None
    """Null where it was given none (`config.core`), or has not finished."""
    core_id: str | None
    """Of the core that it selected."""

    @classmethod
    def with_given(cls, view: JobView, cycles: Sequence[CycleView], given: Core | None) -> Self:
        """Show a training."""
        shown = [CycleOut.of(cycle) for cycle in cycles]
        told = None
        if given is not None:
            same = GivenOut.model_fields.keys() - {"core_id"}
            told = GivenOut(core_id=given.id, **{name: getattr(given, name) for name in same})
        job = dict(JobOut.of(view))
        return cls(**job, cycles=shown, given=told, core_id=shown[0].output_core_id)


class GroupJob(JobSummary):
    """A job of a group."""

    point: dict[str, Any]
    """What sets it apart: k, seed, chain_index, core."""
    figures: dict[str, Any] | None
    """Of its last finished cycle: cycle_index, l0, explained_variance, ce_increase, lr_kept, dead_fraction,
    n_core, n_new, n_dropped, retention; null before one has finished."""

    @classmethod
    def in_group(cls, view: JobView, figures: dict[str, Any] | None) -> Self:
        """Show a job with its place in the group."""
        config = view.job.config
        point = {name: config[name] for name in APART if name in config}
        if "sae" in config:
            point["k"] = config["sae"]["k"]
        return cls(**dict(JobSummary.of(view)), point=point, figures=figures)


class MatchOut(Answer):
    """Which latents of each chain's final core another chain found too; all pairs are in `match.json`."""

    job_id: str
    """The probe that compared them; its artifacts name every match."""
    cores: list[str]
    """`<job>.<cycle index>` of each."""
    n_latents: list[int]
    decoder_cosine: float
    """Least cosine of two decoder rows that match."""
    firing_correlation: float
    """Least correlation of their activations."""
    pairs: list[dict[str, Any]]
    """Of each two cores, by place: a, b, n_aligned, n_matches, best_cosine, best_cosine_random, ..."""
    reproduced: list[list[str]]
    """For each core the ids of its latents that at least one other chain matches."""
    share_reproduced: list[float | None]


class GroupOut(Answer):
    """Jobs that were submitted as one, in the order of the request."""

    model_config = example_of(examples.GROUP)

    group_id: str
    state: str
    """queued, running, cancelling, succeeded, failed or cancelled; made from the jobs' own."""
    states: dict[str, int]
    """How many of its jobs are in which state."""
    n_cycles: int
    n_cycles_done: int
    stored_bytes: int
    """Size of all that its finished cycles stored."""
    jobs: list[GroupJob]
    match: MatchOut | None
    """Of chains, once all have succeeded and were compared."""

    @classmethod
    def of(cls, group: GroupView) -> Self:
        """Show a group."""
        match = None if group.match is None else MatchOut.model_validate(group.match)
        return cls(
            group_id=group.group_id,
            state=group.state,
            states=dict(Counter(view.job.state for view in group.jobs)),
            n_cycles=sum(view.progress.n_cycles for view in group.jobs),
            n_cycles_done=sum(view.progress.n_cycles_done for view in group.jobs),
            stored_bytes=sum(view.stored_bytes for view in group.jobs),
            jobs=[GroupJob.in_group(view, group.figures.get(view.job.id)) for view in group.jobs],
            match=match,
        )
