"""Which are the largest pre-activations of a batch, without computing all of them exactly?

Where an estimate with its proven bound (`estimates.py`) reaches a floor, the value is computed by a float32
dot product, always the same one. So neither how estimates are made nor the floor that a search starts from
decides a bit of the result.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dmsae import sparse_kernels
from dmsae.estimates import Estimates, Estimator, n_together
from dmsae.row_workers import RowWorkers

BLOCK_BYTES = 2**22
"""Encoder vectors that are searched together, to stay in a processor's cache."""
LEAST_MARGIN, FIRST_MARGIN, MOST_MARGIN = 0.005, 0.04, 0.5
"""A search starts so far below where the last one ended, as a share; more wherever that was too little."""
NEXT, LEAST_SHARE = 0.97, 0.2
"""A second search goes down by this factor or more; to 0 where less than this share was found, as a third."""


class Found(NamedTuple):
    """Some pre-activations of a batch."""

    tokens: NDArray[np.int64]
    latents: NDArray[np.int64]
    values: NDArray[np.float32]

    @classmethod
    def room(cls, size: int) -> "Found":
        """Give memory for so many."""
        return cls(np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32))

    def take(self, index: "slice | NDArray[np.bool_] | NDArray[np.int64]") -> "Found":
        """Give some of them, as NumPy takes an index."""
        return Found(self.tokens[index], self.latents[index], self.values[index])

    def at_least_border(self, budget: int) -> "tuple[Found, np.float32]":
        """Leave out what is below the `budget`-th largest; give that value too, 0 where all are fewer."""
        if len(self.values) < budget:
            return self, np.float32(0)
        nth = len(self.values) - budget
        border = np.partition(self.values, nth)[nth]
        return self.take(self.values >= border), border

    def in_order(self, n_tokens: int) -> "Found":
        """Sort by token, and leave them as they are within one."""
        _, order = sparse_kernels.order_by(self.tokens, n_tokens)
        return self.take(order)


def joined(parts: list[Found]) -> Found:
    """Put parts behind each other."""
    tokens, latents, values = zip(*parts, strict=True)
    return Found(np.concatenate(tokens), np.concatenate(latents), np.concatenate(values))


class Screen:
    """Finds the largest pre-activations of batches; remembers where the last search ended, to begin there."""

    def __init__(self, workers: RowWorkers, *, is_int8: bool) -> None:
        self._workers, self._estimator = workers, Estimator(workers, is_int8=is_int8)
        self._border, self._margin = np.float32(0), FIRST_MARGIN

    def find_largest(
        self,
        x: Float[Tensor, "batch d_model"],
        rows: Float[Tensor, "n_latents d_model"],
        bias: Float[Tensor, " n_latents"],
        *,
        budget: int,
    ) -> Found | None:
        """Find the `budget` (at least 1) largest positive values of x . row + bias, or all where fewer.

        By token and, within one, by latent; of equal values at the border those that come first in this
        order. None where a norm or a bias is not finite.
        """
        estimates = self._estimator.estimate(x, rows, bias)
        if not estimates.is_finite():
            return None
        search = _Search(x, rows, bias, estimates=estimates, budget=budget)
        self._margin = max(LEAST_MARGIN, 0.98 * self._margin)
        floor = np.float32(self._border * (1 - self._margin))
        found = search.run(floor, self._workers)
        share_found = len(found.values) / budget
        if share_found < 1 and floor > 0:
            self._margin = min(MOST_MARGIN, 2 * self._margin)
            floor = (
                np.float32(floor * NEXT * share_found**0.2) if share_found > LEAST_SHARE else np.float32(0)
            )
            found = search.run(floor, self._workers)
        if len(found.values) < budget and floor > 0:
            found = search.run(np.float32(0), self._workers)
        found, self._border = found.at_least_border(budget)
        return _without_late_ties(found.in_order(len(x)), budget, border=self._border)

    def find_above(
        self,
        x: Float[Tensor, "batch d_model"],
        rows: Float[Tensor, "n_latents d_model"],
        bias: Float[Tensor, " n_latents"],
        *,
        floor: float,
        n_most: int,
    ) -> Found | None:
        """Find all positive values at or above `floor`, or at least the `n_most` largest of them.

        In no order. None where a norm or a bias is not finite.
        """
        estimates = self._estimator.estimate(x, rows, bias)
        if not estimates.is_finite():
            return None
        search = _Search(x, rows, bias, estimates=estimates, budget=n_most)
        return search.run(np.float32(floor), self._workers)


class _Search:
    """A search in one batch, that may be run again from another floor."""

    def __init__(self, x: Tensor, rows: Tensor, bias: Tensor, *, estimates: Estimates, budget: int) -> None:
        self._x, self._rows, self._bias = x.numpy(), rows.numpy(), bias.numpy()
        self._estimates, self._bounds, self._budget = estimates, estimates.bounds(), budget
        n_latents = min(len(rows), max(1, BLOCK_BYTES // (4 * x.shape[1])))
        self._block = len(sparse_kernels.room_to_find(n_latents)[0])
        self._floor = np.float32(0)

    def run(self, floor: np.float32, workers: RowWorkers) -> Found:
        """Find all positive values at or above `floor`, but for such as `budget` larger ones are known of."""
        self._floor = floor
        n_tokens, n_latents = len(self._x), len(self._rows)
        n_parts = min(n_tokens, workers.n_threads)
        parts = [
            slice(n_tokens * part // n_parts, n_tokens * (part + 1) // n_parts) for part in range(n_parts)
        ]
        rooms = [_Room(2 * self._budget // n_parts, spare=self._block) for _ in parts]
        n_each = n_together(n_tokens, n_latents)
        for first in range(0, n_latents, n_each):
            latents = slice(first, min(first + n_each, n_latents))
            estimated = self._estimates.product(latents.start, latents.stop)

            def search(part: int, latents: slice = latents, estimated: NDArray[Any] = estimated) -> None:
                self._search(parts[part], latents, estimated, room=rooms[part])

            workers.run_each(search, n_parts)
        return joined([room.taken() for room in rooms])

    def _search(self, tokens: slice, latents: slice, estimated: NDArray[Any], *, room: "_Room") -> None:
        of_tokens = (estimated[tokens], self._bounds[tokens], self._x[tokens])
        n_latents, at, marks = latents.stop - latents.start, (0, 0), sparse_kernels.room_to_find(self._block)
        while at[0] < n_latents:
            floor = self._floor
            needed, norms = self._estimates.needed(floor, latents)
            of_latents = (self._rows[latents], self._bias[latents], needed, norms)
            n_new, at = sparse_kernels.find_above(of_tokens, of_latents, floor, at, marks, room.free())
            room.add(n_new, first_token=tokens.start, first_latent=latents.start)
            if at[0] < n_latents:
                self._floor = max(self._floor, room.clear(self._budget))


class _Room:
    """Where one thread puts what it finds; `spare` is kept free, or made."""

    def __init__(self, size: int, *, spare: int) -> None:
        self._found, self._n_found, self._spare = Found.room(size + spare), 0, spare

    def taken(self) -> Found:
        return self._found.take(slice(0, self._n_found))

    def free(self) -> tuple[NDArray[Any], ...]:
        return tuple(self._found.take(slice(self._n_found, None)))

    def add(self, n_new: int, *, first_token: int, first_latent: int) -> None:
        """Take over what was written into the free part, counted there from the first token and latent."""
        new = self._found.take(slice(self._n_found, self._n_found + n_new))
        new.tokens[:] += first_token
        new.latents[:] += first_latent
        self._n_found += n_new

    def clear(self, budget: int) -> np.float32:
        """Forget what `budget` larger values are known of, make room; give the floor that this proves."""
        kept, floor = self.taken().at_least_border(budget)
        self._n_found = len(kept.values)
        self._found = Found.room(2 * max(self._n_found, budget) + self._spare)
        taken = self.taken()
        taken.tokens[:], taken.latents[:], taken.values[:] = kept
        return floor


def _without_late_ties(found: Found, budget: int, *, border: np.float32) -> Found:
    """Leave out the last of the values that equal the border, where more than `budget` are found."""
    n_tied = len(found.values) - budget
    if n_tied <= 0:
        return found
    is_kept = np.ones(len(found.values), np.bool_)
    is_kept[np.flatnonzero(found.values == border)[-n_tied:]] = False
    return found.take(is_kept)
