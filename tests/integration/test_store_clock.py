"""Requests to the store from a machine whose clock is an hour off."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.auth
import httpx
import pytest

from dmsae.errors import NotFound, Unavailable
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings


@pytest.fixture(params=[1, -1], ids=["ahead", "behind"])
def off_by_an_hour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = timedelta(hours=request.param)
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) + shift
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[ObjectStore]:
    store = ObjectStore(settings)
    yield store
    store.close()


@pytest.mark.usefixtures("off_by_an_hour")
@pytest.mark.filterwarnings("ignore:.*datetime.utcnow")
def test_files_are_stored_read_and_linked_by_a_clock_that_is_off(store: ObjectStore, tmp_path: Path) -> None:
    store.check()
    for size_bytes in (1000, 17 << 20):
        path = tmp_path / "file"
        path.write_bytes(b"x" * size_bytes)
        stored = store.put_file(f"tests/clock/{tmp_path.name}", path)
        store.get_file(stored.key, tmp_path / "back", sha256=stored.sha256)
        link = store.presign(stored.key, filename="file")
        assert httpx.get(link, trust_env=False).content == path.read_bytes()
    store.delete(stored.key)
    with pytest.raises(NotFound):
        store.describe(stored.key)


def test_a_wrong_secret_is_refused_and_taken_for_no_clock(settings: Settings) -> None:
    wrong = settings.model_copy(update={"s3_secret_key": type(settings.s3_secret_key)("wrong")})
    store = ObjectStore(wrong)
    with pytest.raises(Unavailable):
        store.check()
    store.close()
