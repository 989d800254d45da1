"""Which latents are active: by BatchTopK in training, by a threshold afterwards, and who is exempt from both?

Budgets are counts of activations over a whole batch, exact and rounded once (METHOD 4, 7).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from dmsae.config import SaeConfig
from dmsae.errors import CycleFailed
from dmsae.sae import MatryoshkaSae

GUESSED = 2
"""The search for a threshold looks above what so many times the first batch's budget reaches."""


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


class EncodeAbove(Protocol):
    """Encodes a batch as far as a threshold needs it."""

    def __call__(
        self, x: Float[Tensor, "batch d_model"], *, floor: float, n_most: int
    ) -> tuple[int, Float[Tensor, " n_found"]]:
        """Give how many activations of the exempt are positive, and those of the others above `floor`.

        Of these the `n_most` largest will do; more, and lower positive ones, do no harm.
        """


def encode_all(sae: MatryoshkaSae, sparsity: Sparsity) -> EncodeAbove:
    """Encode by the dense product, on any device."""

    def encode(
        x: Float[Tensor, "batch d_model"], *, floor: float, n_most: int
    ) -> tuple[int, Float[Tensor, " n_found"]]:
        del n_most
        exempt, others = sae.pre_acts(x).tensor_split([sparsity.n_exempt], dim=1)
        return int((exempt > 0).sum()), others[others > floor]

    return encode


@torch.no_grad()
def calibrate(
    sae: MatryoshkaSae,
    batches: Iterable[Float[Tensor, "batch d_model"]],
    sparsity: Sparsity,
    *,
    n_tokens: int,
    encode: EncodeAbove | None = None,
) -> Calibration:
    """Find the threshold at which the mean L0 over all tokens of `batches` is the budget (METHOD 7).

    The budget is that of all these tokens as one batch. The threshold is 0 for the exempt, which is ReLU, and
    one value for the others. Encodes by the dense product where `encode` is not given. Looks only above a
    guess made of the first batch, and goes over `batches` once more where that proves too high. Memory: 3 k
    n_tokens floats, and what `encode` takes for a batch.

    Raises: CycleFailed(dataset_exhausted) where `batches` hold another number of tokens than `n_tokens`.
    """
    encode = encode_all(sae, sparsity) if encode is None else encode
    for is_guessed in (True, False):
        largest = _Largest(sparsity.budget(0, n_tokens=n_tokens))
        n_seen, n_exempt_active = 0, 0
        for batch in batches:
            x = batch.to(sae.b_dec.device)
            if is_guessed and n_seen == 0:
                largest.start_above(_guess(x, sparsity, encode))
            n_active, others = encode(x, floor=largest.floor, n_most=largest.n_kept)
            largest.add(others)
            n_seen, n_exempt_active = n_seen + len(x), n_exempt_active + n_active
        if n_seen != n_tokens:
            raise CycleFailed("dataset_exhausted", f"n_tokens = {n_seen}: the threshold needs {n_tokens}")
        budget = sparsity.budget(n_exempt_active, n_tokens=n_tokens)
        if largest.is_known(budget):
            break
    threshold = torch.zeros_like(sae.threshold)
    threshold[sparsity.n_exempt :] = largest.value_above_which(budget)
    return Calibration(threshold, n_tokens, n_exempt_active, budget)


def _guess(x: Float[Tensor, "batch d_model"], sparsity: Sparsity, encode: EncodeAbove) -> float:
    """Give what `GUESSED` times these tokens' budget lies at or above; 0 where fewer are positive."""
    n_most = GUESSED * sparsity.k * len(x)
    _, others = encode(x, floor=0.0, n_most=n_most)
    return float(_nth_largest(others.cpu().numpy(), n_most)) if len(others) >= n_most else 0.0


class _Largest:
    """The `n_most` largest positive values of all that were added, and the next one, on the host."""

    def __init__(self, n_most: int) -> None:
        self.n_kept = n_most + 1
        self.floor = self._start = 0.0
        self._found: list[NDArray[np.float32]] = []
        self._n_found = 0

    def start_above(self, start: float) -> None:
        """Leave out what is at or below `start`, on trust that enough will lie above."""
        self.floor = self._start = start

    def add(self, values: Float[Tensor, " n_found"]) -> None:
        """Add values; those at or below `floor` no longer count."""
        new = values[values > self.floor].cpu().numpy()
        self._found.append(new)
        self._n_found += len(new)
        if self._n_found >= 2 * self.n_kept:
            self._forget()

    def is_known(self, n: int) -> bool:
        """Tell whether the `n` largest are among what was found, or all positive ones where fewer are."""
        return self._start == 0 or self._n_found >= n

    def value_above_which(self, n_kept: int) -> float:
        """Give the value above which `n_kept` (at most `n_most`) values lie; 0 where fewer are positive.

        It lies one float below the n_kept-th largest, so that strict > keeps this one too. Where more values
        equal that one than fit, it is that value, and the number kept is the closest one below.
        """
        if self._n_found < n_kept:
            return 0.0
        values = np.concatenate(self._found)
        value = _nth_largest(values, n_kept)
        is_tied = np.count_nonzero(values >= value) > n_kept
        return float(value if is_tied else np.nextafter(value, np.float32(0)))

    def _forget(self) -> None:
        """Leave `n_kept` values; of those that equal the least of them, as many as there is room for."""
        values = np.concatenate(self._found)
        least = _nth_largest(values, self.n_kept)
        above = values[values > least]
        self._found = [above, np.full(self.n_kept - len(above), least)]
        self._n_found, self.floor = self.n_kept, float(least)


def _nth_largest(values: NDArray[np.float32], n: int) -> np.float32:
    place = len(values) - n
    nth: np.float32 = np.partition(values, place)[place]
    return nth
