"""Whole cycles of a tiny model, once with each kind of step: what they find may differ by rounding alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from dmsae.config import CycleSpec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from tests.recorder import Recorder
from tests.tiny import save_tiny_model, tiny_spec


class Ran(NamedTuple):
    """What a cycle left and said."""

    metrics: dict[str, Any]
    core: list[dict[str, Any]]
    scores: dict[str, torch.Tensor]
    last: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ran]]:
    """Two cycles with each kind of step, the second around the core of the first."""
    folder = tmp_path_factory.mktemp("steps")
    model = save_tiny_model(folder / "model")
    return {
        step: [run(model, folder / step, index=index, step=step) for index in range(2)]
        for step in ("fast", "plain")
    }


def run(model: Path, folder: Path, *, index: int, step: str) -> Ran:
    spec = tiny_spec(model, cycle_index=index)
    spec["config"]["training"]["step"] = step
    out, report = folder / str(index), Recorder()
    places = Places(folder / "cache", folder / str(index - 1) / "core" if index else None)
    run_cycle(CycleSpec.model_validate(spec), out, places=places, report=report)
    metrics, lineage = (json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "lineage"))
    return Ran(metrics, lineage["core"], load_file(out / "scores.safetensors"), report.steps[-1])


TOLERANCE = 1e-3
"""One near-tie that falls differently moves 1 of the 1536 activations of a batch, a thousandth."""


@pytest.mark.parametrize("index", [0, 1])
def test_both_steps_end_training_with_the_same_losses(ran, index):
    fast, plain = ran["fast"][index].last, ran["plain"][index].last
    for name in ("loss", "l0", "l0_core", "explained_variance", "explained_variance_first"):
        assert fast[name] == pytest.approx(plain[name], rel=TOLERANCE), name
    for name in ("step", "lr", "clipped_fraction", "dead_fraction"):
        assert fast[name] == plain[name], name


@pytest.mark.parametrize("index", [0, 1])
def test_both_steps_select_the_same_core_by_the_same_scores(ran, index):
    fast, plain = ran["fast"][index], ran["plain"][index]
    assert [entry["latent_id"] for entry in fast.core] == [entry["latent_id"] for entry in plain.core]
    assert len(fast.core) > 1
    for name in ("absolute", "signed", "quantile", "energy"):
        scores, others = fast.scores[f"score_{name}"], plain.scores[f"score_{name}"]
        torch.testing.assert_close(scores, others, rtol=0, atol=TOLERANCE * others.max().item())


@pytest.mark.parametrize("index", [0, 1])
def test_both_steps_are_worth_the_same_on_tokens_never_trained_on(ran, index):
    fast, plain = ran["fast"][index].metrics, ran["plain"][index].metrics
    for name in ("l0", "explained_variance", "lr_kept", "share"):
        assert fast[name] == pytest.approx(plain[name], rel=TOLERANCE), name
    # a difference of two cross-entropies of about 5 nats
    assert fast["ce_increase"] == pytest.approx(plain["ce_increase"], abs=5 * TOLERANCE)
