"""Which latents are active: by BatchTopK in training, by a threshold afterwards, and who is exempt from both?

Budgets are counts of activations over a whole batch, exact and rounded once (METHOD 4, 7).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dmsae.config import SaeConfig
from dmsae.errors import CycleFailed
from dmsae.sae import MatryoshkaSae


class Sparse(NamedTuple):
    """What one batch keeps."""

    latent_acts: Float[Tensor, "batch n_latents"]
    budget: int
    """How many activations of the whole batch the latents that compete might keep."""


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """How many activations a batch may keep, and which latents are exempt from that (METHOD 4)."""

    k: int
    n_exempt: int
    """The first so many latents keep ReLU of their pre-activation: an exempt core, else none."""
    is_dynamic: bool
    """Whether the activations of the exempt are taken off the budget of the others."""

    @classmethod
    def of(cls, config: SaeConfig, *, n_core: int) -> Self:
        """Give the sparsity of an SAE around `n_core` latents."""
        return cls(
            k=config.k,
            n_exempt=n_core if config.core_sparsity == "exempt" else 0,
            is_dynamic=config.noncore_budget == "dynamic",
        )

    @property
    def k_min(self) -> float:
        """Least dynamic budget of a token: k/4, and at least 1."""
        return max(1.0, self.k / 4)

    def budget(self, n_exempt_active: int, *, n_tokens: int) -> int:
        """Give round(k_nc * n_tokens), where the exempt have `n_exempt_active` activations on these tokens.

        Source: METHOD 4; `dynamic` is our reading of the paper's figure, in counts:
        max(k_min, k - L0_core) * n_tokens = max(k_min * n_tokens, k * n_tokens - n_exempt_active).
        """
        whole = self.k * n_tokens
        if not self.is_dynamic:
            return whole
        return max(round(self.k_min * n_tokens), whole - n_exempt_active)

    def sparsify(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Sparse:
        """Keep all positive activations of the exempt and the largest of the others over the whole batch.

        Gradients flow to what is kept. NaN is kept, to show in the loss.
        """
        keep, budget = self.choose(pre_acts.detach())
        return Sparse(torch.where(keep, pre_acts, 0.0), budget)

    def choose(
        self, pre_acts: Float[Tensor, "batch n_latents"]
    ) -> tuple[Bool[Tensor, "batch n_latents"], int]:
        """Mark what `sparsify` keeps; give the budget of those that compete."""
        exempt, others = pre_acts.tensor_split([self.n_exempt], dim=1)
        is_active = ~(exempt <= 0)
        budget = self.budget(int(is_active.sum()), n_tokens=len(pre_acts))
        return torch.cat([is_active, batch_topk(others, budget)], dim=1), budget


def batch_topk(acts: Float[Tensor, "batch n_latents"], budget: int) -> Bool[Tensor, "batch n_latents"]:
    """Mark the `budget` largest positive values of the whole batch.

    Exactly `budget` values, or all positive ones where there are fewer. Of equal values at the border those
    of the lower flat index are marked. Where NaN is among the largest, NaN alone is marked.

    Source: BatchTopK, arXiv 2412.06410.
    """
    flat = acts.flatten()
    n_kept = min(budget, int((flat > 0).sum() + flat.isnan().sum()))
    if n_kept <= 0:
        return torch.zeros_like(acts, dtype=torch.bool)
    smallest = flat.topk(n_kept, sorted=False).values.min()
    if smallest.isnan():
        return acts.isnan()
    keep = flat > smallest
    ties = (flat == smallest).nonzero().squeeze(1)
    keep[ties[: n_kept - int(keep.sum())]] = True
    return keep.view_as(acts)


class Calibration(NamedTuple):
    """The inference threshold, and what it was found on."""

    threshold: Float[Tensor, " n_latents"]
    """0 where a latent is exempt, the same value for all others."""
    n_tokens: int
    n_exempt_active: int
    """Activations of the exempt on all of these tokens."""
    budget: int
    """How many activations of the others pass, but for ties and where fewer are positive."""

    @property
    def l0_exempt(self) -> float:
        """Mean number of active exempt latents of a token."""
        return self.n_exempt_active / self.n_tokens

    @property
    def l0_others(self) -> float:
        """Mean number of active latents of a token that the others may have."""
        return self.budget / self.n_tokens


@torch.no_grad()
def calibrate(
    sae: MatryoshkaSae,
    batches: Iterable[Float[Tensor, "batch d_model"]],
    sparsity: Sparsity,
    *,
    n_tokens: int,
) -> Calibration:
    """Find the threshold at which the mean L0 over all tokens of `batches` is the budget (METHOD 7).

    The budget is that of all these tokens as one batch. The threshold is 0 for the exempt, which is ReLU, and
    one value for the others. Memory: 2 k n_tokens floats.

    Raises: CycleFailed(dataset_exhausted) where `batches` hold another number of tokens than `n_tokens`.
    """
    n_seen, n_exempt_active = 0, 0
    largest = _Largest(sparsity.k * n_tokens)
    for x in batches:
        exempt, others = sae.pre_acts(x).tensor_split([sparsity.n_exempt], dim=1)
        n_seen, n_exempt_active = n_seen + len(x), n_exempt_active + int((exempt > 0).sum())
        largest.add(others)
    if n_seen != n_tokens:
        raise CycleFailed("dataset_exhausted", f"n_tokens = {n_seen}: the threshold needs {n_tokens}")
    budget = sparsity.budget(n_exempt_active, n_tokens=n_tokens)
    threshold = torch.zeros_like(sae.threshold)
    threshold[sparsity.n_exempt :] = largest.value_above_which(budget)
    return Calibration(threshold, n_tokens, n_exempt_active, budget)


class _Largest:
    """The `n_most` largest positive values of all that were added, and the next one."""

    def __init__(self, n_most: int) -> None:
        self._n_most = n_most
        self._found: list[Float[Tensor, " n_found"]] = []
        self._n_found = 0
        self._floor = 0.0

    def add(self, values: Float[Tensor, "batch n_latents"]) -> None:
        self._found.append(values[values > self._floor])
        self._n_found += len(self._found[-1])
        if self._n_found > 2 * self._n_most:
            self._found = [torch.cat(self._found).topk(self._n_most + 1, sorted=False).values]
            self._floor, self._n_found = self._found[0].min().item(), self._n_most + 1

    def value_above_which(self, n_kept: int) -> float:
        """Give the value above which `n_kept` (at most `n_most`) values lie; 0 where fewer are positive.

        It lies one float below the n_kept-th largest, so that strict > keeps this one too. Where more values
        equal that one than fit, it is that value, and the number kept is the closest one below.
        """
        if self._n_found < n_kept:
            return 0.0
        largest = torch.cat(self._found).topk(min(n_kept + 1, self._n_found)).values
        value = largest[n_kept - 1]
        is_tied = bool(largest[n_kept:].eq(value).any())
        return value.item() if is_tied else torch.nextafter(value, torch.zeros_like(value)).item()
