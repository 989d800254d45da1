"""Schemathesis makes up requests from our own OpenAPI document: no 5xx, and no answer that it does not name.

`DMSAE_FUZZ=N` (`make fuzz`) runs all its phases with N examples of each call, else there are some hundred.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import RunningServices
from tests.fuzzing import Target, answered, run_schemathesis, tell, with_ids
from tests.inhabited import Inhabited, inhabited

N_EXAMPLES = int(os.environ.get("DMSAE_FUZZ", "0"))
pytestmark = pytest.mark.timeout(7200 if N_EXAMPLES else 280)
PHASES = ("examples", "fuzzing", "stateful")
AGAINST_ITSELF = "^(DELETE /keys/|PATCH /admin/owners/)"
"""Calls that would end the run's own key, or leave its owner no quota: in a run of their own, at the end."""
NEVER_DONE = {"GET /latents/{latent_id}/snippets"}
"""Its texts would lie in the store: test_snippet_api.py."""


def test_no_request_that_the_document_suggests_makes_the_service_lie(
    services: RunningServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inhabited(services) as lab:
        sent = send_all(lab, tmp_path, PHASES)
    asked, done = {call for call, _ in sent.counts}, {call for call, status in sent.counts if status == "2xx"}
    with capsys.disabled():
        report(sent)
    assert sent.is_clean, sent.told
    assert sent.n_cases > 200
    assert not sent.calls - asked
    assert not (N_EXAMPLES and sent.calls - done - NEVER_DONE), sorted(sent.calls - done)


@pytest.mark.skipif(not N_EXAMPLES, reason="thousands of requests: make fuzz")
def test_no_edge_of_what_the_document_allows_makes_the_service_lie(
    services: RunningServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inhabited(services) as lab:
        sent = send_all(lab, tmp_path, ("coverage",))
    with capsys.disabled():
        report(sent)
    assert sent.is_clean, sent.told
    assert sent.n_cases > 2000
    assert not sent.calls - {call for call, _ in sent.counts}


class Sent(NamedTuple):
    """What was sent in two runs to all calls of the document, and what came of it."""

    is_clean: bool
    told: str
    n_cases: int
    counts: Counter[tuple[str, str]]
    calls: set[str]


def send_all(lab: Inhabited, folder: Path, phases: Sequence[str]) -> Sent:
    document = lab.api.get("/openapi.json").json()
    target = Target(str(lab.api.base_url), lab.key, with_ids(document, lab.ids))
    runs = [
        run_schemathesis(
            folder / option.strip("-"),
            target,
            phases=phases,
            n_examples=N_EXAMPLES or 4,
            calls={option: AGAINST_ITSELF},
        )
        for option in ("--exclude-name-regex", "--include-name-regex")
    ]
    calls = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    return Sent(
        all(run.is_clean for run in runs),
        "\n".join(run.told[-20_000:] for run in runs),
        sum(run.n_cases for run in runs),
        answered(lab.api.get("/metrics").text),
        calls,
    )


def report(sent: Sent) -> None:
    """Say what was sent, where somebody waits to read it."""
    if N_EXAMPLES:
        sys.stdout.write(f"\n{sent.n_cases} cases\n{tell(sent.counts)}\n")
