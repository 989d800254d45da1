"""Claims about where memory of a thread comes from, asked of a fresh process."""

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
