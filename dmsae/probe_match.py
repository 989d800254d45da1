"""Which latents of a finished core are found elsewhere too: in another cycle's core, in anybody's SAE?

One to one by decoder, as in `matching.py`, beside what chance gives; and how far they fire together on the
evaluation part of the core's own text, where that can be had.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from dmsae.config import RunConfig
from dmsae.cycle_inputs import Places
from dmsae.cycle_text import OpenText, open_text
from dmsae.errors import CycleFailed
from dmsae.foreign_saes import read_foreign
from dmsae.hooks import HookPoint
from dmsae.match_run import harvest_evaluation, least_limit
from dmsae.matching import Aligned, Firings, align
from dmsae.models import LoadedModel
from dmsae.pace import Clock
from dmsae.probe_config import CoreMatchConfig, OtherCycle, OtherFolder
from dmsae.randomness import named_generator
from dmsae.reporting import Report
from dmsae.sae import Core, CoreLatent, Provenance
from dmsae.source_cycles import SourceCycle
from dmsae.splicing import kept, split_rows
from dmsae.text_files import find_local_files

SAME_SPACE = ("model_revision", "hook", "dtype")
"""What two cores' activations must share for their directions to be compared."""


class Opened(NamedTuple):
    """What a core is compared with."""

    W_dec: Float[Tensor, "n_latents d_model"]
    reads: Core | None
    """What its latents read; None where `trouble` says why that cannot be had."""
    latents: list[CoreLatent]
    """Who they are; empty where nobody here trained them."""
    trouble: str | None
    told: dict[str, Any]
    """What its folder says of itself."""


@dataclass(frozen=True)
class Evaluation:
    """What reads the evaluation part for a match."""

    config: RunConfig
    loaded: LoadedModel
    hook: HookPoint
    report: Report
    places: Places
    text: OpenText
    max_norm: float


def open_other(config: CoreMatchConfig, core: Core, places: Places) -> Opened:
    """Read what a core is compared with.

    Raises: CycleFailed with `core_mismatch` or `data_unreadable`, naming `other`.
    """
    if isinstance(config.other, OtherCycle):
        other = SourceCycle(places.sources_dir, config.other.ref, param="other").core
        require_same_space(other, core.provenance, param="other")
        return Opened(other.W_dec, other, other.latents, None, {})
    found = read_foreign(_sae_files(config, places), beside=core)
    return Opened(found.W_dec, found.reads, [], found.trouble, found.told)


def require_same_space(core: Core, provenance: Provenance, *, param: str) -> None:
    """Refuse activations of another space than those that a core was found on.

    Raises: CycleFailed with `core_mismatch`, naming the first field that differs.
    """
    for name in SAME_SPACE:
        own, given = getattr(core.provenance, name), getattr(provenance, name)
        if own != given:
            message = f"{param}: was found with {name} = {own!r}, and this is {given!r}."
            raise CycleFailed("core_mismatch", message, param=param)


class Bench(NamedTuple):
    """What a match works with."""

    loaded: LoadedModel
    hook: HookPoint
    places: Places
    report: Report
    clock: Clock


def match_core(config: CoreMatchConfig, core: Core, other: Opened, *, bench: Bench) -> dict[str, Any]:
    """Give what `probe.json` says of a match: pairs, how alike they are, and what chance gives.

    Raises: CycleFailed.
    """
    bench.clock.enter("evaluating")
    generator = named_generator(config.seed, "probe", "match")
    aligned = align(core.W_dec, other.W_dec, min_cosine=config.decoder_cosine, generator=generator)
    correlations: list[float | None] = [None] * len(aligned.cosines)
    n_tokens = 0
    if other.reads is not None and aligned.cosines:
        bench.clock.enter("harvesting")
        readers = core.only(aligned.a_indices), other.reads.only(aligned.b_indices)
        firings = read_pairs(readers, _open_evaluation(config, readers, bench))
        correlations, n_tokens = firings.correlations((0, 1)), firings.n_tokens
    return {
        "other": config.other.model_dump(mode="json"),
        "other_says": other.told,
        "n_latents": core.n_core,
        "n_latents_other": len(other.W_dec),
        "decoder_cosine": config.decoder_cosine,
        "n_matches": len(aligned.cosines),
        "share_matched": len(aligned.cosines) / core.n_core,
        "best_cosine": aligned.best_cosine,
        "best_cosine_random": aligned.best_cosine_random,
        "n_tokens": n_tokens,
        "firing_trouble": other.trouble,
        "matches": _entries(core, other, aligned, correlations),
    }


def read_pairs(readers: tuple[Core, Core], run: Evaluation) -> Firings:
    """Let the latents of two cores, paired in order, read the evaluation part."""
    n_pairs = readers[0].n_core
    in_order = list(range(n_pairs))
    pairs = Aligned(in_order, in_order, [1.0] * n_pairs, 1.0, 1.0)
    firings = Firings(readers, {(0, 1): pairs}, run.loaded.device)
    for batch in split_rows(harvest_evaluation(run)):
        firings.add(kept(batch, run.loaded.device))
    return firings


def _open_evaluation(config: CoreMatchConfig, readers: tuple[Core, Core], bench: Bench) -> Evaluation:
    """Open the text on which firing is compared.

    Raises: CycleFailed.
    """
    places = bench.places
    text = open_text(
        config.data,
        inputs_dir=places.inputs_dir,
        allowed_roots=places.allowed_roots,
        cache_dir=places.cache_dir,
    )
    max_norm = least_limit(readers, config.activations)
    return Evaluation(config, bench.loaded, bench.hook, bench.report, places, text, max_norm)


def _entries(
    core: Core, other: Opened, aligned: Aligned, correlations: list[float | None]
) -> list[dict[str, Any]]:
    """Describe each pair, the most alike first, of equals the first of the core."""
    found = zip(aligned.a_indices, aligned.b_indices, aligned.cosines, correlations, strict=True)
    entries = []
    for row, other_row, cosine, correlation in sorted(found, key=lambda pair: (-pair[2], pair[0])):
        own_id = core.latents[row].latent_id
        other_id = other.latents[other_row].latent_id if other.latents else None
        entries.append(
            {
                "latent_id": own_id,
                "core_index": row,
                "other_latent_id": other_id,
                "other_index": other_row,
                "decoder_cosine": cosine,
                "firing_correlation": correlation,
                "is_same_latent": own_id == other_id,
            }
        )
    return entries


def _sae_files(config: CoreMatchConfig, places: Places) -> list[Path]:
    """Find the files of an SAE that is not of a cycle, as `read_foreign` takes them.

    Raises: CycleFailed with `data_unreadable`: one is not there, or outside the allowed roots.
    """
    other = config.other
    if isinstance(other, OtherFolder):
        roots = places.allowed_roots
        try:
            return [find_local_files([file], allowed_roots=roots)[0].path for file in other.files]
        except CycleFailed as failure:
            message = failure.message.replace(str(failure.param), "other.path", 1)
            raise CycleFailed(failure.failure, message, param="other.path") from failure
    if isinstance(other, OtherCycle) or places.inputs_dir is None:
        told = "other: what was uploaded must lie in the folder --inputs, and none was given."
        raise CycleFailed("data_unreadable", told, param="other")
    return [places.inputs_dir / stored.file_name for stored in other.files]
