"""Where the bytes lie: an S3-compatible store, written once, verified, and handed out by presigned links.

What is stored under which key, and when it may be deleted, is the business of worker and sweeper.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from dmsae.errors import Conflict, NotFound, Unavailable
from dmsae.service.settings import Settings
from dmsae.service.store_client import abandon_parts, make_client, status_of, translated_errors
from dmsae.service.store_clock import StoreClock

CHUNK_BYTES = 1 << 20
READ_TIMEOUT_S = 20.0
"""How long the store may be silent, also while it takes in a part; breaking off takes no longer than that."""
TRANSFER = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=5 << 20, max_concurrency=2, max_io_queue=8
)
"""At most a few parts in memory, whatever the size of the file; as small as S3 allows, for slow stores."""
ONE_PIECE = TransferConfig(multipart_threshold=5 << 30, max_concurrency=2, max_io_queue=8)
"""A single PUT, as presigned links make it, streamed from the file; S3 takes at most 5 GiB so."""


class BytesDiffer(Unavailable):
    """The object store gave other bytes than were stored."""


class BrokenOff(Unavailable):
    """What was under way in the object store was broken off."""


@dataclass(frozen=True)
class StoredObject:
    """One object whose stored bytes were read back and found equal."""

    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ObjectFacts:
    """What the store itself says of one object; other bytes have another etag."""

    size_bytes: int
    etag: str


@dataclass(frozen=True)
class PutLink:
    """A link under which one file of one size can be put, once, without a key of ours."""

    url: str
    headers: dict[str, str]
    """They are signed: the store refuses a PUT without them, or with others."""
    expires_at: datetime


class ObjectStore:
    """One bucket; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.s3_bucket
        self._presign_s = settings.presign_s
        self._client = make_client(
            settings, str(settings.s3_endpoint_url), read_timeout_s=READ_TIMEOUT_S, n_tries=3
        )
        self._probe = make_client(settings, str(settings.s3_endpoint_url), read_timeout_s=2, n_tries=1)
        public = settings.s3_public_endpoint_url or settings.s3_endpoint_url
        self._public = make_client(settings, str(public), read_timeout_s=READ_TIMEOUT_S, n_tries=3)
        clock = StoreClock()
        for client in (self._client, self._probe, self._public):
            clock.sign_for(client)
        self._has_stopped: Callable[[], bool] = _never
        self._client.meta.events.register("before-send.s3", self._check_stop)

    @contextmanager
    def broken_off_when(self, has_stopped: Callable[[], bool]) -> Iterator[None]:
        """Within, break off what any thread does here once it says so: before each call, between pieces.

        Meanwhile every method may raise `BrokenOff`, at the latest when the store was silent for too long.
        """
        self._has_stopped = has_stopped
        try:
            yield
        finally:
            self._has_stopped = _never

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there.

        Raises:
            Unavailable: the store does not answer, or refuses.
        """
        with translated_errors(self._bucket):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if status_of(error) != 404:
                    raise
                self._create_bucket()

    def check(self) -> None:
        """Ask for the bucket once, within 2 seconds.

        Raises:
            Unavailable: the store does not answer, refuses, or has no such bucket.
        """
        with translated_errors(self._bucket):
            try:
                self._probe.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if status_of(error) == 404:
                    raise Unavailable(f"The object store has no bucket {self._bucket!r}.") from error
                raise

    def gives_bytes(self) -> bool:
        """Tell whether the bucket's first object can be read; true where it has none.

        A store that begins may know its objects a moment before it can read them.
        """
        try:
            with translated_errors(self._bucket):
                listed = self._probe.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
                for item in listed.get("Contents", []):
                    with self._probe.get_object(Bucket=self._bucket, Key=item["Key"])["Body"] as body:
                        body.read(1)
        except NotFound:
            return True
        except Unavailable:
            return False
        return True

    def put_file(self, key: str, path: Path, *, is_one_piece: bool = False) -> StoredObject:
        """Upload one file, read it back, and compare size and sha256.

        Of an earlier try that broke off no parts are left. `is_one_piece` gives a large one the ETag that it
        has after a single PUT.

        Raises:
            BytesDiffer: what the store holds differs from what was sent.
            Unavailable: the store does not answer.
        """
        size_bytes, sha256 = _measure(path)
        transfer = ONE_PIECE if is_one_piece else TRANSFER
        with translated_errors(key), self._without_parts(key, size_bytes):
            self._client.upload_file(str(path), self._bucket, key, Config=transfer, Callback=self._check_stop)
            stored_bytes, stored_sha256 = self._measure_stored(key)
        if (stored_bytes, stored_sha256) != (size_bytes, sha256):
            told = f"{size_bytes} bytes were sent, {stored_bytes} came back"
            raise BytesDiffer(
                f"The object store gave other bytes than it was sent of {key!r}: {told}.", key=key
            )
        return StoredObject(key, size_bytes, sha256)

    def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        """Download one object to a path, which appears only once its sha256 was found right.

        Raises:
            NotFound: there is no such object.
            BytesDiffer: its bytes are not those that were stored.
            Unavailable: the store does not answer.
        """
        partial = path.with_name(path.name + ".partial")
        self.fetch_file(key, partial)
        if _measure(partial)[1] != sha256:
            partial.unlink()
            raise BytesDiffer(f"The object store holds other bytes than were stored under {key!r}.", key=key)
        partial.replace(path)

    def fetch_file(self, key: str, path: Path) -> None:
        """Download one object as it is; whether it is the right one is the caller's to find out.

        Raises:
            NotFound: there is no such object.
            Unavailable: the store does not answer.
        """
        with translated_errors(key):
            self._client.download_file(
                self._bucket, key, str(path), Config=TRANSFER, Callback=self._check_stop
            )

    def get_object_if(self, key: str, etag: str, path: Path) -> None:
        """Download one object unless it holds other bytes by now than those of this etag.

        Its sha256 is known to nobody: unless the etag is the MD5 of what came, it must come twice the same.

        Raises:
            NotFound: there is no such object.
            Conflict: it holds other bytes.
            BytesDiffer: it was not the same twice.
            Unavailable: the store does not answer, or breaks off.
        """
        with translated_errors(key):
            md5, sha256 = self._read_if(key, etag, path)
            if md5 != etag and self._read_if(key, etag, Path(os.devnull)) != (md5, sha256):
                raise BytesDiffer(f"The object store gave two versions of {key!r} under one etag.", key=key)

    def read_range(self, key: str, start: int, n_bytes: int) -> bytes:
        """Read a few bytes of one object from a place on, within 2 seconds; fewer where it ends earlier.

        Raises:
            NotFound: there is no such object.
            Unavailable: the store does not answer, or has nothing at that place.
        """
        wanted = f"bytes={start}-{start + n_bytes - 1}"
        with translated_errors(key):
            body = self._probe.get_object(Bucket=self._bucket, Key=key, Range=wanted)["Body"]
            with body:
                content: bytes = body.read(n_bytes)
        return content

    def find(self, key: str) -> StoredObject | None:
        """Read one object through and say what it is; None if there is none.

        Raises:
            Unavailable: the store does not answer.
        """
        try:
            with translated_errors(key):
                return StoredObject(key, *self._measure_stored(key))
        except NotFound:
            return None

    def presign(self, key: str, *, filename: str) -> str:
        """Make a link on the public endpoint under which anyone can download the object for a while."""
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
        with translated_errors(key):
            return self._public.generate_presigned_url(
                "get_object",
                Params={"Bucket": self._bucket, "Key": key, "ResponseContentDisposition": disposition},
                ExpiresIn=self._presign_s,
            )

    def presign_put(self, key: str, *, size_bytes: int, content_type: str | None = None) -> PutLink:
        """Make a link on the public endpoint under which so many bytes can be put, if none are there."""
        params: dict[str, Any] = {"ContentLength": size_bytes, "IfNoneMatch": "*"}
        headers = {"Content-Length": str(size_bytes), "If-None-Match": "*"}
        if content_type is not None:
            params["ContentType"] = headers["Content-Type"] = content_type
        expires_at = datetime.now(UTC) + timedelta(seconds=self._presign_s)
        with translated_errors(key):
            url = self._public.generate_presigned_url(
                "put_object",
                Params={"Bucket": self._bucket, "Key": key, **params},
                ExpiresIn=self._presign_s,
            )
        return PutLink(url, headers, expires_at)

    def describe(self, key: str) -> ObjectFacts:
        """Ask for size and etag of one object, once, within 2 seconds.

        Raises:
            NotFound: there is no such object.
            Unavailable: the store does not answer.
        """
        with translated_errors(key):
            head = self._probe.head_object(Bucket=self._bucket, Key=key)
        return ObjectFacts(head["ContentLength"], head["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        """Delete one object; one that is not there stays so.

        Raises:
            Unavailable: the store does not answer, or kept it.
        """
        with translated_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def delete_prefix(self, prefix: str) -> int:
        """Delete every object under a prefix and abandon unfinished uploads there; give how many objects.

        Raises:
            ValueError: the prefix does not end in a slash, so it might name a neighbour too.
            Unavailable: the store does not answer, or kept some object.
        """
        _require_folder(prefix)
        n_deleted = 0
        with translated_errors(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            ):
                for item in page.get("Contents", []):
                    self._client.delete_object(Bucket=self._bucket, Key=item["Key"])
                    n_deleted += 1
        self.abandon_uploads(prefix)
        return n_deleted

    def abandon_uploads(self, prefix: str, *, older_than_s: float = 0) -> int:
        """Abandon uploads in parts under a prefix that began so long ago and never ended; give how many.

        Raises:
            ValueError: the prefix does not end in a slash, so it might name a neighbour too.
            Unavailable: the store does not answer.
        """
        _require_folder(prefix)
        with translated_errors(prefix):
            return abandon_parts(self._client, self._bucket, prefix, older_than_s=older_than_s)

    def close(self) -> None:
        """Close the pooled connections."""
        for client in (self._client, self._probe, self._public):
            client.close()

    def _create_bucket(self) -> None:
        try:
            self._client.create_bucket(Bucket=self._bucket)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in (
                "BucketAlreadyOwnedByYou",
                "BucketAlreadyExists",
            ):
                raise

    def _measure_stored(self, key: str) -> tuple[int, str]:
        digest, size_bytes = hashlib.sha256(), 0
        body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
        with body:
            for chunk in body.iter_chunks(CHUNK_BYTES):
                self._check_stop()
                digest.update(chunk)
                size_bytes += len(chunk)
        return size_bytes, digest.hexdigest()

    def _read_if(self, key: str, etag: str, path: Path) -> tuple[str, str]:
        """Write an object of this etag to a path, and give the MD5 and the sha256 of what came."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=key, IfMatch=f'"{etag}"')["Body"]
        except ClientError as error:
            if status_of(error) == 412:
                raise Conflict(f"The object {key!r} has changed.", key=key) from error
            raise
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        with body, path.open("wb") as file:
            for chunk in body.iter_chunks(CHUNK_BYTES):
                self._check_stop()
                md5.update(chunk)
                sha256.update(chunk)
                file.write(chunk)
        return md5.hexdigest(), sha256.hexdigest()

    @contextmanager
    def _without_parts(self, key: str, size_bytes: int) -> Iterator[None]:
        """Of a file stored in parts, abandon what earlier tries left, and what this one leaves.

        One that succeeds leaves some where the answer to its beginning was lost, so that it began twice.
        """
        if size_bytes < TRANSFER.multipart_threshold:
            yield
            return
        abandon_parts(self._client, self._bucket, key, key=key)
        client = self._probe
        try:
            yield
            client = self._client
        finally:
            with suppress(BotoCoreError, ClientError, BrokenOff):
                abandon_parts(client, self._bucket, key, key=key)

    def _check_stop(self, *_: object, **__: object) -> None:
        """Break off if told to; called by botocore too, before each call and as bytes go by."""
        if self._has_stopped():
            raise BrokenOff


def _never() -> bool:
    return False


def _require_folder(prefix: str) -> None:
    if not prefix.endswith("/") or prefix == "/":
        raise ValueError(f"prefix = {prefix!r}: must name a folder and end in '/'")


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
