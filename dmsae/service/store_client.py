"""How does one talk to an S3-compatible store? The border to botocore: its options, its errors as ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dmsae.errors import NotFound, Unavailable
from dmsae.service.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def make_client(settings: Settings, endpoint_url: str, *, read_timeout_s: float, n_tries: int) -> "S3Client":
    """Make a client of one endpoint, which sends no checksums that not every store understands."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=min(5, read_timeout_s),
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": n_tries},
        ),
    )


def abandon_parts(
    client: "S3Client", bucket: str, prefix: str, *, key: str | None = None, older_than_s: float = 0
) -> int:
    """Abandon uploads in parts, begun so long ago, of all keys that begin so or of one; give how many."""
    n_abandoned = 0
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
        now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])  # by the store's clock
        for upload in page.get("Uploads", []):
            is_young = older_than_s and upload["Initiated"] > now - timedelta(seconds=older_than_s)
            if is_young or key not in (None, upload["Key"]):
                continue
            try:
                client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            except ClientError as error:
                if status_of(error) != 404:  # gone: somebody else was first, or a try whose answer was lost
                    raise
            n_abandoned += 1
    return n_abandoned


@contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Turn botocore's errors into ours, by status.

    Raises:
        NotFound: the store has no such thing.
        Unavailable: it does not answer, or refuses.
    """
    try:
        yield
    except ClientError as error:
        if status_of(error) == 404:
            raise NotFound(f"The object store has no {what!r}.", key=what) from error
        raise Unavailable(
            f"The object store refused {what!r} (status {status_of(error)}).", key=what
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise Unavailable("The object store does not answer; try again in a moment.", key=what) from error


def status_of(error: ClientError) -> int:
    """Give the HTTP status that an error came with; 0 if with none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
