"""How long did each phase of a cycle take, and how long will the rest take?

Times are for people: nothing that is computed depends on them.
"""

import time
from collections.abc import Mapping
from typing import Any

from dmsae.activations import Harvester
from dmsae.config import CycleConfig
from dmsae.contexts import Contexts
from dmsae.hooks import decoder_layers
from dmsae.models import LoadedModel
from dmsae.reporting import Phase, Report

TIMED_CONTEXTS = 4
"""Contexts on which the model's speed is measured."""


class Clock:
    """Tells the phases of a cycle as they begin, and sums the seconds of each."""

    def __init__(self, report: Report) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._phase: Phase | None = None
        self._earlier_s = 0.0
        self._started = self._entered = time.monotonic()

    def enter(self, phase: Phase) -> None:
        """Begin a phase and end the one before."""
        self.stop()
        self._phase = phase
        self._report.phase(phase)

    def stop(self) -> None:
        """End the phase that runs."""
        now = time.monotonic()
        if self._phase is not None:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._entered
        self._phase, self._entered = None, now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what earlier attempts at this cycle spent on what this one goes on from."""
        self._earlier_s += sum(seconds.values())
        for phase, spent_s in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent_s

    def so_far(self) -> dict[str, float]:
        """Give the seconds of each phase, the one that runs included."""
        seconds = dict(self.seconds)
        if self._phase is not None:
            seconds[self._phase] = seconds.get(self._phase, 0.0) + time.monotonic() - self._entered
        return seconds

    def total_s(self) -> float:
        """Give the seconds since the clock was made, and those of earlier attempts."""
        return self._earlier_s + time.monotonic() - self._started


class HarvestPace:
    """Says about once a second how many tokens are harvested."""

    def __init__(self, report: Report, *, n_tokens_total: int) -> None:
        self._report, self._n_tokens_total = report, n_tokens_total
        self._n_tokens = 0
        self._is_over = False
        self._started = self._said = time.monotonic()

    def add(self, n_tokens: int) -> None:
        """Count tokens that came in; what is harvested again later counts no more."""
        self._n_tokens += n_tokens
        now = time.monotonic()
        if self._is_over or now - self._said < 1:
            return
        self._said = now
        self._report.progress(
            {
                "step": 0,
                "n_tokens": self._n_tokens,
                "n_tokens_total": max(self._n_tokens, self._n_tokens_total),
                "tokens_per_s": self._n_tokens / (now - self._started),
            }
        )

    def finish(self) -> None:
        """Say nothing from here on."""
        self._is_over = True


class Pace:
    """Estimates the rest of training, and of what follows it."""

    def __init__(self, *, n_steps: int, batch_tokens: int, later_s: float, first_step: int = 0) -> None:
        """Begin after `first_step` steps, done by earlier attempts."""
        self._n_steps, self._batch_tokens, self._later_s = n_steps, batch_tokens, later_s
        self._first_step = first_step
        self._started = self._said = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a second has gone by since this was last true, or this is the first or the last step.

        The first one tells whoever keeps the figures from where on earlier ones no longer count.
        """
        now = time.monotonic()
        if now - self._said < 1 and self._first_step + 1 < step < self._n_steps:
            return False
        self._said = now
        return True

    def figures(self, step: int) -> dict[str, float]:
        """Give speed and time left after `step` steps."""
        step_s = (time.monotonic() - self._started) / max(1, step - self._first_step)
        return {
            "tokens_per_s": self._batch_tokens / step_s if step_s > 0 else 0.0,
            "time_left_s": step_s * (self._n_steps - step) + self._later_s,
        }


def measure_token_s(harvester: Harvester, contexts: Contexts) -> float:
    """Measure the seconds that the lower layers take for a token, on a few contexts."""
    input_ids, is_token = contexts.input_ids[:TIMED_CONTEXTS].long(), contexts.is_token[:TIMED_CONTEXTS]
    started = time.monotonic()
    harvester.run(input_ids, is_token).cpu()
    return (time.monotonic() - started) / max(1, input_ids.numel())


def estimate_measuring_s(loaded: LoadedModel, config: CycleConfig, *, token_s: float) -> float:
    """Estimate attribution and evaluation from `token_s`, the seconds that the lower layers take for a token.

    Takes a pass to cost what its weights are: attribution is one forward and one backward pass of the upper
    layers, each ablated latent one pass, evaluation one for each prefix and four besides. Only after a
    `resid_post` do those passes leave the lower layers out.
    """
    _, layers = decoder_layers(loaded)
    split = config.activations.layer + 1
    lower: int = sum(p.numel() for layer in layers[:split] for p in layer.parameters())
    upper: int = sum(p.numel() for layer in layers[split:] for p in layer.parameters())
    get_head: Any = loaded.model.get_output_embeddings
    upper += get_head().weight.numel()
    if config.activations.hook != "resid_post":
        upper += lower
    attribution, evaluation = config.attribution, config.evaluation
    passes = 2 * attribution.n_tokens + attribution.ablation_latents * attribution.ablation_tokens
    passes += evaluation.n_tokens * (4 + len(config.sae.block_widths) + 1)
    return token_s * upper / lower * passes
