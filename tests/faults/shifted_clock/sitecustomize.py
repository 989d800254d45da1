"""Shifts the wall clock of an interpreter that finds this on its PYTHONPATH, by `SHIFT_CLOCK_S` seconds.

Only what Python asks of the clock: `time.time`, `time.time_ns`, and `datetime`'s and `date`'s idea of now.
"""

import datetime
import os
import time
from typing import Any

SHIFT_S = int(os.environ.get("SHIFT_CLOCK_S", "0"))

_real_time, _real_time_ns = time.time, time.time_ns
_real_datetime, _real_date = datetime.datetime, datetime.date


class _LikeReal(type):
    """Takes instances of the real class, which compiled code makes, for its own."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__mro__[1])

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.__mro__[1])


class ShiftedDatetime(_real_datetime, metaclass=_LikeReal):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _real_datetime.now(tz) + datetime.timedelta(seconds=SHIFT_S)

    @classmethod
    def utcnow(cls) -> Any:
        return _real_datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=SHIFT_S)


class ShiftedDate(_real_date, metaclass=_LikeReal):
    @classmethod
    def today(cls) -> Any:
        return ShiftedDatetime.now().date()


time.time = lambda: _real_time() + SHIFT_S
time.time_ns = lambda: _real_time_ns() + SHIFT_S * 1_000_000_000
datetime.datetime = ShiftedDatetime  # type: ignore[misc]
datetime.date = ShiftedDate  # type: ignore[misc]
