"""SAEs of other people: what each architecture's latents read, written out by hand."""

import json
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmsae.errors import CycleFailed
from dmsae.foreign_saes import read_foreign
from dmsae.matching import core_acts
from dmsae.sae import Core
from tests.spliced import D_MODEL, core_of, random_sae

N = 7
BESIDE = core_of(random_sae(), [0, 1], rms=3.0)
GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "W_enc": torch.randn(D_MODEL, N, generator=GENERATOR),
    "W_dec": 2 * torch.randn(N, D_MODEL, generator=GENERATOR),
    "b_enc": torch.randn(N, generator=GENERATOR),
    "b_dec": torch.randn(D_MODEL, generator=GENERATOR),
    "threshold": torch.randn(N, generator=GENERATOR),
}
X = torch.randn(50, D_MODEL, generator=GENERATOR)


def saved(folder, tensors=TENSORS, **facts):
    told = {"d_in": D_MODEL, "d_sae": N, "metadata": {"hook_name": "blocks.3.hook_resid_post"}, **facts}
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file(tensors, folder / "sae_weights.safetensors")
    return read_foreign([folder / "cfg.json", folder / "sae_weights.safetensors"], beside=BESIDE)


def saved_arrays(folder, **changes):
    """Save as Gemma Scope does: plain arrays of one file, which say nothing of themselves."""
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()} | changes
    np.savez(folder / "params.npz", **{name: array for name, array in arrays.items() if array is not None})
    return read_foreign([folder / "params.npz"], beside=BESIDE)


@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_latents_read_raw_activations_as_their_architecture_says(tmp_path, architecture, is_centred):
    found = saved(tmp_path, architecture=architecture, apply_b_dec_to_input=is_centred)
    x = X - TENSORS["b_dec"] if is_centred else X
    expected = torch.relu(x @ TENSORS["W_enc"] + TENSORS["b_enc"])
    if architecture == "jumprelu":
        expected = expected * (expected > TENSORS["threshold"])
    assert torch.allclose(core_acts(found.reads, X), expected, atol=1e-5)
    assert torch.allclose(core_acts(found.reads.only([5, 2]), X), expected[:, [5, 2]], atol=1e-5)
    assert (found.reads.rms, found.reads.latents, found.trouble) == (1.0, [], None)
    assert found.W_dec.equal(TENSORS["W_dec"])
    assert found.told["hook_name"] == "blocks.3.hook_resid_post"


def test_arrays_as_gemma_scope_publishes_them_are_a_jumprelu_sae_of_raw_activations(tmp_path):
    found = saved_arrays(tmp_path)
    pre = X @ TENSORS["W_enc"] + TENSORS["b_enc"]
    expected = torch.relu(pre) * (pre > TENSORS["threshold"])
    assert torch.allclose(core_acts(found.reads, X), expected, atol=1e-5)
    assert found.W_dec.equal(TENSORS["W_dec"])
    assert (found.told["architecture"], found.told["d_in"], found.told["d_sae"]) == ("jumprelu", D_MODEL, N)
    small = {"W_dec": None, "w_dec": TENSORS["W_dec"].numpy().astype(np.float16)}
    assert torch.allclose(saved_arrays(tmp_path, **small).W_dec, TENSORS["W_dec"], atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"b_enc": None}, "b_enc"),
        ({"threshold": np.array([{"a": 1}] * N, dtype=object)}, "allow_pickle=False"),
        ({"W_dec": np.full((N, D_MODEL), np.inf, np.float32)}, "W_dec is not of finite numbers"),
        ({"W_enc": np.ones(N, np.float32)}, "W_enc has shape"),
        ({"scaling_factor": np.full(N, 2.0)}, "scaling_factor"),
    ],
)
def test_arrays_that_are_pickled_missing_or_no_such_sae_are_refused_by_name(tmp_path, changes, told):
    with pytest.raises(CycleFailed) as caught:
        saved_arrays(tmp_path, **changes)
    assert (caught.value.failure, caught.value.param) == ("data_unreadable", "other")
    assert told in caught.value.message


def test_a_file_that_is_a_pickle_or_would_fill_the_memory_is_not_opened(tmp_path):
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(dict.fromkeys(TENSORS, 1)))
    large = {name: np.zeros((1000, 1000), np.float32) for name in TENSORS}
    np.savez_compressed(tmp_path / "bomb.npz", **large)
    for name, told in (("pickle", "not a zip file"), ("bomb", "times as large")):
        with pytest.raises(CycleFailed, match=told):
            read_foreign([tmp_path / f"{name}.npz"], beside=BESIDE)


def test_half_precision_is_read_and_what_is_not_needed_need_not_be_there(tmp_path):
    found = saved(tmp_path, {"W_dec": TENSORS["W_dec"].bfloat16()}, architecture="batchtopk")
    assert found.W_dec.dtype == torch.float32
    assert found.reads is None
    assert "batchtopk" in found.trouble


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("b_enc", torch.ones(N + 1), "b_enc"),
        ("W_enc", torch.full((D_MODEL, N), float("nan")), "W_enc is not of finite numbers"),
        ("W_dec", torch.ones(N, D_MODEL, dtype=torch.int64), "W_dec is not of finite numbers"),
    ],
)
def test_tensors_of_another_shape_or_kind_are_refused_by_name(tmp_path, name, tensor, told):
    with pytest.raises(CycleFailed) as caught:
        saved(tmp_path, {**TENSORS, name: tensor}, architecture="standard")
    assert (caught.value.failure, caught.value.param) == ("data_unreadable", "other")
    assert told in caught.value.message


def test_a_core_of_some_latents_is_those_latents_in_that_order():
    core = core_of(random_sae(), [0, 3, 5, 8], rms=2.0)
    some = core.only([2, 0])
    assert [latent.latent_id for latent in some.latents] == ["job.0.5", "job.0.0"]
    assert core_acts(some, X).equal(core_acts(core_of(random_sae(), [5, 0], rms=2.0), X))
    same = {field.name for field in fields(Core)} - {"W_enc", "W_dec", "b_enc", "threshold", "latents"}
    assert all(getattr(some, name) is getattr(core, name) for name in same)
