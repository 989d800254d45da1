"""What would a distillation cost? Widths, memory and time, each with where the figure comes from."""

from typing import Any

from dmsae.config import DistillationConfig
from dmsae.service.known_models import ModelFacts
from dmsae.service.sizes import core_bound, stored_bytes

FLOAT32_BYTES = 4


def describe(config: DistillationConfig, facts: ModelFacts) -> dict[str, Any]:
    """Describe a resolved config: the widths of every cycle, and what one cycle needs at most."""
    cycles = [_widths(config, facts, index) for index in range(config.n_cycles)]
    return {
        "config": config.model_dump(mode="json"),
        "max_core": config.max_core,
        "cycles": cycles,
        "memory": _memory(config, facts),
        "time": {
            "value": None,
            "unit": "s",
            "source": "No estimate: the speed of the worker that will run it is not known before it starts.",
        },
    }


def _widths(config: DistillationConfig, facts: ModelFacts, cycle_index: int) -> dict[str, Any]:
    n_core = core_bound(config, cycle_index)
    return {
        "cycle_index": cycle_index,
        "is_exact": cycle_index == 0,
        "n_core": n_core,
        "prefix_widths": config.prefix_widths(n_core),
        "stored_bytes": stored_bytes(config, facts, cycle_index),
    }


def _memory(config: DistillationConfig, facts: ModelFacts) -> dict[str, Any]:
    if facts.d_model is None or facts.n_parameters is None or facts.n_vocab is None:
        source = f"No estimate: the sizes of {facts.name} are known only once the worker has opened it."
        return {"value": None, "unit": "bytes", "source": source}
    d_model, n_latents = facts.d_model, config.sae.n_latents
    n_weights = 2 * n_latents * d_model + n_latents + d_model
    state = 4 * n_weights
    buffers = config.training.batch_tokens * (4 * n_latents + (len(config.sae.block_widths) + 4) * d_model)
    contexts = config.activations.model_batch_contexts * config.data.context_length
    window = 2 * config.activations.shuffle_window_contexts * config.data.context_length * d_model
    logits = 3 * contexts * facts.n_vocab
    return {
        "value": FLOAT32_BYTES * (state + buffers + window + facts.n_parameters + logits),
        "unit": "bytes",
        "source": "Computed for float32: SAE weights, gradients and Adam's two moments; one batch's "
        "activations; two shuffle windows; the whole language model; logits of one forward and backward "
        "pass. Python, libraries and the tokenised text (about 1 GiB) come on top.",
    }
