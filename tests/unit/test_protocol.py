"""What counts as a message of the trainer, and what a listener keeps of all that it says."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsae.service.logs import HIDDEN
from worker.protocol import (
    DoneMessage,
    EventMessage,
    FailedMessage,
    PhaseMessage,
    ProgressMessage,
    parse_line,
)
from worker.redacting import Redactor
from worker.trainer_output import TAIL_BYTES, TrainerOutput


def line(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


@pytest.fixture
def output() -> TrainerOutput:
    return TrainerOutput(Redactor(["correct-horse-battery"]))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"type": "phase", "phase": "loading"}, PhaseMessage),
        ({"type": "progress", "step": 3, "loss": 0.5, "l0": None}, ProgressMessage),
        ({"type": "event", "kind": "core_truncated", "message": "cut"}, EventMessage),
        ({"type": "failed", "code": "out_of_memory", "message": "no"}, FailedMessage),
        ({"type": "done"}, DoneMessage),
    ],
)
def test_each_kind_of_message_is_read(message: dict[str, object], kind: type) -> None:
    assert isinstance(parse_line(line(**message)), kind)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"loading weights: 100%\n",
        b"[1, 2]\n",
        b'{"type": "phase", "phase": "sleeping"}\n',
        b'{"type": "progress", "step": -1}\n',
        b'{"type": "progress", "step": 1e300}\n',
        b'{"type": "progress", "step": 99999999999999999999}\n',
        b'{"type": "event", "kind": "No Name", "message": "x"}\n',
        b'{"type": "unknown"}\n',
        b"\xff\xfe\n",
        b"[" * 100_000,
    ],
)
def test_anything_else_is_no_message(content: bytes) -> None:
    assert parse_line(content) is None


def test_non_finite_numbers_become_unknown() -> None:
    message = parse_line(b'{"type": "progress", "step": 1, "loss": NaN, "l0": -Infinity}\n')
    assert isinstance(message, ProgressMessage)
    assert (message.loss, message.l0) == (None, None)


@given(st.binary(max_size=200))
def test_no_line_whatsoever_raises(content: bytes) -> None:
    parse_line(content)


def test_a_report_holds_what_is_new_and_nothing_twice(output: TrainerOutput) -> None:
    output.take_line(line(type="phase", phase="training"))
    for step in (1, 2):
        output.take_line(line(type="progress", step=step))
    output.take_line(line(type="event", kind="weak_coverage", message="m"))
    report = output.take_report()
    assert report.phase == "training"
    assert [point["step"] for point in report.points] == [1, 2]
    assert report.progress == report.points[-1]
    assert [event["kind"] for event in report.events] == ["weak_coverage"]
    empty = output.take_report()
    assert (empty.phase, empty.progress, empty.points, empty.events) == (None, None, (), ())
    assert not empty.is_visible


def test_a_report_given_back_comes_again_before_what_is_newer(output: TrainerOutput) -> None:
    output.take_line(line(type="phase", phase="harvesting"))
    output.take_line(line(type="progress", step=1))
    report = output.take_report()
    output.take_line(line(type="phase", phase="training"))
    output.take_line(line(type="progress", step=2))
    output.give_back(report)
    again = output.take_report()
    assert again.phase == "training"
    assert [point["step"] for point in again.points] == [1, 2]
    assert again.progress is not None
    assert again.progress["step"] == 2


def test_the_tail_is_bounded_and_shows_no_secret_wherever_it_is_cut(output: TrainerOutput) -> None:
    secret = b"correct-horse-battery"
    for n_before in range(0, 60, 7):
        output.read_chatter(io.BytesIO(b"x" * n_before + secret + b"\n" + b"y" * 5000 + b"\n"))
    output.read_chatter(io.BytesIO((secret + b"|") * (TAIL_BYTES // 10)))
    tail = output.tail()
    assert len(tail) <= TAIL_BYTES
    assert "battery" not in tail
    assert "horse" not in tail
    assert HIDDEN in tail


def test_lines_that_are_no_message_go_to_the_tail(output: TrainerOutput) -> None:
    output.read_messages(io.BytesIO(b"plain words\n" + line(type="done")))
    assert output.tail() == "plain words\n"
    assert isinstance(output.ending, DoneMessage)
