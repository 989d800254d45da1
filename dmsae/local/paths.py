"""What lies where in a data folder, and whether a folder may be one."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import dmsae
from dmsae.errors import Conflict, Forbidden, NotFound, Unavailable

LEAST_FREE_BYTES = 1 << 30
SUBFOLDERS = ("logs", "cache", "work", "locks", "demo")
KNOWN_NAMES = {*SUBFOLDERS, "postgres", "postgres.new", "postgres.password", "valkey", "s3"} | {
    "secrets.json", "ports.json", "run.json", "lock",
}  # fmt: skip


@dataclass(frozen=True)
class DataFolder:
    """Everything that one stack keeps."""

    root: Path

    @property
    def secrets_file(self) -> Path:
        """The generated passwords."""
        return self.root / "secrets.json"

    @property
    def ports_file(self) -> Path:
        """The ports of the last run."""
        return self.root / "ports.json"

    @property
    def run_file(self) -> Path:
        """Which processes run now."""
        return self.root / "run.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one supervisor."""
        return self.root / "lock"

    @property
    def logs(self) -> Path:
        """One file for each process."""
        return self.root / "logs"

    @property
    def demo(self) -> Path:
        """What `dmsae demo` writes."""
        return self.root / "demo"

    def env(self) -> dict[str, str]:
        """Give the settings that place the workers' own folders here."""
        return {
            "DMSAE_CACHE_DIR": str(self.root / "cache"),
            "DMSAE_WORK_DIR": str(self.root / "work"),
            "DMSAE_LOCK_DIR": str(self.root / "locks"),
        }


def open_data_folder(root: Path) -> DataFolder:
    """Make a data folder, or take one that is there; only its user may enter it, parents stay as they are.

    Raises:
        Conflict: the path is a file, or a folder with other things in it.
        Forbidden: the folder belongs to another user.
        Unavailable: the disk is nearly full.
    """
    root = root.absolute()
    if root.exists():
        _refuse_foreign(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    free_bytes = shutil.disk_usage(root).free
    if free_bytes < LEAST_FREE_BYTES:
        raise Unavailable(
            f"The disk of {root} is nearly full: {free_bytes >> 20} MiB are free, "
            f"at least {LEAST_FREE_BYTES >> 20} MiB are needed. Free some space, or choose another folder "
            "with --data.",
            free_bytes=free_bytes,
        )
    for name in SUBFOLDERS:
        (root / name).mkdir(mode=0o700, exist_ok=True)
    return DataFolder(root)


def find_checkout() -> Path:
    """Find the folder that holds `api/` and `worker/` beside `dmsae/`.

    Raises:
        NotFound: only the package is installed.
    """
    checkout = Path(dmsae.__file__).resolve().parent.parent
    if not ((checkout / "api" / "main.py").is_file() and (checkout / "worker" / "__main__.py").is_file()):
        raise NotFound(
            f"There are no api/ and worker/ beside {checkout / 'dmsae'}: the service runs from a checkout. "
            "Clone the repository and run `pip install -e '.[local]'` in it."
        )
    return checkout


def _refuse_foreign(root: Path) -> None:
    if not root.is_dir():
        raise Conflict(f"{root} is a file: choose another data folder with --data.")
    owner = root.stat().st_uid
    if owner != os.geteuid():
        raise Forbidden(
            f"{root} belongs to the user with id {owner}, and this is user {os.geteuid()}: run this as that "
            "user, or choose another data folder with --data."
        )
    strange = sorted(path.name for path in root.iterdir() if path.name not in KNOWN_NAMES)
    if strange:
        raise Conflict(
            f"{root} holds other things, such as {strange[0]!r}: choose a new or empty folder with --data."
        )
