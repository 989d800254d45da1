"""Which documents, in which order, in which part."""

from collections import Counter

import huggingface_hub
import pytest

from dmsae import hub_client
from dmsae.documents import PARTS, Chain, chain_of, make_document, open_documents, part_of
from dmsae.errors import CycleFailed
from dmsae.sources import BuiltinText, FileText, HubText, ObjectText, StoredObject
from tests.fake_hub import REVISION, fake_hub
from tests.texts import json_lines, passages, write_bytes, write_rows

TEXT = BuiltinText(source="builtin", name="python-topics")
SHARES = [0.8, 0.1, 0.1]


def read(text, **options):
    skipped = Counter()
    return [document.text for document in open_documents(text, **options).read(skipped)], dict(skipped)


def file_text(*paths, column="text"):
    return FileText(source="files", paths=list(map(str, paths)), column=column)


@pytest.fixture(scope="module")
def documents():
    return list(open_documents(TEXT).read(Counter()))


def test_the_builtin_text_gives_passages_of_about_two_thousand_characters(documents):
    lengths = sorted(len(document.text) for document in documents)
    assert len(documents) > 150
    assert 1500 < lengths[len(lengths) // 2] < 3000


def test_no_builtin_document_occurs_twice_and_their_order_is_that_of_their_digests(documents):
    digests = [document.digest for document in documents]
    assert digests == sorted(set(digests))
    assert len({document.text for document in documents}) == len(documents)


def test_every_document_falls_into_exactly_one_part_near_its_share(documents):
    n_characters = Counter()
    for document in documents:
        n_characters[part_of(document.digest, SHARES)] += len(document.text)
    shares = [n_characters[part] / n_characters.total() for part in PARTS]
    assert shares == pytest.approx(SHARES, abs=0.07)


def test_a_document_keeps_its_part_wherever_it_stands(tmp_path):
    texts = passages(60)
    parts = {text: part_of(make_document(text).digest, SHARES) for text in texts}
    file = write_rows(tmp_path / "rows.jsonl", texts[::-1] + texts[:5])
    found = list(open_documents(file_text(file)).read(Counter()))
    assert all(part_of(document.digest, SHARES) == parts[document.text] for document in found)
    assert set(parts.values()) == set(PARTS)


def test_files_of_all_kinds_are_read_one_after_the_other_and_duplicates_stay(tmp_path):
    write_rows(tmp_path / "a.jsonl.zst", ["a 1", None, "a 2"])
    write_rows(tmp_path / "deep" / "b.parquet", ["b 1", " ", "a 1"])
    write_bytes(tmp_path / "c.txt.gz", b"c 1\n\nstill c 1\n")
    found, skipped = read(file_text(tmp_path / "**"))
    assert found == ["a 1", "a 2", "c 1\n\nstill c 1", "b 1", "a 1"]
    assert skipped == {"null": 1, "empty": 1}


def test_reading_twice_gives_the_same_and_counts_anew(tmp_path):
    documents = open_documents(file_text(write_rows(tmp_path / "rows.jsonl", ["one", None, "two"])))
    for _ in range(2):
        skipped = Counter()
        assert [document.text for document in documents.read(skipped)] == ["one", "two"]
        assert skipped == {"null": 1}


def test_objects_are_read_in_the_order_of_the_request(tmp_path):
    stored = [StoredObject(key=f"uploads/{name}", etag="1") for name in ("z.jsonl", "a.jsonl")]
    for each in stored:
        write_rows(tmp_path / each.file_name, [each.key])
    found, _ = read(ObjectText(source="objects", objects=stored), inputs=tmp_path, allowed_roots=[])
    assert found == ["uploads/z.jsonl", "uploads/a.jsonl"]


def test_a_check_reads_no_further_than_the_first_text(tmp_path):
    write_bytes(tmp_path / "a.jsonl", json_lines([{"text": None}]))
    write_bytes(tmp_path / "b.jsonl", json_lines([{"text": "text"}]))
    (tmp_path / "c.parquet").write_bytes(b"never opened")
    documents = open_documents(file_text(tmp_path / "*"))
    documents.check()
    with pytest.raises(CycleFailed, match=r"c\.parquet"):
        list(documents.read(Counter()))


def test_a_check_refuses_a_column_before_anything_else_is_read(tmp_path):
    file = write_rows(tmp_path / "rows.parquet", ["text"], column="body")
    with pytest.raises(CycleFailed, match="'body'") as caught:
        open_documents(file_text(file)).check()
    assert (caught.value.failure, caught.value.param) == ("data_unreadable", "data.text.column")
    open_documents(file_text(file, column="body")).check()


def test_files_have_another_identity_once_they_changed_or_another_column_is_asked_for(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", ["one"])
    identity = open_documents(file_text(file)).identity
    assert open_documents(file_text(file)).identity == identity
    assert open_documents(file_text(file, column="other")).identity != identity
    write_rows(file, ["one", "two"])
    assert open_documents(file_text(file)).identity != identity


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 2.0)
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        huggingface_hub.close_session()


def test_a_dataset_is_streamed_from_the_hub_in_every_kind_of_file(tmp_path, hub):
    folder = tmp_path / "dataset"
    write_rows(folder / "train" / "a.jsonl.zst", ["a 1", 7])
    write_rows(folder / "train" / "b.parquet", ["b 1", "b 2", "b 3"])
    write_rows(folder / "train" / "c.jsonl", ["c 1"])
    write_bytes(folder / "train" / "d.txt", b"d 1\n")
    hub.add("lab/text", folder, kind="datasets")
    text = HubText(source="hub", id="lab/text", revision=REVISION, files=["train/*"])
    documents = open_documents(text)
    assert not hub.seen
    assert documents.identity
    assert not hub.seen
    documents.check()
    assert read(text) == (["a 1", "b 1", "b 2", "b 3", "c 1", "d 1"], {"not_text": 1})


def test_chains_divide_the_training_documents_and_share_all_others(documents):
    chains = [Chain(index, 3) for index in range(3)]
    for document in documents:
        found = [chain.part_of(document.digest, SHARES) for chain in chains]
        part = part_of(document.digest, SHARES)
        assert sorted(map(str, found)) == sorted(
            map(str, [part] * 3 if part != "training" else [part, None, None])
        )


def test_each_chain_has_about_its_share_of_documents_that_no_other_has(documents):
    counts = Counter(chain_of(document.digest, 4) for document in documents)
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(n == pytest.approx(len(documents) / 4, rel=0.4) for n in counts.values())
    assert {chain_of(document.digest, 1) for document in documents} == {0}
