"""One site for all these tests: its processes start once, its jobs do not mind each other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHORT_TIMES, RunningServices
from tests.e2e.site import Site
from tests.fake_hub import FakeHub, fake_hub
from tests.serving import fresh_database
from tests.tiny import save_tiny_model

TWIN: dict[str, Any] = {"n_cycles": 3, "seed": 11, "training": {"n_tokens": 131_072, "epochs": 6}}
"""A distillation that trains for a second or two a cycle: long enough to be hit in the middle."""


HUB_TOKEN = "hf_ofNoRealHubAtAll0123456789"


@pytest.fixture(scope="package")
def hub() -> Iterator[FakeHub]:
    """A model hub that the site's trainers ask."""
    with fake_hub() as hub:
        yield hub


@pytest.fixture(scope="package")
def site(services: RunningServices, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("site")
    model = save_tiny_model(folder / "models" / "tiny")
    short = {**SHORT_TIMES, "heartbeat_s": 0.1, "retry_backoff_s": 0.1}
    times = {f"DMSAE_{name.upper()}": str(value) for name, value in short.items()}
    folders = {f"DMSAE_{name.upper()}": str(folder / name) for name in ("cache_dir", "work_dir", "lock_dir")}
    with fresh_database(services) as database_url:
        asked = {"HF_ENDPOINT": hub.url, "HF_TOKEN": HUB_TOKEN}
        env = {**services.env, "DMSAE_DATABASE_URL": database_url, **times, **folders, **asked}
        site = Site(env, folder, model)
        try:
            site.start()
            yield site
        finally:
            site.stop()
            assert site.trainers() == []


@pytest.fixture(scope="package")
def twins(site: Site) -> list[str]:
    """Two jobs of the same settings that ran undisturbed, side by side."""
    job_ids = [site.submit(**TWIN) for _ in range(2)]
    for job_id in job_ids:
        job = site.wait_until_over(job_id, seconds=240)
        assert job["state"] == "succeeded", (job["error"], site.get(f"/jobs/{job_id}/logs"))
    return job_ids
