"""Opens saved SAEs with SAELens alone and writes what it makes of raw activations.

`python read_with_sae_lens.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads `sae/` and
`x.safetensors` of each folder; writes `sae_lens.safetensors`, `sae_lens.json` and, saved again, `sae_lens/`.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    sae = SAE.load_from_disk(folder / "sae")
    with torch.no_grad():
        latent_acts = sae.encode(load_file(folder / "x.safetensors")["x"])
        x_hat = sae.decode(latent_acts)
    save_file({"latent_acts": latent_acts, "x_hat": x_hat}, folder / "sae_lens.safetensors")
    facts = {"class": type(sae).__name__, "metadata": sae.cfg.metadata.to_dict()}
    (folder / "sae_lens.json").write_text(json.dumps(facts))
    sae.save_model(folder / "sae_lens")
