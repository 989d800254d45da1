"""Claims about where memory comes from and how much there was, asked of fresh processes."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from dmsae.allocator import use_one_arena

if sys.argv[1] == "one":
    use_one_arena()
libc, places = ctypes.CDLL(None), []
libc.malloc.restype = ctypes.c_void_p
thread = threading.Thread(target=lambda: places.append(libc.malloc(1000)))
thread.start()
thread.join()
with open("/proc/self/maps") as maps:
    (heap,) = [line.split()[0] for line in maps if line.rstrip().endswith("[heap]")]
start, end = (int(bound, 16) for bound in heap.split("-"))
print(start <= places[0] < end)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc on Linux has arenas to choose from")
@pytest.mark.parametrize(("arenas", "shares_the_heap"), [("one", "True"), ("many", "False")])
def test_a_thread_allocates_in_the_heap_of_the_process_only_where_there_is_one_arena(
    arenas: str, shares_the_heap: str
) -> None:
    command = [sys.executable, "-c", PROGRAM, arenas]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shares_the_heap


PARENT = """
import subprocess, sys

held = bytearray(b"x") * (300 << 20)
child = "from dmsae.allocator import peak_memory_bytes; print(peak_memory_bytes())"
sys.exit(subprocess.run([sys.executable, "-c", child]).returncode)
"""
OWN = """
from dmsae.allocator import peak_memory_bytes

before = peak_memory_bytes()
del (bytearray(b"x") * (100 << 20))[:]
print(peak_memory_bytes() - before)
"""


def test_a_program_has_not_held_what_its_parent_did() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < 200 << 20


def test_a_program_has_held_what_it_gave_back() -> None:
    done = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(100 << 20, rel=0.1)
