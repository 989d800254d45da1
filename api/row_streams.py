"""How does a long list leave as CSV or Parquet? Row by row as columns say, read batch by batch.

Each batch is read in a transaction of its own, by the key behind which the last one ended, and sent before
the next is read: memory holds one batch, and a slow client holds no connection to the database.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args

from fastapi import Query
from fastapi.responses import StreamingResponse

from api.dependencies import Parts
from api.schemas import Answer
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.database import Transaction

Format = Literal["json", "csv", "parquet"]
FormatOf = Annotated[
    Format, Query(description="json: a page; csv or parquet: all of the list, a row for each entry.")
]
Rows: TypeAlias = Sequence[Answer]
ReadBatch: TypeAlias = Callable[[Transaction, str | None], tuple[Rows, str | None]]
"""Gives the rows behind a cursor, and the cursor behind them; None at the end."""

MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
BATCH = 1000
ROW_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": "cycle_index,n_latents\r\n0,99\r\n"},
            "application/vnd.apache.parquet": {
                "schema": {"type": "string", "format": "binary"},
                "example": "PAR1...PAR1",
            },
        }
    }
}
"""What routes answer that also give CSV and Parquet."""


def refuse_paging(kind: Format, **paging: Any) -> None:
    """Refuse what cuts a list into pages where all of it is asked for.

    Raises:
        InvalidConfig: naming each.
    """
    rule = f"pages are for json: as {kind} the whole list comes, leave it out"
    given = [] if kind == "json" else [name for name, value in paging.items() if value is not None]
    if given:
        raise InvalidConfig([FieldProblem(name, paging[name], rule) for name in given])


def stream_rows(
    parts: Parts, row: type[Answer], read: ReadBatch, *, kind: Format, name: str
) -> StreamingResponse:
    """Send all rows as CSV or Parquet, under a file name; the first batch is read before anything is sent.

    Raises:
        DmsaeError: what `read` raises for the first batch; later the answer breaks off.
    """
    batches = _batches(parts, read)
    first = next(batches)
    write = {"csv": _csv, "parquet": _parquet}[kind]
    headers = {"Content-Disposition": f'attachment; filename="{name}.{kind}"'}
    content = write(row, chain([first], batches))
    return StreamingResponse(content, media_type=MEDIA_TYPES[kind], headers=headers)


def _batches(parts: Parts, read: ReadBatch) -> Iterator[Rows]:
    cursor: str | None = None
    while True:
        after = cursor
        rows, cursor = parts.database.run(lambda session: read(session, after))  # noqa: B023 - run at once
        yield rows
        if cursor is None:
            return


def _csv(row: type[Answer], batches: Iterator[Rows]) -> Iterator[bytes]:
    """Give a header and a line for each row; null is empty, a truth value true or false."""
    names = list(row.model_fields)
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(names)
    for rows in batches:
        writer.writerows([_cell(getattr(entry, name)) for name in names] for entry in rows)
        yield sink.getvalue().encode()
        sink.seek(0)
        sink.truncate()


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _parquet(row: type[Answer], batches: Iterator[Rows]) -> Iterator[bytes]:
    """Give a file with a row group for each batch."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    fields = {name: _plain_type(info.annotation) for name, info in row.model_fields.items()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in fields.items()])
    sink = _Sink()
    with parquet.ParquetWriter(pa.PythonFile(sink, mode="w"), schema) as writer:
        for rows in batches:
            columns = {name: [getattr(entry, name) for entry in rows] for name in fields}
            if rows:
                writer.write_table(pa.table(columns, schema=schema))
            yield sink.take()
    yield sink.take()


def _plain_type(annotation: Any) -> type:
    """Give the type of a column, which may be null."""
    kinds: tuple[type, ...] = get_args(annotation) or (annotation,)
    return next(kind for kind in kinds if kind is not NoneType)


class _Sink(io.RawIOBase):
    """A file that keeps what was written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        """Say that it may be written."""
        return True

    def write(self, data: Any) -> int:
        """Keep a copy."""
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Give what was written since the last time."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
