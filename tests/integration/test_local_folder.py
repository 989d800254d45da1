"""Which folders may be a data folder, and what becomes of their rights."""

import json
import os
import shutil
import stat
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

import pytest

from dmsae.errors import Conflict, Forbidden, InvalidConfig, Unavailable
from dmsae.local import environment, paths, ports, postgres
from dmsae.local.passwords import load_or_generate


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_data_folder_is_private_and_its_parents_stay_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = paths.open_data_folder(tmp_path / "data")
    folder.root.chmod(0o755)
    paths.open_data_folder(folder.root)
    assert {mode_of(path) for path in (folder.root, folder.logs, folder.demo)} == {0o700}
    assert mode_of(tmp_path) == 0o755


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(Conflict, match=r"thesis\.tex"):
        paths.open_data_folder(tmp_path)
    assert mode_of(tmp_path) == 0o755
    with pytest.raises(Conflict, match="is a file"):
        paths.open_data_folder(tmp_path / "thesis.tex")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(Forbidden, match="belongs to the user with id 65534"):
        paths.open_data_folder(tmp_path)


def test_a_nearly_full_disk_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100 << 30, 99 << 30, 12 << 20))
    with pytest.raises(Unavailable, match="12 MiB are free, at least 1024 MiB are needed"):
        paths.open_data_folder(tmp_path / "data")


def test_passwords_are_made_once_and_only_their_user_reads_them(tmp_path: Path) -> None:
    made = load_or_generate(tmp_path / "secrets.json")
    assert load_or_generate(tmp_path / "secrets.json") == made
    assert mode_of(tmp_path / "secrets.json") == 0o600
    assert made.postgres not in repr(made)
    (tmp_path / "secrets.json").write_text("{}")
    with pytest.raises(Conflict, match="is damaged"):
        load_or_generate(tmp_path / "secrets.json")


def test_a_folder_made_before_there_were_webhooks_is_given_a_key_once(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = asdict(load_or_generate(path))
    older = {name: value for name, value in made.items() if name != "webhooks_key"}
    path.write_text(json.dumps(older))
    added = load_or_generate(path)
    assert load_or_generate(path) == added
    assert len(added.webhooks_key) >= 16
    assert {**made, "webhooks_key": added.webhooks_key} == asdict(added)
    assert mode_of(path) == 0o600


def test_a_remembered_port_is_kept_unless_somebody_took_it() -> None:
    free, taken = ports.pick_free(2)
    import socket

    with socket.create_server(("127.0.0.1", taken)):
        chosen = ports.choose(["a", "b", "c"], {"a": free, "b": taken})
    assert chosen["a"] == free
    assert chosen["b"] != taken
    assert len(set(chosen.values())) == 3


def test_a_stale_pid_file_that_names_a_stranger_does_not_keep_postgres_from_starting(tmp_path: Path) -> None:
    for name, content in (("PG_VERSION", postgres.VERSION), ("postmaster.pid", f"{os.getpid()}\n")):
        (tmp_path / name).write_text(content)
    postgres.Postgres(tmp_path, tmp_path / "log", 1, "x").prepare()
    assert not (tmp_path / "postmaster.pid").exists()


def test_only_what_the_environment_does_not_name_is_started() -> None:
    assert environment.embedded_names({}) == ["postgres", "valkey", "s3"]
    assert environment.embedded_names({"DMSAE_DATABASE_URL": "postgresql+psycopg://db/x"}) == ["valkey", "s3"]
    with pytest.raises(InvalidConfig, match="DMSAE_S3_SECRET_KEY"):
        environment.embedded_names({"DMSAE_S3_ENDPOINT_URL": "http://s3", "DMSAE_S3_ACCESS_KEY": "a"})
