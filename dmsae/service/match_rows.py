"""How does a finished match become rows, so that a latent's story can name those that match it?"""

from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from dmsae.errors import CycleFailed
from dmsae.service.core_tables import LatentMatch
from dmsae.service.results import Match, Probe
from dmsae.service.states import Held
from dmsae.service.tables import Latent

log = structlog.get_logger()


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class _Matched(_Part):
    a_latent_id: str | None = None
    b_latent_id: str | None = None
    decoder_cosine: float | None = None
    firing_correlation: float | None = None


class _Pair(_Part):
    a: int
    b: int
    matches: list[_Matched] = []
    best_cosine: float | None = None
    best_cosine_random: float | None = None


def write_probe_matches(session: Session, held: Held, probe: Probe) -> None:
    """Write which latents a probe found alike; those of a folder that nobody here trained have no row."""
    found = [
        _Matched(
            a_latent_id=match.latent_id,
            b_latent_id=match.other_latent_id,
            decoder_cosine=match.decoder_cosine,
            firing_correlation=match.firing_correlation,
        )
        for match in probe.matches
        if match.other_latent_id is not None
    ]
    chance = {"best_cosine": probe.best_cosine, "best_cosine_random": probe.best_cosine_random}
    _write(session, held, [_Pair(a=0, b=1, matches=found, **chance)])


def write_matches(session: Session, held: Held, match: Match) -> None:
    """Write which latents of each two cores match, beside what chance gives.

    Those that it does not name, or that are not stored, have no row; the log says how many.

    Raises:
        CycleFailed: `internal_error`, a pair does not say which cores it is of, or something is no number.
    """
    try:
        pairs = [_Pair.model_validate(pair) for pair in match.pairs]
    except ValidationError as error:
        message = "The trainer's match.json is wrong: a pair of cores is not described as it should be."
        raise CycleFailed("internal_error", message) from error
    _write(session, held, pairs)


def _write(session: Session, held: Held, pairs: list[_Pair]) -> None:
    names = {
        name for pair in pairs for found in pair.matches for name in (found.a_latent_id, found.b_latent_id)
    }
    query = select(Latent.public_id, Latent.id).where(Latent.public_id.in_(names - {None}))
    ids = {row.public_id: row.id for row in session.execute(query)}
    rows = [_row(held, pair, found, ids) for pair in pairs for found in pair.matches]
    known = [
        row for row in rows if None not in (row["a_latent_id"], row["b_latent_id"], row["decoder_cosine"])
    ]
    if known:
        session.execute(insert(LatentMatch), known)
    if len(known) < len(rows):
        log.warning("matches_without_latents", job_id=held.job_id, n_matches=len(rows) - len(known))


def _row(held: Held, pair: _Pair, found: _Matched, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "cycle_id": held.cycle_id,
        "a": pair.a,
        "b": pair.b,
        "a_latent_id": ids.get(found.a_latent_id or ""),
        "b_latent_id": ids.get(found.b_latent_id or ""),
        "decoder_cosine": found.decoder_cosine,
        "firing_correlation": found.firing_correlation,
        "best_cosine": pair.best_cosine,
        "best_cosine_random": pair.best_cosine_random,
    }
