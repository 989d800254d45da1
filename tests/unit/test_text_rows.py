"""Which rows of a file are text."""

import tracemalloc

import pytest

from dmsae.errors import CycleFailed
from dmsae.sources import FileText
from dmsae.text_files import find_text_files
from dmsae.text_rows import MAX_PASSAGE_CHARACTERS, Skip, cut_passages, read_rows
from tests.texts import KINDS, json_lines, write_bytes, write_rows


def rows(file, *, column="text"):
    (found,) = find_text_files(FileText(source="files", paths=[str(file)]), inputs=None, allowed_roots=None)
    return list(read_rows(found, column))


def refusal(file, **options):
    with pytest.raises(CycleFailed) as caught:
        rows(file, **options)
    assert caught.value.failure == "data_unreadable"
    assert str(file) in caught.value.message
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_every_kind_is_read_in_order(tmp_path, kind):
    values = [f"row {i}: grüße\n\nund mehr" for i in range(150)]
    values[40] = None
    values[70] = " \n"
    expected = [{40: Skip.NULL, 70: Skip.EMPTY}.get(i, value) for i, value in enumerate(values)]
    assert rows(write_rows(tmp_path / f"rows.{kind}", values, group_rows=7)) == expected


@pytest.mark.parametrize("ending", ["txt", "txt.gz", "txt.zst"])
def test_a_text_without_rows_is_cut_at_blank_lines(tmp_path, ending):
    paragraphs = [f"Paragraph {i}\n" + "x" * 1500 for i in range(6)]
    content = ("\ufeff" + "\r\n \r\n".join(paragraphs)).replace("x\nx", "x\r\nx").encode()
    found = rows(write_bytes(tmp_path / f"book.{ending}", content))
    assert found == ["\n\n".join(paragraphs[i : i + 2]) for i in (0, 2, 4)]


def test_what_is_no_text_is_told_by_its_reason_and_harms_no_neighbour(tmp_path):
    given = {
        b'{"text": "first"}': "first",
        b"": Skip.EMPTY,
        b'{"text": ""}': Skip.EMPTY,
        b'{"text": null}': Skip.NULL,
        b'{"other": "x"}': Skip.NULL,
        b'{"text": 7}': Skip.NOT_TEXT,
        b'{"text": ["a"]}': Skip.NOT_TEXT,
        b'{"text": true}': Skip.NOT_TEXT,
        b'{"text": "\\ud800"}': Skip.NOT_TEXT,
        b'["a list"]': Skip.NOT_JSON,
        b'{"text": ': Skip.NOT_JSON,
        b'{"text": "\xff\xfe"}': Skip.NOT_JSON,
        b'{"text": ' + b"[" * 100_000: Skip.NOT_JSON,
        b'{"text": "last"}': "last",
    }
    file = write_bytes(tmp_path / "rows.jsonl", b"\n".join(given))
    assert rows(file) == list(given.values())


def test_a_line_that_is_too_long_is_passed_over_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr("dmsae.text_rows.MAX_ROW_BYTES", 2**20)
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(32):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "last"}\n')
    tracemalloc.start()
    assert rows(tmp_path / "rows.jsonl") == ["first", Skip.TOO_LONG, "last"]
    assert tracemalloc.get_traced_memory()[1] < 6 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jsonl.zst", "parquet"])
def test_memory_stays_small_however_many_rows_there_are(tmp_path, kind):
    file = write_rows(tmp_path / f"rows.{kind}", ["some words " * 20] * 50_000, group_rows=50_000)
    (found,) = find_text_files(FileText(source="files", paths=[str(file)]), inputs=None, allowed_roots=None)
    next(read_rows(found, "text"))
    tracemalloc.start()
    assert sum(isinstance(row, str) for row in read_rows(found, "text")) == 50_000
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_a_paragraph_without_end_is_cut_so_that_memory_stays_bounded(tmp_path):
    line = "x" * (MAX_PASSAGE_CHARACTERS + 5)
    found = rows(write_bytes(tmp_path / "endless.txt", line.encode()))
    assert [len(piece) for piece in found] == [MAX_PASSAGE_CHARACTERS, 5]
    many = "a line of words\n" * 200_000
    found = rows(write_bytes(tmp_path / "lines.txt", many.encode()))
    assert "\n".join(found) == many.rstrip()
    assert max(map(len, found)) < 1.1 * MAX_PASSAGE_CHARACTERS


def test_passages_hold_whole_paragraphs_and_lose_none():
    lines = ["first", "still first", "", "   indented second", " ", "", "third"]
    passages = list(cut_passages(lines, n_characters=1))
    assert passages == ["first\nstill first", "   indented second", "third"]
    assert list(cut_passages(lines, n_characters=1000)) == ["\n\n".join(passages)]


def test_an_empty_text_has_no_passage():
    assert list(cut_passages(["", "", " ", ""])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, kind):
    file = write_rows(tmp_path / f"rows.{kind}", ["a", "b", "c"], column="content")
    error = refusal(file)
    assert error.param == "data.text.column"
    assert "'text'" in error.message
    assert "'content'" in error.message
    assert rows(file, column="content") == ["a", "b", "c"]


@pytest.mark.parametrize("values", [[1, 2, 3], [["a"], ["b"]], [b"a", b"b"]])
def test_a_parquet_column_that_is_no_text_is_refused_by_its_type(tmp_path, values):
    error = refusal(write_rows(tmp_path / "rows.parquet", values))
    assert error.param == "data.text.column"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_hundred_rows_without_text_at_the_start_are_refused(tmp_path, kind):
    assert "first 100 rows" in refusal(write_rows(tmp_path / f"rows.{kind}", [None] * 100 + ["text"])).message
    assert len(rows(write_rows(tmp_path / f"less.{kind}", [None] * 99 + ["text"]))) == 100


def test_a_short_file_whose_rows_are_all_null_only_has_nothing(tmp_path):
    assert rows(write_rows(tmp_path / "rows.jsonl", [None, None])) == [Skip.NULL, Skip.NULL]
    assert rows(write_bytes(tmp_path / "none.jsonl", b"")) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b"PK\x03\x04 no JSON at all\nnor here\n"),
        ("rows.parquet", b"PAR1 no parquet"),
        ("rows.txt", b"caf\xe9"),
        ("rows.txt", b"\xff\xfet\x00e\x00x\x00t\x00"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content):
    refusal(write_bytes(tmp_path / name, content))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_torn_or_foreign_compressed_file_is_refused_instead_of_ending_early(tmp_path, ending):
    whole = write_bytes(
        tmp_path / f"rows.jsonl.{ending}", json_lines({"text": f"row {i}"} for i in range(9999))
    )
    torn = tmp_path / f"torn.jsonl.{ending}"
    torn.write_bytes(whole.read_bytes()[:-20])
    refusal(torn)
    torn.write_bytes(b"this was never compressed")
    refusal(torn)
