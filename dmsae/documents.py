"""From a text to documents in a fixed order, each in the part where its hash puts it.

A document belongs to a part by a hash of its text with a fixed salt, whatever the seed or job (METHOD 0), so
nothing that an SAE was trained on ever scores it; a second hash divides the training part among chains. How
documents become token ids is the business of `contexts.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal, NamedTuple, Protocol

from dmsae.config import SPLIT_SALT
from dmsae.errors import CycleFailed
from dmsae.sources import BuiltinText, FileText, HubText, ObjectText
from dmsae.text_files import TextFile, find_text_files
from dmsae.text_rows import Skip, cut_passages, read_rows

Part = Literal["training", "attribution", "evaluation"]
PARTS: tuple[Part, ...] = ("training", "attribution", "evaluation")

CHAIN_SALT = "dmsae-chain-1"
"""Salt of the second hash, which divides the training documents among chains, the same for every job."""


class Document(NamedTuple):
    """One piece of text."""

    text: str
    digest: str
    """sha256 of salt and text, in hexadecimal: decides part and, in the built-in text, place."""


class Chain(NamedTuple):
    """Which of the training documents are trained on: one of `n_chains` parts by a second hash, or all."""

    chain_index: int = 0
    n_chains: int = 1

    def part_of(self, digest: str, shares: Sequence[float]) -> Part | None:
        """Give the part where a digest puts a document; None for a training document of another chain.

        Attribution and evaluation are shared by all chains.
        """
        part = part_of(digest, shares)
        return part if part != "training" or chain_of(digest, self.n_chains) == self.chain_index else None


WHOLE = Chain()
"""All training documents."""


class Documents(Protocol):
    """A text as a stream of documents, the same ones in the same order however often it is read."""

    @property
    def identity(self) -> str:
        """Name all that decides which documents there are, without reading them."""

    def check(self) -> None:
        """Read up to the first row that is text.

        Raises: CycleFailed with `data_unreadable` or a code of the hub.
        """

    def read(self, skipped: Counter[str]) -> Iterator[Document]:
        """Read from the first document on, counting in `skipped` by reason the rows that are none.

        Raises: CycleFailed with `data_unreadable` or a code of the hub.
        """


def open_documents(
    text: BuiltinText | FileText | HubText | ObjectText,
    *,
    inputs: Path | None = None,
    allowed_roots: Sequence[Path] | None = None,
) -> Documents:
    """Open a text: objects lie in the folder `inputs`, files under one of `allowed_roots` (null: anywhere).

    Raises: CycleFailed with `data_unreadable` for a text this code does not know.
    """
    if isinstance(text, BuiltinText):
        return BuiltinDocuments(text)
    return FileDocuments(text, inputs=inputs, allowed_roots=allowed_roots)


class BuiltinDocuments:
    """The built-in text: documents without duplicates, ordered by their digest."""

    def __init__(self, text: BuiltinText) -> None:
        if text.name != "python-topics":
            raise CycleFailed(
                "data_unreadable", f"data.text.name = {text.name!r} is unknown.", param="data.text"
            )
        self.identity = text.model_dump_json()

    def check(self) -> None:
        """Find nothing to refuse."""

    def read(self, skipped: Counter[str]) -> Iterator[Document]:  # noqa: ARG002 - none is
        """Give every passage once."""
        passages = {passage for topic in topics.values() for passage in cut_passages(topic.split("\n"))}
        yield from sorted(map(make_document, passages), key=lambda document: document.digest)


class FileDocuments:
    """Documents of files one after the other, in the order in which they stand there; duplicates stay.

    Duplicates have one digest, so they lie in one part.
    """

    def __init__(
        self,
        text: FileText | HubText | ObjectText,
        *,
        inputs: Path | None,
        allowed_roots: Sequence[Path] | None,
    ) -> None:
        self._text, self._inputs, self._allowed_roots = text, inputs, allowed_roots

    @cached_property
    def files(self) -> list[TextFile]:
        """The files in order, found once."""
        return find_text_files(self._text, inputs=self._inputs, allowed_roots=self._allowed_roots)

    @property
    def identity(self) -> str:
        """Name the revision of a dataset, or name, size and time of every file."""
        if isinstance(self._text, HubText):
            return self._text.model_dump_json()
        return repr((self._text.source, self._text.column, [file.version for file in self.files]))

    def check(self) -> None:
        """Read files until one gives a row that is text; none at all is told once all are read."""
        for file in self.files:
            if any(isinstance(row, str) for row in read_rows(file, self._text.column)):
                return

    def read(self, skipped: Counter[str]) -> Iterator[Document]:
        """Read file after file."""
        for file in self.files:
            for row in read_rows(file, self._text.column):
                if isinstance(row, Skip):
                    skipped[row.value] += 1
                else:
                    yield make_document(row)


def make_document(text: str) -> Document:
    """Give a text its digest."""
    return Document(text, hashlib.sha256((SPLIT_SALT + text).encode()).hexdigest())


def part_of(digest: str, shares: Sequence[float]) -> Part:
    """Give the part in whose share of [0, 1) a digest falls."""
    place = int(digest[:16], 16) / 16**16
    if place < shares[0]:
        return "training"
    return "attribution" if place < shares[0] + shares[1] else "evaluation"


def chain_of(digest: str, n_chains: int) -> int:
    """Give the chain in whose part of [0, 1) the second hash of a digest falls."""
    second = hashlib.sha256((CHAIN_SALT + digest).encode()).hexdigest()
    return int(second[:16], 16) * n_chains // 16**16
