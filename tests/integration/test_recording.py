"""What a finished, failed, crashed or handed-back attempt changes, and that nothing changes twice."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select, update

from dmsae.errors import CycleFailed, StaleAttempt
from dmsae.service.claims import Claim, StoredFile, claim_cycle
from dmsae.service.database import Database
from dmsae.service.plain_json import read_plain_json
from dmsae.service.recording import (
    RetryPolicy,
    record_crash,
    record_failure,
    record_hand_back,
    record_success,
)
from dmsae.service.tables import Artifact, Core, CoreLatent, Cycle, CycleOrigin, Job, Latent
from tests.planting import (
    as_result,
    cycle_states,
    event_kinds,
    fresh_class,
    job_state,
    make_lineage,
    outcomes,
    plant_job,
    plant_worker,
)

POLICY = RetryPolicy(max_attempts=3, backoff_s=0)


class Bench:
    """One job under a class of its own, claimed and recorded step by step."""

    def __init__(self, database_url: str) -> None:
        self.woken: list[str] = []
        self.database = Database(database_url, wake_up=self.woken.append)
        self.resource_class = fresh_class()
        self.worker_id = self.database.run(lambda session: plant_worker(session, self.resource_class))
        self.job_id = ""

    def plant(self, **fields: Any) -> None:
        self.job_id = self.database.run(lambda session: plant_job(session, self.resource_class, **fields))

    def claim(self) -> Claim:
        claim = self.database.run(
            lambda session: claim_cycle(
                session,
                worker_id=self.worker_id,
                resource_class=self.resource_class,
                lease_s=30,
                celery_task_id=None,
            )
        )
        assert claim is not None
        return claim

    def succeed(self, claim: Claim, lineage: dict[str, Any], **metrics: Any) -> str:
        file = StoredFile("core/core.json", f"{claim.object_prefix}core/core.json", 3, "abc")
        result = as_result(lineage, **metrics)
        return self.database.run(
            lambda session: record_success(session, claim, artifacts=(file,), result=result)
        )

    def crash(self, claim: Claim) -> str:
        return self.database.run(
            lambda s: record_crash(s, claim, code="crashed", message="It died.", policy=POLICY)
        )

    def states(self) -> tuple[str, list[str]]:
        with self.database.session_scope() as session:
            return job_state(session, self.job_id), cycle_states(session, self.job_id)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    bench = Bench(database_url)
    bench.plant()
    yield bench
    bench.database.dispose()


def test_three_cycles_record_their_lineage_and_end_the_job(bench: Bench) -> None:
    first = bench.claim()
    given = make_lineage(first, [], kept=[], new=[10, 20, 30])
    assert bench.succeed(first, given, l0=1.5) == "succeeded"
    assert bench.states() == ("running", ["succeeded", "queued", "waiting"])
    assert bench.woken == [bench.resource_class]

    second = bench.claim()
    assert [file.name for file in second.input_files] == ["core/core.json"]
    later = make_lineage(second, given["core"], kept=[0, 2], new=[40])
    bench.succeed(second, later)
    third = bench.claim()
    last = make_lineage(third, later["core"], kept=[0, 2], new=[])
    bench.succeed(third, last)
    assert bench.states() == ("succeeded", ["succeeded"] * 3)

    with bench.database.session_scope() as session:
        latents = {
            latent.public_id: (latent.times_selected, latent.last_index, latent.dropped_at)
            for latent in session.scalars(select(Latent).where(Latent.origin_job_id == bench.job_id))
        }
        assert latents == {
            f"{bench.job_id}.0.10": (3, 2, None),
            f"{bench.job_id}.0.20": (1, 0, 1),
            f"{bench.job_id}.0.30": (2, 1, 2),
            f"{bench.job_id}.1.40": (2, 2, None),
        }
        origins = session.execute(
            select(Cycle.index, CycleOrigin.origin_cycle, CycleOrigin.n_latents)
            .join(Cycle, Cycle.id == CycleOrigin.cycle_id)
            .where(Cycle.job_id == bench.job_id)
            .order_by(Cycle.index, CycleOrigin.origin_cycle)
        )
        assert [tuple(row) for row in origins] == [(0, 0, 3), (1, 0, 2), (1, 1, 1), (2, 0, 1), (2, 1, 1)]
        places = session.scalars(
            select(CoreLatent).join(Core).where(Core.cycle_id == second.cycle_id).order_by("core_index")
        ).all()
        assert [place.parent_core_index for place in places] == [0, 2, None]
        assert {place.parent_core_id for place in places[:2]} == {second.input_core_id}
        core = session.scalars(select(Core).where(Core.cycle_id == first.cycle_id)).one()
        assert (core.kind, core.seed, core.n_latents) == ("selected", 7, 3)
        kinds = event_kinds(session, bench.job_id)
        assert kinds[-1] == "job_succeeded"
        assert kinds.count("cycle_succeeded") == 3
        assert kinds.count("cycle_queued") == 2


def test_a_result_is_recorded_once(bench: Bench) -> None:
    claim = bench.claim()
    lineage = make_lineage(claim, [], kept=[], new=[1])
    bench.succeed(claim, lineage)
    with pytest.raises(StaleAttempt):
        bench.succeed(claim, lineage)
    with bench.database.session_scope() as session:
        where = (Artifact.cycle_id == claim.cycle_id,)
        assert session.scalars(select(func.count()).select_from(Artifact).where(*where)).one() == 1


def test_a_stale_attempt_changes_nothing(bench: Bench) -> None:
    stale = bench.claim()
    bench.crash(stale)
    bench.claim()
    before = bench.states()
    with pytest.raises(StaleAttempt):
        bench.succeed(stale, make_lineage(stale, [], kept=[], new=[1]))
    with pytest.raises(StaleAttempt):
        bench.crash(stale)
    assert bench.states() == before
    with bench.database.session_scope() as session:
        assert session.scalars(select(Latent).where(Latent.origin_job_id == bench.job_id)).all() == []


def test_a_lineage_that_contradicts_the_core_given_is_refused_whole(bench: Bench) -> None:
    first = bench.claim()
    given = make_lineage(first, [], kept=[], new=[10, 20])
    bench.succeed(first, given)
    second = bench.claim()
    forgotten = make_lineage(second, given["core"], kept=[0], new=[])
    forgotten["dropped"] = []
    swapped = make_lineage(second, given["core"], kept=[0, 1], new=[])
    swapped["core"][0]["parent_core_index"], swapped["core"][1]["parent_core_index"] = 1, 0
    foreign = make_lineage(first, [], kept=[], new=[77])
    for lineage in (forgotten, swapped, foreign):
        with pytest.raises(CycleFailed, match="lineage"):
            bench.succeed(second, lineage)
    assert bench.states() == ("running", ["succeeded", "running", "waiting"])
    bench.succeed(second, make_lineage(second, given["core"], kept=[0, 1], new=[]))


def test_a_non_finite_metric_does_not_lose_the_cycle(bench: Bench) -> None:
    claim = bench.claim()
    metrics = read_plain_json('{"l0": NaN, "loss": [1.0, Infinity], "note": "a\\u0000b", "bad": "\\ud800"}')
    bench.succeed(claim, make_lineage(claim, [], kept=[], new=[1]), **metrics)
    with bench.database.session_scope() as session:
        stored = session.get_one(Cycle, claim.cycle_id).metrics
    assert stored is not None
    assert stored["l0"] is None
    assert stored["loss"] == [1.0, None]


def test_a_core_that_settled_twice_ends_the_job_early(database_url: str) -> None:
    bench = Bench(database_url)
    bench.plant(n_cycles=5)
    given: list[Any] = []
    for change in (None, 0.5, 0.01, 0.02):
        claim = bench.claim()
        lineage = make_lineage(claim, given, kept=list(range(len(given))), new=[] if given else [1, 2])
        bench.succeed(claim, lineage, core_change=change)
        given = lineage["core"]
    assert bench.states() == ("succeeded", ["succeeded"] * 4 + ["skipped"])
    with bench.database.session_scope() as session:
        assert session.get_one(Job, bench.job_id).state_reason == "converged"
    bench.database.dispose()


def test_a_failure_ends_the_job_with_its_own_code(bench: Bench) -> None:
    claim = bench.claim()
    bench.database.run(
        lambda s: record_failure(
            s, claim, code="layer_out_of_range", message="30 layers.", param="activations.layer"
        )
    )
    assert bench.states() == ("failed", ["failed", "skipped", "skipped"])
    with bench.database.session_scope() as session:
        assert session.get_one(Job, bench.job_id).error == {
            "code": "layer_out_of_range",
            "message": "30 layers.",
            "param": "activations.layer",
            "retryable": False,
        }
        assert event_kinds(session, bench.job_id)[-2:] == ["cycle_failed", "job_failed"]


def test_crashes_are_tried_again_until_too_many(bench: Bench) -> None:
    for _ in range(2):
        bench.crash(bench.claim())
        assert bench.states() == ("running", ["queued", "waiting", "waiting"])
    assert bench.woken == [bench.resource_class] * 2
    bench.crash(bench.claim())
    assert bench.states() == ("failed", ["failed", "skipped", "skipped"])
    with bench.database.session_scope() as session:
        error = session.get_one(Job, bench.job_id).error
        assert error is not None
        assert (error["code"], error["cause"]) == ("attempts_exhausted", "crashed")
        assert outcomes(session, bench.job_id) == ["crashed"] * 3


def test_each_crash_waits_longer(bench: Bench) -> None:
    policy = RetryPolicy(max_attempts=5, backoff_s=10)
    waits = []
    for _ in range(3):
        claim = bench.claim()
        bench.database.run(
            lambda s, c=claim: record_crash(s, c, code="crashed", message="It died.", policy=policy)
        )
        with bench.database.session_scope() as session:
            wait = session.scalars(
                select(Cycle.not_before - func.now()).where(Cycle.id == claim.cycle_id)
            ).one()
            waits.append(round(wait.total_seconds()))
            session.execute(update(Cycle).where(Cycle.id == claim.cycle_id).values(not_before=None))
    assert waits == [10, 20, 40]


def test_handing_back_is_not_a_failure(bench: Bench) -> None:
    for _ in range(4):
        claim = bench.claim()
        bench.database.run(lambda s, c=claim: record_hand_back(s, c, reason="The worker stops."))
    assert bench.states() == ("running", ["queued", "waiting", "waiting"])
    with bench.database.session_scope() as session:
        assert session.get_one(Cycle, claim.cycle_id).n_failed_attempts == 0
    assert len(bench.woken) == 4


def test_a_message_that_postgres_would_refuse_is_recorded(bench: Bench) -> None:
    claim = bench.claim()
    bench.database.run(lambda s: record_failure(s, claim, code="internal_error", message="a\x00b\ud800"))
    assert bench.states()[0] == "failed"
