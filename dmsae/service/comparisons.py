"""How do several jobs compare, over k or over seeds, and what does an SAE as wide do without a core?

Only jobs that have succeeded are compared, by the metrics of their last cycle. The width-matched control is
looked for among all trainings of the service, and put beside them without being named.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Integer, func, literal_column, or_, select
from sqlalchemy.orm import Session

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.figures.comparison import MEASURES, Compared, CompareData, Missing, Over, Series
from dmsae.service.arms import Arm, Settings, arm_of, digest_of, settings_of, setup_labels
from dmsae.service.figure_data import NothingToDraw
from dmsae.service.jobs import find_job
from dmsae.service.tables import CONTROL_KEYS, IS_CONTROL, Cycle, Job

MOST_JOBS = 500
"""Jobs of one comparison, those of groups counted; and as many controls beside them."""
METRICS: Mapping[str, str] = {
    "loss_recovered": "lr_kept",
    "explained_variance": "explained_variance",
    "ce_increase": "ce_increase",
}
"""By what name the metrics of a cycle know a measure; `..._per_prefix` has it of each prefix."""


class _Need(NamedTuple):
    """What a width-matched control must be."""

    spec: str
    k: int
    n_matched: int


@dataclass(frozen=True)
class _Found:
    """A succeeded job, and what its last cycle measured."""

    job: Job
    metrics: Mapping[str, Any]
    is_named: bool
    settings: Settings
    spec: str

    @property
    def k(self) -> int:
        return int(self.job.config["sae"]["k"])

    @property
    def need(self) -> _Need | None:
        """Its control; None where it has no core, or its widths are not known."""
        config, widths = self.job.config, self.metrics.get("prefix_widths")
        if not widths or config.get("core", {}).get("kind") == "none":
            return None
        n_matched = int(widths[0]) - int(config["sae"]["block_widths"][0])
        return _Need(self.spec, self.k, n_matched) if n_matched > 0 else None


def compare(session: Session, ids: Sequence[str], *, over: Over) -> CompareData:
    """Compare jobs, and the jobs of groups, with the width-matched controls that there are.

    Raises:
        NotFound: there is no such job or group.
        InvalidConfig: a job is neither distillation nor training, or there are too many.
        NothingToDraw: none of them has succeeded, or their metrics have nothing to compare.
    """
    jobs = _find_named(session, ids)
    found = _with_metrics(session, [job for job in jobs if job.state == "succeeded"], is_named=True)
    if not any(_values(each.metrics) for each in found):
        raise NothingToDraw("None of these jobs has succeeded (yet) with metrics that can be compared.")
    needs = list(dict.fromkeys(need for each in found if (need := each.need) is not None))
    known = _find_controls(session, needs, but=[job.id for job in jobs])
    controls = _evenly(known)
    everything = [*found, *controls]
    matched = {_matched_as(each) for each in everything}
    labels = setup_labels(each.settings for each in everything)
    arms = _arms(session, everything)
    compared = [_compared(each, arms[each.job.id], labels) for each in everything]
    order = {job.series: arms[job.job_id].place for job in compared}
    compared.sort(key=lambda job: (order[job.series], job.series, job.k, job.seed, job.job_id))
    missing = {
        Missing(_series(each, arms[each.job.id], labels), need.k, need.n_matched)
        for each in found
        if (need := each.need) is not None and need not in matched
    }
    done = {each.job.id for each in found}
    left_out = sorted(job.id for job in jobs if job.id not in done)
    return CompareData(over, compared, sorted(missing), left_out, n_controls_left=len(known) - len(controls))


def _find_named(session: Session, ids: Sequence[str]) -> list[Job]:
    wanted = list(dict.fromkeys(ids))
    query = select(Job).where(or_(Job.id.in_(wanted), Job.group_id.in_(wanted)), Job.deleted_at.is_(None))
    jobs = list(session.scalars(query.order_by(Job.created_at, Job.id).limit(MOST_JOBS + 1)))
    if len(jobs) > MOST_JOBS:
        raise InvalidConfig([FieldProblem("jobs", len(jobs), f"must name at most {MOST_JOBS} jobs")])
    known = {job.id for job in jobs} | {job.group_id for job in jobs}
    for name in wanted:
        if name not in known:
            find_job(session, name)
    probes = [job.id for job in jobs if job.kind == "probe" and job.id in wanted]
    if probes:
        rule = "must be distillations, trainings or their groups: a probe trains nothing"
        raise InvalidConfig([FieldProblem("jobs", probe, rule) for probe in probes])
    return [job for job in jobs if job.kind != "probe"]


def _with_metrics(session: Session, jobs: Iterable[Job], *, is_named: bool) -> list[_Found]:
    by_id = {job.id: job for job in jobs}
    rows = session.execute(
        select(Cycle.job_id, Cycle.metrics)
        .where(Cycle.job_id.in_(by_id), Cycle.state == "succeeded")
        .order_by(Cycle.job_id, Cycle.index)
    )
    last = {job_id: metrics or {} for job_id, metrics in rows}
    return [_found(job, last[job_id], is_named) for job_id, job in by_id.items() if job_id in last]


def _found(job: Job, metrics: Mapping[str, Any], is_named: bool) -> _Found:
    settings = settings_of(job.config)
    return _Found(job, metrics, is_named, settings, digest_of(settings))


def _find_controls(session: Session, needs: Sequence[_Need], *, but: Sequence[str]) -> list[_Found]:
    """Find finished trainings without a core that are as wide as what is compared, and otherwise the same."""
    if not needs:
        return []
    n_matched, k = (literal_column(key, Integer) for key in CONTROL_KEYS)
    query = select(Job).where(
        IS_CONTROL,
        n_matched.in_({need.n_matched for need in needs}),
        k.in_({need.k for need in needs}),
        Job.id.not_in(but),
    )
    jobs = session.scalars(query.order_by(Job.created_at, Job.id))
    found = _with_metrics(session, jobs, is_named=False)
    return [each for each in found if _matched_as(each) in needs]


def _evenly(controls: Sequence[_Found]) -> list[_Found]:
    """Take the oldest, as many as one comparison takes, of each kind in turn: none goes without."""
    n_before: Counter[_Need | None] = Counter()
    turns = []
    for control in controls:
        need = _matched_as(control)
        turns.append(n_before[need])
        n_before[need] += 1
    order = sorted(range(len(controls)), key=lambda place: (turns[place], place))
    return [controls[place] for place in order[:MOST_JOBS]]


def _matched_as(each: _Found) -> _Need | None:
    """For what it is the width-matched control."""
    core = each.job.config.get("core", {})
    is_control = core.get("kind") == "none" and core["n_matched"] is not None
    return _Need(each.spec, each.k, core["n_matched"]) if is_control else None


def _arms(session: Session, found: Iterable[_Found]) -> dict[str, Arm]:
    cores = [each.job.config.get("core", {}) for each in found]
    sources = {core["cycle"]["job_id"] for core in cores if "cycle" in core}
    last = session.execute(
        select(Cycle.job_id, func.max(Cycle.index))
        .where(Cycle.job_id.in_(sources), Cycle.state == "succeeded")
        .group_by(Cycle.job_id)
    )
    ends = {row[0]: row[1] for row in last}
    return {each.job.id: arm_of(each.job.kind, each.job.config, ends) for each in found}


def _series(each: _Found, arm: Arm, labels: Mapping[str, str]) -> Series:
    return Series(arm.label, labels[each.spec])


def _compared(each: _Found, arm: Arm, labels: Mapping[str, str]) -> Compared:
    known = _values(each.metrics)
    return Compared(
        each.job.id,
        _series(each, arm, labels),
        k=each.k,
        seed=int(each.job.config["seed"]),
        values={name: known.get(name) for name in MEASURES},
        is_weak_control=each.metrics.get("is_weak_control"),
        is_named=each.is_named,
    )


def _values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Give what there is of the measures."""
    found = {name: _measured(metrics, name) for name in MEASURES}
    return {name: value for name, value in found.items() if value is not None}


def _measured(metrics: Mapping[str, Any], measure: str) -> float | None:
    whole = measure.removesuffix("_first")
    if whole == measure:
        value = metrics.get(METRICS[whole])
    else:
        value = (metrics.get(f"{METRICS[whole]}_per_prefix") or [None])[0]
    return None if value is None else float(value)
