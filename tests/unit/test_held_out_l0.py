"""Claims about the mean L0 of a saved SAE on tokens that were never trained on: short cycles keep it, too."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmsae.config import CycleSpec, DistillationConfig
from dmsae.cycle_inputs import Places, open_run, read_contexts
from dmsae.cycle_steps import run_cycle
from dmsae.formats import load_sae, save_sae
from dmsae.reporting import LineReport
from dmsae.rounding import RoundingError, round_to_half
from dmsae.sae import Core, normalise_rows_
from dmsae.stream import TokenStream
from dmsae.training import Trained, Trainer
from dmsae.windows import Window
from tests.tiny import save_tiny_model, tiny_spec
from tests.trained import Batches, make_config
from tests.unit.test_sae import make_core
from tests.unit.test_stream import NumberedWindows, make_stream

D_MODEL, N_LATENTS, K, BATCH, RMS = 32, 512, 8, 64, 3.0
N_THRESHOLD = 32_768
TOLERANCE = 0.03
"""What the issue asks for, of the budget."""
SPARSITIES = {"batch_topk": None, "exempt": make_core(D_MODEL, 5)}


def noisy(n_tokens: int, *, seed: int, d_model: int = D_MODEL) -> Tensor:
    """Draw sparse sums of the same directions, with as much noise: what is soon learned by heart."""
    directions = torch.randn(128, d_model, generator=torch.Generator().manual_seed(7))
    normalise_rows_(directions)
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(n_tokens, 128, generator=generator)
    present = torch.rand(n_tokens, 128, generator=generator) < 0.05
    noise = torch.randn(n_tokens, d_model, generator=generator) / d_model**0.5
    x = (present * strength) @ directions + noise
    return RMS * x / x.square().sum(dim=1).mean().sqrt()


def stream_over(x: Tensor, *, n_tokens: int) -> TokenStream:
    """Give a stream that trains on the first `n_tokens` of raw tokens that lie in two windows."""
    windows = NumberedWindows([1, 1])
    windows.contents = [
        Window(round_to_half(part), torch.zeros(len(part)), RoundingError()) for part in x.chunk(2)
    ]
    sizes = [len(content.norms) for content in windows.contents]
    return make_stream(sizes, windows=windows, rms=RMS, n_tokens=n_tokens, batch_tokens=BATCH)


def config_of(core_sparsity: str = "batch_topk") -> DistillationConfig:
    sae = {"n_latents": N_LATENTS, "k": K, "block_widths": [64, 128, 256], "core_sparsity": core_sparsity}
    return make_config(sae=sae, batch_tokens=BATCH, lr=1e-2, threshold_tokens=N_THRESHOLD)


def train(config: DistillationConfig, core: Core | None, *, n_steps: int) -> Trained:
    x = noisy(n_steps * BATCH + N_THRESHOLD, seed=0)
    trainer = Trainer(config, core, stream_over(x, n_tokens=n_steps * BATCH), seed=0)
    for _ in trainer.run():
        pass
    return trainer.finish()


def l0_of_folder(folder: Path, x: Tensor) -> float:
    sae, facts = load_sae(folder)
    return (sae.encode(x / facts["rms"]) > 0).sum(dim=1).double().mean().item()


@pytest.mark.parametrize("core_sparsity", SPARSITIES)
def test_after_40_steps_the_saved_sae_keeps_its_budget_on_held_out_tokens(
    tmp_path: Path, core_sparsity: str
) -> None:
    trained = train(config_of(core_sparsity), SPARSITIES[core_sparsity], n_steps=40)
    assert (trained.n_threshold_attribution, trained.calibration.n_tokens) == (0, N_THRESHOLD)
    save_sae(tmp_path, trained.sae, rms=RMS, facts={})
    assert l0_of_folder(tmp_path, noisy(N_THRESHOLD, seed=1)) == pytest.approx(K, rel=TOLERANCE)


def test_the_tokens_that_the_sae_was_trained_on_would_not_have_given_that_threshold(tmp_path: Path) -> None:
    x = noisy(40 * BATCH, seed=0)
    trainer = Trainer(config_of(), None, Batches(x / RMS, BATCH), seed=0)
    for _ in trainer.run():
        pass
    save_sae(tmp_path, trainer.finish().sae, rms=RMS, facts={})
    assert l0_of_folder(tmp_path, x) == pytest.approx(K, rel=1e-3)
    assert l0_of_folder(tmp_path, noisy(N_THRESHOLD, seed=1)) > K * (1 + 2 * TOLERANCE)


def test_after_4000_steps_it_keeps_its_budget_too(tmp_path: Path) -> None:
    x = noisy(4000 * 16, seed=0, d_model=8)
    sae = {"n_latents": 32, "k": 4, "block_widths": [6, 12]}
    config = make_config(sae=sae, batch_tokens=16, lr=3e-3, threshold_tokens=N_THRESHOLD)
    trainer = Trainer(config, None, Batches(x / RMS, 16), seed=0)  # none is left over: all were trained on
    for _ in trainer.run():
        pass
    save_sae(tmp_path, trainer.finish().sae, rms=RMS, facts={})
    held_out = noisy(N_THRESHOLD, seed=1, d_model=8)
    assert l0_of_folder(tmp_path, held_out) == pytest.approx(4, rel=TOLERANCE)


SHORT = {"n_tokens": 40 * 256, "threshold_tokens": N_THRESHOLD}
"""Some of the text once."""
LONG = {"n_tokens": None, "epochs": 4, "threshold_tokens": 16_384}
"""All of it, four times: nothing of the training part is left over for the threshold."""


@pytest.mark.parametrize(
    ("training", "n_attribution"), [(SHORT, 0), (LONG, 16_384)], ids=["40 steps", "four epochs"]
)
def test_a_cycle_on_text_keeps_its_budget_on_what_it_is_not_trained_on(
    tmp_path: Path, training: dict[str, Any], n_attribution: int
) -> None:
    """All of the evaluation part: in a few dozen documents the L0 strays by more than what is claimed."""
    settings = tiny_spec(
        save_tiny_model(tmp_path / "model"),
        data={
            "text": {"source": "builtin", "name": "python-topics"},
            "context_length": 32,
            "split": [0.4, 0.3, 0.3],
        },
        training={"batch_tokens": 256, "lr": 3e-3, **training},
        attribution={"n_tokens": max(500, n_attribution), "ablation_tokens": 64, "ablation_latents": 2},
        evaluation={"n_tokens": 300},
    )
    spec = CycleSpec.model_validate(settings)
    places, report = Places(tmp_path / "cache"), LineReport(io.StringIO())
    run_cycle(spec, tmp_path / "out", places=places, report=report)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n_threshold_tokens_attribution"] == n_attribution
    assert metrics["n_threshold_tokens"] == (n_attribution or N_THRESHOLD)

    run = open_run(spec, places=places, report=report)
    held_out = run.harvester().harvest(read_contexts(run).parts["evaluation"], part="evaluation")
    x = torch.cat([batch.activations[batch.is_kept] for batch in held_out])
    assert l0_of_folder(tmp_path / "out" / "sae", x) == pytest.approx(spec.config.sae.k, rel=TOLERANCE)
