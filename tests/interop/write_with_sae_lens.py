"""Saves SAEs by SAELens' own classes, and writes what they make of raw activations.

`python write_with_sae_lens.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads
`tensors.safetensors` (an SAE's, and `x`), `settings.json` (for each name the config of an SAE) and
`params.npz`, which SAELens' loader of Gemma Scope is made to find; writes `NAME/` and `NAME.safetensors`,
and `gemma_scope.safetensors`.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    tensors = load_file(folder / "tensors.safetensors")
    x = tensors.pop("x")
    d_in, d_sae = tensors["W_enc"].shape
    for name, config in json.loads((folder / "settings.json").read_text()).items():
        sae = SAE.from_dict({"d_in": d_in, "d_sae": d_sae, **config})
        sae.load_state_dict({own: tensors[own] for own in sae.state_dict()})
        sae.save_model(folder / name)
        with torch.no_grad():
            save_file({"acts": sae.encode(x).contiguous()}, folder / f"{name}.safetensors")
    loaders.hf_hub_download = lambda folder=folder, **_: str(folder / "params.npz")
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res",
        "layer_12/width_16k/average_l0_82",
        cfg_overrides={"d_in": d_in, "d_sae": d_sae, "normalize_activations": "none"},
    )
    sae = SAE.from_dict(config)
    sae.load_state_dict(state)
    with torch.no_grad():
        found = {"acts": sae.encode(x).contiguous(), "W_dec": sae.W_dec.contiguous()}
    save_file(found, folder / "gemma_scope.safetensors")
