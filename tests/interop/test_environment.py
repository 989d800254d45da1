"""Claims about the peers' environment: made once, whole or not at all, and found again."""

import sys
import threading
from pathlib import Path

import pytest

from tests.interop import environment
from tests.interop.conftest import find_peers
from tests.interop.environment import environment_folder, interpreter, make


class Installer:
    """Makes the least that an environment is, and counts how often."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.found: list[list[str]] = []

    def __call__(self, folder: Path) -> None:
        self.found.append([file.name for file in folder.iterdir()] if folder.exists() else [])
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
        if self.fails:
            raise KeyboardInterrupt


def test_a_complete_environment_is_left_alone(tmp_path: Path) -> None:
    install = Installer()
    for _ in range(2):
        make(tmp_path / "peers", install)
    assert install.found == [[]]
    assert interpreter(tmp_path / "peers") == tmp_path / "peers" / "bin" / "python"


def test_half_an_environment_is_made_again_from_nothing(tmp_path: Path) -> None:
    Installer()(tmp_path / "peers")
    assert interpreter(tmp_path / "peers") is None
    install = Installer()
    make(tmp_path / "peers", install)
    assert install.found == [[]]
    assert interpreter(tmp_path / "peers") is not None


def test_an_interrupted_environment_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "peers", Installer(fails=True))
    assert not (tmp_path / "peers").exists()


def test_an_environment_whose_python_is_gone_is_made_again(tmp_path: Path) -> None:
    make(tmp_path / "peers", Installer())
    (tmp_path / "peers" / "bin" / "python").unlink()
    (tmp_path / "peers" / "bin" / "python").symlink_to(tmp_path / "gone")
    make(tmp_path / "peers", Installer())
    assert interpreter(tmp_path / "peers") is not None


def test_of_two_at_once_one_makes_it(tmp_path: Path) -> None:
    install, both_started = Installer(), threading.Barrier(2)

    def start() -> None:
        both_started.wait()
        make(tmp_path / "peers", install)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(install.found) == 1


def test_other_pins_want_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = environment_folder()
    (tmp_path / "pins.txt").write_text("torch==0.0.0\n")
    monkeypatch.setattr(environment, "CONSTRAINTS", tmp_path / "pins.txt")
    assert before.parent == environment_folder().parent == tmp_path / "dmsae" / "interop"
    assert environment_folder() != before


def test_without_an_environment_tests_are_skipped_but_never_by_make_interop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DMSAE_INTEROP", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make interop"):
        find_peers()
    monkeypatch.setenv("DMSAE_INTEROP", "required")
    with pytest.raises(pytest.fail.Exception, match="make interop"):
        find_peers()
