"""Ask for a link under which a file goes straight into the store."""

from typing import Annotated

from fastapi import APIRouter, Body

from api import examples
from api.dependencies import PartsOf
from api.schemas import UploadOut
from api.security import CallerOf
from dmsae.service import uploads
from dmsae.service.requests import UploadRequest

router = APIRouter(prefix="/uploads", tags=["uploads"])

Request = Annotated[UploadRequest, Body(examples=[examples.UPLOAD_REQUEST])]


@router.post("", status_code=201)
def create_upload(body: Request, caller: CallerOf, parts: PartsOf) -> UploadOut:
    """Give a link for one PUT of one file, and the key by which jobs name it; no byte passes through here."""
    settings = parts.settings
    upload = parts.database.run(
        lambda session: uploads.create_upload(
            session, caller.owner_id, request=body, max_bytes=settings.upload_max_bytes
        )
    )
    link = parts.store.presign_put(
        upload.object_key, size_bytes=body.size_bytes, content_type=body.content_type
    )
    return UploadOut.of(upload, link, kept_days=settings.upload_days)
