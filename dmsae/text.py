"""Which documents, which part (training, attribution, evaluation), which contexts of token ids?

A document belongs to a part by a hash of its text with a fixed salt, whatever the seed or job (METHOD 0), so
nothing that an SAE was trained on ever scores it. What the model makes of the contexts is the business of
`activations.py`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dmsae.config import SPLIT_SALT, BuiltinText, DataConfig
from dmsae.errors import CycleFailed

PASSAGE_CHARACTERS = 2000
"""Length from which a passage of the built-in text ends at the next blank line."""

MIN_TOKENS = 2
"""A context needs a token and a next one; BOS does not count."""

Part = Literal["training", "attribution", "evaluation"]
PARTS: tuple[Part, ...] = ("training", "attribution", "evaluation")


class Document(NamedTuple):
    """One piece of text."""

    text: str
    digest: str
    """sha256 of salt and text, in hexadecimal: decides part and place."""


class Contexts(NamedTuple):
    """Token ids in rows of one length, padded on the right."""

    input_ids: Int[Tensor, "n t"]
    """int64; what stands at padding is a valid id without a meaning."""
    is_token: Bool[Tensor, "n t"]
    """False at padding."""
    document_index: Int[Tensor, "n t"]
    """int64: place of each position's document within its part; any value at padding."""
    n_documents: int
    """Documents of the part."""
    n_skipped: int
    """Windows left out because they had fewer than two tokens."""


def load_documents(text: BuiltinText) -> list[Document]:
    """Give the text's documents without duplicates, ordered by their digest.

    Raises: CycleFailed with `data_unreadable` for a text this code does not know.
    """
    if text.name != "python-topics":
        raise CycleFailed("data_unreadable", f"data.text.name = {text.name!r} is unknown.", param="data.text")
    passages = {passage for topic in topics.values() for passage in cut_passages(topic)}
    return sorted(map(make_document, passages), key=lambda document: document.digest)


def make_document(text: str) -> Document:
    """Give a text its digest."""
    return Document(text, hashlib.sha256((SPLIT_SALT + text).encode()).hexdigest())


def cut_passages(text: str, *, n_characters: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Cut a text at blank lines into whole paragraphs of about `n_characters` together."""
    paragraphs: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if not paragraph.strip():
            continue
        paragraphs.append(paragraph.rstrip())
        if sum(map(len, paragraphs)) >= n_characters:
            yield "\n\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n\n".join(paragraphs)


def split_documents(documents: Sequence[Document], shares: Sequence[float]) -> dict[Part, list[Document]]:
    """Assign each document to the part in whose share of [0, 1) its digest falls."""
    parts: dict[Part, list[Document]] = {part: [] for part in PARTS}
    for document in documents:
        place = int(document.digest[:16], 16) / 16**16
        if place < shares[0]:
            parts["training"].append(document)
        elif place < shares[0] + shares[1]:
            parts["attribution"].append(document)
        else:
            parts["evaluation"].append(document)
    return parts


def build_contexts(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> Contexts:
    """Tokenise each document and cut it into windows of `context_length`, a BOS before each if asked for.

    Windows never join documents; the last of a document is padded on the right.

    Raises: CycleFailed with `data_unreadable` when a BOS is asked for that the tokenizer does not have.
    """
    prefix = _bos(tokenizer) if config.prepend_bos else []
    width = config.context_length - len(prefix)
    rows: list[list[int]] = []
    document_index: list[int] = []
    n_skipped = 0
    for index, ids in enumerate(_tokenise(documents, tokenizer)):
        for start in range(0, len(ids), width):
            window = ids[start : start + width]
            if len(window) < MIN_TOKENS:
                n_skipped += 1
                continue
            rows.append(prefix + window)
            document_index.append(index)
    input_ids, is_token = _pad(rows, config.context_length)
    documents_of_rows = torch.tensor(document_index).long()[:, None].expand(input_ids.shape)
    return Contexts(input_ids, is_token, documents_of_rows, len(documents), n_skipped)


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


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.bos_token_id is None:
        raise CycleFailed(
            "data_unreadable",
            "data.prepend_bos = True: this model's tokenizer has no BOS; set it to false.",
            param="data.prepend_bos",
        )
    return [int(tokenizer.bos_token_id)]


def _tokenise(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Give each document's ids, without special tokens around them."""
    if not documents:
        return []
    texts = [document.text for document in documents]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _pad(rows: list[list[int]], length: int) -> tuple[Int[Tensor, "n t"], Bool[Tensor, "n t"]]:
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    is_token = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        is_token[i, : len(row)] = True
    return input_ids, is_token
