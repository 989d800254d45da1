"""Which files hold a text, and how is one opened?

Files on this worker's disk (under its allowed roots, links followed), of a dataset on the hub, or objects
that the supervisor fetched. What stands in them is the business of `text_rows.py`.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from dmsae import hub
from dmsae.errors import CycleFailed
from dmsae.sources import FileText, HubText, ObjectText

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Ending of a compressed file, and what Arrow calls it."""

WILDCARDS = frozenset("*?[")


class LocalFile(NamedTuple):
    """A file on this worker's disk."""

    name: str
    """As it was asked for: its ending says what it holds."""
    path: Path
    """Where it really lies, links followed."""


@dataclass(frozen=True)
class TextFile:
    """One file: its name, what decides its bytes, and how it is opened."""

    name: str
    """As its owner knows it; told in refusals."""
    format: str
    """One of `FORMATS`."""
    compression: str | None
    """Arrow's name of it, if any."""
    version: tuple[object, ...]
    """Changes whenever the bytes may have changed."""
    open_raw: Callable[[], AbstractContextManager[BinaryIO]]

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading, decompressed as it is read; a plain one can be sought in."""
        with self.open_raw() as raw:
            if self.compression is None:
                # files of the hub know neither lines of limited length nor `read1`
                yield raw if isinstance(raw, io.BufferedIOBase) else _buffered(raw)
                return
            import pyarrow  # here, since most cycles read no compressed file

            source = pyarrow.PythonFile(raw, mode="r")
            with pyarrow.CompressedInputStream(source, self.compression) as stream:
                yield _buffered(stream)


def find_text_files(
    text: FileText | HubText | ObjectText, *, inputs: Path | None, allowed_roots: Sequence[Path] | None
) -> list[TextFile]:
    """List the files of a text in the order in which they are read.

    Files and files of a dataset are sorted by path, each once; objects keep the order of the request.

    Raises: CycleFailed with `data_unreadable` for a file of another kind, one outside the allowed roots, or a
    path that matches nothing; with the hub's codes.
    """
    if isinstance(text, HubText):
        version = (text.id, text.revision)
        return [
            _text_file(name, version, partial(hub.open_file, text, name), param="data.text.files")
            for name in hub.find_files(text)
        ]
    if isinstance(text, ObjectText):
        return [
            _text_file(
                stored.key,
                (stored.key, stored.etag),
                partial(_open_object, inputs, stored.file_name, stored.key),
                param=f"data.text.objects.{index}.key",
            )
            for index, stored in enumerate(text.objects)
        ]
    return [
        _text_file(file.name, version_of(file.path), partial(_open_local, file.path), param="data.text.paths")
        for file in find_local_files(text.paths, allowed_roots=allowed_roots)
    ]


def find_local_files(paths: Sequence[str], *, allowed_roots: Sequence[Path] | None) -> list[LocalFile]:
    """Resolve paths and globs to files, sorted by name, each once however many names lead to it.

    Without `allowed_roots` every path is allowed. What a wildcard finds under a name with a leading dot is
    left out, and `**` follows no link.

    Raises: CycleFailed with `data_unreadable`, naming the path and the rule.
    """
    found: dict[Path, str] = {}
    for index, path in enumerate(paths):
        param = f"data.text.paths.{index}"
        if "\0" in path or not Path(path).is_absolute() or ".." in Path(path).parts:
            raise unreadable(param, path, "must be an absolute path without '..'")
        files = _match(path, param=param, allowed_roots=allowed_roots)
        if not files:
            raise unreadable(param, path, "matches no file on this worker")
        for file in files:
            real = file.resolve()
            found[real] = min(found.get(real, str(file)), str(file))
    return sorted(LocalFile(name, path) for path, name in found.items())


def version_of(path: Path) -> tuple[object, ...]:
    """Tell apart the contents that a path had at different times, without reading them."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def unreadable(param: str, value: object, rule: str) -> CycleFailed:
    """Refuse a text by field, value and rule."""
    return CycleFailed("data_unreadable", f"{param} = {value!r}: {rule}.", param=param)


def _buffered(raw: Any) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(raw, 1 << 20))


def _open_local(path: Path) -> BinaryIO:
    return path.open("rb")


def _match(path: str, *, param: str, allowed_roots: Sequence[Path] | None) -> list[Path]:
    """Give the files that one path or glob means."""
    parts = Path(path).parts
    n_fixed = next((i for i, part in enumerate(parts) if WILDCARDS & set(part)), len(parts))
    if Path(path).is_file():  # also where its name holds a wildcard's character
        n_fixed = len(parts)
    fixed, pattern = Path(*parts[:n_fixed]), parts[n_fixed:]
    _require_allowed(fixed, allowed_roots, param=param)
    if not pattern:
        return [fixed] if fixed.is_file() else []
    if pattern[-1] == "**":
        pattern = (*pattern, "*")
    try:
        matches = sorted(fixed.glob("/".join(pattern)))
    except ValueError as error:
        raise unreadable(param, path, f"is no glob ({error})") from error
    shown = [match for match in matches if not _is_hidden(match.relative_to(fixed), pattern)]
    files = [match for match in shown if match.is_file()]
    for file in files:
        _require_allowed(file, allowed_roots, param=param)
    return files


def _is_hidden(found: Path, pattern: tuple[str, ...]) -> bool:
    """Tell whether a name with a leading dot was found by a pattern that does not ask for one."""
    return any(part.startswith(".") for part in found.parts) and not any(p.startswith(".") for p in pattern)


def _require_allowed(path: Path, allowed_roots: Sequence[Path] | None, *, param: str) -> None:
    """Refuse what lies outside the roots once links are followed, whether it exists or not."""
    if allowed_roots is None:
        return
    if not any(path.resolve().is_relative_to(root.resolve()) for root in allowed_roots):
        raise unreadable(param, str(path), "must lie under an allowed root of this worker, links followed")


def _text_file(
    name: str,
    version: tuple[object, ...],
    open_raw: Callable[[], AbstractContextManager[BinaryIO]],
    *,
    param: str,
) -> TextFile:
    """Read the kind of a file from its name."""
    compression = COMPRESSIONS.get(Path(name).suffix.lower())
    plain = Path(name).stem if compression else Path(name).name
    if Path(plain).suffix.lower() not in FORMATS:
        kinds = ", ".join(FORMATS)
        raise unreadable(param, name, f"must end in one of {kinds}, each also with .gz or .zst behind it")
    return TextFile(name, Path(plain).suffix.lower(), compression, (name, *version), open_raw)


@contextmanager
def _open_object(inputs: Path | None, file_name: str, key: str) -> Iterator[BinaryIO]:
    """Open an object where the supervisor has put it."""
    if inputs is None or not (inputs / file_name).is_file():
        raise unreadable("data.text.objects", key, "is not among the trainer's inputs (--inputs DIR)")
    with (inputs / file_name).open("rb") as file:
        yield file
