"""Which cycle goes first: starvation bound, priority and its quota, shares, memory, cached activations."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from dmsae.service.claims import Claim, QueueRules, claim_cycle
from dmsae.service.database import Database
from dmsae.service.queue_control import (
    OwnerChanges,
    change_priority,
    hold_job,
    pause_queue,
    release_job,
    resume_queue,
    set_owner,
)
from dmsae.service.queue_snapshots import find_places, take_snapshots
from dmsae.service.shares import OwnerShare, list_shares
from dmsae.service.states import close_attempt, move_cycle
from dmsae.service.tables import Attempt, Cycle, Job, Worker
from dmsae.service.workers import touch_worker
from tests.planting import event_kinds, plant_job, plant_owner, plant_worker

GIB = 1 << 30
RULES = QueueRules()


def plant(database: Database, owner_id: str | None = None, *, n: int = 1, **fields: Any) -> list[str]:
    """Plant jobs of one cycle; what a cycle has beside its job is given as `cycle_...`."""
    of_cycle = {name[6:]: fields.pop(name) for name in list(fields) if name.startswith("cycle_")}
    jobs = []
    for _ in range(n):
        with database.session_scope() as session:
            job_id = plant_job(session, "cpu", owner_id=owner_id, n_cycles=1, **fields)
            if of_cycle:
                session.execute(update(Cycle).where(Cycle.job_id == job_id).values(**of_cycle))
        jobs.append(job_id)
    return jobs


def plant_workers(database: Database, n: int, **fields: Any) -> list[str]:
    workers = [database.run(lambda session: plant_worker(session, "cpu")) for _ in range(n)]
    if fields:
        with database.session_scope() as session:
            session.execute(update(Worker).where(Worker.id.in_(workers)).values(**fields))
    return workers


def claim(database: Database, worker_id: str, rules: QueueRules = RULES) -> Claim | None:
    return database.run_alone(
        lambda session: claim_cycle(
            session, worker_id=worker_id, resource_class="cpu", lease_s=30, celery_task_id=None, rules=rules
        )
    )


def finish(database: Database, claimed: Claim, *, took_s: float = 0) -> None:
    """Close an attempt as succeeded, its cycle as one that is over, whatever their rows would need else."""
    with database.session_scope() as session:
        begun = func.clock_timestamp() - timedelta(seconds=took_s)
        session.execute(update(Attempt).where(Attempt.id == claimed.attempt_id).values(opened_at=begun))
        close_attempt(session, claimed, "succeeded")
        move_cycle(session, claimed.cycle_id, "failed")
        session.execute(
            update(Job).where(Job.id == claimed.job_id).values(state="failed", finished_at=func.now())
        )


def claim_all(database: Database, worker_id: str, rules: QueueRules = RULES) -> list[str]:
    """Claim and finish until nothing is left; give the jobs in order."""
    jobs = []
    while (claimed := claim(database, worker_id, rules)) is not None:
        jobs.append(claimed.job_id)
        finish(database, claimed)
    return jobs


def starts(database: Database) -> list[float | None]:
    """Work the lines out, and give when each queued cycle would begin, in order."""
    database.run(lambda session: take_snapshots(session, RULES))
    with database.session_scope() as session:
        waiting = session.scalars(select(Cycle.id).where(Cycle.state == "queued")).all()
        places = find_places(session, waiting).values()
    return [place.starts_in_s for place in sorted(places)]


def ago(seconds: float) -> Any:
    return func.clock_timestamp() - timedelta(seconds=seconds)


def test_a_cycle_too_large_for_the_device_is_passed_over_and_blocks_nobody(database: Database) -> None:
    (small, large) = (*plant_workers(database, 1, memory_bytes=8 * GIB), *plant_workers(database, 1))
    owner = database.run(plant_owner)
    (too_large,) = plant(database, owner, cycle_memory_bytes=9 * GIB)
    (fits,) = plant(database, owner, cycle_memory_bytes=8 * GIB)
    assert claim_all(database, small) == [fits]
    assert claim_all(database, large) == [too_large]


def test_owners_share_the_devices_by_weight(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owners = [database.run(plant_owner) for _ in range(3)]
    with database.session_scope() as session:
        for owner, weight in zip(owners, (1, 2, 3), strict=True):
            set_owner(session, owner, OwnerChanges(weight=weight))
    of_job = {job: owner for owner in owners for job in plant(database, owner, n=12)}
    first = [of_job[job] for job in claim_all(database, worker)][:18]
    got = Counter(first)
    assert [got[owner] for owner in owners] == [3, 6, 9]


def test_time_used_counts_by_the_hour_and_is_forgotten_after_the_window(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owner = database.run(plant_owner)
    plant(database, owner, n=2)
    for took_s in (2 * 3600, 30 * 3600):
        claimed = claim(database, worker)
        assert claimed is not None
        finish(database, claimed, took_s=took_s)
    (share,) = [s for s in database.run(list_shares) if s.owner_id == owner]
    assert 25 * 3600 < share.device_s <= 26 * 3600 + 60
    assert share.n_running == 0


def test_an_owner_at_its_limit_is_passed_over_until_one_has_ended(database: Database) -> None:
    workers = plant_workers(database, 2)
    owner, other = database.run(plant_owner), database.run(plant_owner)
    plant(database, owner, n=2, priority="high")
    (later,) = plant(database, other, priority="low")
    database.run(lambda session: set_owner(session, owner, OwnerChanges(max_running=1)))
    first, second = (claim(database, worker) for worker in workers)
    assert first is not None
    assert second is not None
    assert second.job_id == later
    finish(database, first)
    assert claim(database, workers[0]) is not None


def test_beyond_its_quota_high_priority_is_normal(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    eager, calm = database.run(plant_owner), database.run(plant_owner)
    high = plant(database, eager, n=3, priority="high")
    normal = plant(database, calm, n=2)
    order = claim_all(database, worker, QueueRules(high_quota_s=1.5))
    assert order == [*high[:2], *normal, high[2]]


def test_a_cycle_past_the_bound_goes_before_any_priority(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owner, other = database.run(plant_owner), database.run(plant_owner)
    high = plant(database, other, n=2, priority="high")
    (starved,) = plant(database, owner, priority="low", cycle_queued_at=ago(100))
    assert claim_all(database, worker, QueueRules(starvation_s=60)) == [starved, *high]


def test_an_owner_with_many_old_cycles_takes_no_more_than_its_share(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    hoarder, other = database.run(plant_owner), database.run(plant_owner)
    old = plant(database, hoarder, n=8, cycle_queued_at=ago(100))
    new = plant(database, other, n=4)
    order = claim_all(database, worker, QueueRules(starvation_s=60))
    assert set(new) < set(order[:9])
    assert set(old) < set(order)


def test_nothing_is_claimed_while_the_queue_is_paused(database: Database, wake_ups: list[str]) -> None:
    (worker,) = plant_workers(database, 1)
    (job,) = plant(database)
    database.run(lambda session: pause_queue(session, reason="power cut at noon"))
    assert claim(database, worker) is None
    assert database.run(resume_queue)
    assert wake_ups == ["cpu"]
    assert claim_all(database, worker) == [job]


def test_a_held_job_waits_until_it_is_released(database: Database, wake_ups: list[str]) -> None:
    (worker,) = plant_workers(database, 1)
    held, free = plant(database, database.run(plant_owner), n=2)
    for _ in range(2):
        database.run(lambda session: hold_job(session, held))
    assert claim_all(database, worker) == [free]
    database.run(lambda session: release_job(session, held))
    assert wake_ups == ["cpu"]
    assert claim_all(database, worker) == [held]
    with database.session_scope() as session:
        assert event_kinds(session, held)[:2] == ["job_held", "job_released"]


def test_a_job_of_another_priority_takes_another_place(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    first, second = plant(database, database.run(plant_owner), n=2)
    database.run(lambda session: change_priority(session, second, "high"))
    assert claim_all(database, worker) == [second, first]


def test_one_worker_runs_a_sweep_through_before_it_harvests_for_another(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owner = database.run(plant_owner)
    sweep, others = [], []
    for _ in range(4):
        sweep += plant(database, owner, cycle_cache_key="sweep")
        others += plant(database, owner, cycle_cache_key="other")
    assert claim_all(database, worker) == [*sweep, *others]


@pytest.mark.parametrize("is_over", [False, True])
def test_a_second_worker_leaves_a_sweep_to_the_first_until_the_bound(
    database: Database, is_over: bool
) -> None:
    first, second = plant_workers(database, 2)
    owner = database.run(plant_owner)
    plant(database, owner, n=4, cycle_cache_key="sweep")
    running = claim(database, first)
    assert running is not None
    assert claim(database, second) is None, "its activations are being harvested elsewhere"
    finish(database, running)
    assert claim(database, second) is None, "its activations are held elsewhere"
    (free,) = plant(database, owner, cycle_cache_key="other")
    claimed = claim(database, second)
    assert claimed is not None
    assert claimed.job_id == free
    if is_over:
        with database.session_scope() as session:
            session.execute(update(Cycle).where(Cycle.state == "queued").values(queued_at=ago(121)))
        taken = claim(database, second)
        assert taken is not None
        assert taken.cache_key == "sweep"
    again = claim(database, first)
    assert again is not None
    assert again.cache_key == "sweep"


def test_two_workers_make_at_most_two_harvests_of_a_sweep(database: Database) -> None:
    workers = plant_workers(database, 2)
    owner = database.run(plant_owner)
    plant(database, owner, n=10, cycle_cache_key="sweep", cycle_queued_at=ago(130))
    plant(database, owner, n=4, cycle_cache_key="other", cycle_queued_at=ago(120))
    held: dict[str, set[str]] = {worker: set() for worker in workers}
    harvests = Counter[str]()
    for turn in range(14):
        worker = workers[turn % 2]
        claimed = claim(database, worker)
        assert claimed is not None
        assert claimed.cache_key is not None
        harvests[claimed.cache_key] += claimed.cache_key not in held[worker]
        held[worker].add(claimed.cache_key)
        finish(database, claimed)
    assert harvests["sweep"] <= 2
    assert harvests["other"] <= 2


def test_activations_of_a_worker_that_is_gone_keep_nobody_waiting(database: Database) -> None:
    gone, other = plant_workers(database, 2)
    (job,) = plant(database, cycle_cache_key="sweep")
    database.run(lambda session: touch_worker(session, gone, cache_keys=["sweep"]))
    assert claim(database, other) is None
    with database.session_scope() as session:
        session.execute(update(Worker).where(Worker.id == gone).values(last_seen_at=ago(61)))
    assert claim_all(database, other) == [job]


def test_a_worker_holds_what_its_last_succeeded_cycles_read(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    for key in ("a", "b", "a"):
        plant(database, cycle_cache_key=key)
        claim_all(database, worker)
    with database.session_scope() as session:
        assert session.get_one(Worker, worker).cache_keys == ["a", "b"]


def test_places_in_line_are_those_in_which_cycles_are_claimed(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owners = [database.run(plant_owner) for _ in range(3)]
    with database.session_scope() as session:
        set_owner(session, owners[1], OwnerChanges(weight=2.5))
    for i, priority in enumerate(("normal", "low", "high", "normal", "normal", "high", "low", "normal") * 2):
        plant(database, owners[i % 3], priority=priority)
    (starved,) = plant(database, owners[0], priority="low", cycle_queued_at=ago(100))
    rules = QueueRules(starvation_s=60, high_quota_s=1.5)
    database.run(lambda session: take_snapshots(session, rules))
    with database.session_scope() as session:
        of_cycle = {row.id: row.job_id for row in session.execute(select(Cycle.id, Cycle.job_id))}
        places = find_places(session, list(of_cycle))
    expected = sorted(of_cycle, key=lambda cycle_id: places[cycle_id].position)
    order = claim_all(database, worker, rules)
    assert order[0] == starved
    assert order == [of_cycle[cycle_id] for cycle_id in expected]


def test_the_lines_are_of_one_moment_though_owners_come_while_they_are_worked_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = plant(database, database.run(plant_owner))

    def list_and_let_one_come(session: Session) -> list[OwnerShare]:
        shares = list_shares(session)
        plant(database, database.run(plant_owner))
        return shares

    monkeypatch.setattr("dmsae.service.queue_snapshots.list_shares", list_and_let_one_come)
    database.run(lambda session: take_snapshots(session, RULES))
    with database.session_scope() as session:
        of_cycle = {row.id: row.job_id for row in session.execute(select(Cycle.id, Cycle.job_id))}
        assert [of_cycle[cycle_id] for cycle_id in find_places(session, list(of_cycle))] == early
        assert len(of_cycle) == 2


def test_starts_are_told_from_the_lengths_of_earlier_attempts_or_not_at_all(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owner = database.run(plant_owner)
    plant(database, owner, n=7)
    told = starts(database)
    assert told[0] is not None
    assert told[0] < 1
    assert told[1:] == [None] * 6, "nobody knows how long the first will take"
    for _ in range(3):
        claimed = claim(database, worker)
        assert claimed is not None
        finish(database, claimed, took_s=60)
    running = claim(database, worker)
    assert running is not None
    assert starts(database) == pytest.approx([60, 120, 180], abs=3)
    database.run(pause_queue)
    assert starts(database) == [None] * 3, "nobody knows how long the queue is paused"


def test_a_cycle_is_expected_to_take_as_long_as_those_of_its_job_before_it(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    job_id = database.run(lambda session: plant_job(session, "cpu", n_cycles=2))
    first = claim(database, worker)
    assert first is not None
    with database.session_scope() as session:
        session.execute(update(Attempt).where(Attempt.id == first.attempt_id).values(opened_at=ago(300)))
        close_attempt(session, first, "succeeded")
        move_cycle(session, first.cycle_id, "failed")
        following = session.scalars(select(Cycle.id).where(Cycle.job_id == job_id, Cycle.index == 1)).one()
        move_cycle(session, following, "queued", queued_at=func.now())
    assert claim(database, worker) is not None
    plant(database)
    assert starts(database) == pytest.approx([300], abs=3)


def test_a_cycle_in_backoff_stands_behind_those_that_can_begin(database: Database) -> None:
    (worker,) = plant_workers(database, 1)
    owner = database.run(plant_owner)
    plant(database, owner, cycle_not_before=ago(-60))
    (later,) = plant(database, owner)
    assert starts(database)[1] is None
    assert claim_all(database, worker) == [later]
