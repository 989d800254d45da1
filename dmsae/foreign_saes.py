"""How is an SAE read that somebody else trained, from a folder in SAELens' format or a file of NumPy arrays?

Its decoder, and, where its activations can be had latent by latent, what its latents read, as a core at raw
scale. Nothing is unpickled; what a folder says of model and hook is told and not believed.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmsae.errors import CycleFailed
from dmsae.probe_config import SAE_FILES
from dmsae.sae import Core

LARGEST_CONFIG_BYTES = 1 << 20
READS_ALONE = ("standard", "jumprelu")
"""Architectures of which each latent's activation is a matter of that latent alone."""
ARRAYS_SAY = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
"""What is known of an SAE that is NumPy arrays alone: that of Gemma Scope (arXiv 2408.05147, section 3)."""
MOST_UNPACKED = 4
"""Times as large as the file that its arrays may be: those of Gemma Scope are not compressed."""
READ = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
TOLD = ("architecture", "d_in", "d_sae")
TOLD_OF_MODEL = ("model_name", "hook_name")


class ForeignSae(NamedTuple):
    """An SAE of another library."""

    W_dec: Float[Tensor, "n_latents d_model"]
    reads: Core | None
    """Its latents as a core of scale 1, without identities; None where `trouble` says why not."""
    trouble: str | None
    told: dict[str, Any]
    """What the folder says of itself."""


def read_foreign(files: Sequence[Path], *, beside: Core) -> ForeignSae:
    """Read an SAE that is to be compared with the core `beside`.

    `files` are one of NumPy arrays, as Gemma Scope publishes them, or the two of a folder, in the order of
    `SAE_FILES`.

    Raises: CycleFailed with `data_unreadable` where it is missing, torn, pickled or of another format, with
    `core_mismatch` where it is of activations of another width; both name `other`.
    """
    try:
        facts, tensors = _read_arrays(files[0]) if len(files) == 1 else _read_folder(*files)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else (str(error).splitlines() or ["?"])[0]
        what = f"a folder in SAELens' format, {' and '.join(SAE_FILES)}"
        what = what if len(files) > 1 else f"a file of NumPy arrays, {', '.join(READ)}"
        message = f"other: must be {what} ({reason[:300]})."
        raise CycleFailed("data_unreadable", message, param="other") from error
    W_dec = tensors["W_dec"]
    d_model = beside.W_dec.shape[1]
    if W_dec.dim() != 2 or W_dec.shape[1] != d_model:
        shape = "x".join(map(str, W_dec.shape))
        rule = f"must be of as many rows as it has latents, each as wide as the core's activations: {d_model}"
        raise CycleFailed("core_mismatch", f"other: its W_dec is {shape}; it {rule}.", param="other")
    trouble = _find_trouble(facts)
    reads = None if trouble is not None else _as_core(tensors, facts, beside)
    return ForeignSae(W_dec, reads, trouble, _told(facts))


def _read_folder(config_file: Path, weights_file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = _read_facts(config_file)
    with safe_open(weights_file, framework="pt", device="cpu") as file:
        return facts, {name: _finite(name, file.get_tensor(name)) for name in _wanted(facts, file.keys())}


def _read_arrays(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the arrays of a JumpReLU SAE that subtracts no decoder bias before it encodes.

    Raises: OSError, ValueError, KeyError, BadZipFile.
    """
    with zipfile.ZipFile(file) as archive:
        n_unpacked = sum(member.file_size for member in archive.infolist())
    if n_unpacked > MOST_UNPACKED * file.stat().st_size:
        raise ValueError(
            f"its arrays are more than {MOST_UNPACKED} times as large as the file: store them plainly"
        )
    with np.load(file, allow_pickle=False) as arrays:
        if "scaling_factor" in arrays and not (arrays["scaling_factor"] == 1).all():
            raise ValueError("it has a scaling_factor, which is not read")
        names = {name: name if name in arrays else name.replace("W_", "w_") for name in READ}
        tensors = {name: _finite(name, torch.from_numpy(arrays[own])) for name, own in names.items()}
    d_model, n_latents = (*tensors["W_enc"].shape, 0, 0)[:2]
    return {**ARRAYS_SAY, "d_in": d_model, "d_sae": n_latents}, tensors


def _read_facts(file: Path) -> dict[str, Any]:
    if file.stat().st_size > LARGEST_CONFIG_BYTES:
        raise ValueError(f"cfg.json is larger than {LARGEST_CONFIG_BYTES} bytes")
    facts = json.loads(file.read_bytes())
    if not isinstance(facts, dict):
        raise TypeError("cfg.json is not an object")
    return facts


def _find_trouble(facts: dict[str, Any]) -> str | None:
    """Say why activations cannot be had, or None: latents that share a budget have none of their own."""
    architecture = facts.get("architecture", "standard")
    if architecture not in READS_ALONE:
        return (
            f"Firing is compared for architectures {' and '.join(READS_ALONE)}, and this is {architecture!r}."
        )
    for name in ("normalize_activations", "reshape_activations"):
        if facts.get(name, "none") not in ("none", None):
            return f"Firing is compared where {name} is none, and here it is {str(facts[name])[:50]!r}."
    if facts.get("activation_fn", "relu") != "relu" or facts.get("activation_fn_str", "relu") != "relu":
        return "Firing is compared where the activation function is relu."
    return None


def _wanted(facts: dict[str, Any], there: Any) -> list[str]:
    """Name the tensors that are read: no more of them than is needed."""
    if _find_trouble(facts) is not None:
        return ["W_dec"]
    is_jumprelu = facts.get("architecture") == "jumprelu"
    wanted = [name for name in READ if is_jumprelu or name != "threshold"]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(f"{SAE_FILES[1]} holds no {', '.join(missing)}")
    return wanted


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError(f"{name} is not of finite numbers")
    return tensor.float()


def _as_core(tensors: dict[str, Tensor], facts: dict[str, Any], beside: Core) -> Core:
    """Give its latents as a core: at raw scale, what stands above a threshold of at least zero is active."""
    n_latents, d_model = tensors["W_dec"].shape
    shapes = {"W_enc": (d_model, n_latents), "b_enc": (n_latents,), "b_dec": (d_model,)}
    shapes["threshold"] = (n_latents,)
    for name, tensor in tensors.items():
        if name != "W_dec" and tuple(tensor.shape) != shapes[name]:
            told = f"other: its {name} has shape {tuple(tensor.shape)}, not {shapes[name]}."
            raise CycleFailed("data_unreadable", told, param="other")
    is_centred = facts.get("apply_b_dec_to_input", True)
    return Core(
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        threshold=tensors.get("threshold", torch.zeros(n_latents)).clamp(min=0),
        b_dec=tensors["b_dec"] if is_centred else torch.zeros(d_model),
        rms=1.0,
        median_norm=beside.median_norm,
        provenance=beside.provenance,
        latents=[],
    )


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    """Give what is worth showing of `cfg.json`, each a short text or number."""
    metadata = facts.get("metadata")
    about = {**(metadata if isinstance(metadata, dict) else {}), **facts}
    shown = {name: about.get(name) for name in (*TOLD, *TOLD_OF_MODEL)}
    return {
        name: value[:200] if isinstance(value, str) else value if isinstance(value, int | float) else None
        for name, value in shown.items()
    }
