"""How much memory does a probe take at most? The model, one pass through it, and latents side by side.

Rougher than `memory.py`, and from above: a probe trains nothing, so the model is nearly all of it.
"""

from dmsae.config import RunConfig
from dmsae.probe_config import MOST_TOKENS, CoreMatchConfig, LogitLensConfig, OtherObjects
from dmsae.service.known_models import ModelFacts
from dmsae.service.memory import CUDA_CONTEXT_BYTES, FLOAT32, PROCESS_BYTES, UPPER_POSITIONS

FLOAT64 = 8
COPIES = 6
"""Vectors as wide as the MLP that one layer holds at once for a position."""
UNKNOWN_OTHER = 1 << 16
"""Latents that a folder on a worker's disk is taken to hold: nothing here has looked into it."""


def peak_of_probe(config: RunConfig, facts: ModelFacts, *, n_core: int, n_other: int | None) -> int | None:
    """Give the bytes of its device that a probe holds at most; None where the model's sizes are not known."""
    if None in (facts.d_model, facts.n_vocab, facts.n_parameters) or facts.layer is None:
        return None
    d_model, n_vocab = facts.d_model or 0, facts.n_vocab or 0
    weight = 2 if config.activations.model_dtype == "bfloat16" else FLOAT32
    stored = facts.stored_bytes or weight
    is_cpu = config.device == "cpu"
    model = (facts.n_parameters or 0) * (weight + (stored if is_cpu and stored != weight else 0))
    latents = _latents(config, d_model, n_core=n_core, n_other=n_other)
    if isinstance(config, LogitLensConfig):
        passing = 2 * n_core * n_vocab * FLOAT32
    else:
        n_positions = MOST_TOKENS if not isinstance(config, CoreMatchConfig) else UPPER_POSITIONS
        scores = facts.layer.n_heads * n_positions * weight
        passing = n_positions * (FLOAT32 * (COPIES * facts.layer.d_mlp + 3 * d_model) + 2 * scores)
        passing += 0 if isinstance(config, CoreMatchConfig) else 4 * n_vocab * FLOAT32
    return round((PROCESS_BYTES if is_cpu else CUDA_CONTEXT_BYTES) + model + latents + passing)


def _latents(config: RunConfig, d_model: int, *, n_core: int, n_other: int | None) -> float:
    """Give the bytes of the latents, and of their cosines, those with random rows too."""
    core = 2 * n_core * d_model * FLOAT32
    if not isinstance(config, CoreMatchConfig):
        return core
    if n_other is None:
        n_other = _count_other(config, d_model)
    evaluated = config.evaluation.n_tokens * d_model * FLOAT32
    return core + 4 * n_other * d_model * FLOAT32 + 4 * n_core * n_other * FLOAT64 + evaluated


def _count_other(config: CoreMatchConfig, d_model: int) -> int:
    """Give how many latents an uploaded SAE can hold by its size."""
    if not isinstance(config.other, OtherObjects):
        return UNKNOWN_OTHER
    size_bytes = config.other.files[-1].size_bytes
    return UNKNOWN_OTHER if size_bytes is None else size_bytes // (2 * d_model * FLOAT32) + 1
