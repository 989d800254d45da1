"""What the trainer says on its standard output."""

import io
import json
import math
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dmsae.reporting import LineReport, finite_or_null

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


@given(VALUES)
def test_whatever_is_reported_is_strict_json_in_one_line(value):
    out = io.StringIO()
    LineReport(out).event("kind", "message", {"value": value})
    assert out.getvalue().count("\n") == 1
    found = json.loads(out.getvalue(), parse_constant=refuse_constant)
    assert found["data"] == finite_or_null({"value": value})


def test_only_numbers_that_are_not_finite_become_null():
    value = {"loss": math.nan, "list": [1.5, math.inf, True, "text", 3], "tuple": (1, -math.inf)}
    assert finite_or_null(value) == {
        "loss": None,
        "list": [1.5, None, True, "text", 3],
        "tuple": [1, None],
    }


def test_once_claimed_standard_output_carries_the_protocol_alone():
    code = (
        "import os, sys; from dmsae.reporting import LineReport, claim_stdout\n"
        "report = LineReport(claim_stdout())\n"
        "print('chatter'); os.write(1, b'raw chatter'); os.system('echo child chatter')\n"
        "report.done()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in run.stdout.splitlines()] == [{"type": "done"}]
    assert all(words in run.stderr for words in ("chatter", "raw chatter", "child chatter"))
