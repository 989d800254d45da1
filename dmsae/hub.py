"""What does the model hub hold for a request: the files of a model, the text files of a dataset?

huggingface_hub lists, downloads and repeats; every answer other than the one hoped for becomes one of five
codes here, within half a minute and before anything is loaded on a device. No token stands in any of them.
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import httpx2
from filelock import Timeout
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import glob_translate
from huggingface_hub import HfApi, get_cached_repo_tree, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    filter_repo_objects,
    hf_raise_for_status,
    http_backoff,
)

from dmsae.errors import CycleFailed
from dmsae.hub_client import (
    HubTrouble,
    hub_endpoint,
    hub_host,
    trouble_of,
    trouble_of_answer,
    use_patient_client,
)
from dmsae.sources import HubModel, HubText

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.safetensors",
    "*.safetensors.index.json",
)
"""Files of a model that are read; weights in any pickled format and code are not among them."""

UNWANTED = ("*/*", "consolidated*")
"""Not those in subfolders, nor the second copy of all weights in their makers' own format."""

BLOCK_BYTES = 8 << 20
"""Piece in which a file is streamed; a reader holds at most two of them beside what it asked for."""

N_DOWNLOADS = 4
"""Files of a model that are downloaded at a time."""

LOCK_POLL_S = 1.0
STALLED_S = 60.0
"""Another worker that downloads the same model and receives nothing for so long is not waited for."""

N_NAMED = 5
"""Files that a refusal names at most."""


def fetch_model(model: HubModel, *, cache_dir: Path) -> Path:
    """Give the folder that holds the model at exactly its revision, downloading what is missing.

    A whole snapshot is given without asking the hub. Of two workers that begin at once one downloads and the
    other waits; files that were whole when a download was killed are kept.

    Raises: CycleFailed with a code of the hub, or `model_unreadable` where there are no safetensors.
    """
    cache = cache_dir / "hub"
    folder = _whole_snapshot(model, cache)
    if folder is None:
        with _asking(model), _alone(model, cache):
            folder = _whole_snapshot(model, cache) or _download(model, cache)
    if not any(folder.glob("*.safetensors")):
        raise CycleFailed(
            "model_unreadable",
            f"model.id = {model.id!r}: the repository holds no .safetensors at revision {model.revision};"
            " weights in other formats are not read.",
            param="model.id",
        )
    return folder


def find_files(text: HubText) -> list[str]:
    """List the files of a dataset that match its globs, each once, sorted by path.

    `*` stays within a folder, `**` crosses folders.

    Raises: CycleFailed with a code of the hub, or `data_unreadable` where a glob matches nothing.
    """
    with _asking(text), _expecting_a_hub():
        names = _list_files(text)
    found: set[str] = set()
    for index, pattern in enumerate(text.files):
        param = f"data.text.files.{index}"
        matches = _matching(names, pattern, param=param)
        if not matches:
            raise CycleFailed(
                "data_unreadable",
                f"{param} = {pattern!r}: matches no file of {text.id}, which holds {_some(names)}.",
                param=param,
            )
        found.update(matches)
    return sorted(found)


@contextmanager
def open_file(text: HubText, path: str) -> Iterator[BinaryIO]:
    """Open one file of a dataset for reading, seekable and streamed piece by piece.

    Raises: CycleFailed with a code of the hub, here or while the file is read within the context.
    """
    with _asking(text):
        url = hf_hub_url(text.id, path, repo_type="dataset", revision=text.revision, endpoint=hub_endpoint())
        size_bytes = get_hf_file_metadata(url, retry_on_errors=True).size
        if size_bytes is None:
            raise HubTrouble("hub_unreachable", f"it does not tell the size of {path}")
        with _StreamedFile(url, size_bytes) as file:
            yield cast("BinaryIO", file)


class _StreamedFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of the hub that is read by ranges; fsspec buffers them."""

    def __init__(self, url: str, size_bytes: int) -> None:
        super().__init__(None, url, size=size_bytes, block_size=BLOCK_BYTES)

    def _fetch_range(self, start: int, end: int) -> bytes:
        # a compressed answer to a range would be a range of other bytes
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        response = http_backoff("GET", self.path, headers=headers)
        hf_raise_for_status(response)
        if len(response.content) != end - start:
            raise HubTrouble("hub_unreachable", f"it gave {len(response.content)} of {end - start} bytes")
        return response.content


@contextmanager
def _asking(source: HubModel | HubText) -> Iterator[None]:
    """The border to huggingface_hub: its errors become ours."""
    use_patient_client().heard()
    try:
        yield
    except HubTrouble as trouble:
        raise _refusal(source, trouble) from trouble
    except httpx2.RequestError as error:
        raise _refusal(source, trouble_of(error)) from error
    except HfHubHTTPError as error:
        raise _refusal(source, trouble_of_answer(error.response)) from error
    except HFValidationError as error:
        raise _refusal(source, HubTrouble("hub_not_found", "no repository may be called so")) from error


@contextmanager
def _expecting_a_hub() -> Iterator[None]:
    """Take what huggingface_hub makes of another server's answers for what it is."""
    try:
        yield
    except (json.JSONDecodeError, FileMetadataError, LocalEntryNotFoundError) as error:
        raise HubTrouble("hub_unreachable", "it answers unlike a hub; check HF_ENDPOINT") from error
    except OSError as error:
        if error.errno is not None or isinstance(error, HfHubHTTPError):
            raise
        raise HubTrouble("hub_unreachable", "it gave files of another size than it had listed") from error


def _refusal(source: HubModel | HubText, trouble: HubTrouble) -> CycleFailed:
    section = "model" if isinstance(source, HubModel) else "data.text"
    endpoint = hub_endpoint()
    param, value = f"{section}.id", source.id
    hub = f"the hub {hub_host(endpoint)}"
    match trouble.code:
        case "hub_unauthorized":
            token = "does not accept the worker's HF_TOKEN" if trouble.has_token else "asks for a token"
            remedy = "set HF_TOKEN on the worker to one that may read this repository, if there is one"
            rule = f"{hub} {token} (401); {remedy}"
        case "hub_forbidden":
            page = f"{hub_host(endpoint)}/{'' if section == 'model' else 'datasets/'}{source.id}"
            rule = (
                f"{hub} refuses access (403); accept the conditions on {page} and set HF_TOKEN on the worker"
            )
        case "hub_not_found" if trouble.missing == "revision":
            param, value = f"{section}.revision", source.revision
            rule = f"{hub} has no such revision of {source.id} (404)"
        case "hub_not_found":
            rule = f"{hub} has no such {trouble.missing} ({trouble.reason})"
        case "hub_rate_limited":
            remedy = "" if trouble.has_token else "; HF_TOKEN on the worker may raise its limit"
            rule = f"{hub} takes no more requests for now (429){remedy}"
        case _:
            rule = f"{hub} cannot be reached: {trouble.reason}"
    return CycleFailed(trouble.code, f"{param} = {value!r}: {rule}.", param=param)


def _whole_snapshot(model: HubModel, cache: Path) -> Path | None:
    """Give the snapshot's folder if every wanted file lies there in its full size."""
    try:
        listed = get_cached_repo_tree(model.id, revision=model.revision, cache_dir=cache)
    except (CachedRepoTreeNotFoundError, HFValidationError):
        return None
    folder = _repository_folder(model, cache) / "snapshots" / model.revision
    is_whole = all(_has_size(folder / file.path, file.size) for file in _wanted(listed))
    return folder if is_whole and folder.is_dir() else None


def _download(model: HubModel, cache: Path) -> Path:
    """Download what is missing of a snapshot; nobody else writes into this repository's folder meanwhile."""
    repository = _repository_folder(model, cache)
    for left_over in repository.glob("blobs/*.incomplete"):
        left_over.unlink(missing_ok=True)
    _drop_torn(model, cache)
    with _expecting_a_hub():
        snapshot_download(
            model.id,
            revision=model.revision,
            cache_dir=cache,
            endpoint=hub_endpoint(),
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            max_workers=N_DOWNLOADS,
        )
    return repository / "snapshots" / model.revision


def _drop_torn(model: HubModel, cache: Path) -> None:
    """Remove files of another size than listed, as a power failure may leave them."""
    try:
        listed = get_cached_repo_tree(model.id, revision=model.revision, cache_dir=cache)
    except CachedRepoTreeNotFoundError:
        return
    for file in _wanted(listed):
        path = _repository_folder(model, cache) / "snapshots" / model.revision / file.path
        if path.is_symlink() and not _has_size(path, file.size):
            path.resolve().unlink(missing_ok=True)
            path.unlink()


@contextmanager
def _alone(model: HubModel, cache: Path) -> Iterator[None]:
    """Hold the one lock of this repository; wait for its holder as long as that one receives anything."""
    repository = _repository_folder(model, cache)
    lock = cache / ".locks" / f"{repository.name}.download.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    seen, since = -1, time.monotonic()
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=LOCK_POLL_S))
                break
            except Timeout:
                received = sum(_size(path) for path in repository.glob("blobs/*"))
                if received != seen:
                    seen, since = received, time.monotonic()
                elif time.monotonic() - since > STALLED_S:
                    reason = f"another worker holds {lock.name} and has received nothing for {STALLED_S:g} s"
                    raise HubTrouble("hub_unreachable", reason) from None
        yield


def _list_files(text: HubText) -> list[str]:
    listed = HfApi(endpoint=hub_endpoint()).list_repo_tree(
        text.id, repo_type="dataset", revision=text.revision, recursive=True
    )
    return sorted(entry.path for entry in listed if isinstance(entry, RepoFile))


def _matching(names: Sequence[str], pattern: str, *, param: str) -> list[str]:
    try:
        matches = re.compile(glob_translate(pattern)).match
    except ValueError as error:
        raise CycleFailed(
            "data_unreadable", f"{param} = {pattern!r}: '**' must stand alone between slashes.", param=param
        ) from error
    return [name for name in names if matches(name)]


def _wanted(listed: Sequence[RepoFile]) -> list[RepoFile]:
    return list(
        filter_repo_objects(
            listed, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED), key=lambda file: file.path
        )
    )


def _repository_folder(model: HubModel, cache: Path) -> Path:
    """Give the folder that huggingface_hub keeps for one repository."""
    return cache / f"models--{model.id.replace('/', '--')}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return (", ".join(names[:N_NAMED]) or "no files") + more


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
