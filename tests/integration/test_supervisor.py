"""One attempt from claim to record, with a trainer that behaves or does not."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select, update

from dmsae.service.cancelling import cancel_job
from dmsae.service.objects import ObjectStore
from dmsae.service.tables import Artifact, Attempt, Cycle, Event, Latent, MetricPoint
from dmsae.sources import StoredObject
from tests.planting import event_kinds
from tests.worker_bench import Bench


def test_nothing_queued_means_nothing_done(bench: Bench) -> None:
    assert bench.run() is None


def test_two_cycles_run_one_call_each_and_hand_the_core_on(bench: Bench, tmp_path: Path) -> None:
    bench.plant(n_cycles=2)
    assert bench.run() == "succeeded"
    assert bench.states() == ("running", ["succeeded", "queued"], ["succeeded"])
    assert bench.run() == "succeeded"
    assert bench.states() == ("succeeded", ["succeeded"] * 2, ["succeeded"] * 2)
    with bench.database.session_scope() as session:
        names = session.scalars(
            select(Artifact.name).where(Artifact.job_id == bench.job_id).order_by(Artifact.name)
        ).all()
        told = ("lineage.json", "manifest.json", "metrics.json", "spec.json")
        assert set(names) == {"core/core.json", "sae/cfg.json", *told}
        latents = session.scalars(select(Latent).where(Latent.origin_job_id == bench.job_id)).all()
        assert {latent.times_selected for latent in latents} == {1, 2}
        points = session.scalars(select(MetricPoint.step).join(Cycle, Cycle.id == MetricPoint.cycle_id))
        assert sorted(points) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert event_kinds(session, bench.job_id).count("core_truncated") == 2
        manifest = session.scalars(select(Artifact).where(Artifact.name == "manifest.json")).first()
        assert manifest is not None
    fetched = tmp_path / "manifest.json"
    bench.runtime.objects.get_file(manifest.object_key, fetched, sha256=manifest.sha256)
    listed = {file["name"] for file in json.loads(fetched.read_text())["files"]}
    assert listed == set(names) - {"manifest.json"}
    assert not (bench.runtime.settings.work_dir / "cpu-0").exists()


def test_a_failure_keeps_its_code_and_its_param(bench: Bench) -> None:
    bench.plant("fail", code="layer_out_of_range")
    assert bench.run() == "failed"
    error = bench.error()
    assert (error["code"], error["param"]) == ("layer_out_of_range", "activations.layer")


def test_an_unknown_code_counts_as_internal_error(bench: Bench) -> None:
    bench.plant("fail", code="made_up")
    assert bench.run() == "failed"
    assert bench.error()["code"] == "internal_error"


def test_a_killed_trainer_is_tried_again(bench: Bench, tmp_path: Path) -> None:
    bench.plant("crash", once=str(tmp_path / "once"))
    assert bench.run() == "crashed"
    assert bench.states() == ("running", ["queued"], ["crashed"])
    error = bench.attempt().error
    assert error is not None
    assert "SIGKILL" in error["message"]
    assert bench.run() == "succeeded"


def test_a_trainer_that_always_breaks_off_fails_in_the_end(bench: Bench) -> None:
    bench.plant("exit")
    assert [bench.run() for _ in range(3)] == ["crashed"] * 3
    assert bench.error()["code"] == "attempts_exhausted"


def test_a_trainer_that_writes_nothing_fails(bench: Bench) -> None:
    bench.plant("empty")
    assert bench.run() == "failed"
    assert "lineage.json" in bench.error()["message"]


def test_the_time_limit_ends_a_trainer(bench: Bench) -> None:
    bench.plant("hang")
    bench.configure(time_limit_s=1)
    assert bench.run() == "failed"
    assert bench.error()["code"] == "timed_out"


def test_a_cancelled_job_ends_its_group_even_if_it_ignores_sigterm(bench: Bench) -> None:
    bench.plant("stubborn")
    pids: list[int | None] = []

    def cancel() -> None:
        time.sleep(0.3)
        pids.append(bench.trainer_pid())
        bench.database.run(lambda session: cancel_job(session, bench.job_id))

    begun = time.monotonic()
    assert bench.run_meanwhile(cancel) == "cancelled"
    assert time.monotonic() - begun < 10
    assert bench.states() == ("cancelled", ["cancelled"], ["cancelled"])
    assert pids[0] is not None
    assert not psutil.pid_exists(pids[0])


def test_a_grandchild_dies_with_its_trainer(bench: Bench) -> None:
    bench.plant("grandchild")
    assert bench.run() == "succeeded"
    with bench.database.session_scope() as session:
        pid = session.scalars(select(Event.message).where(Event.kind == "grandchild")).one()
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_a_stopping_worker_hands_its_cycle_back(bench: Bench) -> None:
    bench.plant("hang")
    assert bench.run_meanwhile(bench.runtime.draining.set) == "handed_back"
    assert bench.states() == ("running", ["queued"], ["handed_back"])
    assert bench.run() is None


def test_a_stale_attempt_stops_its_trainer_and_changes_nothing(bench: Bench) -> None:
    bench.plant("hang")

    def close() -> None:
        with bench.database.session_scope() as session:
            session.execute(update(Attempt).values(outcome="superseded", closed_at=Attempt.opened_at))

    assert bench.run_meanwhile(close) == "stale"
    assert bench.states() == ("running", ["running"], ["superseded"])


@pytest.mark.parametrize("token", ["hf_0123456789abcdefghij", "a private hub's token"])
def test_a_trainer_sees_no_credentials_and_its_output_is_redacted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("DMSAE_S3_SECRET_KEY", "never-shown")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
    password = bench.runtime.settings.broker_url.get_secret_value().split(":")[2].split("@")[0]
    other = "hf_somebodyElsesToken012345"
    bench.plant("print", text=f"reads with {token}, not {other}, beside {password}")
    assert bench.run() == "succeeded"
    tail = bench.attempt().log_tail
    with bench.database.session_scope() as session:
        event = session.scalars(select(Event).where(Event.kind == "printed")).one()
        told = f"{event.message} {event.data}"
    seen = {line.split()[1] for line in tail.splitlines() if line.startswith("sees ")}
    assert {"HF_TOKEN", "HF_ENDPOINT"} <= seen
    assert not [name for name in seen if name.startswith(("DMSAE_", "AWS_"))]
    assert "reads with [hidden]" in tail
    assert "reads with [hidden]" in told
    assert [secret for secret in (token, other, password) if secret in tail + told] == []


def test_endless_and_broken_lines_do_no_harm(bench: Bench) -> None:
    bench.plant("flood")
    assert bench.run() == "succeeded"
    assert len(bench.attempt().log_tail) <= 64 << 10


def test_a_model_outside_the_allowed_roots_is_refused_before_anything_starts(
    bench: Bench, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (root / "sly").symlink_to("/etc")
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"allowed_roots": [root]})
    bench.plant()
    bench.configure(model={"source": "local", "path": str(root / "sly" / "passwd")})
    assert bench.run() == "failed"
    assert bench.error()["code"] == "model_unreadable"
    assert bench.error()["param"] == "model.path"


def test_text_outside_the_allowed_roots_is_refused_before_anything_starts(
    bench: Bench, tmp_path: Path
) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"allowed_roots": [tmp_path]})
    bench.plant()
    paths = [str(tmp_path / "*.txt"), "/etc/**/*.txt"]
    bench.configure(data={"text": {"source": "files", "paths": paths}})
    assert bench.run() == "failed"
    assert (bench.error()["code"], bench.error()["param"]) == ("data_unreadable", "data.text.paths.1")


def test_a_trainer_is_given_the_objects_that_its_text_names_and_what_it_may_read(
    bench: Bench, tmp_path: Path
) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"allowed_roots": [tmp_path]})
    text, objects = plant_object(bench, tmp_path)
    bench.plant("print", text="")
    bench.configure(data={"text": text})
    assert bench.run() == "succeeded"
    tail = bench.attempt().log_tail
    assert f"reads {objects[0].file_name}: some text" in tail
    assert f"may read {tmp_path}" in tail
    held = bench.runtime.settings.cache_dir / "objects" / "held"
    assert not [path for path in held.iterdir() if path.is_dir()]


def test_an_object_that_changed_since_ends_the_cycle(bench: Bench, tmp_path: Path) -> None:
    text, objects = plant_object(bench, tmp_path)
    (tmp_path / "other.txt").write_text("other text")
    bench.runtime.objects.put_file(objects[0].key, tmp_path / "other.txt")
    bench.plant()
    bench.configure(data={"text": text})
    assert bench.run() == "failed"
    assert (bench.error()["code"], bench.error()["param"]) == ("data_unreadable", "data.text.objects.0")


def plant_object(bench: Bench, folder: Path) -> tuple[dict[str, Any], list[StoredObject]]:
    """Store a text, and give it as a config names it."""
    (folder / "some.txt").write_text("some text")
    key = bench.runtime.objects.put_file(f"uploads/{folder.name}/some.txt", folder / "some.txt").key
    etag = bench.runtime.objects.describe(key).etag
    stored = StoredObject(key=key, etag=etag, size_bytes=9)
    return {"source": "objects", "objects": [stored.model_dump()]}, [stored]


def test_a_store_that_does_not_answer_means_another_attempt(bench: Bench) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"store_patience_s": 0})
    away = bench.runtime.settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    bench.runtime.objects.close()
    bench.runtime.objects = ObjectStore(away)
    bench.plant()
    assert bench.run() == "crashed"
    error = bench.attempt().error
    assert error is not None
    assert error["code"] == "store_unavailable"


def test_a_core_that_is_gone_from_the_store_is_named(bench: Bench) -> None:
    bench.plant(n_cycles=2)
    assert bench.run() == "succeeded"
    with bench.database.session_scope() as session:
        key = session.scalars(select(Artifact.object_key).where(Artifact.name == "core/core.json")).one()
    bench.runtime.objects.delete(key)
    assert bench.run() == "crashed"
    error = bench.attempt().error
    assert error is not None
    assert key in error["message"]


def test_a_device_that_another_worker_holds_is_left_alone(bench: Bench) -> None:
    bench.plant("hang")

    def try_too() -> None:
        bench.plant()
        assert bench.run() is None
        bench.runtime.draining.set()

    assert bench.run_meanwhile(try_too) == "handed_back"


def test_the_lease_is_renewed_while_the_trainer_runs(bench: Bench) -> None:
    bench.plant(seconds=3.0)
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"lease_s": 1.0})

    def look() -> None:
        time.sleep(2.0)
        with bench.database.session_scope() as session:
            attempt = session.scalars(select(Attempt)).one()
            assert attempt.lease_expires_at - attempt.opened_at > timedelta(seconds=2)
            assert attempt.phase == "training"
            assert attempt.progress is not None
            assert attempt.progress["n_steps"] == 5

    assert bench.run_meanwhile(look) == "succeeded"
