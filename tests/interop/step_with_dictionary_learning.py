"""Takes the loss and gradients of one batch with dictionary_learning's own trainer, on given weights.

`python step_with_dictionary_learning.py FOLDER...`, run by the peers' interpreter, which has no DMSAE. Reads
`step.json` and `start.safetensors` of each folder; writes `dictionary_learning.safetensors` (gradients, that
of the decoder after its own removal of what lies along the rows) and `.json` (losses).
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.trainer import remove_gradient_parallel_to_decoder_directions
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    settings = json.loads((folder / "step.json").read_text())
    start = load_file(folder / "start.safetensors")
    x, is_dead = start.pop("x"), start.pop("is_dead")
    n_latents = len(is_dead)
    trainer = MatryoshkaBatchTopKTrainer(
        steps=100,
        activation_dim=x.shape[1],
        dict_size=n_latents,
        k=settings["k"],
        layer=0,
        lm_name="none",
        group_fractions=[
            (wide - narrow) / n_latents for narrow, wide in pairwise([0, *settings["prefix_widths"]])
        ],
        auxk_alpha=settings["aux_coefficient"]["dictionary_learning"],
        warmup_steps=1,
        device="cpu",
    )
    weights = dict(trainer.ae.named_parameters())
    with torch.no_grad():
        for name, weight in start.items():
            weights[name].copy_(weight)
    trainer.num_tokens_since_fired[is_dead] = trainer.dead_feature_threshold
    log = trainer.loss(x, step=0, logging=True)
    trainer.num_tokens_since_fired[is_dead] = trainer.dead_feature_threshold
    loss = trainer.loss(x, step=0)
    loss.backward()
    gradients = {name: weights[name].grad for name in start}
    gradients["W_dec"] = remove_gradient_parallel_to_decoder_directions(
        weights["W_dec"].detach().T, gradients["W_dec"].T, x.shape[1], n_latents
    ).T
    save_file(
        {name: gradient.contiguous() for name, gradient in gradients.items()},
        folder / "dictionary_learning.safetensors",
    )
    facts = {"loss": loss.item(), "losses": log.losses, "n_dead": trainer.dead_features}
    (folder / "dictionary_learning.json").write_text(json.dumps(facts))
