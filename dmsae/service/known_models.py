"""What is known of a language model without loading it? Whether it may be read, and its sizes if they show.

Whether it exists and loads is the worker's to say: its disk may be another one.
"""

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsae.config import BUILTIN_MODELS, BuiltinModel, HubModel, ModelSource
from dmsae.service.allowed_paths import allowed_path, is_under

LARGEST_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model; None where unknown."""

    name: str
    n_layers: int | None = None
    d_model: int | None = None
    n_positions: int | None = None
    n_vocab: int | None = None
    n_parameters: int | None = None


def find_facts(model: ModelSource, allowed_roots: Sequence[Path]) -> ModelFacts:
    """Give what is known of a model.

    Raises:
        InvalidConfig: a local model lies outside the allowed roots.
    """
    if isinstance(model, BuiltinModel):
        return ModelFacts(model.name, **BUILTIN_MODELS[model.name])
    if isinstance(model, HubModel):
        return ModelFacts(model.id)
    folder = allowed_path(model.path, allowed_roots, param="model.path")
    config = _read_config(folder / "config.json", allowed_roots)
    sizes = {
        "n_layers": _size(config, "num_hidden_layers"),
        "d_model": _size(config, "hidden_size"),
        "n_positions": _size(config, "max_position_embeddings"),
        "n_vocab": _size(config, "vocab_size"),
    }
    return ModelFacts(folder.name, **sizes, n_parameters=_count_parameters(config))


def _read_config(path: Path, allowed_roots: Sequence[Path]) -> dict[str, Any]:
    """Read a small JSON file, or give nothing: a link that leads out of the roots is not followed."""
    real = os.path.realpath(path)
    try:
        if not is_under(real, allowed_roots) or not stat.S_ISREG(os.stat(real).st_mode):
            return {}
        with open(real, "rb") as file:
            content = file.read(LARGEST_CONFIG_BYTES + 1)
        config = json.loads(content) if len(content) <= LARGEST_CONFIG_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _size(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and 0 < value < 1 << 40 else None


def _count_parameters(config: dict[str, Any]) -> int | None:
    """Count the weights of a Llama-like model from its config."""
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads")
    sizes = [_size(config, name) for name in names]
    if None in sizes:
        return None
    d_model, n_layers, n_vocab, d_mlp, n_heads = (size or 0 for size in sizes)
    n_kv_heads = _size(config, "num_key_value_heads") or n_heads
    d_head = _size(config, "head_dim") or d_model // n_heads
    attention = 2 * d_model * d_head * (n_heads + n_kv_heads)
    embeddings = n_vocab * d_model * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + n_layers * (attention + 3 * d_model * d_mlp + 2 * d_model) + d_model
