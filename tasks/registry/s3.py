"""A registry in S3, or anything that speaks it and honours conditional writes."""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from tasks.errors import RegistryError
from tasks.registry.protocol import Stored

LOST = ("PreconditionFailed", "412")
UNDECIDED = ("ConditionalRequestConflict", "409")
"""Two wrote at once, and the service asks to try again."""
TRIES = 5
MISSING = ("NoSuchKey", "404", "NotFound")
CHUNK = 1 << 20


class S3Storage:
    """Keys below `s3://bucket/prefix`. Creation is `If-None-Match: *`, a swap `If-Match` on the ETag."""

    def __init__(self, location: str, what: str = "registry", setting: str = "RETAIN_REGISTRY") -> None:
        self.what, self.setting = what, setting
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise RegistryError(f"{location!r} names no bucket: write s3://bucket/prefix.")
        self.bucket, self.prefix, self.place = bucket, prefix.strip("/"), location.rstrip("/")
        retries: Any = {"max_attempts": 4, "mode": "standard"}
        try:
            self.client = boto3.Session().client(
                "s3", config=Config(connect_timeout=10, read_timeout=60, retries=retries)
            )
        except (
            BotoCoreError,
            ValueError,
        ) as error:  # a ValueError is how an endpoint that is no address is said
            raise RegistryError(
                f"The {what} {self.place} cannot be used: {error}. Remedy: {_set_up(error)}."
            ) from error
        # boto3's other transfer client drops a custom endpoint.
        self.transfer = TransferConfig(preferred_transfer_client="classic")
        self._check()

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return content and ETag."""
        try:
            found = self.client.get_object(Bucket=self.bucket, Key=self._full(key))
            return found["Body"].read(), found["ETag"]
        except ClientError as error:
            if _code(error) in MISSING:
                return None
            self._fail(error)
        except BotoCoreError as error:
            self._fail(error)

    def create(self, key: str, content: bytes) -> bool:
        """Write a key that does not exist."""
        return self._put(key, content, IfNoneMatch="*")

    def swap(self, key: str, content: bytes, tag: str) -> bool:
        """Replace a key whose ETag is still `tag`; some servers want it without its quotes."""
        return self._put(key, content, IfMatch=tag.strip('"'))

    def stat(self, key: str) -> Stored | None:
        """Return size and age, by the server's clock."""
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=self._full(key))
        except ClientError as error:
            if _code(error) in MISSING:
                return None
            self._fail(error)
        except BotoCoreError as error:
            self._fail(error)
        return Stored(key, found["ContentLength"], _age(found["LastModified"]))

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every key below a prefix."""
        pages = self.client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._full(prefix)):
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(f"{self.prefix}/" if self.prefix else "")
                    yield Stored(key, found["Size"], _age(found["LastModified"]))
        except (ClientError, BotoCoreError) as error:
            self._fail(error)

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        """Upload a file and read it back: not every server refuses content with a wrong checksum."""
        try:
            self.client.upload_file(str(path), self.bucket, self._full(key), Config=self.transfer)
            body = self.client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"]
            digest = hashlib.sha256()
            for chunk in body.iter_chunks(CHUNK):
                digest.update(chunk)
        except (ClientError, BotoCoreError, boto3.exceptions.S3UploadFailedError) as error:
            self._fail(error)
        if digest.hexdigest() != sha256:
            self._delete(key)
            raise RegistryError(f"{self.place}/{key} does not hold what was sent: publish it again.")

    def get_file(self, key: str, path: Path) -> None:
        """Download a key to a file."""
        try:
            self.client.download_file(self.bucket, self._full(key), str(path), Config=self.transfer)
        except ClientError as error:
            if _code(error) in MISSING:
                raise RegistryError(f"{self.place}/{key} is missing: the store is damaged.") from None
            self._fail(error)
        except BotoCoreError as error:
            self._fail(error)
        except boto3.exceptions.RetriesExceededError as error:
            self._fail(error.last_exception)

    def delete_older(self, key: str, seconds: float) -> bool:
        """Remove a key that is older now. S3 cannot look and delete in one step: `publish` looks again afterwards."""
        stored = self.stat(key)
        if stored is None or stored.age_seconds <= seconds:
            return False
        self._delete(key)
        return True

    def _delete(self, key: str) -> None:
        try:
            self.client.delete_object(Bucket=self.bucket, Key=self._full(key))
        except (ClientError, BotoCoreError) as error:
            self._fail(error)

    def _put(self, key: str, content: bytes, **condition: Any) -> bool:
        """Write under a condition; the mark tells our own write from another's when the answer to it was lost."""
        mark = uuid.uuid4().hex
        for attempt in range(1, TRIES + 1):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self._full(key),
                    Body=content,
                    Metadata={"writer": mark},
                    **condition,
                )
                return True
            except ClientError as error:
                if _code(error) in LOST:
                    return self._written_by(key, mark)
                if _code(error) not in UNDECIDED or attempt == TRIES:
                    self._fail(error)
            except BotoCoreError as error:
                self._fail(error)
        return False

    def _written_by(self, key: str, mark: str) -> bool:
        # boto3 sends a request again when no answer came: then the condition fails because of what it wrote itself.
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=self._full(key))
        except (ClientError, BotoCoreError) as error:
            self._fail(error)
        return bool(found["Metadata"].get("writer") == mark)

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _check(self) -> None:
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except (ClientError, BotoCoreError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        """Say what is wrong with the storage, and what to do."""
        endpoint = self.client.meta.endpoint_url
        remedy = "try again; if it lasts, look at the service"
        if isinstance(error, (EndpointConnectionError, NoCredentialsError)):
            remedy = _set_up(error)
        elif isinstance(error, ClientError) and _code(error) in (
            "403",
            "AccessDenied",
            "InvalidAccessKeyId",
            "Forbidden",
        ):
            remedy = "check the credentials and that they may get, put, list and delete there"
        elif isinstance(error, ClientError) and _code(error) in (*MISSING, "NoSuchBucket"):
            remedy = f"make the bucket, or correct {self.setting}"
        raise RegistryError(
            f"The {self.what} {self.place} ({endpoint}) cannot be used: {error}. Remedy: {remedy}."
        ) from error


def _set_up(error: Exception) -> str:
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
    if isinstance(error, ProfileNotFound):
        return "correct AWS_PROFILE, or write that profile into the AWS configuration"
    return "check the network and AWS_ENDPOINT_URL_S3"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _age(modified: datetime.datetime) -> float:
    return max((datetime.datetime.now(datetime.UTC) - modified).total_seconds(), 0.0)
