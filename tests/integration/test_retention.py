"""What has ended goes after as many days as its owner, or else the service, says."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from dmsae import cli
from dmsae.errors import InvalidConfig, NotFound
from dmsae.service.database import Database
from dmsae.service.jobs import view_job
from dmsae.service.objects import ObjectStore
from dmsae.service.retention import read_days, retention_of, set_retention
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle, Job, Owner
from tests.finished import finish_cycles
from tests.planting import plant_job, plant_owner
from tests.serving import served
from worker.cleaner import Cleaner


@pytest.fixture
def cleaner(settings: Settings, database: Database) -> Iterator[Cleaner]:
    store = ObjectStore(settings)
    cleaner = Cleaner(settings.model_copy(update={"retention_days": 10}), database, store)
    yield cleaner
    cleaner.resign()
    store.close()


@pytest.fixture
def owner_id(database: Database) -> str:
    return database.run(plant_owner)


def finished_job(database: Database, owner_id: str) -> str:
    job_id = database.run(lambda session: plant_job(session, "cpu", owner_id=owner_id, n_cycles=1))
    finish_cycles(database, n_cycles=1)
    return job_id


def days_kept(database: Database, job_id: str) -> float | None:
    with database.session_scope() as session:
        job = view_job(session, job_id).job
    if job.expires_at is None or job.finished_at is None:
        return None
    return (job.expires_at - job.finished_at) / timedelta(days=1)


def end_days_ago(database: Database, job_id: str, days: float) -> None:
    with database.session_scope() as session:
        past = func.now() - timedelta(days=days)
        session.execute(update(Job).where(Job.id == job_id).values(finished_at=past))


def deleted_jobs(database: Database) -> set[str]:
    with database.session_scope() as session:
        return set(session.scalars(select(Job.id).where(Job.deleted_at.is_not(None))))


def test_an_owners_setting_comes_before_the_services_and_each_change_shows(
    database: Database, cleaner: Cleaner, owner_id: str
) -> None:
    job_id = finished_job(database, owner_id)
    waiting = database.run(lambda session: plant_job(session, "cpu", owner_id=owner_id))
    seen, versions = [], []
    for days in (None, 3, 0, None):
        database.run(lambda session, days=days: set_retention(session, owner_id, days))
        cleaner.do_part()
        cleaner.do_part()
        seen.append(days_kept(database, job_id))
        with database.session_scope() as session:
            versions.append(view_job(session, job_id).job.version)
            assert retention_of(session, owner_id, default_days=10) == seen[-1]
    assert seen == [10, 3, None, 10]
    assert versions == [versions[0] + i for i in range(4)]
    assert days_kept(database, waiting) is None


def test_a_job_is_deleted_once_its_days_are_over_and_not_before(
    database: Database, cleaner: Cleaner, owner_id: str
) -> None:
    old, young = finished_job(database, owner_id), finished_job(database, owner_id)
    kept = finished_job(database, database.run(plant_owner))
    waiting = database.run(lambda session: plant_job(session, "cpu", owner_id=owner_id))
    with database.session_scope() as session:
        kept_owner = session.get_one(Job, kept).owner_id
        set_retention(session, kept_owner, 0)
    for job_id, days in ((old, 10.1), (young, 9.9), (kept, 400)):
        end_days_ago(database, job_id, days)
    cleaner.do_part()
    assert deleted_jobs(database) == {old}
    assert waiting not in deleted_jobs(database)


def test_a_job_whose_core_is_given_to_one_that_has_not_ended_is_kept_until_then(
    database: Database, cleaner: Cleaner, owner_id: str
) -> None:
    old = finished_job(database, owner_id)
    end_days_ago(database, old, 20)
    user = database.run(lambda session: plant_job(session, "other", owner_id=owner_id, n_cycles=1))
    with database.session_scope() as session:
        core_id = session.scalars(select(Cycle.output_core_id).where(Cycle.job_id == old)).one()
        session.execute(update(Cycle).where(Cycle.job_id == user).values(input_core_id=core_id))
    cleaner.do_part()
    assert deleted_jobs(database) == set()
    with database.session_scope() as session:
        ended = {"state": "failed", "finished_at": func.now()}
        session.execute(update(Job).where(Job.id == user).values(ended))
    cleaner.do_part()
    assert deleted_jobs(database) == {old}


def test_the_command_line_sets_it_and_a_dry_run_and_the_job_tell_it(
    database: Database, settings: Settings, cleaner: Cleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMSAE_DATABASE_URL", settings.database_url.get_secret_value())
    with served(settings.model_copy(update={"retention_days": 10})) as api:
        job = api.post("/distillations", json={"preset": "demo"}).json()
        told = api.post("/distillations?dry_run=true", json={"preset": "demo"}).json()
        assert (told["retention_days"], job["expires_at"]) == (10, None)
        done = CliRunner().invoke(cli.app, ["owners", "retention", "local", "5"])
        assert done.exit_code == 0, done.output
        told = api.post("/distillations?dry_run=true", json={"preset": "demo"}).json()
        assert told["retention_days"] == 5
        api.post(f"/jobs/{job['id']}/cancel")
        cleaner.do_part()
        assert api.get(f"/jobs/{job['id']}").json()["expires_at"] is not None
    with database.session_scope() as session:
        assert session.scalars(select(Owner.retention_days).where(Owner.name == "local")).one() == 5


def test_days_that_are_none_and_owners_that_are_not_there_are_refused(database: Database) -> None:
    assert [read_days(text) for text in ("7", "none", "default")] == [7, 0, None]
    for text in ("0", "-1", "1.5", "36501", "٣", "9" * 5000, ""):
        with pytest.raises(InvalidConfig, match="days"):
            read_days(text)
    with pytest.raises(NotFound, match="nobody"):
        database.run(lambda session: set_retention(session, "nobody", 3))
