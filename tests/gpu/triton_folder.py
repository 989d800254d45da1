"""Fetches Triton where torch came without it, so that the GPU's kernels can be tried out on a CPU.

`python -m tests.gpu.triton_folder` (`make kernels`) puts it into a folder outside the tree, named by a hash
of what decides its contents, unless it is there. It is put whole or not at all, and never touched again.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

TORCH, TRITON = "torch==2.13.0", "triton==3.7.1"
"""What PyPI's build of torch for a GPU demands of Triton: `Requires-Dist` of its wheel."""
PLATFORMS = ("linux-x86_64", "linux-aarch64")
"""Those that Triton has wheels for."""
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def is_offered() -> bool:
    """Tell whether there is a wheel for this platform."""
    return sysconfig.get_platform() in PLATFORMS


def triton_folder() -> Path:
    """Give where Triton for this Python lies or would lie."""
    parts = (TRITON, sysconfig.get_platform(), sysconfig.get_python_version())
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dmsae" / "triton" / digest


def make(folder: Path, install: Callable[[Path], None]) -> None:
    """Make a folder by `install`, unless it is there; of several at once the first one stays."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as work:
        install(Path(work) / "site")
        with contextlib.suppress(OSError):  # somebody else made it meanwhile
            (Path(work) / "site").rename(folder)


def install_triton(folder: Path) -> None:
    """Install Triton alone; it needs no other package."""
    command = [sys.executable, *PIP, "install", "--no-deps", "--no-compile", "--target", folder, TRITON]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    if is_offered():
        make(triton_folder(), install_triton)
    sys.stdout.write(f"{triton_folder()}\n")
