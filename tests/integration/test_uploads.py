"""Files go straight into the store, jobs name them, and what nobody names is deleted."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from dmsae.cli import app
from dmsae.client.client import Client
from dmsae.errors import Conflict, InvalidConfig
from dmsae.service.database import Database
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.service.tables import Job
from dmsae.service.upload_tables import Upload, UploadUse
from dmsae.service.uploads import safe_name
from tests.serving import served
from worker.cleaner import Cleaner

LINES = b'{"text": "A first document."}\n{"text": "A second one."}\n'


@pytest.fixture
def store(settings: Settings) -> Iterator[ObjectStore]:
    store = ObjectStore(settings)
    yield store
    store.close()


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings.model_copy(update={"data_prefixes": ["lab/"]})) as client:
        yield client


@pytest.fixture
def cleaner(settings: Settings, database: Database, store: ObjectStore) -> Iterator[Cleaner]:
    cleaner = Cleaner(settings, database, store)
    yield cleaner
    cleaner.resign()


def asked(api: httpx.Client, **fields: Any) -> httpx.Response:
    return api.post("/uploads", json={"filename": "a.jsonl", "size_bytes": len(LINES), **fields})


def uploaded(api: httpx.Client) -> str:
    upload = asked(api).json()
    assert httpx.put(upload["url"], content=LINES, headers=upload["headers"], trust_env=False).is_success
    return str(upload["key"])


def with_objects(*objects: dict[str, Any]) -> dict[str, Any]:
    return {"preset": "demo", "data": {"text": {"source": "objects", "objects": list(objects)}}}


def test_an_upload_goes_past_the_api_and_a_job_names_its_bytes(
    api: httpx.Client, settings: Settings, store: ObjectStore
) -> None:
    answer = asked(api, filename="../my pile.JSONL", content_type="application/x-ndjson")
    upload = answer.json()
    assert answer.status_code == 201
    assert upload["key"] == f"uploads/{upload['key'].split('/')[1]}/{upload['id']}/my_pile.JSONL"
    assert upload["url"].startswith(str(settings.s3_endpoint_url))
    put = httpx.put(upload["url"], content=LINES, headers=upload["headers"], trust_env=False)
    assert (put.status_code, upload["method"]) == (200, "PUT")
    body = with_objects({"key": upload["key"]})
    dry_run = api.post("/distillations?dry_run=true", json=body).json()
    job = api.post("/distillations", json=body).json()
    facts = store.describe(upload["key"])
    for config in (dry_run["config"], job["config"]):
        (named,) = config["data"]["text"]["objects"]
        assert named == {"key": upload["key"], "etag": facts.etag, "size_bytes": len(LINES)}


def test_an_upload_that_cannot_work_is_refused_and_nothing_is_stored(
    api: httpx.Client, database: Database
) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"size_bytes": (5 << 30) + 1}, "size_bytes", "one PUT carries no more than 5 GiB"),
        ({"size_bytes": 0}, "size_bytes", "greater than or equal to 1"),
        ({"size_bytes": "5"}, "size_bytes", "integer"),
        ({"filename": "a.csv"}, "filename", "must end in one of .txt, .jsonl, .parquet"),
        ({"filename": ""}, "filename", "at least 1 character"),
        ({"content_type": "a/b\r\nx: y"}, "content_type", "pattern"),
        ({"more": 1}, "more", "no such field"),
    ]
    for fields, param, rule in cases:
        answer = asked(api, **fields)
        assert answer.status_code == 422, fields
        (refused,) = answer.json()["errors"]
        assert refused["param"] == param
        assert rule in refused["rule"]
    with database.session_scope() as session:
        assert session.scalar(select(func.count()).select_from(Upload)) == 0


def test_an_object_that_may_not_be_read_or_is_not_there_is_named(
    api: httpx.Client, store: ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Some text.")
    for key in ("lab/a.txt", "uploads/nobody/a.txt"):
        store.put_file(key, path)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"key": "jobs/a/spec.txt"}, "key", "object_not_allowed"),
        ({"key": "uploads/../jobs/a.txt"}, "key", "object_not_allowed"),
        ({"key": "lab//a.txt"}, "key", "object_not_allowed"),
        ({"key": "lab/a.bin"}, "key", "unknown_file_kind"),
        ({"key": "lab/none.txt.zst"}, "key", "object_not_found"),
        ({"key": "lab/a.txt", "etag": "0" * 32}, "etag", "object_changed"),
        ({"key": "lab/a.txt", "size_bytes": 4}, "size_bytes", "object_changed"),
        ({"key": "uploads/nobody/a.txt"}, "key", "object_not_found"),
    ]
    for named, param, code in cases:
        answer = api.post("/distillations", json=with_objects({"key": "lab/a.txt"}, named))
        assert answer.status_code == 422, named
        (refused,) = answer.json()["errors"]
        assert (refused["param"], refused["code"]) == (f"data.text.objects.1.{param}", code)
    assert api.get("/jobs").json()["items"] == []
    assert api.post("/distillations", json=with_objects({"key": "lab/a.txt"})).status_code == 202


def test_a_store_that_is_away_refuses_only_what_needs_it(settings: Settings, database: Database) -> None:
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    with served(away) as api:
        body = with_objects({"key": "uploads/a/b/c.txt"})
        for query in ("", "?dry_run=true"):
            answer = api.post(f"/distillations{query}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert api.post("/distillations", json={"preset": "demo"}).status_code == 202
    with database.session_scope() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_an_upload_stays_while_a_job_names_it_and_goes_some_days_later(
    api: httpx.Client, settings: Settings, database: Database, store: ObjectStore, cleaner: Cleaner
) -> None:
    used, unused = uploaded(api), uploaded(api)
    job = api.post("/distillations", json=with_objects({"key": used}, {"key": used})).json()

    def pass_time() -> None:
        with database.session_scope() as session:
            past = timedelta(days=settings.upload_days, hours=1)
            times = {"created_at": Upload.created_at - past, "used_at": Upload.used_at - past}
            session.execute(update(Upload).values(times))
        cleaner.do_part()

    cleaner.do_part()
    assert store.describe(unused).size_bytes == len(LINES)
    pass_time()
    assert keys_of(database) == [used]
    assert store.describe(used).size_bytes == len(LINES)
    refused = api.post("/distillations", json=with_objects({"key": unused})).json()
    assert refused["errors"][0]["code"] == "object_not_found"
    api.post(f"/jobs/{job['id']}/cancel")
    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    cleaner.do_part()
    assert keys_of(database) == [used]
    pass_time()
    assert keys_of(database) == []
    with database.session_scope() as session:
        assert session.scalar(select(func.count()).select_from(UploadUse)) == 0


def test_an_upload_that_is_marked_for_deletion_is_refused_to_new_jobs(
    api: httpx.Client, database: Database
) -> None:
    key = uploaded(api)
    with database.session_scope() as session:
        session.execute(update(Upload).values(deleted_at=func.now()))
    answer = api.post("/distillations", json=with_objects({"key": key}))
    assert answer.json()["errors"][0]["code"] == "object_not_found"
    assert api.get("/jobs").json()["items"] == []


def test_the_client_and_the_command_line_put_a_file(
    api: httpx.Client, store: ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "pile.jsonl"
    path.write_bytes(LINES)
    url = str(api.base_url)
    with Client(url) as client:
        upload = client.uploads.create(path)
        assert store.describe(upload["key"]).size_bytes == len(LINES)
        empty = tmp_path / "empty.txt"
        empty.touch()
        with pytest.raises(InvalidConfig, match="size_bytes"):
            client.uploads.create(empty)
    shown = CliRunner().invoke(app, ["upload", str(path), "--url", url])
    assert shown.exit_code == 0, shown.output
    assert store.describe(shown.stdout.splitlines()[-1]).size_bytes == len(LINES)


def test_the_client_and_the_command_line_delete_a_job(api: httpx.Client) -> None:
    job = api.post("/distillations", json={"preset": "demo"}).json()
    with Client(str(api.base_url)) as client:
        with pytest.raises(Conflict, match="cancel it first"):
            client.jobs.delete(job["id"])
        client.jobs.cancel(job["id"])
        client.jobs.delete(job["id"])
    shown = CliRunner().invoke(app, ["job", "delete", job["id"], "--url", str(api.base_url)])
    assert (shown.exit_code, shown.stdout.splitlines()[-1]) == (0, f"{job['id']} is deleted.")
    gone = api.get(f"/jobs/{job['id']}")
    assert (gone.status_code, gone.json()["code"]) == (404, "deleted")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a b.txt", "a_b.txt"),
        ("../../etc/x.txt", "x.txt"),
        ("C:\\data\\x.jsonl.gz", "x.jsonl.gz"),
        ("...txt", "txt"),
        ("日本.txt", "__.txt"),
        ("x" * 200 + ".txt", "x" * 96 + ".txt"),
        ("..", "_"),
    ],
)
def test_a_key_holds_a_plain_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def keys_of(database: Database) -> list[str]:
    with database.session_scope() as session:
        return list(session.scalars(select(Upload.object_key).order_by(Upload.id)))
