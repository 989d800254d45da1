"""What would a job cost? Widths, memory and time, each with where the figure comes from."""

from typing import Any, Literal

from dmsae.config import CycleConfig, DistillationConfig
from dmsae.service.gpu_time import CARD, SUSTAINED, estimate_gpu_time
from dmsae.service.known_models import ModelFacts
from dmsae.service.memory import peak_memory
from dmsae.service.planning import Plan
from dmsae.service.sizes import core_bound, stored_bytes

NOT_MEASURED = "not measured"


def describe(plan: Plan) -> dict[str, Any]:
    """Describe a job before it is submitted: the widths of every cycle, and what one cycle needs at most."""
    config, facts, n_cycles = plan.config, plan.facts, plan.n_cycles
    cycles = [_widths(plan, index) for index in range(n_cycles)]
    return {
        "config": config.model_dump(mode="json"),
        "max_core": config.max_core,
        "cycles": cycles,
        "memory": _memory(config, facts),
        "host_memory": _host_memory(config, facts),
        "time": _gpu_time(config, facts, n_cycles, unit="s"),
        "gpu_hours": _gpu_time(config, facts, n_cycles, unit="h"),
    }


def _widths(plan: Plan, cycle_index: int) -> dict[str, Any]:
    config, facts, n_core = plan.config, plan.facts, plan.n_given
    if isinstance(config, DistillationConfig):
        n_core = core_bound(config, cycle_index)
    return {
        "cycle_index": cycle_index,
        "is_exact": cycle_index == 0,
        "n_core": n_core,
        "prefix_widths": config.prefix_widths(n_core),
        "stored_bytes": stored_bytes(config, facts, cycle_index, n_given=n_core),
        "gpu_hours": _cycle_gpu_hours(config, facts),
    }


def _cycle_gpu_hours(config: CycleConfig, facts: ModelFacts) -> float | None:
    found = estimate_gpu_time(config, facts) if config.device == "cuda" else None
    return None if found is None else float(f"{found.seconds / 3600:.3g}")


def _memory(config: CycleConfig, facts: ModelFacts) -> dict[str, Any]:
    """Say what the device must hold, which on a CPU is all."""
    peak = peak_memory(config, facts)
    if peak is None:
        return _unknown(facts, unit="bytes")
    source = f"Computed from what the trainer keeps at once; it needs most while {peak.phase}. "
    if config.device == "cpu":
        source += "The peak of the whole process, within 20% of those measured on x86-64 Linux; converting a "
        source += "GGUF file, once, may take more."
    else:
        source += f"On the GPU, {NOT_MEASURED}."
    return {"value": peak.device, "unit": "bytes", "source": source}


def _host_memory(config: CycleConfig, facts: ModelFacts) -> dict[str, Any]:
    """Say what the machine of a GPU must hold beside it."""
    if config.device == "cpu":
        return {"value": None, "unit": "bytes", "source": "The device is the machine's CPU: see `memory`."}
    peak = peak_memory(config, facts)
    if peak is None:
        return _unknown(facts, unit="bytes")
    source = f"Computed: libraries, weights on their way, harvested activations, {NOT_MEASURED}."
    return {"value": peak.host, "unit": "bytes", "source": source}


def _gpu_time(
    config: CycleConfig, facts: ModelFacts, n_cycles: int, *, unit: Literal["s", "h"]
) -> dict[str, Any]:
    """Say how long all cycles would compute, one after the other."""
    if config.device == "cpu":
        source = "No estimate: the speed of the worker that will run it is not known before it starts."
        return {"value": None, "unit": unit, "source": source}
    found = estimate_gpu_time(config, facts)
    if found is None and config.training.n_tokens is None:
        source = "No estimate: how many tokens the text holds is known only once a worker has read it."
        return {"value": None, "unit": unit, "source": source}
    if found is None:
        return _unknown(facts, unit=unit)
    total = found.seconds * n_cycles / (3600 if unit == "h" else 1)
    source = (
        f"Arithmetic, {NOT_MEASURED}: a cycle's {found.model_flop:.2g} operations of the model "
        f"({config.activations.model_dtype}) and {found.sae_flop:.2g} of the SAE (float32) at "
        f"{SUSTAINED:.0%} of the peak of one {CARD}, times {n_cycles} cycles. "
        "Text, dead latents and waiting come on top."
    )
    return {"value": float(f"{total:.3g}"), "unit": unit, "source": source}


def _unknown(facts: ModelFacts, *, unit: str) -> dict[str, Any]:
    source = f"No estimate: the sizes of {facts.name} are known only once a worker has opened it."
    return {"value": None, "unit": unit, "source": source}
