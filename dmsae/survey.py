"""At what scale is a training part, how many of its tokens count, and how many of them does a cycle use?

Windows are counted in the order of the text, as far as somebody needs to know: all before training where they
are still there afterwards, else one by one while training reads them, so that no window is harvested only to
be counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.activations import SCALE_TOKENS, Dropped, Scale, measure_scale, norm_limit
from dmsae.config import CycleConfig, TrainingConfig
from dmsae.errors import CycleFailed
from dmsae.windows import Count, Windows

SLACK = 0.01
"""Share of the tokens that may be louder than those of the scale without training running out of them."""


class Tally:
    """How many tokens of each window count, and why others do not, as far as windows were read in order."""

    def __init__(
        self, windows: Windows, *, max_norm: float, norms: Sequence[Float[Tensor, " n"]] = ()
    ) -> None:
        """Take over what the cache knows, and the norms of the first windows where they are at hand."""
        self.max_norm = max_norm
        self._windows = windows
        self.counts: list[Count] = [] if windows.store is None else windows.store.read_counts(max_norm)
        for each in norms[len(self.counts) :]:
            self._add(each)

    def count(self, window: int) -> int:
        """Give a window's kept tokens, reading all windows up to it that are not counted yet.

        Raises: CycleFailed.
        """
        while len(self.counts) <= window:
            self._add(self._windows.norms(len(self.counts)))
        return self.counts[window].n_kept

    def count_up_to(self, n_tokens: int | None) -> None:
        """Count until `n_tokens` are kept, or to the end; null counts all."""
        while not self.is_complete and (n_tokens is None or self.n_kept < n_tokens):
            self.count(len(self.counts))

    def save(self) -> None:
        """Leave what is known in the cache, so that no later cycle need count."""
        if self._windows.store is not None:
            self._windows.store.write_counts(self.max_norm, self.counts)

    def adopt(self, counts: Sequence[Count]) -> None:
        """Take over what another tally of the same windows found."""
        if len(counts) > len(self.counts):
            self.counts = [Count(n_kept, Dropped(*dropped)) for n_kept, dropped in counts]

    @property
    def is_complete(self) -> bool:
        """Whether every window is counted."""
        return len(self.counts) == len(self._windows)

    @property
    def n_seen(self) -> int:
        """Tokens of all windows that are counted, whatever their norm."""
        return sum(count.n_kept + count.dropped.norm for count in self.counts)

    @property
    def n_kept(self) -> int:
        """Kept tokens of all windows that are counted."""
        return sum(count.n_kept for count in self.counts)

    def dropped(self, n_tokens: int | None) -> Dropped:
        """Add up what was dropped in the first windows, up to the one that reaches `n_tokens`."""
        dropped, n_kept = Dropped(0, 0, 0), 0
        for count in self.counts:
            if n_tokens is not None and n_kept >= n_tokens:
                break
            dropped, n_kept = dropped + count.dropped, n_kept + count.n_kept
        return dropped

    def _add(self, norms: Float[Tensor, " n"]) -> None:
        """Count the next window."""
        dropped = self._windows.source.count_dropped(len(self.counts), n_tokens=len(norms))
        n_kept = int((norms <= self.max_norm).sum())
        self.counts.append(Count(n_kept, dropped._replace(norm=len(norms) - n_kept)))


class Survey(NamedTuple):
    """What is known of a training part before training."""

    scale: Scale
    tally: Tally
    n_tokens: int
    """Tokens that the cycle may use, a last incomplete batch included."""

    @property
    def is_counted(self) -> bool:
        """Whether all windows that the cycle reads are counted."""
        return self.tally.is_complete or self.tally.n_kept >= self.n_tokens

    @property
    def dropped(self) -> Dropped:
        """What was left out of the windows that the cycle reads, as far as it has read them."""
        return self.tally.dropped(self.n_tokens)


def survey(
    windows: Windows, config: CycleConfig, *, scale: Scale | None, counts: Sequence[Count] = ()
) -> Survey:
    """Take the scale where none is given, and count the windows as far as must be before training.

    `counts` is what another survey of the same windows counted.

    Raises: CycleFailed with `dataset_exhausted` where there is no token at all, or fewer than are asked for.
    """
    n_candidates, training = windows.source.n_tokens, config.training
    if not n_candidates:
        rule = "data.split: the training part of the text holds no token at all."
        raise CycleFailed("dataset_exhausted", rule, param="data.split")
    norms = first_norms(windows) if scale is None else []
    scale = measure_scale(torch.cat(norms), config.activations) if scale is None else scale
    tally = Tally(windows, max_norm=norm_limit(scale, config.activations), norms=norms)
    tally.adopt(counts)
    if may_count_later(windows, tally, training):
        return Survey(scale, tally, token_budget(training, n_available=n_candidates))
    tally.count_up_to(training.n_tokens)
    tally.save()
    return Survey(scale, tally, token_budget(training, n_available=tally.n_kept))


def first_norms(windows: Windows) -> list[Float[Tensor, " n"]]:
    """Give the norms of the first windows, as many as the scale is taken from."""
    norms: list[Tensor] = []
    for window in range(len(windows)):
        norms.append(windows.norms(window))
        if sum(map(len, norms)) >= SCALE_TOKENS:
            break
    return norms


def may_count_later(windows: Windows, tally: Tally, training: TrainingConfig) -> bool:
    """Tell whether windows had better be counted while training reads them.

    Not where they would be kept anyway, nor where the number of steps hangs on them, nor where tokens too
    loud to count, if they are as frequent as among the first ones, might leave too few for the budget.
    """
    if training.n_tokens is None or windows.is_once_enough:
        return False
    while not tally.is_complete and tally.n_seen < SCALE_TOKENS:
        tally.count(len(tally.counts))
    loud = 1 - tally.n_kept / max(1, tally.n_seen)
    return training.n_tokens <= training.epochs * windows.source.n_tokens * (1 - 2 * loud - SLACK)


def token_budget(config: TrainingConfig, *, n_available: int) -> int:
    """Give the tokens that a cycle may use, a last incomplete batch included.

    Raises: CycleFailed with `dataset_exhausted`.
    """
    n_most = config.epochs * n_available
    budget = n_most if config.n_tokens is None else config.n_tokens
    if budget > n_most:
        raise CycleFailed(
            "dataset_exhausted",
            f"training.n_tokens = {budget}: the training part of the text holds {n_available} tokens, "
            f"which training.epochs = {config.epochs} makes {n_most}; ask for fewer or raise the epochs.",
            param="training.n_tokens",
        )
    if budget < config.batch_tokens:
        raise CycleFailed(
            "dataset_exhausted",
            f"training.batch_tokens = {config.batch_tokens}: the cycle has {budget} tokens, "
            "not enough for one step; lower the batch or give more text.",
            param="training.batch_tokens",
        )
    return budget
