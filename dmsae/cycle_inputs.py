"""What does a cycle work on: which core, model, contexts and activations?

Everything that can be refused before training is refused here. The steps after it are in `cycle_steps.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.activations import (
    ContextBatch,
    Dropped,
    Harvester,
    Scale,
    Survey,
    Windows,
    collect,
    require_tokens,
    survey,
)
from dmsae.config import SPLIT_SALT, CycleSpec, DistillationConfig
from dmsae.errors import CycleFailed
from dmsae.formats import load_core
from dmsae.hooks import HookPoint, resolve_hook, run_upper
from dmsae.models import LoadedModel, check_fit, load_model
from dmsae.pace import HarvestPace
from dmsae.randomness import derived_seed
from dmsae.reporting import Report
from dmsae.sae import Core, Provenance
from dmsae.splicing import RunUpper, take_kept
from dmsae.stream import token_budget
from dmsae.text import PARTS, Contexts, Part, build_contexts, check_ids, load_documents, split_documents
from dmsae.window_files import open_window_files

MAX_RESIDENT_BYTES = 2 * 2**30
"""Memory that harvested training windows may take; beyond it they are harvested again, with the same bits."""


@dataclass(frozen=True)
class CycleRun:
    """What all steps of one cycle share."""

    spec: CycleSpec
    loaded: LoadedModel
    hook: HookPoint
    core: Core | None
    """The core that this cycle starts from; none in cycle 0."""
    report: Report
    cache_dir: Path

    @property
    def config(self) -> DistillationConfig:
        """The settings of the distillation."""
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
        return Harvester(self.loaded, self.hook, self.config.activations, tell)

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
    dropped: dict[Part, Dropped]
    token_s: float
    """Seconds that the lower layers took for one token."""


def open_run(spec: CycleSpec, *, core_dir: Path | None, cache_dir: Path, report: Report) -> CycleRun:
    """Read the core, then the model, and refuse what does not fit together.

    Raises: CycleFailed.
    """
    config = spec.config
    core = read_core(spec, core_dir)
    device = open_device(config)
    loaded = load_model(config.model, activations=config.activations, device=device, cache_dir=cache_dir)
    check_fit(loaded, layer=config.activations.layer, context_length=config.data.context_length)
    hook = resolve_hook(loaded, layer=config.activations.layer, hook=config.activations.hook)
    run = CycleRun(spec, loaded, hook, core, report, cache_dir)
    check_run(run)
    return run


def open_device(config: DistillationConfig) -> torch.device:
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


def read_core(spec: CycleSpec, core_dir: Path | None) -> Core | None:
    """Read the core that this cycle starts from.

    Raises: CycleFailed with `core_mismatch`.
    """
    if (core_dir is None) != (spec.cycle_index == 0):
        rule = "cycle 0 starts from no core" if core_dir else "a later cycle starts from the core before it"
        raise CycleFailed(
            "core_mismatch", f"cycle_index = {spec.cycle_index}, core = {core_dir}: {rule}.", param="core"
        )
    return None if core_dir is None else load_core(core_dir)


def check_run(run: CycleRun) -> None:
    """Refuse a core that is of other activations, and say what model runs and where it is cut.

    Raises: CycleFailed with `core_mismatch`.
    """
    loaded, hook = run.loaded, run.hook
    if run.core is not None:
        run.core.require_provenance(provenance(run))
    facts = loaded.facts()
    run.report.event(
        "model_loaded",
        f"A {loaded.model_type} in {facts['model_dtype']} with {loaded.attention} attention on "
        f"{loaded.device}, revision {loaded.revision}.",
        facts,
    )
    run.report.event(
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
    activations = run.config.activations
    return Provenance(
        model_revision=run.loaded.revision,
        hook=f"{run.hook.path}:{run.hook.hook}",
        dtype=activations.model_dtype,
        special_ids=run.loaded.special_ids,
        split=tuple(run.config.data.split),
        split_salt=SPLIT_SALT,
    )


def read_contexts(run: CycleRun) -> dict[Part, Contexts]:
    """Split the text and cut each part into contexts, refusing at once a part that is plainly too small.

    Raises: CycleFailed with `dataset_exhausted`, `data_unreadable` or `model_unreadable`.
    """
    config, loaded = run.config, run.loaded
    documents = split_documents(load_documents(config.data.text), config.data.split)
    contexts = {part: build_contexts(documents[part], loaded.tokenizer, config.data) for part in PARTS}
    harvester = run.harvester()
    n_candidates = {part: harvester.count_candidates(contexts[part]) for part in PARTS}
    for part in PARTS:
        check_ids(contexts[part], vocab_size=loaded.vocab_size)
    token_budget(config.training, n_available=n_candidates["training"])
    require_tokens(n_candidates["attribution"], n_tokens=config.attribution.n_tokens, part="attribution")
    require_tokens(n_candidates["evaluation"], n_tokens=config.evaluation.n_tokens, part="evaluation")
    return contexts


def tokens_to_harvest(run: CycleRun, contexts: dict[Part, Contexts]) -> int:
    """Estimate, without running the model, how many tokens this cycle harvests."""
    config = run.config
    n_training = run.harvester().count_candidates(contexts["training"])
    n_wanted = config.training.n_tokens or n_training
    return min(n_training, n_wanted) + config.attribution.n_tokens + config.evaluation.n_tokens


def harvest_parts(run: CycleRun, contexts: dict[Part, Contexts]) -> Harvest:
    """Harvest all three parts, at the core's scale or, in cycle 0, at their own.

    Raises: CycleFailed with `dataset_exhausted` or `non_finite`.
    """
    config, core = run.config, run.core
    pace = HarvestPace(run.report, n_tokens_total=tokens_to_harvest(run, contexts))
    harvester = run.harvester(pace.add)
    store = open_window_files(run.cache_dir, harvester, contexts["training"])
    windows = Windows(harvester, contexts["training"], max_resident_bytes=MAX_RESIDENT_BYTES, store=store)
    given = None if core is None else Scale(rms=core.rms, median_norm=core.median_norm)
    found = survey(windows, scale=given, n_tokens=config.training.n_tokens)
    dropped: dict[Part, Dropped] = {"training": found.dropped}

    def read(part: Part, n_tokens: int) -> list[ContextBatch]:
        batches = harvester.harvest(contexts[part], max_norm=found.max_norm)
        taken = list(take_kept(collect(batches, n_tokens=n_tokens, part=part), n_tokens))
        counts = (harvester.count_dropped(batch, max_norm=found.max_norm) for batch in taken)
        dropped[part] = sum(counts, start=Dropped(0, 0, 0))
        return taken

    started = time.monotonic()
    attribution = read("attribution", config.attribution.n_tokens)
    evaluation = read("evaluation", config.evaluation.n_tokens)
    token_s = (time.monotonic() - started) / (config.attribution.n_tokens + config.evaluation.n_tokens)
    pace.finish()
    run.report.event(
        "tokens_dropped",
        "; ".join(
            f"{part}: {n.padding} padding, {n.special} special, {n.norm} above the norm limit"
            for part, n in dropped.items()
        ),
        {part: n._asdict() for part, n in dropped.items()},
    )
    return Harvest(windows, found, attribution, evaluation, dropped, token_s)
