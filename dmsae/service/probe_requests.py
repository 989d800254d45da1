"""What may a client ask of a finished core? One request for all kinds of probes, each with its settings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.probe_config import (
    CONFIGS,
    LONGEST_PROMPT,
    AnyProbeConfig,
    Change,
    JobName,
    LatentName,
    LatentNames,
    OtherCycle,
    OtherFolder,
    OtherObjects,
    ProbeKind,
)
from dmsae.service.requests import Name, Notes, Partial, PlainText, Priority, Tags, field_problems, shown
from dmsae.sources import (
    CycleRef,
    PublishedCore,
    PublishedName,
    RequestedCore,
    Section,
    SelectedCore,
)

ABOUT = ("kind", "name", "tags", "notes", "priority", "n_tokens")
"""What of a request is no setting of a probe by the same name."""


class AskedCore(Section):
    """The core that a finished cycle selected: by its job, or by the name under which it is published."""

    job: JobName | None = None
    """The job; left out beside `name`."""
    cycle: int | None = Field(None, ge=0, le=1_000_000)
    """Which of the job's cycles; left out, the last finished one."""
    name: PublishedName | None = None
    """Name and version, such as `lab/gemma-2-2b-l12@3`, in the place of `job` and `cycle`."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.name is None and self.job is None:
            raise _refuse("job", None, "is required, or name, of a published core", "missing_field")
        if self.name is not None and (self.job, self.cycle) != (None, None):
            rule = "stands alone: it says which job and cycle; leave it, or these, out"
            raise _refuse("name", self.name, rule, "invalid_value")
        return self

    @property
    def requested(self) -> RequestedCore:
        """Give the core as trainings name it."""
        if self.name is not None:
            return PublishedCore(kind="published", name=self.name)
        assert self.job is not None  # noqa: S101 - one of the two was given
        return SelectedCore(kind="selected", cycle=CycleRef(job_id=self.job, cycle_index=self.cycle))


class OtherPublished(Section):
    """A published core, by its name."""

    kind: Literal["published"]
    name: PublishedName
    """Name and version, such as `lab/gemma-2-2b-l12@3`."""


RequestedOther = Annotated[
    OtherCycle | OtherPublished | OtherFolder | OtherObjects, Field(discriminator="kind")
]


class ProbeRequest(Partial):
    """A probe to run: what is asked of which core. Model, text and the rest are as in the core's own job."""

    kind: ProbeKind
    """`logit_lens`: which tokens latents promote and suppress; `match`: which latents are found elsewhere;
    `prompt`: where latents fire in a text of one's own, and what the model says next."""
    core: AskedCore
    """The core that is asked about."""
    name: Name | None = None
    """What people call it."""
    tags: Tags = Field(default_factory=list)
    """Words to find it by."""
    notes: Notes | None = None
    """Anything worth keeping with it."""
    priority: Priority = "normal"
    """Among the jobs of its owner, and between owners: high before normal before low."""
    latents: LatentNames | None = None
    """Of `logit_lens`: latents of the core; left out, the first 256 in its order."""
    other: RequestedOther | None = None
    """Of `match`: another core, a folder in SAELens' format, or an `.npz` as Gemma Scope publishes."""
    decoder_cosine: float | None = Field(None, gt=0, le=1)
    """Of `match`: least cosine of two decoder rows that match one to one; left out, 0.7."""
    n_tokens: int | None = Field(None, ge=2, le=1_000_000)
    """Of `match`: tokens of the evaluation part on which firing is compared; left out, 10,000 or as many as
    the core's own job evaluates on, the fewer."""
    prompt: PlainText | None = Field(None, min_length=1, max_length=LONGEST_PROMPT)
    """Of `prompt`: the text, read as the core's contexts were."""
    latent: LatentName | None = None
    """Of `prompt`: a latent of the core; left out, those that fire most strongly in the text."""
    n_latents: int | None = Field(None, ge=1, le=32)
    """Of `prompt`: how many of those; left out, 8."""
    change: Change | None = None
    """Of `prompt`: also say what the model says next with the latent ablated, or steered."""
    n_top: int | None = Field(None, ge=1, le=50)
    """Of `logit_lens` and `prompt`: tokens that are shown; left out, 10."""
    n_new_tokens: int | None = Field(None, ge=0, le=100)
    """Of `prompt`: tokens of the greedy continuation; left out, 20."""
    device: Literal["cpu", "cuda"] | None = None
    """Resource class that runs it; left out, that of the core's own job."""
    time_limit_s: int | None = Field(None, ge=1)
    """Wall-clock limit of one attempt; left out, none."""

    @property
    def settings(self) -> dict[str, Any]:
        """Give the settings that were set, as a config names them."""
        return self.model_dump(exclude_unset=True, exclude_none=True, exclude=set(ABOUT))


def refuse_foreign(request: ProbeRequest) -> None:
    """Refuse settings of another kind of probe.

    Raises:
        InvalidConfig: naming each.
    """
    known = set(CONFIGS[request.kind].model_fields) | ({"n_tokens"} if request.kind == "match" else set())
    given = {*request.settings, *({"n_tokens"} if request.n_tokens is not None else ())}
    rule = f"is no setting of a probe of kind {request.kind!r}: leave it out"
    problems = [
        FieldProblem(name, shown(request.model_dump(mode="json")[name]), rule, "unknown_field")
        for name in sorted(given - known)
    ]
    if problems:
        raise InvalidConfig(problems)


def build_config(kind: ProbeKind, settings: Mapping[str, Any]) -> AnyProbeConfig:
    """Build the resolved config.

    Raises:
        InvalidConfig: with every setting that is missing or cannot work.
    """
    try:
        return CONFIGS[kind].model_validate({**settings, "kind": kind})
    except ValidationError as error:
        problems = [_as_required(found) for found in field_problems(error.errors(include_url=False))]
        raise InvalidConfig(problems) from error


def _as_required(problem: FieldProblem) -> FieldProblem:
    """Say what is missing without naming presets: probes have none."""
    if problem.code != "missing_field":
        return problem
    return FieldProblem(problem.param, problem.value, "is required for this kind of probe", problem.code)


def _refuse(param: str, value: Any, rule: str, code: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{rule}", {"param": param, "value": value, "rule": rule, "code": code})
