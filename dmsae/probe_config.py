"""What may be asked of a finished core: its logit lens, a match with other latents, a prompt of one's own?

Settings of probes, short jobs that select no core. What each kind does is left to `probe_run.py`.
"""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from dmsae.config import RunConfig, Spec
from dmsae.sources import AbsolutePath, CycleRef, Section, StoredObject

ProbeKind = Literal["logit_lens", "match", "prompt"]
PROBE_KINDS: tuple[ProbeKind, ...] = ("logit_lens", "match", "prompt")
MOST_LENSES = 256
"""Latents whose logit lens one probe shows."""
MOST_TOKENS = 2048
"""Tokens of a prompt with what the model says next: each has an activation of each latent shown."""
LONGEST_PROMPT = 20_000
"""Characters."""
SAE_FILES = ("cfg.json", "sae_weights.safetensors")
"""What a folder in SAELens' format holds."""
ARRAYS = ".npz"
"""Ending of a file of NumPy arrays, as Gemma Scope publishes its SAEs: one file, in the place of both."""

JobName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
LatentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}\.[0-9]{1,9}\.[0-9]{1,18}$")]
LatentNames = Annotated[list[LatentName], Field(min_length=1, max_length=MOST_LENSES)]


def _whole_folder(objects: list[StoredObject]) -> list[StoredObject]:
    names = sorted(stored.key.rsplit("/", 1)[-1] for stored in objects)
    is_arrays = len(names) == 1 and names[0].endswith(ARRAYS)
    if not is_arrays and names != sorted(SAE_FILES):
        rule = f"must be the two files {' and '.join(SAE_FILES)} of one folder, or one {ARRAYS}"
        raise PydanticCustomError("sae_files", rule)
    return objects


SaeObjects = Annotated[list[StoredObject], Field(min_length=1, max_length=2), AfterValidator(_whole_folder)]


class ProbedCore(Section):
    """The core that a finished cycle selected."""

    job: JobName
    """The job."""
    cycle: int | None = Field(None, ge=0, le=1_000_000)
    """Which of its cycles; null: the last finished one, filled in by the service."""

    @property
    def ref(self) -> CycleRef:
        """Give the cycle as trainings and matches name it."""
        return CycleRef(job_id=self.job, cycle_index=self.cycle)


class OtherCycle(ProbedCore):
    """The core of another finished cycle, of whichever job."""

    kind: Literal["cycle"]


class OtherFolder(Section):
    """An SAE on the worker's disk, under its allowed roots: a folder in SAELens' format, or one `.npz`."""

    kind: Literal["folder"]
    path: AbsolutePath
    """Absolute path of the folder that holds `cfg.json` and `sae_weights.safetensors`, or of a file of NumPy
    arrays as Gemma Scope publishes them: `params.npz` with W_enc, W_dec, b_enc, b_dec and threshold."""

    @property
    def files(self) -> list[str]:
        """Give the paths of its files, as `read_foreign` takes them."""
        return [self.path] if self.path.endswith(ARRAYS) else [f"{self.path}/{name}" for name in SAE_FILES]


class OtherObjects(Section):
    """The same two files, or the one, uploaded into the service's own bucket."""

    kind: Literal["objects"]
    objects: SaeObjects
    """`cfg.json` and `sae_weights.safetensors`, or one `.npz`, by the keys that `POST /uploads` gave them."""

    @property
    def files(self) -> list[StoredObject]:
        """Give its files in the order of `SAE_FILES`, that with the weights last."""
        return sorted(self.objects, key=lambda stored: stored.key.endswith(f"/{SAE_FILES[1]}"))


Other = Annotated[OtherCycle | OtherFolder | OtherObjects, Field(discriminator="kind")]


class Ablate(Section):
    """Take away what the latent adds at the hook point, at every token that is counted."""

    kind: Literal["ablate"]


class Steer(Section):
    """Add a multiple of the latent's unit decoder direction at the hook point, at every counted token."""

    kind: Literal["steer"]
    strength: float = Field(ge=-1e6, le=1e6)
    """Euclidean norm of what is added, in the model's own units, those of the activations that a probe shows:
    steering by s adds what the latent itself would add at an activation of s; negative, the opposite."""


Change = Annotated[Ablate | Steer, Field(discriminator="kind")]


class ProbeConfig(RunConfig):
    """What every probe needs: a core, and the run that it comes from."""

    core: ProbedCore
    """The core that is asked about."""


class LogitLensConfig(ProbeConfig):
    """Which tokens does each latent promote, and which does it suppress (its row of W_dec W_U)?"""

    kind: Literal["logit_lens"]
    latents: LatentNames | None = None
    """Latents of the core; null: the first 256 in its order."""
    n_top: int = Field(10, ge=1, le=50)
    """Tokens shown at either end."""


class CoreMatchConfig(ProbeConfig):
    """Which latents of the core are found elsewhere too (METHOD, Identity)?"""

    kind: Literal["match"]
    other: Other
    """Where."""
    decoder_cosine: float = Field(0.7, gt=0, le=1)
    """Least cosine of two decoder rows that match one to one."""


class PromptConfig(ProbeConfig):
    """Where do latents fire in a text of one's own, and what does the model say next?"""

    kind: Literal["prompt"]
    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    """Read as the core's contexts were: without special tokens, behind a BOS where those had one."""
    latent: LatentName | None = None
    """Of the core; null: the latents of the core that fire most strongly there."""
    n_latents: int = Field(8, ge=1, le=32)
    """How many of those."""
    change: Change | None = None
    """Also say what the model says next with the latent ablated or steered."""
    n_top: int = Field(10, ge=1, le=50)
    """Likeliest next tokens shown."""
    n_new_tokens: int = Field(20, ge=0, le=100)
    """Tokens of the greedy continuation."""

    @model_validator(mode="after")
    def _check_change(self) -> Self:
        if self.change is not None and self.latent is None:
            raise _refuse("latent", None, "is required beside `change`: which latent is it about?")
        return self


AnyProbeConfig: TypeAlias = LogitLensConfig | CoreMatchConfig | PromptConfig
CONFIGS: dict[ProbeKind, type[AnyProbeConfig]] = {
    "logit_lens": LogitLensConfig,
    "match": CoreMatchConfig,
    "prompt": PromptConfig,
}


class ProbeSpec(Spec):
    """Everything that decides the result of a probe, but for the files that it reads."""

    config: Annotated[
        Annotated[LogitLensConfig, Tag("logit_lens")]
        | Annotated[CoreMatchConfig, Tag("match")]
        | Annotated[PromptConfig, Tag("prompt")],
        Discriminator("kind"),
    ]


def is_probe(config: Any) -> bool:
    """Tell the settings of a probe from those of every other job; a match of chains has no `kind`."""
    return isinstance(config, dict) and config.get("kind") in PROBE_KINDS


def _refuse(param: str, value: Any, rule: str) -> PydanticCustomError:
    context = {"param": param, "value": value, "rule": rule, "code": "invalid_value"}
    return PydanticCustomError("rule", "{rule}", context)
