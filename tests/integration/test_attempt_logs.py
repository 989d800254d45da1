"""Every line logged of an attempt says of which job, cycle and attempt it is, whichever thread wrote it."""

from pathlib import Path

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict

from tests.worker_bench import Bench


def lines_of(bench: Bench) -> list[EventDict]:
    """Run a cycle; give what was logged, as it would be written."""
    processors = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=processors) as lines:
        assert bench.run() is not None
    return list(lines)


def test_every_line_of_an_attempt_names_its_job_cycle_and_attempt(bench: Bench) -> None:
    nowhere = SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/none")
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"database_url": nowhere})
    bench.plant(every=2, seconds=1.0)
    lines = lines_of(bench)
    told = {line["event"] for line in lines}
    from_threads = {"heartbeat_missed", "checkpoint_stored"}
    assert {"attempt_began", "trainer_started", "attempt_ended", *from_threads} <= told
    for line in lines:
        assert (line["job"], line["cycle"], line["attempt"]) == (bench.job_id, 0, 1), line
    assert structlog.contextvars.get_contextvars() == {}


def test_the_lines_of_the_second_attempt_are_told_from_those_of_the_first(
    bench: Bench, tmp_path: Path
) -> None:
    bench.plant("crash", once=str(tmp_path / "once"))
    assert [{line["attempt"] for line in lines_of(bench)} for _ in range(2)] == [{1}, {2}]
