"""How are tensors kept on disk, within a bound, for all cycles and jobs of a worker?

A folder has a key of all that decides the bits of its tensors, which lie in files and are mapped into memory.
A file appears whole or not at all and says in its header what it is; one that is torn or of something else is
never read. The least recently used folders go first, never one that a trainer uses. All of it may be deleted
at any time. What lies there is the business of `kept_activations.py`.
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmsae.file_locks import Lock, deleting, try_lock, wait_for_lock

RESERVE_BYTES = 1 << 30
"""Room that is left on the disk for whoever else writes there."""

PATIENCE_S = 600.0
"""After waiting so long for another trainer's work it is done here too: that trainer may be stuck."""


class ActivationCache:
    """All folders of one worker, together at most `max_bytes`."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.root, self.max_bytes = root, max_bytes

    def open(self, key: str, *, n_bytes: int) -> "CacheFolder":
        """Give the folder of a key, which will want to hold `n_bytes`, and use it from now on.

        Raises: OSError where nothing can be written there.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = wait_for_lock(self._lock_file(key), is_shared=True, patience_s=PATIENCE_S)
        if lock is None:
            raise OSError(errno.EBUSY, "the activation cache is being cleared and stays so", str(self.root))
        return CacheFolder(self, key, lock, n_bytes=n_bytes)

    @contextmanager
    def room_for(self, n_bytes: int, *, key: str) -> Iterator[bool]:
        """Make room for so much and keep others from taking it meanwhile; False where there is none.

        Mutates: deletes the least recently used folders that nobody uses.
        """
        with ExitStack() as stack:
            lock = wait_for_lock(self.root / "room.lock", is_shared=False, patience_s=PATIENCE_S)
            if lock is not None:
                stack.callback(lock.release)
            yield self._make_room(n_bytes, key=key)

    def room(self, *, key: str) -> int:
        """Give the bytes that one folder may have in all, as things stand."""
        sizes = {folder: _size(folder) for folder in self._folders()}
        in_use = sum(size for folder, size in sizes.items() if folder.name != key and self._is_in_use(folder))
        own = sizes.get(self.root / key, 0)
        free = shutil.disk_usage(self.root).free + sum(sizes.values()) - in_use - RESERVE_BYTES
        return max(own, min(self.max_bytes - in_use, free))

    def _make_room(self, n_bytes: int, *, key: str) -> bool:
        sizes = {folder: _size(folder) for folder in self._folders()}
        excess = sum(sizes.values()) + n_bytes - self.max_bytes
        excess = max(excess, n_bytes + RESERVE_BYTES - shutil.disk_usage(self.root).free)
        for folder in sorted((each for each in sizes if each.name != key), key=_last_used):
            if excess <= 0:
                break
            with deleting(self._lock_file(folder.name)) as is_free:
                if is_free:
                    _delete(folder)
                    excess -= sizes[folder]
        return excess <= 0

    def _is_in_use(self, folder: Path) -> bool:
        lock = try_lock(self._lock_file(folder.name), is_shared=False)
        if lock is not None:
            lock.release()
        return lock is None

    def _folders(self) -> list[Path]:
        return [each for each in self.root.iterdir() if each.is_dir()]

    def _lock_file(self, key: str) -> Path:
        return self.root / f"{key}.lock"


class CacheFolder:
    """The files of one key, in use until it is closed."""

    def __init__(self, cache: ActivationCache, key: str, lock: Lock, *, n_bytes: int) -> None:
        self.path = cache.root / key
        self._cache, self._key, self._lock = cache, key, lock
        self._checked: set[tuple[str, str]] = set()
        self._failure: str | None = None
        self.path.mkdir(exist_ok=True)
        os.utime(self.path)
        self._room, self._n_bytes = cache.room(key=key), n_bytes

    @property
    def trouble(self) -> str | None:
        """Why not all can be kept, as far as is known, or None."""
        if self._n_bytes > self._room:
            return f"{self._n_bytes} bytes are needed, and there is room for {self._room}"
        return self._failure

    def read(self, name: str, fields: Sequence[str]) -> tuple[list[Tensor], dict[str, str]] | None:
        """Map some tensors of a file, and give what its header says; None where there is no such whole file.

        Tensors are compared with their checksums the first time.
        """
        try:
            with safe_open(self._file(name), framework="pt") as file:
                about = dict(file.metadata())
                if (about["key"], about["name"]) != (self._key, name):
                    return None
                tensors = [file.get_tensor(field) for field in fields]
            checksums = [about[f"checksum {field}"] for field in fields]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        for field, tensor, checksum in zip(fields, tensors, checksums, strict=True):
            if (name, field) not in self._checked and _checksum(tensor) != checksum:
                return None
            self._checked.add((name, field))
        return tensors, about

    def write(self, name: str, tensors: dict[str, Tensor], about: dict[str, str]) -> bool:
        """Keep a file; False where it, and so any other, cannot be kept."""
        if self._failure is not None:
            return False
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        try:
            with self._cache.room_for(n_bytes, key=self._key) as has_room:
                if not has_room:
                    self._failure = f"no room within {self._cache.max_bytes} bytes, or on the disk"
                    return False
                self._write(name, tensors, about)
        except (OSError, SafetensorError) as error:
            self._failure = _reason(error)
            return False
        self._checked.update((name, field) for field in tensors)
        return True

    def read_json(self, name: str) -> Any:
        """Give what a small file says; None where there is no whole one."""
        try:
            record = json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))
            is_whole = record["checksum"] == zlib.crc32(json.dumps(record["content"]).encode())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record["content"] if is_whole else None

    def write_json(self, name: str, content: Any) -> None:
        """Keep a small file, if that is possible."""
        record = {"content": content, "checksum": zlib.crc32(json.dumps(content).encode())}
        try:
            with self._replacing(self.path / f"{name}.json") as unfinished:
                unfinished.write_text(json.dumps(record), encoding="utf-8")
        except OSError as error:
            self._failure = _reason(error)

    @contextmanager
    def claim(self, name: str, *, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Let nobody else make a file at the same time: who comes second waits and reads it."""
        lock: Lock | None = None
        with suppress(OSError):
            file = self.path / f"{name}.lock"
            lock = wait_for_lock(file, is_shared=False, patience_s=PATIENCE_S, is_stopped=is_stopped)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def close(self) -> None:
        """Let others delete it."""
        with suppress(OSError):
            os.utime(self.path)
        self._lock.release()

    def _write(self, name: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        checksums = {f"checksum {field}": _checksum(tensor) for field, tensor in tensors.items()}
        for left in self.path.glob(f"{name}.safetensors.*.unfinished"):  # by a trainer that was killed
            left.unlink(missing_ok=True)
        with self._replacing(self._file(name)) as unfinished:
            save_file(tensors, unfinished, metadata={**about, **checksums, "key": self._key, "name": name})

    @contextmanager
    def _replacing(self, file: Path) -> Iterator[Path]:
        """Give a file to write that takes another's place when it is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
        try:
            yield unfinished
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def _checksum(tensor: Tensor) -> str:
    """Give a checksum of a tensor's bytes, which are read where they lie, beside its type and shape.

    A CRC finds what is torn as surely as a cryptographic digest, at three times its speed.
    """
    content: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {zlib.crc32(content):08x}"


def _reason(error: Exception) -> str:
    """Say in words why something could not be written."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)


def _delete(folder: Path) -> None:
    """Take a folder away at once, so that nobody finds a half of it, then delete it."""
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}.doomed")
    with suppress(OSError):
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _size(folder: Path) -> int:
    """Add up the files of a folder, whose files may be renamed meanwhile."""
    n_bytes = 0
    with suppress(FileNotFoundError):
        for file in os.scandir(folder):
            with suppress(FileNotFoundError):
                n_bytes += file.stat().st_size
    return n_bytes


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
