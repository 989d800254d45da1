"""Whose activations a machine holds: kept over a restart, gone with the activations."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dmsae.service.settings import Settings
from worker.held_keys import FILE, N_KEPT, held_keys, note_key


def settings_of(folder: Path, **fields: Any) -> Settings:
    needed = {
        "database_url": "postgresql+psycopg://x",
        "broker_url": "redis://x",
        "s3_endpoint_url": "http://127.0.0.1:1",
        "s3_access_key": "x",
        "s3_secret_key": "x",
    }
    return Settings(**needed, cache_dir=folder, **fields)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "activations").mkdir()
    return settings_of(tmp_path)


def test_keys_are_remembered_the_newest_first(settings: Settings) -> None:
    for key in ("a", "b", "a"):
        note_key(settings, key)
    assert held_keys(settings) == ("a", "b")


def test_the_oldest_keys_are_forgotten(settings: Settings) -> None:
    for number in range(N_KEPT + 2):
        note_key(settings, str(number))
    assert len(held_keys(settings)) == N_KEPT
    assert "0" not in held_keys(settings)


def test_nothing_is_held_once_the_activations_are_gone(settings: Settings) -> None:
    note_key(settings, "a")
    shutil.rmtree(settings.cache_dir / "activations")
    assert held_keys(settings) == ()


def test_nothing_is_held_where_nothing_is_kept(settings: Settings) -> None:
    note_key(settings, "a")
    assert held_keys(settings_of(settings.cache_dir, activation_cache_bytes=0)) == ()


@pytest.mark.parametrize("text", ["", "[1, 2]", '"a"', "{}"])
def test_a_broken_file_is_as_good_as_none(settings: Settings, text: str) -> None:
    (settings.cache_dir / FILE).write_text(text)
    assert held_keys(settings) == ()
