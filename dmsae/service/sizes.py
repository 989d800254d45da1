"""How many bytes will a cycle store? Tensors exactly from the widths, everything else as a bound from above.

`dmsae/formats.py` and `dmsae/cycle_results.py` write the files; a test holds this against them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dmsae.config import CoreTrainingConfig, CycleConfig, CycleSpec, DistillationConfig
from dmsae.service.known_models import ModelFacts

FLOAT32_BYTES, FLOAT64_BYTES = 4, 8
TEXTS_BYTES = 32 << 10
"""Bound of what no width decides: the facts in `cfg.json` and `core.json`, `metrics.json`, the manifest."""
JOB_ID = "job_" + 32 * "0"
CYCLES_AT_MOST = 64
MOST_LATENTS = 16_777_216
"""Of any job, as `config.py` bounds them."""
FLOAT = -1.2345678901234567e-308
"""No float64 is longer in JSON."""


Config = DistillationConfig | CoreTrainingConfig


def stored_bytes(config: Config, facts: ModelFacts, cycle_index: int, *, n_given: int) -> int | None:
    """Give at most how many bytes a cycle stores that starts from a core of at most `n_given` latents.

    None while the model's width is not known.
    """
    if facts.d_model is None:
        return None
    n_candidates = config.prefix_widths(n_given)[0]
    n_selected = min(config.max_core, n_candidates)
    spec = CycleSpec(job_id=JOB_ID, cycle_index=cycle_index, config=config).model_dump_json(indent=1)
    stores_given = isinstance(config, CoreTrainingConfig) and n_given > 0
    return sum(
        (
            _given_bytes(facts.d_model, n_given) if stores_given else 0,
            sae_bytes(facts.d_model, config.sae.n_latents),
            core_bytes(facts.d_model, n_selected),
            scores_bytes(n_candidates, config.sae.n_latents),
            _identities_bytes(config, n_given=n_given, n_selected=n_selected),
            snippets_bytes(config, n_selected),
            2 * len(spec.encode()),
            TEXTS_BYTES,
        )
    )


def core_bound(config: DistillationConfig, cycle_index: int) -> int:
    """Give the most latents that the core which cycle t starts from can have.

    Source: DESIGN, dry run: c_t <= c_(t-1) + m_1, and never above max_core; cycle 0 starts from none.
    """
    return min(config.max_core, cycle_index * config.sae.block_widths[0])


def sae_bytes(d_model: int, n_latents: int) -> int:
    """Give the size of `sae/sae_weights.safetensors`."""
    shapes = {"W_dec": (n_latents, d_model), "W_enc": (d_model, n_latents)}
    return tensors_bytes(
        {**shapes, "b_dec": (d_model,), "b_enc": (n_latents,), "threshold": (n_latents,)}, "F32"
    )


def core_bytes(d_model: int, n_core: int) -> int:
    """Give the size of `core/core.safetensors`, whose tensors are those of an SAE of the core alone."""
    return sae_bytes(d_model, n_core)


def scores_bytes(n_candidates: int, n_latents: int) -> int:
    """Give the size of `scores.safetensors`: densities, and of each score value, error and two halves."""
    scores = ("absolute", "energy", "quantile", "signed")
    kinds = ("score", "score_half0", "score_half1", "score_se")
    names = sorted(f"{kind}_{score}" for kind in kinds for score in scores)
    densities = {"density": (n_candidates,), "density_all": (n_latents,)}
    return tensors_bytes({**densities, **dict.fromkeys(names, (n_candidates,))}, "F64")


def snippets_bytes(config: CycleConfig, n_selected: int) -> int:
    """Bound what `snippets/` holds of a core of at most so many latents."""
    kept = config.snippets
    return min(kept.budget_bytes, n_selected * kept.latent_bytes(1) + kept.place_bytes(n_selected))


def tensors_bytes(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Give the size of a safetensors file with these tensors, all of one type, ordered by their names."""
    width = {"F32": FLOAT32_BYTES, "F64": FLOAT64_BYTES}[dtype]
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset


def _given_bytes(d_model: int, n_given: int) -> int:
    """Bound what a training stores of the core that it was given: `given/`, its part of `lineage.json`."""
    floats = ("score", "share", "density", "encoder_norm")
    entry = {**_origin(CYCLES_AT_MOST, MOST_LATENTS), "origin_kind": "random_directions"}
    entry |= dict.fromkeys(("core_index", "parent_core_index", "sae_index", "rank"), MOST_LATENTS)
    each = _entry_bytes(entry | dict.fromkeys(floats, FLOAT)) + _entry_bytes(entry)
    return core_bytes(d_model, n_given) + n_given * each + TEXTS_BYTES


def _origin(cycle: int, index: int) -> dict[str, Any]:
    return {
        "latent_id": f"{JOB_ID}.{cycle}.{index}",
        "origin_job_id": JOB_ID,
        "origin_cycle": cycle,
        "origin_index": index,
        "times_selected": cycle,
    }


def _identities_bytes(config: CycleConfig, *, n_given: int, n_selected: int) -> int:
    """Bound what names latents: `lineage.json`, `core.json`, and the ids in `cfg.json`."""
    index = config.sae.n_latents
    cycle = config.n_cycles if isinstance(config, DistillationConfig) else CYCLES_AT_MOST
    origin = _origin(cycle, index)
    latent_id = origin["latent_id"]
    place = {"core_index": index, "sae_index": index, "score": FLOAT, "share": FLOAT, "rank": index}
    floats = ("score_se", "encoder_norm", "density", "decoder_cosine", "firing_jaccard")
    selected = {**origin, **place, **dict.fromkeys(floats, FLOAT)}
    selected |= {"parent_core_index": index, "is_borderline": False}
    dropped = {"latent_id": latent_id, **place}
    each_selected = _entry_bytes(selected) + _entry_bytes(origin) + _entry_bytes([index, latent_id])
    return n_selected * each_selected + n_given * (_entry_bytes(dropped) + _entry_bytes(latent_id))


def _entry_bytes(entry: Any) -> int:
    """Give the size of one entry of a list two levels deep, with its comma."""
    return len(json.dumps([[[entry]]], indent=1)) - len(json.dumps([[[]]], indent=1)) + 8
