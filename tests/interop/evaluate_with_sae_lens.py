"""Evaluates saved SAEs by SAELens' own `run_evals`, on the contexts and the language model that it is given.

`python evaluate_with_sae_lens.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads `sae/`,
`model/`, `contexts.safetensors` and `evaluation.json` of each folder; writes `evaluated.json`.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.load_model import load_model
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file


class Store:
    """Stands in for SAELens' store, which would cut a text into contexts of its own: gives those it has."""

    def __init__(self, input_ids: torch.Tensor, batch_size: int) -> None:
        self._batches = input_ids.split(batch_size)
        self._place = 0
        self.store_batch_size_prompts, self.context_size = batch_size, input_ids.shape[1]

    def get_batch_tokens(self, batch_size: int) -> torch.Tensor:
        """Give the next batch."""
        batch = self._batches[self._place]
        assert len(batch) == batch_size
        self._place += 1
        return batch

    def reset_input_dataset(self) -> None:
        """Begin anew."""
        self._place = 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        settings = json.loads((folder / "evaluation.json").read_text())
        input_ids, batch_size = (
            load_file(folder / "contexts.safetensors")["input_ids"],
            settings["batch_size"],
        )
        sae = SAE.load_from_disk(folder / "sae")
        metadata = sae.cfg.metadata
        model = load_model(metadata.model_class_name, str(folder / "model"), hook_names=[metadata.hook_name])
        n_batches = len(input_ids) // batch_size
        found, by_latent = run_evals(
            sae,
            Store(input_ids, batch_size),
            model,
            ActivationScaler(),
            get_eval_everything_config(batch_size, n_batches, n_batches),
            exclude_special_tokens=settings["special_ids"],
        )
        record = {name: figure for group in found.values() for name, figure in group.items()}
        record["densities"] = by_latent["feature_density"]
        (folder / "evaluated.json").write_text(json.dumps(record))
