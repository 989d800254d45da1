"""Which documents, which part, which contexts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmsae.config import BuiltinText, DataConfig
from dmsae.errors import CycleFailed
from dmsae.text import (
    Document,
    build_contexts,
    check_ids,
    cut_passages,
    load_documents,
    make_document,
    split_documents,
)
from tests.tiny import tiny_tokenizer

TEXT = BuiltinText(source="builtin", name="python-topics")
SHARES = [0.8, 0.1, 0.1]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def documents():
    return load_documents(TEXT)


def data_config(**settings):
    return DataConfig(text=TEXT, **{"context_length": 16, **settings})


def test_the_builtin_text_gives_passages_of_about_two_thousand_characters(documents):
    lengths = sorted(len(document.text) for document in documents)
    assert len(documents) > 150
    assert 1500 < lengths[len(lengths) // 2] < 3000


def test_no_document_occurs_twice_and_their_order_is_that_of_their_digests(documents):
    digests = [document.digest for document in documents]
    assert digests == sorted(set(digests))
    assert len({document.text for document in documents}) == len(documents)


def test_every_document_falls_into_exactly_one_part_near_its_share(documents):
    parts = split_documents(documents, SHARES)
    assert sorted(d for part in parts.values() for d in part) == sorted(documents)
    total = sum(len(document.text) for document in documents)
    shares = [sum(len(d.text) for d in part) / total for part in parts.values()]
    assert shares == pytest.approx(SHARES, abs=0.07)


def test_a_document_keeps_its_part_whatever_other_documents_there_are(documents):
    whole = split_documents(documents, SHARES)
    half = split_documents(documents[::2], SHARES)
    for part in whole:
        assert set(half[part]) <= set(whole[part])


def test_passages_hold_whole_paragraphs_and_lose_none():
    text = "first\nstill first\n\n   indented second\n \n\nthird"
    passages = list(cut_passages(text, n_characters=1))
    assert passages == ["first\nstill first", "   indented second", "third"]
    assert list(cut_passages(text, n_characters=1000)) == ["\n\n".join(passages)]


def test_an_empty_text_has_no_passage():
    assert list(cut_passages("\n\n \n")) == []


@given(n_words=st.integers(0, 60), length=st.integers(2, 20), with_bos=st.booleans())
def test_contexts_hold_every_token_once_in_order(tokenizer, n_words, length, with_bos):
    length += with_bos
    document = make_document("spam " * n_words)
    ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
    contexts = build_contexts([document], tokenizer, data_config(context_length=length, prepend_bos=with_bos))
    tokens = contexts.is_token.clone()
    if with_bos:
        assert (contexts.input_ids[:, 0] == tokenizer.bos_token_id).all()
        tokens[:, 0] = False
    found = contexts.input_ids[tokens].tolist()
    assert found == ids[: len(found)]
    assert len(ids) - len(found) == contexts.n_skipped
    assert contexts.n_skipped <= 1


def test_short_last_windows_are_padded_on_the_right_and_rows_know_their_document(tokenizer):
    documents = [make_document("spam and eggs " * 10), make_document("a whole other text " * 3)]
    contexts = build_contexts(documents, tokenizer, data_config(context_length=8))
    assert contexts.document_index[:, 0].tolist() == sorted(contexts.document_index[:, 0].tolist())
    assert set(contexts.document_index[:, 0].tolist()) == {0, 1}
    assert not contexts.is_token.all()
    has_gap = ~contexts.is_token[:, :-1] & contexts.is_token[:, 1:]
    assert not has_gap.any()


def test_windows_of_one_token_are_skipped_and_counted(tokenizer):
    contexts = build_contexts([Document("a", ""), Document("", "")], tokenizer, data_config())
    assert contexts.input_ids.shape == (0, 16)
    assert contexts.n_skipped == 1
    assert contexts.n_documents == 2


def test_a_tokenizer_without_pad_token_gives_the_same_tokens(tokenizer):
    document = make_document("spam and eggs " * 5)
    padless = tiny_tokenizer()
    padless.pad_token = None
    expected = build_contexts([document], tokenizer, data_config())
    found = build_contexts([document], padless, data_config())
    assert torch.equal(expected.input_ids, found.input_ids)
    assert torch.equal(expected.is_token, found.is_token)


def test_a_bos_that_the_tokenizer_does_not_have_is_refused_by_name():
    bosless = tiny_tokenizer()
    bosless.bos_token = None
    with pytest.raises(CycleFailed, match=r"data\.prepend_bos = True") as caught:
        build_contexts([make_document("spam")], bosless, data_config(prepend_bos=True))
    assert caught.value.failure == "data_unreadable"
    assert caught.value.param == "data.prepend_bos"


def test_ids_beyond_the_models_vocabulary_are_refused(tokenizer):
    contexts = build_contexts([make_document("spam and eggs")], tokenizer, data_config())
    check_ids(contexts, vocab_size=len(tokenizer))
    with pytest.raises(CycleFailed, match="5 embeddings"):
        check_ids(contexts, vocab_size=5)
