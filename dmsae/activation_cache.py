"""How are training activations kept on disk, within a bound, for all cycles and jobs of a worker?

A folder holds the windows of one training part under a key of all that decides their bits, a file each,
mapped into memory. A file appears whole or not at all and says in its header what it is; one that is torn or
of something else is never read. The least recently used folders go first, never one that a trainer uses. All
of it may be deleted at any time.
"""

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmsae.activations import Dropped
from dmsae.file_locks import Lock, deleting, try_lock, wait_for_lock
from dmsae.rounding import Halves, RoundingError, bytes_per_token
from dmsae.windows import Count, HarvestedWindows, Window

FORMAT = "v1"
"""Changes whenever the same harvest would give other bytes."""

RESERVE_BYTES = 1 << 30
"""Room that is left on the disk for whoever else writes there."""

PATIENCE_S = 600.0
"""After waiting so long for another trainer's window it is harvested here too: that trainer may be stuck."""

FIELDS = ("halves", "exponents", "norms")
"""Tensors of a file."""


class ActivationCache:
    """All folders of one worker, together at most `max_bytes`."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.root, self.max_bytes = root, max_bytes

    def open(self, source: HarvestedWindows) -> "KeptWindows":
        """Give the place of a training part and use it from now on.

        Raises: OSError where nothing can be written there.
        """
        key = cache_key(source)
        self.root.mkdir(parents=True, exist_ok=True)
        lock = wait_for_lock(self._lock_file(key), is_shared=True, patience_s=PATIENCE_S)
        if lock is None:
            raise OSError(errno.EBUSY, "the activation cache is being cleared and stays so", str(self.root))
        n_bytes = source.n_tokens * bytes_per_token(source.d_model)
        return KeptWindows(self, key, lock, n_bytes=n_bytes)

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


class KeptWindows:
    """The windows of one training part on disk; a `Store`, in use until it is closed."""

    def __init__(self, cache: ActivationCache, key: str, lock: Lock, *, n_bytes: int) -> None:
        self._cache, self._key, self._lock = cache, key, lock
        self._folder = cache.root / key
        self._checked: set[int] = set()
        self._failure: str | None = None
        self._folder.mkdir(exist_ok=True)
        os.utime(self._folder)
        self._room, self._n_bytes = cache.room(key=key), n_bytes

    @property
    def trouble(self) -> str | None:
        """Why not all windows can be kept, as far as is known, or None."""
        if self._n_bytes > self._room:
            return f"{self._n_bytes} bytes are needed, and there is room for {self._room}"
        return self._failure

    def read(self, window: int) -> Window | None:
        """Give a window as it was written, mapped into memory; None where there is no whole file of it."""
        found = self._open(window, FIELDS)
        if found is None:
            return None
        (halves, exponents, norms), error = found
        return Window(Halves(halves, exponents), norms, error)

    def read_norms(self, window: int) -> Float[Tensor, " n"] | None:
        """Give the norms of a window's tokens alone, or None."""
        found = self._open(window, FIELDS[-1:])
        return None if found is None else found[0][0]

    def write(self, window: int, content: Window) -> Window | None:
        """Keep a window and give it as it lies on disk; None where it, and so any other, cannot be kept."""
        if self._failure is not None:
            return None
        tensors = dict(zip(FIELDS, (*content.tokens, content.norms), strict=True))
        try:
            with self._cache.room_for(content.n_bytes, key=self._key) as has_room:
                if not has_room:
                    self._failure = f"no room within {self._cache.max_bytes} bytes, or on the disk"
                    return None
                self._write(window, tensors, content.error)
        except (OSError, SafetensorError) as error:
            self._failure = _reason(error)
            return None
        self._checked.add(window)
        return self.read(window)

    def read_counts(self, max_norm: float) -> list[Count]:
        """Give what was counted in the first windows at a norm limit."""
        try:
            record = json.loads(self._counts_file(max_norm).read_text(encoding="utf-8"))
            if record["checksum"] != zlib.crc32(json.dumps(record["counts"]).encode()):
                return []
            return [Count(n_kept, Dropped(*dropped)) for n_kept, dropped in record["counts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def write_counts(self, max_norm: float, counts: list[Count]) -> None:
        """Keep what was counted in the first windows at a norm limit, unless more is known."""
        if len(counts) <= len(self.read_counts(max_norm)):
            return
        record = {"counts": counts, "checksum": zlib.crc32(json.dumps(counts).encode())}
        try:
            with self._replacing(self._counts_file(max_norm)) as unfinished:
                unfinished.write_text(json.dumps(record), encoding="utf-8")
        except OSError as error:
            self._failure = _reason(error)

    @contextmanager
    def claim(self, window: int, *, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Let nobody else harvest a window at the same time: who comes second waits and reads it."""
        lock: Lock | None = None
        with suppress(OSError):
            file = self._folder / f"{window}.lock"
            lock = wait_for_lock(file, is_shared=False, patience_s=PATIENCE_S, is_stopped=is_stopped)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def close(self) -> None:
        """Let others delete it."""
        with suppress(OSError):
            os.utime(self._folder)
        self._lock.release()

    def _open(self, window: int, fields: tuple[str, ...]) -> tuple[list[Tensor], RoundingError] | None:
        """Map some tensors of a window, and compare them with their checksums the first time."""
        try:
            with safe_open(self._file(window), framework="pt") as file:
                about = file.metadata()
                if (about["format"], about["key"], about["window"]) != (FORMAT, self._key, str(window)):
                    return None
                tensors = [file.get_tensor(field) for field in fields]
            error = RoundingError(*map(float.fromhex, about["error"].split()))
            checksums = [about[field] for field in fields]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        if window not in self._checked:
            if [_checksum(tensor) for tensor in tensors] != checksums:
                return None
            if fields == FIELDS:
                self._checked.add(window)
        return tensors, error

    def _write(self, window: int, tensors: dict[str, Tensor], error: RoundingError) -> None:
        about = {
            "format": FORMAT,
            "key": self._key,
            "window": str(window),
            "error": " ".join(each.hex() for each in error),
            **{field: _checksum(tensor) for field, tensor in tensors.items()},
        }
        for left in self._folder.glob(f"{window}.safetensors.*.unfinished"):  # by a trainer that was killed
            left.unlink(missing_ok=True)
        with self._replacing(self._file(window)) as unfinished:
            save_file(tensors, unfinished, metadata=about)

    @contextmanager
    def _replacing(self, file: Path) -> Iterator[Path]:
        """Give a file to write that takes another's place when it is whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
        try:
            yield unfinished
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _file(self, window: int) -> Path:
        return self._folder / f"{window}.safetensors"

    def _counts_file(self, max_norm: float) -> Path:
        return self._folder / f"counts-{float(max_norm).hex()}.json"


def cache_key(source: HarvestedWindows) -> str:
    """Name everything that decides the bits of a harvest, the kernels of torch included."""
    harvester = source.harvester
    config, loaded = harvester.config, harvester.loaded
    decisive = (
        FORMAT,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        loaded.revision,
        loaded.special_ids,
        harvester.hook,
        loaded.dtype,
        loaded.attention,
        _device_name(loaded.device),
        config.model_batch_contexts,
        [(window.start, window.stop) for window in source.slices],
    )
    digest = hashlib.sha256(repr(decisive).encode())
    for window in range(source.n_windows):
        contexts = source.contexts(window)
        is_foreign = contexts.document_index < 0
        for field in (contexts.input_ids.to(torch.int32), contexts.is_token, is_foreign):
            digest.update(repr(tuple(field.shape)).encode() + field.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


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
