"""Opens exported SAEs with dictionary_learning alone and writes what it makes of raw activations.

`python read_with_dictionary_learning.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads
`exported/` and `x.safetensors` of each folder; writes `dictionary_learning.safetensors` and `.json`.
"""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    dictionary, config = load_dictionary(str(folder / "exported"), device="cpu")
    with torch.no_grad():
        latent_acts = dictionary.encode(load_file(folder / "x.safetensors")["x"])
        x_hat = dictionary.decode(latent_acts)
    save_file({"latent_acts": latent_acts, "x_hat": x_hat}, folder / "dictionary_learning.safetensors")
    facts = {"class": type(dictionary).__name__, "metadata": config["dmsae"]}
    (folder / "dictionary_learning.json").write_text(json.dumps(facts))
