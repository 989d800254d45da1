"""At which texts does a latent fire? Read from what the cycle stored that selected it, and from nothing else.

Two short reads of the object store, whatever the size of the core: where the latent's record lies, and the
record. How both files are written is said in `dmsae/snippet_files.py`; a test holds the two together.
"""

import zlib
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from dmsae.config import MOST_RECORD_BYTES, PLACE_BYTES
from dmsae.errors import Deleted, NotFound
from dmsae.service.objects import BytesDiffer, ObjectStore
from dmsae.service.tables import Artifact, Core, CoreLatent, Cycle, Job, Latent

RECORDS, PLACES = "snippets/latents.jsonl.gz", "snippets/places.txt"
"""Artifacts of a cycle: a gzip member for each latent of its core, and where each begins."""
MOST_BYTES = 512 << 10
"""Of one latent's record, unpacked; the trainer writes no larger one."""


class SnippetPlace(NamedTuple):
    """Which entry of which cycle's files tells of a latent."""

    latent_id: str
    core_id: str
    job_id: str
    cycle_index: int
    core_index: int
    records_key: str
    places_key: str


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class TokenValue(_Part):
    """A token and how far a latent raises its logit."""

    token: str
    value: float


class LogitLens(_Part):
    """Tokens whose logits a latent's decoder row raises and lowers most."""

    final_norm: Literal["folded", "left_out"]
    promoted: list[TokenValue]
    suppressed: list[TokenValue]


class Snippet(_Part):
    """Some tokens around one at which a latent fires."""

    kind: Literal["strongest", "random"]
    tokens: list[str]
    activations: list[float | None]
    peak: int


class Decile(_Part):
    """A tenth of the range of a latent's activations."""

    decile: int
    low: float = Field(alias="from")
    high: float = Field(alias="to")
    n_firings: int
    snippets: list[Snippet]


class SnippetRecord(_Part):
    """What a cycle stored of one latent of its core."""

    latent_id: str
    n_tokens: int
    n_firings: int
    density: float
    min_activation: float
    max_activation: float
    logit_lens: LogitLens
    deciles: list[Decile]


def find_snippets(session: Session, public_id: str, *, core_id: str | None = None) -> SnippetPlace:
    """Find what tells of a latent: in a core that holds it, by default in the latest that a cycle selected.

    Raises:
        NotFound: there is no such latent or core, the core does not hold it, or its cycle stored none.
        Deleted: the core's job was deleted.
    """
    latent_id = session.scalars(select(Latent.id).where(Latent.public_id == public_id)).one_or_none()
    if latent_id is None:
        raise NotFound(f"There is no latent {public_id!r}.", id=public_id)
    query = _holders(latent_id)
    if core_id is None:
        query = query.where(Core.cycle_id.is_not(None), Job.deleted_at.is_(None))
    else:
        query = query.where(Core.id == core_id)
    found = session.execute(query.order_by(Core.id.desc()).limit(1)).one_or_none()
    if found is None:
        raise NotFound(_why_none(session, public_id, core_id), id=core_id or public_id)
    if found.deleted_at is not None:
        raise Deleted(f"The job of core {found.core_id!r} was deleted.", id=found.core_id)
    if found.records_key is None or found.places_key is None:
        why = "was given to it" if found.is_given else f"was selected by its cycle {found.cycle_index}"
        about = f"core {found.core_id!r} of {found.job_id!r}, which {why}"
        rule = "no text snippets are stored: a cycle that ran with them stores them of what it selects"
        raise NotFound(f"For {about}, {rule}; `core` names another core.", id=found.core_id)
    return SnippetPlace(public_id, *found[:6])


def read_snippets(store: ObjectStore, place: SnippetPlace) -> SnippetRecord:
    """Read what is stored of a latent.

    Raises:
        NotFound: its record did not fit into the byte budget of its cycle.
        BytesDiffer: the store holds other bytes than a trainer writes.
        Unavailable: the store does not answer.
    """
    start, end = _read_place(store, place)
    if start == end:
        rule = f"snippets.budget_bytes of {place.job_id!r} left no room for it"
        raise NotFound(f"No text snippets of latent {place.latent_id!r} are stored: {rule}.")
    if not 0 < end - start <= MOST_RECORD_BYTES:
        raise _differ(place)
    return _parse(_read(store, place.records_key, start, end - start, place), place)


def _holders(latent_id: int) -> Select[Any]:
    """Ask for the cores that hold a latent, with what their cycles stored."""
    records, places = aliased(Artifact), aliased(Artifact)
    cycle_id = func.coalesce(Core.cycle_id, Core.given_cycle_id)
    columns: list[Any] = [
        Core.id.label("core_id"),
        Job.id.label("job_id"),
        Cycle.index.label("cycle_index"),
        CoreLatent.core_index,
        records.object_key.label("records_key"),
        places.object_key.label("places_key"),
        Job.deleted_at,
        Core.cycle_id.is_(None).label("is_given"),
    ]
    query = (
        select(*columns)
        .select_from(CoreLatent)
        .join(Core, Core.id == CoreLatent.core_id)
        .join(Cycle, Cycle.id == cycle_id)
        .join(Job, Job.id == Cycle.job_id)
        .where(CoreLatent.latent_id == latent_id)
    )
    for artifact, name in ((records, RECORDS), (places, PLACES)):
        is_its = (artifact.cycle_id == Core.cycle_id) & (artifact.name == name)
        query = query.outerjoin(artifact, is_its & artifact.deleted_at.is_(None))
    return query


def _why_none(session: Session, public_id: str, core_id: str | None) -> str:
    if core_id is None:
        return f"No core that a cycle selected holds latent {public_id!r}."
    if session.get(Core, core_id) is None:
        return f"There is no core {core_id!r}."
    return f"Core {core_id!r} does not hold latent {public_id!r}."


def _read_place(store: ObjectStore, place: SnippetPlace) -> tuple[int, int]:
    first, n_bytes = PLACE_BYTES * place.core_index, 2 * PLACE_BYTES
    lines = _read(store, place.places_key, first, n_bytes, place)
    digits = lines.split(b"\n")
    if len(lines) != 2 * PLACE_BYTES or not all(each.isdigit() for each in digits[:2]) or digits[2:] != [b""]:
        raise _differ(place)
    return int(digits[0]), int(digits[1])


def _read(store: ObjectStore, key: str, start: int, n_bytes: int, place: SnippetPlace) -> bytes:
    try:
        return store.read_range(key, start, n_bytes)
    except NotFound as gone:  # a row says that it is there
        raise _differ(place) from gone


def _parse(stored: bytes, place: SnippetPlace) -> SnippetRecord:
    """Unpack a record, which gzip's own check holds against what was written, up to a bound."""
    unpacking = zlib.decompressobj(wbits=31)
    try:
        content = unpacking.decompress(stored, MOST_BYTES)
        record = SnippetRecord.model_validate_json(content)
    except (zlib.error, ValidationError) as error:
        raise _differ(place) from error
    if not unpacking.eof or record.latent_id != place.latent_id:
        raise _differ(place)
    return record


def _differ(place: SnippetPlace) -> BytesDiffer:
    told = f"of latent {place.latent_id!r} in core {place.core_id!r}"
    return BytesDiffer(f"The object store holds no such text snippets {told} as a cycle stores.")
