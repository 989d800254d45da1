"""Stored objects reach a trainer whole, unchanged, and once for all cycles of a machine."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmsae.errors import Conflict, CycleFailed, NotFound, Unavailable
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.sources import StoredObject
from worker.object_inputs import ObjectInputs


@pytest.fixture
def store(settings: Settings) -> Iterator[ObjectStore]:
    store = ObjectStore(settings)
    yield store
    store.close()


@pytest.fixture
def put(store: ObjectStore, tmp_path: Path) -> Callable[[str, bytes], StoredObject]:
    """Store bytes under a name of this test's own, and tell what a job would remember of them."""

    def put_bytes(name: str, content: bytes) -> StoredObject:
        file = tmp_path / "to-put"
        file.write_bytes(content)
        key = store.put_file(f"uploads/{tmp_path.name}/{name}", file).key
        facts = store.describe(key)
        return StoredObject(key=key, etag=facts.etag, size_bytes=facts.size_bytes)

    return put_bytes


Put = Callable[[str, bytes], StoredObject]


def spec_of(*stored: StoredObject) -> dict[str, Any]:
    text = {"source": "objects", "objects": [one.model_dump() for one in stored]}
    return {"config": {"data": {"text": text}}}


def go_on() -> bool:
    return False


def test_an_object_is_fetched_only_while_its_etag_stands(
    store: ObjectStore, put: Put, tmp_path: Path
) -> None:
    first = put("a.txt", b"first" * 300_000)
    assert first.etag is not None
    store.get_object_if(first.key, first.etag, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"first" * 300_000
    put("a.txt", b"second")
    with pytest.raises(Conflict):
        store.get_object_if(first.key, first.etag, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    store.delete(first.key)
    with pytest.raises(NotFound):
        store.get_object_if(first.key, first.etag, tmp_path / "other")


def test_objects_lie_under_their_names_and_a_later_cycle_needs_no_store(
    settings: Settings, store: ObjectStore, put: Put, tmp_path: Path
) -> None:
    both = [put("a.txt", b"one"), put("b.jsonl", b"two"), put("a.txt", b"one")]
    inputs = ObjectInputs(tmp_path / "cache", "host.cpu-0")
    inputs.fetch(spec_of(*both), store, has_stopped=go_on)
    assert [(inputs.folder / one.file_name).read_bytes() for one in both] == [b"one", b"two", b"one"]
    inputs.release()
    assert not inputs.folder.exists()
    away = ObjectStore(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
    inputs.fetch(spec_of(*both), away, has_stopped=go_on)
    away.close()
    assert sorted(path.read_bytes() for path in inputs.folder.iterdir()) == [b"one", b"two"]
    inputs.release()


@pytest.mark.parametrize(("change", "told"), [("other", "holds other bytes"), ("none", "is gone")])
def test_an_object_that_changed_or_went_ends_the_attempt_and_leaves_nothing(
    store: ObjectStore, put: Put, tmp_path: Path, change: str, told: str
) -> None:
    kept, changed = put("a.txt", b"one"), put("b.txt", b"two")
    if change == "other":
        put("b.txt", b"owt")
    else:
        store.delete(changed.key)
    inputs = ObjectInputs(tmp_path / "cache", "host.cpu-0")
    with pytest.raises(CycleFailed, match=told) as caught:
        inputs.fetch(spec_of(kept, changed), store, has_stopped=go_on)
    assert (caught.value.failure, caught.value.param) == ("data_unreadable", "data.text.objects.1")
    assert [path.name for path in inputs.folder.iterdir()] == [kept.file_name]
    inputs.release()


def test_a_store_that_does_not_answer_is_worth_another_try(
    settings: Settings, put: Put, tmp_path: Path
) -> None:
    stored = put("a.txt", b"one")
    away = ObjectStore(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
    inputs = ObjectInputs(tmp_path / "cache", "host.cpu-0")
    with pytest.raises(Unavailable):
        inputs.fetch(spec_of(stored), away, has_stopped=go_on)
    away.close()
    inputs.release()


def test_the_least_recently_used_make_room_and_those_in_use_stay(
    store: ObjectStore, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.object_inputs.KEPT_BYTES", 250)
    old, used, newest = (put(f"{name}.txt", name.encode() * 100) for name in "abc")
    mine, others = (ObjectInputs(tmp_path / "cache", f"host.cpu-{slot}") for slot in (0, 1))
    others.fetch(spec_of(used), store, has_stopped=go_on)
    mine.fetch(spec_of(old), store, has_stopped=go_on)
    mine.release()
    kept = tmp_path / "cache" / "objects"
    os.utime(kept / used.file_name, (0, 0))
    mine.fetch(spec_of(newest), store, has_stopped=go_on)
    assert {path.name for path in kept.iterdir() if path.is_file()} == {used.file_name, newest.file_name}
    assert (others.folder / used.file_name).read_bytes() == b"b" * 100
    mine.release()
    others.release()


def test_what_a_dead_worker_held_is_let_go_and_what_a_live_one_holds_is_not(
    store: ObjectStore, put: Put, tmp_path: Path
) -> None:
    stored = put("a.txt", b"one")
    live = ObjectInputs(tmp_path / "cache", "host.cpu-1")
    live.fetch(spec_of(stored), store, has_stopped=go_on)
    dead = live.folder.with_name("gone.cpu-0")
    dead.mkdir()
    os.link(live.folder / stored.file_name, dead / stored.file_name)
    mine = ObjectInputs(tmp_path / "cache", "host.cpu-0")
    mine.fetch(spec_of(stored), store, has_stopped=go_on)
    assert not dead.exists()
    assert (live.folder / stored.file_name).exists()
    mine.release()
    live.release()


def test_a_kept_file_that_a_power_failure_tore_is_fetched_again(
    store: ObjectStore, put: Put, tmp_path: Path
) -> None:
    stored = put("a.txt", b"whole")
    inputs = ObjectInputs(tmp_path / "cache", "host.cpu-0")
    inputs.fetch(spec_of(stored), store, has_stopped=go_on)
    inputs.release()
    (tmp_path / "cache" / "objects" / stored.file_name).write_bytes(b"")
    inputs.fetch(spec_of(stored), store, has_stopped=go_on)
    assert (inputs.folder / stored.file_name).read_bytes() == b"whole"
    inputs.release()
