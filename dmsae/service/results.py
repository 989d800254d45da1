"""What did the trainer leave? The files of a finished cycle, read and checked before anything is recorded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dmsae.errors import CycleFailed
from dmsae.service.plain_json import read_plain_json

REQUIRED_FILES = ("spec.json", "core/core.json", "lineage.json", "metrics.json")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class CoreEntry(_Part):
    """One latent of the core that the cycle selected."""

    core_index: int = Field(ge=0)
    sae_index: int = Field(ge=0)
    latent_id: str
    origin_job_id: str
    origin_cycle: int = Field(ge=0)
    origin_index: int = Field(ge=0)
    parent_core_index: int | None
    times_selected: int = Field(ge=1)
    score: float
    score_se: float | None
    share: float
    rank: int
    encoder_norm: float
    density: float
    decoder_cosine: float | None
    firing_jaccard: float | None
    is_borderline: bool


class DroppedEntry(_Part):
    """One latent of the core that the cycle was given and did not select again."""

    core_index: int = Field(ge=0)
    latent_id: str


class Lineage(_Part):
    """`lineage.json`: who was selected, where each comes from, and who was dropped."""

    cycle_index: int = Field(ge=0)
    core: list[CoreEntry] = Field(min_length=1)
    dropped: list[DroppedEntry]


@dataclass(frozen=True)
class CycleResult:
    """What a finished cycle says of itself, beside its files."""

    lineage: Lineage
    metrics: dict[str, Any]

    def with_phase(self, phase: str, *, seconds: float) -> "CycleResult":
        """Add a phase that the trainer did not see to those that it timed."""
        timed = self.metrics.get("phase_seconds")
        phases = {**(timed if isinstance(timed, dict) else {}), phase: seconds}
        return replace(self, metrics={**self.metrics, "phase_seconds": phases})


def read_result(folder: Path) -> CycleResult:
    """Read lineage and metrics of a finished cycle; non-finite metrics become null.

    Raises:
        CycleFailed: `internal_error`, a file is missing or does not say what it must.
    """
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        raise CycleFailed("internal_error", f"The trainer finished without writing {', '.join(missing)}.")
    try:
        lineage = Lineage.model_validate(read_plain_json((folder / "lineage.json").read_bytes()))
        metrics = read_plain_json((folder / "metrics.json").read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CycleFailed(
            "internal_error", f"The trainer's lineage.json is wrong: {where}: {first['msg']}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CycleFailed("internal_error", "The trainer's lineage or metrics are not JSON.") from error
    if not isinstance(metrics, dict):
        raise CycleFailed("internal_error", "The trainer's metrics.json is not an object.")
    return CycleResult(lineage, metrics)
