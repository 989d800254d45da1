"""A backup holds what one moment held, whole or not at all; a restored stack goes on from there."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from dmsae.cli import app
from dmsae.errors import Conflict, DmsaeError, NotFound, Unavailable
from dmsae.local import backup, postgres_tools
from dmsae.local.backup import back_up
from dmsae.local.backup_folder import DUMP, OBJECT_LIST, BackupFolder, Manifest, measure, write_manifest
from dmsae.local.restore import restore
from dmsae.service import keys
from dmsae.service.backing_up import libpq_environment
from dmsae.service.claims import claim_cycle
from dmsae.service.database import Database
from dmsae.service.ids import new_id
from dmsae.service.leases import find_expired
from dmsae.service.migrating import migrate
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.service.tables import Artifact, Attempt
from dmsae.service.upload_tables import Upload
from tests.conftest import RunningServices
from tests.finished import claim_of, finish_cycles
from tests.planting import plant_job, plant_owner, plant_worker
from tests.serving import served

LARGE = bytes(range(256)) * (17 << 12)
"""17 MiB: stored in parts, unless somebody asks for one piece."""


@pytest.fixture
def source(settings: Settings, database: Database) -> Settings:
    """A stack with one finished job, one that runs, a key, and objects."""
    database.run(lambda session: plant_job(session, "cpu"))
    finish_cycles(database)
    with closing(ObjectStore(settings)) as store:
        store_artifacts(database, store)
        database.run(lambda session: plant_job(session, "cpu"))
        claim_of(database, database.run(lambda session: plant_worker(session, "cpu", device="cpu:1")))
        with database.session_scope() as session:
            session.execute(
                update(Attempt).where(Attempt.outcome.is_(None)).values(lease_expires_at=func.now())
            )
    database.dispose()
    return settings


@pytest.fixture
def target(settings: Settings, services: RunningServices) -> Iterator[Settings]:
    """An empty database without tables, and a bucket that does not exist yet."""
    with empty_database(services) as url:
        yield settings.model_copy(
            update={"database_url": type(settings.database_url)(url), "s3_bucket": f"b{uuid.uuid4().hex}"}
        )


class empty_database:
    def __init__(self, services: RunningServices) -> None:
        self._services = services
        self._name = f"empty_{uuid.uuid4().hex}"

    def __enter__(self) -> str:
        self._execute(f"CREATE DATABASE {self._name}")
        return self._services.parts.postgres.url(self._name)

    def __exit__(self, *_: object) -> None:
        self._execute(f"DROP DATABASE {self._name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._services.server_url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


def store_artifacts(database: Database, store: ObjectStore) -> None:
    """Put bytes of its own under the key of each artifact, and let its row say so."""
    with database.session_scope() as session:
        for artifact in session.scalars(select(Artifact)):
            artifact.size_bytes, artifact.sha256 = put(
                store, artifact.object_key, artifact.object_key.encode()
            )


def put(store: ObjectStore, key: str, content: bytes) -> tuple[int, str]:
    store._client.put_object(Bucket=store._bucket, Key=key, Body=content)
    return len(content), hashlib.sha256(content).hexdigest()


def etag_of(settings: Settings, key: str) -> str:
    with closing(ObjectStore(settings)) as store:
        return store.describe(key).etag


def plant_upload(session: Session, key: str, *, is_used: bool) -> None:
    used_at = func.now() if is_used else None
    session.add(
        Upload(
            id=new_id("upload"),
            owner_id=plant_owner(session),
            object_key=key,
            filename="a.txt",
            size_bytes=len(LARGE),
            used_at=used_at,
        )
    )


def answers(settings: Settings, key: str) -> dict[str, Any]:
    """What a client sees of every job: all but links, and the files' bytes by their sha256."""
    told: dict[str, Any] = {}
    with served(settings) as api:
        api.headers["Authorization"] = f"Bearer {key}"
        jobs = api.get("/jobs").json()["items"]
        told["/jobs"] = jobs
        for job in jobs:
            for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/events"):
                told[path] = api.get(path).json()
            for name in ("cycles", "lineage", "origins"):
                path = f"/distillations/{job['id']}/{name}"
                told[path] = api.get(path).json()
            told[job["id"]] = downloads(api, job["id"])
    return told


def downloads(api: httpx.Client, job_id: str) -> dict[str, str]:
    files = api.get(f"/jobs/{job_id}/artifacts").json()["items"]
    for file in files:
        content = httpx.get(file["url"], trust_env=False).raise_for_status().content
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    return {f"{file['cycle_index']}/{file['name']}": file["sha256"] for file in files}


def test_a_restored_stack_answers_as_before_and_goes_on(
    source: Settings, target: Settings, database: Database, tmp_path: Path
) -> None:
    key = database.run(lambda session: keys.create_key(session, "ada")[1])
    before = answers(source, key)
    with database.session_scope() as session:
        last_fence = session.scalars(select(func.max(Attempt.fence))).one()
    database.dispose()
    made = back_up(tmp_path / "backup", source)
    assert (made.n_rows["jobs"], made.n_objects, made.missing_objects) == (2, 3, [])

    assert restore(tmp_path / "backup", target) == made
    assert answers(target, key) == before
    assert sum(len(files) for path, files in before.items() if not path.startswith("/")) == 3
    restored = Database(target.database_url.get_secret_value(), wake_up=lambda _: None)
    with restored.session_scope() as session:
        assert len(find_expired(session)) == 1, "the attempt that ran is left to the sweeper"
        plant_job(session, "other")
        claim = claim_cycle(
            session, worker_id=plant_worker(session, "other"), resource_class="other", lease_s=30,
            celery_task_id="task",
        )  # fmt: skip
        assert claim is not None
        assert claim.fence > last_fence
    restored.dispose()


def test_nothing_but_an_empty_database_that_nobody_uses_is_restored_into(
    source: Settings, target: Settings, tmp_path: Path
) -> None:
    back_up(tmp_path / "backup", source)
    with pytest.raises(Conflict, match=r"3 rows in artifacts"):
        restore(tmp_path / "backup", source)
    url = target.database_url.get_secret_value()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE strangers (name text)")
        with pytest.raises(Conflict, match=r"public\.strangers"):
            restore(tmp_path / "backup", target)
        connection.execute("DROP TABLE strangers")
    migrate(url)
    busy = Database(url, wake_up=lambda _: None)
    with busy.session_scope() as session:
        session.scalars(select(func.now())).one()
        with pytest.raises(Conflict, match="stop them first"):
            restore(tmp_path / "backup", target)
    busy.dispose()
    restore(tmp_path / "backup", target)


def test_a_torn_backup_is_refused_before_anything_is_touched(
    source: Settings, target: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    made = back_up(folder, source)

    def refused(expected: type[DmsaeError], words: str) -> None:
        with pytest.raises(expected, match=words):
            restore(folder, target)
        with closing(ObjectStore(target)) as store, pytest.raises(Unavailable, match="no bucket"):
            store.check()

    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    (one, *_) = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    for path in (one, folder / DUMP, folder / OBJECT_LIST):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"?")
        refused(Conflict, "differs from what was backed up")
        path.write_bytes(content)
    for text in (whole[:-3], "[]", "{}"):
        manifest.write_text(text)
        refused(Conflict, "damaged|format None")
    manifest.write_text(whole.replace(f'"{made.schema_revision}"', '"9999"'))
    refused(Conflict, "newer code has made it")
    manifest.unlink()
    refused(NotFound, "never finished")
    manifest.write_text(whole)
    restore(folder, target)


def test_other_bytes_in_the_bucket_are_not_written_over(
    source: Settings, target: Settings, tmp_path: Path
) -> None:
    back_up(tmp_path / "backup", source)
    (first, *_) = BackupFolder(tmp_path / "backup").objects()
    with closing(ObjectStore(target)) as store:
        store.ensure_bucket()
        put(store, first.key, b"other")
        with pytest.raises(Conflict, match="other bytes"):
            restore(tmp_path / "backup", target)
        store.delete(first.key)
    restore(tmp_path / "backup", target)


def test_an_interrupted_backup_leaves_nothing_that_looks_like_one(source: Settings, tmp_path: Path) -> None:
    away = source.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(Unavailable):
        back_up(tmp_path / "backup", away)
    assert list(tmp_path.glob("backup*")) == []
    (tmp_path / "backup.partial").mkdir()
    with pytest.raises(Conflict, match="interrupted"):
        back_up(tmp_path / "backup", source)
    (tmp_path / "backup.partial").rename(tmp_path / "backup")
    with pytest.raises(Conflict, match="never overwrites"):
        back_up(tmp_path / "backup", source)


def test_an_object_that_goes_with_its_job_meanwhile_is_told_and_a_lost_one_is_an_error(
    source: Settings, target: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.session_scope() as session:
        gone, lost = session.scalars(select(Artifact.object_key).order_by(Artifact.object_key).limit(2)).all()
    copy = backup._copy

    def copy_late(folder: Any, store: ObjectStore, wanted: Any) -> Any:
        if wanted.key == gone:
            with database.session_scope() as session:
                session.execute(delete(Artifact).where(Artifact.object_key == gone))
            store.delete(gone)
        return copy(folder, store, wanted)

    monkeypatch.setattr(backup, "_copy", copy_late)
    made = back_up(tmp_path / "one", source)
    assert (made.missing_objects, made.n_objects, made.n_rows["artifacts"]) == ([gone], 2, 3)
    with closing(ObjectStore(source)) as store:
        store.delete(lost)
    with pytest.raises(NotFound, match="has lost"):
        back_up(tmp_path / "two", source)
    database.dispose()
    restore(tmp_path / "one", target)


def test_uploads_keep_their_etags_and_those_never_made_are_left_out(
    source: Settings, target: Settings, database: Database, tmp_path: Path
) -> None:
    made, announced = f"uploads/{uuid.uuid4().hex}/a.txt", "uploads/never/a.txt"
    with database.session_scope() as session:
        plant_upload(session, made, is_used=True)
        plant_upload(session, announced, is_used=False)
    with closing(ObjectStore(source)) as store:
        put(store, made, LARGE)
    backed_up = back_up(tmp_path / "backup", source)
    assert (backed_up.n_objects, backed_up.missing_objects) == (4, [])
    restore(tmp_path / "backup", target)
    assert etag_of(target, made) == etag_of(source, made)


def test_an_older_backup_is_brought_to_this_schema(
    target: Settings, services: RunningServices, tmp_path: Path
) -> None:
    folder = BackupFolder(tmp_path / "backup")
    folder.root.mkdir()
    with empty_database(services) as url:
        migrate(url, revision="0001")
        with pytest.raises(Conflict, match="stands at revision '0001'"):
            back_up(tmp_path / "new", target.model_copy(update={"database_url": as_secret(target, url)}))
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("INSERT INTO owners (id, name) VALUES ('owner_1', 'ada')")
            connection.commit()
            row = connection.execute("SELECT pg_export_snapshot()").fetchone()
            assert row is not None
            tool = postgres_tools.find_tool("pg_dump", 18)
            command = postgres_tools.dump_command(tool, snapshot_id=row[0], target=folder.dump)
            postgres_tools.run_tool(command, libpq_environment(url))
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            n_rows = {name: int(name == "owners") for (name,) in names if name != "alembic_version"}
    folder.object_list.write_text("")
    write_manifest(
        folder,
        Manifest(
            format=1, dmsae_version="0.1.0", schema_revision="0001", postgres_version=18, created_at="then",
            n_rows=n_rows, n_objects=0, object_bytes=0, missing_objects=[],
            files={DUMP: measure(folder.dump), OBJECT_LIST: measure(folder.object_list)},
        ),
    )  # fmt: skip
    restore(folder.root, target)
    restored = Database(target.database_url.get_secret_value(), wake_up=lambda _: None)
    assert [name for _, name in restored.run(keys.list_keys)] == []
    with restored.session_scope() as session:
        assert session.scalars(select(Upload.id)).all() == []
    restored.dispose()


def as_secret(settings: Settings, url: str) -> Any:
    return type(settings.database_url)(url)


def test_no_password_stands_in_an_argument_of_postgres_own_programs(
    source: Settings, target: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"

    def wrapped(name: str, version: int) -> Path:
        script = tmp_path / name
        real = postgres_tools.find_tool(name, version)
        script.write_text(f'#!/bin/sh\ntr "\\0" "\\n" < /proc/$$/cmdline >> {seen}\nexec {real} "$@"\n')
        script.chmod(0o755)
        return script

    monkeypatch.setattr("dmsae.local.backup.find_tool", wrapped)
    monkeypatch.setattr("dmsae.local.restore.find_tool", wrapped)
    back_up(tmp_path / "backup", source)
    restore(tmp_path / "backup", target)
    arguments = seen.read_text()
    assert "--format=custom" in arguments
    assert "--single-transaction" in arguments
    assert libpq_environment(source.database_url.get_secret_value())["PGPASSWORD"] not in arguments


def test_programs_of_another_version_are_refused_with_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "pg_dump"
    other.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.3'\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert postgres_tools.find_tool("pg_dump", 15) == other
    with pytest.raises(Unavailable, match=f"PostgreSQL 14.*version 18; {other} is of version 15"):
        postgres_tools.find_tool("pg_dump", 14)


def test_a_stopped_stack_is_restored_into_and_backed_up_by_its_data_folder(
    source: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DMSAE_DATABASE_URL", "DMSAE_BROKER_URL", "DMSAE_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    backed_up, data, again = tmp_path / "backup", tmp_path / "data", tmp_path / "again"
    made = back_up(backed_up, source)

    def told_by(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), "--data", str(data)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    with pytest.raises(NotFound, match="no data folder"):
        told_by("backup", again)
    assert "Restored 2 jobs and 3 objects" in told_by("restore", backed_up)
    with pytest.raises(Conflict, match="lies in the data folder"):
        told_by("backup", data / "again")
    assert f"to {again}" in told_by("backup", again)
    assert json.loads((again / "manifest.json").read_text())["n_rows"] == made.n_rows
    assert not (data / "run.json").exists()
