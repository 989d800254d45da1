"""How far does each score agree with what ablating single latents does to the loss, and does any beat energy?

The demo's distillation up to cycle 1, whose SAE has more than 200 candidates. All of them that fire are
ablated one by one on `N_TOKENS` kept tokens, once for each error term; minutes to an hour of two cores. Rows
`scores.TERM.SCORE`: `value` is Spearman's rank correlation of the score with the measured rise of the loss,
`spread` 1.96 standard errors about it, over latents and documents, `difference` what it has more than
energy, with a standard error from the same draws; `unsigned` the same against the size of the change,
whichever way it goes; `halves` how far the score agrees with itself between two halves of the documents.
`scores.TERM.measured` sets the measured changes on one half of the documents beside those on the other: how
well so few tokens tell the order of latents at all.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dmsae.ablation import LossChanges, measure_ablations, sample_latents
from dmsae.agreement import bootstrap_correlations, standard_deviation
from dmsae.attribution import Attribution, Replacement, attribute
from dmsae.config import SPEC_VERSION, AttributionConfig, CycleSpec
from dmsae.cycle import ENVIRONMENT
from dmsae.cycle_inputs import CycleRun, Harvest, Places, harvest_parts, open_run, read_contexts
from dmsae.formats import load_sae
from dmsae.presets import PRESETS
from dmsae.ranks import rank_correlation
from dmsae.reporting import LineReport
from dmsae.sae import MatryoshkaSae
from dmsae.scoring import SCORES
from dmsae.splicing import spread_kept

CYCLE = 1
"""The first cycle of the demo with more than 200 candidates."""
N_TOKENS = {"none": 1024, "add": 512}
"""Kept tokens on which every latent is ablated, by error term: fewer for the one that is not the default."""
N_DRAWS = 1000
SETTINGS = {"attribution": {"n_tokens": 8192, "ablation_latents": 0}, "evaluation": {"n_tokens": 256}}
"""The demo's, but for what is not looked at here."""


def score_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give the rows of every wanted error term, from a process like a trainer's."""
    terms = [term for term in N_TOKENS if is_wanted(f"scores.{term}")]
    if not terms:
        return
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        command = [sys.executable, "-m", "bench.scores", folder, *terms]
        environment = {**os.environ, **ENVIRONMENT}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            yield from map(json.loads, process.stdout or ())
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


def measure(folder: Path, terms: list[str]) -> Iterator[dict[str, Any]]:
    """Train up to `CYCLE`, then measure under each error term."""
    for index in range(CYCLE + 1):
        run_cycle(folder, index)
    core = folder / str(CYCLE - 1) / "core"
    spec = CycleSpec.model_validate_json((folder / f"{CYCLE}.json").read_text())
    torch.set_num_threads(spec.config.n_threads)
    places = Places(folder / "cache", core)
    run = open_run(spec, places=places, report=LineReport(sys.stderr))
    harvest = harvest_parts(run, read_contexts(run))
    harvest.windows.close()
    sae, _ = load_sae(folder / str(CYCLE) / "sae")
    for term in terms:
        yield from rows(term, *measure_term(run, harvest, sae, term=term))


def run_cycle(folder: Path, index: int) -> None:
    """Run one trainer."""
    config = {**PRESETS["demo"], **SETTINGS, "seed": 0}
    spec = {"spec_version": SPEC_VERSION, "job_id": "dst_bench", "cycle_index": index, "config": config}
    (folder / f"{index}.json").write_text(json.dumps(spec))
    core = ["--core", str(folder / str(index - 1) / "core")] if index else []
    command = [sys.executable, "-m", "dmsae.cycle", str(folder / f"{index}.json"), str(folder / str(index))]
    subprocess.run([*command, "--cache", str(folder / "cache"), *core], stdout=sys.stderr, check=True)


def measure_term(
    run: CycleRun, harvest: Harvest, sae: MatryoshkaSae, *, term: str
) -> tuple[Attribution, LossChanges]:
    """Score all candidates and ablate every one of them that fires."""
    everything = {**run.config.attribution.model_dump(), "ablation_latents": sae.prefix_widths[0]}
    config = AttributionConfig.model_validate({**everything, "error_term": term})
    rms = harvest.survey.scale.rms
    attribution = attribute(harvest.attribution, run.run_upper, sae, rms=rms, config=config)
    latents = sample_latents(attribution, config=config, seed=run.seed)
    batches = spread_kept(harvest.attribution, N_TOKENS[term])
    replacement = Replacement(sae, rms, config.error_term)
    return attribution, measure_ablations(batches, run.run_upper, replacement, latents=latents)


def rows(term: str, attribution: Attribution, changes: LossChanges) -> Iterator[dict[str, Any]]:
    """Turn scores and measured changes into one row for each score, and one for the measurement itself."""
    scores = {name: attribution.scores[name][changes.latents] for name in SCORES}
    halves = [{name: half[name][changes.latents] for name in SCORES} for half in attribution.half_scores]
    measured = changes.changes
    draws = {
        is_signed: bootstrap_correlations(changes, scores, n_draws=N_DRAWS, is_signed=is_signed)
        for is_signed in (True, False)
    }
    value, size = (
        {name: rank_correlation(what.tolist(), scores[name].tolist()) or 0.0 for name in SCORES}
        for what in (measured, measured.abs())
    )
    counts = {
        "n_latents": len(changes.latents),
        "n_tokens": changes.n_tokens,
        "n_documents": len(changes.document_tokens),
    }
    for name in SCORES:
        yield {
            "name": f"scores.{term}.{name}",
            "value": round(value[name], 4),
            "unit": "rank correlation",
            "against": f"scores.{term}.energy",
            "ratio": round(value[name] / value["energy"], 4),
            "spread": interval(value[name], standard_deviation(draws[True][name])),
            "standard_error": standard_deviation(draws[True][name]),
            "difference": round(value[name] - value["energy"], 4),
            "difference_standard_error": standard_deviation(draws[True][name] - draws[True]["energy"]),
            "unsigned": round(size[name], 4),
            "unsigned_standard_error": standard_deviation(draws[False][name]),
            "unsigned_difference": round(size[name] - size["energy"], 4),
            "unsigned_difference_standard_error": standard_deviation(
                draws[False][name] - draws[False]["energy"]
            ),
            "halves": rank_correlation(halves[0][name].tolist(), halves[1][name].tolist()),
            **counts,
        }
    one, other = (changes.by_document[half::2].sum(dim=0).tolist() for half in (0, 1))
    yield {
        "name": f"scores.{term}.measured",
        "value": rank_correlation(one, other),
        "unit": "rank correlation",
        "against": "the same on the other half of the documents",
        "n_falling": int((measured < 0).sum()),
        "median_nats": float(measured.median()),
        **counts,
    }


def interval(value: float, standard_error: float | None) -> list[float] | None:
    """Give what lies within 1.96 standard errors.

    Not the draws' own quantiles: documents drawn twice make the measured order rougher, and draws lower.
    """
    if standard_error is None:
        return None
    return [
        round(max(-1.0, value - 1.96 * standard_error), 4),
        round(min(1.0, value + 1.96 * standard_error), 4),
    ]


if __name__ == "__main__":
    for row in measure(Path(sys.argv[1]), sys.argv[2:]):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
