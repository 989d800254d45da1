"""A worker for the tests of what it does with an attempt."""

from collections.abc import Iterator

import pytest

from dmsae.service.database import Database
from dmsae.service.settings import Settings
from tests.worker_bench import Bench, bench_of


@pytest.fixture
def bench(settings: Settings, database: Database) -> Iterator[Bench]:
    yield from bench_of(settings, database)
