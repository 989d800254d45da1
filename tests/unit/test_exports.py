"""Claims about folders for other libraries: the same latents and reconstruction by the other's formula."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmsae.errors import DmsaeError
from dmsae.exports import export_dictionary_learning, main, plain_jumprelu
from dmsae.formats import load_sae, save_sae
from dmsae.sae import MatryoshkaSae
from tests.unit.test_formats import D_MODEL, N_LATENTS, RMS, make_sae


def with_exempt_core(sae: MatryoshkaSae) -> MatryoshkaSae:
    return replace(sae, threshold=sae.threshold.index_fill(0, torch.arange(sae.n_core), 0.0))


@pytest.mark.parametrize("sae", [make_sae(), with_exempt_core(make_sae())], ids=["batch_topk", "exempt"])
def test_an_encoder_that_subtracts_no_bias_gives_the_same_at_raw_scale(sae: MatryoshkaSae) -> None:
    x = torch.randn(300, D_MODEL, generator=torch.Generator().manual_seed(4))
    latent_acts = sae.encode(x)

    plain = plain_jumprelu(sae, rms=RMS)
    pre = RMS * x @ plain.W_enc + plain.b_enc
    acts = torch.relu(pre * (pre > plain.threshold))
    x_hat = acts @ plain.W_dec + plain.b_dec

    assert 0 < (latent_acts[:, : sae.n_core] > 0).sum() < latent_acts[:, : sae.n_core].numel()
    assert torch.equal(acts > 0, latent_acts > 0)
    torch.testing.assert_close(acts, RMS * latent_acts, rtol=1e-5, atol=1e-5 * RMS)
    torch.testing.assert_close(x_hat, RMS * sae.decode(latent_acts), rtol=1e-5, atol=1e-5 * RMS)


def test_dictionary_learning_gets_a_state_of_tensors_alone_and_our_facts(tmp_path: Path) -> None:
    sae = make_sae()
    export_dictionary_learning(sae, tmp_path, rms=RMS, facts={"cycle_index": 2})
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "W_enc": (D_MODEL, N_LATENTS),
        "b_enc": (N_LATENTS,),
        "W_dec": (N_LATENTS, D_MODEL),
        "b_dec": (D_MODEL,),
        "threshold": (N_LATENTS,),
    }
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert config == {
        "trainer": {
            "dict_class": "JumpReluAutoEncoder",
            "activation_dim": D_MODEL,
            "dict_size": N_LATENTS,
        },
        "dmsae": {"cycle_index": 2, "rms": RMS, "prefix_widths": sae.prefix_widths, "n_core": sae.n_core},
    }


def test_nothing_is_exported_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "ae.pt").write_bytes(b"mine")
    with pytest.raises(DmsaeError, match="must be empty"):
        export_dictionary_learning(make_sae(), tmp_path, rms=RMS, facts={})
    assert (tmp_path / "ae.pt").read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == ["ae.pt"]


def test_the_command_exports_a_saved_folder(tmp_path: Path) -> None:
    save_sae(tmp_path / "sae", make_sae(), rms=RMS, facts={"cycle_index": 2})
    assert main([str(tmp_path / "sae"), str(tmp_path / "out"), "--to", "dictionary-learning"]) == 0
    sae, facts = load_sae(tmp_path / "sae")
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    for name, tensor in plain_jumprelu(sae, rms=RMS)._asdict().items():
        assert torch.equal(state[name], tensor)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dmsae"] == facts


def test_the_command_says_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "out"), "--to", "dictionary-learning"]) == 1
    assert "must be a whole SAE folder written by DMSAE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
