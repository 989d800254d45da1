"""Which latents of several chains' final cores are the same? One to one, by decoder, then by firing.

Encoder vectors are frozen from the cycle on that first selected them, so they say nothing about what was
found again (METHOD, Identity). Which SAEs are compared, and on which tokens, is left to `match_run.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dmsae.sae import Core

Pair = tuple[int, int]
"""Two of the cores, by their places, the smaller one first."""


class Aligned(NamedTuple):
    """Latents of two cores that point the same way, one to one."""

    a_indices: list[int]
    b_indices: list[int]
    cosines: list[float]
    best_cosine: float
    """Mean over the latents of a of their largest cosine with any latent of b."""
    best_cosine_random: float
    """The same with as many random unit rows in the place of b's: what chance gives."""


class Match(NamedTuple):
    """Two latents that point the same way and fire together."""

    a_index: int
    b_index: int
    decoder_cosine: float
    firing_correlation: float


def align(
    a: Float[Tensor, "n_a d_model"],
    b: Float[Tensor, "n_b d_model"],
    *,
    min_cosine: float,
    generator: torch.Generator,
) -> Aligned:
    """Pair decoder rows one to one so that the cosines of pairs that reach `min_cosine` sum to the most.

    Our choice: pairs below it count for nothing, so that none of them decides about those above it.
    """
    cosines = _unit(a) @ _unit(b).T
    worth = torch.where(cosines >= min_cosine, cosines, 0.0)
    found_a, found_b = linear_sum_assignment(worth.numpy(), maximize=True)
    pairs = [(int(i), int(j)) for i, j in zip(found_a, found_b, strict=True) if cosines[i, j] >= min_cosine]
    chance = _unit(a) @ _unit(torch.randn(b.shape, dtype=torch.float64, generator=generator)).T
    return Aligned(
        a_indices=[i for i, _ in pairs],
        b_indices=[j for _, j in pairs],
        cosines=[cosines[i, j].item() for i, j in pairs],
        best_cosine=cosines.max(dim=1).values.mean().item(),
        best_cosine_random=chance.max(dim=1).values.mean().item(),
    )


def align_all(
    cores: Sequence[Core], *, min_cosine: float, generators: Mapping[Pair, torch.Generator]
) -> dict[Pair, Aligned]:
    """Pair the latents of every two cores."""
    return {
        (a, b): align(cores[a].W_dec, cores[b].W_dec, min_cosine=min_cosine, generator=generators[a, b])
        for a, b in pairs_of(len(cores))
    }


def pairs_of(n_cores: int) -> list[Pair]:
    """Give every two cores."""
    return list(combinations(range(n_cores), 2))


class Firings:
    """Sums over tokens from which the correlation of paired latents' activations follows, in float64."""

    def __init__(self, cores: Sequence[Core], aligned: Mapping[Pair, Aligned], device: torch.device) -> None:
        self.n_tokens = 0
        self._cores = [core.to(device) for core in cores]
        self._aligned = aligned
        self._sums = [torch.zeros(core.n_core, dtype=torch.float64) for core in cores]
        self._squares = [torch.zeros(core.n_core, dtype=torch.float64) for core in cores]
        self._products = {
            pair: torch.zeros(len(found.cosines), dtype=torch.float64) for pair, found in aligned.items()
        }

    def add(self, x: Float[Tensor, "n_tokens d_model"]) -> None:
        """Let every core's latents read some raw activations, each core at its own scale."""
        self.n_tokens += len(x)
        acts = [core_acts(core, x / core.rms).double() for core in self._cores]
        for place, each in enumerate(acts):
            self._sums[place] += each.sum(dim=0).cpu()
            self._squares[place] += each.square().sum(dim=0).cpu()
        for (a, b), found in self._aligned.items():
            product = acts[a][:, found.a_indices] * acts[b][:, found.b_indices]
            self._products[a, b] += product.sum(dim=0).cpu()

    def correlations(self, pair: Pair) -> list[float | None]:
        """Give the correlation of each two paired latents; null where one of them never varies."""
        (a, b), found = pair, self._aligned[pair]
        mean_a, variance_a = self._moments(a, found.a_indices)
        mean_b, variance_b = self._moments(b, found.b_indices)
        covariance = self._products[pair] / self.n_tokens - mean_a * mean_b
        spread = (variance_a * variance_b).sqrt()
        return [
            value / scale if scale > 0 else None
            for value, scale in zip(covariance.tolist(), spread.tolist(), strict=True)
        ]

    def _moments(self, core: int, indices: list[int]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        mean = self._sums[core][indices] / self.n_tokens
        variance = self._squares[core][indices] / self.n_tokens - mean.square()
        # what a float64 sum may be off by is no variation
        return mean, torch.where(variance > 1e-12 * mean.square(), variance, 0.0)


def core_acts(core: Core, x: Float[Tensor, "n_tokens d_model"]) -> Float[Tensor, "n_tokens n_core"]:
    """Give the activations of a core's latents, as they are in the SAE that selected them; normalised."""
    pre_acts = (x - core.b_dec) @ core.W_enc + core.b_enc
    return torch.where(pre_acts > core.threshold, pre_acts, 0.0)


def matches_of(
    found: Aligned, correlations: Sequence[float | None], *, min_correlation: float
) -> list[Match]:
    """Keep the pairs that fire together as well."""
    return [
        Match(a, b, cosine, correlation)
        for a, b, cosine, correlation in zip(
            found.a_indices, found.b_indices, found.cosines, correlations, strict=True
        )
        if correlation is not None and correlation >= min_correlation
    ]


def reproduced(cores: Sequence[Core], matches: Mapping[Pair, Sequence[Match]]) -> list[list[str]]:
    """Name for each core the latents that at least one other core matches, in the core's order.

    Our choice: a latent that both cores were given is the same one, not one that was found again.
    """
    found: list[set[int]] = [set() for _ in cores]
    for (a, b), pairs in matches.items():
        for match in pairs:
            if not is_same(cores[a], cores[b], match):
                found[a].add(match.a_index)
                found[b].add(match.b_index)
    return [
        [latent.latent_id for place, latent in enumerate(core.latents) if place in places]
        for core, places in zip(cores, found, strict=True)
    ]


def is_same(a: Core, b: Core, match: Match) -> bool:
    """Say whether two latents that match are one and the same by their identity."""
    return a.latents[match.a_index].latent_id == b.latents[match.b_index].latent_id


def _unit(rows: Float[Tensor, "n d_model"]) -> Float64[Tensor, "n d_model"]:
    return torch.nn.functional.normalize(rows.double(), dim=1)
