"""How are activations read that somebody harvested already?

Shards hold rows of activations with their token ids and documents. Training reads the rows themselves;
attribution and evaluation run the model over the token ids, so the rows must be what this model gives at this
hook point, which is tried out on the first ones. A document belongs to a part by a hash of its token ids.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from dmsae.activations import Dropped, Harvester
from dmsae.config import SPLIT_SALT
from dmsae.contexts import Contexts, TokenisedText
from dmsae.documents import PARTS, WHOLE, Chain, Part
from dmsae.errors import CycleFailed
from dmsae.randomness import named_generator
from dmsae.shards import Shard, read_header, reading
from dmsae.sources import StoredActivations
from dmsae.text_files import find_local_files, unreadable
from dmsae.windows import Stopped, Window, count_left_out, cut_contexts, join, lay_windows, round_piece

PADDING = -1
"""Token id of a position without a token."""

TOLERANCES = {"F32": 1e-3, "F16": 1e-2, "BF16": 3e-2}
"""How far stored activations may lie from the model's, relative and as a mean over tokens.

Other kernels change float32 by some 1e-5; 16 bits keep 11 or 8 of a number, and a model that computes in them
strays by several such roundings. Another layer, hook point, model or text differs by 0.1 or far more.
"""

N_COMPARED_ROWS = 16
"""Rows on which stored activations and model are compared."""

OTHER_PART = -1
"""Document of a position that another part owns."""


class Places(NamedTuple):
    """Where rows lie."""

    shard: Int[Tensor, " n"]
    row: Int[Tensor, " n"]


class _Rows(NamedTuple):
    """All rows of all shards in order, without their activations."""

    ids: Int[Tensor, "n t"]
    """int32; `PADDING` where there is no token."""
    documents: Int[Tensor, "n t"]
    """int64, as they were given."""
    places: Places


@dataclass(frozen=True)
class StoredText(TokenisedText):
    """The contexts of stored activations, and where the activations themselves lie."""

    shards: Sequence[Shard]
    places: Mapping[Part, Places]

    def training_windows(self, harvester: Harvester) -> "StoredWindows":
        """Give the training part's activations, window by window."""
        return StoredWindows(self, harvester)


class StoredWindows:
    """The training windows, read from the shards whenever they are wanted; a `Source`."""

    is_ready_made = True

    def __init__(self, text: StoredText, harvester: Harvester) -> None:
        self._shards, self._harvester = text.shards, harvester
        self._contexts, self._places = text.parts["training"], text.places["training"]
        self.n_tokens, self.d_model = text.n_candidates["training"], harvester.loaded.d_model
        size = harvester.config.shuffle_window_contexts
        self._windows = lay_windows(len(self._contexts.input_ids), size)

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def read(self, window: int, *, is_stopped: Callable[[], bool] = lambda: False) -> Window:
        """Give a window, rounded as harvested ones are.

        Raises: CycleFailed with `non_finite` or `data_unreadable`, or Stopped.
        """
        if is_stopped():
            raise Stopped(window=window)
        rows = self._windows[window]
        piece, error = round_piece(self.tokens(torch.arange(rows.start, rows.stop)))
        return join([piece], error)

    def count_dropped(self, window: int, *, n_tokens: int) -> Dropped:
        """Count a window's padding and special tokens."""
        return count_left_out(cut_contexts(self._contexts, self._windows[window]), n_tokens=n_tokens)

    def tell(self, n_tokens: int) -> None:
        """Tell those who watch of tokens that need not be harvested."""
        self._harvester.tell(n_tokens)

    def tokens(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n_tokens d_model"]:
        """Give the tokens of some contexts by the rules of the harvest, in raw units and float32."""
        shard_of, row_of = self._places.shard[rows], self._places.row[rows]
        activations: dict[int, Tensor] = {}
        for shard in sorted(set(shard_of.tolist())):
            with reading(self._shards[shard].file) as tensors:
                stored = tensors.get_slice("activations")
                for i in (shard_of == shard).nonzero().squeeze(1).tolist():
                    row = int(row_of[i])
                    activations[i] = stored[row : row + 1].float()
        is_candidate = self._harvester.is_candidate(*(field[rows] for field in self._contexts[:3]))
        tokens = torch.cat([activations[i] for i in range(len(rows))])[is_candidate]
        if not torch.isfinite(tokens).all():
            rule = "data.text: among the stored activations of tokens that count, some are not finite."
            raise CycleFailed("non_finite", rule, param="data.text")
        return tokens


class StoredShards:
    """Stored activations before they are read: the shards in order."""

    def __init__(
        self, text: StoredActivations, *, context_length: int, allowed_roots: Sequence[Path] | None
    ) -> None:
        self._paths, self._length, self._allowed_roots = text.paths, context_length, allowed_roots

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards, sorted by path, with what their headers say.

        Raises: CycleFailed with `data_unreadable` or `activations_mismatch`.
        """
        files = find_local_files(self._paths, allowed_roots=self._allowed_roots)
        for file in files:
            if not file.name.endswith(".safetensors"):
                raise unreadable("data.text.paths", file.name, "must end in .safetensors")
        return [read_header(file) for file in files]

    def check(self) -> None:
        """Read every shard's header.

        Raises: CycleFailed with `data_unreadable` or `activations_mismatch`.
        """
        width = self.shards[0].d_model
        for shard in self.shards:
            name = shard.file.name
            if shard.n_tokens != self._length:
                found = f"a row of {name} has {shard.n_tokens} tokens"
                raise _mismatch(f"data.context_length = {self._length}: {found}")
            if shard.d_model != width:
                raise _mismatch(
                    f"data.text: d_model is {width} in the first shard, {shard.d_model} in {name}"
                )

    def read(self, harvester: Harvester, split: Sequence[float], *, chain: Chain = WHOLE) -> StoredText:
        """Read all token ids, put each document into its part, and compare activations with the model's.

        Raises: CycleFailed with `data_unreadable` or `activations_mismatch`.
        """
        loaded, width = harvester.loaded, self.shards[0].d_model
        if width != loaded.d_model:
            raise _mismatch(f"data.text: d_model of the activations is {width}, the model's {loaded.d_model}")
        rows = self._read_rows()
        largest = int(rows.ids.max()) if rows.ids.numel() else PADDING
        if largest >= loaded.vocab_size:
            raise _mismatch(
                f"data.text: holds token id {largest}; the model has {loaded.vocab_size} embeddings"
            )
        parts, places = _split(rows, split, chain)
        n_candidates = {part: harvester.count_candidates(contexts) for part, contexts in parts.items()}
        n_documents = sum(contexts.n_documents for contexts in parts.values())
        text = StoredText(parts, n_candidates, n_documents, {}, True, self.shards, places)
        _compare(text, harvester)
        return text

    def _read_rows(self) -> _Rows:
        """Read ids and documents of all rows in order."""
        ids, documents = [], []
        for shard in self.shards:
            with reading(shard.file) as tensors:
                ids.append(tensors.get_tensor("token_ids").to(torch.int32))
                found = tensors.get_tensor("document_ids").to(torch.int64)
                documents.append(found.reshape(shard.n_rows, -1).expand(shard.n_rows, shard.n_tokens))
        n_rows = torch.tensor([shard.n_rows for shard in self.shards])
        shard_of = torch.arange(len(n_rows)).repeat_interleave(n_rows)
        row_of = torch.cat([torch.arange(shard.n_rows) for shard in self.shards])
        return _Rows(torch.cat(ids), torch.cat(documents), Places(shard_of, row_of))


def number_documents(
    rows: _Rows, is_token: Bool[Tensor, "n t"]
) -> tuple[Int64[np.ndarray, "n t"], list[str]]:
    """Number documents in order of appearance, and give each a digest of salt and token ids.

    Raises: CycleFailed with `data_unreadable` where the tokens of a document do not lie together.
    """
    given = rows.documents[is_token].numpy()
    ids = rows.ids[is_token].numpy().astype("<i4")
    index = np.zeros(is_token.shape, dtype=np.int64)
    if not len(given):
        return index, []
    starts = np.flatnonzero(np.diff(given, prepend=given[0] - 1))
    values, counts = np.unique(given[starts], return_counts=True)
    if (counts > 1).any():
        rule = "stands in places that are apart; all of a document must lie together"
        raise unreadable("data.text", f"document_ids {values[counts > 1][0]}", rule)
    index[is_token.numpy()] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(given)))
    pieces = np.split(ids, starts[1:])
    return index, [hashlib.sha256(SPLIT_SALT.encode() + piece.tobytes()).hexdigest() for piece in pieces]


def _split(
    rows: _Rows, split: Sequence[float], chain: Chain
) -> tuple[dict[Part, Contexts], dict[Part, Places]]:
    """Give each part the rows that hold a document of it; in them, those of other parts count for nothing."""
    is_token = rows.ids != PADDING
    index, digests = number_documents(rows, is_token)
    numbers: dict[Part | None, int] = {part: number for number, part in enumerate(PARTS)}
    found = (chain.part_of(digest, split) for digest in digests)
    owners = np.array([numbers.get(part, OTHER_PART) for part in found], dtype=np.int64)
    owner = torch.from_numpy(owners[index] if digests else index)
    parts: dict[Part, Contexts] = {}
    places: dict[Part, Places] = {}
    for number, part in enumerate(PARTS):
        is_own = is_token & (owner == number)
        kept = is_own.any(dim=1).nonzero().squeeze(1)
        kept = kept[torch.randperm(len(kept), generator=named_generator(0, SPLIT_SALT, "contexts", part))]
        own_index = torch.where(is_own, torch.from_numpy(index), OTHER_PART)[kept]
        ids, n_documents = rows.ids[kept].clamp(min=0), int((owners == number).sum())
        parts[part] = Contexts(ids, is_token[kept], own_index, n_documents)
        places[part] = Places(rows.places.shard[kept], rows.places.row[kept])
    return parts, places


def _compare(text: StoredText, harvester: Harvester) -> None:
    """Refuse stored activations that are not what the model gives on the first rows.

    Raises: CycleFailed with `activations_mismatch`.
    """
    contexts = text.parts["training"]
    rows = harvester.is_candidate(*contexts[:3]).any(dim=1).nonzero().squeeze(1)[:N_COMPARED_ROWS]
    if not len(rows):
        return
    first = contexts._replace(
        input_ids=contexts.input_ids[rows],
        is_token=contexts.is_token[rows],
        document_index=contexts.document_index[rows],
    )
    given = torch.cat([batch.activations[batch.is_kept] for batch in harvester.harvest(first)])
    stored = text.training_windows(harvester).tokens(rows)
    difference = ((stored - given).norm(dim=-1) / given.norm(dim=-1)).square().mean().sqrt().item()
    dtypes = {shard.dtype for shard in text.shards}
    if harvester.loaded.dtype != torch.float32:
        dtypes.add("BF16")
    allowed = max(TOLERANCES[dtype] for dtype in dtypes)
    if not difference <= allowed:
        raise _mismatch(
            f"data.text: on {len(rows)} rows the stored activations differ from the model's at "
            f"{harvester.hook.path} by {difference:.3g} of their size, where {allowed:g} is allowed: "
            "they are of another model, layer, hook or text"
        )


def _mismatch(rule: str) -> CycleFailed:
    return CycleFailed("activations_mismatch", f"{rule}.", param="data.text")
