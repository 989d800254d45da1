"""What does a cycle work on: which core, model, contexts and activations?

Everything that can be refused before training is refused here. The steps after it are in `cycle_steps.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.activation_cache import ActivationCache
from dmsae.activations import ContextBatch, Dropped, Harvester, Scale, collect
from dmsae.checkpoints import Checkpoint
from dmsae.config import (
    ACTIVATION_CACHE_BYTES,
    SPLIT_SALT,
    ActivationConfig,
    CycleConfig,
    CycleSpec,
    RunConfig,
)
from dmsae.contexts import Contexts, TokenisedText
from dmsae.core_inputs import read_core, read_given, require_scale
from dmsae.cores import GivenCore
from dmsae.cycle_text import MARGIN, OpenText, open_text, read_text, tell_skipped, telling_counts
from dmsae.documents import Part
from dmsae.errors import CycleFailed
from dmsae.hooks import HookPoint, resolve_hook, run_upper
from dmsae.kept_activations import KeptBatches, keep_batches, keep_windows
from dmsae.models import LoadedModel, check_fit, load_model
from dmsae.pace import HarvestPace, measure_token_s
from dmsae.randomness import derived_seed
from dmsae.reporting import OnceReport, Report
from dmsae.sae import Core, Provenance, require_fit
from dmsae.splicing import RunUpper, take_kept
from dmsae.stored_activations import StoredText
from dmsae.survey import Survey, survey
from dmsae.windows import Count, HarvestedWindows, Windows

MAX_RESIDENT_BYTES = 2**30
"""Memory that training windows may take, but for the one in use and the one that is made ready."""


@dataclass(frozen=True)
class Places:
    """Where a cycle finds what its spec only names."""

    cache_dir: Path
    core_dir: Path | None = None
    """The `core/` folder of the cycle before; none in cycle 0."""
    sources_dir: Path | None = None
    """What the finished cycles stored that a training's core or a match names, a folder each."""
    inputs_dir: Path | None = None
    """Folder with the stored objects that the text names."""
    allowed_roots: Sequence[Path] | None = None
    """Folders from which text files may be read; null allows all."""
    resume_dir: Path | None = None
    """A checkpoint to go on from."""
    n_parts: int = 1
    """In how many parts batches are computed: more, where an earlier attempt ran out of memory."""
    activation_cache_bytes: int = ACTIVATION_CACHE_BYTES
    """Room for harvested training activations below the cache folder; 0 keeps none."""

    @property
    def activation_cache(self) -> ActivationCache:
        """Where activations are kept for later cycles."""
        return ActivationCache(self.cache_dir / "activations", max_bytes=self.activation_cache_bytes)

    def in_parts(self, config: ActivationConfig) -> ActivationConfig:
        """Let the model read fewer contexts at once, where batches are computed in parts."""
        n_contexts = max(1, config.model_batch_contexts // self.n_parts)
        return config.model_copy(update={"model_batch_contexts": n_contexts})


@dataclass(frozen=True)
class CycleRun:
    """What all steps of one cycle share."""

    spec: CycleSpec
    loaded: LoadedModel
    hook: HookPoint
    core: Core | None
    """The core that this cycle starts from; none in cycle 0 of a distillation."""
    report: OnceReport
    places: Places
    text: OpenText
    resumed: Checkpoint | None = None
    """Where an earlier attempt at this cycle left off; none where it begins."""
    given: GivenCore | None = None
    """How the core of a training came about."""

    @property
    def cache_dir(self) -> Path:
        """Where what was read, converted or harvested is kept."""
        return self.places.cache_dir

    @property
    def previous(self) -> Core | None:
        """The core as it was in the SAE that it was taken from; none where it was in none before."""
        return self.core if self.given is None or self.given.has_rows else None

    @property
    def config(self) -> CycleConfig:
        """The settings of the job."""
        return self.spec.config

    @property
    def seed(self) -> int:
        """Root of every random choice of this cycle."""
        return derived_seed(self.config.seed, "cycle", self.spec.cycle_index)

    @property
    def device(self) -> torch.device:
        """Where the language model and the SAE compute; harvested activations stay on the CPU."""
        return self.loaded.device

    @property
    def run_upper(self) -> RunUpper:
        """What the model makes of activations at the hook point."""

        def run_on(
            batch: ContextBatch, activations: Float[Tensor, "n t d_model"]
        ) -> Float[Tensor, "n t vocab"]:
            return run_upper(
                self.loaded,
                self.hook,
                input_ids=batch.input_ids,
                is_token=batch.is_token,
                activations=activations,
            )

        return run_on

    def harvester(self, tell: Callable[[int], None] = lambda _: None) -> Harvester:
        """Give what reads this run's activations; `tell` hears how many tokens each batch held."""
        return Harvester(self.loaded, self.hook, self.places.in_parts(self.config.activations), tell)

    def facts(self) -> dict[str, Any]:
        """Give what the model really runs with, and where it is cut, for `metrics.json`."""
        return {**self.loaded.facts(), "hook_path": self.hook.path, "hook": self.hook.hook}


class Harvest(NamedTuple):
    """The activations of the three parts."""

    windows: Windows
    """Training."""
    survey: Survey
    attribution: list[ContextBatch]
    evaluation: list[ContextBatch]
    measured_dropped: dict[Part, Dropped]
    """Of attribution and evaluation."""
    token_s: float
    """Seconds that the lower layers took for one token."""
    n_documents: int
    """Documents that were read, of all parts."""
    n_rows_skipped: dict[str, int]
    """Rows of the text that were read and left out, by reason."""
    measured_trouble: str | None
    """Why attribution's or evaluation's batches cannot all be kept for later cycles, or None."""

    @property
    def cache_trouble(self) -> str | None:
        """Why not all activations can be kept, as far as is known, or None."""
        return self.windows.trouble or self.measured_trouble

    @property
    def dropped(self) -> dict[Part, Dropped]:
        """What was left out of each part; of training as far as it was read."""
        return {"training": self.survey.dropped, **self.measured_dropped}


def open_run(
    spec: CycleSpec, *, places: Places, report: Report, resumed: Checkpoint | None = None
) -> CycleRun:
    """Read the core, try out the text, then load the model, and refuse what does not fit together.

    Raises: CycleFailed.
    """
    config, cache_dir = spec.config, places.cache_dir
    given = read_given(spec, core_dir=places.core_dir, sources_dir=places.sources_dir)
    core = read_core(spec, places.core_dir) if given is None else given.core
    text = open_text(
        config.data, inputs_dir=places.inputs_dir, allowed_roots=places.allowed_roots, cache_dir=cache_dir
    )
    device = open_device(config)
    loaded = load_model(config.model, activations=config.activations, device=device, cache_dir=cache_dir)
    check_fit(loaded, layer=config.activations.layer, context_length=config.data.context_length)
    hook = resolve_hook(loaded, layer=config.activations.layer, hook=config.activations.hook)
    once = OnceReport(report, () if resumed is None else resumed.notes["told"])
    run = CycleRun(spec, loaded, hook, core, once, places, text, resumed, given)
    check_run(run)
    return run


def open_device(config: RunConfig) -> torch.device:
    """Give the device that the settings ask for; which GPU `cuda` is was decided by who started the trainer.

    Raises: CycleFailed with `device_unavailable`; nothing falls back to the CPU.
    """
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CycleFailed(
            "device_unavailable",
            f"device = {config.device}: torch {torch.__version__} finds no CUDA device on this worker.",
            param="device",
        )
    return torch.device("cuda:0")


def check_run(run: CycleRun) -> None:
    """Refuse a core that does not fit; say what model runs and where it is cut.

    Raises: CycleFailed with `core_mismatch`, `core_too_large` or `core_empty`.
    """
    if run.core is not None:
        run.core.require_provenance(provenance(run))
        require_scale(run.config.activations, run.core)
        require_fit(run.core, run.config.layout, d_model=run.loaded.d_model)
    tell_model(run.report, run.loaded, run.hook)


def tell_model(report: Report, loaded: LoadedModel, hook: HookPoint) -> None:
    """Say what model runs and where it is cut."""
    facts = loaded.facts()
    report.event(
        "model_loaded",
        f"A {loaded.model_type} in {facts['model_dtype']} with {loaded.attention} attention on "
        f"{loaded.device}, revision {loaded.revision}.",
        facts,
    )
    report.event(
        "hook_resolved",
        f"Activations are the output of {hook.path}, {hook.hook} of layer {hook.layer} of 0 to "
        f"{loaded.n_layers - 1}.",
        {
            "path": hook.path,
            "hook": hook.hook,
            "layer": hook.layer,
            "n_layers": loaded.n_layers,
            "d_model": loaded.d_model,
        },
    )


def provenance(run: CycleRun) -> Provenance:
    """Say what this run's activations are."""
    return provenance_of(run.config, run.loaded, run.hook)


def provenance_of(config: RunConfig, loaded: LoadedModel, hook: HookPoint) -> Provenance:
    """Say what the activations of these settings are."""
    return Provenance(
        model_revision=loaded.revision,
        hook=f"{hook.path}:{hook.hook}",
        dtype=config.activations.model_dtype,
        special_ids=loaded.special_ids,
        split=tuple(config.data.split),
        split_salt=SPLIT_SALT,
    )


def read_contexts(run: CycleRun, *, margin: float = MARGIN) -> TokenisedText:
    """Split the text and cut each part into contexts, refusing at once a part that is plainly too small.

    Raises: CycleFailed.
    """
    return read_text(run.text, run.harvester(), run.config, margin=margin, cache_dir=run.cache_dir)


def tokens_to_harvest(run: CycleRun, tokens: TokenisedText) -> int:
    """Estimate, without running the model, how many tokens this cycle harvests."""
    config = run.config
    n_training = tokens.n_candidates["training"]
    n_wanted = config.training.n_tokens or n_training
    return min(n_training, n_wanted) + config.attribution.n_tokens + config.evaluation.n_tokens


def harvest_parts(run: CycleRun, tokens: TokenisedText) -> Harvest:
    """Harvest all three parts, reading on where more tokens are dropped for their norms than was allowed for.

    Raises: CycleFailed with `dataset_exhausted` or `non_finite`.
    """
    tell_skipped(tokens, run.report)
    margin = MARGIN
    while True:
        try:
            with telling_counts(tokens, run.config):
                return _harvest(run, tokens)
        except CycleFailed as failure:
            if failure.failure != "dataset_exhausted" or tokens.is_whole:
                raise
        margin *= 2
        tokens = read_contexts(run, margin=margin)


def _harvest(run: CycleRun, tokens: TokenisedText) -> Harvest:
    """Harvest all three parts, at the core's scale, else at the one given, else at their own."""
    config, core = run.config, run.core
    pace = HarvestPace(run.report, n_tokens_total=tokens_to_harvest(run, tokens))
    harvester, contexts = run.harvester(pace.add), tokens.parts
    windows = open_windows(run, tokens, harvester)
    scale = core or config.activations.scale
    given = None if scale is None else Scale(rms=scale.rms, median_norm=scale.median_norm)
    counts: list[Count] = []
    if run.resumed is not None:
        given = given or Scale(**run.resumed.notes["scale"])
        counts = run.resumed.notes["counts"]
    dropped: dict[Part, Dropped] = {}
    troubles: list[str] = []

    def read(part: Part, n_tokens: int, *, max_norm: float) -> list[ContextBatch]:
        with open_batches(run.places.activation_cache, harvester, contexts[part], troubles=troubles) as kept:
            batches = harvester.harvest(contexts[part], max_norm=max_norm, part=part, kept=kept)
            taken = list(take_kept(collect(batches, n_tokens=n_tokens, part=part), n_tokens))
        counts = (harvester.count_dropped(batch, max_norm=max_norm) for batch in taken)
        dropped[part] = sum(counts, start=Dropped(0, 0, 0))
        return taken

    try:
        found = survey(windows, config, scale=given, counts=counts)
        attribution = read("attribution", config.attribution.n_tokens, max_norm=found.tally.max_norm)
        evaluation = read("evaluation", config.evaluation.n_tokens, max_norm=found.tally.max_norm)
    except BaseException:
        windows.close()
        raise
    pace.finish()
    token_s = measure_token_s(harvester, contexts["attribution"])
    windows.start_watch()
    seen = tokens.n_documents, dict(tokens.n_rows_skipped)
    trouble = troubles[0] if troubles else None
    return Harvest(windows, found, attribution, evaluation, dropped, token_s, *seen, trouble)


def open_windows(run: CycleRun, tokens: TokenisedText, harvester: Harvester) -> Windows:
    """Give the training part: ready-made, or harvested and kept in the cache where that is possible."""
    if isinstance(tokens, StoredText):
        return Windows(tokens.training_windows(harvester), max_resident_bytes=MAX_RESIDENT_BYTES)
    source = HarvestedWindows(harvester, tokens.parts["training"], n_tokens=tokens.n_candidates["training"])
    store, trouble = None, None
    try:
        store = keep_windows(run.places.activation_cache, source)
    except OSError as error:
        trouble = error.strerror or str(error)
    return Windows(source, max_resident_bytes=MAX_RESIDENT_BYTES, store=store, trouble=trouble)


@contextmanager
def open_batches(
    cache: ActivationCache, harvester: Harvester, contexts: Contexts, *, troubles: list[str]
) -> Iterator[KeptBatches | None]:
    """Open the place of a part that is measured on in the cache; where there is none, nothing is kept.

    Mutates: adds to `troubles` why not all could be kept.
    """
    try:
        kept = keep_batches(cache, harvester, contexts)
    except OSError as error:
        troubles.append(error.strerror or str(error))
        yield None
        return
    try:
        yield kept
    finally:
        if kept.trouble is not None:
            troubles.append(kept.trouble)
        kept.close()
