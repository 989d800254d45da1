"""A long list on its way to a slow client: what is read ahead, and what is held meanwhile."""

import asyncio
from typing import Any, cast

import pytest

from api.dependencies import Parts
from api.latent_schemas import OriginRow
from api.row_streams import BATCH, Format, Rows, stream_rows

N_BATCHES = 20
ROW = OriginRow(cycle_index=1, origin_job_id="job_1", origin_cycle=0, n_latents=7)


class Reader:
    """Stands for parts and their database: counts what was read, and whether a transaction is open."""

    def __init__(self) -> None:
        self.database, self.n_read, self.is_open = self, 0, False

    def run(self, use_case: Any) -> Any:
        self.is_open = True
        try:
            return use_case(None)
        finally:
            self.is_open = False

    def read(self, _: Any, cursor: str | None) -> tuple[Rows, str | None]:
        assert cursor == (str(self.n_read) if self.n_read else None)
        self.n_read += 1
        return [ROW] * BATCH, str(self.n_read) if self.n_read < N_BATCHES else None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_slow_client_holds_one_batch_and_no_transaction(kind: Format) -> None:
    async def take() -> list[int]:
        reader, sizes = Reader(), []
        answer = stream_rows(cast("Parts", reader), OriginRow, reader.read, kind=kind, name="origins")
        async for chunk in answer.body_iterator:
            sizes.append(len(chunk))
            assert not reader.is_open
            assert reader.n_read <= len(sizes)
        assert reader.n_read == N_BATCHES
        return sizes

    sizes = asyncio.run(take())
    assert len(sizes) == N_BATCHES + (kind == "parquet")
    assert max(sizes[1:N_BATCHES]) <= 2 * min(sizes[1:N_BATCHES])
