"""Where does a latent fire in a text of one's own, and what does the model say next, with it changed or not?

Everything at the hook point is in the model's own units: what a core reads is divided by its rms, and its
latents' activations are multiplied by it, so that an activation is the norm of what the latent adds.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dmsae.contexts import tokenise
from dmsae.errors import CycleFailed
from dmsae.hooks import HookPoint, changing, run_lower
from dmsae.matching import core_acts
from dmsae.models import LoadedModel
from dmsae.probe_config import MOST_TOKENS, Ablate, Change, PromptConfig
from dmsae.sae import Core

CACHES = ("cache", "past_key_values")
"""What models call what they keep of earlier tokens: transformers from 5.24 on, and before."""
Edit = Callable[[Float[Tensor, "1 t d_model"], Bool[Tensor, "1 t"]], Float[Tensor, "1 t d_model"]]
"""What is made of the activations at the hook point, in raw units: (activations, where latents count)."""


class Said(NamedTuple):
    """What the model says behind a prompt."""

    logits: Float[Tensor, " vocab"]
    """Of the next token, float32, on the CPU."""
    new_ids: list[int]
    """The greedy continuation, ended by an end-of-text token if one comes."""


@dataclass(frozen=True)
class PromptReader:
    """A model cut at a hook point, and the core whose latents read there."""

    loaded: LoadedModel
    hook: HookPoint
    core: Core
    max_norm: float
    """Norm in raw units beyond which a token counts for no latent, as in the core's training."""

    def activations(self, input_ids: Int[Tensor, "1 t"]) -> Float[Tensor, "1 t d_model"]:
        """Give what the model makes of a prompt at the hook point, in raw units."""
        everywhere = torch.ones_like(input_ids, dtype=torch.bool)
        return run_lower(self.loaded, self.hook, input_ids=input_ids, is_token=everywhere)

    def is_counted(
        self, input_ids: Int[Tensor, "1 t"], x: Float[Tensor, "1 t d_model"]
    ) -> Bool[Tensor, "1 t"]:
        """Mark the tokens at which latents count: neither special nor too loud."""
        special = torch.tensor(self.loaded.special_ids, dtype=torch.int64, device=x.device)
        is_loud: Tensor = x.norm(dim=-1) > self.max_norm
        is_special: Tensor = torch.isin(input_ids.to(x.device), special)
        return ~is_special & ~is_loud

    def latent_acts(self, x: Float[Tensor, "*t d_model"]) -> Float[Tensor, "*t n_core"]:
        """Give the activations of the core's latents, in raw units."""
        return self.core.rms * core_acts(self.core, x / self.core.rms)

    def edit(self, row: int, change: Change) -> Edit:
        """Give what a change of one latent does to activations."""
        if isinstance(change, Ablate):
            return self._ablate(row)
        direction = self.core.W_dec[row] / self.core.W_dec[row].norm()
        return lambda x, is_counted: x + change.strength * is_counted[..., None] * direction

    def _ablate(self, row: int) -> Edit:
        one = self.core.only([row])
        reader = replace(self, core=one)

        def ablate(x: Tensor, is_counted: Tensor) -> Tensor:
            added = reader.latent_acts(x) * one.W_dec[0]
            return x - is_counted[..., None] * added

        return ablate

    @torch.no_grad()
    def say(self, input_ids: Int[Tensor, "1 t"], *, n_new_tokens: int, edit: Edit | None = None) -> Said:
        """Run the model over a prompt and greedily on, all activations at the hook point edited.

        What was made of earlier tokens is kept from token to token where the model can keep it.
        """
        ids, cache = input_ids.to(self.loaded.device), None
        logits, cache = self._step(ids, cache, edit)
        first = logits.cpu()
        new_ids: list[int] = []
        while len(new_ids) < n_new_tokens:
            new_ids.append(int(logits.argmax()))
            if new_ids[-1] == self.loaded.tokenizer.eos_token_id or len(new_ids) == n_new_tokens:
                break
            newest = torch.tensor([new_ids[-1:]], device=ids.device)
            ids = torch.cat([ids, newest], dim=1)
            logits, cache = self._step(newest if cache is not None else ids, cache, edit)
        return Said(first, new_ids)

    def _step(
        self, ids: Int[Tensor, "1 t"], cache: Any, edit: Edit | None
    ) -> tuple[Float[Tensor, " vocab"], Any]:
        """Give the logits behind the last of `ids`, and what the model keeps of all so far."""

        def change(x: Tensor) -> Tensor:
            assert edit is not None  # noqa: S101 - without one nothing is hooked
            return edit(x, self.is_counted(ids, x))

        model: Any = self.loaded.model
        known = signature(model.forward).parameters
        kept = next((name for name in CACHES if name in known), None)
        given = {} if kept is None else {kept: cache}
        given |= {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        with nullcontext() if edit is None else changing(self.loaded, self.hook, change):
            out = model(input_ids=ids, use_cache=kept is not None, **given)
        return out.logits[0, -1].float(), None if kept is None else getattr(out, kept, None)


def read_prompt(loaded: LoadedModel, config: PromptConfig) -> Int[Tensor, "1 t"]:
    """Give a prompt's token ids, behind a BOS where the core's contexts had one.

    Raises: CycleFailed with `context_too_long`, naming how many tokens there are, or `data_unreadable` where
    there is none.
    """
    (ids,) = tokenise([config.prompt], loaded.tokenizer)
    bos = loaded.tokenizer.bos_token_id if config.data.prepend_bos else None
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    if not ids:
        raise CycleFailed("data_unreadable", "prompt: holds no token for this model.", param="prompt")
    most = min(MOST_TOKENS, loaded.max_context or MOST_TOKENS)
    if len(ids) + config.n_new_tokens > most:
        whose = "a probe" if most == MOST_TOKENS else "this model"
        raise CycleFailed(
            "context_too_long",
            f"prompt: is {len(ids)} tokens, and n_new_tokens = {config.n_new_tokens}: {whose} reads at most "
            f"{most} in all.",
            param="prompt",
            n_tokens=len(ids),
        )
    return torch.tensor([ids])


def divergence(plain: Float[Tensor, " vocab"], changed: Float[Tensor, " vocab"]) -> float:
    """Give KL(plain || changed) of two next-token distributions by their logits, in nats."""
    log_p, log_q = (logits.double().log_softmax(dim=0) for logits in (plain, changed))
    return float((log_p.exp() * (log_p - log_q)).sum().clamp(min=0))
