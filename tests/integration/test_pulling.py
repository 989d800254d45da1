"""The client against a real API and store: pull, wait, lineage, an SAE, and the same asynchronously."""

import asyncio
import json
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import AsyncClient, Client
from dmsae.errors import Conflict, NotFound
from dmsae.formats import save_sae
from dmsae.sae import MatryoshkaSae
from dmsae.service.claims import StoredFile
from dmsae.service.database import Database
from dmsae.service.objects import ObjectStore
from dmsae.service.recording import record_success
from dmsae.service.settings import Settings
from dmsae.version import VERSION
from tests.finished import claim_of
from tests.planting import as_result, make_lineage, plant_worker
from tests.serving import served

RMS = 2.0


@dataclass(frozen=True)
class Lab:
    api: httpx.Client
    job_id: str
    saes: list[MatryoshkaSae]
    database: Database

    @property
    def url(self) -> str:
        return str(self.api.base_url)

    def run(self, *arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(cli.app, [*arguments, "--url", self.url], catch_exceptions=False)
        assert done.exit_code == status, done.output
        said = [line for line in done.stdout.splitlines() if "request_answered" not in line]
        return "\n".join(said)


@pytest.fixture
def lab(settings: Settings, database: Database, tmp_path: Path) -> Iterator[Lab]:
    """A distillation of two cycles whose SAEs lie in the store."""
    short = settings.model_copy(update={"presign_s": 1})
    worker_id = database.run(lambda session: plant_worker(session, "cpu"))
    with served(short) as api, Client(str(api.base_url)) as client:
        job_id = client.distillations.create({"preset": "demo", "n_cycles": 2})["id"]
        saes, core = [], []
        store = ObjectStore(settings)
        for index, step in enumerate(({"kept": [], "new": [3, 5]}, {"kept": [0], "new": [2]})):
            claim = claim_of(database, worker_id)
            lineage = make_lineage(claim, core, **step)
            core = lineage["core"]
            saes.append(make_sae(seed=index))
            folder = tmp_path / f"out_{index}"
            save_sae(folder / "sae", saes[-1], rms=RMS, facts={"cycle_index": index})
            (folder / "empty").touch()
            files = [
                stored(store, claim.object_prefix, path, folder)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            result = as_result(lineage)
            database.run(
                lambda session, claim=claim, files=files, result=result: record_success(
                    session, claim, artifacts=tuple(files), result=result
                )
            )
        store.close()
        yield Lab(api, job_id, saes, database)


def make_sae(*, seed: int) -> MatryoshkaSae:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return MatryoshkaSae(
        W_enc=draw(4, 8), b_enc=draw(8), W_dec=draw(8, 4), b_dec=draw(4), threshold=draw(8).abs(),
        prefix_widths=(4, 8), n_core=0,
    )  # fmt: skip


def stored(store: ObjectStore, prefix: str, path: Path, folder: Path) -> StoredFile:
    name = path.relative_to(folder).as_posix()
    put = store.put_file(f"{prefix}{name}", path)
    return StoredFile(name, put.key, put.size_bytes, put.sha256)


def test_a_pulled_folder_is_whole_and_a_second_pull_fetches_nothing(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "pulled"
    said = json.loads(lab.run("pull", lab.job_id, str(folder), "--json"))
    assert said["cycles"] == [0, 1]
    assert [file["is_new"] for file in said["files"]] == [True] * 6
    for index, sae in enumerate(lab.saes):
        with safe_open(folder / f"cycle_{index}" / "sae" / "sae_weights.safetensors", "pt") as weights:
            assert torch.equal(weights.get_tensor("W_enc"), sae.W_enc)
        assert (folder / f"cycle_{index}" / "empty").read_bytes() == b""
    (folder / "cycle_1" / "sae" / "cfg.json").write_text("torn")
    said = json.loads(lab.run("pull", lab.job_id, str(folder), "--json"))
    assert [file["path"] for file in said["files"] if file["is_new"]] == [
        str(folder / "cycle_1" / "sae" / "cfg.json")
    ]
    assert "0 files fetched, 6 were whole" in lab.run("pull", lab.job_id, str(folder))
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_a_part_that_broke_off_is_gone_on_with_at_the_real_store(lab: Lab, tmp_path: Path) -> None:
    with Client(lab.url) as client:
        file = next(
            file
            for file in client.jobs.artifacts(lab.job_id)
            if (file["cycle_index"], file["name"]) == (1, "sae/sae_weights.safetensors")
        )
        begun = httpx.get(file["url"], headers={"Range": "bytes=0-99"}, trust_env=False).content
        assert len(begun) == 100
        folder = tmp_path / "cycle_1" / "sae"
        folder.mkdir(parents=True)
        (folder / f".sae_weights.safetensors.{file['sha256'][:16]}.part").write_bytes(begun)
        told: list[tuple[str, int, int]] = []
        client.jobs.pull(lab.job_id, tmp_path, cycle=1, tell=lambda *each: told.append(each))
        weights = [n_bytes for name, n_bytes, _ in told if name == file["name"]]
    assert (folder / "sae_weights.safetensors").stat().st_size == file["size_bytes"]
    assert told[-1][1] == told[-1][2]
    assert weights


def test_links_that_really_expired_are_asked_for_anew(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmsae.client.senders import Sender

    with Client(lab.url) as client:
        old = client.request("GET", f"/jobs/{lab.job_id}/artifacts")
        threading.Event().wait(2.5)
        assert httpx.get(old["items"][0]["url"], trust_env=False).status_code == 403
        answers, ask = [old], Sender.ask
        monkeypatch.setattr(
            Sender, "ask", lambda self, request: answers.pop() if answers else ask(self, request)
        )
        pulled = client.jobs.pull(lab.job_id, tmp_path)
    assert all(file.path.stat().st_size == file.size_bytes for file in pulled.files)


def test_what_is_not_there_is_named(lab: Lab, tmp_path: Path) -> None:
    with Client(lab.url) as client:
        with pytest.raises(NotFound, match="cycle = 7"):
            client.jobs.pull(lab.job_id, tmp_path, cycle=7)
        with pytest.raises(NotFound):
            client.jobs.pull("job_none", tmp_path)
        other = client.distillations.create({"preset": "demo"})["id"]
        with pytest.raises(NotFound, match="has stored nothing"):
            client.jobs.pull(other, tmp_path)


def test_an_sae_is_loaded_and_exported(lab: Lab, tmp_path: Path) -> None:
    with Client(lab.url) as client:
        sae, facts = client.distillations.load_sae(lab.job_id)
        first, _ = client.distillations.load_sae(lab.job_id, cycle=0)
    assert torch.equal(sae.W_dec, lab.saes[1].W_dec)
    assert torch.equal(first.W_dec, lab.saes[0].W_dec)
    assert (facts["rms"], facts["cycle_index"]) == (RMS, 1)
    said = lab.run("export", lab.job_id, str(tmp_path / "dl"), "--to", "dictionary-learning", "--json")
    assert (Path(json.loads(said)["folder"]) / "ae.pt").is_file()


def test_the_asynchronous_client_does_the_same(lab: Lab, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words.\n" * 50)

    async def work() -> None:
        async with AsyncClient(lab.url) as client:
            ended = await client.distillations.wait(lab.job_id, timeout_s=10)
            assert ended["state"] == "succeeded"
            pulled = await client.jobs.pull(lab.job_id, tmp_path / "a", cycle=-1)
            assert [file.is_new for file in pulled.files] == [True] * 3
            names = [row["latent_id"] async for row in client.distillations.lineage(lab.job_id)]
            assert names == [row["latent_id"] for row in rows]
            assert (await client.uploads.create(text))["key"].startswith("uploads/")
            with pytest.raises(Conflict):
                await client.jobs.retry(lab.job_id)

    with Client(lab.url) as client:
        rows = list(client.distillations.lineage(lab.job_id))
    assert len(rows) == 3
    asyncio.run(work())


def test_a_wait_ends_when_the_job_is_cancelled_elsewhere(lab: Lab) -> None:
    with Client(lab.url) as client:
        job_id = client.distillations.create({"preset": "demo"})["id"]
        threading.Timer(0.5, lambda: lab.api.post(f"/jobs/{job_id}/cancel")).start()
        assert client.jobs.wait(job_id, timeout_s=30)["state"] == "cancelled"
        assert json.loads(lab.run("status", job_id, "--json"))["state"] == "cancelled"
    lines = [json.loads(line) for line in lab.run("watch", job_id, "--json", status=5).splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert "cancelled" in lines[-1]["kind"]
    assert job_id in lab.run("job", "list", "--state", "cancelled", "--json")
    of_kind = ("job", "list", "--kind", "distillation", "--json", "--model")
    assert job_id in lab.run(*of_kind, "SMOLLM2")
    assert job_id not in lab.run(*of_kind, "gemma")
    assert json.loads(lab.run("queue", "show", "--json"))["is_paused"] is False
    for shown in (("job", "list"), ("queue", "show"), ("status", job_id)):
        assert lab.run(*shown).strip()


def test_lineage_becomes_a_table(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class DataFrame:
        from_records = staticmethod(list)

    pandas: Any = types.ModuleType("pandas")
    pandas.DataFrame = DataFrame
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    with Client(lab.url) as client:
        assert len(client.distillations.lineage(lab.job_id).to_pandas()) == 3


def test_every_answer_names_the_version(lab: Lab) -> None:
    for path in ("/healthz", "/jobs/none", "/nowhere", "/openapi.json"):
        assert lab.api.get(path).headers["DMSAE-Version"] == VERSION
    assert lab.api.get("/openapi.json").json()["info"]["version"] == VERSION
