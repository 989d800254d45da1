"""Which files hold a text."""

import pytest

from dmsae.errors import CycleFailed
from dmsae.sources import FileText, ObjectText, StoredObject
from dmsae.text_files import find_local_files, find_text_files


def files(*paths):
    return FileText(source="files", paths=list(map(str, paths)))


def found(*paths, roots=None):
    return [file.name for file in find_local_files(list(map(str, paths)), allowed_roots=roots)]


def refusal(call):
    with pytest.raises(CycleFailed) as caught:
        call()
    assert caught.value.failure == "data_unreadable"
    return caught.value


@pytest.fixture
def folder(tmp_path):
    root = tmp_path.resolve() / "root"
    for name in ("b.txt", "a.jsonl", "deep/c.parquet", "deep/er/d.txt.gz", ".hidden/e.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")
    return root


def test_globs_find_files_sorted_and_each_once_however_often_it_is_named(folder):
    expected = [str(folder / name) for name in ("a.jsonl", "b.txt", "deep/c.parquet", "deep/er/d.txt.gz")]
    assert found(folder / "**", folder / "b.txt", folder / "**/*.parquet") == expected
    assert found(folder / "*.txt") == [str(folder / "b.txt")]
    assert found(folder / "[ab].*") == expected[:2]


def test_a_file_that_two_names_lead_to_is_read_once(folder):
    (folder / "again.txt").symlink_to(folder / "b.txt")
    assert found(folder / "*.txt") == [str(folder / "again.txt")]


def test_a_name_that_holds_a_wildcards_character_is_still_a_name(folder):
    (folder / "part[1].txt").write_text("text")
    assert found(folder / "part[1].txt") == [str(folder / "part[1].txt")]


def test_a_loop_of_links_ends(folder):
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "deep" / "other").symlink_to(folder)
    assert len(found(folder / "**")) == 4


@pytest.mark.parametrize("path", ["relative.txt", "/tmp/../etc/passwd", "/a\0b.txt"])
def test_a_path_must_be_absolute_and_plain(path):
    error = refusal(lambda: find_local_files(["/nowhere", path][1:], allowed_roots=None))
    assert "absolute path" in error.message
    assert error.param == "data.text.paths.0"


def test_a_path_or_glob_that_matches_nothing_is_named(folder):
    for path in (folder / "*.jsonl.zst", folder / "absent.txt", folder / "deep"):
        assert (
            str(path) in refusal(lambda path=path: find_local_files([str(path)], allowed_roots=None)).message
        )


def test_only_what_lies_under_an_allowed_root_is_read_links_followed(folder, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    (folder / "link.txt").symlink_to(outside)
    (folder / "door").symlink_to(tmp_path)
    assert found(folder / "b.txt", roots=[folder]) == [str(folder / "b.txt")]
    for path in (outside, folder / "link.txt", folder / "*.txt", folder / "door" / "*.txt", tmp_path / "**"):
        message = refusal(lambda path=path: find_local_files([str(path)], allowed_roots=[folder])).message
        assert "allowed root" in message


def test_a_root_may_itself_be_a_link(folder, tmp_path):
    (tmp_path / "data").symlink_to(folder)
    assert found(folder / "b.txt", roots=[tmp_path / "data"]) == [str(folder / "b.txt")]
    assert found(tmp_path / "data" / "b.txt", roots=[folder]) == [str(tmp_path / "data" / "b.txt")]


def test_no_root_at_all_allows_nothing_and_roots_not_given_allow_all(folder):
    refusal(lambda: find_local_files([str(folder / "b.txt")], allowed_roots=[]))
    assert found(folder / "b.txt", roots=None)


@pytest.mark.parametrize("name", ["notes.md", "rows.json", "text", "rows.csv.gz", "rows.jsonl.bz2"])
def test_a_file_of_another_kind_is_refused_by_name(folder, name):
    (folder / name).write_text("text")
    error = refusal(lambda: find_text_files(files(folder / name), inputs=None, allowed_roots=None))
    assert name in error.message
    assert ".parquet" in error.message


def test_a_link_of_the_right_ending_may_lead_to_a_file_without_one(folder):
    (folder / "blob").write_text("text")
    (folder / "rows.jsonl").symlink_to(folder / "blob")
    (file,) = find_text_files(files(folder / "rows.jsonl"), inputs=None, allowed_roots=[folder])
    assert file.format == ".jsonl"


def test_objects_keep_their_order_and_lie_in_the_inputs_folder(tmp_path):
    objects = [StoredObject(key=f"uploads/u{i}/rows.jsonl.zst", etag=f"e{i}") for i in (2, 1)]
    text = ObjectText(source="objects", objects=objects)
    for stored in objects:
        (tmp_path / stored.file_name).write_bytes(stored.key.encode())
    found_files = find_text_files(text, inputs=tmp_path, allowed_roots=[])
    assert [(file.name, file.format, file.compression) for file in found_files] == [
        (stored.key, ".jsonl", "zstd") for stored in objects
    ]
    with found_files[0].open_raw() as raw:
        assert raw.read() == objects[0].key.encode()


def test_an_object_that_nobody_fetched_is_named(tmp_path):
    text = ObjectText(source="objects", objects=[StoredObject(key="uploads/u1/rows.txt")])
    for inputs in (None, tmp_path):
        (file,) = find_text_files(text, inputs=inputs, allowed_roots=None)

        def read(file=file):
            with file.open():
                pass

        assert "uploads/u1/rows.txt" in refusal(read).message


def test_a_changed_file_has_another_version(folder):
    def version():
        (file,) = find_text_files(files(folder / "b.txt"), inputs=None, allowed_roots=None)
        return file.version

    before = version()
    assert version() == before
    (folder / "b.txt").write_text("longer text")
    assert version() != before
