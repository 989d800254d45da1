"""Whole cycles that break off in the middle and go on from a checkpoint: as if they had never stopped."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from dmsae.checkpoints import (
    FACTS,
    CheckpointRefused,
    Checkpoints,
    fingerprint_of,
    open_checkpoint,
    save_checkpoint,
)
from dmsae.config import CycleSpec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.errors import DmsaeError
from tests.recorder import Recorder
from tests.texts import json_lines, passages, write_bytes
from tests.tiny import save_tiny_model, tiny_spec

SETTINGS = {
    "training": {
        "n_tokens": 3000,
        "batch_tokens": 250,
        "lr": 3e-3,
        "epochs": 2,
        "threshold_tokens": 500,
        "dead_after_tokens": 750,
    },
    "attribution": {"n_tokens": 300, "ablation_tokens": 50, "ablation_latents": 1},
    "evaluation": {"n_tokens": 300},
    "activations": {"layer": 1, "max_norm_multiple": 1.4, "model_batch_contexts": 64},
}
N_STEPS = 12
CHANGING = ("n_tokens_harvested", "n_tokens_cached", "activation_wait_s", "seconds", "phase_seconds",
            "peak_memory_bytes")  # fmt: skip
"""Metrics that tell of the clock and of work that had to be done again."""
PLENTY = 2**31


class Killed(Exception):
    """The process is gone."""


class Mortal(Recorder):
    """Dies as soon as it hears of the checkpoint after some step."""

    def __init__(self, last_step=None):
        super().__init__()
        self.last_step = last_step
        self.kinds = []

    def event(self, kind, message, data):
        super().event(kind, message, data)
        self.kinds.append(kind)

    def checkpoint(self, step, path):
        super().checkpoint(step, path)
        if step == self.last_step:
            raise Killed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows").resolve()
    rows = json_lines([{"text": passage} for passage in passages(60)])
    return {"source": "files", "paths": [str(write_bytes(folder / "rows.jsonl", rows))]}


@pytest.fixture(scope="module")
def core_dir(model, text, tmp_path_factory):
    """The core of a cycle 0."""
    folder = tmp_path_factory.mktemp("before")
    run_cycle(spec_of(model, text, index=0), folder / "out", places=Places(folder), report=Recorder())
    return folder / "out" / "core"


@pytest.fixture
def streaming(monkeypatch):
    """Let no window stay in memory, and the scale come from the first one."""
    monkeypatch.setattr("dmsae.cycle_inputs.MAX_RESIDENT_BYTES", 0)
    for module in ("survey", "activations"):
        monkeypatch.setattr(f"dmsae.{module}.SCALE_TOKENS", 1000)


def spec_of(model, text, *, index=1, step="plain", sparsity="batch_topk", **changes):
    data = {"text": text, "context_length": 8, "split": [0.8, 0.1, 0.1]}
    spec = tiny_spec(model, cycle_index=index, data=data, **{**SETTINGS, **changes})
    spec["config"]["training"]["step"] = step
    spec["config"]["sae"]["core_sparsity"] = sparsity
    return CycleSpec.model_validate(spec)


class Attempts:
    """Attempts at one cycle, each with folders of its own, as on hosts that share nothing."""

    def __init__(self, spec, folder, *, core_dir=None, max_bytes=PLENTY):
        self.spec, self.folder, self.core_dir, self.max_bytes = spec, folder, core_dir, max_bytes
        self.n_made = 0
        self._whole = None

    def whole(self):
        """Run an attempt that never stops, or give the one that was made."""
        self._whole = self._whole or self.run(every_s=1e9)
        return self._whole

    def run(self, *, last_step=None, resume=None, every_s=0.0):
        """Run an attempt, to its end or until it dies; give what it said and its folder."""
        self.n_made += 1
        folder, report = self.folder / str(self.n_made), Mortal(last_step)
        places = Places(
            folder / "cache", self.core_dir, activation_cache_bytes=self.max_bytes, resume_dir=resume
        )
        checkpoints = Checkpoints(folder / "checkpoints", every_s=every_s)
        arguments = {"places": places, "report": report, "checkpoints": checkpoints}
        if last_step is None:
            run_cycle(self.spec, folder / "out", **arguments)
        else:
            with pytest.raises(Killed):
                run_cycle(self.spec, folder / "out", **arguments)
        return report, folder / "out"


def results(out):
    """Give all that a cycle leaves behind, but for what may differ."""
    found = {
        str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()
    }
    metrics = json.loads(found.pop("metrics.json"))
    return found, {name: value for name, value in metrics.items() if name not in CHANGING}


def newest(report):
    return Path(report.checkpoints[-1][1])


# ---- the same bits


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize(
    ("step", "sparsity", "max_bytes"),
    [
        ("plain", "batch_topk", PLENTY),
        ("plain", "exempt", 0),
        ("fast", "batch_topk", 0),
        ("fast", "exempt", PLENTY),
    ],
)
def test_a_cycle_that_broke_off_three_times_ends_with_the_bits_of_one_that_never_did(
    model, text, core_dir, tmp_path, step, sparsity, max_bytes
):
    spec = spec_of(model, text, step=step, sparsity=sparsity)
    attempts = Attempts(spec, tmp_path, core_dir=core_dir, max_bytes=max_bytes)
    never, whole = attempts.whole()
    assert never.checkpoints == []
    resume = None
    for last_step in (1, 5, N_STEPS):
        report, _ = attempts.run(last_step=last_step, resume=resume)
        resume = newest(report)
    report, out = attempts.run(resume=resume)
    assert report.events["resumed"][1] == {"step": N_STEPS}
    assert "hardware_changed" not in report.events
    assert results(out) == results(whole)


@pytest.fixture(scope="module")
def first_half(model, text, tmp_path_factory):
    """A cycle that broke off after some steps, whose other attempts may follow."""
    attempts = Attempts(spec_of(model, text, index=0), tmp_path_factory.mktemp("half"))
    return attempts, attempts.run(last_step=5)[0]


@pytest.fixture(scope="module")
def both_halves(first_half):
    attempts, first = first_half
    return attempts, first, *attempts.run(resume=newest(first))


def test_steps_are_told_from_the_one_behind_the_checkpoint_with_the_same_figures(both_halves):
    attempts, _, second, _ = both_halves
    told = [step["step"] for step in second.steps if step["step"]]
    assert (told[0], told[-1]) == (6, N_STEPS)
    clock = {"tokens_per_s": 0, "time_left_s": 0}
    assert second.steps[-1] | clock == attempts.whole()[0].steps[-1] | clock


def test_what_an_earlier_attempt_told_is_not_told_again(both_halves):
    attempts, first, second, _ = both_halves
    assert sorted(first.kinds + second.kinds) == sorted([*attempts.whole()[0].kinds, "resumed"])


def test_the_seconds_of_the_attempt_before_count_and_a_change_of_hardware_is_told(first_half):
    attempts, first = first_half
    folder = attempts.folder / "elsewhere"
    shutil.copytree(newest(first), folder)
    notes = json.loads((folder / FACTS).read_text())["notes"]
    notes["seconds"]["training"] = 1000.0
    notes["hardware"]["instruction_set"] = "ABACUS"
    spoil_facts(folder, notes=notes)
    second, out = attempts.run(resume=folder)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["phase_seconds"]["training"] > 1000
    assert metrics["seconds"] > 1000
    message, data = second.events["hardware_changed"]
    assert "ABACUS" in message
    assert data["now"] == {**data["before"], "instruction_set": data["now"]["instruction_set"]}


def test_a_cycle_in_parts_finds_the_same_latents_and_says_what_differs(model, text, tmp_path):
    found = {}
    for n_parts in (1, 2):
        report, folder = Mortal(), tmp_path / str(n_parts)
        places = Places(folder / "cache", n_parts=n_parts)
        run_cycle(spec_of(model, text, index=0), folder / "out", places=places, report=report)
        metrics, lineage = (
            json.loads((folder / "out" / f"{name}.json").read_text()) for name in ("metrics", "lineage")
        )
        assert metrics["n_parts"] == n_parts
        assert ("computed_in_parts" in report.events) == (n_parts > 1)
        found[n_parts] = {entry["latent_id"]: entry["score"] for entry in lineage["core"]}
    assert report.events["computed_in_parts"][1] == {
        "n_parts": 2,
        "model_batch_contexts": 32,
        "is_step_split": True,
    }
    assert found[2] == pytest.approx(found[1], rel=1e-2)


# ---- what does not fit


def spoil_facts(folder, **changes):
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, **changes}))


def spoil_tensor(folder):
    file = folder / "state.W_dec.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")


SPOILT = {
    "is of other settings": lambda folder: spoil_facts(folder, fingerprint="0" * 64),
    "is not of format": lambda folder: spoil_facts(folder, format="dmsae-checkpoint-0"),
    "is not the file": spoil_tensor,
    "is not whole": lambda folder: (folder / "state.W_dec.safetensors").unlink(),
    "is not whole (JSONDecodeError)": lambda folder: (folder / FACTS).write_text("{"),
}


@pytest.mark.parametrize("reason", SPOILT)
def test_a_checkpoint_that_does_not_fit_is_refused_by_its_reason(tmp_path, reason):
    save_checkpoint(tmp_path / "it", {"W_dec": torch.zeros(3)}, step=1, notes={}, fingerprint="f")
    assert open_checkpoint(tmp_path / "it", fingerprint="f").step == 1
    SPOILT[reason](tmp_path / "it")
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(tmp_path / "it", fingerprint="f")
    assert reason in refused.value.message


@pytest.mark.parametrize("spoilt", [{"format": "other"}, {"state": {"dict": [["step", 3]]}}])
def test_where_a_checkpoint_is_refused_the_cycle_begins_anew_and_says_so(first_half, spoilt):
    attempts, first = first_half
    folder = newest(first)
    shutil.copytree(folder, attempts.folder / "spoilt")
    spoil_facts(attempts.folder / "spoilt", **spoilt)
    second, out = attempts.run(resume=attempts.folder / "spoilt")
    shutil.rmtree(attempts.folder / "spoilt")
    assert "begins anew" in second.events["checkpoint_refused"][0]
    assert "resumed" not in second.events
    assert next(step["step"] for step in second.steps if step["step"]) == 1
    assert results(out) == results(attempts.whole()[1])


def test_other_settings_and_another_core_have_other_fingerprints(model, text, core_dir):
    spec, other = spec_of(model, text), spec_of(model, text, seed=5)
    prints = {fingerprint_of(spec, core_dir), fingerprint_of(spec, None), fingerprint_of(other, core_dir)}
    assert len(prints) == 3
    again = CycleSpec.model_validate_json(spec.model_dump_json(exclude_unset=True))
    assert fingerprint_of(again, core_dir) in prints


# ---- when, and where


def test_one_is_due_when_the_seconds_have_gone_by_or_somebody_asks(tmp_path):
    is_asked = threading.Event()
    rare = Checkpoints(tmp_path, every_s=1e9, is_asked=is_asked)
    assert not rare.is_due(3, n_steps=10)
    is_asked.set()
    assert rare.is_due(3, n_steps=10)
    rare.write(3, {}, notes={}, fingerprint="")
    assert not rare.is_due(4, n_steps=10)
    assert Checkpoints(tmp_path, every_s=0).is_due(1, n_steps=10)


def test_a_disk_without_room_is_told_once_and_costs_no_result(model, text, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    attempts = Attempts(spec_of(model, text, index=0), tmp_path)
    monkeypatch.setattr("dmsae.checkpoints.save_checkpoint", refuse)
    report, out = attempts.run()
    assert report.kinds.count("checkpoint_unwritten") == 1
    assert report.checkpoints == []
    assert (out / "lineage.json").exists()


def test_any_state_comes_back_as_it_was(tmp_path):
    state = {
        "plain": [None, True, 3, 0.1, "text", float("inf")],
        "by number": {0: (torch.tensor(2.5), torch.arange(3))},
        "view": torch.arange(12, dtype=torch.float32).view(3, 4)[1:, ::2],
    }
    save_checkpoint(tmp_path / "it", state, step=5, notes={"a": 1}, fingerprint="f")
    opened = open_checkpoint(tmp_path / "it", fingerprint="f")
    found = opened.load_state()
    assert (opened.step, opened.notes) == (5, {"a": 1})
    assert found["plain"] == state["plain"]
    assert isinstance(found["by number"][0], tuple)
    assert [tensor.tolist() for tensor in found["by number"][0]] == [2.5, [0, 1, 2]]
    assert torch.equal(found["view"], state["view"])
    assert found["by number"][0][1].dtype == torch.int64


def test_what_cannot_be_kept_leaves_nothing_behind(tmp_path):
    with pytest.raises(DmsaeError, match="lock"):
        save_checkpoint(
            tmp_path / "it", {"x": torch.ones(2), "y": threading.Lock()}, step=1, notes={}, fingerprint="f"
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointRefused):
        open_checkpoint(tmp_path / "it", fingerprint="f")
