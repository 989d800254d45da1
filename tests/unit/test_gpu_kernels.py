"""Claims about the GPU's kernels that need no GPU: what Triton's interpreter computes, what compiles.

Triton runs in processes of its own, since torch for a CPU comes without it: `make kernels` fetches it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.triton_folder import TORCH, TRITON, is_offered, make, triton_folder

ROOT = Path(__file__).parents[2]


def run_with_triton(*arguments: str, cache: Path, **environment: str) -> str:
    """Run Python with Triton; without it, skip the test, or fail it where `make kernels` says so."""
    folder = triton_folder()
    if not folder.exists():
        reason = f"{TRITON} is not fetched: run `make kernels`"
        if not is_offered():
            reason = f"{TRITON} has no wheel for this platform"
        elif os.environ.get("DMSAE_KERNELS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(folder), "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_kernels_compute_a_step_as_autograd_does_in_tritons_interpreter(tmp_path: Path) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_gpu_step.py")
    said = run_with_triton(*command, cache=tmp_path, TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed[1]) >= 15, said


def test_the_kernels_compile_for_a_gpu_and_keep_all_in_registers(tmp_path: Path) -> None:
    said = run_with_triton("-m", "tests.gpu.compile_kernels", cache=tmp_path)
    spilled = [int(line.rsplit(" ", 1)[1]) for line in said.splitlines()]
    assert len(spilled) == 18
    assert set(spilled) == {0}, said


def test_triton_is_the_one_that_the_pinned_torch_demands() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert TORCH in pins, (
        f"torch moved: see which Triton its build for a GPU demands, {TRITON} was for {TORCH}"
    )


def test_a_folder_is_made_once_and_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, n_installs = tmp_path / "cache" / "triton", 0

    def install(site: Path) -> None:
        nonlocal n_installs
        n_installs += 1
        site.mkdir()
        (site / "file").touch()
        if n_installs == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, install)
    assert not list(folder.parent.iterdir())
    for _ in range(2):
        make(folder, install)
    assert n_installs == 2
    assert [path.name for path in folder.parent.rglob("*")] == ["triton", "file"]


def test_of_two_that_make_a_folder_at_once_the_first_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "triton"

    def install(site: Path) -> None:
        site.mkdir()
        folder.mkdir()
        (folder / "first").touch()

    make(folder, install)
    assert [path.name for path in tmp_path.rglob("*")] == ["triton", "first"]
