"""What does a trainer start from, and where do its results go? One attempt's folder on this machine."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmsae.errors import CycleFailed, InvalidConfig
from dmsae.service.allowed_paths import allowed_path
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.settings import Settings
from worker.patient_store import PatientStore

MANIFEST = "manifest.json"


class WorkFolder:
    """Scratch folder of the one attempt that a device runs; emptied before and after."""

    def __init__(self, work_dir: Path, device: str) -> None:
        self.path = work_dir / device.replace(":", "-")
        self.spec = self.path / "spec.json"
        self.core = self.path / "core"
        self.sources = self.path / "sources"
        self.out = self.path / "out"
        self.checkpoints = self.path / "checkpoints"
        self.resume = self.path / "resume"

    def prepare(self, claim: Claim, objects: PatientStore) -> None:
        """Write the spec and fetch the core that the cycle starts from, or the cycles that it is made from.

        Raises:
            Unavailable: the store does not answer.
            OSError: the disk is full or the folder cannot be written.
        """
        self.clear()
        self.path.mkdir(parents=True, mode=0o700)
        for folder in (self.out, self.checkpoints):
            folder.mkdir()
        self.spec.write_text(json.dumps(claim.spec))
        wanted = [(self.path / file.name, file) for file in claim.input_files]
        wanted += [(self.sources / file.name, file) for file in claim.source_files]
        for path, file in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            objects.get_file(file.object_key, path, sha256=file.sha256)

    def arguments(self, claim: Claim, settings: Settings, *, inputs: Path) -> list[str]:
        """Give the trainer's arguments; `inputs` holds the objects that it reads."""
        core = ["--core", str(self.core)] if claim.input_files else []
        core += ["--sources", str(self.sources)] if claim.source_files else []
        roots = [part for root in settings.allowed_roots for part in ("--allowed-root", str(root))]
        folders = ["--cache", str(settings.cache_dir), "--inputs", str(inputs)]
        room = ["--activation-cache-bytes", str(settings.activation_cache_bytes)]
        kept = ["--checkpoints", str(self.checkpoints), "--checkpoint-every-s", str(settings.checkpoint_s)]
        kept += ["--resume", str(self.resume)] if self.resume.exists() else []
        kept += ["--parts", str(claim.n_parts)] if claim.n_parts > 1 else []
        return [str(self.spec), str(self.out), *core, *folders, *room, *kept, *roots, "--supervised"]

    def upload(
        self, claim: Claim, objects: PatientStore, *, has_stopped: Callable[[], bool]
    ) -> tuple[StoredFile, ...]:
        """Store all results under this attempt's prefix, the manifest last; stop between two files if told.

        Raises:
            Unavailable: the store does not answer.
        """
        return upload_folder(objects, self.out, claim.object_prefix, has_stopped=has_stopped)

    def clear(self) -> None:
        """Remove everything that this device's attempts left here."""
        shutil.rmtree(self.path, ignore_errors=True)


def upload_folder(
    objects: PatientStore, folder: Path, prefix: str, *, has_stopped: Callable[[], bool]
) -> tuple[StoredFile, ...]:
    """Store all files of a folder under a prefix, a manifest last; stop between two and give none if told.

    Raises:
        Unavailable: the store does not answer.
    """

    def put(path: Path) -> StoredFile:
        name = path.relative_to(folder).as_posix()
        stored = objects.put_file(prefix + name, path)
        return StoredFile(name, stored.key, stored.size_bytes, stored.sha256)

    files: list[StoredFile] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        if has_stopped():
            return ()
        files.append(put(path))
    listed: list[dict[str, Any]] = [
        {"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in files
    ]
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": listed}, indent=1))
    return (*files, put(manifest))


def check_paths(spec: dict[str, Any], allowed_roots: Sequence[Path]) -> None:
    """Refuse a local model, text files or an SAE's folder outside this worker's allowed roots, links too.

    Of a glob the part before its first wildcard is looked at; what it finds, the trainer checks one by one.

    Raises:
        CycleFailed: `model_unreadable` or `data_unreadable`, naming the path.
    """
    model, text = (spec["config"].get(name, {}) for name in ("model", "data"))
    text = text.get("text", {})
    other = spec["config"].get("other") or {}
    if model.get("source") == "local":
        resolved = _check_path(model["path"], allowed_roots, param="model.path", failure="model_unreadable")
        _check_path(str(resolved), allowed_roots, param="model.path", failure="model_unreadable")
    if text.get("source") in ("files", "activations"):
        for index, path in enumerate(text["paths"]):
            _check_path(path, allowed_roots, param=f"data.text.paths.{index}", failure="data_unreadable")
    if other.get("kind") == "folder":
        _check_path(other["path"], allowed_roots, param="other.path", failure="data_unreadable")


def _check_path(path: str, allowed_roots: Sequence[Path], *, param: str, failure: str) -> Path:
    try:
        return allowed_path(path, allowed_roots, param=param)
    except InvalidConfig as error:
        raise CycleFailed(failure, f"{error.message}.", param=param) from error
