"""Claims about hook points: the right place, nothing beyond it, and the model's own way on from there."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
)

from dmsae.errors import CycleFailed
from dmsae.hooks import decoder_layers, resolve_hook
from tests.hooked import HOOKS, N_LAYERS, each_family, each_hook, lower, make_input_ids, upper
from tests.tiny import FAMILIES, VOCAB_SIZE, tiny_family_config, tiny_family_model, tiny_loaded

PATHS = {
    "llama": ("model.layers.1", "model.layers.1.mlp", "model.layers.1.self_attn"),
    "mistral": ("model.layers.1", "model.layers.1.mlp", "model.layers.1.self_attn"),
    "qwen3": ("model.layers.1", "model.layers.1.mlp", "model.layers.1.self_attn"),
    "gemma2": (
        "model.layers.1",
        "model.layers.1.post_feedforward_layernorm",
        "model.layers.1.post_attention_layernorm",
    ),
    "gpt_neox": ("gpt_neox.layers.1", "gpt_neox.layers.1.mlp", "gpt_neox.layers.1.attention"),
    "gpt2": ("transformer.h.1", "transformer.h.1.mlp", "transformer.h.1.attn"),
}


@pytest.fixture(scope="module")
def models():
    return {family: tiny_loaded(tiny_family_model(family)) for family in FAMILIES}


@pytest.fixture
def input_ids():
    return make_input_ids()


def value_of(output):
    return output[0] if isinstance(output, tuple) else output


def with_value(output, value):
    return (value, *output[1:]) if isinstance(output, tuple) else value


def whole_model_with(loaded, point, input_ids, activations):
    """Run the whole model, with `activations` put in by a plain hook on the named module."""
    module = loaded.model.get_submodule(point.path)
    handle = module.register_forward_hook(lambda _module, _inputs, output: with_value(output, activations))
    try:
        return loaded.model(input_ids).logits
    finally:
        handle.remove()


@each_family
def test_every_hook_point_of_a_family_is_the_module_that_it_should_be(models, family):
    found = tuple(resolve_hook(models[family], layer=1, hook=hook).path for hook in HOOKS)
    assert found == PATHS[family]


@each_family
@each_hook
def test_the_lower_part_gives_what_a_hook_on_the_named_module_sees(models, family, hook, input_ids):
    loaded, seen = models[family], []
    for layer in (0, N_LAYERS - 1):
        point = resolve_hook(loaded, layer=layer, hook=hook)
        module = loaded.model.get_submodule(point.path)
        handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(value_of(output)))
        loaded.model(input_ids)
        handle.remove()
        assert torch.equal(lower(loaded, point, input_ids), seen.pop())


@each_family
@each_hook
def test_running_on_from_any_layer_gives_the_models_own_logits(models, family, hook, input_ids):
    loaded = models[family]
    expected = loaded.model(input_ids).logits
    for layer in range(N_LAYERS):
        point = resolve_hook(loaded, layer=layer, hook=hook)
        found = upper(loaded, point, input_ids, lower(loaded, point, input_ids))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@each_family
@each_hook
def test_logits_and_gradients_are_those_of_the_whole_model_with_a_hook(models, family, hook, input_ids):
    loaded = models[family]
    point = resolve_hook(loaded, layer=1, hook=hook)
    other = lower(loaded, point, input_ids)
    other = other + other.std() * torch.randn(other.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for run in (upper, None):
        activations = other.clone().requires_grad_()
        if run is None:
            logits = whole_model_with(loaded, point, input_ids, activations)
        else:
            logits = run(loaded, point, input_ids, activations)
        loss = logits.double().logsumexp(-1).square().sum()
        results.append((logits, *torch.autograd.grad(loss, activations)))
    (logits, gradient), (expected_logits, expected_gradient) = results
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert expected_gradient.abs().max() > 1e-3
    scale = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5 * scale)


def constants_by_biases(family):
    """Make a model whose layer i adds 10^i by attention and 2 * 10^i by its MLP, by biases alone."""
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": N_LAYERS}
    heads = {"num_attention_heads": 4}
    config, layers, attention, mlp = {
        "llama": lambda: (
            LlamaConfig(**shape, **heads, intermediate_size=64, attention_bias=True, mlp_bias=True),
            "model.layers",
            "self_attn.o_proj",
            "mlp.down_proj",
        ),
        "gpt_neox": lambda: (
            GPTNeoXConfig(**shape, **heads, intermediate_size=64),
            "gpt_neox.layers",
            "attention.dense",
            "mlp.dense_4h_to_h",
        ),
        "gpt2": lambda: (
            GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=N_LAYERS, n_head=4),
            "transformer.h",
            "attn.c_proj",
            "mlp.c_proj",
        ),
    }[family]()
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for i, layer in enumerate(model.get_submodule(layers)):
            layer.get_submodule(attention).bias.fill_(10.0**i)
            layer.get_submodule(mlp).bias.fill_(2 * 10.0**i)
    return model, 0.0


def constants_by_norms(family):
    """Make the same of a Gemma-2, whose norms on the way out scale what is constant to 1 + weight."""
    config = tiny_family_config(family)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() > 1 else 0.0)
        for i, layer in enumerate(model.model.layers):
            layer.post_attention_layernorm.weight.fill_(10.0**i - 1)
            layer.post_feedforward_layernorm.weight.fill_(2 * 10.0**i - 1)
    return model, math.sqrt(32)


@pytest.mark.parametrize(
    ("family", "make"),
    [
        ("llama", constants_by_biases),
        ("gpt_neox", constants_by_biases),
        ("gpt2", constants_by_biases),
        ("gemma2", constants_by_norms),
    ],
)
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_a_layer_number_means_that_layer_and_not_its_neighbour(family, make, layer, input_ids):
    """Each layer adds constants of its own, so the sum tells exactly which layers and which parts ran."""
    model, start = make(family)
    loaded = tiny_loaded(model)
    expected = {
        "resid_post": start + sum(3 * 10.0**i for i in range(layer + 1)),
        "mlp_out": 2 * 10.0**layer,
        "attn_out": 10.0**layer,
    }
    for hook in HOOKS:
        found = lower(loaded, resolve_hook(loaded, layer=layer, hook=hook), input_ids)
        torch.testing.assert_close(found, torch.full_like(found, expected[hook]), rtol=1e-5, atol=0)


@each_family
def test_nothing_beyond_the_hook_runs(models, family, input_ids):
    """Layer 1 is cut: of its parts, those before the hook run, and of what follows it nothing does."""
    loaded = models[family]
    root, _layers = decoder_layers(loaded)
    points = {hook: resolve_hook(loaded, layer=1, hook=hook) for hook in HOOKS}
    watched = [*(f"{root}.{i}" for i in range(N_LAYERS)), points["attn_out"].path, points["mlp_out"].path]
    ran = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: ran.append(name))
        for name, module in [
            *((path, loaded.model.get_submodule(path)) for path in watched),
            ("head", loaded.model.get_output_embeddings()),
        ]
    ]
    try:
        for hook, expected in {
            "resid_post": [f"{root}.0", points["attn_out"].path, points["mlp_out"].path, f"{root}.1"],
            "mlp_out": [f"{root}.0", points["attn_out"].path, points["mlp_out"].path],
            "attn_out": [f"{root}.0", points["attn_out"].path],
        }.items():
            activations = lower(loaded, points[hook], input_ids)
            assert ran == expected
            ran.clear()
        upper(loaded, points["resid_post"], input_ids, activations)
        assert ran == [f"{root}.2", f"{root}.3", "head"]
    finally:
        for handle in handles:
            handle.remove()


@each_hook
def test_the_model_is_as_it_was_whatever_happens_on_the_way(models, hook, input_ids):
    loaded = models["gemma2"]
    point = resolve_hook(loaded, layer=1, hook=hook)
    layers = list(decoder_layers(loaded)[1])
    before = loaded.model(input_ids).logits
    activations = lower(loaded, point, input_ids)

    def break_off(_module, _inputs, _output):
        raise KeyboardInterrupt

    handle = layers[2].register_forward_hook(break_off)
    with pytest.raises(KeyboardInterrupt):
        upper(loaded, point, input_ids, torch.zeros_like(activations))
    handle.remove()
    assert all(now is then for now, then in zip(decoder_layers(loaded)[1], layers, strict=True))
    assert torch.equal(loaded.model(input_ids).logits, before)
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_a_layer_that_is_stepped_over_still_answers_for_itself(models, input_ids):
    loaded, answers = models["llama"], []
    point = resolve_hook(loaded, layer=1, hook="resid_post")
    layers = decoder_layers(loaded)[1]
    attention = layers[0].self_attn
    handle = layers[2].register_forward_pre_hook(
        lambda _module, _inputs: answers.append((layers[0] is attention, layers[0].self_attn))
    )
    upper(loaded, point, input_ids, lower(loaded, point, input_ids))
    handle.remove()
    assert answers == [(False, attention)]


def test_both_soft_caps_of_gemma_act_in_what_runs(input_ids):
    found = {}
    for cap in ("attn_logit_softcapping", "final_logit_softcapping", None):
        config = tiny_family_config("gemma2")
        model = tiny_family_model("gemma2")
        if cap is not None:
            assert getattr(config, cap) > 0
            setattr(model.config, cap, None)
            for layer in model.model.layers:
                layer.self_attn.attn_logit_softcapping = model.config.attn_logit_softcapping
        loaded = tiny_loaded(model)
        point = resolve_hook(loaded, layer=1, hook="resid_post")
        activations = lower(loaded, point, input_ids)
        found[cap] = activations, upper(loaded, point, input_ids, activations)
    assert found[None][1].abs().max() <= 3.0
    assert found["final_logit_softcapping"][1].abs().max() > 3.0
    assert torch.equal(found["final_logit_softcapping"][0], found[None][0])
    assert not torch.allclose(found["attn_logit_softcapping"][0], found[None][0], rtol=1e-3)


@each_family
@each_hook
def test_a_bfloat16_model_gives_and_takes_float32(family, hook, input_ids):
    loaded = tiny_loaded(tiny_family_model(family).to(torch.bfloat16))
    point = resolve_hook(loaded, layer=1, hook=hook)
    activations = lower(loaded, point, input_ids)
    logits = upper(loaded, point, input_ids, activations)
    assert activations.dtype == logits.dtype == torch.float32
    assert torch.equal(activations, activations.bfloat16().float())
    assert torch.equal(logits, loaded.model(input_ids).logits.float())


def test_modules_whose_outputs_are_not_what_the_layer_adds_are_refused():
    """Granite scales what its attention and MLP add to the stream."""
    config = GraniteConfig(**tiny_family_config("llama").to_diff_dict() | {"residual_multiplier": 0.5})
    loaded = tiny_loaded(AutoModelForCausalLM.from_config(config))
    assert resolve_hook(loaded, layer=1, hook="resid_post").path == "model.layers.1"
    for hook in ("mlp_out", "attn_out"):
        with pytest.raises(
            CycleFailed, match=r"activations\.hook: .*are not what model\.layers\.1"
        ) as caught:
            resolve_hook(loaded, layer=1, hook=hook)
        assert (caught.value.failure, caught.value.param) == ("hook_unsupported", "activations.hook")


def test_layers_without_a_known_attention_and_mlp_are_refused_with_the_names_they_have():
    config = OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    loaded = tiny_loaded(AutoModelForCausalLM.from_config(config))
    assert resolve_hook(loaded, layer=1, hook="resid_post").path == "model.decoder.layers.1"
    with pytest.raises(CycleFailed, match="fc1") as caught:
        resolve_hook(loaded, layer=1, hook="mlp_out")
    assert caught.value.failure == "hook_unsupported"


def test_a_model_whose_layers_share_more_than_the_residual_stream_is_refused(models):
    loaded, handed_on = models["llama"], []
    layers = decoder_layers(loaded)[1]
    handles = [
        loaded.model.register_forward_pre_hook(lambda _module, _inputs: handed_on.clear()),
        layers[0].register_forward_hook(lambda _module, _inputs, output: handed_on.append(output)),
        layers[3].register_forward_hook(
            lambda _module, _inputs, output: output + handed_on.pop() if handed_on else None
        ),
    ]
    try:
        with pytest.raises(CycleFailed, match=r"running on from model\.layers\.1") as caught:
            resolve_hook(loaded, layer=1, hook="resid_post")
    finally:
        for handle in handles:
            handle.remove()
    assert caught.value.failure == "hook_unsupported"


def test_a_model_without_one_list_of_its_layers_is_refused(models):
    loaded = models["llama"]
    loaded.model.second = torch.nn.ModuleList([torch.nn.Identity() for _ in range(N_LAYERS)])
    try:
        with pytest.raises(CycleFailed, match=r"model\.layers, second") as caught:
            resolve_hook(loaded, layer=0, hook="resid_post")
    finally:
        del loaded.model.second
    assert caught.value.failure == "hook_unsupported"


@pytest.mark.parametrize(
    ("config", "attention", "mlp"),
    [
        (Olmo2Config, "model.layers.1.post_attention_layernorm", "model.layers.1.post_feedforward_layernorm"),
        (Glm4Config, "model.layers.1.post_self_attn_layernorm", "model.layers.1.post_mlp_layernorm"),
        (FalconConfig, "transformer.h.1.self_attention", "transformer.h.1.mlp"),
        (MixtralConfig, "model.layers.1.self_attn", "model.layers.1.mlp"),
    ],
)
def test_norms_on_the_way_out_sums_in_place_and_experts_are_seen_through(config, attention, mlp):
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if config is not FalconConfig:
        shape |= {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    loaded = tiny_loaded(AutoModelForCausalLM.from_config(config(**shape)))
    found = [resolve_hook(loaded, layer=1, hook=hook).path for hook in ("attn_out", "mlp_out")]
    assert found == [attention, mlp]
