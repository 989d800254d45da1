"""When a worker takes a cycle, by the room on its disk."""

from pathlib import Path

from dmsae.service.settings import Settings
from worker.disk import DiskRoom


def settings(folder: Path, *, reserve_bytes: int, idle_wake_s: float = 0.0) -> Settings:
    places = {"work_dir": folder / "work" / "deep", "cache_dir": folder}
    return Settings.model_construct(disk_reserve_bytes=reserve_bytes, idle_wake_s=idle_wake_s, **places)


def test_a_worker_begins_where_there_is_room_even_in_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert DiskRoom().may_begin(settings(tmp_path, reserve_bytes=1))
    assert not DiskRoom().may_begin(settings(tmp_path, reserve_bytes=1 << 62))


def test_after_a_cycle_that_did_not_fit_a_worker_rests_a_while(tmp_path: Path) -> None:
    room, long, short = DiskRoom(), settings(tmp_path, reserve_bytes=0, idle_wake_s=60.0), 0.0
    room.rest(long)
    assert not room.may_begin(long)
    room.rest(settings(tmp_path, reserve_bytes=0, idle_wake_s=short))
    assert room.may_begin(long)
