"""What does a cycle leave behind?

The files of `OUT/`, as `docs/architecture.md` lists them. What an SAE and a core look like on disk is the
business of `formats.py`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from dmsae.agreement import AblationCheck
from dmsae.allocator import peak_memory_bytes
from dmsae.attribution import Attribution
from dmsae.config import SPLIT_SALT
from dmsae.cycle_events import given_density
from dmsae.cycle_inputs import CycleRun, Harvest, provenance
from dmsae.formats import save_core, save_sae
from dmsae.identity import is_identity_lost, lineage_record, median_jaccard
from dmsae.metrics import Evaluation
from dmsae.pace import Clock
from dmsae.reporting import finite_or_null
from dmsae.selection import Selection, build_core
from dmsae.snippet_files import write_snippets
from dmsae.training import CPU, Trained


class Results(NamedTuple):
    """What a cycle found out."""

    harvest: Harvest
    trained: Trained
    attribution: Attribution
    ablation: AblationCheck
    selection: Selection
    evaluation: Evaluation
    snippets: list[bytes]
    """A packed record for each latent of the new core; none where none are wanted."""


def metrics_record(run: CycleRun, results: Results, clock: Clock) -> dict[str, Any]:
    """Give what `metrics.json` holds."""
    training, harvest = run.config.training, results.harvest
    survey, dropped, n_skipped = harvest.survey, harvest.dropped, harvest.n_rows_skipped
    n_steps = survey.n_tokens // training.batch_tokens
    return {
        "cycle_index": run.spec.cycle_index,
        **run.facts(),
        **results.selection.to_metrics(),
        **results.evaluation.to_metrics(),
        **core_figures(run, results),
        **usage_figures(harvest),
        "ablation": results.ablation.to_metrics(),
        "attribution_loss": results.attribution.loss,
        "rms": survey.scale.rms,
        "median_norm": survey.scale.median_norm,
        "n_steps": n_steps,
        "n_tokens": n_steps * training.batch_tokens,
        "n_threshold_tokens": results.trained.calibration.n_tokens,
        "n_threshold_tokens_attribution": results.trained.n_threshold_attribution,
        "n_tokens_dropped": sum(sum(counts) for counts in dropped.values()),
        "n_tokens_dropped_by_reason": {part: counts._asdict() for part, counts in dropped.items()},
        "n_documents": harvest.n_documents,
        "n_rows_skipped": sum(n_skipped.values()),
        "n_rows_skipped_by_reason": n_skipped,
        "seconds": clock.total_s(),
        "phase_seconds": clock.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "n_parts": run.places.n_parts,
    }


def core_figures(run: CycleRun, results: Results) -> dict[str, Any]:
    """Give what became of the core given, and what it left to the others; null where that means nothing."""
    jaccard = median_jaccard(results.selection, results.evaluation.drift)
    is_exempt = run.config.sae.core_sparsity == "exempt"
    return {
        "core_density_given": given_density(run, results.evaluation),
        "given_kind": None if run.given is None else run.given.kind,
        "given_overlap": None if run.given is None else run.given.overlap,
        "is_weak_control": None if run.given is None else run.given.is_weak_control,
        "firing_jaccard_median": jaccard,
        "identity_lost": is_identity_lost(jaccard),
        "noncore_budget": results.trained.noncore_budget if is_exempt else None,
    }


def usage_figures(harvest: Harvest) -> dict[str, Any]:
    """Give where the training activations came from, what rounding cost, and how long training waited."""
    usage = harvest.windows.usage
    return {
        "n_tokens_harvested": usage.n_tokens_harvested,
        "n_tokens_cached": usage.n_tokens_cached,
        "rounding_error": usage.error.relative,
        "activation_wait_s": usage.wait_s,
    }


def save(run: CycleRun, out: Path, results: Results, *, metrics: dict[str, Any]) -> None:
    """Write everything that a cycle leaves behind."""
    out.mkdir(parents=True, exist_ok=True)
    scale = results.harvest.survey.scale
    sae = results.trained.sae.to(CPU)
    core = build_core(results.selection, sae, scale=scale, provenance=provenance(run))
    (out / "spec.json").write_text(run.spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    save_sae(out / "sae", sae, rms=scale.rms, facts=sae_facts(run, results.selection))
    save_core(out / "core", core)
    scores = {**results.attribution.to_tensors(), "density_all": results.evaluation.densities}
    save_file(scores, out / "scores.safetensors")
    if results.snippets:
        write_snippets(out / "snippets", results.snippets)
    lineage = lineage_record(results.selection, results.evaluation.drift)
    if run.given is not None:
        save_core(out / "given", run.given.core)
        lineage["given"] = run.given.to_lineage()
    write_json(out / "lineage.json", lineage)
    write_json(out / "metrics.json", metrics)


def sae_facts(run: CycleRun, selection: Selection) -> dict[str, Any]:
    """Give what the SAE's folder says about itself."""
    return {
        "job_id": run.spec.job_id,
        "cycle_index": run.spec.cycle_index,
        "seed": run.config.seed,
        "model": run.config.model.model_dump(),
        "model_revision": run.loaded.revision,
        "hook_path": run.hook.path,
        "split": run.config.data.split,
        "split_salt": SPLIT_SALT,
        "k": run.config.sae.k,
        "core_sparsity": run.config.sae.core_sparsity,
        "noncore_budget": run.config.sae.noncore_budget,
        "attribution_score": run.config.attribution.score,
        "core_latent_ids": [] if run.core is None else [latent.latent_id for latent in run.core.latents],
        "selected": [[latent.sae_index, latent.latent_id] for latent in selection.core],
        **sae_lens_facts(run),
    }


def sae_lens_facts(run: CycleRun) -> dict[str, Any]:
    """Give, by SAELens' own names, what its evaluation asks a folder for."""
    return {
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": run.hook.path,
        "context_size": run.config.data.context_length,
        "prepend_bos": run.config.data.prepend_bos,
    }


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write a record, null in the place of every number that is not finite."""
    file.write_text(json.dumps(finite_or_null(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
