"""Everything that the service reads from its environment, in one place: `DMSAE_*` variables only."""

import ipaddress
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AnyHttpUrl, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dmsae.config import ACTIVATION_CACHE_BYTES

SINGLE_PUT_BYTES = 5 << 30
"""What S3 takes in one PUT."""


class Settings(BaseSettings):
    """Settings of API, worker and sweeper; secrets are never printed."""

    model_config = SettingsConfigDict(
        env_prefix="DMSAE_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    database_url: SecretStr
    """`postgresql+psycopg://user:password@host:port/name`."""
    broker_url: SecretStr
    """`redis://:password@host:port/0`, Celery's broker: wake-ups only."""
    s3_endpoint_url: AnyHttpUrl
    """Where API and workers reach the object store."""
    s3_public_endpoint_url: AnyHttpUrl | None = None
    """Where users reach it: presigned links carry this host; default `s3_endpoint_url`."""
    s3_bucket: str = "dmsae"
    s3_access_key: str
    s3_secret_key: SecretStr
    s3_region: str = "us-east-1"

    host: str = "127.0.0.1"
    """Where the API listens; without any API key only loopback is allowed."""
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: Annotated[list[str], NoDecode] = ["localhost", "127.0.0.1", "::1"]
    """Host names that requests may name while no API key is required (comma-separated)."""
    require_key: bool = False
    """Refuse requests without an API key, on loopback too."""
    rate_per_s: float = Field(100.0, ge=0)
    """Requests a second that one key may go on asking of one API process; 0: any number."""
    rate_burst: int = Field(500, ge=1)
    """Requests that it may ask at once."""
    streams_most: int = Field(1000, ge=1)
    """Event streams and long-polls that one API process keeps open."""
    streams_per_owner: int = Field(300, ge=1)
    """Of these, those of one owner."""
    webhooks_key: SecretStr | None = Field(None, min_length=16)
    """From it and the id of a webhook its secret is derived; without it none can be made."""
    webhooks_allow_private: bool = False
    """Let webhooks go to this machine and private networks too, there also by plain HTTP."""
    metrics_networks: Annotated[list[str], NoDecode] = ["127.0.0.0/8", "::1/128"]
    """Networks from which `GET /metrics` is answered without a key (comma-separated); none: nowhere."""
    allowed_roots: Annotated[list[Path], NoDecode] = []
    """Folders from which models may be read (separated by the system's path separator); none by default."""
    cache_dir: Path = Path(tempfile.gettempdir()) / f"dmsae-cache-{os.getuid()}"
    """Converted models and harvested activations, kept between cycles."""
    activation_cache_bytes: int = Field(ACTIVATION_CACHE_BYTES, ge=0)
    """Room for harvested activations below `cache_dir`; 0 keeps none, so that every cycle harvests anew."""
    work_dir: Path = Path(tempfile.gettempdir()) / f"dmsae-work-{os.getuid()}"
    """Scratch folder of the worker: inputs and outputs of the attempt in hand."""
    lock_dir: Path = Path(tempfile.gettempdir()) / "dmsae-locks"
    """Device locks, shared by all workers of one host (of one stack, under `dmsae up`)."""

    heartbeat_s: float = Field(5.0, gt=0)
    """How often a supervisor renews its lease and looks for a cancellation."""
    lease_s: float = Field(30.0, gt=0)
    """How long an attempt lives without a renewal."""
    sweep_s: float = Field(5.0, gt=0)
    """How often the sweeper looks."""
    idle_wake_s: float = Field(10.0, gt=0)
    """How often an idle worker wakes itself."""
    deaf_after_s: float = Field(60.0, gt=0)
    """An idle worker that hears nothing for so long although the broker answers exits."""
    affinity_wait_s: float = Field(120.0, ge=0)
    """How long a queued cycle waits for a worker that holds its activations before any other may take it."""
    starvation_s: float = Field(86_400.0, gt=0)
    """A cycle that waited longer goes first, unless its owner has had more than a fair share."""
    high_quota_s: float = Field(14_400.0, ge=0)
    """Device-seconds in 24 hours that an owner may take at high priority; beyond it, high is normal."""
    max_attempts: int = Field(3, ge=1)
    """Attempts that broke off after which a cycle fails; counted anew once one has left a checkpoint."""
    max_attempts_in_all: int = Field(100, ge=1)
    """The same, whatever checkpoints were left in between."""
    checkpoint_s: float = Field(600.0, ge=0)
    """Seconds of training between two checkpoints."""
    drain_grace_s: float = Field(20.0, ge=0)
    """How long a worker that is told to stop waits for a checkpoint of its cycle to be stored."""
    store_patience_s: float = Field(600.0, ge=0)
    """How long an attempt waits for an object store that is away, for each file, before it gives up."""
    disk_reserve_bytes: int = Field(256 << 20, ge=0)
    """A worker with less room in its work or cache folder takes no cycle."""
    retry_backoff_s: float = Field(1.0, ge=0)
    """Wait before the second attempt; it doubles with each further one."""
    kill_grace_s: float = Field(3.0, ge=0)
    """From SIGTERM to SIGKILL of a trainer's process group."""
    presign_s: int = Field(3600, ge=1, le=604_800)
    """Life of a presigned link."""
    data_prefixes: Annotated[list[str], NoDecode] = []
    """Folders of the bucket, beside `uploads/`, whose objects a job may read as text (comma-separated)."""
    upload_max_bytes: int = Field(SINGLE_PUT_BYTES, ge=1, le=SINGLE_PUT_BYTES)
    """Size of the largest upload; one PUT of S3 carries at most 5 GiB."""
    upload_days: int = Field(30, ge=1, le=36_500)
    """Days after which an upload is deleted that no job names."""
    retention_days: int | None = Field(None, ge=1, le=36_500)
    """Days after its end until a job is deleted; an owner's own setting comes first. None: never."""
    clean_s: float = Field(60.0, gt=0)
    """How often the sweeper looks for what is to be deleted."""
    log_level: str = "INFO"

    @field_validator("allowed_hosts", "metrics_networks", "data_prefixes", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("metrics_networks")
    @classmethod
    def _check_networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @field_validator("data_prefixes")
    @classmethod
    def _check_prefixes(cls, prefixes: list[str]) -> list[str]:
        for prefix in prefixes:
            if not prefix.strip("/") or prefix.startswith("/") or not prefix.endswith("/"):
                raise ValueError(f"{prefix!r}: must name a folder of the bucket, such as 'data/'")
        return prefixes


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        pydantic.ValidationError: a variable is missing or malformed; it is named, its value is not shown.
    """
    return Settings()


def settings_from(env: Mapping[str, str]) -> Settings:
    """Read the settings from an environment that is about to be handed to a process.

    Raises:
        pydantic.ValidationError: a variable is missing or malformed; it is named, its value is not shown.
    """
    given = {name: env.get(f"DMSAE_{name.upper()}") for name in Settings.model_fields}
    return Settings.model_validate({name: value for name, value in given.items() if value is not None})
