"""Where no browser is installed the tests say so, and are not taken for passed where CI runs them."""

from pathlib import Path

import pytest

from tests.browser.chromium import NAMES, find_chromium, may_be_skipped


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DMSAE_CHROMIUM", raising=False)


def test_a_machine_without_chromium_has_none() -> None:
    assert find_chromium() is None


@pytest.mark.parametrize("name", NAMES)
def test_chromium_is_found_under_each_of_its_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / name).chmod(0o755)
    assert find_chromium() == str(tmp_path / name)


def test_the_one_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMSAE_CHROMIUM", str(tmp_path / "mine"))
    assert find_chromium() == str(tmp_path / "mine")


def test_only_ci_insists_on_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert not may_be_skipped()
    monkeypatch.delenv("CI")
    assert may_be_skipped()
