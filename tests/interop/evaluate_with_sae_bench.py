"""Evaluates saved SAEs by SAEBench's core evaluation, on the contexts and language model that it is given.

`python evaluate_with_sae_bench.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads
`sae/`, `model/`, `contexts.safetensors` and `evaluation.json` of each folder; writes `benched.json`.
"""

import json
import sys
from pathlib import Path

import torch
from evaluate_with_sae_lens import Store
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import check_decoder_norms, load_and_format_sae
from sae_lens import SAE
from sae_lens.load_model import load_model
from safetensors.torch import load_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    settings = json.loads((folder / "evaluation.json").read_text())
    input_ids, batch_size = load_file(folder / "contexts.safetensors")["input_ids"], settings["batch_size"]
    sae = SAE.load_from_disk(folder / "sae")
    metadata = sae.cfg.metadata
    metadata.model_name = str(folder / "model")
    name, sae, _ = load_and_format_sae("dmsae", sae, "cpu")
    model = load_model(metadata.model_class_name, metadata.model_name, hook_names=[metadata.hook_name])
    n_batches = len(input_ids) // batch_size
    config = CoreEvalConfig(
        model_name=metadata.model_name,
        batch_size_prompts=batch_size,
        n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
    )
    found, by_latent = run_evals(
        sae, Store(input_ids, batch_size), model, config, ignore_tokens=set(settings["special_ids"])
    )
    record = {name: figure for group in found.values() for name, figure in group.items()}
    record["densities"] = by_latent["feature_density"]
    record["is_of_unit_norm"] = check_decoder_norms(sae.W_dec.data)
    record["layer"] = sae.cfg.hook_layer
    (folder / "benched.json").write_text(json.dumps(record))
