"""Whole cycles with activations from the cache, from memory and straight from the model: the same results."""

import json

import pytest
import torch

from dmsae.config import CycleSpec
from dmsae.cycle_inputs import Places, harvest_parts, open_run, read_contexts
from dmsae.cycle_steps import run_cycle
from dmsae.stream import Order, TokenStream
from dmsae.training import Trainer
from tests.recorder import Recorder
from tests.texts import json_lines, passages, write_bytes
from tests.tiny import save_tiny_model, tiny_spec
from tests.trained import assert_same_bits

SETTINGS = {
    "training": {"n_tokens": 12_000, "batch_tokens": 1000, "lr": 3e-3, "epochs": 2, "threshold_tokens": 3000},
    "attribution": {"n_tokens": 300, "ablation_tokens": 50, "ablation_latents": 2},
    "evaluation": {"n_tokens": 300},
    "activations": {"layer": 1, "max_norm_multiple": 1.4, "model_batch_contexts": 64},
}
USAGE = {
    "n_tokens_harvested", "n_tokens_cached", "activation_wait_s", "rounding_error", "seconds",
    "phase_seconds", "peak_memory_bytes",
}  # fmt: skip
"""Metrics that depend on where activations came from, or on the clock."""
PLENTY = 2**31


@pytest.fixture
def streaming(monkeypatch):
    """Let no window stay in memory, and the scale come from the first one."""
    monkeypatch.setattr("dmsae.cycle_inputs.MAX_RESIDENT_BYTES", 0)
    monkeypatch.setattr("dmsae.survey.SCALE_TOKENS", 1000)
    monkeypatch.setattr("dmsae.activations.SCALE_TOKENS", 1000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows").resolve()
    rows = json_lines([{"text": passage} for passage in passages(100)])
    return {"source": "files", "paths": [str(write_bytes(folder / "rows.jsonl", rows))]}


def spec_of(model, text, **settings):
    data = {"text": text, "context_length": 8, "split": [0.8, 0.1, 0.1]}
    return CycleSpec.model_validate(tiny_spec(model, data=data, **{**SETTINGS, **settings}))


def run(spec, out, *, cache, max_bytes=PLENTY):
    report = Recorder()
    run_cycle(spec, out, places=Places(cache, activation_cache_bytes=max_bytes), report=report)
    return report, json.loads((out / "metrics.json").read_text())


def results(out):
    """Give all that a cycle leaves behind, but for its times and where activations came from."""
    found = {
        str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()
    }
    metrics = json.loads(found.pop("metrics.json"))
    return found, {name: value for name, value in metrics.items() if name not in USAGE}


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("n_tokens", [12_000, 5000, None])
def test_cached_and_streamed_give_the_same_results_to_the_bit(model, text, tmp_path, n_tokens):
    spec = spec_of(model, text, training={**SETTINGS["training"], "n_tokens": n_tokens})
    report, cold = run(spec, tmp_path / "cold", cache=tmp_path / "cache")
    assert "cache_unavailable" not in report.events
    assert cold["n_tokens_harvested"] > 0
    _, warm = run(spec, tmp_path / "warm", cache=tmp_path / "cache")
    assert warm["n_tokens_harvested"] == 0 < warm["n_tokens_cached"]
    report, streamed = run(spec, tmp_path / "streamed", cache=tmp_path / "none", max_bytes=0)
    assert "room for 0" in report.events["cache_unavailable"][0]
    assert streamed["n_tokens_cached"] == 0 < streamed["n_tokens_harvested"]
    half = 300_000
    _, _ = run(spec, tmp_path / "half-cold", cache=tmp_path / "half", max_bytes=half)
    report, partly = run(spec, tmp_path / "half-warm", cache=tmp_path / "half", max_bytes=half)
    if n_tokens != 5000:
        assert min(partly["n_tokens_harvested"], partly["n_tokens_cached"]) > 0
    for name in ("warm", "streamed", "half-cold", "half-warm"):
        assert results(tmp_path / name) == results(tmp_path / "cold"), name


def test_a_cache_that_cannot_be_written_is_said_and_changes_nothing(model, text, tmp_path):
    spec = spec_of(model, text)
    run(spec, tmp_path / "plain", cache=tmp_path / "cache")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "activations").write_text("no folder")
    report, metrics = run(spec, tmp_path / "out", cache=tmp_path / "broken")
    message, data = report.events["cache_unavailable"]
    assert data["reason"] == "File exists"
    assert "File exists" in message
    assert metrics["n_tokens_cached"] == 0
    assert results(tmp_path / "out") == results(tmp_path / "plain")


@pytest.mark.usefixtures("streaming")
def test_what_is_dropped_is_told_after_training_where_it_is_counted_then(model, text, tmp_path):
    spec = spec_of(model, text, training={**SETTINGS["training"], "n_tokens": 4000})
    cached, _ = run(spec, tmp_path / "cached", cache=tmp_path / "cache")
    streamed, _ = run(spec, tmp_path / "streamed", cache=tmp_path / "none", max_bytes=0)
    assert streamed.events["tokens_dropped"] == cached.events["tokens_dropped"]
    assert cached.events["tokens_dropped"][1]["training"]["norm"] > 100


def opened(spec, cache, *, max_bytes):
    places = Places(cache, activation_cache_bytes=max_bytes)
    cycle = open_run(spec, places=places, report=Recorder())
    harvest = harvest_parts(cycle, read_contexts(cycle))
    training, attribution = spec.config.training, harvest.attribution
    stream = TokenStream(
        harvest.windows, harvest.survey, training, order=Order(0, 0), attribution=attribution
    )
    return harvest, stream


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("max_bytes", [0, PLENTY])
def test_stopped_and_resumed_is_never_stopped_wherever_activations_come_from(
    model, text, tmp_path, max_bytes
):
    """Within a window, at its end, in a batch across two, in the second epoch, at the last step."""
    spec = spec_of(model, text, training={**SETTINGS["training"], "batch_tokens": 500})
    torch.set_num_threads(1)
    harvest, stream = opened(spec, tmp_path / "whole", max_bytes=PLENTY)
    whole = list(stream)
    ends = [sum(count.n_kept for count in harvest.survey.tally.counts[: i + 1]) for i in range(4)]
    harvest.windows.close()
    steps = {1, ends[0] // 500, ends[0] // 500 + 1, ends[1] // 500 + 1, ends[3] // 500 + 2, len(whole) - 1}
    for step in sorted(steps):
        stopped_harvest, stopped = opened(spec, tmp_path / f"stopped-{step}", max_bytes=max_bytes)
        before = [next(stopped) for _ in range(step)]
        stopped_harvest.windows.close()
        resumed_harvest, resumed = opened(spec, tmp_path / f"resumed-{step}", max_bytes=max_bytes)
        resumed.load_state_dict(stopped.state_dict())
        found = [*before, *resumed]
        resumed_harvest.windows.close()
        assert len(found) == len(whole)
        assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))


@pytest.mark.usefixtures("streaming")
def test_a_trainer_resumed_on_streamed_activations_ends_with_the_same_sae(model, text, tmp_path):
    spec = spec_of(model, text)
    torch.set_num_threads(1)
    harvest, stream = opened(spec, tmp_path, max_bytes=PLENTY)
    trainer = Trainer(spec.config, None, stream, seed=0)
    list(trainer.run())
    expected = trainer.finish().sae
    harvest.windows.close()
    harvest, stream = opened(spec, tmp_path / "none", max_bytes=0)
    stopped = Trainer(spec.config, None, stream, seed=0)
    for _ in zip(range(5), stopped.run(), strict=False):
        pass
    state = stopped.state_dict()
    harvest.windows.close()
    harvest, stream = opened(spec, tmp_path / "none", max_bytes=0)
    resumed = Trainer(spec.config, None, stream, seed=0)
    resumed.load_state_dict(state)
    list(resumed.run())
    assert_same_bits(resumed.finish().sae, expected)
    harvest.windows.close()
