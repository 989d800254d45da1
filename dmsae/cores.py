"""What may a training be built around? The core of a cycle, a part of it, or a control of the same size.

Each is made from what one finished cycle stored (METHOD, Controls). Whether it fits the run is left to
`cycle_inputs.py`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from dmsae.errors import CycleFailed
from dmsae.randomness import named_generator
from dmsae.sae import Core, CoreLatent
from dmsae.source_cycles import Figures, SourceCycle
from dmsae.sources import (
    CoreSource,
    FilteredCore,
    FrequentCore,
    NoCore,
    RandomDirections,
    RandomLatents,
    SelectedCore,
)

WEAK_CONTROL_ABOVE = 0.5
"""Share of a control's latents that are in the core, above which it says little (METHOD, Controls)."""

NEAREST = 4
"""Among how many latents, those closest in density, a random one is drawn. Ours."""

MADE_OF_THE_CORE = ("selected", "filtered")
"""Kinds that are no controls."""

RANDOM = "random_directions"
"""Kind of origin of a latent that was drawn, not learned."""


@dataclass(frozen=True, kw_only=True)
class GivenLatent:
    """One latent of a core given; null is what it does not have or nobody measured."""

    core_index: int
    latent_id: str
    origin_job_id: str
    origin_cycle: int
    origin_index: int
    origin_kind: str
    parent_core_index: int | None
    """Its place in the core that the referenced cycle selected."""
    sae_index: int | None
    """Its row in the referenced cycle's SAE."""
    score: float | None
    share: float | None
    rank: int | None
    density: float | None
    encoder_norm: float


@dataclass(frozen=True, eq=False, kw_only=True)
class GivenCore:
    """The core that a training is built around, and how it came about."""

    kind: str
    seed: int | None
    """What it was drawn with; null where nothing was drawn."""
    core: Core
    latents: list[GivenLatent]

    @property
    def has_rows(self) -> bool:
        """Whether its latents are rows of the referenced SAE, with which they can be compared."""
        return all(latent.sae_index is not None for latent in self.latents)

    @property
    def overlap(self) -> float | None:
        """Share of its latents that are in the referenced cycle's core too; null for random directions."""
        if not self.has_rows:
            return None
        return sum(latent.parent_core_index is not None for latent in self.latents) / len(self.latents)

    @property
    def is_weak_control(self) -> bool | None:
        """Whether it is too much like the core that it is compared with; null where it is no control."""
        if self.kind in MADE_OF_THE_CORE:
            return None
        return self.overlap is not None and self.overlap > WEAK_CONTROL_ABOVE

    def to_lineage(self) -> dict[str, Any]:
        """Give what `lineage.json` holds of it."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            "overlap": self.overlap,
            "is_weak_control": self.is_weak_control,
            "core": [asdict(latent) for latent in self.latents],
        }


def make_given_core(wanted: CoreSource, sources_dir: Path | None, *, job_id: str) -> GivenCore | None:
    """Make the core that a training of `job_id` starts from; None where it starts from none.

    Raises: CycleFailed with `core_mismatch`, `core_empty`, `core_too_large` or `data_unreadable`.
    Source: METHOD, Controls.
    """
    if isinstance(wanted, NoCore):
        return None
    source = SourceCycle(sources_dir, wanted.cycle)
    if isinstance(wanted, SelectedCore):
        return _of_places(source, range(source.core.n_core), kind=wanted.kind)
    if isinstance(wanted, FilteredCore):
        return _of_places(source, unbroken_places(source, wanted.min_selected), kind=wanted.kind)
    if isinstance(wanted, RandomDirections):
        return _of_directions(source, wanted, job_id=job_id)
    if isinstance(wanted, RandomLatents):
        return _of_rows(source, random_rows(source, wanted.seed), kind=wanted.kind, seed=wanted.seed)
    name = "density" if isinstance(wanted, FrequentCore) else "score_energy"
    return _of_rows(source, top_rows(source.scores(name), source.core.n_core), kind=wanted.kind)


def unbroken_places(source: SourceCycle, min_selected: int) -> list[int]:
    """Give the places of the core's latents that at least so many unbroken cycles selected.

    Raises: CycleFailed(core_empty).
    """
    times = [latent.times_selected for latent in source.core.latents]
    places = [place for place, n in enumerate(times) if n >= min_selected]
    if not places:
        rule = f"leaves no latent: the core's were selected in at most {max(times)} cycles"
        param = "core.min_selected"
        raise CycleFailed("core_empty", f"{param} = {min_selected}: {rule}", param=param)
    return places


def top_rows(values: Float64[Tensor, " n_candidates"], n: int) -> list[int]:
    """Give the `n` candidates with the largest values, the largest first, ties by row."""
    rows: list[int] = values.argsort(descending=True, stable=True)[:n].tolist()
    return rows


def random_rows(source: SourceCycle, seed: int) -> list[int]:
    """Draw for each latent of the core another one from outside the first prefix, alike in density.

    Raises: CycleFailed(core_too_large) where there are fewer than the core has.
    """
    first, densities = source.n_candidates, source.scores("density_all")
    offered, n_core = densities[first:], source.core.n_core
    if len(offered) < n_core:
        rule = f"the cycle's SAE has {len(offered)} latents outside its first prefix"
        raise CycleFailed("core_too_large", f"core = {n_core} latents: {rule}", param="core")
    generator = named_generator(seed, "random_latents")
    drawn = draw_alike(densities[source.rows].tolist(), offered.tolist(), generator=generator)
    return [first + place for place in drawn]


def draw_alike(wanted: Sequence[float], offered: Sequence[float], *, generator: torch.Generator) -> list[int]:
    """Match each wanted density, in random order, with one of the nearest offered ones, each used once.

    Our choice: near is measured between square roots, which have the same error at every density, and one of
    the `NEAREST` that are left is drawn.
    """
    left = sorted((density**0.5, place) for place, density in enumerate(offered))
    drawn = [0] * len(wanted)
    for each in torch.randperm(len(wanted), generator=generator).tolist():
        root = wanted[each] ** 0.5
        middle = bisect_left(left, (root, -1))
        window = range(max(0, middle - NEAREST), min(len(left), middle + NEAREST))
        nearest = sorted(window, key=lambda at: abs(left[at][0] - root))[:NEAREST]
        pick = int(torch.randint(len(nearest), (), generator=generator))
        drawn[each] = left.pop(nearest[pick])[1]
    return drawn


def random_directions(
    norms: Float64[Tensor, " n"], d_model: int, *, seed: int
) -> Float64[Tensor, "n d_model"]:
    """Draw as many random directions as there are norms, each of its norm.

    float64, so that no order of sums, and so no number of threads, shows in the float32 that is made of it.
    """
    rows = torch.randn(
        len(norms), d_model, dtype=torch.float64, generator=named_generator(seed, "random_directions")
    )
    scaled: Tensor = rows * (norms / torch.linalg.vector_norm(rows, dim=1))[:, None]
    return scaled


def _of_places(source: SourceCycle, places: Sequence[int], *, kind: str) -> GivenCore:
    """Take latents of the core itself, bit for bit."""
    core, kept = source.core, list(places)
    part = replace(
        core,
        W_enc=core.W_enc[:, kept].contiguous(),
        W_dec=core.W_dec[kept],
        b_enc=core.b_enc[kept],
        threshold=core.threshold[kept],
        latents=[core.latents[place] for place in kept],
    )
    return GivenCore(kind=kind, seed=None, core=part, latents=_told(source, part, _rows_of(source, kept)))


def _of_rows(source: SourceCycle, rows: list[int], *, kind: str, seed: int | None = None) -> GivenCore:
    """Take latents of the SAE, as they were in it."""
    sae = source.sae
    core = replace(
        source.core,
        W_enc=sae.W_enc[:, rows].contiguous(),
        W_dec=sae.W_dec[rows],
        b_enc=sae.b_enc[rows],
        threshold=sae.threshold[rows],
        latents=[source.identity(row) for row in rows],
    )
    return GivenCore(kind=kind, seed=seed, core=core, latents=_told(source, core, rows))


def _of_directions(source: SourceCycle, wanted: RandomDirections, *, job_id: str) -> GivenCore:
    """Draw directions of their own, with the norms of the core's encoder vectors."""
    norms = torch.linalg.vector_norm(source.core.W_enc.double(), dim=0)
    rows = random_directions(norms, source.core.W_enc.shape[0], seed=wanted.seed)
    n_core = len(rows)
    names = [CoreLatent(f"{job_id}.0.{place}", job_id, 0, place, times_selected=0) for place in range(n_core)]
    core = replace(
        source.core,
        W_enc=rows.float().T.contiguous(),
        W_dec=(rows / norms[:, None]).float(),
        b_enc=torch.zeros(n_core),
        threshold=torch.zeros(n_core),
        latents=names,
    )
    return GivenCore(
        kind=wanted.kind, seed=wanted.seed, core=core, latents=_told(source, core, [None] * n_core)
    )


def _rows_of(source: SourceCycle, places: Sequence[int]) -> list[int]:
    return [source.rows[place] for place in places]


def _told(source: SourceCycle, core: Core, rows: Sequence[int | None]) -> list[GivenLatent]:
    """Say who each latent of a core given is, and what the referenced cycle measured of it."""
    norms = torch.linalg.vector_norm(core.W_enc.double(), dim=0).tolist()
    return [
        GivenLatent(
            core_index=core_index,
            latent_id=latent.latent_id,
            origin_job_id=latent.origin_job_id,
            origin_cycle=latent.origin_cycle,
            origin_index=latent.origin_index,
            origin_kind=RANDOM if row is None else source.origin_kind(latent.latent_id),
            parent_core_index=None if row is None else source.place(row),
            sae_index=row,
            encoder_norm=norm,
            **(Figures() if row is None else source.figures(row))._asdict(),
        )
        for core_index, (row, latent, norm) in enumerate(zip(rows, core.latents, norms, strict=True))
    ]
