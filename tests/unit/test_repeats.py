"""Which jobs have the same result: those whose configs name model and text to the bit and say the same."""

from typing import Any

import pytest

from dmsae.config import DistillationConfig
from dmsae.presets import PRESETS
from dmsae.service.code_version import code_version
from dmsae.service.repeats import config_digest

OBJECT = {"key": "uploads/a/b.txt", "etag": "abc", "size_bytes": 3}
TEXTS: dict[str, Any] = {
    "objects": {"source": "objects", "objects": [OBJECT]},
    "files": {"source": "files", "paths": ["/data/a.txt"]},
}


def digest(**changes: Any) -> str | None:
    return config_digest(DistillationConfig.model_validate({**PRESETS["demo"], **changes}))


def test_the_same_settings_have_the_same_digest_and_any_other_one_another() -> None:
    assert digest() == digest(seed=0, n_threads=2)
    others = [
        digest(seed=1),
        digest(n_threads=3),
        digest(n_cycles=2),
        digest(data={"text": TEXTS["objects"]}),
    ]
    assert len({digest(), *others}) == 5
    assert None not in others


def test_a_time_limit_decides_nothing_about_the_result() -> None:
    assert digest(time_limit_s=5) == digest()


@pytest.mark.parametrize(
    "changes",
    [{"model": {"source": "local", "path": "/models/a"}}, {"data": {"text": TEXTS["files"]}}],
    ids=["model", "text"],
)
def test_what_lies_under_a_path_may_be_something_else_tomorrow(changes: dict[str, Any]) -> None:
    assert digest(**changes) is None


def test_the_code_has_one_name() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 16
