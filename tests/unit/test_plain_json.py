"""JSON that Postgres takes."""

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dmsae.service.plain_json import plain, plain_text, read_plain_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_whatever_comes_out_is_strict_json_that_postgres_takes(value: Any) -> None:
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False)
    text.encode()
    assert "\\u0000" not in text


@given(JSON)
def test_what_postgres_takes_already_stays_as_it_is(value: Any) -> None:
    once = plain(value)
    assert plain(once) == once


def test_non_finite_numbers_become_null() -> None:
    assert read_plain_json("[NaN, Infinity, -Infinity, 1.5]") == [None, None, None, 1.5]
    assert plain(math.nan) is None


def test_characters_that_postgres_refuses_are_replaced() -> None:
    assert plain_text("a\x00b") == "a\ufffdb"
    assert plain_text("\ud800") == "?"
