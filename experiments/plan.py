"""What is compared, at which sizes: every setting of the experiment.

Controls are METHOD's: what a distilled core is worth shows only beside an SAE of the same widths that starts
from no core, and beside cores that were not distilled.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Settings = dict[str, Any]

ARMS: Mapping[str, str] = {
    "distilled": "the distilled core",
    "none": "no core, as wide",
    "none, all tokens": "no core, as wide, the tokens of all cycles",
    "random_directions": "random directions",
    "random_latents": "latents from outside the first prefix",
    "other seed": "another seed's distilled core",
    "frequent": "the most frequent candidates",
    "energy": "the candidates of most energy",
}
"""What a training starts from, and what it is called."""

TRAINING_SEED = 1000
"""Added to a distillation's seed for the trainings around its core: none repeats a start of its own."""


class Distilling(NamedTuple):
    """One distillation of the experiment."""

    core_sparsity: str
    seed: int

    @property
    def label(self) -> str:
        """Name of its job, by which it is found again."""
        return f"distillation {self.core_sparsity} seed {self.seed}"


class Training(NamedTuple):
    """One training: an arm at one sparsity, beside one distillation."""

    distilling: Distilling
    arm: str
    k: int

    @property
    def label(self) -> str:
        """Name of its job."""
        return f"training {self.distilling.core_sparsity} seed {self.distilling.seed} k {self.k}: {self.arm}"


@dataclass(frozen=True)
class Plan:
    """One size of the experiment."""

    name: str
    base: Settings
    """Settings of every distillation."""
    core_sparsities: tuple[str, ...]
    seeds: tuple[int, ...]
    ks: tuple[int, ...]
    n_chains: int
    """Of the group that asks which latents are found again on other text."""
    arms: tuple[str, ...] = field(default=tuple(ARMS))

    @property
    def tag(self) -> str:
        """Tag of all its jobs."""
        return f"experiment-{self.name}"

    def distillations(self) -> Iterator[Distilling]:
        """Give every distillation."""
        for core_sparsity in self.core_sparsities:
            for seed in self.seeds:
                yield Distilling(core_sparsity, seed)

    def trainings(self) -> Iterator[Training]:
        """Give every training."""
        for distilling in self.distillations():
            for k in self.ks:
                for arm in self.arms:
                    yield Training(distilling, arm, k)

    def distillation_request(self, distilling: Distilling) -> Settings:
        """Say what is submitted for a distillation."""
        sae = {**self.base.get("sae", {}), "core_sparsity": distilling.core_sparsity}
        about = {"name": distilling.label, "tags": [self.tag]}
        return {**self.base, **about, "sae": sae, "seed": distilling.seed}

    def chains_request(self, core_sparsity: str) -> Settings:
        """Say what is submitted for the chains."""
        sae = {**self.base.get("sae", {}), "core_sparsity": core_sparsity}
        about = {"name": f"chains {core_sparsity}", "tags": [self.tag]}
        return {**self.base, **about, "sae": sae, "seed": self.seeds[0], "chains": self.n_chains}

    def training_request(self, training: Training, ids: Mapping[Distilling, str], *, epochs: int) -> Settings:
        """Say what is submitted for a training; `epochs` is what all cycles of a distillation read."""
        distilling = training.distilling
        return {
            "name": training.label,
            "tags": [self.tag],
            "core": self._core(training, ids),
            "seed": TRAINING_SEED + distilling.seed,
            "sae": {"k": training.k},
            **({"training": {"epochs": epochs}} if training.arm == "none, all tokens" else {}),
        }

    def _core(self, training: Training, ids: Mapping[Distilling, str]) -> Settings:
        distilling, arm = training.distilling, training.arm
        cycle = {"job_id": ids[distilling]}
        if arm.startswith("none"):
            return {"kind": "none", "width_of": cycle}
        if arm == "other seed":
            at = self.seeds.index(distilling.seed)
            other = distilling._replace(seed=self.seeds[(at + 1) % len(self.seeds)])
            return {"kind": "selected", "cycle": {"job_id": ids[other]}}
        if arm.startswith("random"):
            return {"kind": arm, "cycle": cycle, "seed": distilling.seed}
        return {"kind": "selected" if arm == "distilled" else arm, "cycle": cycle}


PLANS: Mapping[str, Plan] = {
    "small": Plan(
        name="small",
        base={"preset": "demo", "attribution": {"ablation_latents": 0}},
        core_sparsities=("batch_topk",),
        seeds=(0, 1, 2),
        ks=(32,),
        n_chains=3,
    ),
    "full": Plan(
        name="full",
        base={
            "preset": "demo",
            "n_cycles": 5,
            "sae": {"n_latents": 4096, "block_widths": [256, 640, 1408, 2944]},
            "selection": {"max_core": 1024},
            "training": {"epochs": 10, "batch_tokens": 1024, "lr": 2e-3},
            "attribution": {"n_tokens": 8192, "ablation_tokens": 2048, "ablation_latents": 64},
            "evaluation": {"n_tokens": 8192},
        },
        core_sparsities=("batch_topk", "exempt"),
        seeds=(0, 1, 2),
        ks=(16, 32, 64),
        n_chains=3,
    ),
}
"""The sizes: `small` for two hours on 2 cores, `full` for days."""
