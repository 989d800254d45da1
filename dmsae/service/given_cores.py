"""Which core is a training given, and does it fit? Asked of what was recorded with it, before anything waits.

What cannot be known without loading the model (the bits of a local one) is left to the trainer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.config import SPLIT_SALT, CoreTrainingConfig
from dmsae.errors import Deleted, FieldProblem, InvalidConfig, NotFound
from dmsae.service.jobs import find_job
from dmsae.service.known_models import ModelFacts
from dmsae.service.publishing import find_core
from dmsae.service.requests import shown
from dmsae.service.tables import FINAL_JOB_STATES, Core, CoreLatent, Cycle, Job
from dmsae.sources import (
    CoreSource,
    CycleRef,
    FilteredCore,
    NoCore,
    PublishedCore,
    RandomLatents,
    RequestedCore,
    SelectedCore,
)

NOT_INHERITED = ("n_cycles", "core")


@dataclass(frozen=True)
class GivenCore:
    """The finished cycle that a request refers to, and what is known of the core that it selected."""

    job_id: str
    cycle_id: str
    cycle_index: int
    config: Mapping[str, Any]
    """Of its job."""
    n_selected: int
    n_given: int
    """Latents of the core that the training is given; 0 for none."""
    n_outside: int | None
    """Latents of the cycle's SAE outside its first prefix."""
    provenance: Mapping[str, Any] | None
    """What travels with the core; None if it was recorded before that was kept."""

    def inherited(self) -> dict[str, Any]:
        """Give the settings of the job that a training around its core starts from."""
        return {name: value for name, value in self.config.items() if name not in NOT_INHERITED}

    def resolved(self, core: CoreSource) -> dict[str, Any]:
        """Give the reference with what the service fills in: which cycle, and how wide its core is."""
        ref = {"job_id": self.job_id, "cycle_index": self.cycle_index}
        if isinstance(core, NoCore):
            return {**core.model_dump(), "width_of": ref, "n_matched": self.n_selected}
        return {**core.model_dump(), "cycle": ref}


def find_named(session: Session, core: RequestedCore) -> CoreSource:
    """Give a core by the cycle that selected it, where a request names a published one.

    Raises:
        InvalidConfig: nothing is published under that name, or the cycle that stands beside it is another.
    """
    if isinstance(core, PublishedCore):
        param, name = "core.name", core.name
    elif isinstance(core, SelectedCore) and core.published_as is not None:
        param, name = "core.published_as", core.published_as
    else:
        return core
    try:
        about = find_core(session, name)
    except NotFound as error:
        raise _refusal(param, name, "nothing is published under it", "core_not_found") from error
    ref = CycleRef(job_id=about.job_id, cycle_index=about.cycle_index)
    if isinstance(core, SelectedCore) and core.cycle != ref:
        rule = f"is the core of cycle {ref.cycle_index} of {ref.job_id}: leave it, or core.cycle, out"
        raise _refusal(param, name, rule, "core_mismatch")
    return SelectedCore(kind="selected", cycle=ref, published_as=name)


def find_given(session: Session, core: CoreSource) -> GivenCore | None:
    """Find the cycle that a core refers to; None where it refers to none.

    Raises:
        InvalidConfig: it is unknown, deleted or unfinished, or the core that is left of it is empty.
    """
    ref = core.width_of if isinstance(core, NoCore) else core.cycle
    if ref is None:
        return None
    param = "core.width_of" if isinstance(core, NoCore) else "core.cycle"
    job = _find_job(session, ref, param)
    cycle = _find_cycle(session, job, ref, param)
    selected = session.get_one(Core, cycle.output_core_id)
    n_given = _count_given(session, core, selected)
    if isinstance(core, NoCore) and core.n_matched not in (None, selected.n_latents):
        rule = f"the core of width_of has {selected.n_latents} latents: leave one of them out"
        raise InvalidConfig([FieldProblem("core.n_matched", core.n_matched, rule)])
    first_width = ((cycle.metrics or {}).get("prefix_widths") or [None])[0]
    return GivenCore(
        job_id=job.id,
        cycle_id=cycle.id,
        cycle_index=cycle.index,
        config=job.config,
        n_selected=selected.n_latents,
        n_given=n_given,
        n_outside=None if first_width is None else job.config["sae"]["n_latents"] - first_width,
        provenance=selected.provenance,
    )


def check_fit(config: CoreTrainingConfig, given: GivenCore, facts: ModelFacts) -> list[FieldProblem]:
    """Compare what a training is to run on with what its core was found on, and with its SAE's layout."""
    if isinstance(config.core, NoCore):
        return []
    problems = [
        FieldProblem(param, shown(wanted), f"the core was found with {shown(own)!r}", "core_mismatch")
        for param, wanted, own in _compared(config, given, facts)
        if wanted != own
    ]
    widest, n_latents = config.sae.block_widths[-1], config.sae.n_latents
    if given.n_given + widest >= n_latents:
        width = f"{given.n_given + widest} latents with the widest block ({widest})"
        rule = f"the core makes {width}: must stay below sae.n_latents = {n_latents}"
        problems.append(FieldProblem("core", given.n_given, rule, "core_too_large"))
    n_outside = given.n_outside if isinstance(config.core, RandomLatents) else None
    if n_outside is not None and given.n_given > n_outside:
        rule = f"the cycle's SAE has only {n_outside} latents outside its first prefix"
        problems.append(FieldProblem("core", given.n_given, rule, "core_too_large"))
    return problems


def _compared(config: CoreTrainingConfig, given: GivenCore, facts: ModelFacts) -> list[tuple[str, Any, Any]]:
    """Give (setting, its value, the core's) of all that must be the same and is known."""
    source, travels = given.config, given.provenance or {}
    activations, was = config.activations, source["activations"]
    rows = _compared_models(config.model.model_dump(mode="json"), source["model"])
    rows += [
        ("activations.layer", activations.layer, was["layer"]),
        ("activations.hook", activations.hook, was.get("hook", "resid_post")),
        ("activations.model_dtype", activations.model_dtype, was.get("model_dtype", "float32")),
        ("data.split", config.data.split, source["data"]["split"]),
    ]
    if activations.special_ids is not None and "special_ids" in travels:
        ids = sorted(set(activations.special_ids))
        rows.append(("activations.special_ids", ids, sorted(set(travels["special_ids"]))))
    if activations.scale is not None and travels:
        for name in ("rms", "median_norm"):
            rows.append((f"activations.scale.{name}", getattr(activations.scale, name), travels[name]))
    if travels:
        rows.append(("core", SPLIT_SALT, travels["split_salt"]))
    if travels and facts.d_model is not None:
        rows.append(("model", facts.d_model, travels["d_model"]))
    return rows


def _compared_models(model: Mapping[str, Any], was: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    if model["source"] != was["source"]:
        return [("model.source", model["source"], was["source"])]
    # the same model may lie under another path: the trainer compares its bits
    names = [name for name in model if (model["source"], name) != ("local", "path")]
    return [(f"model.{name}", model[name], was.get(name)) for name in names]


def _find_job(session: Session, ref: CycleRef, param: str) -> Job:
    try:
        job = find_job(session, ref.job_id)
    except Deleted as error:
        raise _refusal(f"{param}.job_id", ref.job_id, error.message, "core_deleted") from error
    except NotFound as error:
        raise _refusal(f"{param}.job_id", ref.job_id, "there is no such job", "core_not_found") from error
    if job.kind == "probe":
        raise _refusal(f"{param}.job_id", ref.job_id, "a probe selects no core", "core_not_found")
    if ref.cycle_index is None and job.state not in FINAL_JOB_STATES:
        rule = f"the job is {job.state}: name the cycle_index of a finished cycle, or wait"
        raise _refusal(f"{param}.job_id", ref.job_id, rule, "core_not_ready")
    return job


def _find_cycle(session: Session, job: Job, ref: CycleRef, param: str) -> Cycle:
    query = select(Cycle).where(Cycle.job_id == job.id)
    if ref.cycle_index is None:
        query = query.where(Cycle.state == "succeeded").order_by(Cycle.index.desc()).limit(1)
        cycle = session.scalars(query).one_or_none()
        if cycle is None:
            rule = f"the job is {job.state}, and none of its cycles finished"
            raise _refusal(f"{param}.job_id", job.id, rule, "core_not_ready")
        return cycle
    cycle = session.scalars(query.where(Cycle.index == ref.cycle_index)).one_or_none()
    if cycle is None:
        n_cycles = session.scalars(select(func.count()).where(Cycle.job_id == job.id)).one()
        rule = f"the job has {n_cycles} cycles, counted from 0"
        raise _refusal(f"{param}.cycle_index", ref.cycle_index, rule, "core_not_found")
    if cycle.state != "succeeded":
        raise _refusal(f"{param}.cycle_index", ref.cycle_index, f"it is {cycle.state}", "core_not_ready")
    return cycle


def _count_given(session: Session, core: CoreSource, selected: Core) -> int:
    if isinstance(core, NoCore):
        return 0
    if not isinstance(core, FilteredCore):
        return selected.n_latents
    query = select(CoreLatent.times_selected).where(CoreLatent.core_id == selected.id)
    times = [n for n in session.scalars(query) if n is not None]
    n_given = sum(n >= core.min_selected for n in times)
    if n_given == 0:
        rule = f"leaves no latent: the core's were selected in at most {max(times, default=0)} cycles"
        raise _refusal("core.min_selected", core.min_selected, rule, "core_empty")
    return n_given


def _refusal(param: str, value: Any, rule: str, code: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem(param, shown(value), rule, code)])
