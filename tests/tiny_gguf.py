"""A tiny random Qwen2 as one GGUF file, written as llama.cpp's converter lays it out."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.tiny import VOCAB_SIZE, tiny_tokenizer

N_LAYERS = 2


def tiny_qwen2(*, is_tied: bool) -> PreTrainedModel:
    """Build a Qwen2 with biases that are not zero."""
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=is_tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def write_tiny_gguf(file: Path, model: PreTrainedModel) -> Path:
    """Write model and tiny tokenizer; a tied head is left out, as the converter does."""
    import gguf

    writer = gguf.GGUFWriter(file, "qwen2")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, gguf)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, N_LAYERS)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, gguf: Any) -> None:
    tokenizer = tiny_tokenizer()
    special = set(tokenizer.all_special_ids)
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(VOCAB_SIZE))))
    writer.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL for i in range(VOCAB_SIZE)])
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
