"""Which activations are kept, and at what scale?

What stands at the hook point, harvested in batches of whole contexts (METHOD 3). How the training part is
kept is the business of `windows.py`, in which order training sees it that of `stream.py`; how the model is
cut, that of `hooks.py`.
"""

import math
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


class KeptBatches(Protocol):
    """Where batches are kept beyond this process."""

    def read(self, first_context: int) -> Float[Tensor, "n t d_model"] | None:
        """Give the batch that begins at a context as it was written, or None."""

    def write(self, first_context: int, activations: Float[Tensor, "n t d_model"]) -> None:
        """Keep a batch, if that is possible."""


@dataclass(frozen=True)
class Harvester:
    """Reads the activations of contexts, the same bits however often and wherever it starts."""

    loaded: LoadedModel
    hook: HookPoint
    config: ActivationConfig
    tell: Callable[[int], None] = lambda _: None
    """Told how many tokens each batch held that are neither padding nor special."""

    def harvest(
        self,
        contexts: Contexts,
        *,
        max_norm: float = math.inf,
        part: Part = "training",
        kept: KeptBatches | None = None,
    ) -> Iterator[ContextBatch]:
        """Run the lower layers over `contexts`, `model_batch_contexts` at a time, or take what was `kept`.

        Shapes: `max_norm` in raw units; `part` is for a message.

        Raises: CycleFailed with `non_finite` where a token has no finite activation.
        """
        step = self.config.model_batch_contexts
        for start in range(0, len(contexts.input_ids), step):
            rows = slice(start, start + step)
            batch = (contexts.input_ids[rows].long(), contexts.is_token[rows], contexts.document_index[rows])
            candidate = self.is_candidate(*batch)
            activations = None if kept is None else kept.read(start)
            if activations is None:
                activations = self.run(batch[0], batch[1]).cpu()
                self.require_finite(activations[candidate], first_context=start, part=part)
                if kept is not None:
                    kept.write(start, activations)
            self.tell(int(candidate.sum()))
            is_kept = candidate & (activations.norm(dim=-1) <= max_norm)
            yield ContextBatch(*batch, activations, is_kept)

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

    def run(
        self, input_ids: Int[Tensor, "n t"], is_token: Bool[Tensor, "n t"]
    ) -> Float[Tensor, "n t d_model"]:
        """Run the lower layers; what they give is on the model's device."""
        return run_lower(self.loaded, self.hook, input_ids=input_ids, is_token=is_token)

    def require_finite(
        self, activations: Float[Tensor, "n_tokens d_model"], *, first_context: int, part: Part
    ) -> None:
        """Refuse activations of tokens that count where they are not finite.

        Raises: CycleFailed with `non_finite`, naming the batch and the tensor.
        """
        if torch.isfinite(activations).all():
            return
        raise CycleFailed(
            "non_finite",
            f"The model gives activations that are not finite at {self.hook.path}, in the batch of the "
            f"{part} part that begins at context {first_context}; choose another layer or model.",
            param="activations.layer",
            tensor=self.hook.path,
            part=part,
            first_context=first_context,
        )

    def _is_special(self, input_ids: Int[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
        return torch.isin(input_ids, torch.tensor(self.loaded.special_ids, dtype=torch.int64))


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


def norm_limit(scale: Scale, config: ActivationConfig) -> float:
    """Give the norm in raw units beyond which a token is dropped."""
    multiple = config.max_norm_multiple
    return math.inf if multiple is None else multiple * scale.median_norm
