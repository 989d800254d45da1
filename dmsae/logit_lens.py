"""Which tokens would a direction of the residual stream promote, if nothing lay between it and the logits?

The rows of the unembedding that a direction points along most and least, with the gain of the model's last
norm where that norm is found. What the norm divides by depends on the token, so values have no unit and only
their order means something.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dmsae.models import LoadedModel, probe_ids
from dmsae.token_texts import TokenTexts

VOCABULARY_BLOCK, DIRECTION_BLOCK = 8192, 512
"""Tokens and directions whose products are held at once: bounds memory."""


class TokenValue(NamedTuple):
    """A token and how far a direction raises its logit."""

    token: str
    value: float


class LogitLens(NamedTuple):
    """What one direction promotes and suppresses, the most first."""

    final_norm: Literal["folded", "left_out"]
    """Whether the last norm's gain is in the values."""
    promoted: list[TokenValue]
    suppressed: list[TokenValue]


class FinalNorm(NamedTuple):
    """What a model's last norm does to a small step, but for dividing by the stream's size."""

    gain: Float[Tensor, " d_model"]
    is_centred: bool
    """Whether it takes away the mean over coordinates first, as LayerNorm does."""

    def fold(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Give what becomes of directions."""
        if self.is_centred:
            directions = directions - directions.mean(dim=1, keepdim=True)
        return directions * self.gain


@torch.no_grad()
def logit_lenses(
    loaded: LoadedModel, directions: Float[Tensor, "n d_model"], *, n_tokens: int, texts: TokenTexts
) -> list[LogitLens]:
    """Give the `n_tokens` tokens that each direction promotes, and suppresses, most; of equals the first.

    Ids beyond the tokenizer's vocabulary are left out: no text holds them.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020), for rows of W_dec.
    """
    norm = final_norm(loaded)
    kind: Literal["folded", "left_out"] = "left_out" if norm is None else "folded"
    directions = directions.to(loaded.device)
    if norm is not None:
        directions = norm.fold(directions)
    lenses = []
    for block in torch.split(directions, DIRECTION_BLOCK):
        ends = [_most(loaded, sign * block, n_tokens) for sign in (1, -1)]
        for values, ids, low_values, low_ids in zip(*ends[0], *ends[1], strict=True):
            promoted = _named(values.tolist(), ids.tolist(), texts)
            suppressed = _named((-low_values).tolist(), low_ids.tolist(), texts)
            lenses.append(LogitLens(kind, promoted, suppressed))
    return lenses


@torch.no_grad()
def final_norm(loaded: LoadedModel) -> FinalNorm | None:
    """Find the norm whose output is what the unembedding reads, and its gain; None where there is no such.

    Its gain is read off what it makes of a vector of +1 and -1, which is its own norm: whether a family keeps
    gain or gain - 1 as its weight makes no difference.
    """
    norm = _last_norm(loaded)
    if norm is None:
        return None
    weight: Any = norm.weight
    signs = torch.ones_like(weight)
    signs[1::2] = -1
    at_zero = norm(torch.zeros_like(signs))
    gain = ((norm(signs) - at_zero) * signs).float()
    of_ones = (norm(torch.ones_like(signs)) - at_zero).float()
    return FinalNorm(gain, bool(of_ones.norm() < 0.1 * gain.norm()))


def _last_norm(loaded: LoadedModel) -> nn.Module | None:
    """Give the module with a gain of its own whose output is the head's input, on a handful of tokens."""
    get_head: Any = loaded.model.get_output_embeddings
    read: list[Tensor] = []
    made: list[tuple[nn.Module, Tensor]] = []
    handles = [get_head().register_forward_pre_hook(lambda _, given: read.append(given[0].clone()))]
    for module in loaded.model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (loaded.d_model,):
            handles.append(
                module.register_forward_hook(lambda norm, _, out: made.append((norm, out.clone())))
            )
    try:
        loaded.model(input_ids=probe_ids(loaded), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return next((norm for norm, out in reversed(made) if read and torch.equal(out, read[-1])), None)


def _most(
    loaded: LoadedModel, directions: Float[Tensor, "n d_model"], n_tokens: int
) -> tuple[Float[Tensor, "n n_tokens"], Int[Tensor, "n n_tokens"]]:
    """Give the largest logits of each direction, and whose they are."""
    get_head: Any = loaded.model.get_output_embeddings
    W_U: Tensor = get_head().weight[: min(len(loaded.tokenizer), loaded.vocab_size)]
    values = torch.empty(len(directions), 0, device=directions.device)
    ids = torch.empty(len(directions), 0, dtype=torch.int64, device=directions.device)
    for start in range(0, len(W_U), VOCABULARY_BLOCK):
        logits = directions @ W_U[start : start + VOCABULARY_BLOCK].float().T
        found = logits.topk(min(n_tokens, logits.shape[1]), dim=1)
        values = torch.cat([values, found.values], dim=1)
        ids = torch.cat([ids, start + found.indices], dim=1)
        by_id = ids.argsort(dim=1, stable=True)
        values, ids = values.gather(1, by_id), ids.gather(1, by_id)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :n_tokens]
        values, ids = values.gather(1, order), ids.gather(1, order)
    return values, ids


def _named(values: Sequence[float], ids: Sequence[int], texts: TokenTexts) -> list[TokenValue]:
    return [TokenValue(texts.of(token), value) for token, value in zip(ids, values, strict=True)]
