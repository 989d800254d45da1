"""How does training come by its activations, window by window?

The training part in windows of contiguous contexts, rounded (`rounding.py`): from memory, from the cache
(`activation_cache.py`) or from where they arise, harvested or ready-made. The next window may be made ready
in a thread of its own while one is trained on. In which order tokens are seen: `stream.py`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.activations import Dropped, Harvester
from dmsae.contexts import Contexts
from dmsae.errors import DmsaeError
from dmsae.rounding import Halves, RoundingError, bytes_per_token, round_to_half, rounding_error


class Window(NamedTuple):
    """A window's tokens that are neither padding nor special, whatever their norm, as the text has them."""

    tokens: Halves
    norms: Float[Tensor, " n"]
    """Of the rounded tokens, in raw units."""
    error: RoundingError

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return self.tokens.n_bytes + self.norms.nbytes


class Stopped(DmsaeError):
    """A window is no longer wanted."""


class Source(Protocol):
    """Where windows arise."""

    @property
    def n_windows(self) -> int:
        """Number of windows."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all windows, whatever their norm."""

    @property
    def d_model(self) -> int:
        """Width of an activation."""

    @property
    def is_ready_made(self) -> bool:
        """Whether they lie on disk already: reading them costs little, and keeping them saves nothing."""

    def read(self, window: int, *, is_stopped: Callable[[], bool]) -> Window:
        """Give a window, the same bits every time.

        Raises: CycleFailed, or Stopped where it is no longer wanted.
        """

    def count_dropped(self, window: int, *, n_tokens: int) -> Dropped:
        """Count the padding and special tokens beside the `n_tokens` of a window."""

    def tell(self, n_tokens: int) -> None:
        """Tell those who watch of tokens that need not be harvested."""


class Store(Protocol):
    """Where windows are kept beyond this process."""

    @property
    def trouble(self) -> str | None:
        """Why not all windows can be kept, as far as is known, or None."""

    def read(self, window: int) -> Window | None:
        """Give a window as it was written, or None."""

    def write(self, window: int, content: Window) -> Window | None:
        """Keep a window and give it as it is read from then on; None where it cannot be kept."""

    def read_norms(self, window: int) -> Float[Tensor, " n"] | None:
        """Give the norms of a window's tokens alone, or None."""

    def read_counts(self, max_norm: float) -> list["Count"]:
        """Give what is known of the first windows at a norm limit."""

    def write_counts(self, max_norm: float, counts: list["Count"]) -> None:
        """Keep what is known of the first windows at a norm limit."""

    def claim(self, window: int, *, is_stopped: Callable[[], bool]) -> AbstractContextManager[None]:
        """Let nobody else harvest a window at the same time."""

    def close(self) -> None:
        """Need it no longer."""


class Count(NamedTuple):
    """What training finds in a window."""

    n_kept: int
    dropped: Dropped


class Usage(NamedTuple):
    """Where a cycle's training activations came from."""

    n_tokens_harvested: int = 0
    n_tokens_cached: int = 0
    wait_s: float = 0.0
    """Seconds for which somebody waited for a window since the watch was started."""
    error: RoundingError = RoundingError()


def lay_windows(n_contexts: int, size: int) -> list[slice]:
    """Cut contexts into windows of at least `size`: what is left over belongs to the last one.

    Only a part that is smaller than one window has a smaller one.
    """
    starts = range(0, max(n_contexts - size, 0) + 1, size) if n_contexts else range(0)
    return [slice(start, start + size if start != starts[-1] else n_contexts) for start in starts]


class HarvestedWindows:
    """Windows as the language model gives them; each begins a batch of its own, so its bits are its own."""

    is_ready_made = False

    def __init__(self, harvester: Harvester, contexts: Contexts, *, n_tokens: int | None = None) -> None:
        """Take `n_tokens`, those that are neither padding nor special, as given or count them."""
        self.harvester, self._contexts = harvester, contexts
        self.n_tokens = harvester.count_candidates(contexts) if n_tokens is None else n_tokens
        self.d_model = harvester.loaded.d_model
        self.slices = lay_windows(len(contexts.input_ids), harvester.config.shuffle_window_contexts)

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return len(self.slices)

    def contexts(self, window: int) -> Contexts:
        """Give a window's contexts."""
        return cut_contexts(self._contexts, self.slices[window])

    def read(self, window: int, *, is_stopped: Callable[[], bool] = lambda: False) -> Window:
        """Harvest a window, rounding each batch where the model computes.

        Raises: CycleFailed with `non_finite`, or Stopped.
        """
        pieces: list[tuple[Halves, Tensor]] = []
        error = RoundingError()
        for kept in self._batches(window):
            if is_stopped():
                raise Stopped(window=window)
            piece, lost = round_piece(kept)
            pieces.append(piece)
            error += lost
            self.harvester.tell(len(kept))
        return join(pieces, error)

    def count_dropped(self, window: int, *, n_tokens: int) -> Dropped:
        """Count a window's padding and special tokens."""
        return count_left_out(self.contexts(window), n_tokens=n_tokens)

    def tell(self, n_tokens: int) -> None:
        """Tell those who watch of tokens that need not be harvested."""
        self.harvester.tell(n_tokens)

    def _batches(self, window: int) -> Iterator[Float[Tensor, "n d_model"]]:
        """Give the tokens of a window that are neither padding nor special, on the model's device."""
        reader, contexts = self.harvester, self.contexts(window)
        step = reader.config.model_batch_contexts
        for start in range(0, len(contexts.input_ids), step):
            batch = cut_contexts(contexts, slice(start, start + step))
            input_ids = batch.input_ids.long()
            activations = reader.run(input_ids, batch.is_token)
            is_candidate = reader.is_candidate(input_ids, batch.is_token, batch.document_index)
            tokens = activations[is_candidate.to(activations.device)]
            first = self.slices[window].start + start
            reader.require_finite(tokens, first_context=first, part="training")
            yield tokens


def cut_contexts(contexts: Contexts, rows: slice) -> Contexts:
    """Give some contexts."""
    return contexts._replace(
        input_ids=contexts.input_ids[rows],
        is_token=contexts.is_token[rows],
        document_index=contexts.document_index[rows],
    )


def count_left_out(contexts: Contexts, *, n_tokens: int) -> Dropped:
    """Count padding and special tokens of contexts that have `n_tokens` others."""
    n_own = int((contexts.is_token & (contexts.document_index >= 0)).sum())
    return Dropped(padding=int((~contexts.is_token).sum()), special=n_own - n_tokens, norm=0)


def round_piece(x: Float[Tensor, "n d_model"]) -> tuple[tuple[Halves, Float[Tensor, " n"]], RoundingError]:
    """Round some tokens and take the norms of what is left: the one place where training's are rounded."""
    halves = round_to_half(x)
    rounded = halves.float()
    piece = (Halves(halves.halves.cpu(), halves.exponents.cpu()), rounded.norm(dim=-1).cpu())
    return piece, rounding_error(x, rounded)


def join(pieces: list[tuple[Halves, Float[Tensor, " n"]]], error: RoundingError) -> Window:
    """Make a window of its pieces."""
    tokens = Halves(
        torch.cat([halves.halves for halves, _ in pieces]),
        torch.cat([halves.exponents for halves, _ in pieces]),
    )
    return Window(tokens, torch.cat([norms for _, norms in pieces]), error)


class Windows:
    """The training windows, the same bits wherever they come from.

    Up to `max_resident_bytes` stay in memory, the first ones of the text before others, and always the last
    one that was asked for and the one that is made ready. All reading is done by one thread.
    """

    def __init__(
        self,
        source: Source,
        *,
        max_resident_bytes: int,
        store: Store | None = None,
        trouble: str | None = None,
    ) -> None:
        """Read from `source` what `store` does not hold; `trouble` says why a store is lacking."""
        self.source, self.store, self._trouble = source, store, trouble
        self._max_resident_bytes = max_resident_bytes
        self._resident: dict[int, Window] = {}
        self._last: int | None = None
        self._pending: dict[int, Future[Window]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._is_stopped = threading.Event()
        self._wait_s, self._n_harvested = 0.0, 0
        self._cached: dict[int, int] = {}
        self._errors: dict[int, RoundingError] = {}
        self._told: set[int] = set()

    def __len__(self) -> int:
        """Count the windows."""
        return self.source.n_windows

    @property
    def trouble(self) -> str | None:
        """Why not all windows can be kept, though they should be, or None."""
        return self._trouble if self.store is None else self.store.trouble

    @property
    def is_once_enough(self) -> bool:
        """Whether all windows can be read before training and are still there in training."""
        is_kept = self.store is not None and self.store.trouble is None
        n_bytes = self.source.n_tokens * bytes_per_token(self.source.d_model)
        return self.source.is_ready_made or is_kept or n_bytes <= self._max_resident_bytes

    def norms(self, window: int) -> Float[Tensor, " n"]:
        """Give the norms of a window's tokens, in raw units."""
        norms = None
        if window not in self._resident and self.store is not None:
            norms = self.store.read_norms(window)
        norms = self.get(window).norms if norms is None else norms
        if window not in self._told:
            self._told.add(window)
            self.source.tell(len(norms))
        return norms

    @property
    def usage(self) -> Usage:
        """Where the tokens came from so far."""
        error = sum(self._errors.values(), start=RoundingError())
        return Usage(self._n_harvested, sum(self._cached.values()), self._wait_s, error)

    def get(self, window: int, *, then: int | None = None) -> Window:
        """Give a window; `then` names the one that should be made ready meanwhile.

        Raises: CycleFailed.
        """
        self._last = window
        content = self._resident.get(window)
        if content is None:
            started = time.monotonic()
            content = self._keep(window, self._submit(window).result())
            self._wait_s += time.monotonic() - started
        if then is not None and then not in self._resident:
            self._pending = {each: future for each, future in self._pending.items() if each == then}
            self._submit(then)
        return content

    def start_watch(self) -> None:
        """Count the seconds waited anew."""
        self._wait_s = 0.0

    def usage_state(self) -> dict[str, Any]:
        """Give what `usage` is made of, as JSON holds it."""
        pairs = {"cached": list(self._cached.items()), "errors": list(self._errors.items())}
        return {"n_harvested": self._n_harvested, "wait_s": self._wait_s, **pairs}

    def adopt_usage(self, state: dict[str, Any]) -> None:
        """Add what an earlier attempt at the same cycle had used."""
        self._n_harvested += state["n_harvested"]
        self._wait_s += state["wait_s"]
        self._cached = {**dict(state["cached"]), **self._cached}
        self._errors = {
            **{window: RoundingError(*error) for window, error in state["errors"]},
            **self._errors,
        }

    def close(self) -> None:
        """Stop what is being made ready, and let go of memory and cache; reading may begin anew."""
        self._is_stopped.set()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._is_stopped.clear()
        self._thread, self._pending = None, {}
        self._resident, self._last = {}, None
        if self.store is not None:
            self.store.close()

    def _submit(self, window: int) -> "Future[Window]":
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="windows")
        if window not in self._pending:
            self._pending[window] = self._thread.submit(self._load, window, torch.get_num_threads())
        return self._pending[window]

    def _load(self, window: int, n_threads: int) -> Window:
        """Read a window from the store, else make it and leave it there."""
        torch.set_num_threads(n_threads)  # a thread that is new to torch would take its own default
        content = self._load_stored(window)
        if content is not None:
            return content
        if self.store is None or self.source.is_ready_made:
            return self._make(window)
        with self.store.claim(window, is_stopped=self._is_stopped.is_set):
            content = self._load_stored(window)  # somebody else may have harvested it meanwhile
            if content is None:
                content = self._make(window)
                content = self.store.write(window, content) or content
        return content

    def _load_stored(self, window: int) -> Window | None:
        content = None if self.store is None else self.store.read(window)
        if content is not None:
            self._cached[window], self._errors[window] = len(content.norms), content.error
        return content

    def _make(self, window: int) -> Window:
        self._told.add(window)
        content = self.source.read(window, is_stopped=self._is_stopped.is_set)
        self._n_harvested += 0 if self.source.is_ready_made else len(content.norms)
        self._errors[window] = content.error
        return content

    def _keep(self, window: int, content: Window) -> Window:
        """Hold a window in memory and let go of what is beyond the bound, the last ones of the text first."""
        self._pending.pop(window, None)
        self._resident[window] = content
        n_bytes = sum(each.n_bytes for each in self._resident.values())
        for each in sorted(self._resident.keys() - {self._last}, reverse=True):
            if n_bytes <= self._max_resident_bytes:
                break
            n_bytes -= self._resident.pop(each).n_bytes
        return content
