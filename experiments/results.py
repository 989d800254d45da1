"""What did the jobs find? One record a training, and means over seeds with their standard errors."""

from collections.abc import Iterable, Mapping
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from dmsae.client.client import Answer, Client
from experiments.plan import Distilling, Plan, Training

Record = dict[str, Any]

FIGURES: Mapping[str, str] = {
    "ce_first": "CE increase, most nested prefix (nats)",
    "ce": "CE increase, whole SAE (nats)",
    "kl_first": "KL, most nested prefix (nats)",
    "ev_first": "explained variance, most nested prefix",
    "ev": "explained variance, whole SAE",
    "retention": "retention",
    "overlap": "overlap with the distilled core",
    "l0": "L0",
}
"""What is compared, and what it is called; of CE and KL less is better."""


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    se: float | None
    """Standard error of the mean; None of a single seed."""
    n: int

    @property
    def half_width(self) -> float | None:
        """Half of the 95% interval of the mean by Student's t: with three seeds 4.3 standard errors."""
        return None if self.se is None else float(student_t.ppf(0.975, self.n - 1)) * self.se

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Estimate | None":
        """Average what there is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        n = len(known)
        return cls(mean(known), stdev(known) / n**0.5 if n > 1 else None, n)

    def __str__(self) -> str:
        """Show both."""
        return f"{self.mean:.3f}" if self.se is None else f"{self.mean:.3f} ± {self.se:.3f}"


def collect(
    client: Client,
    plan: Plan,
    *,
    distilled: Mapping[Distilling, Answer],
    trained: Mapping[Training, Answer],
    chains: Iterable[Answer],
) -> Record:
    """Gather all that tables and figures need, as plain JSON."""
    return {
        "plan": plan.name,
        "trainings": [_training(client, training, job) for training, job in trained.items()],
        "distillations": [_distillation(client, distilling, job) for distilling, job in distilled.items()],
        "chains": list(chains),
    }


def of_arm(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Give the records of one arm, core sparsity, k, in the order of seeds."""
    found = (record for record in records if all(record[name] == value for name, value in wanted.items()))
    return sorted(found, key=lambda record: record["seed"])


def differences(ours: list[Record], others: list[Record], figure: str) -> Estimate | None:
    """Compare two arms seed by seed: ours minus the others'."""
    by_seed = {record["seed"]: record[figure] for record in others}
    pairs = [(record[figure], by_seed.get(record["seed"])) for record in ours]
    return Estimate.of(a - b for a, b in pairs if a is not None and b is not None)


def _training(client: Client, training: Training, job: Answer) -> Record:
    metrics = client.request("GET", f"/trainings/{job['id']}/cycles")["items"][0]["metrics"]
    distilling = training.distilling
    return {
        **distilling._asdict(), "arm": training.arm, "k": training.k,
        "job_id": job["id"],
        "ce_first": metrics["ce_increase_per_prefix"][0], "ce": metrics["ce_increase"],
        "kl_first": metrics["kl_per_prefix"][0],
        "ev_first": metrics["explained_variance_per_prefix"][0], "ev": metrics["explained_variance"],
        "retention": metrics["retention"],
        # of another seed's core it would tell how much of that it is itself
        "overlap": None if training.arm == "other seed" else metrics.get("given_overlap"),
        "is_weak_control": metrics.get("is_weak_control"), "l0": metrics["l0"],
        "p_1": metrics["prefix_widths"][0], "n_tokens": metrics["n_tokens"],
    }  # fmt: skip


def _distillation(client: Client, distilling: Distilling, job: Answer) -> Record:
    cycles = client.distillations.cycles(job["id"])
    done = [cycle for cycle in cycles if cycle["metrics"] is not None]
    names = ("n_core", "retention", "core_density", "ce_increase", "explained_variance")
    core = client.distillations.core(job["id"])
    return {
        **distilling._asdict(),
        "job_id": job["id"],
        "cycles": [{name: cycle["metrics"][name] for name in names} for cycle in done],
        "origins": client.distillations.origins(job["id"])["matrix"],
        "core": [{name: latent[name] for name in ("density", "score", "origin_cycle")} for latent in core],
    }
