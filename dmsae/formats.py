"""How do an SAE and a core lie on disk?

Both are a folder of one JSON and one safetensors file, written once into a fresh folder; nothing is pickled.
The SAE's is SAELens 6's folder, at raw scale; the core's is our own, at normalised scale and bit for bit.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dmsae.errors import CycleFailed, DmsaeError
from dmsae.sae import Core, CoreLatent, MatryoshkaSae, Provenance

__all__ = [
    "Core",
    "CoreLatent",
    "Provenance",
    "load_core",
    "load_sae",
    "require_fresh",
    "save_core",
    "save_sae",
]

CORE_FORMAT = "dmsae-core-1"
CORE_TENSORS = {
    "W_enc": ("d_model", "n_core"),
    "W_dec": ("n_core", "d_model"),
    "b_enc": ("n_core",),
    "threshold": ("n_core",),
    "b_dec": ("d_model",),
}
SAE_TENSORS = {
    "W_enc": ("d_model", "n_latents"),
    "b_enc": ("n_latents",),
    "W_dec": ("n_latents", "d_model"),
    "b_dec": ("d_model",),
    "threshold": ("n_latents",),
}
SAE_LENS_VERSION = "6.0.0"
"""Oldest version that reads the folder; without it SAELens drops nested metadata in silence."""
SAE_LENS_FACTS = ("sae_lens_version", "sae_lens_training_version")
OWN_FACTS = ("rms", "prefix_widths", "n_core")


def save_core(folder: Path, core: Core) -> None:
    """Write a core into a fresh folder as `core.json` and `core.safetensors`, bit for bit.

    Raises: DmsaeError where the folder holds anything already.
    """
    require_fresh(folder)
    tensors = safetensors.torch.save({name: getattr(core, name).contiguous() for name in CORE_TENSORS})
    facts = {
        "format": CORE_FORMAT,
        "rms": core.rms,
        "median_norm": core.median_norm,
        "provenance": asdict(core.provenance),
        "latents": [asdict(latent) for latent in core.latents],
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    (folder / "core.safetensors").write_bytes(tensors)
    (folder / "core.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")


def load_core(folder: Path) -> Core:
    """Read a core that `save_core` wrote.

    Raises: CycleFailed(core_mismatch) where it is missing, torn, foreign or not finite.
    """
    try:
        facts = json.loads((folder / "core.json").read_bytes())
        if not isinstance(facts, dict) or facts.get("format") != CORE_FORMAT:
            raise ValueError(f"core.json is not of format {CORE_FORMAT}")
        data = (folder / "core.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise ValueError("core.safetensors is not the file that core.json was written for")
        tensors = _read_tensors(data, CORE_TENSORS, {"n_core": len(facts["latents"])})
        return Core(
            **tensors,
            rms=_positive(facts["rms"]),
            median_norm=_positive(facts["median_norm"]),
            provenance=_read_provenance(facts["provenance"]),
            latents=[CoreLatent(**latent) for latent in facts["latents"]],
        )
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CycleFailed(
            "core_mismatch",
            f"core = {str(folder)!r}: must be a whole core folder ({_reason(error)})",
            param="core",
        ) from error


def save_sae(folder: Path, sae: MatryoshkaSae, *, rms: float, facts: Mapping[str, Any]) -> None:
    """Write an SAE into a fresh folder in SAELens 6's format, as a JumpReLU SAE at raw scale.

    W_enc and W_dec are unchanged; b_enc, b_dec and threshold are multiplied by `rms`, so that latent
    activations of raw vectors are rms times those of normalised ones. `facts` go into the metadata, beside
    rms, prefix_widths and n_core; they must be JSON and finite.

    Raises: DmsaeError where the folder holds anything already or a fact has a reserved name.
    """
    for name in (*SAE_LENS_FACTS, *OWN_FACTS):
        if name in facts:
            raise DmsaeError(f"facts.{name} = {facts[name]!r}: this name is reserved", param=f"facts.{name}")
    require_fresh(folder)
    raw = _scaled(sae, rms)
    d_model, n_latents = sae.W_enc.shape
    config = {
        "architecture": "jumprelu",
        "d_in": d_model,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "sae_lens_training_version": None,
            "rms": rms,
            "prefix_widths": list(sae.prefix_widths),
            "n_core": sae.n_core,
            **facts,
        },
    }
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    tensors = {name: getattr(raw, name).contiguous() for name in SAE_TENSORS}
    safetensors.torch.save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(text)


def load_sae(folder: Path) -> tuple[MatryoshkaSae, dict[str, Any]]:
    """Read an SAE that `save_sae` wrote, back at normalised scale, and its facts (with rms and widths).

    Biases and threshold have been multiplied and divided by rms: equal to within a rounding of float32.

    Raises: CycleFailed(data_unreadable) where it is missing, torn, foreign or not finite.
    """
    try:
        config = json.loads((folder / "cfg.json").read_bytes())
        if config["architecture"] != "jumprelu":
            raise ValueError("cfg.json is not of architecture jumprelu")
        facts = {name: fact for name, fact in config["metadata"].items() if name not in SAE_LENS_FACTS}
        sizes = {"d_model": config["d_in"], "n_latents": config["d_sae"]}
        tensors = _read_tensors((folder / "sae_weights.safetensors").read_bytes(), SAE_TENSORS, sizes)
        raw = MatryoshkaSae(
            **tensors, prefix_widths=list(facts["prefix_widths"]), n_core=int(facts["n_core"])
        )
        return _scaled(raw, 1 / _positive(facts["rms"])), facts
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CycleFailed(
            "data_unreadable",
            f"sae = {str(folder)!r}: must be a whole SAE folder written by DMSAE ({_reason(error)})",
            param="sae",
        ) from error


def _scaled(sae: MatryoshkaSae, factor: float) -> MatryoshkaSae:
    return replace(sae, b_enc=sae.b_enc * factor, b_dec=sae.b_dec * factor, threshold=sae.threshold * factor)


def require_fresh(folder: Path) -> None:
    """Make a folder, or take one that is empty.

    Raises: DmsaeError where it holds anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DmsaeError(f"folder = {str(folder)!r}: must be empty before it is written")


def _read_provenance(facts: dict[str, Any]) -> Provenance:
    lists = {name: tuple(facts[name]) for name in ("special_ids", "split")}
    return Provenance(**{**facts, **lists})


def _read_tensors(
    data: bytes, shapes: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Read finite float32 tensors of the names and shapes in `shapes`, neither more nor less.

    Raises: ValueError, SafetensorError.
    """
    tensors = safetensors.torch.load(data)
    if tensors.keys() != shapes.keys():
        raise ValueError(f"tensors are {sorted(tensors)}, not {sorted(shapes)}")
    sizes = {"d_model": len(tensors["b_dec"]), **sizes}
    for name, tensor in tensors.items():
        shape = tuple(sizes[dimension] for dimension in shapes[name])
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}, not float32")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")
    return tensors


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no field {error}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _positive(value: Any) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{value} is not a positive number")
    return float(value)
