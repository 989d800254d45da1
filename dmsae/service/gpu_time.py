"""How long would a cycle take on a GPU, by arithmetic? Floating-point operations over a rate that is assumed.

No figure here is measured: what a card sustains differs with sizes, drivers and whatever else it runs.
"""

from dataclasses import dataclass

from dmsae.config import CycleConfig
from dmsae.service.known_models import ModelFacts
from dmsae.service.model_families import LayerSizes, count_layer

CARD = "NVIDIA H100 SXM"
PEAK = {"bfloat16": 989e12, "float32": 67e12}
"""Its dense peak a second; float32 without tensor cores, as torch computes unless told otherwise.

Source: NVIDIA's H100 data sheet.
"""
SUSTAINED = 0.4
"""Share of the peak that is assumed. Ours."""


@dataclass(frozen=True)
class GpuTime:
    """What one cycle computes, and how long that takes at the assumed rate."""

    model_flop: float
    """By the language model, in its own type."""
    sae_flop: float
    """By the SAE, in float32."""
    seconds: float


def estimate_gpu_time(config: CycleConfig, facts: ModelFacts) -> GpuTime | None:
    """Estimate one cycle; None where the tokens of a cycle or the sizes of the model are not known."""
    n_tokens = config.training.n_tokens
    if n_tokens is None or facts.layer is None or facts.n_layers is None or facts.d_model is None:
        return None
    layer_flop = _layer_flop(config, facts.layer, facts.d_model)
    lower = (config.activations.layer + 1) * layer_flop
    upper = (facts.n_layers - config.activations.layer - 1) * layer_flop
    upper += 2 * facts.d_model * (facts.n_vocab or 0)
    # the SAE: encode and decode; backward twice that, and the encoder's input again for b_dec
    sae_flop = 12.0 * config.sae.n_latents * facts.d_model * n_tokens
    # the training part is harvested once at most, be it kept or streamed; a later cycle may find it kept
    model_flop = float(n_tokens * lower + _measuring_flop(config, lower=lower, upper=upper))
    seconds = model_flop / PEAK[config.activations.model_dtype] + sae_flop / PEAK["float32"]
    return GpuTime(model_flop, sae_flop, seconds / SUSTAINED)


def _measuring_flop(config: CycleConfig, *, lower: float, upper: float) -> float:
    """Give what attribution (forward and backward), evaluation and ablations of single latents compute."""
    attribution, n_prefixes = config.attribution, len(config.sae.block_widths) + 1
    n_ablated = attribution.ablation_tokens * (1 + attribution.ablation_latents)
    return (
        attribution.n_tokens * (lower + 2 * upper)
        + config.evaluation.n_tokens * (lower + (n_prefixes + 4) * upper)
        + n_ablated * upper
    )


def _layer_flop(config: CycleConfig, layer: LayerSizes, d_model: int) -> float:
    """Give the operations of one layer for one token: two for each weight, and attention over the context."""
    return 2.0 * count_layer(layer, d_model) + 4.0 * layer.d_attention * config.data.context_length
