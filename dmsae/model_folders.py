"""Which folders hold a model that may be read, and is every weight of it really there?

Refuses, by rule, what no causal language model can come from, and what would run foreign code, unpickle
anything or make weights up. Where a model comes from is the business of `models.py`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from dmsae.errors import CycleFailed

Attention = Literal["auto", "eager", "sdpa"]


def unreadable(path: Path, reason: str) -> CycleFailed:
    """Say that the files are not there or not whole."""
    return CycleFailed("model_unreadable", f"The model at {path} cannot be read: {reason}", param="model")


def unsupported(path: Path, rule: str, *, param: str = "model") -> CycleFailed:
    """Say that the files hold something else than a model that this code runs."""
    return CycleFailed("model_unsupported", f"The model at {path} is not supported: {rule}", param=param)


def read_config(folder: Path) -> PreTrainedConfig:
    """Read a folder's config and refuse, before any weight is read, what cannot be a supported model.

    Raises: CycleFailed with `model_unreadable` or `model_unsupported`.
    """
    file = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise unsupported(folder, "it is an adapter of another model; give a folder with all weights.")
    if not file.is_file():
        raise unreadable(folder, "it has no config.json; give a folder in transformers' format.")
    raw = json.loads(file.read_text(encoding="utf-8"))
    model_type = raw.get("model_type")
    if raw.get("auto_map") and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unsupported(folder, "it needs code of its own (auto_map), and such code is never run.")
    if model_type not in CONFIG_MAPPING:
        raise unsupported(folder, f"transformers knows no models of type {model_type}.")
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    check_config(folder, config)
    _check_weight_files(folder, raw)
    return config


def check_config(path: Path, config: PreTrainedConfig) -> None:
    """Refuse what is no unquantised decoder with a language model's head.

    Raises: CycleFailed with `model_unsupported`.
    """
    if getattr(config, "quantization_config", None):
        raise unsupported(path, "it is quantised; only unquantised weights are read (or one GGUF file).")
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported(path, f"{config.model_type} is an encoder-decoder; give a decoder-only model.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise unsupported(path, f"transformers has no causal language model of type {config.model_type}.")


def read_weights(
    folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype, attention: str, **options: Any
) -> PreTrainedModel:
    """Read a model and refuse it if some weight was not in the files and so would be random.

    Raises: CycleFailed with `model_unreadable`.
    """
    read: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    model, info = read
    absent = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
    if absent:
        raise unreadable(
            folder,
            f"{len(absent)} weights are missing or have another shape than its config says, "
            f"the first is {absent[0]}.",
        )
    loaded: PreTrainedModel = model
    return loaded


def choose_attention(path: Path, config: PreTrainedConfig, asked: Attention) -> str:
    """Say which attention code is to run: the one asked for, or the fastest that computes what the model is.

    Raises: CycleFailed with `model_unsupported` where sdpa is asked for and would compute something else.
    """
    cap = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    has_sdpa = bool(getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_supports_sdpa", False))
    if asked == "auto":
        return "sdpa" if has_sdpa and cap is None else "eager"
    if asked == "sdpa" and cap is not None:
        rule = f"it caps its attention logits at {cap:g}, which sdpa would lose; ask for eager or auto."
        raise unsupported(path, f"activations.attention = sdpa: {rule}", param="activations.attention")
    if asked == "sdpa" and not has_sdpa:
        rule = f"{config.model_type} has no sdpa; ask for eager or auto."
        raise unsupported(path, f"activations.attention = sdpa: {rule}", param="activations.attention")
    return asked


def _check_weight_files(folder: Path, raw: dict[str, Any]) -> None:
    named = str(raw.get("transformers_weights") or "model.safetensors")
    if not named.removesuffix(".index.json").endswith(".safetensors") or not any(
        folder.glob("*.safetensors")
    ):
        raise unreadable(folder, "it has no *.safetensors; other weight files are never opened.")
