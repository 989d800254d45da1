"""What a dry run says beforehand is what a cycle then takes, and where it is not known that is said."""

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from bench.memory import estimate, measure_peak, merge, save_random_model
from dmsae.config import DistillationConfig
from dmsae.presets import PRESETS
from dmsae.service import estimates
from dmsae.service.gpu_time import estimate_gpu_time
from dmsae.service.known_models import KNOWN, ModelFacts, facts_from, find_facts
from dmsae.service.memory import peak_memory
from dmsae.service.planning import Plan, plan_distillations
from dmsae.service.requests import DistillationRequest

SHAPE = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", GROUPED),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**SHAPE, "head_dim": 20}),
    ("mistral", GROUPED),
    ("qwen2", GROUPED),
    ("qwen3", {**GROUPED, "head_dim": 8}),
    ("gemma", GROUPED),
    ("gemma2", {**GROUPED, "head_dim": 16}),
    ("gpt2", {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    ("gpt2", {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 100}),
    ("gpt_neox", SHAPE),
    ("gpt_neox", {**SHAPE, "attention_bias": False, "tie_word_embeddings": True}),
]
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "google/gemma-2-2b": 2_614_341_888,
    "gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-6.9b-deduped": 6_857_302_016,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
}


@pytest.mark.parametrize(("family", "sizes"), CONFIGS)
def test_the_weights_of_a_family_are_counted_from_its_saved_config(
    tmp_path: Path, family: str, sizes: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(family, vocab_size=101, bos_token_id=0, eos_token_id=1, **sizes)
    config.save_pretrained(tmp_path)
    facts = facts_from("tiny", json.loads((tmp_path / "config.json").read_text()))
    model = AutoModelForCausalLM.from_config(config)
    assert facts.n_parameters == model.num_parameters()
    assert (facts.n_layers, facts.d_model, facts.n_vocab) == (3, 48, 101)
    assert facts.n_positions == getattr(config, "max_position_embeddings", None)


def test_known_models_have_the_weights_that_their_publishers_count() -> None:
    assert {name: facts_from(name, KNOWN[name]).n_parameters for name in PUBLISHED} == PUBLISHED


def test_of_an_unknown_family_sizes_are_read_and_nothing_is_counted() -> None:
    facts = facts_from("new", {"model_type": "brand_new", **SHAPE, "vocab_size": 9})
    assert (facts.n_layers, facts.d_model, facts.n_vocab) == (3, 48, 9)
    assert (facts.n_parameters, facts.layer, facts.n_positions) == (None, None, None)
    (plan,) = plan_distillations(DistillationRequest(preset="demo"), allowed_roots=())
    told = estimates.describe(replace(plan, facts=facts))
    assert told["memory"]["value"] is None
    assert "once a worker has opened it" in told["memory"]["source"]


SMALL: dict[str, Any] = {
    "training": {"n_tokens": 2 * 1024, "epochs": 1, "batch_tokens": 1024},
    "evaluation": {"n_tokens": 700},
    "attribution": {"n_tokens": 700, "ablation_tokens": 64, "ablation_latents": 1},
    "activations": {"layer": 1},
}


@pytest.mark.parametrize(
    ("n_vocab", "changes", "phase"),
    [
        (512, {"sae": {"n_latents": 24_576}, "training": {"step": "plain"}}, "training"),
        (512, {"sae": {"n_latents": 24_576}, "training": {"step": "fast"}}, "evaluating"),
        (60_000, {"sae": {"block_widths": [128]}, "training": {"step": "fast"}}, "evaluating"),
    ],
)
def test_the_estimated_peak_is_within_a_fifth_of_the_measured_one(
    tmp_path: Path, n_vocab: int, changes: dict[str, Any], phase: str
) -> None:
    shape = {**GROUPED, "hidden_size": 64, "max_position_embeddings": 256}
    save_random_model(tmp_path / "model", "llama", shape, n_vocab=n_vocab)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(topics.values())[:40_000])
    settings = merge(merge(PRESETS["demo"], SMALL), changes)
    settings["model"] = {"source": "local", "path": str(tmp_path / "model")}
    settings["data"] = {**settings["data"], "text": {"source": "files", "paths": [str(text)]}}
    config = DistillationConfig.model_validate(settings)
    peak = peak_memory(config, find_facts(config.model, [tmp_path]))
    assert peak is not None
    assert peak.phase == phase
    assert estimate(config, tmp_path) == pytest.approx(measure_peak(config, tmp_path), rel=0.2)


def test_the_dry_run_of_the_gemma_preset_tells_widths_memory_and_gpu_hours() -> None:
    (plan,) = plan_distillations(DistillationRequest(preset="gemma-2-2b-l12"), allowed_roots=())
    told = estimates.describe(plan)
    assert [cycle["n_core"] for cycle in told["cycles"]] == [0, 2048, 4096, 6144, *[8192] * 4]
    assert told["cycles"][0]["prefix_widths"] == [2048, 6144, 14_336, 30_720, 65_536]
    weights, sae_state = 2 * 2_614_341_888, 4 * 4 * 2 * 65_536 * 2304
    assert weights + sae_state < told["memory"]["value"] < 24e9
    assert told["host_memory"]["value"] > 4 * 2_614_341_888
    assert told["gpu_hours"]["value"] == pytest.approx(8 * told["cycles"][0]["gpu_hours"], rel=0.01)
    assert told["time"]["value"] == pytest.approx(3600 * told["gpu_hours"]["value"], rel=0.01)
    assert "not measured" in told["gpu_hours"]["source"]


def test_gpu_time_is_operations_over_a_rate_and_unknown_without_a_number_of_tokens() -> None:
    (plan,) = plan_distillations(DistillationRequest(preset="gemma-2-2b-l12"), allowed_roots=())
    config, facts = plan.config, plan.facts
    once = estimate_gpu_time(config, facts)
    assert once is not None
    assert once.sae_flop == 12 * 65_536 * 2304 * 500e6
    # one reading of thirteen layers, two operations a weight, attention besides
    assert 1 < once.model_flop / (13 * 2 * 77_856_768 * 500e6) < 2
    unlimited = config.model_copy(update={"training": config.training.model_copy(update={"n_tokens": None})})
    assert estimate_gpu_time(unlimited, facts) is None
    assert "once a worker has read it" in estimates.describe(Plan(unlimited, facts))["gpu_hours"]["source"]
    assert estimates.describe(Plan(config, ModelFacts("unknown")))["gpu_hours"]["value"] is None
