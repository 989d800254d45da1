"""What a job is asked to do: every setting, its default, its source and its rules.

Settings are refused here, before anything is queued, with field, value and rule. What only a worker can see
(whether the model exists, how long the text is) is checked by the trainer.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from dmsae.sources import CoreSource, CycleRef, ModelSource, NoCore, Section, TextSource

SPEC_VERSION = 5
"""Version of `CycleSpec`; a worker never claims a newer one than its own, and still reads every older one."""

SPLIT_SALT = "dmsae-split-6"
"""Salt of the document hash that assigns documents to parts, the same for every seed and job.

Of the first twelve tried, the one whose small parts hold most of the built-in text's tokens on every Python.
"""


ACTIVATION_CACHE_BYTES = 32 * 2**30
"""Room on a worker's disk for harvested activations, unless told otherwise: 29M tokens of width 576."""

MOST_RECORD_BYTES = 64 << 10
"""Of what is stored to show one latent, compressed."""
BARE_RECORD_BYTES = 1536
"""Of the same without any text, and for each token of text: generous, so that texts are seldom cut."""
TOKEN_BYTES = 8
PLACE_BYTES = 17
"""Sixteen digits and a line feed, that say where one latent's record lies."""


def _refuse(param: str, value: Any, rule: str, code: str = "invalid_value") -> PydanticCustomError:
    return PydanticCustomError("rule", "{rule}", {"param": param, "value": value, "rule": rule, "code": code})


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
    split: list[float] = Field([0.9, 0.05, 0.05])
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


class ScaleConfig(Section):
    """At what scale activations are trained on (METHOD 3); a core is only as good as its own."""

    rms: float = Field(gt=0)
    """activation_rms = sqrt(E||x||^2)."""
    median_norm: float = Field(gt=0)
    """Median of ||x||, by which tokens are dropped for their norm."""


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
    scale: ScaleConfig | None = None
    """Scale of the activations; null: the core's or, without a core, measured on the training part."""


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
    step: Literal["auto", "fast", "plain"] = "auto"
    """How a step is computed: `fast` over the active latents only, `plain` over dense matrices.

    Both give the same but for the order of float32 sums. `auto` is fast on a CPU and plain on a GPU, whose
    fast step, in Triton, no GPU has run yet. Ours."""


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


class SnippetConfig(Section):
    """Which texts a cycle stores of each latent of the core that it selects; they change no weight. Ours."""

    strongest: int = Field(10, ge=0, le=20)
    """Contexts in which the latent is strongest."""
    per_decile: int = Field(2, ge=0, le=10)
    """Firings in each tenth of the range of its activations, drawn at random."""
    context: int = Field(20, ge=0, le=50)
    """Tokens shown on each side of a firing, within its document and context."""
    budget_bytes: int = Field(32 * 2**20, ge=0, le=2**40)
    """Most bytes of one cycle's, shared evenly among its latents; where they are short, random firings go
    first. 0 stores none."""

    def latent_bytes(self, n_latents: int) -> int:
        """Give the most bytes that are stored of each of so many latents; 0 where none are."""
        n_tokens = (self.strongest + 10 * self.per_decile) * (2 * self.context + 1)
        share = (self.budget_bytes - self.place_bytes(n_latents)) // max(1, n_latents)
        return max(0, min(share, MOST_RECORD_BYTES, BARE_RECORD_BYTES + TOKEN_BYTES * n_tokens))

    def place_bytes(self, n_latents: int) -> int:
        """Give the bytes that tell where each latent's lie."""
        return PLACE_BYTES * (n_latents + 1)


class RunConfig(Section):
    """What every run of a trainer needs: which activations, on what, from which seed."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Root of every random choice of the job."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Resource class that runs the cycles."""
    n_threads: int = Field(2, ge=1, le=256)
    """CPU threads of the trainer: part of the spec, since sums depend on it."""
    time_limit_s: int | None = Field(None, ge=1)
    """Wall-clock limit of one attempt at a cycle; null: none."""
    model: ModelSource
    data: DataConfig
    activations: ActivationConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check_context(self) -> Self:
        shortest = 3 if self.data.prepend_bos else 2
        if self.data.context_length < shortest:
            with_bos = ", a BOS, a token and the next one" if self.data.prepend_bos else ""
            rule = f"must be at least {shortest}{with_bos}"
            raise _refuse("data.context_length", self.data.context_length, rule)
        return self


class CycleConfig(RunConfig):
    """What one cycle is asked to do, of whichever job: train, attribute, select, evaluate."""

    sae: SaeConfig
    training: TrainingConfig = TrainingConfig()
    attribution: AttributionConfig = AttributionConfig()
    selection: SelectionConfig = SelectionConfig()
    snippets: SnippetConfig = SnippetConfig()

    @property
    def layout(self) -> SaeConfig:
        """The SAE's shape and sparsity as it is really laid out."""
        return self.sae

    @property
    def has_fast_step(self) -> bool:
        """Whether a step computes over the active latents only."""
        step = self.training.step
        return step == "fast" or (step == "auto" and self.device == "cpu")

    @property
    def max_core(self) -> int:
        """Most latents that a core of this job may hold (METHOD 9)."""
        if self.selection.max_core is not None:
            return self.selection.max_core
        widths = self.sae.block_widths
        return min(4 * widths[0], self.sae.n_latents - widths[-1] - 1)

    def prefix_widths(self, n_core: int) -> list[int]:
        """Give p_1 ... p_G of an SAE around a core of `n_core` latents (METHOD 1)."""
        return self.layout.prefix_widths(n_core)

    @model_validator(mode="after")
    def _check_core(self) -> Self:
        widest, n_latents = self.sae.block_widths[-1], self.sae.n_latents
        if self.max_core < 1 or self.max_core + widest >= n_latents:
            raise _refuse(
                "selection.max_core",
                self.max_core,
                f"max_core + the widest block ({widest}) must be below n_latents = {n_latents}",
            )
        return self


class DistillationConfig(CycleConfig):
    """All settings of a distillation, resolved: what is stored, echoed and handed to the trainer."""

    n_cycles: int = Field(ge=1, le=64)
    """Cycles, cycle 0 included."""
    chains: int = Field(1, ge=1, le=64)
    """Distillations under as many seeds, each on training documents of its own: a group of jobs."""
    chain_index: int = Field(0, ge=0, le=63)
    """Which of the chains this job is, from 0; filled in by the service."""

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        if self.chain_index >= self.chains:
            raise _refuse("chain_index", self.chain_index, f"must be below chains = {self.chains}")
        return self


class CoreTrainingConfig(CycleConfig):
    """All settings of a training: one cycle around a given core, or none."""

    core: CoreSource
    """What the SAE is built around."""
    chains: int = Field(1, ge=1, le=64)
    """Into how many disjoint parts the training documents are divided, as in a distillation."""
    chain_index: int = Field(0, ge=0, le=63)
    """Which of these parts is trained on, from 0."""

    @property
    def layout(self) -> SaeConfig:
        """The SAE's shape: without a core, as wide as around one of `n_matched` latents."""
        if not isinstance(self.core, NoCore) or self.core.n_matched is None:
            return self.sae
        widths = [self.core.n_matched + width for width in self.sae.block_widths]
        return self.sae.model_copy(update={"block_widths": widths})

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.chain_index >= self.chains:
            raise _refuse("chain_index", self.chain_index, f"must be below chains = {self.chains}")
        widest, n_latents = self.layout.block_widths[-1], self.sae.n_latents
        if widest >= n_latents:
            n_matched = widest - self.sae.block_widths[-1]
            rule = f"with the widest block it makes {widest}: must stay below n_latents = {n_latents}"
            raise _refuse("core.n_matched", n_matched, rule)
        return self


class MatchConfig(RunConfig):
    """Which latents of several chains' final cores were found by more than one chain (METHOD, Identity)."""

    cores: list[CycleRef] = Field(min_length=2, max_length=64)
    """The cores to compare, each with every other."""
    decoder_cosine: float = Field(0.7, gt=0, le=1)
    """Least cosine of two decoder rows that match one to one."""
    firing_correlation: float = Field(0.5, ge=0, le=1)
    """Least correlation of their activations on the evaluation part."""


def _kind_of(config: Any) -> str:
    """Tell which kind of job settings belong to: those of version 2 are all distillations."""
    has_core = "core" in config if isinstance(config, dict) else hasattr(config, "core")
    return "training" if has_core else "distillation"


class Spec(Section):
    """What is handed to a trainer."""

    spec_version: int = SPEC_VERSION
    job_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Names this job's latents: `<job>.<cycle>.<sae_index>`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= self.spec_version <= SPEC_VERSION:
            raise _refuse("spec_version", self.spec_version, f"this code reads versions 1 to {SPEC_VERSION}")
        return self


class CycleSpec(Spec):
    """Everything that decides the result of one cycle, but for the cores it starts from."""

    cycle_index: int = Field(ge=0)
    config: Annotated[
        Annotated[DistillationConfig, Tag("distillation")] | Annotated[CoreTrainingConfig, Tag("training")],
        Discriminator(_kind_of),
    ]


class MatchSpec(Spec):
    """Everything that decides the result of a match, but for the SAEs that it compares."""

    config: MatchConfig
