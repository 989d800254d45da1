"""A token is shown as what it holds, whatever kind its vocabulary is of."""

import re

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dmsae.token_texts import TokenTexts, byte_level_alphabet, spell
from tests.tiny import tiny_tokenizer

TEXT = "na\u00efve \U0001f642 \u65e5\u672c <b>&amp;</b>\n\tif x:\u2028 \x00end"


def as_bytes(shown: str) -> bytes:
    parts = re.split(r"<0x([0-9A-F]{2})>", shown)
    return b"".join(bytes.fromhex(p) if i % 2 else p.encode() for i, p in enumerate(parts))


def test_all_tokens_of_a_text_together_show_every_byte_of_it_and_nothing_else():
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    shown = [texts.of(i) for i in tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    assert as_bytes("".join(shown)) == TEXT.encode()
    assert "\ufffd" not in "".join(shown)
    assert "<0xF0>" in shown


def test_special_tokens_stand_as_they_are_written_and_ids_without_a_token_say_so():
    texts = TokenTexts(tiny_tokenizer())
    assert [texts.of(i) for i in (0, 1, 50_000)] == ["<s>", "</s>", "<token 50000>"]


def test_pieces_of_sentencepiece_show_spaces_and_bytes():
    vocabulary = {"\u2581the": 0, "<0x0A>": 1, "<0xE2>": 2, "ing": 3, "<0xZZ": 4, "\u2581": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [texts.of(i) for i in range(6)] == [" the", "\n", "<0xE2>", "ing", "<0xZZ", " "]


def test_what_is_no_whole_character_is_spelled_byte_by_byte():
    assert spell(b"a\xe2\x82b\xe2\x82\xac\xff") == "a<0xE2><0x82>b\u20ac<0xFF>"
    assert sorted(byte_level_alphabet().values()) == list(range(256))
