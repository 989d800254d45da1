"""That a trainer never outlives its supervisor."""

import subprocess
import sys

import pytest

from dmsae.supervision import ORPHANED

CHILD = (
    "import time; from dmsae.supervision import tie_to_parent; "
    "tie_to_parent(); print('tied', flush=True); time.sleep(60)"
)
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def start(code):
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_tied_process_ends_when_its_standard_input_closes():
    with start(CHILD) as child:
        assert child.stdout.readline() == b"tied\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(timeout=10) == ORPHANED


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_tied_process_ends_with_its_parent_even_while_its_standard_input_stays_open():
    with start(PARENT) as parent:
        assert parent.stdout.readline() == b"tied\n"
        parent.kill()
        # end of output: the child held the other end of this pipe
        assert parent.stdout.read() == b""
        assert not parent.stdin.closed


def test_a_tied_process_reads_on_whatever_is_sent_to_it():
    with start(CHILD) as child:
        assert child.stdout.readline() == b"tied\n"
        child.stdin.write(b"noise")
        child.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.3)
        child.stdin.close()
        assert child.wait(timeout=10) == ORPHANED
