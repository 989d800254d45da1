"""What did the trainer leave? The files of a finished cycle, read and checked before anything is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dmsae.errors import CycleFailed
from dmsae.probe_config import ProbeKind
from dmsae.service.plain_json import read_plain_json

CYCLE_FILES = ("spec.json", "sae/cfg.json", "core/core.json", "lineage.json", "metrics.json")
MATCH_FILES = ("spec.json", "match.json", "metrics.json")
PROBE_FILES = ("spec.json", "probe.json", "metrics.json")
LARGEST_PROBE_BYTES = 16 << 20
"""Of `probe.json`: a match of the largest cores."""
MOST_MATCHES = 1000
"""That stand with a probe's cycle; its file has all."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


Part = TypeVar("Part", bound=_Part)


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
    sae_index: int | None = None
    """This and the next three as the cycle that dropped it measured it."""
    score: float | None = None
    share: float | None = None
    rank: int | None = None


class GivenEntry(_Part):
    """One latent of the core that a training was given; null is what nothing has measured of it."""

    core_index: int = Field(ge=0)
    latent_id: str
    origin_job_id: str
    origin_cycle: int = Field(ge=0)
    origin_index: int = Field(ge=0)
    origin_kind: str
    parent_core_index: int | None
    """Its place in the core that the referenced cycle selected."""
    sae_index: int | None
    """Its row in the referenced cycle's SAE."""
    score: float | None
    share: float | None
    rank: int | None
    density: float | None
    encoder_norm: float | None


class Given(_Part):
    """The core that a training was given."""

    kind: Literal["selected", "filtered", "random_directions", "random_latents", "frequent", "energy"]
    seed: int | None
    overlap: float | None
    is_weak_control: bool | None
    core: list[GivenEntry] = Field(min_length=1)


class Lineage(_Part):
    """`lineage.json`: who was selected, where each comes from, and who was dropped."""

    cycle_index: int = Field(ge=0)
    core: list[CoreEntry] = Field(min_length=1)
    dropped: list[DroppedEntry]
    given: Given | None = None
    """Of a training that was given a core."""


class _Provenance(_Part):
    """What `core.json` says of the activations that the core was found on."""

    model_revision: str
    hook: str
    dtype: str
    special_ids: list[int]
    split: list[float]
    split_salt: str


class _CoreFacts(_Part):
    rms: float = Field(gt=0)
    median_norm: float = Field(gt=0)
    provenance: _Provenance


class _SaeFacts(_Part):
    d_in: int = Field(ge=1)


class Match(_Part):
    """`match.json`: which latents of each core another one holds too. Only what is shown is checked."""

    model_config = ConfigDict(extra="allow")

    cores: list[str] = Field(min_length=2)
    n_latents: list[int]
    decoder_cosine: float
    firing_correlation: float
    pairs: list[dict[str, Any]]
    reproduced: list[list[str]]
    share_reproduced: list[float | None]


class ProbeMatch(_Part):
    """Two latents that a probe found alike; only what becomes a row is checked."""

    model_config = ConfigDict(extra="allow")

    latent_id: str
    other_latent_id: str | None
    """Null where the other one is of a folder that nobody here trained."""
    decoder_cosine: float
    firing_correlation: float | None


class Probe(_Part):
    """`probe.json`: what a probe found. Only what becomes rows is checked."""

    model_config = ConfigDict(extra="allow")

    kind: ProbeKind
    matches: list[ProbeMatch] = []
    """Of a match, the most alike first."""
    best_cosine: float | None = None
    best_cosine_random: float | None = None

    def shown(self) -> dict[str, Any]:
        """Give what stands with the cycle: all of it, but for matches beyond `MOST_MATCHES`."""
        found = self.model_dump(exclude_unset=True)
        return found | ({"matches": found["matches"][:MOST_MATCHES]} if "matches" in found else {})


@dataclass(frozen=True)
class _Timed:
    """What every finished trainer leaves."""

    metrics: dict[str, Any]

    def with_phase(self, phase: str, *, seconds: float) -> Self:
        """Add a phase that the trainer did not see to those that it timed."""
        timed = self.metrics.get("phase_seconds")
        phases = {**(timed if isinstance(timed, dict) else {}), phase: seconds}
        return replace(self, metrics={**self.metrics, "phase_seconds": phases})


@dataclass(frozen=True)
class CycleResult(_Timed):
    """What a finished cycle says of itself, beside its files."""

    lineage: Lineage
    provenance: dict[str, Any]
    """What travels with its core, and with the one that it was given: they share it."""


@dataclass(frozen=True)
class MatchResult(_Timed):
    """What a finished match says."""

    match: Match


@dataclass(frozen=True)
class ProbeResult(_Timed):
    """What a finished probe says."""

    probe: Probe


TrainerResult = CycleResult | MatchResult | ProbeResult


def read_probe(folder: Path) -> ProbeResult:
    """Read what a finished probe says; non-finite figures become null.

    Raises:
        CycleFailed: `internal_error`, a file is missing, too large, or does not say what it must.
    """
    metrics = _read_metrics(folder, PROBE_FILES)
    file = folder / "probe.json"
    if (size_bytes := file.stat().st_size) > LARGEST_PROBE_BYTES:
        told = f"is of {size_bytes} bytes, more than {LARGEST_PROBE_BYTES}"
        raise CycleFailed("internal_error", f"The trainer's probe.json {told}.")
    return ProbeResult(metrics, _read(Probe, file))


def read_result(folder: Path, *, is_match: bool) -> TrainerResult:
    """Read what a finished trainer says of its results; non-finite metrics become null.

    Raises:
        CycleFailed: `internal_error`, a file is missing or does not say what it must.
    """
    metrics = _read_metrics(folder, MATCH_FILES if is_match else CYCLE_FILES)
    if is_match:
        return MatchResult(metrics, _read(Match, folder / "match.json"))
    lineage = _read(Lineage, folder / "lineage.json")
    core, sae = (
        _read(_CoreFacts, folder / "core" / "core.json"),
        _read(_SaeFacts, folder / "sae" / "cfg.json"),
    )
    scale = {"rms": core.rms, "median_norm": core.median_norm, "d_model": sae.d_in}
    return CycleResult(metrics, lineage, {**core.provenance.model_dump(), **scale})


def _read_metrics(folder: Path, files: Sequence[str]) -> dict[str, Any]:
    """Read `metrics.json`, all of `files` being there."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CycleFailed("internal_error", f"The trainer finished without writing {', '.join(missing)}.")
    metrics = _read_json(folder / "metrics.json")
    if not isinstance(metrics, dict):
        raise CycleFailed("internal_error", "The trainer's metrics.json is not an object.")
    return metrics


def _read(part: type[Part], file: Path) -> Part:
    try:
        return part.model_validate(_read_json(file))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CycleFailed(
            "internal_error", f"The trainer's {file.name} is wrong: {where}: {first['msg']}."
        ) from error


def _read_json(file: Path) -> Any:
    try:
        return read_plain_json(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CycleFailed("internal_error", f"The trainer's {file.name} is not JSON.") from error
