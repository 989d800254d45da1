"""What a probe reads of SAEs that SAELens saved, and of a file like Gemma Scope's: decoders and firings."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmsae.foreign_saes import ForeignSae, read_foreign
from dmsae.matching import Firings, align, core_acts
from dmsae.probe_config import SAE_FILES
from dmsae.sae import Core
from tests.spliced import D_MODEL, core_of, random_sae

N_LATENTS, N_TOKENS = 24, 400
SETTINGS = {
    "standard": {"architecture": "standard"},
    "jumprelu": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "centred": {"architecture": "jumprelu", "apply_b_dec_to_input": True},
    "topk": {"architecture": "topk", "k": 3},
}
READ = ("standard", "jumprelu", "centred", "gemma_scope")
"""Those whose latents' activations are a matter of each latent alone."""
OWN = core_of(random_sae(), [0, 3, 5, 8], rms=1.0)


@pytest.fixture(scope="module")
def folder(run_peer: Callable[[str, list[Path]], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAEs around some rows of a core of ours, a little turned, saved by SAELens."""
    folder = tmp_path_factory.mktemp("theirs")
    generator = torch.Generator().manual_seed(2)
    W_dec = torch.randn(N_LATENTS, D_MODEL, generator=generator)
    W_dec[[20, 4, 11]] = 2 * OWN.W_dec[:3] + 0.1 * W_dec[[20, 4, 11]]
    tensors = {
        "W_enc": W_dec.T.contiguous(),
        "W_dec": W_dec,
        "b_enc": 0.3 * torch.randn(N_LATENTS, generator=generator),
        "b_dec": torch.randn(D_MODEL, generator=generator),
        "threshold": torch.rand(N_LATENTS, generator=generator),
    }
    x = 2 * torch.randn(N_TOKENS, D_MODEL, generator=generator)
    save_file({**tensors, "x": x}, folder / "tensors.safetensors")
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    run_peer("write_with_sae_lens.py", [folder])
    return folder


def read(folder: Path, name: str) -> ForeignSae:
    files = [folder / name / file for file in SAE_FILES] if name in SETTINGS else [folder / "params.npz"]
    return read_foreign(files, beside=OWN)


def reads_of(found: ForeignSae) -> Core:
    assert found.reads is not None
    return found.reads


@pytest.mark.parametrize("name", READ)
def test_decoder_and_firings_are_those_of_saelens(folder: Path, name: str) -> None:
    tensors, theirs = load_file(folder / "tensors.safetensors"), load_file(folder / f"{name}.safetensors")
    found = read(folder, name)
    assert found.W_dec.equal(theirs.get("W_dec", tensors["W_dec"]))
    acts = core_acts(reads_of(found), tensors["x"])
    assert 0 < (theirs["acts"] > 0).sum() < theirs["acts"].numel()
    torch.testing.assert_close(acts, theirs["acts"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_a_match_has_their_cosines_and_the_correlation_of_their_activations(folder: Path, name: str) -> None:
    theirs = load_file(folder / f"{name}.safetensors")["acts"]
    x, W_dec = (load_file(folder / "tensors.safetensors")[each] for each in ("x", "W_dec"))
    found = read(folder, name)
    aligned = align(OWN.W_dec, found.W_dec, min_cosine=0.7, generator=torch.Generator().manual_seed(1))
    assert dict(zip(aligned.a_indices, aligned.b_indices, strict=True)) == {0: 20, 1: 4, 2: 11}
    rows = OWN.W_dec[aligned.a_indices], W_dec[aligned.b_indices]
    assert aligned.cosines == pytest.approx(torch.cosine_similarity(*rows).tolist(), abs=1e-5)
    firings = Firings((OWN, reads_of(found)), {(0, 1): aligned}, torch.device("cpu"))
    firings.add(x)
    own = core_acts(OWN, x)[:, aligned.a_indices].double().numpy()
    pairs = zip(own.T, theirs[:, aligned.b_indices].double().numpy().T, strict=True)
    expected = [np.corrcoef(*pair)[0, 1] for pair in pairs]
    assert firings.correlations((0, 1)) == pytest.approx(expected, abs=1e-4)


def test_of_an_architecture_whose_latents_share_a_budget_the_decoder_alone_is_read(folder: Path) -> None:
    found = read(folder, "topk")
    assert found.W_dec.equal(load_file(folder / "tensors.safetensors")["W_dec"])
    assert (found.reads, found.told["architecture"]) == (None, "topk")
    assert found.trouble is not None
    assert "topk" in found.trouble
