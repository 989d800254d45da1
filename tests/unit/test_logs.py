"""No secret reaches a log."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmsae.service.logs import HIDDEN, redact


@pytest.mark.parametrize(
    "text",
    [
        "redis://:s3cr3tvalue@host:6379/0",
        "postgresql+psycopg://dmsae:s3cr3tvalue@host/dmsae",
        "Authorization: Bearer s3cr3tvalue",
        "HF_TOKEN=s3cr3tvalue",
        "{'password': 's3cr3tvalue'}",
        "DMSAE_S3_SECRET_KEY=s3cr3tvalue",
        "http://h/b/k?X-Amz-Signature=s3cr3tvalue&x=1",
        "hf_s3cr3tvalueAAAAAAAAAAA is the token",
        "dmsae_s3cr3tvalueAAAAAAAAAAA",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    shown = redact(text)
    assert "s3cr3tvalue" not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "text", ["n_tokens=512, eos_token: </s>", "loss 0.31 at step 7", "http://host:80/path"]
)
def test_everything_else_stays(text: str) -> None:
    assert redact(text) == text


def test_lines_of_our_own_and_of_libraries_carry_the_attempt_in_every_thread_and_no_secret() -> None:
    script = """
import logging, structlog
from dmsae.service.logs import attempt_fields, configure_logs
from dmsae.service.states import Held
from worker.threads import thread_of

def say() -> None:
    structlog.get_logger().info("said", url="redis://:s3cr3tvalue@host/0")
    logging.getLogger("library").warning("password=s3cr3tvalue")

configure_logs("INFO")
with attempt_fields(Held("job_1", "cyc_1", 2, "att_1", 3, 4, "cpu")):
    thread = thread_of(say)
    thread.start()
    thread.join()
structlog.get_logger().info("after")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    *said, after = map(json.loads, done.stderr.splitlines())
    assert [line["event"] for line in said] == ["said", f"password={HIDDEN}"]
    assert [(line["job"], line["cycle"], line["attempt"]) for line in said] == [("job_1", 2, 3)] * 2
    assert "job" not in after
    assert "s3cr3tvalue" not in done.stderr


FULL_DISK = """
import structlog
from dmsae.service.logs import configure_logs
configure_logs("INFO")
for n in range(3):
    structlog.get_logger().info("it_goes_on", n=n)
print("went on")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_loses_lines_and_stops_nobody() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", FULL_DISK]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=True)
    assert done.stdout == "went on\n"
