"""Real text files of every kind, written on the spot."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from dmsae.documents import Document, make_document

KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "parquet.gz", "parquet.zst"]


def write_rows(file: Path, values: Sequence[Any], *, column: str = "text", group_rows: int = 2) -> Path:
    """Write one row for each value, as the file's ending asks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if ".parquet" in file.name:
        plain = file.with_name("plain.parquet")
        pq.write_table(pa.table({"id": range(len(values)), column: values}), plain, row_group_size=group_rows)
        content = plain.read_bytes()
        plain.unlink()
    else:
        content = b"".join(json.dumps({"id": i, column: v}).encode() + b"\n" for i, v in enumerate(values))
    return write_bytes(file, content)


def write_bytes(file: Path, content: bytes) -> Path:
    """Write bytes, compressed as the file's ending asks; a .zst in two frames."""
    if file.suffix == ".gz":
        content = gzip.compress(content)
    elif file.suffix == ".zst":
        half = len(content) // 2
        content = b"".join(map(zstandard.ZstdCompressor().compress, (content[:half], content[half:])))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def passages(n: int) -> list[str]:
    """Give `n` different pieces of English of a few hundred characters."""
    words = " ".join(topics[name] for name in sorted(topics)).split()
    return [f"{i}: " + " ".join(words[40 * i : 40 * (i + 1)]) for i in range(n)]


def json_lines(rows: Iterable[Any]) -> bytes:
    """Write each row as JSON, or as it is where it is bytes."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


class GivenDocuments:
    """Documents that are given, with a row skipped on the way; `n_read` counts how often they were read."""

    def __init__(self, texts: Sequence[str], *, identity: str = "given", n_null: int = 0) -> None:
        self.texts, self.identity, self.n_null, self.n_read = texts, identity, n_null, 0

    def check(self) -> None:
        """Find nothing to refuse."""

    def read(self, skipped: Counter[str]) -> Iterator[Document]:
        """Give all of them."""
        self.n_read += 1
        if self.n_null:
            skipped["null"] += self.n_null
        yield from map(make_document, self.texts)
