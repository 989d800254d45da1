"""Bring a job's stored files into a folder: what is there stays, what broke off goes on, all is verified.

Each file is written beside its place under a name that holds its sha256, checked, and only then put there. So
a file under its own name is whole, and a rest of other bytes is never gone on from.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dmsae.client.calls import Fetch, Fetched, Pause, Request, Steps, unwritable
from dmsae.errors import Conflict, DmsaeError, NotFound, Unavailable

N_TRIES = 6
"""In a row in which no byte came, before a file is given up."""
LONGEST_WAIT_S = 10.0
EXPIRED = (400, 401, 403, 404)
"""What stores answer to a link that is no longer good."""
N_LINKS = 3
"""That a store may refuse in a row, each asked for anew."""

Tell = Callable[[str, int, int], None]
"""Is told, after each piece, of which file it is, and how many bytes of how many are there in all."""


class BytesDiffer(DmsaeError):
    """The object store gave other bytes than were recorded."""

    code = "bytes_differ"


@dataclass(frozen=True)
class PulledFile:
    """One file that is now whole in its place."""

    path: Path
    size_bytes: int
    sha256: str
    is_new: bool
    """Whether it was fetched now; else it was whole before."""


@dataclass(frozen=True)
class Pulled:
    """What a pull left: `cycle_N/` for each cycle, its `sae/` as SAELens opens it."""

    folder: Path
    cycles: tuple[int, ...]
    files: tuple[PulledFile, ...]

    @property
    def sae_folders(self) -> list[Path]:
        """The folders that SAELens opens, by cycle."""
        folders = (self.folder / f"cycle_{cycle}" / "sae" for cycle in self.cycles)
        return [folder for folder in folders if folder.is_dir()]


def pull(job_id: str, folder: Path, *, cycle: int | None, below: str, tell: Tell) -> Steps[Pulled]:
    """Fetch the stored files of all cycles, or of one (-1: the last), whose names begin with `below`.

    Raises:
        NotFound: there is no such job, or no such files of it.
        BytesDiffer: the store gave other bytes than were recorded, twice.
        Unavailable: the API or the store does not answer.
    """
    files = yield from _list(job_id)
    files = _chosen(files, job_id, cycle=cycle, below=below)
    total, done = sum(file["size_bytes"] for file in files), 0
    pulled: list[PulledFile] = []
    for file in files:
        path = _place(folder, file)

        def say(n_bytes: int, *, name: str = file["name"], before: int = done) -> None:
            tell(name, before + n_bytes, total)

        is_new = not _is_whole(path, file)
        if is_new:
            yield from _fetch(job_id, file, path, say)
        done += file["size_bytes"]
        tell(file["name"], done, total)
        pulled.append(PulledFile(path, file["size_bytes"], file["sha256"], is_new))
    return Pulled(folder, tuple(sorted({file["cycle_index"] for file in files})), tuple(pulled))


def _list(job_id: str) -> Steps[list[dict[str, Any]]]:
    answer = yield Request("GET", f"/jobs/{job_id}/artifacts")
    return list(answer["items"])


def _chosen(
    files: Sequence[dict[str, Any]], job_id: str, *, cycle: int | None, below: str
) -> list[dict[str, Any]]:
    cycles = sorted({file["cycle_index"] for file in files})
    if not cycles:
        raise NotFound(f"{job_id} has stored nothing: none of its cycles has finished.")
    wanted = cycles if cycle is None else [cycles[cycle]] if -len(cycles) <= cycle < 0 else [cycle]
    found = [file for file in files if file["cycle_index"] in wanted and file["name"].startswith(below)]
    if not found:
        told = ", ".join(map(str, cycles))
        what = f"no files of {below}" if cycle in (None, *cycles) else "no such stored cycle"
        raise NotFound(f"cycle = {cycle}: {job_id} has {what}; stored: {told}.", param="cycle")
    return found


def _place(folder: Path, file: dict[str, Any]) -> Path:
    """Give where a file belongs; a server's names may lead nowhere else."""
    name = PurePosixPath(file["name"])
    if name.is_absolute() or not name.parts or ".." in name.parts or "\\" in file["name"]:
        raise DmsaeError(f"The server names a file {file['name']!r}, outside its folder.")
    return folder / f"cycle_{int(file['cycle_index'])}" / name


def _is_whole(path: Path, file: dict[str, Any]) -> bool:
    try:
        return path.stat().st_size == int(file["size_bytes"]) and _sha256(path) == str(file["sha256"])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _fetch(job_id: str, file: dict[str, Any], path: Path, say: Callable[[int], None]) -> Steps[None]:
    part = path.with_name(f".{path.name}.{file['sha256'][:16]}.part")
    _make_folder(path.parent)
    for _ in range(2):
        yield from _fill(job_id, file, part, say)
        if _is_whole(part, file):
            _put_in_place(part, path)
            return
        part.unlink(missing_ok=True)
    raise BytesDiffer(
        f"{file['name']} of cycle {file['cycle_index']}: the store gave other bytes than the recorded "
        f"sha256 {file['sha256']} names, twice; nothing was written.",
        file=file["name"],
    )


def _fill(job_id: str, file: dict[str, Any], part: Path, say: Callable[[int], None]) -> Steps[None]:
    """Append to a part until it has as many bytes as the file, however often the store breaks off."""
    n_failed = n_refused = 0
    url, size = file["url"], file["size_bytes"]
    while (before := _size(part)) < size:
        came: Fetched = yield Fetch(url, part, size, say)
        if _size(part) > before:
            n_failed = n_refused = 0
            continue
        if came.status in EXPIRED:
            n_refused += 1
            if n_refused > N_LINKS:
                raise DmsaeError(f"The object store refused {file['name']} with status {came.status}.")
            url = yield from _new_link(job_id, file)
            continue
        n_failed += 1
        if n_failed >= N_TRIES:
            why = came.reason or f"status {came.status}"
            raise Unavailable(f"The object store does not give {file['name']}: {why}. Pull again to go on.")
        yield Pause(min(LONGEST_WAIT_S, 0.25 * 2**n_failed))


def _new_link(job_id: str, file: dict[str, Any]) -> Steps[str]:
    for found in (yield from _list(job_id)):
        same = ("cycle_index", "name", "sha256")
        if all(found[name] == file[name] for name in same):
            return str(found["url"])
    raise Conflict(f"{job_id} no longer has the {file['name']} that it had: pull again.")


def _size(part: Path) -> int:
    """Give how much of a part is there; -1 while there is none, so that an empty file is fetched too."""
    return part.stat().st_size if part.exists() else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def _put_in_place(part: Path, path: Path) -> None:
    try:
        with part.open("rb") as content:
            os.fsync(content.fileno())
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
