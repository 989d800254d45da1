"""How does a cycle go on where an earlier attempt left off, and leave off itself?

What a checkpoint looks like on disk is the business of `checkpoints.py`; here is what a cycle puts into one.
"""

from dmsae.checkpoints import (
    Checkpoint,
    CheckpointRefused,
    Checkpoints,
    fingerprint_of,
    hardware_of,
    open_checkpoint,
)
from dmsae.config import CycleSpec
from dmsae.cycle_events import tell_parts, tell_refused, tell_resumed, tell_unwritten
from dmsae.cycle_inputs import CycleRun, Harvest, Places
from dmsae.pace import Clock
from dmsae.reporting import Report
from dmsae.stream import TokenStream
from dmsae.training import Trainer


def read_checkpoint(spec: CycleSpec, places: Places, report: Report) -> Checkpoint | None:
    """Open the checkpoint to go on from, if one was given and fits; say so where it does not."""
    if places.resume_dir is None:
        return None
    try:
        fingerprint = fingerprint_of(spec, places.core_dir, places.sources_dir)
        return open_checkpoint(places.resume_dir, fingerprint=fingerprint)
    except CheckpointRefused as refused:
        tell_refused(report, refused)
        return None


def make_trainer(run: CycleRun, harvest: Harvest, stream: TokenStream, *, clock: Clock) -> Trainer:
    """Make what trains this cycle's SAE, at its beginning or where an earlier attempt left off."""

    def begin() -> Trainer:
        trainer = Trainer(run.config, run.core, stream, seed=run.seed, device=run.device)
        if run.places.n_parts > 1:
            tell_parts(run, is_step_split=trainer.split_batches(run.places.n_parts))
        return trainer

    trainer, resumed = begin(), run.resumed
    if resumed is None:
        return trainer
    harvest.windows.adopt_usage(resumed.notes["usage"])  # it goes with the counts, which were taken over
    try:
        trainer.load_state_dict(resumed.load_state())
    except (CheckpointRefused, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"its state is not this trainer's ({type(error).__name__})"
        tell_refused(run.report, CheckpointRefused(reason))
        return begin()
    clock.add(resumed.notes["seconds"])
    tell_resumed(run, resumed)
    return trainer


def write_checkpoint(
    run: CycleRun, harvest: Harvest, trainer: Trainer, *, clock: Clock, checkpoints: Checkpoints
) -> None:
    """Write all from which another process can go on, and say where; say so where it cannot be written."""
    survey = harvest.survey
    notes = {
        "hardware": hardware_of(run.device),
        "scale": survey.scale._asdict(),
        "counts": survey.tally.counts,
        "usage": harvest.windows.usage_state(),
        "seconds": clock.so_far(),
        "told": run.report.told,
    }
    fingerprint = fingerprint_of(run.spec, run.places.core_dir, run.places.sources_dir)
    try:
        folder = checkpoints.write(trainer.step, trainer.view_state(), notes=notes, fingerprint=fingerprint)
    except OSError as error:
        tell_unwritten(run, error)
        return
    run.report.checkpoint(trainer.step, str(folder))
