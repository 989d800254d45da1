"""How large is a language model, by what its `config.json` says?

Families that are not named here have their sizes read where they show, but nothing is counted from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOST = 1 << 40


@dataclass(frozen=True)
class Family:
    """What the layers of one family have, beside what their config says."""

    n_norms: int
    """Norms of a layer."""
    is_gated: bool
    """Whether the MLP has a gate: three matrices, no biases; else two matrices with biases."""
    has_layer_norm: bool = False
    """LayerNorm, with a bias, in place of RMSNorm."""
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_head_norms: bool = False
    """A norm over each head's queries and keys."""
    has_positions: bool = False
    """A learned embedding of each position."""
    is_tied: bool = False
    """Whether the head is the embedding where the config does not say."""
    d_head: int | None = None
    """Of a config that does not say; None: d_model / n_heads."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(n_norms=2, is_gated=True),
    "mistral": Family(n_norms=2, is_gated=True),
    "qwen2": Family(n_norms=2, is_gated=True, has_qkv_bias=True),
    "qwen3": Family(n_norms=2, is_gated=True, has_head_norms=True, d_head=128),
    "gemma": Family(n_norms=2, is_gated=True, is_tied=True, d_head=256),
    "gemma2": Family(n_norms=4, is_gated=True, is_tied=True, d_head=256),
    "gpt2": Family(
        n_norms=2, is_gated=False, has_layer_norm=True, has_qkv_bias=True, has_out_bias=True,
        has_positions=True, is_tied=True,
    ),
    "gpt_neox": Family(
        n_norms=2, is_gated=False, has_layer_norm=True, has_qkv_bias=True, has_out_bias=True
    ),
}  # fmt: skip
"""By `model_type`; counts are tested against transformers' own models."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "d_model": ("hidden_size", "n_embd"),
    "n_layers": ("num_hidden_layers", "n_layer"),
    "n_vocab": ("vocab_size",),
    "n_positions": ("max_position_embeddings", "n_positions"),
    "n_heads": ("num_attention_heads", "n_head"),
}
"""Size -> what configs call it."""


@dataclass(frozen=True)
class LayerSizes:
    """The widths inside a layer, of a family that is known."""

    family: Family
    d_mlp: int
    d_attention: int
    """Heads times their width: queries, and what goes into the output matrix."""
    d_key_value: int
    """The same of keys, or of values, which heads may share."""
    n_heads: int
    is_capped: bool
    """Whether attention logits are soft-capped, which only eager attention computes."""
    is_capped_at_end: bool
    """Whether the final logits are."""
    has_biases: tuple[bool, bool, bool]
    """Of queries, keys and values; of the attention's output; of the MLP."""
    is_tied: bool


def read_size(config: Mapping[str, Any], name: str) -> int | None:
    """Read a size under whatever name a config has it; None where it is no sensible number."""
    for key in NAMES.get(name, (name,)):
        value = config.get(key)
        if type(value) is int and 0 < value < MOST:
            return value
    return None


def read_layer(config: Mapping[str, Any]) -> LayerSizes | None:
    """Read the widths inside a layer; None for a family that is not known or a config that lacks some."""
    family = FAMILIES.get(str(config.get("model_type")))
    d_model, n_heads = read_size(config, "d_model"), read_size(config, "n_heads")
    if family is None or d_model is None or n_heads is None:
        return None
    d_mlp = read_size(config, "intermediate_size") or read_size(config, "n_inner")
    if d_mlp is None and family.has_positions:
        d_mlp = 4 * d_model
    if d_mlp is None:
        return None
    d_head = read_size(config, "head_dim") or family.d_head or d_model // n_heads
    has_qkv_bias = bool(config.get("attention_bias", family.has_qkv_bias))
    return LayerSizes(
        family=family,
        d_mlp=d_mlp,
        d_attention=n_heads * d_head,
        d_key_value=(read_size(config, "num_key_value_heads") or n_heads) * d_head,
        n_heads=n_heads,
        is_capped=config.get("attn_logit_softcapping") is not None,
        is_capped_at_end=config.get("final_logit_softcapping") is not None,
        has_biases=(
            has_qkv_bias,
            bool(config.get("attention_bias", family.has_out_bias)),
            bool(config.get("mlp_bias", not family.is_gated)),
        ),
        is_tied=bool(config.get("tie_word_embeddings", family.is_tied)),
    )


def count_parameters(config: Mapping[str, Any]) -> int | None:
    """Count the weights of a model from its config; None where that says too little."""
    layer = read_layer(config)
    sizes = [read_size(config, name) for name in ("d_model", "n_layers", "n_vocab")]
    if layer is None or None in sizes:
        return None
    d_model, n_layers, n_vocab = (size or 0 for size in sizes)
    norm = d_model * (2 if layer.family.has_layer_norm else 1)
    embeddings = n_vocab * d_model * (1 if layer.is_tied else 2)
    if layer.family.has_positions:
        embeddings += (read_size(config, "n_positions") or 0) * d_model
    return embeddings + n_layers * (count_layer(layer, d_model) + layer.family.n_norms * norm) + norm


def count_layer(layer: LayerSizes, d_model: int) -> int:
    """Count the weights of one layer but for the norms over d_model."""
    qkv_bias, out_bias, mlp_bias = layer.has_biases
    d_qkv = layer.d_attention + 2 * layer.d_key_value
    attention = d_model * (d_qkv + layer.d_attention)
    n_matrices = 3 if layer.family.is_gated else 2
    biases = d_qkv * qkv_bias + d_model * out_bias + ((n_matrices - 1) * layer.d_mlp + d_model) * mlp_bias
    head_norms = 2 * layer.d_attention // layer.n_heads if layer.family.has_head_norms else 0
    return attention + n_matrices * d_model * layer.d_mlp + biases + head_norms
