"""From documents to contexts."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from dmsae.config import DataConfig
from dmsae.contexts import Contexts, SplitReader, TokenRequest, check_ids, read_in_memory
from dmsae.documents import PARTS, make_document, part_of
from dmsae.errors import CycleFailed
from dmsae.packing import RowList
from dmsae.sources import BuiltinText
from tests.texts import GivenDocuments, passages
from tests.tiny import tiny_tokenizer

TEXT = BuiltinText(source="builtin", name="python-topics")
ALL = dict.fromkeys(PARTS)
BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def data_config(**settings):
    return DataConfig(text=TEXT, **{"context_length": 16, **settings})


def request_of(tokenizer, *, needs=ALL, **settings):
    return TokenRequest(tokenizer, data_config(**settings), (0, 1, 2), needs)


def read_one_part(tokenizer, *texts, **settings):
    """Cut documents as if all of them were of the training part."""
    data = data_config(**settings).model_copy(update={"split": [1.0, 0.0, 0.0]})
    text = read_in_memory(GivenDocuments(texts), TokenRequest(tokenizer, data, (0, 1, 2), ALL))
    return text.parts["training"], text


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(n_words=st.integers(2, 60), length=st.integers(2, 20), with_bos=st.booleans())
def test_contexts_hold_every_token_once_in_order(tokenizer, n_words, length, with_bos):
    length += with_bos
    text = "spam " * n_words
    ids = ids_of(tokenizer, text)
    contexts, _ = read_one_part(tokenizer, text, context_length=length, prepend_bos=with_bos)
    tokens = contexts.is_token.clone()
    if with_bos:
        assert (contexts.input_ids[:, 0] == BOS).all()
        tokens[:, 0] = False
    found = contexts.input_ids[tokens].tolist()
    assert found == ids[: len(found)]
    assert len(ids) - len(found) == contexts.n_skipped
    assert contexts.n_skipped <= 1


def test_short_last_windows_are_padded_on_the_right_and_rows_know_their_document(tokenizer):
    contexts, text = read_one_part(
        tokenizer, "spam and eggs " * 10, "a whole other text " * 3, context_length=8
    )
    assert contexts.document_index[:, 0].tolist() == sorted(contexts.document_index[:, 0].tolist())
    assert set(contexts.document_index[:, 0].tolist()) == {0, 1}
    assert not contexts.is_token.all()
    has_gap = ~contexts.is_token[:, :-1] & contexts.is_token[:, 1:]
    assert not has_gap.any()
    assert text.n_documents == contexts.n_documents == 2
    assert text.is_whole


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_documents_of_one_token_or_none_are_skipped_and_counted(tokenizer, packing):
    contexts, text = read_one_part(tokenizer, "a", "", "spam and eggs", packing=packing)
    assert text.n_rows_skipped == {"one_token": 2}
    assert contexts.n_documents == 1
    assert (contexts.document_index == 0).all()
    contexts, text = read_one_part(tokenizer, "a", "", packing=packing)
    assert contexts.input_ids.shape == (0, 16)
    assert text.n_rows_skipped == {"one_token": 2}


def test_a_window_of_one_token_at_the_end_is_left_out(tokenizer):
    n_tokens = len(ids_of(tokenizer, "spam and eggs"))
    contexts, _ = read_one_part(tokenizer, "spam and eggs", context_length=n_tokens - 1)
    assert contexts.is_token.sum() == n_tokens - 1
    assert contexts.n_skipped == 1


def rows_of(contexts):
    return [row[mask].tolist() for row, mask in zip(contexts.input_ids, contexts.is_token, strict=True)]


def documents_of(contexts):
    return [row[mask].tolist() for row, mask in zip(contexts.document_index, contexts.is_token, strict=True)]


class Letters:
    """A tokenizer whose ids can be written out: a is 10, b is 11 and so on."""

    def __init__(self, *, bos, eos):
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, texts, **options):
        assert options["add_special_tokens"] is False
        return {
            "input_ids": [[BOS if letter == "^" else ord(letter) - 87 for letter in text] for text in texts]
        }


PACKED = [
    # a BOS at the start of each row and before each document, never twice side by side
    (True, EOS, ["abc", "defgh", "ij"], [[0, 10, 11, 12, 0, 13], [0, 14, 15, 16, 17, 0], [0, 18, 19]]),
    # a document that ends with its row
    (True, EOS, ["abcde", "fghij"], [[0, 10, 11, 12, 13, 14], [0, 15, 16, 17, 18, 19]]),
    # without BOS, the EOS stands between documents and not behind the last
    (False, EOS, ["abc", "defgh", "ij"], [[10, 11, 12, 1, 13, 14], [15, 16, 17, 1, 18, 19]]),
    (False, EOS, ["abcdef", "gh"], [[10, 11, 12, 13, 14, 15], [1, 16, 17]]),
    # a tokenizer with neither
    (False, None, ["abc", "defgh", "ij"], [[10, 11, 12, 13, 14, 15], [16, 17, 18, 19]]),
    # one token is left over: not enough for a row of its own
    (False, None, ["abcd", "efg"], [[10, 11, 12, 13, 14, 15]]),
    (True, None, ["abcde", "fghijk"], [[0, 10, 11, 12, 13, 14], [0, 15, 16, 17, 18, 19]]),
    # a text that brings its own BOS
    (True, EOS, ["^abcd", "^efg"], [[0, 10, 11, 12, 13, 0], [0, 14, 15, 16]]),
]


@pytest.mark.parametrize(("prepend_bos", "eos", "texts", "expected"), PACKED)
def test_packed_rows_are_full_and_divide_documents_as_asked(prepend_bos, eos, texts, expected):
    letters = Letters(bos=BOS, eos=eos)
    contexts, _ = read_one_part(letters, *texts, context_length=6, packing="packed", prepend_bos=prepend_bos)
    assert rows_of(contexts) == expected
    assert all(len(row) == 6 for row in rows_of(contexts)[:-1])


def test_packed_positions_know_their_document_and_an_eos_is_the_end_of_the_one_before_it():
    packed = {"context_length": 6, "packing": "packed"}
    contexts, _ = read_one_part(Letters(bos=BOS, eos=EOS), "abc", "defgh", "ij", **packed)
    assert documents_of(contexts) == [[0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 2, 2]]
    contexts, _ = read_one_part(Letters(bos=BOS, eos=EOS), "abc", "defgh", prepend_bos=True, **packed)
    assert documents_of(contexts) == [[0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12),
    length=st.integers(3, 9),
    prepend_bos=st.booleans(),
    eos=st.sampled_from([EOS, None]),
)
def test_packing_keeps_every_token_in_order_and_pads_the_last_row_only(lengths, length, prepend_bos, eos):
    texts = ["bcdefghijklmnopqrstuvwxyzabcdefghij"[i % 5 :][:n] for i, n in enumerate(lengths)]
    options = {"context_length": length, "packing": "packed", "prepend_bos": prepend_bos}
    contexts, _ = read_one_part(Letters(bos=BOS, eos=eos), *texts, **options)
    found = [i for row in rows_of(contexts) for i in row if i > 1]
    expected = [ord(letter) - 87 for letter in "".join(texts)]
    assert found == expected[: len(found)]
    assert len(expected) - len(found) == contexts.n_skipped <= 1
    assert contexts.is_token[:-1].all()
    for row in rows_of(contexts):
        assert (0, 0) not in pairwise(row)
        assert row[0] == BOS or not prepend_bos


def test_a_tokenizer_without_pad_token_gives_the_same_tokens(tokenizer):
    padless = tiny_tokenizer()
    padless.pad_token = None
    expected, _ = read_one_part(tokenizer, "spam and eggs " * 5)
    found, _ = read_one_part(padless, "spam and eggs " * 5)
    assert torch.equal(expected.input_ids, found.input_ids)
    assert torch.equal(expected.is_token, found.is_token)


def test_a_tokenizer_that_adds_a_bos_of_its_own_adds_none_here(tokenizer):

    eager = tiny_tokenizer()
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    assert eager("spam")["input_ids"][0] == BOS
    for prepend_bos in (False, True):
        expected, _ = read_one_part(tokenizer, "spam and eggs", prepend_bos=prepend_bos)
        found, _ = read_one_part(eager, "spam and eggs", prepend_bos=prepend_bos)
        assert torch.equal(expected.input_ids, found.input_ids)


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_a_bos_that_the_tokenizer_does_not_have_is_refused_by_name(packing):
    bosless = tiny_tokenizer()
    bosless.bos_token = None
    with pytest.raises(CycleFailed, match=r"data\.prepend_bos = True") as caught:
        read_in_memory(GivenDocuments(["spam"]), request_of(bosless, prepend_bos=True, packing=packing))
    assert caught.value.failure == "data_unreadable"
    assert caught.value.param == "data.prepend_bos"


def test_an_unusual_bos_is_the_one_that_is_put():
    unusual = tiny_tokenizer()
    unusual.bos_token = unusual.eos_token
    contexts, _ = read_one_part(unusual, "spam and eggs", prepend_bos=True)
    assert contexts.input_ids[0, 0] == EOS


def test_every_document_is_cut_in_its_own_part(tokenizer):
    texts = passages(80)
    text = read_in_memory(GivenDocuments(texts), request_of(tokenizer, split=[0.5, 0.25, 0.25]))
    n_documents = Counter(part_of(make_document(each).digest, [0.5, 0.25, 0.25]) for each in texts)
    for part in PARTS:
        contexts = text.parts[part]
        assert contexts.n_documents == n_documents[part] == int(contexts.document_index.max()) + 1
        assert text.n_candidates[part] == int((contexts.is_token & (contexts.input_ids > 2)).sum())


def test_reading_stops_once_every_part_has_enough_and_no_part_holds_more_than_it_needs(
    tokenizer, monkeypatch
):
    monkeypatch.setattr("dmsae.contexts.BATCH_DOCUMENTS", 4)
    needs = {"training": 900, "attribution": 200, "evaluation": 100}
    request = request_of(tokenizer, needs=needs, split=[0.5, 0.25, 0.25])
    n_read = 0

    def counted():
        nonlocal n_read
        for text in passages(400):
            n_read += 1
            yield make_document(text)

    sinks = {part: RowList() for part in PARTS}
    writers = request.writers(sinks)
    reader = SplitReader(request, writers)
    reader.read(counted(), Counter())
    assert not reader.is_whole
    assert reader.n_documents == n_read < 100
    for part, need in needs.items():
        assert need <= writers[part].n_candidates < need + 200


def test_a_text_that_ends_first_is_whole(tokenizer):
    needs = {"training": 10**6, "attribution": 1, "evaluation": 1}
    text = read_in_memory(GivenDocuments(passages(40)), request_of(tokenizer, needs=needs))
    assert text.is_whole


def test_ids_beyond_the_models_vocabulary_are_refused(tokenizer):
    contexts, _ = read_one_part(tokenizer, "spam and eggs")
    check_ids(contexts, vocab_size=len(tokenizer))
    with pytest.raises(CycleFailed, match="5 embeddings"):
        check_ids(contexts, vocab_size=5)
    check_ids(Contexts(*(torch.zeros(0, 4),) * 3, 0), vocab_size=5)
