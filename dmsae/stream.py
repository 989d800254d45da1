"""In which order does training see the activations, and how much of them?

One order, a function of (spec, step): window after window as the text has them, the kept tokens of each newly
permuted in every cycle and epoch (METHOD 3). So no window need be known before it is read. Which activations
are kept is the business of `survey.py`, where windows come from that of `windows.py`.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dmsae.activations import SCALE_TOKENS, ContextBatch
from dmsae.config import TrainingConfig
from dmsae.errors import CycleFailed
from dmsae.randomness import named_generator
from dmsae.splicing import spread_kept
from dmsae.survey import Survey, token_budget
from dmsae.windows import Window, Windows


class Order(NamedTuple):
    """What the order of tokens is drawn from."""

    seed: int
    cycle_index: int


class ThresholdTokens(NamedTuple):
    """What the inference threshold is taken from: nothing that the cycle trains on."""

    n_tokens: int
    n_attribution: int
    """How many of them are of the attribution part, for want of others."""
    batches: Iterable[Float[Tensor, "batch d_model"]]
    """The same each time they are gone over."""


class TokenStream:
    """Training batches of x_n = x / rms, all equally long; the last incomplete one is left out.

    Iterating goes on from a position; with what is known of the windows before it, that is all its state:
    stopped and resumed is never stopped.

    Raises: CycleFailed with `dataset_exhausted` where the kept tokens end before the budget.
    """

    def __init__(
        self,
        windows: Windows,
        survey: Survey,
        config: TrainingConfig,
        *,
        order: Order,
        attribution: Sequence[ContextBatch] = (),
    ) -> None:
        self._windows, self._survey, self._config, self._order = windows, survey, config, order
        self._attribution = attribution
        self._budget = survey.n_tokens
        self._ends: list[int] = []
        self._last_places: tuple[int, Int[Tensor, " n_tokens"]] | None = None
        self._step = 0
        self.n_steps = self._budget // config.batch_tokens
        self.n_tokens = self.n_steps * config.batch_tokens

    def __iter__(self) -> "TokenStream":
        """Give itself."""
        return self

    def __next__(self) -> Float[Tensor, "batch d_model"]:
        """Give the next batch."""
        if self._step >= self.n_steps:
            raise StopIteration
        batch = self._batch(self._step)
        self._step += 1
        return batch

    def seek(self, step: int, /) -> None:
        """Make the batch of `step` the next one."""
        self._step = step

    def for_threshold(self, n_tokens: int, /) -> ThresholdTokens:
        """Give `n_tokens` tokens for the inference threshold, or as many as there are not trained on.

        An SAE keeps fewer latents active on what it has been trained on. So they are those of the training
        part that this cycle leaves out, which come after its own in the text, spread over as many as the
        scale is taken from, since documents differ more than tokens; then those of the attribution part.
        Changes nothing but what is known of the windows.
        """
        tally = self._survey.tally
        n_known = max(SCALE_TOKENS, self._budget + n_tokens)
        tally.count_up_to(n_known)
        n_left_out = max(0, min(n_known, tally.n_kept) - self._budget)
        n_training = min(n_tokens, n_left_out)
        places = self._budget + _spread(n_training, n_left_out)
        others = list(spread_kept(self._attribution, n_tokens - n_training))
        n_attribution = sum(int(batch.is_kept.sum()) for batch in others)
        batches = _Repeated(partial(self._unseen, places, others))
        return ThresholdTokens(n_training + n_attribution, n_attribution, batches)

    def state_dict(self) -> dict[str, Any]:
        """Give the position, and what is known of the windows: none need be read to find the place."""
        return {"step": self._step, "counts": list(self._survey.tally.counts)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position that `state_dict` gave."""
        self._survey.tally.adopt(state["counts"])
        self.seek(state["step"])

    def _batch(self, step: int) -> Float[Tensor, "batch d_model"]:
        """Join the pieces of the segments that this batch runs across."""
        start, stop = step * self._config.batch_tokens, (step + 1) * self._config.batch_tokens
        pieces = []
        index = self._find(start)
        while start < stop:
            begin, end = self._bounds(index)
            if end > start:
                pieces.append(self._tokens(index, start - begin, min(stop, end) - begin))
                start = min(stop, end)
            index += 1
        return torch.cat(pieces) / self._survey.scale.rms

    def _unseen(
        self, places: Int[Tensor, " n"], others: Sequence[ContextBatch]
    ) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Give kept tokens of the training part by their places, then those of other contexts, as x_n."""
        yield from self._in_text_order(places)
        for batch in others:
            kept = batch.activations[batch.is_kept] / self._survey.scale.rms
            yield from torch.split(kept, self._config.batch_tokens)

    def _in_text_order(self, wanted: Int[Tensor, " n"]) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Give kept tokens by their places in the text, which ascend, as x_n, in batches."""
        begin = 0
        for index, count in enumerate(self._survey.tally.counts):
            end = begin + count.n_kept
            here = wanted[(wanted >= begin) & (wanted < end)] - begin
            begin = end
            if len(here) == 0:
                continue
            window = self._windows.get(index)
            for places in torch.split(self._kept(window)[here], self._config.batch_tokens):
                yield window.tokens.take(places) / self._survey.scale.rms

    def _kept(self, window: Window) -> Int[Tensor, " n_kept"]:
        """Give the places of a window's tokens that are not too loud."""
        return (window.norms <= self._survey.tally.max_norm).nonzero().squeeze(1)

    def _find(self, place: int) -> int:
        """Give the segment in which a place lies. A segment is one window's share of one epoch."""
        while not self._ends or self._ends[-1] <= place:
            self._bounds(len(self._ends))
        return bisect_right(self._ends, place)

    def _bounds(self, index: int) -> tuple[int, int]:
        """Give the first place of a segment and the one behind its last, in the tokens of the whole cycle."""
        tally = self._survey.tally
        while len(self._ends) <= index:
            epoch, window = divmod(len(self._ends), len(self._windows))
            begin = self._ends[-1] if self._ends else 0
            if epoch >= self._config.epochs:
                token_budget(self._config, n_available=tally.n_kept)
                raise CycleFailed("internal_error", f"place {begin} of {self._budget} has no token")
            self._ends.append(min(self._budget, begin + tally.count(window)))
        return (self._ends[index - 1] if index else 0), self._ends[index]

    def _tokens(self, index: int, start: int, stop: int) -> Float[Tensor, "n_tokens d_model"]:
        n_windows = len(self._windows)
        is_last = self._ends[index] >= self.n_tokens
        then = None if is_last or n_windows == 1 else (index + 1) % n_windows
        window = self._windows.get(index % n_windows, then=then)
        return window.tokens.take(self._places(index, window)[start:stop])

    def _places(self, index: int, window: Window) -> Int[Tensor, " n_tokens"]:
        """Permute the places of a segment's kept tokens within its window; the last answer is remembered."""
        if self._last_places is not None and self._last_places[0] == index:
            return self._last_places[1]
        begin, end = self._bounds(index)
        epoch, number = divmod(index, len(self._windows))
        kept = self._kept(window)
        generator = named_generator(*self._order, "tokens", epoch, number)
        places: Tensor = kept[torch.randperm(end - begin, generator=generator)]
        self._last_places = (index, places)
        return places


def _spread(n: int, n_places: int) -> Int[Tensor, " n"]:
    """Give `n` different places among the first `n_places`, evenly spread."""
    return torch.arange(n) * n_places // max(1, n)


class _Repeated:
    """Batches that are read anew each time they are gone over."""

    def __init__(self, read: Callable[[], Iterator[Tensor]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Tensor]:
        return self._read()
