"""Takes the losses and gradients of one batch with SAELens' own training class, on given weights.

`python step_with_sae_lens.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads `step.json`
and `start.safetensors` of each folder; writes `sae_lens.safetensors` (gradients) and `.json` (losses).
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    settings = json.loads((folder / "step.json").read_text())
    start = load_file(folder / "start.safetensors")
    x, is_dead = start.pop("x"), start.pop("is_dead")
    sae = MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=x.shape[1],
            d_sae=len(is_dead),
            k=settings["k"],
            matryoshka_widths=settings["prefix_widths"],
            aux_loss_coefficient=settings["aux_coefficient"]["sae_lens"],
            rescale_acts_by_decoder_norm=False,
            apply_b_dec_to_input=True,
        )
    )
    with torch.no_grad():
        for name, weight in start.items():
            getattr(sae, name).copy_(weight)
    step_input = TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=is_dead, n_training_steps=0, is_logging_step=False
    )
    output = sae.training_forward_pass(step_input)
    output.loss.backward()
    save_file({name: getattr(sae, name).grad.contiguous() for name in start}, folder / "sae_lens.safetensors")
    losses = {name: loss.item() for name, loss in output.losses.items()}
    (folder / "sae_lens.json").write_text(json.dumps({"loss": output.loss.item(), "losses": losses}))
