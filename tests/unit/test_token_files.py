"""How token ids lie on disk."""

import errno
import multiprocessing
import os
from collections import Counter

import pytest
import torch

from dmsae.config import DataConfig
from dmsae.contexts import TokenRequest, read_in_memory
from dmsae.documents import PARTS, WHOLE, Chain
from dmsae.errors import CycleFailed
from dmsae.sources import BuiltinText
from dmsae.token_files import has_tokens, open_tokens
from tests.texts import GivenDocuments, passages
from tests.tiny import tiny_tokenizer

TEXT = BuiltinText(source="builtin", name="python-topics")
ALL = dict.fromkeys(PARTS)


def given(texts, *, identity="given"):
    return GivenDocuments(texts, identity=identity, n_null=3)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def request_of(tokenizer):
    def make(*, needs=ALL, special_ids=(0, 1, 2), chain=WHOLE, **settings):
        settings = {"context_length": 16, "split": [0.6, 0.2, 0.2], **settings}
        return TokenRequest(tokenizer, DataConfig(text=TEXT, **settings), special_ids, needs, chain)

    return make


def sorted_rows(contexts):
    rows = torch.cat(
        [contexts.input_ids.long(), contexts.is_token.long(), contexts.document_index.long()], dim=1
    )
    return sorted(rows.tolist())


def assert_same(one, other):
    assert (one.n_candidates, one.n_rows_skipped, one.is_whole) == (
        other.n_candidates,
        other.n_rows_skipped,
        other.is_whole,
    )
    for part in PARTS:
        assert one.parts[part][3:] == other.parts[part][3:]
        for field, expected in zip(one.parts[part][:3], other.parts[part][:3], strict=True):
            assert torch.equal(field, expected)


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_the_files_hold_the_contexts_of_the_text_in_an_order_of_their_own(tmp_path, request_of, packing):
    documents = given(passages(60))
    request = request_of(packing=packing)
    plain = read_in_memory(documents, request)
    stored = open_tokens(documents, request, cache_dir=tmp_path)
    assert stored.n_candidates == plain.n_candidates
    assert stored.n_rows_skipped == {"null": 3}
    for part in PARTS:
        assert sorted_rows(stored.parts[part]) == sorted_rows(plain.parts[part])
        assert stored.parts[part][3:] == plain.parts[part][3:]
    assert not torch.equal(stored.parts["training"].input_ids.long(), plain.parts["training"].input_ids)


def test_the_order_is_the_same_on_every_worker(tmp_path, request_of):
    one = open_tokens(given(passages(60)), request_of(), cache_dir=tmp_path / "one")
    other = open_tokens(given(passages(60)), request_of(), cache_dir=tmp_path / "other")
    assert_same(one, other)


def test_rows_are_written_in_pieces_with_the_same_bytes(tmp_path, request_of, monkeypatch):
    expected = open_tokens(given(passages(60)), request_of(), cache_dir=tmp_path / "one")
    monkeypatch.setattr("dmsae.token_files.FLUSH_TOKENS", 100)
    monkeypatch.setattr("dmsae.token_files.SHUFFLED_ROWS", 7)
    assert_same(open_tokens(given(passages(60)), request_of(), cache_dir=tmp_path / "other"), expected)


def test_the_text_is_read_once_for_all_who_ask_for_the_same(tmp_path, request_of):
    documents = given(passages(60))
    assert not has_tokens(documents, cache_dir=tmp_path)
    first = open_tokens(documents, request_of(), cache_dir=tmp_path)
    assert has_tokens(documents, cache_dir=tmp_path)
    assert_same(open_tokens(documents, request_of(), cache_dir=tmp_path), first)
    assert documents.n_read == 1


def test_whatever_decides_the_bytes_has_files_of_its_own(tmp_path, request_of):
    documents = given(passages(60))
    others = [
        {"context_length": 17},
        {"packing": "packed"},
        {"prepend_bos": True},
        {"split": [0.5, 0.25, 0.25]},
        {"special_ids": (0, 1)},
        {"needs": {**ALL, "evaluation": 10}},
        {"chain": Chain(0, 2)},
        {"chain": Chain(1, 2)},
    ]
    for settings in ({}, *others):
        open_tokens(documents, request_of(**settings), cache_dir=tmp_path)
    assert documents.n_read == 1 + len(others)
    changed = given(passages(60), identity="changed")
    assert not has_tokens(changed, cache_dir=tmp_path)
    open_tokens(changed, request_of(), cache_dir=tmp_path)
    assert changed.n_read == 1


def test_mapped_ids_may_be_changed_in_memory_and_stay_as_they_are_on_disk(tmp_path, request_of):
    documents = given(passages(60))
    contexts = open_tokens(documents, request_of(), cache_dir=tmp_path).parts["training"]
    before = contexts.input_ids.clone()
    contexts.input_ids.zero_()
    again = open_tokens(documents, request_of(), cache_dir=tmp_path).parts["training"]
    assert torch.equal(again.input_ids, before)


@pytest.mark.parametrize("name", ["training.ids.npy", "evaluation.documents.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["torn", "gone", "empty"])
def test_torn_files_are_never_read(tmp_path, request_of, name, damage):
    documents = given(passages(60))
    expected = read_in_memory(given(passages(60)), request_of())
    open_tokens(documents, request_of(), cache_dir=tmp_path)
    (file,) = tmp_path.rglob(name)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -5])
    found = open_tokens(documents, request_of(), cache_dir=tmp_path)
    assert documents.n_read == 2
    assert sorted_rows(found.parts["training"]) == sorted_rows(expected.parts["training"])
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_text_that_cannot_be_read_leaves_nothing_behind(tmp_path, request_of):
    class Broken(GivenDocuments):
        def read(self, skipped):
            yield from super().read(skipped)
            raise CycleFailed("data_unreadable", "the file ends in the middle")

    with pytest.raises(CycleFailed, match="in the middle"):
        open_tokens(Broken(passages(60)), request_of(), cache_dir=tmp_path)
    assert [path.suffix for path in (tmp_path / "tokens").iterdir()] == [".lock"]


def test_an_empty_part_has_no_row(tmp_path, request_of):
    text = open_tokens(given([]), request_of(), cache_dir=tmp_path)
    assert text.is_whole
    for contexts in text.parts.values():
        assert contexts.input_ids.shape == (0, 16)
    assert text.n_candidates == dict.fromkeys(PARTS, 0)


def test_the_least_recently_used_folders_leave_the_disk(tmp_path, request_of, monkeypatch):
    monkeypatch.setattr("dmsae.token_files.KEPT_FOLDERS", 2)
    texts = [given(passages(60), identity=name) for name in "abc"]
    for age, documents in ((300, texts[0]), (100, texts[1])):
        open_tokens(documents, request_of(), cache_dir=tmp_path)
        newest = max((tmp_path / "tokens").glob("*/"), key=os.path.getmtime)
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    mapped = open_tokens(texts[1], request_of(), cache_dir=tmp_path)
    open_tokens(texts[2], request_of(), cache_dir=tmp_path)
    assert [has_tokens(documents, cache_dir=tmp_path) for documents in texts] == [False, True, True]
    monkeypatch.setattr("dmsae.token_files.KEPT_BYTES", 1)
    before = mapped.parts["training"].input_ids.clone()
    open_tokens(texts[0], request_of(), cache_dir=tmp_path)
    assert [has_tokens(documents, cache_dir=tmp_path) for documents in texts] == [True, False, False]
    assert torch.equal(mapped.parts["training"].input_ids, before)


def test_what_a_killed_trainer_left_is_removed_after_a_day(tmp_path, request_of):
    left = tmp_path / "tokens" / "key.abc.unfinished"
    fresh = tmp_path / "tokens" / "key.def.unfinished"
    for folder in (left, fresh):
        folder.mkdir(parents=True)
        (folder / "training.ids.raw").write_bytes(b"torn")
    os.utime(left, (0, 0))
    open_tokens(given(passages(60)), request_of(), cache_dir=tmp_path)
    assert not left.exists()
    assert fresh.exists()


def read_cold(cache_dir, start, n_read):
    """Read a text when told, and count whether it really was."""
    documents = given(passages(60))
    settings = DataConfig(text=TEXT, context_length=16, split=[0.6, 0.2, 0.2])
    request = TokenRequest(tiny_tokenizer(), settings, (0, 1, 2), ALL)
    start.wait()
    open_tokens(documents, request, cache_dir=cache_dir)
    with n_read.get_lock():
        n_read.value += documents.n_read


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_processes_that_start_cold_give_the_same_and_neither_waits_for_ever(
    tmp_path, request_of, monkeypatch, has_locks
):
    if not has_locks:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
    context = multiprocessing.get_context("fork")
    start, n_read = context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=read_cold, args=(tmp_path, start, n_read)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert n_read.value == 1 or not has_locks
    documents = given(passages(60))
    found = open_tokens(documents, request_of(), cache_dir=tmp_path)
    assert documents.n_read == 0
    assert_same(found, open_tokens(documents, request_of(), cache_dir=tmp_path / "other"))
    assert not list(tmp_path.rglob("*.unfinished"))


def test_counts_do_not_leak_from_one_reading_to_the_next(tmp_path, request_of):
    skipped = Counter(open_tokens(given(passages(9)), request_of(), cache_dir=tmp_path).n_rows_skipped)
    assert skipped == {"null": 3}


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_chains_share_what_is_measured_on_and_divide_what_is_trained_on(tmp_path, request_of, packing):
    documents = given(passages(60))
    whole = open_tokens(documents, request_of(packing=packing), cache_dir=tmp_path)
    chains = [
        open_tokens(documents, request_of(packing=packing, chain=Chain(index, 3)), cache_dir=tmp_path)
        for index in range(3)
    ]
    for chain in chains:
        assert chain.n_candidates["training"] > 0
        for part in ("attribution", "evaluation"):
            assert torch.equal(chain.parts[part].input_ids, whole.parts[part].input_ids)
    n_training = [chain.parts["training"].n_documents for chain in chains]
    assert sum(n_training) == whole.parts["training"].n_documents
    assert sum(chain.n_candidates["training"] for chain in chains) == whole.n_candidates["training"]
    n_others = whole.n_documents - whole.parts["training"].n_documents
    assert [chain.n_documents - n_others for chain in chains] == n_training


def test_a_text_of_which_only_one_part_is_wanted_is_read_for_it_alone(tmp_path, request_of):
    needs = {"training": 0, "attribution": 0, "evaluation": 50}
    text = open_tokens(given(passages(60)), request_of(needs=needs), cache_dir=tmp_path)
    again = open_tokens(given(passages(60)), request_of(needs=needs), cache_dir=tmp_path)
    assert_same(again, text)
    assert text.n_candidates["training"] == text.n_candidates["attribution"] == 0
    assert text.n_candidates["evaluation"] >= 50
