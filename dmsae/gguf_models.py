"""How does a GGUF file become a folder in transformers' format, once for all workers of a machine?

Any architecture whose GGUF files transformers can read. The weights are dequantised to float32.
"""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dmsae.model_folders import check_config, read_weights, unsupported

CONVERSION = "v2"
"""Changes whenever converting the same GGUF file would give another folder."""


def converted_gguf(path: Path, digest: str, *, cache_dir: Path) -> Path:
    """Give the folder that holds the GGUF file in transformers' format, making it once.

    A lock lets one process convert while others wait, and is free as soon as its holder ends, however it
    does; the folder appears whole or not at all.

    Raises: CycleFailed with `model_unreadable` or `model_unsupported`.
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
                _convert(path, unfinished)
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Read config, weights and tokenizer, each once: every reading parses the whole vocabulary."""
    config = _read_config(path)
    check_config(path, config)
    model = read_weights(path.parent, config, dtype=torch.float32, attention="eager", gguf_file=path.name)
    # transformers saves no model that says it was quantised, so its weights move into one that never was
    with torch.device("meta"):
        plain = _make_model(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True
    )
    tokenizer.save_pretrained(folder)


def _make_model(config: PreTrainedConfig) -> PreTrainedModel:
    make: Any = AutoModelForCausalLM.from_config
    model: PreTrainedModel = make(config, dtype=torch.float32)
    return model


def _read_config(path: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError) as error:
        # only here, since it parses the whole vocabulary as well; raises where the file itself is at fault
        import gguf

        architecture = gguf.GGUFReader(path).fields["general.architecture"].contents()
        raise unsupported(path, f"transformers reads no GGUF files of type {architecture}.") from error
    return config
