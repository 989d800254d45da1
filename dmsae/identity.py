"""Are the latents that were selected again still the same, and what is recorded of each?

Who was selected is decided in `selection.py`; how far a latent drifted is measured in `metrics.py`.
"""

from dataclasses import asdict
from statistics import median
from typing import Any

from dmsae.metrics import Drift
from dmsae.selection import Selection

IDENTITY_LOST_BELOW = 0.5
"""Median firing Jaccard of the kept latents under which their identity counts as lost (METHOD)."""


def median_jaccard(selection: Selection, drift: Drift | None) -> float | None:
    """Give the median firing Jaccard of the latents selected again; null where none of them has one."""
    if drift is None:
        return None
    parents = [latent.parent_core_index for latent in selection.core if latent.parent_core_index is not None]
    jaccards = [jaccard for parent in parents if (jaccard := drift.firing_jaccard[parent]) is not None]
    return median(jaccards) if jaccards else None


def is_identity_lost(jaccard: float | None) -> bool:
    """Say whether this median firing Jaccard is too low for the kept latents to be called the same."""
    return jaccard is not None and jaccard < IDENTITY_LOST_BELOW


def lineage_record(selection: Selection, drift: Drift | None) -> dict[str, Any]:
    """Give what `lineage.json` holds: the new core, what was dropped, and how far kept latents drifted.

    `drift` compares the latents of the core given, by their place in it; null in cycle 0.
    """
    core = []
    for latent in selection.core:
        parent = latent.parent_core_index
        cosine = jaccard = None
        if parent is not None and drift is not None:
            cosine, jaccard = drift.decoder_cosine[parent], drift.firing_jaccard[parent]
        core.append({**asdict(latent), "decoder_cosine": cosine, "firing_jaccard": jaccard})
    return {
        "cycle_index": selection.cycle_index,
        "n_candidates": selection.n_candidates,
        "n_core": len(selection.core),
        "n_new": selection.n_new,
        "n_kept": selection.n_kept,
        "n_dropped": len(selection.dropped),
        "retention": selection.retention,
        "share": selection.share,
        "is_truncated": selection.is_truncated,
        "identity_lost": is_identity_lost(median_jaccard(selection, drift)),
        "core": core,
        "dropped": [asdict(latent) for latent in selection.dropped],
    }
