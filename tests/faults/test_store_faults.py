"""The object store away, breaking off, slow or wrong: what is recorded has its bytes, and nothing is lost.

The faults are made by a proxy between workers and the real store; `make faults` makes them last.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import HttpUrl
from sqlalchemy import select

from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings, settings_from
from dmsae.service.tables import Artifact, Cycle
from tests.conftest import RunningServices
from tests.faults.conftest import lasting_crew
from tests.faults.crew import IS_FULL, ROOT, Crew, in_full
from tests.faults.store_proxy import StoreProxy
from worker.patient_store import PatientStore

AWAY_S = 60.0 if IS_FULL else 5.0
SLOW_BYTES_PER_S = 300_000 if IS_FULL else 1_000_000
IN_PARTS_BYTES = 17 << 20
"""Size of a file that is stored in parts."""
DEVICES = ("cpu:0", "cpu:1")


@pytest.fixture(scope="module")
def store(services: RunningServices) -> Iterator[ObjectStore]:
    """The store itself, without the proxy."""
    store = ObjectStore(settings_from(services.env))
    yield store
    store.close()


@pytest.fixture(scope="module")
def staffed(
    services: RunningServices, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Crew, StoreProxy]]:
    """Two workers and a sweeper behind a proxy."""
    folder = tmp_path_factory.mktemp("crew")
    with StoreProxy(services.env["DMSAE_S3_ENDPOINT_URL"]) as proxy:
        env = {"DMSAE_S3_ENDPOINT_URL": proxy.url}
        with lasting_crew(Crew, services, folder, env=env) as crew:
            crew.start_sweeper()
            for device in DEVICES:
                crew.begin_worker(device)
            yield crew, proxy


def assert_all_there(crew: Crew, store: ObjectStore, jobs: list[str], *, n_cycles: int) -> None:
    """Every job succeeded at the first attempt, and the store holds what the rows say, and no loose parts."""
    for job_id in jobs:
        crew.wait_until(job_id, "succeeded", seconds=120)
        assert crew.outcomes(job_id) == ["succeeded"] * n_cycles
    with crew.database.session_scope() as session:
        files = session.scalars(select(Artifact).where(Artifact.job_id.in_(jobs))).all()
    assert len({file.job_id for file in files}) == len(jobs)
    for file in files:
        stored = store.find(file.object_key)
        assert stored is not None
        assert (stored.size_bytes, stored.sha256) == (file.size_bytes, file.sha256)
    assert store.abandon_uploads("jobs/") == 0


def n_succeeded(crew: Crew) -> int:
    with crew.database.session_scope() as session:
        return len(session.scalars(select(Cycle.id).where(Cycle.state == "succeeded")).all())


def test_a_store_that_is_away_is_waited_for_in_the_same_attempt(
    staffed: tuple[Crew, StoreProxy], store: ObjectStore
) -> None:
    crew, proxy = staffed
    jobs = [crew.plant(n_cycles=2, n_steps=10, seconds=2.0, every=3) for _ in range(3)]
    for device in DEVICES:
        crew.wait_for_trainer(device)
    with proxy.having(is_away=True):
        time.sleep(AWAY_S)
        assert n_succeeded(crew) == 0
        assert list(crew.phases().values()) == ["uploading"] * 2
    assert proxy.told["away"] > 10
    assert_all_there(crew, store, jobs, n_cycles=2)
    assert "store_unavailable" in crew.log("worker-cpu-0")


def test_calls_that_break_every_third_time_are_made_again(
    staffed: tuple[Crew, StoreProxy], store: ObjectStore
) -> None:
    crew, proxy = staffed
    with proxy.having(every=3):
        jobs = [crew.plant(n_cycles=2, n_steps=4, every=2) for _ in range(2)]
        jobs.append(crew.plant(size_bytes=IN_PARTS_BYTES, n_cycles=2))
        assert_all_there(crew, store, jobs, n_cycles=2)
    assert min(proxy.told[fault] for fault in ("busy", "reset", "cut")) > 3


@in_full
def test_a_store_that_crawls_costs_time_alone(staffed: tuple[Crew, StoreProxy], store: ObjectStore) -> None:
    crew, proxy = staffed
    with proxy.having(delay_s=0.1, bytes_per_s=SLOW_BYTES_PER_S):
        jobs = [crew.plant(size_bytes=2 << 20) for _ in DEVICES]
        assert_all_there(crew, store, jobs, n_cycles=1)
    assert proxy.told["slowed"] > 2 * 2 * 32


def test_a_wrong_byte_in_a_download_is_found_and_fetched_again(
    staffed: tuple[Crew, StoreProxy], store: ObjectStore
) -> None:
    crew, proxy = staffed
    with proxy.having(spoil_every=4):
        jobs = [crew.plant(n_cycles=2) for _ in range(2)]
        assert_all_there(crew, store, jobs, n_cycles=2)
    assert proxy.told["spoilt"] >= 6


def test_a_wrong_byte_in_a_text_of_unknown_sha256_is_found_too(
    settings: Settings, staffed: tuple[Crew, StoreProxy], store: ObjectStore, tmp_path: Path
) -> None:
    proxy = staffed[1]
    (tmp_path / "text").write_bytes(b"some text" * 1000)
    key = store.put_file(f"uploads/{tmp_path.name}/text", tmp_path / "text").key
    etag = store.describe(key).etag
    proxied = ObjectStore(settings.model_copy(update={"s3_endpoint_url": HttpUrl(proxy.url)}))
    patient = PatientStore(proxied, patience_s=10, has_stopped=lambda: False)
    n_spoilt = proxy.told["spoilt"]
    with proxy.having(spoil_every=3):
        for _ in range(4):
            patient.get_object_if(key, etag, tmp_path / "got")
            assert (tmp_path / "got").read_bytes() == b"some text" * 1000
    assert proxy.told["spoilt"] > n_spoilt
    proxied.close()


BOTH_WAYS = """
import sys
from pathlib import Path
from dmsae.allocator import peak_memory_bytes
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import load_settings
from worker.patient_store import PatientStore
path = Path(sys.argv[1])
store = ObjectStore(load_settings())
patient = PatientStore(store, patience_s=60, has_stopped=lambda: False)
before = peak_memory_bytes()
stored = patient.put_file("tests/broken/a.bin", path)
patient.get_file(stored.key, path.with_name("back.bin"), sha256=stored.sha256)
print((peak_memory_bytes() - before) // 2**20)
"""


@pytest.mark.slow
@in_full
def test_a_large_file_needs_little_memory_even_while_every_third_call_breaks(
    staffed: tuple[Crew, StoreProxy], store: ObjectStore, tmp_path: Path
) -> None:
    crew, proxy = staffed
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    command = [sys.executable, "-c", BOTH_WAYS, str(path)]
    with proxy.having(every=3):
        done = subprocess.run(command, env=crew.env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 150
    assert proxy.told["cut"] > 3
    assert store.abandon_uploads("tests/broken/") == 0
    store.delete_prefix("tests/broken/")
