"""One contender of `step.py` in a process of its own: takes steps when told to, and tells how long each took.

    python step_process.py CONTENDER cpu|cuda D_MODEL N_LATENTS K BATCH

Run with the interpreter of an environment that holds the contender. Writes a line when it is ready; then, for
each number of steps that comes on stdin, a line with the milliseconds of each. Activations are random, ours
from the host as in a training; five prefixes. A step is forward, backward, clipping and optimiser; `product`
the encoder's float32 product alone; `traffic` the least that Adam reads and writes: weights and two moments
both, and each gradient once out and once in.
"""

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch

PREFIX_SHARES = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]
N_BATCHES = 4
FOREVER = 1_000_000
"""Steps of a training that is never finished."""

TakeStep = Callable[[int, torch.Tensor], object]


class Batches:
    """A stream (`dmsae.training.Stream`) of the same few batches, round and round."""

    n_steps = FOREVER

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self._batches, self._step = batches, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        self._step += 1
        return self._batches[self._step % len(self._batches)]

    def seek(self, step: int, /) -> None:
        """Make the batch of `step` the next one."""
        self._step = step - 1

    def state_dict(self) -> dict[str, Any]:
        """Give the position."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position."""
        self._step = state["step"]


def prefix_widths(n_latents: int) -> list[int]:
    """Give the cumulative widths of the five prefixes."""
    return [round(share * n_latents) for share in accumulate(PREFIX_SHARES)]


def make_config(n_latents: int, k: int, batch: int, **training: Any) -> Any:
    """Give our settings for this shape."""
    from dmsae.config import DistillationConfig

    return DistillationConfig.model_validate(
        {
            "n_cycles": 1,
            "model": {"source": "builtin", "name": "smollm2-135m"},
            "data": {"text": {"source": "builtin", "name": "python-topics"}},
            "activations": {"layer": 0},
            "sae": {"n_latents": n_latents, "k": k, "block_widths": prefix_widths(n_latents)[:-1]},
            "training": {"batch_tokens": batch, **training},
        }
    )


def dmsae_step(batches: list[torch.Tensor], n_latents: int, k: int) -> TakeStep:
    """Take steps of our trainer, all that it does around them included."""
    from dmsae.training import Trainer

    config = make_config(n_latents, k, len(batches[0]))
    on_host = Batches([x.cpu() for x in batches])
    run = Trainer(config, None, on_host, seed=0, device=batches[0].device).run()
    return lambda _step, _x: next(run)


def dictionary_learning_step(batches: list[torch.Tensor], n_latents: int, k: int) -> TakeStep:
    """Take steps of dictionary_learning's trainer."""
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    trainer = MatryoshkaBatchTopKTrainer(
        steps=FOREVER,
        activation_dim=batches[0].shape[1],
        dict_size=n_latents,
        k=k,
        layer=0,
        lm_name="none",
        group_fractions=PREFIX_SHARES,
        device=str(batches[0].device),
        seed=0,
        warmup_steps=10,
    )
    return lambda step, x: trainer.update(step, x)


def sae_lens_step(batches: list[torch.Tensor], n_latents: int, k: int) -> TakeStep:
    """Take steps of SAELens's SAE as its trainer takes them, with Adam and clipping."""
    from sae_lens.saes import matryoshka_batchtopk_sae as peer
    from sae_lens.saes.sae import TrainStepInput

    config = peer.MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=batches[0].shape[1],
        d_sae=n_latents,
        k=k,
        matryoshka_widths=prefix_widths(n_latents),
        device=str(batches[0].device),
    )
    sae = peer.MatryoshkaBatchTopKTrainingSAE(config)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
    fields = inspect.signature(TrainStepInput).parameters

    def take(step: int, x: torch.Tensor) -> None:
        given = {"sae_in": x, "coefficients": {}, "dead_neuron_mask": None}
        others = {name: step if "step" in name else False for name in fields if name not in given}
        sae.training_forward_pass(TrainStepInput(**given, **others)).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return take


def product_step(batches: list[torch.Tensor], n_latents: int, k: int) -> TakeStep:
    """Take the encoder's product alone: what exact BatchTopK seems to need at least."""
    del k
    x = batches[0]
    rows, bias = x.new_ones(n_latents, x.shape[1]), x.new_zeros(n_latents)
    return lambda _step, x: torch.addmm(bias, x, rows.T)


def traffic_step(batches: list[torch.Tensor], n_latents: int, k: int) -> TakeStep:
    """Move as much memory as four reads and four writes of all weights: what no optimiser can do without."""
    del k
    source = batches[0].new_ones(2 * n_latents, batches[0].shape[1])
    target = torch.empty_like(source)

    def take(_step: int, _x: torch.Tensor) -> None:
        for _ in range(4):
            target.copy_(source)

    return take


CONTENDERS = {
    "dmsae": dmsae_step,
    "product": product_step,
    "traffic": traffic_step,
    "dictionary_learning": dictionary_learning_step,
    "sae_lens": sae_lens_step,
}


def main(name: str, device: str, d_model: int, n_latents: int, k: int, batch: int) -> None:
    """Answer on stdout until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.manual_seed(0)
    batches = [(torch.randn(batch, d_model) / d_model**0.5).to(device) for _ in range(N_BATCHES)]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    take = CONTENDERS[name](batches, n_latents, k)
    take(0, batches[0])
    step = 0
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        took_ms = []
        for _ in range(int(line)):
            step += 1
            wait()
            start = time.perf_counter()
            take(step, batches[step % N_BATCHES])
            wait()
            took_ms.append(1000 * (time.perf_counter() - start))
        answers.write(json.dumps(took_ms) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:7]))
