"""How is a single token shown as text, so that what is shown is what it holds?

Decoding a token by itself would lose its leading space in some vocabularies, and shows U+FFFD for a part of a
character. Here a token's text is made from its own entry in the vocabulary.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

SPACE_MARK = "\u2581"
"""What SentencePiece writes for a space."""
BYTE_PIECE_CHARS = len("<0x0A>")


class TokenTexts:
    """The texts of one vocabulary's tokens, each the same wherever it stands.

    A token that the vocabulary calls added, a special one among them, is shown as it is written there. Of any
    other the bytes are taken; those that make up no whole character stand as `<0xE2>`, one by one, as
    SentencePiece writes them. An id that has no token is shown as `<token 50000>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        kinds = set(_decoders_of(tokenizer))
        self._is_byte_level = "ByteLevel" in kinds
        self._has_bytes = "ByteFallback" in kinds
        self._marks_spaces = not self._is_byte_level
        self._texts: dict[int, str] = {}

    def of(self, token_id: int) -> str:
        """Give the text of a token."""
        if token_id not in self._texts:
            self._texts[token_id] = self._make(token_id)
        return self._texts[token_id]

    def _make(self, token_id: int) -> str:
        if token_id in self._added:
            return self._added[token_id]
        piece = self._tokenizer.convert_ids_to_tokens(token_id) if token_id < len(self._tokenizer) else None
        if not isinstance(piece, str):
            return f"<token {token_id}>"
        if self._is_byte_level:
            table = byte_level_alphabet()
            is_known = all(character in table for character in piece)
            return spell(bytes(table[character] for character in piece)) if is_known else piece
        if self._has_bytes and len(piece) == BYTE_PIECE_CHARS and piece[:3] == "<0x":
            return spell(bytes([int(piece[3:5], 16)]))
        return piece.replace(SPACE_MARK, " ") if self._marks_spaces else piece


def spell(content: bytes) -> str:
    """Read bytes as UTF-8, each that belongs to no whole character as `<0x..>`."""
    text = content.decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)


@cache
def byte_level_alphabet() -> dict[str, int]:
    """Give the byte that each character of a byte-level vocabulary stands for.

    Source: `bytes_to_unicode` of GPT-2 (encoder.py): bytes that print stand for themselves, the others, in
    order, for the characters from U+0100 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    table = {chr(byte): byte for byte in printing}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _decoders_of(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Name the parts that a tokenizer's decoder is made of; none where it is not one of `tokenizers`."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder: Any = getattr(backend, "decoder", None)
    if decoder is None:
        return
    state = json.loads(decoder.__getstate__())
    for part in state.get("decoders", [state]):
        yield part["type"]
