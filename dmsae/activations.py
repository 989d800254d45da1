"""Which activations are kept, and at what scale?

What stands at the hook point, harvested in batches of whole contexts (METHOD 3). In which order training sees
them is the business of `stream.py`; how the model is cut, that of `hooks.py`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dmsae.config import ActivationConfig
from dmsae.contexts import Contexts
from dmsae.documents import Part
from dmsae.errors import CycleFailed
from dmsae.hooks import HookPoint, run_lower
from dmsae.models import LoadedModel

SCALE_TOKENS = 100_000
"""Training tokens from which median norm and rms are taken, in the order of the harvest (METHOD 3)."""


class ContextBatch(NamedTuple):
    """Contexts with what the model makes of them at the hook point."""

    input_ids: Int[Tensor, "n t"]
    is_token: Bool[Tensor, "n t"]
    """False at padding."""
    document_index: Int[Tensor, "n t"]
    """Place of each position's document within its part; any value at padding, negative in another part's."""
    activations: Float[Tensor, "n t d_model"]
    """float32, raw units, on the CPU, at all positions; meaningless at padding."""
    is_kept: Bool[Tensor, "n t"]
    """True at tokens that count: no padding, no special id, no norm beyond the limit."""


class Scale(NamedTuple):
    """The size of raw activations: taken once, in cycle 0, and passed on with the core."""

    rms: float
    """sqrt(E||x||^2) over kept tokens; x_n = x / rms."""
    median_norm: float
    """Median of ||x|| over all tokens that are neither padding nor special."""


class Dropped(NamedTuple):
    """How many positions were left out, by reason."""

    padding: int
    special: int
    norm: int

    def __add__(self, other: object) -> "Dropped":
        """Add up reason by reason."""
        if not isinstance(other, Dropped):
            return NotImplemented
        return Dropped(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Harvester:
    """Reads the activations of contexts, the same bits however often and wherever it starts."""

    loaded: LoadedModel
    hook: HookPoint
    config: ActivationConfig
    tell: Callable[[int], None] = lambda _: None
    """Told how many tokens each batch held that are neither padding nor special."""

    def harvest(self, contexts: Contexts, *, max_norm: float = math.inf) -> Iterator[ContextBatch]:
        """Run the lower layers over `contexts`, `model_batch_contexts` at a time.

        Shapes: `max_norm` in raw units.

        Raises: CycleFailed with `non_finite` where a token has no finite activation.
        """
        step = self.config.model_batch_contexts
        for start in range(0, len(contexts.input_ids), step):
            rows = slice(start, start + step)
            input_ids, is_token = contexts.input_ids[rows].long(), contexts.is_token[rows]
            document_index = contexts.document_index[rows]
            activations = self._run(input_ids, is_token)
            candidate = self.is_candidate(input_ids, is_token, document_index)
            self._require_finite(activations[candidate])
            self.tell(int(candidate.sum()))
            is_kept = candidate & (activations.norm(dim=-1) <= max_norm)
            yield ContextBatch(input_ids, is_token, document_index, activations, is_kept)

    def max_norm(self, scale: Scale) -> float:
        """Give the norm in raw units beyond which a token is dropped."""
        multiple = self.config.max_norm_multiple
        return math.inf if multiple is None else multiple * scale.median_norm

    def count_candidates(self, contexts: Contexts) -> int:
        """Count, without running the model, the tokens that are neither padding nor special."""
        return int(self.is_candidate(*contexts[:3]).sum())

    def is_candidate(
        self, input_ids: Int[Tensor, "n t"], is_token: Bool[Tensor, "n t"], document_index: Int[Tensor, "n t"]
    ) -> Bool[Tensor, "n t"]:
        """Mark the tokens that are neither padding nor special, in documents of this part."""
        return is_token & (document_index >= 0) & ~self._is_special(input_ids)

    def count_dropped(self, batch: ContextBatch, *, max_norm: float) -> Dropped:
        """Count by reason what `harvest` left out of a batch."""
        is_special = batch.is_token & self._is_special(batch.input_ids)
        candidate = self.is_candidate(batch.input_ids, batch.is_token, batch.document_index)
        is_loud = candidate & (batch.activations.norm(dim=-1) > max_norm)
        return Dropped(*(int(mask.sum()) for mask in (~batch.is_token, is_special, is_loud)))

    def _run(
        self, input_ids: Int[Tensor, "n t"], is_token: Bool[Tensor, "n t"]
    ) -> Float[Tensor, "n t d_model"]:
        """Run the lower layers and fetch what they give from the model's device."""
        return run_lower(self.loaded, self.hook, input_ids=input_ids, is_token=is_token).cpu()

    def _is_special(self, input_ids: Int[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
        return torch.isin(input_ids, torch.tensor(self.loaded.special_ids, dtype=torch.int64))

    def _require_finite(self, activations: Float[Tensor, "n_tokens d_model"]) -> None:
        if not torch.isfinite(activations).all():
            raise CycleFailed(
                "non_finite",
                f"The model gives activations that are not finite at {self.hook.path}; "
                "choose another layer or model.",
                param="activations.layer",
            )


def collect(batches: Iterable[ContextBatch], *, n_tokens: int, part: Part) -> list[ContextBatch]:
    """Read batches until they hold at least `n_tokens` kept tokens.

    Raises: CycleFailed with `dataset_exhausted` where there are fewer.
    """
    collected: list[ContextBatch] = []
    n_kept = 0
    for batch in batches:
        collected.append(batch)
        n_kept += int(batch.is_kept.sum())
        if n_kept >= n_tokens:
            break
    require_tokens(n_kept, n_tokens=n_tokens, part=part)
    return collected


def require_tokens(n_available: int, *, n_tokens: int, part: Part) -> None:
    """Refuse a part that holds fewer tokens than were asked for.

    Raises: CycleFailed with `dataset_exhausted`.
    """
    if n_available < n_tokens:
        raise CycleFailed(
            "dataset_exhausted",
            f"{part}.n_tokens = {n_tokens}: the {part} part of the text holds {n_available} tokens; "
            "ask for fewer or give it a larger share in data.split.",
            param=f"{part}.n_tokens",
        )


def measure_scale(norms: Float[Tensor, " n_tokens"], config: ActivationConfig) -> Scale:
    """Take the median norm first, drop what lies too far above it, and the rms of the rest.

    Shapes: norms in raw units of tokens that are neither padding nor special; the sums are float64.
    """
    norms = norms[:SCALE_TOKENS].double()
    median = norms.median().item()
    if config.max_norm_multiple is not None:
        norms = norms[norms <= config.max_norm_multiple * median]
    rms = norms.square().mean().sqrt().item()
    if rms <= 0:
        raise CycleFailed(
            "non_finite",
            f"All activations at {config.hook} of layer {config.layer} are zero; "
            "choose another layer or model.",
            param="activations.layer",
        )
    return Scale(rms=rms, median_norm=median)


class WindowStore(Protocol):
    """Where windows may be kept beyond this process."""

    def read(self, window: int) -> Float[Tensor, "n_tokens d_model"] | None:
        """Give a window as it was written, or None."""

    def write(self, window: int, tokens: Float[Tensor, "n_tokens d_model"]) -> None:
        """Keep a window."""


def lay_windows(n_contexts: int, size: int) -> list[slice]:
    """Cut contexts into windows of at least `size`: what is left over belongs to the last one.

    Only a part that is smaller than one window has a smaller one.
    """
    starts = range(0, max(n_contexts - size, 0) + 1, size) if n_contexts else range(0)
    return [slice(start, start + size if start != starts[-1] else n_contexts) for start in starts]


class Windows:
    """The training part in windows of contiguous contexts: what is shuffled, kept or harvested again.

    Windows are kept in memory up to `max_resident_bytes`, but always the last one used; the least recently
    used goes first. Harvested again, a window has the same bits, since it always starts a batch of its own.
    """

    def __init__(
        self,
        harvester: Harvester,
        contexts: Contexts,
        *,
        max_resident_bytes: int,
        store: WindowStore | None = None,
    ) -> None:
        self.harvester = harvester
        self._contexts = [
            contexts._replace(
                input_ids=contexts.input_ids[window],
                is_token=contexts.is_token[window],
                document_index=contexts.document_index[window],
            )
            for window in lay_windows(len(contexts.input_ids), harvester.config.shuffle_window_contexts)
        ]
        self._max_resident_bytes = max_resident_bytes
        self._store = store
        self._resident: OrderedDict[int, Float[Tensor, "n_tokens d_model"]] = OrderedDict()

    def __len__(self) -> int:
        """Count the windows."""
        return len(self._contexts)

    def tokens(self, window: int) -> Float[Tensor, "n_tokens d_model"]:
        """Give a window's tokens in the order of the text: raw, whatever their norm, without special ones."""
        if window in self._resident:
            self._resident.move_to_end(window)
            return self._resident[window]
        tokens = self._read(window)
        self._resident[window] = tokens
        while len(self._resident) > 1 and self._resident_bytes() > self._max_resident_bytes:
            self._resident.popitem(last=False)
        return tokens

    def count_dropped(self, window: int) -> Dropped:
        """Count a window's padding and special tokens; what its norms drop is not known here."""
        contexts = self._contexts[window]
        n_tokens = int(contexts.is_token.sum())
        n_own = int((contexts.is_token & (contexts.document_index >= 0)).sum())
        n_special = n_own - len(self.tokens(window))
        return Dropped(padding=contexts.is_token.numel() - n_tokens, special=n_special, norm=0)

    def _read(self, window: int) -> Float[Tensor, "n_tokens d_model"]:
        """Take a window from the store, or harvest it and leave it there."""
        stored = None if self._store is None else self._store.read(window)
        if stored is not None:
            self.harvester.tell(len(stored))
            return stored
        harvested = self.harvester.harvest(self._contexts[window])
        tokens = torch.cat([batch.activations[batch.is_kept] for batch in harvested])
        if self._store is not None:
            self._store.write(window, tokens)
        return tokens

    def _resident_bytes(self) -> int:
        return sum(tokens.nbytes for tokens in self._resident.values())


class Survey(NamedTuple):
    """What a first pass over the training part found."""

    scale: Scale
    max_norm: float
    """Norm in raw units beyond which tokens are dropped."""
    window_tokens: list[int]
    """Kept tokens of each window that was read."""
    dropped: Dropped


def survey(windows: Windows, *, scale: Scale | None, n_tokens: int | None) -> Survey:
    """Count the kept tokens of each window, and take the scale where none is given.

    Stops early once `n_tokens` are kept (and the scale is known); null reads all.

    Raises: CycleFailed with `dataset_exhausted` where there is no token at all.
    """
    config, norms, dropped = windows.harvester.config, [], Dropped(0, 0, 0)
    for window in range(len(windows)):
        norms.append(windows.tokens(window).norm(dim=-1))
        dropped += windows.count_dropped(window)
        n_seen = sum(map(len, norms))
        if scale is None and n_seen >= SCALE_TOKENS:
            scale = measure_scale(torch.cat(norms), config)
        if scale is not None and n_tokens is not None and n_seen >= n_tokens:
            max_norm = windows.harvester.max_norm(scale)
            if sum(int((each <= max_norm).sum()) for each in norms) >= n_tokens:
                break
    if not sum(map(len, norms)):
        raise _exhausted("data.split", "the training part of the text holds no token at all")
    scale = scale or measure_scale(torch.cat(norms), config)
    max_norm = windows.harvester.max_norm(scale)
    window_tokens = [int((each <= max_norm).sum()) for each in norms]
    n_loud = sum(map(len, norms)) - sum(window_tokens)
    return Survey(scale, max_norm, window_tokens, dropped + Dropped(0, 0, n_loud))


def _exhausted(param: str, rule: str) -> CycleFailed:
    return CycleFailed("dataset_exhausted", f"{param}: {rule}.", param=param)
