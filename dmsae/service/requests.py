"""What may a client say? Requests to distil and to train: every setting optional, the rest from elsewhere.

The partial sections are made from the classes of `dmsae.config`, so a setting is written down once. Every
refusal, of types here or of rules there, becomes a `FieldProblem` that names field, value and rule.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from dmsae.config import CoreTrainingConfig, CycleConfig, DistillationConfig
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.presets import PRESETS
from dmsae.sources import RequestedCore, Section

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Text with one is no Unicode, and nothing stores it."""
MOST_PROBLEMS = 50
LONGEST_SHOWN = 200
CONTENT_TYPE = r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+$"
MOST_JOBS = 256
"""Of one request."""
UNIONS = (
    *(["model"], ["data", "text"], ["core"], ["sweep", "core", "*"]),
    *(["set", "model"], ["set", "data", "text"], ["set", "core"]),
    *(["change"], ["other"]),
)
"""Settings that are one of several kinds, told apart by their `source` or `kind`; `*` stands for a place."""


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "must not contain a NUL character")
    if LONE_SURROGATE.search(text):
        raise PydanticCustomError("surrogate", "must not contain half of a surrogate pair")
    return text


def _tidy_tags(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))


PlainText = Annotated[str, AfterValidator(_no_nul)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_no_nul)]
Notes = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(_no_nul)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_no_nul)]
JobRef = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Tags = Annotated[list[Tag], Field(max_length=32), AfterValidator(_tidy_tags)]
Priority = Literal["low", "normal", "high"]
PRIORITY_RANKS = {"high": 0, "normal": 1, "low": 2}
"""The order of claims."""


def _refuse(param: str, rule: str) -> PydanticCustomError:
    context = {"param": param, "value": None, "rule": rule, "code": "invalid_value"}
    return PydanticCustomError("rule", "{rule}", context)


def _partial(section: type[BaseModel], name: str, **other: FieldInfo) -> type[BaseModel]:
    """Make a model with the same fields, rules and texts, none of them required; `other` replace some."""
    given = {**section.model_fields, **other}
    fields: dict[str, Any] = {key: _optional(info, f"{name}{key.title()}") for key, info in given.items()}
    return create_model(name, __base__=PartialSection, __doc__=section.__doc__, **fields)


def _optional(info: FieldInfo, name: str) -> tuple[Any, Any]:
    annotation: Any = info.annotation
    if (
        isinstance(annotation, type)
        and issubclass(annotation, Section)
        and "source" not in annotation.model_fields
    ):
        annotation = _partial(annotation, name)
    if info.metadata:
        annotation = Annotated[(annotation, *info.metadata)]
    return annotation, Field(
        default=None,
        description=info.description,
        discriminator=info.discriminator,
        json_schema_extra=lambda schema: schema.pop("default", None),
    )


class Partial(BaseModel):
    """Base of what a client sends: unknown fields are refused, numbers strict; what is left out is unset."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class PartialSection(Partial):
    """Base of what is made from a section of the config: its fields bring their texts along."""

    model_config = ConfigDict(use_attribute_docstrings=False)


if TYPE_CHECKING:

    class Settings(Partial):
        """Every setting of a distillation, none of which must be given."""

    class TrainingSettings(Partial):
        """Every setting of a training, none of which must be given."""

        core: RequestedCore | None

else:
    Settings = _partial(DistillationConfig, "Partial")
    _core = FieldInfo.from_annotation(RequestedCore)
    _core.description = CoreTrainingConfig.model_fields["core"].description
    TrainingSettings = _partial(CoreTrainingConfig, "PartialTraining", core=_core)


class Sweep(Partial):
    """Several values of a setting: a job for each, or for each combination."""

    k: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=1, max_length=MOST_JOBS)
    """Values of `sae.k`."""
    seed: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1, max_length=MOST_JOBS)
    """Values of `seed`."""


class TrainingSweep(Sweep):
    """Several values of a setting of trainings."""

    core: list[RequestedCore] | None = Field(None, min_length=1, max_length=MOST_JOBS)
    """Values of `core`."""


class JobRequest(Partial):
    """What a request says about its job, or about each of its jobs."""

    builds: ClassVar[type[CycleConfig]]

    name: Name | None = None
    """What people call it."""
    tags: Tags = Field(default_factory=list)
    """Words to find it by."""
    notes: Notes | None = None
    """Anything worth keeping with it."""
    priority: Priority = "normal"
    """Among the jobs of its owner, and between owners: high before normal before low."""
    preset: str | None = Field(None, max_length=200, examples=sorted(PRESETS))
    """Named settings to start from: `demo`. Without one every setting that has no default must be given."""
    sweep: Sweep | None = None
    """Settings of which there are several values: a group of jobs."""
    clone: JobRef | None = None
    """A job to start from, with all of its resolved settings; what is to differ stands in `set`."""
    set: Partial | None = None
    """What a clone is to have otherwise; a model, text or core replaces the job's as a whole."""
    _cloned_from: str | None = PrivateAttr(None)

    @property
    def cloned_from(self) -> str | None:
        """Give the job whose settings were put into this request."""
        return self._cloned_from

    def as_clone_of(self, job_id: str) -> Self:
        """Note where the settings come from; give the request itself."""
        self._cloned_from = job_id
        return self

    @model_validator(mode="after")
    def _check_clone(self) -> Self:
        about = {*JobRequest.model_fields} - {"preset"}
        beside = sorted(self.model_fields_set - about)
        if self.clone is None and self.set is not None:
            raise _refuse("set", "says what is to differ about a clone: name the job in `clone`")
        if self.clone is not None and beside:
            raise _refuse(beside[0], "stands beside `clone`: put what is to differ into `set`")
        return self


class DistillationRequest(JobRequest, Settings, use_attribute_docstrings=True):
    """A distillation to run: a preset, and whatever is set otherwise. Several chains make a group of jobs."""

    builds = DistillationConfig

    set: Settings | None = None
    """What a clone is to have otherwise; a model, text or core replaces the job's as a whole."""


class TrainingRequest(JobRequest, TrainingSettings, use_attribute_docstrings=True):
    """A training to run: its core; what is not set is as in the job that the core comes from."""

    builds = CoreTrainingConfig

    sweep: TrainingSweep | None = None
    """Settings of which there are several values: a group of jobs."""
    set: TrainingSettings | None = None
    """What a clone is to have otherwise; a model, text or core replaces the job's as a whole."""


class JobChanges(Partial):
    """What may change about a job at any time; null takes a name or notes away."""

    name: Name | None = None
    """What people call it."""
    tags: Tags = Field(default_factory=list)
    """Words to find it by; they replace the old ones."""
    notes: Notes | None = None
    """Anything worth keeping with it."""
    priority: Priority = "normal"
    """For the cycles that have not finished."""


class UploadRequest(Partial):
    """A file that the client is going to put into the store."""

    filename: Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_no_nul)]
    """Its name; what it ends in says how it is read."""
    size_bytes: int = Field(ge=1)
    """Its exact size: the link takes no other."""
    content_type: Annotated[str, StringConstraints(pattern=CONTENT_TYPE, max_length=100)] | None = None
    """Sent with it, if the client insists."""


Config = TypeVar("Config", bound=CycleConfig)


def merge_preset(request: JobRequest) -> dict[str, Any]:
    """Lay what the client set over the preset; a model or text replaces the preset's as a whole.

    Raises:
        InvalidConfig: there is no such preset.
    """
    chosen = request.model_dump(exclude_unset=True, exclude=set(JobRequest.model_fields))
    if request.preset is None:
        return chosen
    if request.preset not in PRESETS:
        rule = f"unknown preset; known: {', '.join(sorted(PRESETS))}"
        raise InvalidConfig([FieldProblem("preset", shown(request.preset), rule, "unknown_preset")])
    named = PRESETS[request.preset]
    return overlay({name: named[name] for name in named if name in request.builds.model_fields}, chosen)


def validate_config(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """Build the resolved config.

    Raises:
        InvalidConfig: with every setting that is missing or cannot work.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise InvalidConfig(field_problems(error.errors(include_url=False))) from error


def field_problems(errors: Sequence[Any]) -> list[FieldProblem]:
    """Translate pydantic's error list: where, what was given, which rule."""
    return [_problem(error) for error in errors[:MOST_PROBLEMS]]


def shown(value: Any) -> Any:
    """Give a value as it may stand in an answer: as it is if short and plain JSON, else the start of it."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = None
    if text is not None and len(text) <= LONGEST_SHOWN:
        return value
    try:
        start = text if text is not None else repr(value)
    except (ValueError, RecursionError):
        start = type(value).__name__
    return start if len(start) <= LONGEST_SHOWN else f"{start[:LONGEST_SHOWN]}..."


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others, section by section; a model or text replaces the other as a whole."""
    merged = dict(below)
    for key, value in above.items():
        under: Any = merged.get(key)
        is_section = isinstance(value, dict) and isinstance(under, dict) and "source" not in under
        merged[key] = overlay(under, value) if is_section else value
    return merged


def _problem(error: Mapping[str, Any]) -> FieldProblem:
    context, value = error.get("ctx", {}), error.get("input")
    param = _param(error["loc"])
    kind = error["type"]
    if kind == "rule":
        inner = f"{param}.{context['param']}" if param else context["param"]
        return FieldProblem(inner, shown(context["value"]), context["rule"], context["code"])
    if kind == "missing":
        return FieldProblem(param, None, "is required; set it, or name a preset", "missing_field")
    if kind in ("extra_forbidden", "invalid_key"):
        return FieldProblem(param, shown(value), "there is no such field", "unknown_field")
    if kind == "union_tag_not_found":
        tag = context["discriminator"].strip("'")
        return FieldProblem(
            f"{param}.{tag}", None, "is required: it says which kind this is", "missing_field"
        )
    rule = error["msg"].replace("Input should", "must")
    return FieldProblem(param, shown(value), rule[:LONGEST_SHOWN])


def _param(loc: Sequence[str | int]) -> str:
    parts = [str(part) for part in loc]
    for section in UNIONS:
        begin = [("*" if part.isdigit() else part) for part in parts[: len(section)]]
        if begin == section and len(parts) > len(section) + 1:
            del parts[len(section)]  # pydantic names the union's tag, which is no field
    joined = ".".join(part[:LONGEST_SHOWN] for part in parts)[: 2 * LONGEST_SHOWN]
    return joined.encode("utf-8", "replace").decode()
