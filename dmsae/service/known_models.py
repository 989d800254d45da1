"""What is known of a language model without loading it? Whether it may be read, and its sizes if they show.

Whether it exists and loads is the worker's to say: its disk may be another one.
"""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsae.service.allowed_paths import allowed_path, is_under
from dmsae.service.model_families import DTYPE_BYTES, LayerSizes, count_parameters, read_layer, read_size
from dmsae.sources import BuiltinModel, HubModel, ModelSource

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
    layer: LayerSizes | None = None
    """The widths inside a layer, where the family is known."""
    stored_bytes: int | None = None
    """Bytes of one weight in its files."""


def _llama(d_model: int, n_layers: int, d_mlp: int, n_heads: int, n_kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": d_model, "num_hidden_layers": n_layers,
        "intermediate_size": d_mlp, "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads,
        "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }  # fmt: skip


def _gpt2(d_model: int, n_layers: int, n_heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "n_embd": d_model, "n_layer": n_layers, "n_head": n_heads,
        "vocab_size": 50_257, "n_positions": 1024, "dtype": "float32",
    }  # fmt: skip


def _pythia(d_model: int, n_layers: int, n_heads: int, *, n_vocab: int = 50_304) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox", "hidden_size": d_model, "num_hidden_layers": n_layers,
        "intermediate_size": 4 * d_model, "num_attention_heads": n_heads, "vocab_size": n_vocab,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "dtype": "float16",
    }  # fmt: skip


SMOLLM2_135M = _llama(576, 30, 1536, 9, 3)

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": {**SMOLLM2_135M, "dtype": "float32"},
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-360M": _llama(960, 32, 2560, 15, 5),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(2048, 24, 8192, 32, 32),
    "google/gemma-2-2b": {
        "model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "intermediate_size": 9216,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000,
        "max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "dtype": "float32",
    },
    **{
        name: config
        for size, config in {
            "": _gpt2(768, 12, 12), "-medium": _gpt2(1024, 24, 16), "-large": _gpt2(1280, 36, 20),
            "-xl": _gpt2(1600, 48, 25),
        }.items()
        for name in (f"gpt2{size}", f"openai-community/gpt2{size}")
    },
    **{
        f"EleutherAI/pythia-{size}{data}": config
        for size, config in {
            "70m": _pythia(512, 6, 8), "160m": _pythia(768, 12, 12), "410m": _pythia(1024, 24, 16),
            "1b": _pythia(2048, 16, 8), "1.4b": _pythia(2048, 24, 16), "2.8b": _pythia(2560, 32, 32),
            "6.9b": _pythia(4096, 32, 32, n_vocab=50_432), "12b": _pythia(5120, 36, 40, n_vocab=50_688),
        }.items()
        for data in ("", "-deduped")
    },
}  # fmt: skip
"""Configs of models that do not lie here, as their publishers give them; the counts are tested."""


def find_facts(model: ModelSource, allowed_roots: Sequence[Path]) -> ModelFacts:
    """Give what is known of a model.

    Raises:
        InvalidConfig: a local model lies outside the allowed roots.
    """
    if isinstance(model, BuiltinModel):
        return facts_from(model.name, KNOWN[model.name])
    if isinstance(model, HubModel):
        return facts_from(model.id, KNOWN.get(model.id, {}))
    folder = allowed_path(model.path, allowed_roots, param="model.path")
    return facts_from(folder.name, _read_config(folder / "config.json", allowed_roots))


def facts_from(name: str, config: Mapping[str, Any]) -> ModelFacts:
    """Read what a model's config says of its sizes."""
    dtype = config.get("dtype", config.get("torch_dtype"))
    return ModelFacts(
        name,
        **{size: read_size(config, size) for size in ("n_layers", "d_model", "n_positions", "n_vocab")},
        n_parameters=count_parameters(config),
        layer=read_layer(config),
        stored_bytes=DTYPE_BYTES.get(dtype) if isinstance(dtype, str) else None,
    )


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
