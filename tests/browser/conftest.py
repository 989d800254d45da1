"""One browser and one lab for all these tests; each has a tab of its own, with nothing stored in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.chromium import MISSING, find_chromium, may_be_skipped
from tests.browser.lab import Lab, plant_jobs
from tests.browser.tab import PATIENCE_MS, Tab, opened
from tests.conftest import SHORT_TIMES, RunningServices
from tests.e2e.site import Site
from tests.serving import fresh_database
from tests.tiny import save_tiny_model

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those tests last that wait for what the lab's workers do meanwhile."""
    ours = [index for index, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[index] for index in ours), key=_waits)
    for index, item in zip(ours, ordered, strict=True):
        items[index] = item


def _waits(item: pytest.Item) -> bool:
    return "finished" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def chromium() -> str:
    """The machine's Chromium; without one the tests are skipped, or fail where CI runs them."""
    path = find_chromium()
    if path is not None:
        return path
    if may_be_skipped():
        pytest.skip(MISSING)
    pytest.fail(MISSING)


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def lab(
    chromium: str,  # noqa: ARG001 (nothing starts where there is none)
    services: RunningServices,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("lab")
    model = save_tiny_model(folder / "models" / "tiny")
    short = {**SHORT_TIMES, "heartbeat_s": 0.2, "retry_backoff_s": 0.1, "affinity_wait_s": 1.0}
    times = {f"DMSAE_{name.upper()}": str(value) for name, value in short.items()}
    folders = {f"DMSAE_{name.upper()}": str(folder / name) for name in ("cache_dir", "work_dir", "lock_dir")}
    with fresh_database(services) as database_url:
        plant_jobs(database_url.replace("+psycopg", ""))
        site = Site({**services.env, "DMSAE_DATABASE_URL": database_url, **times, **folders}, folder, model)
        try:
            site.start()
            lab = Lab(site)
            lab.begin()
            yield lab
        finally:
            site.stop()
            assert site.trainers() == []


@pytest.fixture(scope="package")
def finished(lab: Lab) -> Lab:
    """The lab, once its distillation and the training around it have succeeded."""
    lab.finish()
    return lab


@pytest.fixture
def tab(browser: Browser, lab: Lab) -> Iterator[Tab]:
    with opened(browser, lab.url) as tab:
        yield tab
