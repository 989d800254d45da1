"""Which candidates become the next core, and who are they?

An entry of the core given stays who it is, a new one begins here. How candidates are scored is left to
`attribution.py`, which hold the wanted share to `choosing.py`.
"""

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypedDict

import torch

from dmsae.activations import Scale
from dmsae.attribution import Attribution
from dmsae.choosing import Choice, Halves, choose, compare_halves, effective_number, require_meaningful
from dmsae.config import CycleSpec
from dmsae.errors import CycleFailed
from dmsae.sae import Core, CoreLatent, MatryoshkaSae, Provenance


@dataclass(frozen=True, kw_only=True)
class SelectedLatent:
    """One entry of the new core."""

    core_index: int
    sae_index: int
    latent_id: str
    origin_job_id: str
    origin_cycle: int
    origin_index: int
    parent_core_index: int | None
    """Its place in the core given; null when new."""
    times_selected: int
    """Cycles without a break that selected it, this one included."""
    score: float
    score_se: float | None
    """Over documents; null where there was one only."""
    share: float
    """Of the total score of this cycle's candidates."""
    rank: int
    """Place among all candidates; 0 is the strongest."""
    encoder_norm: float
    density: float
    is_borderline: bool
    """Selected on one half of the documents, not on the other."""


@dataclass(frozen=True, kw_only=True)
class DroppedLatent:
    """One entry of the core given that is not selected again."""

    core_index: int
    """Its place in the core given, which is its row in this SAE too."""
    sae_index: int
    latent_id: str
    score: float
    share: float
    rank: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The new core of a cycle and what became of the one it was given."""

    cycle_index: int
    n_candidates: int
    n_wanted: int
    """Latents that the wanted share takes; more than `n_core` where `max_core` cut it."""
    share: float
    """Share of the total score that the new core holds."""
    effective_n: float
    """exp(H) of the candidates' shares: over how many latents the score is spread."""
    halves: Halves
    core: list[SelectedLatent]
    """By core_index: latents of the core given first, in their old order, then new ones by rank."""
    dropped: list[DroppedLatent]

    @property
    def n_kept(self) -> int:
        """Latents of the core given that were selected again."""
        return sum(latent.parent_core_index is not None for latent in self.core)

    @property
    def n_new(self) -> int:
        """Latents that were in no core before."""
        return len(self.core) - self.n_kept

    @property
    def is_truncated(self) -> bool:
        """Whether `max_core` cut the set that holds the wanted share."""
        return self.n_wanted > len(self.core)

    @property
    def retention(self) -> float | None:
        """Share of the core given that was selected again; null without one."""
        n_given = self.n_kept + len(self.dropped)
        return self.n_kept / n_given if n_given else None

    def to_metrics(self) -> dict[str, Any]:
        """Give this cycle's entries of `metrics.json`."""
        return {
            "n_candidates": self.n_candidates,
            "n_core": len(self.core),
            "n_new": self.n_new,
            "n_kept": self.n_kept,
            "n_dropped": len(self.dropped),
            "retention": self.retention,
            "core_change": core_change(self),
            "share": self.share,
            "is_truncated": self.is_truncated,
            "n_borderline": sum(latent.is_borderline for latent in self.core),
            "core_density": median(latent.density for latent in self.core),
            "halves": self.halves.to_metrics(),
            "score_effective_n": self.effective_n,
            "score_effective_fraction": self.effective_n / self.n_candidates,
        }


class _Figures(TypedDict):
    score: float
    score_se: float | None
    share: float
    rank: int
    encoder_norm: float
    density: float
    is_borderline: bool


def select(attribution: Attribution, sae: MatryoshkaSae, *, spec: CycleSpec, given: Core | None) -> Selection:
    """Select the core of this cycle among the candidates and give each member its identity.

    `given` is the core that `sae` was built around, its latents in rows 0 to n_core - 1.

    Raises: CycleFailed(degenerate_scores), see `require_meaningful`; CycleFailed(core_mismatch).
    Source: METHOD 9 and "Identity and lineage". Our choice: the order of the new core.
    """
    given_latents = given.latents if given else []
    if len(given_latents) != sae.n_core:
        rule = f"must be the {sae.n_core} latents that the SAE was built around"
        raise CycleFailed("core_mismatch", f"core = {len(given_latents)} latents: {rule}", param="core")
    n_given, config, name = sae.n_core, spec.config, spec.config.attribution.score
    scores = attribution.scores[name].tolist()
    require_meaningful(scores, name)
    fraction, max_core = config.selection.attribution_fraction, config.max_core
    choice = choose(scores, fraction=fraction, max_core=max_core)
    first, second = (half[name].tolist() for half in attribution.half_scores)
    halves = compare_halves(first, second, fraction=fraction, max_core=max_core)
    figures = _figures(attribution, sae, choice=choice, halves=halves, name=name)
    members = sorted(index for index in choice.members if index < n_given)
    members += [index for index in choice.members if index >= n_given]
    core = [
        SelectedLatent(
            core_index=core_index,
            sae_index=index,
            parent_core_index=index if index < n_given else None,
            **_identity(given_latents[index] if index < n_given else None, spec, index),
            **figures[index],
        )
        for core_index, index in enumerate(members)
    ]
    return Selection(
        cycle_index=spec.cycle_index,
        n_candidates=len(scores),
        n_wanted=choice.n_wanted,
        share=choice.share,
        effective_n=effective_number(scores, choice.total),
        halves=halves,
        core=core,
        dropped=_dropped(given_latents, set(members), figures),
    )


def core_change(selection: Selection) -> float | None:
    """Give the share of the latents of old and new core that stand in one only; null without an old core.

    Our choice: symmetric difference over union.
    """
    n_changed = selection.n_new + len(selection.dropped)
    if selection.retention is None:
        return None
    return n_changed / (n_changed + selection.n_kept)


def build_core(selection: Selection, sae: MatryoshkaSae, *, scale: Scale, provenance: Provenance) -> Core:
    """Cut the selected latents out of `sae`, bit for bit, as the core that the next cycle is given."""
    rows = torch.tensor([latent.sae_index for latent in selection.core])
    return Core(
        W_enc=sae.W_enc[:, rows].contiguous(),
        W_dec=sae.W_dec[rows],
        b_enc=sae.b_enc[rows],
        threshold=sae.threshold[rows],
        b_dec=sae.b_dec.clone(),
        rms=scale.rms,
        median_norm=scale.median_norm,
        provenance=provenance,
        latents=[
            CoreLatent(
                latent_id=latent.latent_id,
                origin_job_id=latent.origin_job_id,
                origin_cycle=latent.origin_cycle,
                origin_index=latent.origin_index,
                times_selected=latent.times_selected,
            )
            for latent in selection.core
        ],
    )


def _figures(
    attribution: Attribution, sae: MatryoshkaSae, *, choice: Choice, halves: Halves, name: str
) -> list[_Figures]:
    """Give the figures of every candidate."""
    ranks = {index: rank for rank, index in enumerate(choice.ranking)}
    columns = zip(
        attribution.scores[name].tolist(),
        attribution.standard_errors[name].tolist(),
        attribution.densities.tolist(),
        sae.W_enc.norm(dim=0).tolist(),
        strict=False,  # the encoder goes on beyond the candidates
    )
    return [
        _Figures(
            score=score,
            score_se=error if math.isfinite(error) else None,
            share=score / choice.total,
            rank=ranks[index],
            encoder_norm=norm,
            density=density,
            is_borderline=index in halves.borderline,
        )
        for index, (score, error, density, norm) in enumerate(columns)
    ]


def _identity(parent: CoreLatent | None, spec: CycleSpec, sae_index: int) -> dict[str, Any]:
    """Give who a latent is: who it was in the core given, or a new one of this cycle."""
    if parent is not None:
        return {**asdict(parent), "times_selected": parent.times_selected + 1}
    return {
        "latent_id": f"{spec.job_id}.{spec.cycle_index}.{sae_index}",
        "origin_job_id": spec.job_id,
        "origin_cycle": spec.cycle_index,
        "origin_index": sae_index,
        "times_selected": 1,
    }


def _dropped(given: list[CoreLatent], members: set[int], figures: list[_Figures]) -> list[DroppedLatent]:
    return [
        DroppedLatent(
            core_index=index,
            sae_index=index,
            latent_id=latent.latent_id,
            score=figures[index]["score"],
            share=figures[index]["share"],
            rank=figures[index]["rank"],
        )
        for index, latent in enumerate(given)
        if index not in members
    ]
