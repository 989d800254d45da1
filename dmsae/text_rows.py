"""Which rows does a text file hold, and which of them are text?

A .txt gives passages, a .jsonl or .parquet one document a row. Memory stays bounded whatever the file: it is
read in pieces. A row that is no text is told by its reason; a file that holds nothing readable is refused.
"""

import errno
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, BinaryIO

from dmsae.errors import CycleFailed
from dmsae.text_files import TextFile, unreadable

PASSAGE_CHARACTERS = 2000
"""Length from which a passage of a text without rows ends at the next blank line."""

MAX_PASSAGE_CHARACTERS = 1_000_000
"""A paragraph as long as this is cut, blank line or not."""

MAX_ROW_BYTES = 16 * 2**20
"""Rows beyond it are skipped: tokenising one takes some forty times its size in memory."""

N_CHECKED_ROWS = 100
"""A file whose first rows, this many, hold nothing readable is refused."""

PARQUET_BATCH_ROWS = 64


class Skip(Enum):
    """Why a row is left out."""

    EMPTY = "empty"
    """No character but white space."""
    NULL = "null"
    """Null, or a row without the column."""
    NOT_TEXT = "not_text"
    """A number, a list, an object, or characters that no encoding knows."""
    NOT_JSON = "not_json"
    """A line that is no JSON object."""
    TOO_LONG = "too_long"
    """Beyond `MAX_ROW_BYTES`."""
    ONE_TOKEN = "one_token"  # noqa: S105 - no password
    """One token or none."""


def read_rows(file: TextFile, column: str) -> Iterator[str | Skip]:
    """Read a file row by row: its text, or why there is none.

    Raises: CycleFailed with `data_unreadable`, naming the file and, where it matters, column and columns.
    """
    with _translating(file), file.open() as stream:
        if file.format == ".txt":
            yield from map(as_text, cut_passages(_read_lines(stream)))
        elif file.format == ".jsonl":
            yield from _read_jsonl(stream, file, column)
        else:
            with _seekable(stream) as seekable:
                yield from _read_parquet(seekable, file, column)


def as_text(value: Any) -> str | Skip:
    """Give a row's value where it is text, else the reason to skip it."""
    if value is None:
        return Skip.NULL
    if not isinstance(value, str):
        return Skip.NOT_TEXT
    if not value.strip():
        return Skip.EMPTY
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        return Skip.NOT_TEXT
    return value if size_bytes <= MAX_ROW_BYTES else Skip.TOO_LONG


def cut_passages(lines: Iterable[str], *, n_characters: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Cut a text at blank lines into whole paragraphs of about `n_characters` together.

    Lines come without their ends.
    """
    paragraphs: list[str] = []
    for paragraph in _paragraphs(lines):
        paragraphs.append(paragraph)
        if sum(map(len, paragraphs)) >= n_characters:
            yield "\n\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n\n".join(paragraphs)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Join lines up to the next blank one, or up to `MAX_PASSAGE_CHARACTERS`."""
    paragraph: list[str] = []
    n_characters = 0
    for line in lines:
        if line.strip():
            paragraph.append(line)
            n_characters += len(line)
        if paragraph and (not line.strip() or n_characters >= MAX_PASSAGE_CHARACTERS):
            yield "\n".join(paragraph).rstrip()
            paragraph, n_characters = [], 0
    if paragraph:
        yield "\n".join(paragraph).rstrip()


def _read_lines(stream: BinaryIO) -> Iterator[str]:
    """Read UTF-8 line by line; an endless line comes in pieces that `_paragraphs` never joins."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    try:
        while line := text.readline(MAX_PASSAGE_CHARACTERS):
            yield line.removesuffix("\n")
    finally:
        text.detach()  # also where nobody reads on; whoever opened the stream closes it


def _read_jsonl(stream: BinaryIO, file: TextFile, column: str) -> Iterator[str | Skip]:
    """Read one JSON object a line, checking the first ones together."""
    columns: dict[str, None] = {}
    n_rows = 0
    is_readable = False
    while line := stream.readline(MAX_ROW_BYTES + 1):
        row = _parse_line(line, stream)
        if isinstance(row, dict) and len(columns) < N_CHECKED_ROWS:
            columns.update(dict.fromkeys(row))
        found = row if isinstance(row, Skip) else as_text(row.get(column))
        n_rows += 1
        is_readable = is_readable or isinstance(found, str)
        if n_rows == N_CHECKED_ROWS and not is_readable:
            raise _nothing_readable(file, column, columns)
        yield found
    if n_rows and not is_readable and column not in columns:
        raise _nothing_readable(file, column, columns)


def _parse_line(line: bytes, stream: BinaryIO) -> dict[str, Any] | Skip:
    """Give a line's object; what follows of a line that is too long is passed over."""
    if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        return Skip.TOO_LONG
    if not line.strip():
        return Skip.EMPTY
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # broken, in no UTF-8, or nested beyond reason
        return Skip.NOT_JSON
    return row if isinstance(row, dict) else Skip.NOT_JSON


def _nothing_readable(file: TextFile, column: str, columns: Iterable[str]) -> CycleFailed:
    named = ", ".join(map(repr, sorted(columns)[:20]))
    if not named:
        return unreadable("data.text", file.name, "holds no line that is a JSON object")
    if column not in columns:
        return unreadable("data.text.column", column, f"{file.name} has no such column, only {named}")
    rule = f"the first {N_CHECKED_ROWS} rows of {file.name} hold no text there; its columns are {named}"
    return unreadable("data.text.column", column, rule)


def _read_parquet(stream: BinaryIO, file: TextFile, column: str) -> Iterator[str | Skip]:
    """Read one column batch by batch, checking its type before and its first rows after."""
    import pyarrow.parquet  # here, since most cycles read no parquet

    parquet = pyarrow.parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
    schema = parquet.schema_arrow
    named = ", ".join(f"{field.name!r} ({field.type})" for field in list(schema)[:20])
    if schema.names.count(column) != 1:
        raise unreadable("data.text.column", column, f"{file.name} has no such column, only {named}")
    if not _is_string(schema.field(column).type):
        raise unreadable("data.text.column", column, f"is no column of text in {file.name}: {named}")
    batches = parquet.iter_batches(PARQUET_BATCH_ROWS, columns=[column], use_threads=False)
    is_readable = False
    rows = (as_text(value) for batch in batches for value in batch.column(0).to_pylist())
    for n_before, row in enumerate(rows):
        is_readable = is_readable or isinstance(row, str)
        if n_before + 1 == N_CHECKED_ROWS and not is_readable:
            raise _nothing_readable(file, column, schema.names)
        yield row


def _is_string(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    is_view = pyarrow.types.is_string_view(kind)
    return bool(is_view or pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


@contextmanager
def _seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Give a stream that can be sought in: one that was compressed as a whole goes through the disk."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
        yield copy


@contextmanager
def _translating(file: TextFile) -> Iterator[None]:
    """Say of whatever a reader raises that this file cannot be read; a full disk stays itself."""
    import pyarrow

    try:
        yield
    except (OSError, EOFError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise unreadable("data.text", file.name, f"cannot be read ({reason})") from error
