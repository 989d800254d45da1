"""How much memory do steps and the search for the threshold take, beside what the issue allows them?

`value` is the peak of a process of its own that trains a few steps, three in ten latents dead, and finishes,
over what it held when all was loaded and compiled; `ratio` is that over parameters, Adam's state and three
matrices of batch x width, in float32; `spread` the least and the most of the runs.

    python -m bench.step_memory D_MODEL N_LATENTS K BATCH
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch

from bench.step_process import Batches
from dmsae.allocator import peak_memory_bytes

SHAPE = (576, 16384, 64, 2048)
"""d_model, n_latents, k, batch."""
N_RUNS = 3
N_STEPS = 3
DEAD_SHARE = 0.3
NEVER = -100.0
"""A bias at which a latent is never selected."""
FLOAT32 = 4


def step_memory_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give the row, where it is wanted."""
    name = f"step_memory.{SHAPE[0]}x{SHAPE[1]}"
    if not is_wanted(name):
        return
    command = [sys.executable, "-m", "bench.step_memory", *map(str, SHAPE)]
    answers = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(N_RUNS)]
    measured = sorted(json.loads(answer.stdout) for answer in answers)
    value, allowed = measured[len(measured) // 2], allowed_bytes(*SHAPE)
    yield {
        "name": name,
        "value": value,
        "unit": "bytes",
        "against": f"parameters, Adam's state and three batch x width {allowed}",
        "ratio": round(value / allowed, 3),
        "spread": [measured[0], measured[-1]],
    }


def allowed_bytes(d_model: int, n_latents: int, k: int, batch: int) -> int:
    """Give what the issue allows: three times the parameters, and three matrices of batch x width."""
    del k
    parameters = 2 * n_latents * d_model + n_latents + d_model
    return FLOAT32 * (3 * parameters + 3 * batch * n_latents)


class Tokens(Batches):
    """Batches that are drawn when they are asked for, those of the threshold too."""

    n_steps = N_STEPS

    def __init__(self, d_model: int, batch: int) -> None:
        self._shape = (batch, d_model)
        super().__init__([self._draw(0)])

    def for_threshold(self, n_tokens: int, /) -> Any:
        """Give so many tokens, drawn one batch at a time."""
        from dmsae.stream import ThresholdTokens

        n_batches = n_tokens // self._shape[0]
        return ThresholdTokens(n_batches * self._shape[0], 0, _Drawn(self._draw, n_batches))

    def _draw(self, seed: int) -> torch.Tensor:
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(seed)) / self._shape[1] ** 0.5


class _Drawn:
    def __init__(self, draw: Callable[[int], torch.Tensor], n_batches: int) -> None:
        self._draw, self._n_batches = draw, n_batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self._draw, range(self._n_batches))


def main(d_model: int, n_latents: int, k: int, batch: int) -> None:
    """Train and finish; write the peak over the beginning to stdout, in bytes."""
    from bench.step_process import make_config
    from dmsae.compiling import compile_loops, kinds_of_estimates
    from dmsae.training import Trainer

    config = make_config(n_latents, k, batch, dead_after_tokens=batch)
    compile_loops(kinds_of_estimates(config))
    tokens = Tokens(d_model, batch)
    torch.addmm(torch.zeros(8), torch.ones(64, 64), torch.ones(64, 8))  # what it makes at first use, it keeps
    gc.collect()
    before = psutil.Process().memory_info().rss
    trainer = Trainer(config, None, tokens, seed=0)
    trainer._parameters["b_enc"][: int(DEAD_SHARE * n_latents)] = NEVER
    *_, last = trainer.run()
    if abs(last.dead_fraction - DEAD_SHARE) > 0.05:
        raise RuntimeError(f"{last.dead_fraction} of the latents are dead")
    trainer.finish()
    sys.stdout.write(json.dumps(peak_memory_bytes() - before) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
