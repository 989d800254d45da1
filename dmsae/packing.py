"""How do the documents of one part become rows of token ids: one document a row, or packed?

Rows are cut here and padded on the right; which documents there are is the business of `documents.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from dmsae.config import DataConfig
from dmsae.errors import CycleFailed

MIN_TOKENS = 2
"""A context needs a token and a next one; BOS does not count."""

Ids = Int32[np.ndarray, " n"]


class Row(NamedTuple):
    """One context before it is padded."""

    ids: Ids
    documents: Ids
    """Of each position, or a single one where all are of one document."""


class Cutter(Protocol):
    """How the documents of a part become rows."""

    n_skipped: int

    def add(self, ids: Ids, document: int) -> Iterator[Row]:
        """Take the next document and give the rows that it completes."""

    def finish(self) -> Iterator[Row]:
        """Give what is left over."""


class DocumentCutter:
    """Windows of `context_length` tokens of one document each, a BOS before each if asked for."""

    def __init__(self, length: int, *, bos: int | None) -> None:
        self._prefix = np.array([] if bos is None else [bos], dtype=np.int32)
        self._width = length - len(self._prefix)
        self.n_skipped = 0

    def add(self, ids: Ids, document: int) -> Iterator[Row]:
        """Cut one document; a last window of one token is left out and counted."""
        for start in range(0, len(ids), self._width):
            window = ids[start : start + self._width]
            if len(window) < MIN_TOKENS:
                self.n_skipped += 1
                continue
            yield Row(np.concatenate([self._prefix, window]), np.array([document], dtype=np.int32))

    def finish(self) -> Iterator[Row]:
        """Have nothing left over."""
        yield from ()


class PackedCutter:
    """Rows of exactly `context_length` tokens in which documents follow each other.

    With a BOS it stands at the start of each row and before each document, never twice side by side; without
    one, the EOS (if any) stands between documents and counts as the end of the one before it.
    """

    def __init__(self, length: int, *, bos: int | None, eos: int | None) -> None:
        self._length, self._bos, self._eos = length, bos, None if bos is not None else eos
        self._ids: list[Ids] = []
        self._documents: list[Ids] = []
        self._n = self._n_own = 0
        self._last_document: int | None = None
        self.n_skipped = 0

    def add(self, ids: Ids, document: int) -> Iterator[Row]:
        """Lay one document behind the one before it."""
        if self._eos is not None and self._last_document is not None:
            self._put(np.array([self._eos], dtype=np.int32), self._last_document)
            yield from self._full_row()
        if self._bos is not None and self._n:
            self._put(np.array([self._bos], dtype=np.int32), document)
            yield from self._full_row()
        self._last_document = document
        start = 0
        while start < len(ids):
            if self._bos is not None and not self._n:
                self._put(np.array([self._bos], dtype=np.int32), document)
            taken = ids[start : start + self._length - self._n]
            self._put(taken, document)
            self._n_own += len(taken)
            start += len(taken)
            yield from self._full_row()

    def finish(self) -> Iterator[Row]:
        """Give the last row, shorter than the others, unless it has fewer than two tokens of documents."""
        if self._n_own >= MIN_TOKENS:
            yield self._take_row()
        elif self._n_own:
            self.n_skipped += 1

    def _put(self, ids: Ids, document: int) -> None:
        self._ids.append(ids)
        self._documents.append(np.full(len(ids), document, dtype=np.int32))
        self._n += len(ids)

    def _full_row(self) -> Iterator[Row]:
        if self._n == self._length:
            yield self._take_row()

    def _take_row(self) -> Row:
        row = Row(np.concatenate(self._ids), np.concatenate(self._documents))
        self._ids, self._documents, self._n, self._n_own = [], [], 0, 0
        return row


def make_cutter(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Cutter:
    """Choose how documents are cut.

    Raises: CycleFailed with `data_unreadable` when a BOS is asked for that the tokenizer does not have.
    """
    bos = tokenizer.bos_token_id
    if config.prepend_bos and bos is None:
        raise CycleFailed(
            "data_unreadable",
            "data.prepend_bos = True: this model's tokenizer has no BOS; set it to false.",
            param="data.prepend_bos",
        )
    bos = int(bos) if config.prepend_bos else None
    if config.packing == "document":
        return DocumentCutter(config.context_length, bos=bos)
    eos = tokenizer.eos_token_id
    return PackedCutter(config.context_length, bos=bos, eos=None if eos is None else int(eos))


class RowList:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep a row as the next one."""
        self._rows.append(row)

    def pad(
        self, length: int
    ) -> tuple[Int32[np.ndarray, "n t"], Bool[np.ndarray, "n t"], Int32[np.ndarray, "n t"]]:
        """Give ids, whether there is a token, and documents, padded on the right."""
        shape = (len(self._rows), length)
        ids, is_token = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.bool_)
        documents = np.zeros(shape, dtype=np.int32)
        for place, row in enumerate(self._rows):
            ids[place, : len(row.ids)] = row.ids
            is_token[place, : len(row.ids)] = True
            documents[place] = row.documents[-1]
            documents[place, : len(row.ids)] = row.documents
        return ids, is_token, documents

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._rows)
