"""From documents to contexts: rows of token ids, of one length, each part by itself.

Texts are tokenised in batches, without special tokens around them, until every part has as many tokens as are
needed. How they are cut is the business of `packing.py`; where rows go is said by the caller.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dmsae.config import DataConfig
from dmsae.documents import PARTS, WHOLE, Chain, Document, Documents, Part
from dmsae.errors import CycleFailed
from dmsae.packing import MIN_TOKENS, Cutter, Ids, Row, RowList, make_cutter
from dmsae.text_rows import Skip

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1_000_000
"""Documents are tokenised together until there are so many of them, or so much text."""


class Contexts(NamedTuple):
    """Token ids in rows of one length, padded on the right."""

    input_ids: Int[Tensor, "n t"]
    """int64, or int32 where they are mapped from disk; at padding stands a valid id without a meaning."""
    is_token: Bool[Tensor, "n t"]
    """False at padding."""
    document_index: Int[Tensor, "n t"]
    """Place of each position's document within its part; any value at padding. Negative where the position
    belongs to a document of another part: the model reads it, and nobody counts it."""
    n_documents: int
    """Documents of the part."""
    n_skipped: int = 0
    """Windows left out because they had fewer than two tokens."""


@dataclass(frozen=True)
class TokenisedText:
    """A text as contexts, part by part, and what was seen of it on the way."""

    parts: Mapping[Part, Contexts]
    n_candidates: Mapping[Part, int]
    """Tokens that are neither padding nor special."""
    n_documents: int
    """Documents that were read, also those that no part needed any more; none of other chains."""
    n_rows_skipped: Mapping[str, int]
    """Rows that were read and left out, by reason."""
    is_whole: bool
    """Whether the text has nothing more to give."""


class RowSink(Protocol):
    """Where the rows of a part go."""

    def add(self, row: Row) -> None:
        """Keep a row as the next one."""


@dataclass
class PartWriter:
    """Cuts the documents of one part, up to as many tokens as are needed."""

    cutter: Cutter
    sink: RowSink
    special_ids: Ids
    need: int | None
    """Tokens that are neither padding nor special; null takes all there are."""
    n_documents: int = 0
    n_candidates: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return self.need is not None and self.n_candidates >= self.need

    def add(self, ids: Ids) -> None:
        """Take the next document."""
        self._keep(self.cutter.add(ids, self.n_documents))
        self.n_documents += 1

    def finish(self) -> None:
        """Take what is left over, unless there was enough before."""
        if not self.is_full:
            self._keep(self.cutter.finish())

    def _keep(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.n_candidates += int((~np.isin(row.ids, self.special_ids)).sum())
            self.sink.add(row)


@dataclass(frozen=True)
class TokenRequest:
    """What decides, beside the documents, which contexts there are."""

    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    special_ids: tuple[int, ...]
    needs: Mapping[Part, int | None]
    """Tokens that are neither padding nor special; null takes all there are."""
    chain: Chain = WHOLE
    """Which training documents are read."""

    def writers(self, sinks: Mapping[Part, RowSink]) -> dict[Part, PartWriter]:
        """Make what cuts each part.

        Raises: CycleFailed with `data_unreadable` when a BOS is asked for that the tokenizer does not have.
        """
        special_ids = np.array(self.special_ids, dtype=np.int32)
        return {
            part: PartWriter(
                make_cutter(self.tokenizer, self.data), sinks[part], special_ids, self.needs[part]
            )
            for part in PARTS
        }


@dataclass
class SplitReader:
    """Reads documents until every part has enough."""

    request: TokenRequest
    writers: Mapping[Part, PartWriter]
    n_documents: int = 0
    """Documents that were read, also those that no part needed any more; none of other chains."""
    is_whole: bool = False
    """Whether the text ended before every part had enough."""

    def read(self, documents: Iterable[Document], skipped: Counter[str]) -> None:
        """Tokenise documents batch by batch and hand each to its part.

        A part that has enough takes no more; documents of less than two tokens are counted in `skipped`.
        """
        tokenizer = self.request.tokenizer
        bos = tokenizer.bos_token_id if self.request.data.prepend_bos else None
        for batch in self._batches(documents):
            texts = [text for _, text in batch]
            for (part, _), ids in zip(batch, tokenise(texts, tokenizer), strict=True):
                own = ids[1:] if bos is not None and ids[:1] == [bos] else ids  # a text may bring its own BOS
                if len(own) < MIN_TOKENS:
                    skipped[Skip.ONE_TOKEN.value] += 1
                    self.n_documents -= 1
                elif not self.writers[part].is_full:
                    self.writers[part].add(np.array(own, dtype=np.int32))
        self.is_whole = not self._is_full()
        for writer in self.writers.values():
            writer.finish()

    def _is_full(self) -> bool:
        return all(writer.is_full for writer in self.writers.values())

    def _batches(self, documents: Iterable[Document]) -> Iterator[list[tuple[Part, str]]]:
        """Gather documents of parts that take more, each with its part, until no part does."""
        batch: list[tuple[Part, str]] = []
        n_characters = 0
        for document in documents:
            part = self.request.chain.part_of(document.digest, self.request.data.split)
            if part is None:
                continue
            self.n_documents += 1
            if self.writers[part].is_full:
                continue
            batch.append((part, document.text))
            n_characters += len(document.text)
            if len(batch) == BATCH_DOCUMENTS or n_characters >= BATCH_CHARACTERS:
                yield batch
                if self._is_full():
                    return
                batch, n_characters = [], 0
        if batch:
            yield batch


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Give each text's ids, without special tokens around them."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def read_in_memory(documents: Documents, request: TokenRequest) -> TokenisedText:
    """Read a small text without putting it on disk, in the order in which it comes.

    Raises: CycleFailed with `data_unreadable` when a BOS is asked for that the tokenizer does not have.
    """
    sinks = {part: RowList() for part in PARTS}
    writers = request.writers(sinks)
    skipped: Counter[str] = Counter()
    reader = SplitReader(request, writers)
    reader.read(documents.read(skipped), skipped)
    parts: dict[Part, Contexts] = {}
    for part, writer in writers.items():
        ids, is_token, index = map(torch.from_numpy, sinks[part].pad(request.data.context_length))
        n_skipped = writer.cutter.n_skipped
        parts[part] = Contexts(ids.long(), is_token, index.long(), writer.n_documents, n_skipped)
    n_candidates = {part: writer.n_candidates for part, writer in writers.items()}
    return TokenisedText(parts, n_candidates, reader.n_documents, dict(skipped), reader.is_whole)


def check_ids(contexts: Contexts, *, vocab_size: int) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises: CycleFailed with `model_unreadable`.
    """
    largest = int(contexts.input_ids.max()) if contexts.input_ids.numel() else 0
    if largest >= vocab_size:
        raise CycleFailed(
            "model_unreadable",
            f"The tokenizer gives id {largest}, but the model has {vocab_size} embeddings: "
            "they do not belong together.",
            param="model",
        )
