"""What must a reader of a cycle's results be told beside the figures?

Each event names what was found, the bound that it passed, and what may be done. None of them ends the cycle.
"""

from statistics import median
from typing import Any

from dmsae.checkpoints import Checkpoint, CheckpointRefused, hardware_of
from dmsae.cores import WEAK_CONTROL_ABOVE
from dmsae.cycle_inputs import CycleRun, Harvest
from dmsae.identity import IDENTITY_LOST_BELOW, is_identity_lost, median_jaccard
from dmsae.metrics import Evaluation
from dmsae.reporting import Report
from dmsae.selection import Selection
from dmsae.sparsity import Calibration, Sparsity

DENSE_CORE_ABOVE = 0.5
"""Median density of the core given above which it counts as dense. Ours."""


def tell_resumed(run: CycleRun, resumed: Checkpoint) -> None:
    """Say from which step on training goes on, and whether what its bits depend on has changed since."""
    run.report.event(
        "resumed",
        f"Training goes on after step {resumed.step}, from the checkpoint of an earlier attempt.",
        {"step": resumed.step},
    )
    before, now = resumed.notes["hardware"], hardware_of(run.device)
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        shown = "; ".join(f"{name}: {before.get(name)}, now {now.get(name)}" for name in changed)
        run.report.event(
            "hardware_changed",
            f"Training goes on elsewhere than it began ({shown}): sums of floats may differ in their last "
            "bits from those of a run on one machine.",
            {"before": before, "now": now},
        )


def tell_refused(report: Report, refused: CheckpointRefused) -> None:
    """Say that the cycle begins anew, and what is wrong with the checkpoint that it was given."""
    report.event(
        "checkpoint_refused",
        f"The checkpoint of an earlier attempt cannot be used: {refused.message}. The cycle begins anew.",
        {"reason": refused.message},
    )


def tell_parts(run: CycleRun, *, is_step_split: bool) -> None:
    """Say what is computed in parts, because an earlier attempt ran out of memory, and what that changes."""
    n_parts, wanted = run.places.n_parts, run.config.activations.model_batch_contexts
    n_contexts = run.harvester().config.model_batch_contexts
    step = (
        f"losses and gradients of a batch are taken over {n_parts} parts of it, after one selection over all"
        if is_step_split
        else "the training step is the same, since it computes over the active latents alone"
    )
    run.report.event(
        "computed_in_parts",
        f"An earlier attempt ran out of memory: the model reads {n_contexts} contexts at once in place of "
        f"{wanted}, and {step}. It is still the same SAE: only sums of floats may differ in their last bits.",
        {"n_parts": n_parts, "model_batch_contexts": n_contexts, "is_step_split": is_step_split},
    )


def tell_unwritten(run: CycleRun, error: OSError) -> None:
    """Say that a checkpoint could not be written."""
    reason = error.strerror or str(error)
    run.report.event(
        "checkpoint_unwritten",
        f"This worker cannot write checkpoints ({reason}): training goes on, and would have to go back to "
        "the last one written, or to the beginning, if this attempt broke off.",
        {"reason": reason},
    )


def tell_dropped(run: CycleRun, harvest: Harvest) -> None:
    """Say how many positions were left out of each part, by reason."""
    dropped = harvest.dropped
    run.report.event(
        "tokens_dropped",
        "; ".join(
            f"{part}: {n.padding} padding, {n.special} special, {n.norm} above the norm limit"
            for part, n in dropped.items()
        ),
        {part: n._asdict() for part, n in dropped.items()},
    )


def tell_cache_unavailable(run: CycleRun, reason: str) -> None:
    """Say that activations are streamed, or some of them, and why."""
    run.report.event(
        "cache_unavailable",
        f"The activation cache of this worker cannot hold all activations ({reason}): what it does not hold "
        "is harvested in every cycle, while the SAE trains. The results are the same, bit for bit.",
        {"reason": reason},
    )


def tell_over_budget(run: CycleRun, calibration: Calibration) -> None:
    """Say where an exempt core takes more than k - k_min, at the final weights, on the threshold's tokens."""
    sae = run.config.sae
    sparsity = Sparsity.of(sae, n_core=0 if run.core is None else run.core.n_core)
    l0_core, l0_others = calibration.l0_exempt, calibration.l0_others
    if l0_core <= sparsity.k - sparsity.k_min:
        return
    run.report.event(
        "l0_over_budget",
        f"The exempt core has {l0_core:.2f} active latents a token, more than sae.k - k_min = {sae.k} - "
        f"{sparsity.k_min:g}: with the {l0_others:.2f} that the other latents may have, the SAE is meant to "
        f"have {l0_core + l0_others:.2f}, not {sae.k}. Raise sae.k, lower selection.max_core, or set "
        "sae.core_sparsity to batch_topk.",
        {"l0_core": l0_core, "k": sae.k, "k_min": sparsity.k_min, "noncore_budget": l0_others},
    )


def tell_given(run: CycleRun) -> None:
    """Say where a control is too much like the core that it is compared with."""
    given = run.given
    if given is None or not given.is_weak_control or given.overlap is None:
        return
    run.report.event(
        "weak_control",
        f"{given.overlap:.0%} of the {given.core.n_core} latents of this {given.kind} core are in the core "
        f"that it is compared with, above {WEAK_CONTROL_ABOVE:.0%}: it is a weak control, and a small "
        "difference between the two says little.",
        {"kind": given.kind, "overlap": given.overlap, "bound": WEAK_CONTROL_ABOVE},
    )


def tell_truncated(run: CycleRun, selection: Selection) -> None:
    """Say where `max_core` cut the core."""
    if not selection.is_truncated:
        return
    wanted, fraction = selection.n_wanted, run.config.selection.attribution_fraction
    run.report.event(
        "core_truncated",
        f"{wanted} latents hold {fraction:g} of the attribution; max_core = {run.config.max_core} keeps "
        f"{len(selection.core)}, which hold {selection.share:.4f}.",
        {"n_wanted": wanted, "n_core": len(selection.core), "share": selection.share},
    )


def tell_dense(run: CycleRun, evaluation: Evaluation) -> None:
    """Say where the latents of the core given fire at most tokens."""
    density = given_density(run, evaluation)
    if run.core is None or density is None or density <= DENSE_CORE_ABOVE:
        return
    if run.config.sae.core_sparsity == "exempt":
        remedy = "Set sae.core_sparsity to batch_topk, so that the core competes, or raise sae.k."
    else:
        remedy = "Lower sae.k, or widen sae.block_widths.0: k at or under a quarter of it."
    figures: dict[str, Any] = {
        "core_density_given": density,
        "bound": DENSE_CORE_ABOVE,
        "n_core": run.core.n_core,
    }
    run.report.event(
        "dense_core",
        f"Half of the {run.core.n_core} latents of the core given fire at {density:.1%} of the evaluation "
        f"tokens or more, above {DENSE_CORE_ABOVE:.0%}: such latents tell tokens hardly apart. {remedy}",
        figures,
    )


def tell_identity_lost(run: CycleRun, selection: Selection, evaluation: Evaluation) -> None:
    """Say where the latents that were selected again fire at other tokens than in the cycle before."""
    jaccard = median_jaccard(selection, evaluation.drift)
    if not is_identity_lost(jaccard):
        return
    run.report.event(
        "identity_lost",
        f"The {selection.n_kept} latents that were selected again have a median firing Jaccard of "
        f"{jaccard:.2f} with the cycle before, below {IDENTITY_LOST_BELOW:g}: their encoder vectors are the "
        "same, the tokens at which they fire are not. Do not read their names as their meaning.",
        {"firing_jaccard_median": jaccard, "bound": IDENTITY_LOST_BELOW, "n_kept": selection.n_kept},
    )


def given_density(run: CycleRun, evaluation: Evaluation) -> float | None:
    """Give the median density, on the evaluation tokens, of the latents of the core given."""
    if run.core is None:
        return None
    density: float = median(evaluation.densities[: run.core.n_core].tolist())
    return density
