"""Which files may clients put into the store, and which jobs read them?

The bytes go straight to the store under a presigned link; here is only the row that says whose they are. It
is locked by whoever begins to use the upload and by whoever marks it for deletion: one of them is first.
"""

import re
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.probe_config import ARRAYS, SAE_FILES
from dmsae.service.ids import new_id
from dmsae.service.requests import UploadRequest, shown
from dmsae.service.upload_tables import Upload, UploadUse
from dmsae.sources import COMPRESSION_SUFFIXES, TEXT_SUFFIXES

UPLOADS = "uploads/"
"""Under which every uploaded object lies."""

LONGEST_NAME = 100


def create_upload(session: Session, owner_id: str, *, request: UploadRequest, max_bytes: int) -> Upload:
    """Store that an owner is going to put a file, and under which key.

    Raises:
        InvalidConfig: the file is too large for one PUT, or of a kind that nothing reads.
    """
    is_sae = request.filename in SAE_FILES or request.filename.endswith(ARRAYS)
    others = (*SAE_FILES, f"an SAE's {ARRAYS}")
    problems = [] if is_sae else check_suffix("filename", request.filename, others)
    if request.size_bytes > max_bytes:
        rule = (
            f"must be at most {max_bytes}: one PUT carries no more than 5 GiB; split the file, or compress it"
        )
        problems.append(FieldProblem("size_bytes", request.size_bytes, rule, "upload_too_large"))
    if problems:
        raise InvalidConfig(problems)
    upload_id = new_id("upload")
    upload = Upload(
        id=upload_id,
        owner_id=owner_id,
        object_key=f"{UPLOADS}{owner_id}/{upload_id}/{safe_name(request.filename)}",
        filename=request.filename,
        size_bytes=request.size_bytes,
    )
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def safe_name(filename: str) -> str:
    """Give the end of a file's name with all but letters, digits, `.`, `_` and `-` replaced."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename.replace("\\", "/").rsplit("/", 1)[-1])
    return plain[-LONGEST_NAME:].lstrip(".") or "_"


def check_suffix(param: str, name: str, others: Sequence[str] = ()) -> list[FieldProblem]:
    """Refuse the name of a file of a kind that is not read as text; `others` would have been right too."""
    endings = [kind + packed for kind in TEXT_SUFFIXES for packed in ("", *COMPRESSION_SUFFIXES)]
    if name.lower().endswith(tuple(endings)):
        return []
    kinds, packed = (", ".join(suffixes) for suffixes in (TEXT_SUFFIXES, COMPRESSION_SUFFIXES))
    rule = f"must end in one of {kinds}, which {packed} may follow" + "".join(f", or be {n}" for n in others)
    return [FieldProblem(param, shown(name), rule, "unknown_file_kind")]


def note_use(session: Session, job_id: str, keys: Sequence[str], *, param: str = "data.text.objects") -> None:
    """Note that a job reads these objects, named by a setting, so that no upload among them is deleted.

    Raises:
        InvalidConfig: naming each upload that is not there, or no longer.
    """
    uploaded = sorted({key for key in keys if key.startswith(UPLOADS)})
    if not uploaded:
        return
    locked = select(Upload.id, Upload.object_key).where(Upload.object_key.in_(uploaded))
    rows = session.execute(
        locked.where(Upload.deleted_at.is_(None)).order_by(Upload.object_key).with_for_update(key_share=True)
    ).all()
    known = {row.object_key for row in rows}
    rule = "there is no such upload (any more): ask for a link by POST /uploads, and put the file again"
    problems = [
        FieldProblem(f"{param}.{index}.key", shown(key), rule, "object_not_found")
        for index, key in enumerate(keys)
        if key.startswith(UPLOADS) and key not in known
    ]
    if problems:
        raise InvalidConfig(problems)
    ids = [row.id for row in rows]
    session.execute(update(Upload).where(Upload.id.in_(ids)).values(used_at=func.now()))
    session.execute(insert(UploadUse), [{"job_id": job_id, "upload_id": upload_id} for upload_id in ids])


def release(session: Session, job_id: str) -> None:
    """Note that a job no longer reads its uploads; the days until they are deleted begin anew."""
    ids = session.scalars(
        delete(UploadUse).where(UploadUse.job_id == job_id).returning(UploadUse.upload_id)
    ).all()
    for upload_id in sorted(ids):
        session.execute(update(Upload).where(Upload.id == upload_id).values(used_at=func.now()))


def mark_unused(session: Session, *, after_s: float, limit: int) -> list[str]:
    """Mark for deletion the uploads that no job has named for so long; give their keys."""
    is_used = select(UploadUse.job_id).where(UploadUse.upload_id == Upload.id).exists()
    is_unused_for_long = (
        Upload.deleted_at.is_(None),
        func.coalesce(Upload.used_at, Upload.created_at) < func.now() - timedelta(seconds=after_s),
        ~is_used,
    )
    found = select(Upload.id).where(*is_unused_for_long).order_by(Upload.id).limit(limit)
    marked = session.scalars(
        update(Upload)
        .where(Upload.id.in_(found.with_for_update(skip_locked=True)), *is_unused_for_long)
        .values(deleted_at=func.now())
        .returning(Upload.object_key)
        .execution_options(synchronize_session=False)
    )
    return list(marked)


def marked_uploads(session: Session, *, limit: int) -> list[str]:
    """List keys of uploads whose objects are to go."""
    query = select(Upload.object_key).where(Upload.deleted_at.is_not(None)).order_by(Upload.deleted_at)
    return list(session.scalars(query.limit(limit)))


def forget_uploads(session: Session, keys: Sequence[str]) -> None:
    """Remove the rows of uploads whose objects are gone."""
    session.execute(delete(Upload).where(Upload.object_key.in_(keys), Upload.deleted_at.is_not(None)))
