"""A worker whose disk is full: its cycles go on elsewhere, and it takes none until there is room again.

The disk is a small file system in memory that the worker alone sees, in a mount namespace of its own.
"""

import os
import signal
import subprocess
from collections.abc import Sequence

import pytest
from sqlalchemy import select

from dmsae.service.tables import Attempt, Cycle
from tests.faults.crew import Crew, in_full, wait_for

NAMESPACES: Sequence[Sequence[str]] = (
    ("unshare", "--mount"),
    ("unshare", "--user", "--map-root-user", "--mount"),
)
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
DISK_BYTES = 8 << 20


def own_disk(folder: str) -> list[str]:
    """Give the command before which a process has a small disk of its own at `folder`."""
    for namespace in NAMESPACES:
        command = [*namespace, "sh", "-c", MOUNT, "sh", str(DISK_BYTES), folder]
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            break
    pytest.skip("no mount namespace may be made here: it needs root, or user namespaces")


@pytest.fixture
def small_disk(crew: Crew) -> list[str]:
    crew.env["DMSAE_DISK_RESERVE_BYTES"] = "0"
    folder = crew.folder.parent / "work_dir"
    folder.mkdir()
    return own_disk(str(folder))


def test_a_cycle_that_does_not_fit_succeeds_on_another_machine(crew: Crew, small_disk: list[str]) -> None:
    other = crew.start_worker("cpu:1")
    os.kill(other.pid, signal.SIGSTOP)
    job_id = crew.plant(size_bytes=DISK_BYTES + 1)
    small = [crew.plant() for _ in range(2)]
    crew.env["DMSAE_IDLE_WAKE_S"] = "5"  # so that it rests for 15 s, within which the other one surely wakes
    crew.begin_worker("cpu:0", before=small_disk)
    wait_for(lambda: crew.outcomes(job_id) == ["crashed"], seconds=60, what="the disk is full")
    os.kill(other.pid, signal.SIGCONT)
    for each in (job_id, *small):
        crew.wait_until(each, "succeeded", seconds=60)
    assert crew.outcomes(job_id) == ["crashed", "succeeded"]
    with crew.database.session_scope() as session:
        query = select(Attempt.error, Attempt.worker_id).join(Cycle, Cycle.id == Attempt.cycle_id)
        first, second = session.execute(query.where(Cycle.job_id == job_id).order_by(Attempt.number))
    assert first.error["code"] == "disk_full"
    assert first.worker_id != second.worker_id


@in_full
def test_a_cycle_that_fits_nowhere_fails_and_names_the_disk(crew: Crew, small_disk: list[str]) -> None:
    job_id = crew.plant(size_bytes=DISK_BYTES + 1)
    crew.begin_worker("cpu:0", before=small_disk)
    wait_for(lambda: crew.outcomes(job_id) != [], seconds=60, what="it begins")
    small = crew.plant()
    crew.wait_until(job_id, "failed", seconds=60)
    crew.wait_until(small, "succeeded", seconds=60)
    assert crew.outcomes(job_id) == ["crashed"] * 3
    assert crew.error(job_id)["code"] == "attempts_exhausted"
    assert crew.error(job_id)["cause"] == "disk_full"


def test_a_worker_without_room_takes_nothing_until_there_is_some(crew: Crew, small_disk: list[str]) -> None:
    crew.env["DMSAE_DISK_RESERVE_BYTES"] = str(DISK_BYTES + 1)
    job_id = crew.plant()
    worker = crew.begin_worker("cpu:1", before=small_disk)
    wait_for(lambda: "disk_nearly_full" in crew.log("worker-cpu-1"), seconds=60, what="it finds no room")
    assert crew.outcomes(job_id) == []
    crew.begin_worker("cpu:0")
    crew.wait_until(job_id, "succeeded", seconds=60)
    with crew.database.session_scope() as session:
        assert session.scalars(select(Attempt.worker_id)).one().endswith("cpu-0")
    assert worker.poll() is None
