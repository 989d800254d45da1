"""What the API answers about probes, field by field."""

from collections.abc import Mapping
from typing import Any, Self

from api import examples
from api.schemas import Answer, JobOut, example_of
from api.submission_schemas import Quantity
from dmsae.service.probes import ProbePlan
from dmsae.service.progress import JobView

LATENT_ID = f"{examples.JOB_ID}.0.17"
CORE: dict[str, Any] = {"job": examples.JOB_ID, "cycle": 2}
PROMPT: dict[str, Any] = {
    "kind": "prompt",
    "core": CORE,
    "prompt": "The capital of France is",
    "n_new_tokens": 3,
}
MATCH: dict[str, Any] = {
    "kind": "match",
    "core": CORE,
    "other": {"kind": "cycle", "job": examples.JOB_ID, "cycle": 1},
    "n_tokens": 5000,
}
PROBE_SUBMISSIONS: list[Any] = [PROMPT, {"kind": "logit_lens", "core": {"job": examples.JOB_ID}}, MATCH]
"""Bodies of POST /probes: a text of one's own; a logit lens of a job's last core; two cores of one job."""

_NEXT: dict[str, Any] = {
    "next": [{"token_id": 7042, "token": " Paris", "probability": 0.41, "logit": 17.2}],
    "continuation": [
        {"token_id": 7042, "token": " Paris"},
        {"token_id": 30, "token": "."},
    ],
    "text": " Paris.",
}
PROMPT_RESULT: dict[str, Any] = {
    "kind": "prompt",
    "core": CORE,
    "tokens": [
        {"token_id": 504, "token": "The", "is_counted": False},
        {"token_id": 3575, "token": " capital", "is_counted": True},
    ],
    "latents": [
        {"latent_id": LATENT_ID, "core_index": 4, "activations": [None, 31.5], "max_activation": 31.5}
    ],
    "rms": 58.1,
    "plain": _NEXT,
    "change": {"kind": "steer", "strength": 40.0},
    "changed": _NEXT,
    "kl": 0.12,
}
"""Shortened: every token is there."""
CONFIG: dict[str, Any] = {**PROMPT, "latent": LATENT_ID, "change": PROMPT_RESULT["change"]}
"""Shortened: model, activations and the rest are there too."""
PROBE: dict[str, Any] = {
    **examples.JOB,
    "kind": "probe",
    "config": CONFIG,
    "preset": None,
    "links": {"self": f"/jobs/{examples.JOB_ID}", "probe": f"/probes/{examples.JOB_ID}"},
    "result": PROMPT_RESULT,
}
PROBE_DRY_RUN: dict[str, Any] = {
    "config": CONFIG,
    "n_core": 96,
    "memory": {
        "value": 1_650_000_000,
        "unit": "bytes",
        "source": "Computed, from above: model and one pass.",
    },
}


class ProbeOut(JobOut):
    """A probe: its job, and what it found once it has succeeded."""

    model_config = example_of(PROBE)

    result: dict[str, Any] | None
    """Null until then. `kind`, `core` and, by kind:

    `logit_lens`: `latents`, each with the tokens that it promotes and suppresses most: its row of W_dec W_U,
    with the gain of the model's last norm where `final_norm` is folded.
    `match`: `matches`, each with cosine and firing correlation, at most 1,000 (the artifact `probe.json` has
    all); `best_cosine` beside `best_cosine_random`, the mean largest cosine with the others, and with as many
    random directions.
    `prompt`: `tokens`; `latents` with an activation at each token, in the model's own units (null where the
    token is special or its norm beyond the limit of the core's training, so that no latent counts there);
    `plain` and `changed`, what the model says next; `kl`, in nats, between the two at the next token.
    """

    @classmethod
    def with_result(cls, view: JobView, result: Mapping[str, Any] | None) -> Self:
        """Show a probe."""
        return cls(**dict(JobOut.of(view)), result=None if result is None else dict(result))


class ProbeDryRunOut(Answer):
    """What a probe would be; nothing was stored."""

    model_config = example_of(PROBE_DRY_RUN)

    config: dict[str, Any]
    """Every setting, as the trainer would get it."""
    n_core: int
    """Latents of the core."""
    memory: Quantity
    """Of the device, at its peak; on a CPU the whole process."""

    @classmethod
    def of(cls, plan: ProbePlan) -> Self:
        """Show a plan."""
        value = plan.memory_bytes
        source = "Computed, from above: the model, one pass through it, and the latents that are compared."
        if value is None:
            source = (
                f"No estimate: the sizes of {plan.facts.name} are known only once a worker has opened it."
            )
        memory = Quantity(value=value, unit="bytes", source=source)
        return cls(config=plan.config.model_dump(mode="json"), n_core=plan.n_core, memory=memory)
