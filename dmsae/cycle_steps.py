"""What are the steps of one cycle, and in which order?

load, contexts, harvest, train, attribute, select, evaluate, show, save. Each is another module's; here
they meet, are timed and reported. The process around them is in `cycle.py`.
"""

from contextlib import closing
from pathlib import Path

import torch

from dmsae.ablation import measure_ablations, sample_latents
from dmsae.agreement import AblationCheck, compare
from dmsae.attribution import Attribution, Replacement, attribute
from dmsae.checkpoints import Checkpoints
from dmsae.compiling import begin_compiling
from dmsae.config import CycleSpec
from dmsae.cycle_events import (
    tell_cache_unavailable,
    tell_dense,
    tell_dropped,
    tell_given,
    tell_identity_lost,
    tell_over_budget,
    tell_truncated,
)
from dmsae.cycle_inputs import CycleRun, Harvest, Places, harvest_parts, open_run, read_contexts
from dmsae.cycle_results import Results, metrics_record, save
from dmsae.logit_lens import logit_lenses
from dmsae.metrics import evaluate
from dmsae.pace import Clock, Pace, estimate_measuring_s
from dmsae.reporting import Report
from dmsae.resuming import make_trainer, read_checkpoint, write_checkpoint
from dmsae.sae import MatryoshkaSae
from dmsae.selection import Selection, select
from dmsae.snippet_files import pack_record
from dmsae.snippets import read_firings
from dmsae.splicing import spread_kept
from dmsae.stream import Order, TokenStream
from dmsae.token_texts import TokenTexts
from dmsae.training import Trained

LENS_TOKENS = 10
"""Tokens at each end of a latent's logit lens."""


def run_cycle(
    spec: CycleSpec, out: Path, *, places: Places, report: Report, checkpoints: Checkpoints | None = None
) -> None:
    """Run one cycle around the core at its place and write its results into the empty folder `out`.

    Mutates: torch's thread count and its choice of deterministic kernels, both for the whole process.

    Raises: CycleFailed.
    """
    clock = Clock(report)
    torch.set_num_threads(spec.config.n_threads)
    torch.use_deterministic_algorithms(True)

    clock.enter("loading")
    begin_compiling(spec.config)
    resumed = read_checkpoint(spec, places, report)
    run = open_run(spec, places=places, report=report, resumed=resumed)
    tell_given(run)
    tokens = read_contexts(run)

    clock.enter("harvesting")
    harvest = harvest_parts(run, tokens)
    scale = harvest.survey.scale

    clock.enter("training")
    with closing(harvest.windows):
        trained = train(run, harvest, clock=clock, checkpoints=checkpoints)
    sae = trained.sae

    clock.enter("attributing")
    attribution = attribute(
        harvest.attribution, run.run_upper, sae, rms=scale.rms, config=run.config.attribution
    )
    selection = select_core(run, attribution, sae)
    ablation = check_scores(run, harvest, sae, attribution)

    clock.enter("evaluating")
    evaluation = evaluate(harvest.evaluation, run.run_upper, sae, rms=scale.rms, previous=run.previous)
    tell_dense(run, evaluation)
    tell_identity_lost(run, selection, evaluation)
    snippets = read_snippets(run, harvest, sae, selection)
    clock.stop()

    results = Results(harvest, trained, attribution, ablation, selection, evaluation, snippets)
    save(run, out, results, metrics=metrics_record(run, results, clock))


def train(run: CycleRun, harvest: Harvest, *, clock: Clock, checkpoints: Checkpoints | None) -> Trained:
    """Train this cycle's SAE, saying about once a second how far it is, and where the core left no budget.

    Raises: CycleFailed.
    """
    config, windows = run.config, harvest.windows
    trouble, is_counted = harvest.cache_trouble, harvest.survey.is_counted
    if trouble is not None:
        tell_cache_unavailable(run, trouble)
    if is_counted:
        tell_dropped(run, harvest)
    order = Order(config.seed, run.spec.cycle_index)
    stream = TokenStream(
        windows, harvest.survey, config.training, order=order, attribution=harvest.attribution
    )
    trainer = make_trainer(run, harvest, stream, clock=clock)
    later_s = estimate_measuring_s(run.loaded, config, token_s=harvest.token_s)
    batch_tokens, first_step = config.training.batch_tokens, trainer.step
    pace = Pace(n_steps=stream.n_steps, batch_tokens=batch_tokens, later_s=later_s, first_step=first_step)
    if checkpoints is not None:
        checkpoints.start_watch()
    for progress in trainer.run():
        if pace.is_due(progress.step):
            figures = {**progress._asdict(), "n_tokens_total": stream.n_tokens, **pace.figures(progress.step)}
            run.report.progress(figures)
        if checkpoints is not None and checkpoints.is_due(progress.step, n_steps=stream.n_steps):
            write_checkpoint(run, harvest, trainer, clock=clock, checkpoints=checkpoints)
    trained = trainer.finish()
    harvest.survey.tally.save()
    if not is_counted:
        tell_dropped(run, harvest)
    if trouble is None and harvest.cache_trouble is not None:
        tell_cache_unavailable(run, harvest.cache_trouble)
    tell_over_budget(run, trained.calibration)
    return trained


def select_core(run: CycleRun, attribution: Attribution, sae: MatryoshkaSae) -> Selection:
    """Select the next core, saying so where `max_core` cut it.

    Raises: CycleFailed with `degenerate_scores` or `core_empty`.
    """
    selection = select(attribution, sae, spec=run.spec, given=run.core)
    tell_truncated(run, selection)
    return selection


def check_scores(
    run: CycleRun, harvest: Harvest, sae: MatryoshkaSae, attribution: Attribution
) -> AblationCheck:
    """Ablate a sample of latents one by one and set the measured loss changes beside their scores."""
    config = run.config.attribution
    latents = sample_latents(attribution, config=config, seed=run.seed)
    batches = spread_kept(harvest.attribution, config.ablation_tokens)
    replacement = Replacement(sae, harvest.survey.scale.rms, config.error_term)
    return compare(measure_ablations(batches, run.run_upper, replacement, latents=latents), attribution)


def read_snippets(run: CycleRun, harvest: Harvest, sae: MatryoshkaSae, selection: Selection) -> list[bytes]:
    """Pack for each latent of the new core the texts at which it fires, and the tokens that it promotes."""
    config, rows = run.config.snippets, [latent.sae_index for latent in selection.core]
    most_bytes = config.latent_bytes(len(rows))
    if most_bytes == 0:
        return []
    texts = TokenTexts(run.loaded.tokenizer)
    lenses = logit_lenses(run.loaded, sae.W_dec[rows], n_tokens=LENS_TOKENS, texts=texts)
    readers = read_firings(harvest.evaluation, sae, rows, rms=harvest.survey.scale.rms, seed=run.seed)
    return [
        pack_record(reader.read(config), lens, latent_id=latent.latent_id, texts=texts, most_bytes=most_bytes)
        for reader, lens, latent in zip(readers, lenses, selection.core, strict=True)
    ]
