"""In which order does training see the activations, and how much of them?

One order, a function of (spec, step): kept tokens permuted within windows of contexts, and the windows too,
newly in every cycle and epoch (METHOD 3). Which activations are kept is the business of `activations.py`.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dmsae.activations import Survey, Windows
from dmsae.config import TrainingConfig
from dmsae.errors import CycleFailed
from dmsae.randomness import named_generator


class Segment(NamedTuple):
    """One window's share of one epoch."""

    epoch: int
    window: int
    n_tokens: int
    """The first this many of the window's kept tokens, permuted."""


class Order(NamedTuple):
    """What the order of tokens is drawn from."""

    seed: int
    cycle_index: int


class TokenStream:
    """Training batches of x_n = x / rms, all equally long; the last incomplete one is left out.

    Iterating goes on from a position, which is all its state: stopped and resumed is never stopped.

    Raises: CycleFailed with `dataset_exhausted` where the budget is beyond the data or below one batch.
    """

    def __init__(self, windows: Windows, survey: Survey, config: TrainingConfig, *, order: Order) -> None:
        self._windows, self._survey, self._order = windows, survey, order
        self._batch_tokens = config.batch_tokens
        budget = token_budget(config, n_available=sum(survey.window_tokens))
        self._segments = plan(survey.window_tokens, budget, order=order)
        self._ends = list(accumulate(segment.n_tokens for segment in self._segments))
        self._last_places: tuple[int, Int[Tensor, " n_tokens"]] | None = None
        self._step = 0
        self.n_steps = budget // config.batch_tokens
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

    def state_dict(self) -> dict[str, Any]:
        """Give the position."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position that `state_dict` gave."""
        self.seek(state["step"])

    def _batch(self, step: int) -> Float[Tensor, "batch d_model"]:
        """Join the pieces of the segments that this batch runs across."""
        start, stop = step * self._batch_tokens, (step + 1) * self._batch_tokens
        pieces = []
        index = bisect_right(self._ends, start)
        while start < stop:
            begin = self._ends[index] - self._segments[index].n_tokens
            end = min(stop, self._ends[index])
            pieces.append(self._tokens(index, start - begin, end - begin))
            start, index = end, index + 1
        return torch.cat(pieces) / self._survey.scale.rms

    def _tokens(self, index: int, start: int, stop: int) -> Float[Tensor, "n_tokens d_model"]:
        tokens = self._windows.tokens(self._segments[index].window)
        return tokens[self._places(index, tokens)[start:stop]]

    def _places(self, index: int, tokens: Float[Tensor, "n_all d_model"]) -> Int[Tensor, " n_tokens"]:
        """Permute the places of a segment's kept tokens within its window; the last answer is remembered."""
        if self._last_places is not None and self._last_places[0] == index:
            return self._last_places[1]
        segment = self._segments[index]
        kept = (tokens.norm(dim=-1) <= self._survey.max_norm).nonzero().squeeze(1)
        generator = named_generator(*self._order, "tokens", segment.epoch, segment.window)
        places: Tensor = kept[torch.randperm(segment.n_tokens, generator=generator)]
        self._last_places = (index, places)
        return places


def plan(window_tokens: list[int], budget: int, *, order: Order) -> list[Segment]:
    """Lay out epochs and, within each, the windows in a drawn order.

    Each epoch reads the first tokens of the part, so every cycle trains on the same ones, newly permuted.
    """
    segments: list[Segment] = []
    n_available = sum(window_tokens)
    for epoch, start in enumerate(range(0, budget, n_available)):
        shares = _first(window_tokens, min(n_available, budget - start))
        generator = named_generator(*order, "windows", epoch)
        windows = torch.randperm(len(shares), generator=generator).tolist()
        segments += [Segment(epoch, window, shares[window]) for window in windows if shares[window]]
    return segments


def _first(window_tokens: list[int], n_tokens: int) -> list[int]:
    """Give how many of the first `n_tokens` tokens lie in each window."""
    starts = [0, *accumulate(window_tokens)]
    return [max(0, min(n, n_tokens - start)) for n, start in zip(window_tokens, starts, strict=False)]


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
