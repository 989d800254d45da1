"""Makes the environment that holds SAELens and the other libraries of our peers, once for each set of pins.

`python -m tests.interop.environment` makes it unless it is there, and writes its folder to stdout.

They need other packages than we do, so they share an environment of their own, outside the tree, named by a
hash of what decides its contents. A complete one is never touched again.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PEERS = ("sae-lens", "dictionary-learning", "torch", "tabulate")
"""`tabulate` is what SAEBench imports besides."""
ALONE = ("sae-bench", "sae-dashboard")
"""Installed without what they ask for, older NumPy and datasets than the others need: what we call works."""
UNWANTED = ("torchvision",)
"""Wanted by a package of theirs, used by neither; beside a CPU build of torch it fails on import."""
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def environment_folder() -> Path:
    """Give where the environment for these pins, this Python and this machine lies or would lie."""
    parts = (
        CONSTRAINTS.read_text(),
        *PEERS,
        *ALONE,
        sysconfig.get_platform(),
        sysconfig.get_python_version(),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dmsae" / "interop" / f"peers-{digest}"


def interpreter(folder: Path) -> Path | None:
    """Give the interpreter of a complete environment; None where there is none."""
    python = folder / "bin" / "python"
    return python if _marker(folder).exists() and python.exists() else None


def make(folder: Path, install: Callable[[Path], None]) -> None:
    """Make an environment by `install`, unless it is complete; of several at once, one makes it.

    Half an environment, left by a process that died, is made again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if interpreter(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        try:
            install(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _marker(folder).touch()


def install_peers(folder: Path) -> None:
    """Install the libraries; what they import is compiled at first use, the rest of two gigabytes never."""
    python = folder / "bin" / "python"
    run = [str(python), *PIP]
    install = [*run, "install", "--no-compile", "--constraint", CONSTRAINTS]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)
    subprocess.run([*install, *PEERS], check=True, stdout=sys.stderr)
    subprocess.run([*install, "--no-deps", *ALONE], check=True, stdout=sys.stderr)
    subprocess.run([*run, "uninstall", "--yes", *UNWANTED], check=True, stdout=sys.stderr)


def _marker(folder: Path) -> Path:
    return folder / "complete"


if __name__ == "__main__":
    make(environment_folder(), install_peers)
    sys.stdout.write(f"{environment_folder()}\n")
