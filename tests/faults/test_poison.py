"""A job that kills whoever works on it fails in the end, says why, and keeps nobody else from working."""

import signal
import time

import pytest

from tests.faults.crew import Crew, in_full


@pytest.mark.parametrize(
    ("behaviour", "cause", "others"),
    [("crash", "crashed", 2), pytest.param("kill_parent", "lease_expired", 1, marks=in_full)],
    ids=["trainer", "worker"],
)
def test_a_poisoned_job_fails_after_the_last_attempt_and_others_go_on(
    crew: Crew, behaviour: str, cause: str, others: int
) -> None:
    crew.start_sweeper()
    workers = {device: crew.begin_worker(device) for device in ("cpu:0", "cpu:1")}
    poisoned = crew.plant(behaviour=behaviour)
    jobs = [crew.plant(n_cycles=2, n_steps=4, seconds=1.0, every=1) for _ in range(others)]
    deadline = time.monotonic() + 90
    n_killed = 0
    while {crew.state(job) for job in jobs} != {"succeeded"} or crew.state(poisoned) != "failed":
        assert time.monotonic() < deadline
        for device, worker in workers.items():
            if worker.poll() is not None:
                assert worker.returncode == -signal.SIGKILL
                n_killed += 1
                workers[device] = crew.begin_worker(device)
        time.sleep(0.05)
    assert crew.outcomes(poisoned) == ["crashed"] * 3
    assert n_killed == (3 if behaviour == "kill_parent" else 0)
    assert all(crew.count("begin")[job, index] == 1 for job in jobs for index in range(2))
    error = crew.error(poisoned)
    assert (error["code"], error["cause"]) == ("attempts_exhausted", cause)
    assert "attempts" in error["message"]
