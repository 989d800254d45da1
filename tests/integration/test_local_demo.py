"""`dmsae demo` from an empty folder to its report, on a tiny model."""

import json
from pathlib import Path

import pytest

from dmsae.local.demo import run_demo
from dmsae.local.demo_report import PHASES
from dmsae.local.paths import DataFolder
from dmsae.local.state import is_held
from tests.tiny import save_tiny_model, tiny_config, uncompiled_config

CYCLE_FIELDS = {
    "index", "n_candidates", "n_core", "n_new", "n_dropped", "retention", "share", "truncated", "l0",
    "core_density", "explained_variance", "lr_kept", "ce_increase", "n_tokens", "seconds",
    "phase_seconds", "n_tokens_harvested", "n_tokens_cached", "activation_wait_s",
}  # fmt: skip


def test_the_demo_shows_its_result_writes_its_report_and_stops_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tmp_path / "models" / "tiny")
    monkeypatch.setenv("DMSAE_ALLOWED_ROOTS", str(model.parent))
    monkeypatch.setenv("COLUMNS", "200")
    folder = DataFolder(tmp_path / "data")

    assert run_demo(folder.root, is_kept=False, settings=tiny_config(model, n_cycles=2)) == 0

    report = json.loads((folder.demo / "report.json").read_text())
    cycles, core = report["cycles"], report["core"]
    assert all(set(cycle) == CYCLE_FIELDS for cycle in cycles)
    assert [cycle["index"] for cycle in cycles] == list(range(len(cycles)))
    assert [sum(row) for row in report["origins"]] == [cycle["n_core"] for cycle in cycles]
    assert len(core) == cycles[-1]["n_core"]
    assert [latent["share"] for latent in core] == sorted((each["share"] for each in core), reverse=True)
    assert set(core[0]) == {"latent_id", "origin_cycle", "times_selected", "share"}
    assert report["seconds"]["training"] > 0
    assert report["seconds"]["uploading"] > 0
    assert [list(cycle["phase_seconds"]) for cycle in report["cycles"]] == [list(PHASES)] * 2
    assert [cycle["index"] for cycle in cycles if cycle["n_tokens_harvested"]] == [0]
    assert report["peak_memory_bytes"] > 0

    shown = " ".join(capsys.readouterr().out.split())
    job_id = report["distillation_id"]
    strongest = core[0]["latent_id"].removeprefix(f"{job_id}.")
    tables = ("Cycles", "Origins", "Seconds", "uploading", f"Strongest core latents of {job_id}")
    for words in ("cycle 1 of", *tables, f" {strongest} "):
        assert words in shown
    files = folder.demo / job_id / "cycle-0"
    assert (files / "sae" / "cfg.json").exists()
    assert not is_held(folder)


def test_a_demo_that_fails_says_why_and_gives_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DMSAE_ALLOWED_ROOTS", str(tmp_path / "models"))
    (tmp_path / "models" / "empty").mkdir(parents=True)
    folder = DataFolder(tmp_path / "data")
    settings = uncompiled_config(tmp_path / "models" / "empty")
    assert run_demo(folder.root, is_kept=False, settings=settings) == 1
    assert "model_" in capsys.readouterr().out
    assert not (folder.demo / "report.json").exists()
    assert not is_held(folder)
