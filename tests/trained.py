"""Trainers on random activations in memory, and a slow plain twin of the losses that they minimise."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dmsae.config import DistillationConfig
from dmsae.sae import Core, MatryoshkaSae
from dmsae.stream import ThresholdTokens
from dmsae.training import Progress, Trainer

D_MODEL, N_LATENTS, K, BATCH = 12, 40, 4, 32


class Batches:
    """A stream over batches that are all in memory."""

    def __init__(self, x: Tensor, batch_tokens: int = BATCH) -> None:
        self.batches = x.split(batch_tokens)
        self.n_steps = len(self.batches)
        self.step = 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self.step >= len(self.batches):
            raise StopIteration
        self.step += 1
        return self.batches[self.step - 1]

    def seek(self, step: int, /) -> None:
        self.step = step

    def for_threshold(self, n_tokens: int, /) -> ThresholdTokens:
        """Give the first batches."""
        batches = self.batches[: -(-n_tokens // len(self.batches[0]))]
        return ThresholdTokens(sum(map(len, batches)), 0, batches)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.step = state["step"]


EXEMPT = [
    {"core_sparsity": "exempt", "noncore_budget": "dynamic"},
    {"core_sparsity": "exempt", "noncore_budget": "fixed"},
]
"""Both budgets beside an exempt core."""
SPARSITIES = [{"core_sparsity": "batch_topk"}, *EXEMPT]
"""All kinds of sparsity."""


def name_of(sparsity: dict[str, str]) -> str:
    """Name a kind of sparsity in the ids of tests."""
    return "-".join(sparsity.values())


def make_config(*, sae: dict[str, Any] | None = None, **training: Any) -> DistillationConfig:
    return DistillationConfig.model_validate(
        {
            "n_cycles": 1,
            "model": {"source": "builtin", "name": "smollm2-135m"},
            "data": {"text": {"source": "builtin", "name": "python-topics"}},
            "activations": {"layer": 0},
            "sae": {"n_latents": N_LATENTS, "k": K, "block_widths": [6, 14], **(sae or {})},
            "training": {"batch_tokens": BATCH, "lr": 1e-2, **training},
        }
    )


def random_x(n_tokens: int, *, d_model: int = D_MODEL, seed: int = 0) -> Tensor:
    return torch.randn(n_tokens, d_model, generator=torch.Generator().manual_seed(seed)) / d_model**0.5


def make_trainer(
    config: DistillationConfig, *, core: Core | None = None, n_steps: int = 12, seed: int = 0
) -> Trainer:
    return Trainer(config, core, Batches(random_x(n_steps * BATCH)), seed=seed)


def trained(config: DistillationConfig, **arguments: Any) -> tuple[Trainer, list[Progress]]:
    trainer = make_trainer(config, **arguments)
    return trainer, list(trainer.run())


def tensors_of(sae: MatryoshkaSae) -> dict[str, Tensor]:
    return {name: value for name, value in vars(sae).items() if isinstance(value, Tensor)}


def assert_same_bits(one: MatryoshkaSae, other: MatryoshkaSae) -> None:
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, tensors_of(other)[name]), name


def encoded(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """Give the pre-activations, written out."""
    return (x - parameters["b_dec"]) @ parameters["W_enc"] + parameters["b_enc"]


def twin_acts(pre_acts: Tensor, *, k: int = K, n_exempt: int = 0, is_dynamic: bool = True) -> Tensor:
    """Select by one sort over the batch, the budget in floats a token, as METHOD 4 writes it."""
    acts = torch.relu(pre_acts)
    exempt, others = acts[:, :n_exempt], acts[:, n_exempt:]
    l0_exempt = (exempt > 0).sum().item() / len(acts)
    k_nc = max(max(1, k / 4), k - l0_exempt) if is_dynamic else k
    border = others.detach().flatten().sort(descending=True).values[round(k_nc * len(acts)) - 1]
    return torch.cat([exempt, others * (others.detach() >= border)], dim=1)


def twin_loss(
    x: Tensor, parameters: dict[str, Tensor], acts: Tensor, *, widths: list[int], is_dead: Tensor
) -> tuple[Tensor, Tensor]:
    """One full dense decode per prefix, token by token where it matters: both parts of the loss."""
    W_dec, b_dec, pre_acts = parameters["W_dec"], parameters["b_dec"], encoded(x, parameters)
    prefixes = []
    for width in widths:
        mask = (torch.arange(acts.shape[1]) < width).to(acts.dtype)
        x_hat = (acts * mask) @ W_dec + b_dec
        prefixes.append(
            sum(((row - row_hat) ** 2).sum() for row, row_hat in zip(x, x_hat, strict=True)) / len(x)
        )
    residual = (x - x_hat).detach()
    missed, spread = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    for t in range(len(x)):
        dead = sorted(is_dead.nonzero().flatten().tolist(), key=lambda i: -pre_acts[t, i].item())
        r_hat = sum(pre_acts[t, i] * W_dec[i] for i in dead[: x.shape[1] // 2])
        missed = missed + ((residual[t] - r_hat) ** 2).sum() / len(x)
        spread = spread + ((residual[t] - residual.mean(dim=0)) ** 2).sum() / len(x)
    return torch.stack(prefixes), missed / spread
