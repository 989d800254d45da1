"""A request becomes a job and its cycles, whole or not at all."""

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.config import DistillationConfig
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.planning import plan_distillations
from dmsae.service.progress import JobView
from dmsae.service.requests import DistillationRequest
from dmsae.service.submitting import submit
from dmsae.service.tables import Cycle, Job
from tests.planting import event_kinds


def submitted(database: Database, **fields: object) -> JobView:
    request = DistillationRequest.model_validate({"preset": "demo", **fields})
    plans = plan_distillations(request, allowed_roots=())
    owner = database.run(lambda session: keys.ensure_owner(session, "ada"))
    (view,) = database.run(lambda session: submit(session, owner.id, request=request, plans=plans))
    return view


def test_a_submission_stores_a_job_its_cycles_and_one_event(database: Database) -> None:
    view = submitted(database, name="first", tags=["a", "b", "a"], notes="why", priority="high")
    assert (view.owner, view.job.state) == ("ada", "queued")
    assert (view.job.name, view.job.tags) == ("first", ["a", "b"])
    with database.session_scope() as session:
        columns = (Cycle.index, Cycle.state, Cycle.resource_class, Cycle.priority_rank)
        rows = select(*columns).order_by(Cycle.index)
        assert [tuple(row) for row in session.execute(rows)] == [
            (0, "queued", "cpu", 0),
            (1, "waiting", "cpu", 0),
            (2, "waiting", "cpu", 0),
        ]
        assert event_kinds(session, view.job.id) == ["job_queued"]


def test_the_stored_config_is_the_resolved_one(database: Database) -> None:
    view = submitted(database, seed=9, sae={"k": 16})
    config = DistillationConfig.model_validate(view.job.config)
    assert (config.seed, config.sae.k, config.sae.n_latents) == (9, 16, 1024)
    assert view.job.preset == "demo"


def test_workers_hear_of_a_job_once_it_is_committed(database: Database, wake_ups: list[str]) -> None:
    submitted(database)
    assert wake_ups == ["cpu"]


def test_a_submission_that_breaks_off_leaves_nothing_and_wakes_nobody(
    database: Database, wake_ups: list[str]
) -> None:
    request = DistillationRequest(preset="demo")
    plans = plan_distillations(request, allowed_roots=())

    def broken(session: Session) -> None:
        submit(session, keys.ensure_owner(session, "ada").id, request=request, plans=plans)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.run(broken)
    with database.session_scope() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
    assert wake_ups == []
