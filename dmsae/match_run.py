"""What are the steps of a match, and what does it leave behind?

Final cores of several chains are compared on the evaluation part, which all chains share. What a match is, is
left to `matching.py`; the process around this is in `cycle.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch

from dmsae.activations import ContextBatch, Harvester, Scale, collect, norm_limit
from dmsae.allocator import peak_memory_bytes
from dmsae.config import ActivationConfig, MatchConfig, MatchSpec, RunConfig
from dmsae.contexts import Contexts
from dmsae.cycle_inputs import Places, open_batches, open_device, provenance_of, tell_model
from dmsae.cycle_results import write_json
from dmsae.cycle_text import MARGIN, OpenText, open_text, read_text, tell_skipped, telling_counts
from dmsae.errors import CycleFailed
from dmsae.hooks import HookPoint, resolve_hook
from dmsae.matching import (
    Aligned,
    Firings,
    Match,
    Pair,
    align_all,
    is_same,
    matches_of,
    pairs_of,
    reproduced,
)
from dmsae.models import LoadedModel, check_fit, load_model
from dmsae.pace import Clock, HarvestPace
from dmsae.randomness import named_generator
from dmsae.reporting import Report
from dmsae.sae import Core
from dmsae.source_cycles import SourceCycle
from dmsae.splicing import kept, split_rows, take_kept


class Evaluated(Protocol):
    """A run that reads the evaluation part alone."""

    @property
    def config(self) -> RunConfig:
        """The settings."""

    @property
    def loaded(self) -> LoadedModel:
        """The model."""

    @property
    def hook(self) -> HookPoint:
        """Where it is cut."""

    @property
    def report(self) -> Report:
        """Who is told."""

    @property
    def places(self) -> Places:
        """Where files lie."""

    @property
    def text(self) -> OpenText:
        """What is read."""

    @property
    def max_norm(self) -> float:
        """Norm in raw units beyond which a token does not count."""


@dataclass(frozen=True)
class MatchRun:
    """What all steps of one match share."""

    spec: MatchSpec
    cores: list[Core]
    loaded: LoadedModel
    hook: HookPoint
    report: Report
    places: Places
    text: OpenText

    @property
    def config(self) -> MatchConfig:
        """The settings."""
        return self.spec.config

    @property
    def max_norm(self) -> float:
        """Norm in raw units beyond which a token counts for none of the cores: the least of their limits."""
        return least_limit(self.cores, self.config.activations)


def least_limit(cores: Sequence[Core], config: ActivationConfig) -> float:
    """Give the norm in raw units beyond which a token counts for none of some cores."""
    scales = (Scale(rms=core.rms, median_norm=core.median_norm) for core in cores)
    return min(norm_limit(scale, config) for scale in scales)


def run_match(spec: MatchSpec, out: Path, *, places: Places, report: Report) -> None:
    """Compare the cores that a spec names and write what was found into the empty folder `out`.

    Mutates: torch's thread count and its choice of deterministic kernels, both for the whole process.

    Raises: CycleFailed.
    """
    config, clock = spec.config, Clock(report)
    torch.set_num_threads(config.n_threads)
    torch.use_deterministic_algorithms(True)

    clock.enter("loading")
    run = open_match(spec, places=places, report=report)

    clock.enter("harvesting")
    batches = harvest_evaluation(run)

    clock.enter("evaluating")
    generators = {pair: named_generator(config.seed, "match", *pair) for pair in pairs_of(len(run.cores))}
    aligned = align_all(run.cores, min_cosine=config.decoder_cosine, generators=generators)
    firings = read_firings(run, aligned, batches)
    matches = {
        pair: matches_of(found, firings.correlations(pair), min_correlation=config.firing_correlation)
        for pair, found in aligned.items()
    }
    clock.stop()

    record = match_record(run, aligned, matches)
    timed = {"seconds": clock.total_s(), "phase_seconds": clock.seconds}
    metrics = {**match_metrics(run, record), "n_tokens_evaluated": firings.n_tokens, **timed}
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_json(out / "match.json", record)
    write_json(out / "metrics.json", metrics)


def open_match(spec: MatchSpec, *, places: Places, report: Report) -> MatchRun:
    """Read the cores, try out the text, load the model, and refuse cores that are of other activations.

    Raises: CycleFailed.
    """
    config = spec.config
    cores = read_cores(config, places.sources_dir)
    text = open_text(
        config.data,
        inputs_dir=places.inputs_dir,
        allowed_roots=places.allowed_roots,
        cache_dir=places.cache_dir,
    )
    device = open_device(config)
    loaded = load_model(
        config.model, activations=config.activations, device=device, cache_dir=places.cache_dir
    )
    check_fit(loaded, layer=config.activations.layer, context_length=config.data.context_length)
    hook = resolve_hook(loaded, layer=config.activations.layer, hook=config.activations.hook)
    for core in cores:
        core.require_provenance(provenance_of(config, loaded, hook))
    tell_model(report, loaded, hook)
    return MatchRun(spec, cores, loaded, hook, report, places, text)


def read_cores(config: MatchConfig, sources_dir: Path | None) -> list[Core]:
    """Read the cores that are compared.

    Raises: CycleFailed with `core_mismatch`, also where one is named twice.
    """
    names = [ref.folder_name for ref in config.cores]
    for place, name in enumerate(names):
        if name in names[:place]:
            param = f"cores.{place}"
            raise CycleFailed("core_mismatch", f"{param} = {name}: is named twice", param=param)
    return [
        SourceCycle(sources_dir, ref, param=f"cores.{place}").core for place, ref in enumerate(config.cores)
    ]


def harvest_evaluation(run: Evaluated) -> list[ContextBatch]:
    """Harvest the evaluation part, reading on where more tokens are too loud than was allowed for.

    Raises: CycleFailed with `dataset_exhausted` or `non_finite`.
    """
    config, margin = run.config, MARGIN
    pace = HarvestPace(run.report, n_tokens_total=config.evaluation.n_tokens)
    harvester = Harvester(run.loaded, run.hook, run.places.in_parts(config.activations), pace.add)
    while True:
        tokens = read_text(run.text, harvester, config, margin=margin, cache_dir=run.places.cache_dir)
        try:
            with telling_counts(tokens, config):
                batches = _collect(run, harvester, tokens.parts["evaluation"])
            break
        except CycleFailed as failure:
            if failure.failure != "dataset_exhausted" or tokens.is_whole:
                raise
        margin *= 2
    pace.finish()
    tell_skipped(tokens, run.report)
    return batches


def read_firings(run: MatchRun, aligned: Mapping[Pair, Aligned], batches: Sequence[ContextBatch]) -> Firings:
    """Let the cores read all kept tokens."""
    firings = Firings(run.cores, aligned, run.loaded.device)
    for batch in split_rows(batches):
        firings.add(kept(batch, run.loaded.device))
    return firings


def match_record(
    run: MatchRun, aligned: Mapping[Pair, Aligned], matches: Mapping[Pair, Sequence[Match]]
) -> dict[str, Any]:
    """Give what `match.json` holds."""
    found = reproduced(run.cores, matches)
    n_latents = [core.n_core for core in run.cores]
    return {
        "cores": [ref.folder_name for ref in run.config.cores],
        "n_latents": n_latents,
        "decoder_cosine": run.config.decoder_cosine,
        "firing_correlation": run.config.firing_correlation,
        "pairs": [
            {
                "a": a,
                "b": b,
                "matches": [_match_entry(run.cores[a], run.cores[b], match) for match in matches[a, b]],
                "n_aligned": len(pair.cosines),
                "best_cosine": pair.best_cosine,
                "best_cosine_random": pair.best_cosine_random,
            }
            for (a, b), pair in aligned.items()
        ],
        "reproduced": found,
        "share_reproduced": [len(names) / n for names, n in zip(found, n_latents, strict=True)],
    }


def match_metrics(run: MatchRun, record: Mapping[str, Any]) -> dict[str, Any]:
    """Give the scalars of a match's `metrics.json`."""
    pairs = record["pairs"]
    return {
        "n_cores": len(run.cores),
        "n_latents": sum(record["n_latents"]),
        "n_reproduced": sum(map(len, record["reproduced"])),
        "share_reproduced": fmean(record["share_reproduced"]),
        "n_aligned": sum(pair["n_aligned"] for pair in pairs),
        "n_matches": sum(len(pair["matches"]) for pair in pairs),
        "best_cosine": fmean(pair["best_cosine"] for pair in pairs),
        "best_cosine_random": fmean(pair["best_cosine_random"] for pair in pairs),
        **run.loaded.facts(),
        "hook_path": run.hook.path,
        "hook": run.hook.hook,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _collect(run: Evaluated, harvester: Harvester, contexts: Contexts) -> list[ContextBatch]:
    """Harvest as many kept tokens as are asked for, or take them from the cache."""
    n_tokens = run.config.evaluation.n_tokens
    with open_batches(run.places.activation_cache, harvester, contexts, troubles=[]) as stored:
        batches = harvester.harvest(contexts, max_norm=run.max_norm, part="evaluation", kept=stored)
        return list(take_kept(collect(batches, n_tokens=n_tokens, part="evaluation"), n_tokens))


def _match_entry(a: Core, b: Core, match: Match) -> dict[str, Any]:
    return {
        **match._asdict(),
        "a_latent_id": a.latents[match.a_index].latent_id,
        "b_latent_id": b.latents[match.b_index].latent_id,
        "is_same_latent": is_same(a, b, match),
    }
