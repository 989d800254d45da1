"""Tiny random language models of six families with a tokenizer of their own, the same every time.

Made on the spot, without any download.
"""

import copy
import json
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from dmsae.models import LoadedModel, describe

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCAB_SIZE = 512


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Give a byte-level BPE of 512 tokens, trained on a part of the built-in text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=256,
    )


@cache
def _trained_tokenizer() -> str:
    """Train it once in each process."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    return tokenizer.to_str()


def tiny_llama(n_layers: int = 4, d_model: int = 32) -> LlamaForCausalLM:
    """Build a Llama whose weights are drawn from a generator of their own."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    return _drawn(LlamaForCausalLM(config))


FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gpt_neox", "gpt2")
"""`model_type` of the families that a tiny model is made of."""

SLIDING_WINDOW = 5
"""Tokens that a local layer of the tiny Mistral and Gemma-2 sees: fewer than most contexts hold."""


def tiny_family_config(family: str) -> PreTrainedConfig:
    """Give the config of a tiny model of a family, with what is peculiar to it."""
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    grouped = {**shape, "num_key_value_heads": 2, "head_dim": 8}
    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}
    return {
        "llama": lambda: LlamaConfig(**grouped),
        "mistral": lambda: MistralConfig(**grouped, sliding_window=SLIDING_WINDOW),
        "qwen3": lambda: Qwen3Config(**grouped),
        "gemma2": lambda: Gemma2Config(**grouped, **capped, sliding_window=SLIDING_WINDOW),
        "gpt_neox": lambda: GPTNeoXConfig(**shape),
        "gpt2": lambda: GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=32,
            n_layer=4,
            n_head=4,
            n_positions=256,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
    }[family]()


def tiny_family_model(family: str) -> PreTrainedModel:
    """Build a model of a family whose weights are drawn from a generator of their own."""
    model: Any = AutoModelForCausalLM.from_config(tiny_family_config(family))
    return _drawn(model)


def _drawn(model: Any) -> Any:
    """Draw all matrices anew, the same every time, and leave norms and biases as they are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def tiny_loaded(model: PreTrainedModel | None = None) -> LoadedModel:
    """Give a tiny model, a Llama unless told otherwise, as if it had been loaded."""
    model = (tiny_llama() if model is None else model).eval().requires_grad_(False)
    return describe(model, tiny_tokenizer(), revision="revision-1")


def save_tiny_model(folder: Path, *, n_layers: int = 4, d_model: int = 32, family: str | None = None) -> Path:
    """Save model and tokenizer as a folder in transformers' format and return it."""
    model = tiny_llama(n_layers, d_model) if family is None else tiny_family_model(family)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_config(model_path: Path, **overrides: dict[str, Any]) -> dict[str, Any]:
    """Give the settings of a distillation of seconds; each override is merged into its section."""
    config: dict[str, Any] = {
        "n_cycles": 3,
        "seed": 0,
        "n_threads": 1,
        "model": {"source": "local", "path": str(model_path)},
        "data": {
            "text": {"source": "builtin", "name": "python-topics"},
            "context_length": 32,
            "split": [0.8, 0.1, 0.1],
        },
        "activations": {"layer": 1},
        "sae": {"n_latents": 64, "k": 6, "block_widths": [12, 24, 40]},
        "training": {"n_tokens": 16_384, "batch_tokens": 256, "lr": 3e-3, "threshold_tokens": 4096},
        "attribution": {"n_tokens": 2000, "ablation_tokens": 200, "ablation_latents": 4},
        "selection": {"max_core": 20},
        "evaluation": {"n_tokens": 1000},
    }
    for section, values in overrides.items():
        if isinstance(values, dict):
            config[section] = {**config[section], **values}
        else:
            config[section] = values
    return copy.deepcopy(config)


def uncompiled_config(model_path: Path, **overrides: Any) -> dict[str, Any]:
    """Give the same settings with the plain step: each trainer's process would compile the fast one anew.

    That takes more than all else a tiny cycle does. For tests of what is around a trainer.
    """
    config = tiny_config(model_path, **overrides)
    config["training"].setdefault("step", "plain")
    return config


def tiny_spec(
    model_path: Path, *, cycle_index: int = 0, job_id: str = "dst_tiny", **overrides: Any
) -> dict[str, Any]:
    """Give the spec of one cycle, as `SPEC.json` holds it."""
    return {
        "spec_version": 1,
        "job_id": job_id,
        "cycle_index": cycle_index,
        "config": tiny_config(model_path, **overrides),
    }


def write_spec(file: Path, spec: dict[str, Any]) -> Path:
    """Write a spec where the trainer reads it."""
    file.write_text(json.dumps(spec), encoding="utf-8")
    return file
