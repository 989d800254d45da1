"""One site for each module: its processes start once, its jobs do not mind each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SHORT_TIMES, RunningServices
from tests.e2e.site import Site
from tests.serving import fresh_database
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def site(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("site")
    model = save_tiny_model(folder / "models" / "tiny")
    times = {f"DMSAE_{name.upper()}": str(value) for name, value in SHORT_TIMES.items()}
    folders = {f"DMSAE_{name.upper()}": str(folder / name) for name in ("cache_dir", "work_dir", "lock_dir")}
    with fresh_database(services) as database_url:
        env = {**services.env, "DMSAE_DATABASE_URL": database_url, **times, **folders}
        site = Site(env, folder, model)
        try:
            site.start()
            yield site
        finally:
            site.stop()
            assert site.trainers() == []
