"""How do the token ids of a text lie on disk, once for all cycles and jobs of a worker?

A folder holds the contexts of the three parts in a fixed pseudo-random order, the same for every seed and
job, mapped into memory and never read whole. It appears whole or not at all, belongs to all that decides its
bytes, and may be deleted at any time: what is missing or torn is read from the text again.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dmsae.config import SPLIT_SALT
from dmsae.contexts import Contexts, SplitReader, TokenisedText, TokenRequest
from dmsae.documents import CHAIN_SALT, PARTS, Documents, Part
from dmsae.file_locks import alone
from dmsae.packing import Row, RowList
from dmsae.randomness import named_generator

FORMAT = "v1"
"""Changes whenever the same text would give other bytes."""

KEPT_FOLDERS = 8
KEPT_BYTES = 64 * 2**30
"""The most recently used stay, up to so many and so much; the one in use always does."""

STALE_S = 86_400
"""What a killed trainer left unfinished is removed after this long."""

FLUSH_TOKENS = 1 << 20
"""Tokens of a part that are held in memory while a text is read."""

SHUFFLED_ROWS = 4096
"""Contexts that are put in order at a time."""

FIELDS = {"ids": np.dtype(np.int32), "is_token": np.dtype(np.bool_), "documents": np.dtype(np.int32)}


def open_tokens(documents: Documents, request: TokenRequest, *, cache_dir: Path) -> TokenisedText:
    """Give a text's contexts, reading the text only where nobody has before.

    Of two trainers that begin at once one reads and the other waits; a lock ends with its process.

    Mutates: deletes the least recently used folders of other texts.

    Raises: CycleFailed with `data_unreadable` or a code of the hub.
    """
    root = cache_dir / "tokens"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{text_key(documents)}-{_request_key(request)}"
    with alone(root / f"{folder.name}.lock"):
        text = _load(folder)
        if text is None:
            _write(folder, documents, request)
            text = _load(folder)
    if text is None:
        raise OSError(errno.EIO, "the token files cannot be read back", str(folder))
    with suppress(FileNotFoundError):  # another trainer may make room just now; what is mapped stays
        os.utime(folder)
    _make_room(root, folder)
    return text


def has_tokens(documents: Documents, *, cache_dir: Path) -> bool:
    """Tell whether this text was read before, cut in whatever way: then it need not be tried out."""
    return any((cache_dir / "tokens").glob(f"{text_key(documents)}-*/meta.json"))


def text_key(documents: Documents) -> str:
    """Name a text."""
    return _digest(FORMAT, documents.identity)


def _request_key(request: TokenRequest) -> str:
    """Name all else that decides the bytes."""
    data = request.data
    return _digest(
        tokenizers.__version__,
        _tokenizer_digest(request.tokenizer),
        (data.packing, data.prepend_bos, data.context_length, data.split, SPLIT_SALT),
        request.special_ids,
        [request.needs[part] for part in PARTS],
        (*request.chain, CHAIN_SALT),
    )


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    content = repr(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return _digest(type(tokenizer).__name__, content, tokenizer.bos_token_id, tokenizer.eos_token_id)


def _digest(*decisive: object) -> str:
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:32]


class _RowFiles:
    """The rows of one part while a text is read: plain arrays, one file a field."""

    def __init__(self, folder: Path, part: Part, *, length: int, stack: ExitStack) -> None:
        self.paths = {field: folder / f"{part}.{field}.raw" for field in FIELDS}
        self._files: list[BinaryIO] = [stack.enter_context(path.open("wb")) for path in self.paths.values()]
        self._length = length
        self._rows = RowList()
        self.n_rows = 0

    def add(self, row: Row) -> None:
        """Keep a row as the next one."""
        self._rows.add(row)
        if len(self._rows) * self._length >= FLUSH_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory."""
        for file, array in zip(self._files, self._rows.pad(self._length), strict=True):
            file.write(array.tobytes())
            file.flush()
        self.n_rows += len(self._rows)
        self._rows.clear()


def _write(folder: Path, documents: Documents, request: TokenRequest) -> None:
    """Read a text into a folder of its own, which then takes its place."""
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".unfinished"))
    try:
        _read_into(unfinished, documents, request)
        _take_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_place(unfinished: Path, folder: Path) -> None:
    """Rename a whole folder, unless another trainer was first; a torn one gives way."""
    try:
        os.rename(unfinished, folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if _load(folder) is None:
            _delete(folder)
            os.rename(unfinished, folder)


def _read_into(folder: Path, documents: Documents, request: TokenRequest) -> None:
    length = request.data.context_length
    skipped: Counter[str] = Counter()
    with ExitStack() as stack:
        files = {part: _RowFiles(folder, part, length=length, stack=stack) for part in PARTS}
        writers = request.writers(files)
        reader = SplitReader(request, writers)
        reader.read(documents.read(skipped), skipped)
        for file in files.values():
            file.flush()
    for part, file in files.items():
        order = torch.randperm(
            file.n_rows, generator=named_generator(0, SPLIT_SALT, "contexts", part)
        ).numpy()
        for field, raw in file.paths.items():
            # without packing a row is of one document, so one number does
            width = 1 if field == "documents" and request.data.packing == "document" else length
            _put_in_order(raw, folder / f"{part}.{field}.npy", order, shape=(length, width))
            raw.unlink()
    record = {
        "n_candidates": {part: writer.n_candidates for part, writer in writers.items()},
        "n_documents": {part: writer.n_documents for part, writer in writers.items()},
        "n_skipped": {part: writer.cutter.n_skipped for part, writer in writers.items()},
        "n_documents_read": reader.n_documents,
        "n_rows_skipped": dict(sorted(skipped.items())),
        "is_whole": reader.is_whole,
    }
    _write_record(folder, record)


def _put_in_order(raw: Path, target: Path, order: NDArray[np.int64], *, shape: tuple[int, int]) -> None:
    """Write the first `shape[1]` of `shape[0]` columns of a plain array, its rows in another order."""
    dtype = FIELDS[target.name.split(".")[1]]
    rows = np.lib.format.open_memmap(target, mode="w+", dtype=dtype, shape=(len(order), shape[1]))
    if len(order):
        plain = np.memmap(raw, mode="r", dtype=dtype, shape=(len(order), shape[0]))
        for start in range(0, len(order), SHUFFLED_ROWS):
            rows[start : start + SHUFFLED_ROWS] = plain[order[start : start + SHUFFLED_ROWS], : shape[1]]
    rows.flush()
    del rows
    _sync(target)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write, last, what is known of the files and how large each is."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.npy"))}
    (folder / "meta.json").write_text(json.dumps({**record, "sizes": sizes}), encoding="utf-8")
    _sync(folder / "meta.json")


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _load(folder: Path) -> TokenisedText | None:
    """Map a folder's files into memory; None where one is missing or torn."""
    try:
        record = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != size for name, size in record["sizes"].items()):
            return None
        parts = {
            part: _map_part(folder, part, record["n_documents"][part], record["n_skipped"][part])
            for part in PARTS
        }
        seen = (record[name] for name in ("n_candidates", "n_documents_read", "n_rows_skipped", "is_whole"))
        return TokenisedText(parts, *seen)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map_part(folder: Path, part: Part, n_documents: int, n_skipped: int) -> Contexts:
    # copy on write, since torch knows no tensor that may not be written to
    ids, is_token, documents = (
        torch.from_numpy(np.load(folder / f"{part}.{field}.npy", mmap_mode="c", allow_pickle=False))
        for field in FIELDS
    )
    return Contexts(ids, is_token, documents.expand(ids.shape), n_documents, n_skipped)


def _make_room(root: Path, used: Path) -> None:
    """Delete the least recently used folders of other texts, and what killed trainers left."""
    # another trainer may be deleting the same ones
    folders = sorted((each for each in root.iterdir() if each.is_dir()), key=_last_used, reverse=True)
    n_bytes = _size(used)
    others = [each for each in folders if each != used and each.suffix != ".unfinished"]
    for place, each in enumerate(others, start=1):
        n_bytes += _size(each)
        if place >= KEPT_FOLDERS or n_bytes > KEPT_BYTES:
            _delete(each)
    for each in folders:
        if each.suffix == ".unfinished" and time.time() - _last_used(each) > STALE_S:
            shutil.rmtree(each, ignore_errors=True)


def _delete(folder: Path) -> None:
    """Take a folder away at once, so that nobody finds a half of it, then delete it."""
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
    try:
        os.rename(folder, doomed)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime if folder.exists() else 0.0
