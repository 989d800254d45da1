"""`dmsae export --to neuronpedia` against a real API and store: what is fetched, written and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import Client
from dmsae.errors import BadRequest, DmsaeError
from dmsae.service.database import Database
from dmsae.service.objects import ObjectStore
from dmsae.service.recording import record_success
from dmsae.service.settings import Settings
from tests.finished import claim_of
from tests.integration.test_pulling import stored
from tests.neuronpedia_tables import read_tables
from tests.planting import as_result, make_lineage, plant_worker
from tests.serving import served
from tests.unit.test_neuronpedia import write_cycle


def finish(settings: Settings, database: Database, worker_id: str, folder: Path) -> None:
    """Record the cycle of the job that waits first, with the files of a folder."""
    claim = claim_of(database, worker_id)
    lineage = make_lineage(claim, [], kept=[], new=[3, 5])
    store = ObjectStore(settings)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = tuple(stored(store, claim.object_prefix, path, folder) for path in paths)
    store.close()
    database.run(lambda session: record_success(session, claim, artifacts=files, result=as_result(lineage)))


def test_a_jobs_core_is_exported_from_the_shell_and_what_cannot_be_is_said(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    worker_id = database.run(lambda session: plant_worker(session, "cpu"))
    with served(settings) as api, Client(str(api.base_url)) as client:
        ids = [client.distillations.create({"preset": "demo", "n_cycles": 1})["id"] for _ in range(2)]
        finish(settings, database, worker_id, write_cycle(tmp_path / "cycle"))
        bare = write_cycle(tmp_path / "bare")
        shutil.rmtree(bare / "snippets")
        finish(settings, database, worker_id, bare)
        url = ["--url", str(api.base_url)]

        def export(job_id: str, folder: str, *options: str, to: str = "neuronpedia") -> Any:
            asked = ["export", job_id, str(tmp_path / folder), "--to", to, *options, *url, "--json"]
            done = CliRunner().invoke(cli.app, asked, catch_exceptions=False)
            return json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))

        told = export(ids[0], "out", "--model-id", "gpt2-small", "--source-set", "core")
        assert told["source"] == "gpt2-small/12-core"
        assert (told["n_latents"], told["n_texts"], told["n_left_out"]) == (2, 4, 1)
        tables = read_tables(tmp_path / "out" / told["source"])
        assert [row.index for row in tables["features"]] == ["7", "2"]
        assert (tmp_path / "out" / "sae" / "sae_weights.safetensors").is_file()
        with pytest.raises(DmsaeError, match=r"snippets\.budget_bytes"):
            export(ids[1], "none")
        with pytest.raises(BadRequest, match="--model-id"):
            export(ids[0], "dl", "--model-id", "m", to="dictionary-learning")
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "dl").exists()
