"""Text snippets over HTTP and by the client: one latent's of one core, out of a real store."""

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import AsyncClient, Client
from dmsae.errors import NotFound
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.service.snippets import PLACES, RECORDS
from dmsae.service.tables import Artifact, Attempt, Core, Cycle
from tests.conftest import RunningServices
from tests.finished import claim_of, finish_cycles
from tests.planting import plant_worker
from tests.serving import fresh_database, served
from tests.training_rows import given_entry, record, submit_distillations, submit_trainings, training_lineage

MARKUP = "<img src=x onerror=alert(1)>[bold]\x1b[31m\x00\u202e"
SNIPPET = {"kind": "strongest", "tokens": ["The", MARKUP], "activations": [None, 4.5], "peak": 1}


def make_record(latent_id: str, *, density: float) -> bytes:
    """What a trainer stores of one latent; `tests/unit/test_snippets.py` holds its own against the reader."""
    tenth = {"decile": 10, "from": 4.05, "to": 4.5, "n_firings": 1, "snippets": [SNIPPET]}
    lens = {"final_norm": "folded", "promoted": [{"token": " Paris", "value": 2.5}], "suppressed": []}
    told = {"latent_id": latent_id, "n_tokens": 1000, "n_firings": 4, "density": density}
    told |= {"min_activation": 0.5, "max_activation": 4.5, "logit_lens": lens, "deciles": [tenth]}
    return gzip.compress(json.dumps(told).encode() + b"\n")


class Lab(NamedTuple):
    """A distillation whose second and third cycle stored snippets, and a training that stored none."""

    database: Database
    store: ObjectStore
    api: httpx.Client
    folder: Path
    source: str
    training: str

    def keep(self, cycle_index: int, records: list[bytes]) -> None:
        """Store files of snippets as the cycle's."""
        ends = [sum(map(len, records[:n])) for n in range(len(records) + 1)]
        files = {RECORDS: b"".join(records), PLACES: "".join(f"{end:016d}\n" for end in ends).encode()}
        with self.database.session_scope() as session:
            cycle = select(Cycle.id).where(Cycle.job_id == self.source, Cycle.index == cycle_index)
            cycle_id = session.scalars(cycle).one()
            attempt_id = session.scalars(select(Attempt.id).where(Attempt.cycle_id == cycle_id)).one()
            for name, content in files.items():
                file = self.folder / "file"
                file.write_bytes(content)
                stored = self.store.put_file(f"jobs/{self.source}/{cycle_index}/{name}", file)
                about = {"size_bytes": stored.size_bytes, "sha256": stored.sha256, "name": name}
                place = {"job_id": self.source, "cycle_id": cycle_id, "attempt_id": attempt_id}
                session.merge(Artifact(object_key=stored.key, **about, **place))

    def core_of(self, cycle_index: int) -> str:
        with self.database.session_scope() as session:
            query = select(Cycle.output_core_id).where(
                Cycle.job_id == self.source, Cycle.index == cycle_index
            )
            return str(session.scalars(query).one())

    def get(self, latent: str, status: int = 200, **query: Any) -> Any:
        answer = self.api.get(f"/latents/{latent}/snippets", params=query)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def lab(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("cache_dir", "work_dir", "lock_dir")}
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()} | folders
    with fresh_database(services) as url:
        settings = Settings(**{**fields, "database_url": url})
        database, store = Database(url, wake_up=lambda _: None), ObjectStore(settings)
        worker_id = database.run(lambda session: plant_worker(session, "cpu"))
        (source,) = submit_distillations(database)
        finish_cycles(database, worker_id=worker_id)
        training = train(database, worker_id, source.job.id)
        with served(settings) as api:
            lab = Lab(database, store, api, tmp_path_factory.mktemp("files"), source.job.id, training)
            lab.keep(1, [make_record(f"{lab.source}.{name}", density=0.1) for name in ("0.3", "0.8", "1.20")])
            lab.keep(2, [make_record(f"{lab.source}.0.3", density=0.2), b""])
            yield lab
        database.dispose()
        store.close()


def train(database: Database, worker_id: str, source: str) -> str:
    """A training around the last core that keeps 0.3: the latest core that holds it, without snippets."""
    core = {"kind": "selected", "cycle": {"job_id": source}}
    (training,) = submit_trainings(database, core=core)
    claim = claim_of(database, worker_id)
    given = [given_entry(index, f"{source}.{name}") for index, name in enumerate(("0.3", "1.20"))]
    record(database, claim, training_lineage(claim, given, kept=[0], new=[7]))
    return training.job.id


def test_a_latents_snippets_are_those_of_the_core_that_is_named(lab: Lab) -> None:
    told = lab.get(f"{lab.source}.0.3", core=lab.core_of(2))
    assert (told["latent"], told["core"]) == (f"{lab.source}.0.3", lab.core_of(2))
    assert (told["job_id"], told["cycle_index"], told["density"]) == (lab.source, 2, 0.2)
    assert (told["n_tokens"], told["n_firings"], told["max_activation"]) == (1000, 4, 4.5)
    assert told["logit_lens"]["promoted"] == [{"token": " Paris", "value": 2.5}]
    (decile,) = told["deciles"]
    assert (decile["decile"], decile["from"], decile["to"]) == (10, 4.05, 4.5)
    assert decile["snippets"] == [SNIPPET]
    assert lab.get(f"{lab.source}.0.3", core=lab.core_of(1))["density"] == 0.1


def test_without_a_core_the_latest_that_holds_the_latent_is_meant(lab: Lab) -> None:
    assert lab.get(f"{lab.source}.0.8")["core"] == lab.core_of(1)
    refused = lab.get(f"{lab.source}.0.3", 404)
    assert lab.training in refused["detail"]
    assert "no text snippets are stored" in refused["detail"]


def test_what_is_not_there_is_not_found_each_with_its_own_sentence(lab: Lab) -> None:
    latent = f"{lab.source}.0.3"
    with lab.database.session_scope() as session:
        cycle = select(Cycle.id).where(Cycle.job_id == lab.training).scalar_subquery()
        given = session.scalars(select(Core.id).where(Core.given_cycle_id == cycle)).one()
    for asked, core, reason in (
        ("job_none.0.1", None, "There is no latent"),
        (latent, "core_none", "There is no core"),
        (f"{lab.source}.0.5", lab.core_of(1), "does not hold latent"),
        (latent, lab.core_of(0), "no text snippets are stored"),
        (latent, given, "which was given to it"),
        (f"{lab.source}.1.20", lab.core_of(2), "budget_bytes"),
    ):
        problem = lab.get(asked, 404, **({} if core is None else {"core": core}))
        assert problem["code"] == "not_found"
        assert reason in problem["detail"]


@pytest.mark.parametrize(
    "latent",
    ["x", "a.b.c", "%00", "..%2f..", "j.0.1%0a", "j.0." + "9" * 19, "j." + "9" * 10 + ".0", "'--.0.1"],
)
def test_hostile_ids_are_not_found(lab: Lab, latent: str) -> None:
    answer = lab.api.get(f"/latents/{latent}/snippets")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "query", ["core=", "core=%00", "core=a%2fb", "core=" + "a" * 65, "core=a&core=b", "x=1"]
)
def test_hostile_queries_are_refused(lab: Lab, query: str) -> None:
    answer = lab.api.get(f"/latents/{lab.source}.0.3/snippets?{query}")
    assert answer.status_code == 422


def test_both_clients_and_the_command_line_give_them(lab: Lab) -> None:
    latent, core, url = f"{lab.source}.0.3", lab.core_of(2), str(lab.api.base_url)

    async def ask() -> Any:
        async with AsyncClient(url) as client:
            return await client.latents.snippets(latent, core_id=core)

    with Client(url) as client:
        told = client.latents.snippets(latent, core_id=core)
        with pytest.raises(NotFound, match="no text snippets"):
            client.latents.snippets(latent)
    assert told == asyncio.run(ask()) == lab.get(latent, core=core)

    def said(*arguments: str, status: int = 0) -> str:
        asked = ["latent", latent, *arguments, "--url", url]
        done = CliRunner().invoke(cli.app, asked, env={"COLUMNS": "300"})
        assert done.exit_code == status, done.output
        # the API logs from a thread of this process, into the same output
        return "\n".join(line for line in done.stdout.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line))

    shown = said("--core", core)
    assert "fires at 4 of 1000 tokens" in shown
    assert "promoted: ' Paris'" in shown
    assert "strongest 10  4.5" in shown
    assert "The<img src=x onerror=alert(1)>[bold]\\u001b[31m\\u0000\\u202e" in shown
    assert "no text snippets are stored" in said()
    assert json.loads(said("--json"))["snippets"] is None
    assert json.loads(said("--json", "--core", core))["snippets"] == told
    assert said("--core", "core_none", status=1) == ""


def test_a_store_that_lost_or_changed_them_is_said_to_fail_and_a_deleted_job_has_none(lab: Lab) -> None:
    latent, core = f"{lab.source}.0.3", lab.core_of(2)
    keep = make_record(latent, density=0.2)
    for records in ([keep[:30] + b"\1" + keep[31:], b""], [make_record("job_x.0.3", density=0.2), b""], []):
        lab.keep(2, records)
        problem = lab.get(latent, 503, core=core)
        assert (problem["code"], "jobs/" in json.dumps(problem)) == ("unavailable", False)
    lab.store.delete(f"jobs/{lab.source}/2/{PLACES}")
    assert lab.get(latent, 503, core=core)["code"] == "unavailable"
    for job_id in (lab.training, lab.source):
        lab.database.run(lambda session: delete_job(session, job_id, owner_id=None))  # noqa: B023
    assert lab.get(latent, 404, core=core)["code"] == "deleted"
    assert "No core" in lab.get(latent, 404)["detail"]
