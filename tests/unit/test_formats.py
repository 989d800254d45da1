"""Claims about what lies on disk: every bit of a core comes back, an SAE means the same at raw scale."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dmsae.errors import CycleFailed, DmsaeError
from dmsae.formats import load_core, load_sae, save_core, save_sae
from dmsae.sae import MatryoshkaSae, normalise_rows_
from tests.unit.test_sae import make_core

D_MODEL, N_LATENTS, RMS = 12, 40, 137.4


def make_sae() -> MatryoshkaSae:
    generator = torch.Generator().manual_seed(3)
    return MatryoshkaSae(
        W_enc=torch.randn(D_MODEL, N_LATENTS, generator=generator),
        b_enc=0.1 * torch.randn(N_LATENTS, generator=generator),
        W_dec=normalise_rows_(torch.randn(N_LATENTS, D_MODEL, generator=generator)),
        b_dec=0.1 * torch.randn(D_MODEL, generator=generator),
        threshold=torch.rand(N_LATENTS, generator=generator),
        prefix_widths=[9, 20, N_LATENTS],
        n_core=5,
    )


def test_a_core_comes_back_bit_for_bit(tmp_path: Path) -> None:
    core = make_core(7, 3)
    save_core(tmp_path / "core", core)
    again = load_core(tmp_path / "core")
    for name in ("W_enc", "W_dec", "b_enc", "threshold", "b_dec"):
        assert torch.equal(getattr(again, name), getattr(core, name))
    assert (again.rms, again.median_norm) == (core.rms, core.median_norm)
    assert again.provenance == core.provenance
    assert again.latents == core.latents


def test_a_core_may_be_a_view_of_larger_tensors(tmp_path: Path) -> None:
    core = make_core(7, 3)
    wide = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    view = type(core)(**{**vars(core), "W_enc": wide[:, 2:5]})
    save_core(tmp_path / "core", view)
    assert torch.equal(load_core(tmp_path / "core").W_enc, wide[:, 2:5])


def truncate(folder: Path) -> None:
    data = (folder / "core.safetensors").read_bytes()
    (folder / "core.safetensors").write_bytes(data[: len(data) // 2])


def mix_with_another_core(folder: Path) -> None:
    save_core(folder / "other", make_core(7, 3, seed=6))
    (folder / "core.safetensors").write_bytes((folder / "other" / "core.safetensors").read_bytes())


def rewrite(**changes: object) -> Callable[[Path], None]:
    def tear(folder: Path) -> None:
        facts = json.loads((folder / "core.json").read_text())
        (folder / "core.json").write_text(json.dumps({**facts, **changes}))

    return tear


@pytest.mark.parametrize(
    "tear",
    [
        truncate,
        mix_with_another_core,
        lambda folder: (folder / "core.safetensors").unlink(),
        lambda folder: (folder / "core.json").unlink(),
        lambda folder: (folder / "core.json").write_text('{"format": "dmsae-co'),
        lambda folder: (folder / "core.json").write_text("[]"),
        lambda folder: (folder / "core.json").write_bytes(b"\xff\xfe"),
        rewrite(format="another"),
        rewrite(latents=[]),
        rewrite(latents=[{"latent_id": "a.0.1"}] * 3),
        rewrite(provenance={}),
        rewrite(rms=0.0),
        rewrite(rms=math.nan),
        rewrite(median_norm=None),
    ],
)
def test_a_torn_or_foreign_core_is_refused_as_a_mismatch(
    tmp_path: Path, tear: Callable[[Path], object]
) -> None:
    save_core(tmp_path / "core", make_core(7, 3))
    tear(tmp_path / "core")
    with pytest.raises(CycleFailed) as caught:
        load_core(tmp_path / "core")
    assert caught.value.failure == "core_mismatch"


def test_a_core_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    core = make_core(7, 3)
    core.b_dec[2] = torch.inf
    save_core(tmp_path / "core", core)
    with pytest.raises(CycleFailed, match="b_dec is not finite"):
        load_core(tmp_path / "core")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    save_core(tmp_path / "core", make_core(7, 3))
    before = (tmp_path / "core" / "core.json").read_bytes()
    with pytest.raises(DmsaeError, match="must be empty"):
        save_core(tmp_path / "core", make_core(7, 4))
    with pytest.raises(DmsaeError, match="must be empty"):
        save_sae(tmp_path / "core", make_sae(), rms=RMS, facts={})
    assert (tmp_path / "core" / "core.json").read_bytes() == before


def test_the_saved_tensors_are_a_plain_jumprelu_sae_of_raw_activations(tmp_path: Path) -> None:
    sae = make_sae()
    save_sae(tmp_path, sae, rms=RMS, facts={})
    saved = safetensors.torch.load_file(tmp_path / "sae_weights.safetensors")
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(4))
    latent_acts = sae.encode(x)

    raw_pre_acts = torch.relu((RMS * x - saved["b_dec"]) @ saved["W_enc"] + saved["b_enc"])
    raw_acts = raw_pre_acts * (raw_pre_acts > saved["threshold"])
    raw_x_hat = raw_acts @ saved["W_dec"] + saved["b_dec"]

    assert saved.keys() == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    assert 0 < (latent_acts > 0).sum() < latent_acts.numel() / 2
    torch.testing.assert_close(raw_acts, RMS * latent_acts, rtol=1e-5, atol=1e-5 * RMS)
    torch.testing.assert_close(raw_x_hat, RMS * sae.decode(latent_acts), rtol=1e-5, atol=1e-5 * RMS)
    assert torch.equal(saved["W_enc"], sae.W_enc)
    assert torch.equal(saved["W_dec"], sae.W_dec)


def test_the_configuration_says_what_saelens_6_needs(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(), rms=RMS, facts={"latent_ids": ["a.0.1"], "nested": {"split_salt": "s"}})
    config = json.loads((tmp_path / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "jumprelu",
        "d_in": D_MODEL,
        "d_sae": N_LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert tuple(map(int, metadata["sae_lens_version"].split("."))) >= (6, 0, 0)
    assert metadata["nested"] == {"split_salt": "s"}


def test_an_sae_comes_back_at_normalised_scale_with_its_facts(tmp_path: Path) -> None:
    sae = make_sae()
    save_sae(tmp_path, sae, rms=RMS, facts={"cycle_index": 2})
    again, facts = load_sae(tmp_path)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        torch.testing.assert_close(getattr(again, name), getattr(sae, name), rtol=1e-6, atol=0)
    assert (again.prefix_widths, again.n_core) == (sae.prefix_widths, sae.n_core)
    assert facts == {"cycle_index": 2, "rms": RMS, "prefix_widths": sae.prefix_widths, "n_core": sae.n_core}


def test_a_fact_may_not_take_a_reserved_name(tmp_path: Path) -> None:
    with pytest.raises(DmsaeError, match=r"facts\.rms"):
        save_sae(tmp_path / "sae", make_sae(), rms=RMS, facts={"rms": 1.0})
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize(
    "tear",
    [
        lambda folder: (folder / "cfg.json").unlink(),
        lambda folder: (folder / "cfg.json").write_text("{}"),
        lambda folder: (folder / "cfg.json").write_text("[]"),
        lambda folder: (folder / "sae_weights.safetensors").write_bytes(b"\x00" * 20),
        lambda folder: safetensors.torch.save_file(
            {"W_enc": torch.zeros(2, 2)}, folder / "sae_weights.safetensors"
        ),
    ],
)
def test_a_torn_or_foreign_sae_is_refused(tmp_path: Path, tear: Callable[[Path], object]) -> None:
    save_sae(tmp_path, make_sae(), rms=RMS, facts={})
    tear(tmp_path)
    with pytest.raises(CycleFailed) as caught:
        load_sae(tmp_path)
    assert caught.value.failure == "data_unreadable"
