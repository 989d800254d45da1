"""Rows of a list that comes page by page: to go through, or as a table."""

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from dmsae.errors import DmsaeError


class Rows:
    """An iterator of rows, each asked for when it is wanted."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def to_pandas(self) -> Any:
        """Give what is left as a pandas DataFrame, one column a field.

        Raises:
            DmsaeError: pandas is not installed.
        """
        return _frame(self._rows)


class AsyncRows:
    """An asynchronous iterator of rows, each asked for when it is wanted."""

    def __init__(self, rows: AsyncIterator[dict[str, Any]]) -> None:
        self._rows = rows

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._rows

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._rows)

    async def to_pandas(self) -> Any:
        """Give what is left as a pandas DataFrame, one column a field.

        Raises:
            DmsaeError: pandas is not installed.
        """
        return _frame([row async for row in self._rows])


def _frame(rows: Iterable[dict[str, Any]]) -> Any:
    try:
        from pandas import DataFrame
    except ModuleNotFoundError as error:
        raise DmsaeError("A table needs the package 'pandas': pip install pandas.") from error
    return DataFrame.from_records(list(rows))
