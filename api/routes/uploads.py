"""Ask for a link under which a file goes straight into the store."""

from typing import Annotated

from fastapi import APIRouter, Body

from api import examples
from api.idempotency import Made, OnceOf
from api.schemas import UploadOut
from dmsae.service import uploads
from dmsae.service.database import Transaction
from dmsae.service.requests import UploadRequest

router = APIRouter(prefix="/uploads", tags=["uploads"])

Request = Annotated[UploadRequest, Body(examples=[examples.UPLOAD_REQUEST])]


@router.post("", status_code=201)
def create_upload(body: Request, once: OnceOf) -> UploadOut:
    """Give a link for one PUT of one file, and the key by which jobs name it; no byte passes through here."""
    store, settings = once.parts.store, once.parts.settings
    owner_id, max_bytes = once.caller.owner_id, settings.upload_max_bytes

    def create(session: Transaction) -> Made[UploadOut]:
        upload = uploads.create_upload(session, owner_id, request=body, max_bytes=max_bytes)
        key, kind = upload.object_key, body.content_type
        link = store.presign_put(key, size_bytes=body.size_bytes, content_type=kind)
        return Made(UploadOut.of(upload, link, kept_days=settings.upload_days), 201)

    return once.run(create)
