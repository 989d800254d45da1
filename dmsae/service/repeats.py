"""Was the same work done before? Same resolved config, same data, same code: then the result is the same.

What lies on a worker's disk under a path may be something else tomorrow, so jobs that read such a model or
text are never called the same.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ARRAY, Text, bindparam, func, select, true
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION, CycleConfig
from dmsae.service.code_version import code_version
from dmsae.service.tables import IS_REPEATABLE, Cycle, Job

PINNED_TEXTS = ("builtin", "hub", "objects")
"""Sources of texts that a config names to the bit: by the code, by a commit, by etags."""
NO_RESULT: dict[str, Any] = {"time_limit_s": True, "core": {"published_as": True}}
"""Settings that decide nothing about the result."""
_OTHER_CODE = select(Cycle.id).where(
    Cycle.job_id == Job.id,
    Cycle.state == "succeeded",
    Cycle.code_version.is_distinct_from(bindparam("code")),
)
_UNNESTED = func.unnest(bindparam("digests", type_=ARRAY(Text)))
_GIVEN = _UNNESTED.table_valued("digest").render_derived(name="given")
_LAST = (
    select(Job.id)
    .where(Job.config_digest == _GIVEN.c.digest, IS_REPEATABLE, ~_OTHER_CODE.exists())
    .order_by(Job.finished_at.desc(), Job.id.desc())
    .limit(1)
    .lateral("last")
)
IDENTICAL = select(_GIVEN.c.digest, _LAST.c.id).join_from(_GIVEN, _LAST, true())
"""The last of each digest is the first that an index gives, however many there are."""


def config_digest(config: CycleConfig) -> str | None:
    """Give a digest of all that decides a job's result; None where a file on a worker's disk does too."""
    if config.model.source == "local" or config.data.text.source not in PINNED_TEXTS:
        return None
    decides = {"spec_version": SPEC_VERSION, **config.model_dump(mode="json", exclude=NO_RESULT)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def find_identical(session: Session, digests: Iterable[str | None]) -> dict[str, str]:
    """Give for each digest the last job that succeeded with it by this very code, of whichever owner."""
    wanted = {digest for digest in digests if digest is not None}
    if not wanted:
        return {}
    given = {"digests": sorted(wanted), "code": code_version()}
    return {row.digest: row.id for row in session.execute(IDENTICAL, given)}
