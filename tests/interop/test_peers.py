"""What SAELens and dictionary_learning make of our folders: the same latents and vectors, all our facts.

Activations are raw on both sides. Conventions differ: the peers' SAEs work at raw scale, so that their latent
activations are rms times ours, and dictionary_learning's subtracts no decoder bias before it encodes.
"""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dmsae.config import SPLIT_SALT, CycleSpec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.exports import main as export
from dmsae.formats import load_core, load_sae, save_sae
from dmsae.reporting import LineReport
from dmsae.sae import MatryoshkaSae, normalise_rows_
from tests.tiny import VOCAB_SIZE, save_tiny_model, tiny_spec

TOLERANCE = 1e-5
N_TOKENS, D_MODEL, N_LATENTS, N_CORE, RMS = 256, 32, 96, 10, 137.4
KINDS = ("batch_topk", "exempt")
SOURCES = ("set by hand", "trained")
LAYER = 1
SHORT = {
    "training": {"n_tokens": 4096, "batch_tokens": 256, "lr": 3e-3, "threshold_tokens": 2048},
    "attribution": {"n_tokens": 500, "ablation_tokens": 64, "ablation_latents": 2},
    "evaluation": {"n_tokens": 300},
}


class Case(NamedTuple):
    """A folder with a saved SAE (`sae/`), its export (`exported/`) and raw activations (`x.safetensors`)."""

    folder: Path
    sae: MatryoshkaSae
    rms: float

    @property
    def x(self) -> Tensor:
        return load_file(self.folder / "x.safetensors")["x"]

    @property
    def facts(self) -> dict[str, Any]:
        return load_sae(self.folder / "sae")[1]


def sae_set_by_hand(kind: str) -> MatryoshkaSae:
    """Make an SAE with every bias, encoder vectors that are not of unit norm, and thresholds that differ."""
    generator = torch.Generator().manual_seed(5)
    W_dec = normalise_rows_(torch.randn(N_LATENTS, D_MODEL, generator=generator))
    W_enc = W_dec.T + 0.1 * torch.randn(D_MODEL, N_LATENTS, generator=generator)
    threshold = 0.1 + 0.2 * torch.rand(N_LATENTS, generator=generator)
    if kind == "exempt":
        threshold[:N_CORE] = 0
    return MatryoshkaSae(
        W_enc=W_enc,
        b_enc=0.1 * torch.randn(N_LATENTS, generator=generator),
        W_dec=W_dec,
        b_dec=0.2 * torch.randn(D_MODEL, generator=generator),
        threshold=threshold,
        prefix_widths=[24, 40, N_LATENTS],
        n_core=N_CORE,
    )


def save_by_hand(folder: Path, kind: str) -> Case:
    """Save an SAE that was set by hand, with nested facts, and random activations of a large norm."""
    sae = sae_set_by_hand(kind)
    facts = {
        "cycle_index": 3,
        "core_latent_ids": [f"dst_a.{index % 3}.{7 * index}" for index in range(N_CORE)],
        "split_salt": SPLIT_SALT,
        "model": {"source": "local", "path": "/models/ä"},
        "selected": [[3, "dst_a.0.21"], [40, "dst_a.3.40"]],
        "nothing": None,
    }
    save_sae(folder / "sae", sae, rms=RMS, facts=facts)
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(6)) * RMS / D_MODEL**0.5
    save_file({"x": x}, folder / "x.safetensors")
    return Case(folder, sae, RMS)


def train(folder: Path, kind: str) -> Case:
    """Train a tiny SAE around the core of a cycle before it, and take the model's own activations."""
    model = save_tiny_model(folder / "model", d_model=D_MODEL)
    for index in range(2):
        spec = tiny_spec(model, cycle_index=index, sae={"core_sparsity": kind}, **SHORT)
        run_cycle(
            CycleSpec.model_validate(spec),
            folder / str(index),
            places=Places(folder / "cache", folder / str(index - 1) / "core" if index else None),
            report=LineReport(io.StringIO()),
        )
    (folder / "1" / "sae").rename(folder / "sae")
    ids = torch.randint(3, VOCAB_SIZE, (N_TOKENS // 32, 32), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        states = AutoModelForCausalLM.from_pretrained(model)(ids, output_hidden_states=True).hidden_states
    save_file({"x": states[LAYER + 1].flatten(0, 1).contiguous()}, folder / "x.safetensors")
    sae, facts = load_sae(folder / "sae")
    return Case(folder, sae, facts["rms"])


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, run_peer: Callable[[str, list[Path]], None]
) -> dict[tuple[str, str], Case]:
    """Every case, read by both peers."""
    n_threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cases = {}
    for source, write in zip(SOURCES, (save_by_hand, train), strict=True):
        for kind in KINDS:
            cases[source, kind] = write(tmp_path_factory.mktemp(kind), kind)
    torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(is_deterministic)
    folders = [case.folder for case in cases.values()]
    for folder in folders:
        assert export([str(folder / "sae"), str(folder / "exported"), "--to", "dictionary-learning"]) == 0
    run_peer("read_with_sae_lens.py", folders)
    run_peer("read_with_dictionary_learning.py", folders)
    return cases


@pytest.fixture(params=[(source, kind) for source in SOURCES for kind in KINDS], ids=" ".join)
def case(request: pytest.FixtureRequest, cases: dict[tuple[str, str], Case]) -> Case:
    return cases[request.param]


@pytest.mark.parametrize("peer", ["sae_lens", "dictionary_learning"])
def test_a_peer_finds_the_same_latents_and_vectors(case: Case, peer: str) -> None:
    theirs = load_file(case.folder / f"{peer}.safetensors")
    sae, x_n = case.sae, case.x / case.rms
    pre_acts, latent_acts = sae.pre_acts(x_n), sae.encode(x_n)
    ours = {"latent_acts": case.rms * latent_acts, "x_hat": case.rms * sae.decode(latent_acts)}
    scale = ours["latent_acts"][latent_acts > 0].mean().item()

    # an activation within a rounding of its threshold may fall on either side of it
    is_borderline = (pre_acts - sae.threshold).abs() * case.rms <= TOLERANCE * scale
    is_sure = ~is_borderline.any(dim=1)
    assert is_sure.float().mean() > 0.95
    for name in ("latent_acts", "x_hat"):
        torch.testing.assert_close(
            theirs[name][is_sure], ours[name][is_sure], rtol=TOLERANCE, atol=TOLERANCE * scale
        )
    assert torch.equal(theirs["latent_acts"][is_sure] > 0, latent_acts[is_sure] > 0)


def test_the_activations_put_the_claim_to_the_test(case: Case) -> None:
    latent_acts = case.sae.encode(case.x / case.rms)
    is_active = latent_acts > 0
    assert 0 < is_active.sum() < 0.5 * is_active.numel()
    assert is_active[:, : case.sae.n_core].any()
    assert is_active[:, case.sae.n_core :].any()
    assert (case.sae.b_dec.abs() > 0.001).any()
    assert abs(case.rms - 1) > 0.1


@pytest.mark.parametrize("source", SOURCES)
def test_an_exempt_core_is_active_below_the_threshold_of_the_others(
    cases: dict[tuple[str, str], Case], source: str
) -> None:
    case = cases[source, "exempt"]
    theirs = load_file(case.folder / "sae_lens.safetensors")["latent_acts"][:, : case.sae.n_core]
    lowest = case.rms * case.sae.threshold[case.sae.n_core :].min()
    assert torch.equal(case.sae.threshold[: case.sae.n_core], torch.zeros(case.sae.n_core))
    assert ((theirs > 0) & (theirs < lowest)).any()


def test_saelens_keeps_every_fact_and_saves_a_folder_that_we_can_open(case: Case) -> None:
    read = json.loads((case.folder / "sae_lens.json").read_text())
    versions = {"sae_lens_version", "sae_lens_training_version"}
    assert read["class"] == "JumpReLUSAE"
    assert {name: fact for name, fact in read["metadata"].items() if name not in versions} == case.facts
    again, facts = load_sae(case.folder / "sae_lens")
    assert facts == case.facts
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        torch.testing.assert_close(getattr(again, name), getattr(case.sae, name), rtol=1e-6, atol=0)


def test_dictionary_learning_opens_its_own_class_beside_every_fact(case: Case) -> None:
    read = json.loads((case.folder / "dictionary_learning.json").read_text())
    assert read == {"class": "JumpReluAutoEncoder", "metadata": case.facts}


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_of_a_trained_sae_say_where_its_latents_come_from(
    cases: dict[tuple[str, str], Case], kind: str
) -> None:
    folder = cases["trained", kind].folder
    core, chosen = load_core(folder / "0" / "core"), load_core(folder / "1" / "core")
    read = json.loads((folder / "sae_lens.json").read_text())["metadata"]
    expected = {
        "cycle_index": 1,
        "n_core": core.n_core,
        "prefix_widths": [core.n_core + 12, core.n_core + 24, core.n_core + 40, 64],
        "core_latent_ids": [latent.latent_id for latent in core.latents],
        "rms": core.rms,
        "split_salt": SPLIT_SALT,
    }
    assert {name: read[name] for name in expected} == expected
    assert [latent_id for _, latent_id in read["selected"]] == [latent.latent_id for latent in chosen.latents]


def test_a_folder_whose_scale_is_wrong_would_be_noticed(cases: dict[tuple[str, str], Case]) -> None:
    case = cases["set by hand", "exempt"]
    theirs = load_file(case.folder / "sae_lens.safetensors")
    unscaled = replace(case.sae, b_dec=case.sae.b_dec / case.rms)
    x_hat = case.rms * unscaled.decode(unscaled.encode(case.x / case.rms))
    assert ((theirs["x_hat"] - x_hat).norm() / theirs["x_hat"].norm()) > 0.01
