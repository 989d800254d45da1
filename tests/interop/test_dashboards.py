"""Batches of an export for Neuronpedia, opened by SAEDashboard's own classes: every field is theirs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmsae.neuronpedia import Names, export_neuronpedia
from tests.unit.test_neuronpedia import write_cycle

ADDED = {
    "batch": {"sae_id_suffix": None},
    "feature": {"vector": []},
    "activation": {},
}
"""What their classes write besides, each with what it means that we do not give it."""


def without(record: dict[str, Any], kind: str) -> dict[str, Any]:
    """Take away what was added, having looked at it."""
    assert {name: record.get(name) for name in ADDED[kind]} == ADDED[kind]
    return {name: value for name, value in record.items() if name not in ADDED[kind]}


def test_saedashboard_opens_every_field_of_a_batch(
    run_peer: Callable[[str, list[Path]], None], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    export_neuronpedia(write_cycle(tmp_path / "cycle"), folder, names=Names())
    run_peer("read_with_sae_dashboard.py", [folder])
    written, opened = (
        json.loads((folder / name / "batch-0.json").read_text(encoding="utf-8"))
        for name in ("saedashboard", "opened")
    )
    batch = without(opened, "batch")
    batch["features"] = [without(latent, "feature") for latent in batch["features"]]
    assert batch == written
    assert [len(latent["activations"]) for latent in batch["features"]] == [4, 0]
